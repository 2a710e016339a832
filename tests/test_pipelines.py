"""The DVC pipelines: they name options that exist, and keep the private images private."""

import dataclasses
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import load_recipe

from distill.settings import DistillSettings, EvalSettings, TrainSettings
from pipeline.settings import ScoreSettings, SelectSettings, SynthesisSettings

ROOT = Path(__file__).parents[1]
PIPELINES = [ROOT / "dvc.yaml", *sorted(ROOT.glob("recipes/*/dvc.yaml"))]
STAGE_ONE = {"pipeline", "storage"}
NEEDED = {f"dfss-{name}": STAGE_ONE for name in ("score", "select", "synthesize")} | {
    f"dfss-{name}": {"distill", *STAGE_ONE} for name in ("train", "distill", "eval")
}
SETTINGS: dict[str, Any] = {
    "world": load_recipe("world", "world").World,
    "train": TrainSettings,
    "score": ScoreSettings,
    "select": SelectSettings,
    "synthesize": SynthesisSettings,
    "distill": DistillSettings,
    "eval": EvalSettings,
}


def stages(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, stage in yaml.safe_load(path.read_text())["stages"].items():
        yield name, {**stage.get("do", stage), "items": stage.get("foreach", stage.get("matrix"))}


def commands(path: Path) -> Iterator[list[str]]:
    for _, stage in stages(path):
        yield from commands_of(stage)


def commands_of(stage: dict[str, Any]) -> Iterator[list[str]]:
    for command in stage["cmd"].split("&&"):
        words = shlex.split(command)
        yield words[words.index("--") + 1 :] if "--" in words else words


def options_of(settings: Any) -> set[str]:
    return {f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(settings)}


@pytest.mark.parametrize("path", PIPELINES, ids=lambda path: path.parent.name)
def test_every_option_of_every_stage_exists(path: Path) -> None:
    seen = 0
    for command, *arguments in commands(path):
        if command.startswith("dfss-"):
            check_options(shlex.join(arguments), SETTINGS[command.removeprefix("dfss-")])
            seen += 1
        elif arguments[0] == "recipes/world/world.py":
            check_options(shlex.join(arguments[1:]), SETTINGS["world"])
    assert seen >= 6


@pytest.mark.parametrize("name", ["params.yaml", "full.yaml"])
def test_every_arm_of_the_experiment_names_options_scores_and_images_that_exist(name: str) -> None:
    folder = ROOT / "recipes" / "camvid"
    arms = yaml.safe_load((folder / "arms.yaml").read_text())
    params = yaml.safe_load((folder / name).read_text())
    stores = {*arms["scores"], *arms["synthesized"]}
    orders = {*arms["selections"], *arms["synthesized"]}
    assert {order["scores"] for order in arms["selections"].values()} <= stores
    known = {"scores": ScoreSettings, "synthesized": SynthesisSettings}
    for group, settings in known.items():
        for arm in arms[group].values():
            check_options(arm["options"], settings)
    for arm in [*arms["arms"].values(), *params["arms"].values()]:
        assert arm["scores"] in stores
        assert arm["selection"] in orders
        check_options(arm["options"], DistillSettings)
    for reference in params["references"].values():
        check_options(reference["options"], DistillSettings)


def check_options(text: str, settings: Any) -> None:
    given = {word.replace("--no-", "--") for word in shlex.split(text) if word.startswith("--")}
    assert given - {"--method"} <= options_of(settings), text


@pytest.mark.parametrize("path", PIPELINES, ids=lambda path: path.parent.name)
def test_every_value_of_params_yaml_is_a_setting_and_every_section_is_depended_on(path: Path) -> None:
    listed = {param for _, stage in stages(path) for param in stage.get("params", [])}
    for scale in (scale for name in ("params.yaml", "full.yaml") if (scale := path.with_name(name)).exists()):
        sections = yaml.safe_load(scale.read_text())["dfss"]
        for name, values in sections.items():
            assert set(values) <= {field.name for field in dataclasses.fields(SETTINGS[name])}
        assert listed == {f"dfss.{name}" for name in sections}


@pytest.mark.parametrize("path", PIPELINES, ids=lambda path: path.parent.name)
def test_nothing_after_the_teacher_reads_the_private_images_but_the_references(path: Path) -> None:
    private = re.compile(r"world/private|camvid/train|original\.|private\.(zarr|parquet)|manifest\.csv|wild-sources")
    allowed = {"private-scenes", "wild-images", "teacher", "sources"}
    for name, stage in stages(path):
        if name not in allowed and not name.startswith("reference-"):
            assert not [dep for dep in [*stage.get("deps", []), stage["cmd"]] if private.search(dep)], name
            assert not re.search("private|original", str(stage["items"])), name


def test_no_arm_but_the_references_has_to_do_with_the_private_images() -> None:
    folder = ROOT / "recipes" / "camvid"
    arms = yaml.safe_load((folder / "arms.yaml").read_text())
    students = [yaml.safe_load((folder / name).read_text())["arms"] for name in ("params.yaml", "full.yaml")]
    assert not re.search("original|camvid|manifest|label", str([arms, students]))


@pytest.mark.parametrize("path", PIPELINES, ids=lambda path: path.parent.name)
def test_code_is_a_dependency_wherever_it_runs(path: Path) -> None:
    seen = 0
    for name, stage in stages(path):
        needed = {needed for command in commands_of(stage) for needed in NEEDED.get(command[0], set())}
        assert needed <= {Path(dep).name for dep in stage["deps"]}, name
        seen += bool(needed)
    assert seen >= 6
