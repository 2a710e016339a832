"""The public face, ``import dfss``, as in a notebook."""

import doctest
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
from conftest import command_environment

import dfss
from storage.progress import Step

KNOWN = {"score": {"corpus", "teacher", "out"}, "select": {"shards", "budget"}, "evaluate": {"model", "data"}}
STAGES = [dfss.score, dfss.select, dfss.synthesize, dfss.distill, dfss.train, dfss.evaluate, dfss.import_model]


def test_importing_pays_for_no_heavy_library(tmp_path: Path) -> None:
    code = "import sys, dfss; print(','.join(sys.modules))"
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=command_environment(),
        check=True,
    )
    heavy = {"torch", "zarr", "faiss", "pandas", "dvclive", "numpy", "typer", "rich", "fsspec"}
    assert not heavy & set(result.stdout.split(","))


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.__name__)
def test_a_stage_shows_its_settings_as_its_signature_and_in_its_help(stage: Callable[..., Any]) -> None:
    parameters = inspect.signature(stage).parameters
    assert list(parameters)[-1] == "progress"
    assert set(list(parameters)[:-1]) >= KNOWN.get(stage.__name__, set())
    assert all(f"{name}: " in (stage.__doc__ or "") for name in list(parameters)[:-1])


def test_a_misspelled_or_missing_setting_is_an_error_that_says_so() -> None:
    with pytest.raises(ValueError, match=r"setting 'bugdet' is not one of .*; did you mean 'budget'"):
        dfss.select(bugdet=3)
    with pytest.raises(dfss.DFSSError, match=r"corpus is missing; give corpus=\.\.\."):
        dfss.score(teacher="t")
    with pytest.raises(ValueError, match=r"loss 'bogus' is not one of kl, channel, l1"):
        dfss.distill(loss="bogus")


def test_progress_is_told_by_callback(image_folder: Path, teacher_file: Path) -> None:
    steps: list[Step] = []
    result = dfss.score(corpus=image_folder, teacher=teacher_file, batch_size=10, progress=steps.append)
    assert [step.done for step in steps] == [0, 10, 20, 23]
    assert (result.scored, result.path) == (23, Path("scores.zarr"))
    assert dfss.open_scores("scores.zarr").to_pandas()["status"].eq("scored").all()


def test_the_examples_in_the_docstrings_run(image_folder: Path, labelled_folder: Path, teacher_file: Path) -> None:
    finder = doctest.DocTestFinder()
    order = ["dfss", "dfss.score", "dfss.select", "dfss.synthesize", "dfss.distill", "dfss.train", "dfss.evaluate",
             "dfss.load_model", "dfss.open_scores"]  # fmt: skip
    examples = {test.name: test for test in finder.find(dfss, "dfss") if test.examples}
    assert sorted(examples) == sorted(order)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    for name in order:
        examples[name].globs["dfss"] = dfss
        assert runner.run(examples[name], clear_globs=False).failed == 0, name


@pytest.mark.parametrize("room", ["storage", "pipeline", "distill"])
def test_a_folder_of_the_users_that_hides_a_package_of_ours_is_said_in_one_line(room: str, tmp_path: Path) -> None:
    (tmp_path / room).mkdir()
    (tmp_path / room / "__init__.py").write_text("raise AssertionError('foreign code ran')")
    (tmp_path / "dfss-score").write_text("from dfss import scripts\nscripts.score()\n")
    run = subprocess.run(
        [sys.executable, str(tmp_path / "dfss-score"), "--version"],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert run.returncode == 1
    assert re.fullmatch(rf"dfss-score: error: package '{room}' is .*; rename it, .*PYTHONPATH\n", run.stderr)


def test_a_console_script_takes_words_as_its_entry_point_did_before(capsys: pytest.CaptureFixture[str]) -> None:
    scripts = {entry.name: entry for entry in entry_points(group="console_scripts") if entry.name.startswith("dfss-")}
    assert set(scripts) == {f"dfss-{name}" for name in dfss.COMMANDS}
    for name, script in scripts.items():
        with pytest.raises(SystemExit) as ended:
            script.load()(["--version"])
        assert ended.value.code == 0
        assert capsys.readouterr().out.startswith(f"{name} ")
