"""The DVC pipelines: they name options that exist, depend on the code they run, and keep the private images private."""

import ast
import dataclasses
import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import load_recipe

from distill.settings import DistillSettings, EvalSettings, TrainSettings
from pipeline.settings import ImportSettings, ScoreSettings, SelectSettings, SynthesisSettings

ROOT = Path(__file__).parents[1]
PIPELINES = [ROOT / "dvc.yaml", *sorted(ROOT.glob("recipes/*/dvc.yaml"))]
FLOORS = ("storage", "pipeline", "distill")
COMMANDS = {
    "dfss-score": ("pipeline/cli.py", "_score"),
    "dfss-select": ("pipeline/cli.py", "_select"),
    "dfss-synthesize": ("pipeline/cli.py", "_synthesize"),
    "dfss-import": ("pipeline/cli.py", "_import"),
    "dfss-train": ("distill/cli.py", "_train"),
    "dfss-distill": ("distill/cli.py", "_distill"),
    "dfss-eval": ("distill/cli.py", "_evaluate"),
}
"""Where each command begins to run its stage."""
PRIVATE = {*Path("data/world/private").parents, *Path("${data}/camvid/train").parents}
"""Folders that contain the private images. A stage that depends on one of them depends on the private images."""
SETTINGS: dict[str, Any] = {
    "world": load_recipe("world", "world").World,
    "train": TrainSettings,
    "score": ScoreSettings,
    "select": SelectSettings,
    "synthesize": SynthesisSettings,
    "import": ImportSettings,
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
    stores = {*arms["scores"], *arms["piles"], *arms["synthesized"]}
    orders = {*arms["selections"], *arms["synthesized"]}
    assert {order["scores"] for order in arms["selections"].values()} <= stores
    known = {"scores": ScoreSettings, "synthesized": SynthesisSettings}
    for group, settings in known.items():
        for arm in arms[group].values():
            check_options(arm["options"], settings)
    for arm in [*arms["arms"].values(), *params["arms"].values(), *params["references"].values()]:
        assert arm["seeds"] in range(1, params["seeds"] + 1)
    for arm in [*arms["arms"].values(), *params["arms"].values()]:
        assert arm["scores"] in stores
        assert arm["selection"] in orders
        check_options(arm["options"], DistillSettings)
    for reference in params["references"].values():
        check_options(reference["options"], DistillSettings)


def test_every_arm_on_public_teachers_names_a_teacher_scores_images_and_options_that_exist() -> None:
    params = yaml.safe_load((ROOT / "recipes" / "public_teachers" / "params.yaml").read_text())
    teachers = set(params["teachers"])
    assert {order["teacher"] for order in params["selections"].values()} == teachers
    made = {f"{teacher}-refined" for teacher in teachers}
    originals = {f"{teacher}-original" for teacher in teachers}
    for arm, settings in params["arms"].items():
        assert settings["images"] in {*params["selections"], *made}, arm
        assert settings["scores"] in {*teachers, *made}, arm
    for arm, settings in {**params["arms"], **params["references"]}.items():
        assert settings["teacher"] in teachers, arm
        assert arm.startswith(f"{settings['teacher']}-"), arm
        check_options(settings["options"], DistillSettings)
    assert {settings["images"] for settings in params["references"].values()} == originals
    students = {arm.rpartition("-")[0] for arm in params["arms"]}
    assert students == {arm.rpartition("-")[0] for arm in params["references"]}
    images = {"ads", "random", "refined"}
    assert set(params["arms"]) == {f"{student}-{image}" for student in students for image in images}
    assert not re.search("original|train|label", str([params["selections"], params["arms"]]))


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
            assert not PRIVATE & {Path(dep) for dep in stage.get("deps", [])}, name


def test_no_arm_but_the_references_uses_the_private_images() -> None:
    folder = ROOT / "recipes" / "camvid"
    arms = yaml.safe_load((folder / "arms.yaml").read_text())
    students = [yaml.safe_load((folder / name).read_text())["arms"] for name in ("params.yaml", "full.yaml")]
    assert not re.search("original|camvid|manifest|label", str([arms, students]))


@cache
def syntax(file: Path) -> ast.Module:
    return ast.parse(file.read_text())


def module_file(name: str, beside: Path | None = None) -> Path | None:
    """File of a module of the project, or of one beside a script; None for any other."""
    folder = ROOT if name.split(".")[0] in FLOORS else beside
    if folder is None:
        return None
    path = folder.joinpath(*name.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def imported(tree: ast.AST, beside: Path | None = None) -> Iterator[Path]:
    """Files that the imports below a node name, those inside its functions too."""
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        yield from filter(None, (module_file(name, beside) for name in names))


@cache
def imports_of(file: Path, beside: Path | None) -> tuple[Path, ...]:
    return tuple(imported(syntax(file), beside))


def reached(first: Iterable[Path], beside: Path | None = None) -> set[Path]:
    """Files that are imported from some files, directly or not, and these themselves."""
    found: set[Path] = set()
    waiting = list(first)
    while waiting:
        if (file := waiting.pop()) not in found:
            found.add(file)
            waiting += imports_of(file, beside)
    return found


def code_of(words: list[str], folder: Path) -> set[Path]:
    """Files of the project whose code one command of a stage in ``folder`` runs."""
    if words[0] in COMMANDS:
        cli, name = COMMANDS[words[0]]
        functions = [node for node in syntax(ROOT / cli).body if isinstance(node, ast.FunctionDef)]
        (stage,) = [function for function in functions if function.name == name]
        return reached(imported(stage))
    if words[0] == "python":
        return {file.resolve() for file in reached([folder / words[1]], beside=folder)}
    return set()


def room_of(file: Path) -> str:
    """A folder of a floor, or a module that stands alone on it; a script stands for itself."""
    parts = file.relative_to(ROOT).parts
    return "/".join(parts[:2]) if parts[0] in FLOORS else "/".join(parts)


def is_code(dep: Path) -> bool:
    return dep.is_relative_to(ROOT) and dep.relative_to(ROOT).parts[0] in FLOORS


def words_of(stage: dict[str, Any]) -> Iterator[list[str]]:
    """Each command of a stage; one that runs another counts as both."""
    for command in stage["cmd"].split("&&"):
        words = shlex.split(command)
        yield words
        if "--" in words:
            yield words[words.index("--") + 1 :]


@pytest.mark.parametrize("path", PIPELINES, ids=lambda path: path.parent.name)
def test_every_stage_depends_on_the_rooms_whose_code_it_runs_and_on_no_others(path: Path) -> None:
    seen = 0
    for name, stage in stages(path):
        code = {file for words in words_of(stage) for file in code_of(words, path.parent)}
        deps = {(path.parent / dep).resolve() for dep in stage["deps"]}
        rooms = {ROOT / room_of(file) for file in code if is_code(file)}
        if code:
            assert {dep for dep in deps if is_code(dep)} == rooms, name
            seen += 1
        for script in code - {file for file in code if is_code(file)}:
            assert deps & {script, *script.parents}, f"{name} does not depend on {script.name}"
    assert seen >= 6


@pytest.mark.parametrize("path", PIPELINES, ids=lambda path: path.parent.name)
def test_no_stage_depends_on_a_whole_floor(path: Path) -> None:
    floors = {ROOT, *(ROOT / floor for floor in FLOORS)}
    for name, stage in stages(path):
        assert not floors & {(path.parent / dep).resolve() for dep in stage["deps"]}, name


@pytest.mark.parametrize(
    ("room", "spared"),
    [
        ("pipeline/selection", {"teacher", "score", "evaluate"}),
        ("pipeline/scoring", {"teacher", "select", "distill", "reference-student", "evaluate"}),
        ("distill/losses.py", {"score", "select", "reference-scores", "evaluate"}),
        ("distill/supervised.py", {"score", "select", "distill", "reference-student", "evaluate"}),
        ("distill/weighting.py", {"teacher", "score", "select", "evaluate"}),
        ("storage/scores", {"teacher", "evaluate"}),
    ],
)
def test_a_change_in_a_room_runs_no_unrelated_stage_again(room: str, spared: set[str]) -> None:
    changed = ROOT / room
    assert changed.exists()
    deps = {name: {ROOT / dep for dep in stage["deps"]} for name, stage in stages(ROOT / "dvc.yaml")}
    run_anew = {name for name in deps if changed in deps[name]}
    assert run_anew
    assert spared <= set(deps)
    assert not run_anew & spared


def test_packages_hold_no_code_so_that_importing_one_of_their_modules_runs_none() -> None:
    for floor in FLOORS:
        for file in (ROOT / floor).rglob("__init__.py"):
            assert all(isinstance(node, ast.Expr) for node in syntax(file).body), file


@pytest.mark.parametrize("recipe", ["camvid", "public_teachers"])
def test_the_links_of_the_recipes_lead_to_the_floors_and_to_what_recipes_share(recipe: str) -> None:
    rooms = ROOT / "recipes" / recipe / "rooms"
    assert {link.name: link.resolve() for link in rooms.iterdir()} == {floor: ROOT / floor for floor in FLOORS}
    assert (ROOT / "recipes" / recipe / "shared").resolve() == ROOT / "recipes" / "shared"


@pytest.mark.parametrize("path", PIPELINES, ids=lambda path: path.parent.name)
def test_every_pipeline_is_a_dvc_project_of_its_own_that_ignores_what_running_code_leaves(path: Path) -> None:
    assert (path.parent / ".dvc" / "config").is_file()
    assert "analytics = false" in (path.parent / ".dvc" / "config").read_text()
    assert "__pycache__" in (path.parent / ".dvcignore").read_text().split()


@pytest.mark.parametrize("path", PIPELINES, ids=lambda path: path.parent.name)
def test_an_interrupted_run_is_continued_and_a_complete_one_of_other_inputs_replaced(path: Path) -> None:
    seen = 0
    for name, stage in stages(path):
        trained = [words for words in commands_of(stage) if words[0] in ("dfss-train", "dfss-distill")]
        for words in trained:
            assert {"--resume", "--overwrite"} <= set(words), name
            folder = words[words.index("--out") + 1].removesuffix("/{seed}")
            assert {folder: {"persist": True}} in stage["outs"], name
            seen += 1
    assert seen >= 2


@pytest.mark.parametrize("name", ["params.yaml", "full.yaml"])
def test_the_student_trained_on_labels_is_built_like_the_distilled_ones(name: str) -> None:
    params = yaml.safe_load((ROOT / "recipes" / "camvid" / name).read_text())
    assert json.loads(params["labels"]["arguments"]) == params["dfss"]["distill"]["student_arguments"]


@pytest.mark.parametrize("path", PIPELINES, ids=lambda path: path.parent.name)
def test_no_value_of_params_yaml_is_a_number_a_list_or_a_mapping_in_a_string(path: Path) -> None:
    for scale in (scale for name in ("params.yaml", "full.yaml") if (scale := path.with_name(name)).exists()):
        for values in yaml.safe_load(scale.read_text())["dfss"].values():
            for name, value in values.items():
                assert not (isinstance(value, str) and re.fullmatch(r"[{\[].*|\d[\d.]*(x\d+|%)?", value)), name


def test_metrics_are_short_and_listed_once() -> None:
    pipeline = yaml.safe_load((ROOT / "dvc.yaml").read_text())
    assert "metrics" not in pipeline
    listed = [metric for _, stage in stages(ROOT / "dvc.yaml") for metric in stage.get("metrics", [])]
    assert listed == [{"evaluation.json": {"cache": False}}]


@pytest.mark.parametrize("name", ["evaluation.json", "curves.csv", "iou.csv", "dvc.lock"])
def test_what_dvc_compares_revisions_by_is_not_ignored_by_git(name: str) -> None:
    if not (ROOT / ".git").exists() or (git := shutil.which("git")) is None:
        pytest.skip("not a git checkout")
    asked = subprocess.run([git, "check-ignore", "-q", name], cwd=ROOT, check=False)
    assert asked.returncode == 1


def test_every_plot_is_drawn_by_a_template_that_exists_from_outputs_that_exist() -> None:
    outputs = set(outputs_of(ROOT / "dvc.yaml"))
    for entry in yaml.safe_load((ROOT / "dvc.yaml").read_text())["plots"]:
        for name, plot in entry.items():
            template = json.loads((ROOT / ".dvc" / "plots" / f"{plot['template']}.json").read_text())
            assert template["data"] == {"values": "<DVC_METRIC_DATA>"}
            files = plot["y"] if isinstance(plot["y"], dict) else {name: plot["y"]}
            for file in files:
                assert outputs & {file, *map(str, Path(file).parents)}, file


def outputs_of(path: Path) -> Iterator[str]:
    for _, stage in stages(path):
        for out in stage.get("outs", []):
            name = out if isinstance(out, str) else next(iter(out))
            yield from (name.replace("${key}", key) for key in stage["items"] or [""])
