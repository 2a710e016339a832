"""The commands as a newcomer meets them: in a process of their own, in an empty folder."""

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import HEIGHT, WIDTH, Call, Run, command_environment, command_line, tiny_spec

import dfss
import distill.cli
import pipeline.cli
from pipeline.corpora.catalogue import catalogue
from pipeline.models.files import save_model
from pipeline.models.segmenter import Segmenter, build_model
from storage.progress import Step

ENTRY_POINTS = {
    "dfss-score": pipeline.cli.score,
    "dfss-select": pipeline.cli.select,
    "dfss-synthesize": pipeline.cli.synthesize,
    "dfss-import": pipeline.cli.import_model,
    "dfss-train": distill.cli.train,
    "dfss-distill": distill.cli.distill,
    "dfss-eval": distill.cli.evaluate,
}
README = Path(__file__).parents[1] / "README.md"


def test_the_face_has_every_command() -> None:
    assert {f"dfss-{name}" for name in dfss.COMMANDS} == set(ENTRY_POINTS)


def test_dfss_runs_each_command_as_a_subcommand(run_command: Run) -> None:
    shown = run_command("dfss", "--help").stdout
    assert all(f"  {name} " in shown for name in dfss.COMMANDS)
    assert run_command("dfss", "--version").stdout == f"dfss {dfss.__version__}\n"
    assert "Example: dfss-select" in run_command("dfss", "select", "--help").stdout
    wrong = run_command("dfss", "scroe")
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("dfss: error: command 'scroe' is not one of score")


@pytest.mark.parametrize("command", ENTRY_POINTS)
def test_every_command_has_help_with_an_example_and_is_in_the_readme(command: str, run_command: Run) -> None:
    result = run_command(command, "--help")
    assert result.returncode == 0
    assert f"Example: {command}" in " ".join(result.stdout.split())
    assert f"`{command}" in README.read_text()


@pytest.mark.parametrize("command", ENTRY_POINTS)
def test_help_pays_for_no_heavy_library(command: str, tmp_path: Path) -> None:
    script = command_line(command)[0]
    watch = (
        "import atexit, runpy, sys; atexit.register(lambda: sys.stderr.write(','.join(sys.modules))); "
        f"sys.argv = [{script!r}, '--help']; runpy.run_path({script!r}, run_name='__main__')"
    )
    result = subprocess.run(
        [sys.executable, "-c", watch], capture_output=True, text=True, cwd=tmp_path, env=command_environment()
    )
    modules = set(result.stderr.split(","))
    assert result.returncode == 0
    assert "typer" in modules
    assert not {"torch", "zarr", "faiss", "pandas", "dvclive", "numpy"} & modules


def test_the_whole_chain_runs_on_defaults(
    run_command: Run, image_folder: Path, labelled_folder: Path, teacher: Segmenter, tmp_path: Path
) -> None:
    torch.save(teacher.network.state_dict(), tmp_path / "weights.pth")
    steps: list[tuple[str, list[object]]] = [
        ("dfss-import", ["--builder", "tiny_models:tiny", "--weights", "weights.pth", "--class-names", "sky,road,car",
                         "--image-size", f"{HEIGHT}x{WIDTH}", "--out", "teacher.safetensors"]),
        ("dfss-score", ["--corpus", "images", "--teacher", "teacher.safetensors"]),
        ("dfss-select", ["--shards", "scores.zarr", "--budget", "12"]),
        ("dfss-synthesize", ["--teacher", "teacher.safetensors", "--steps", 2,
                             "--selection", "scores.zarr.selection.parquet"]),
        ("dfss-distill", ["--shards", "scores.zarr", "--student", "tiny_models:small", "--steps", 4]),
        ("dfss-eval", ["--model", "runs/student/student.safetensors", "--data", "labelled", "--json", "e.json"]),
    ]  # fmt: skip
    printed = {}
    for command, arguments in steps:
        result = run_command(command, *arguments)
        assert result.returncode == 0, result.stderr
        printed[command] = result.stdout
        told = [line for line in result.stderr.splitlines() if line.startswith("the student inherits")]
        assert told == (["the student inherits nothing from the teacher"] if command == "dfss-distill" else [])
    assert "synthetic: 12 images" in printed["dfss-synthesize"]
    cost = json.loads(Path("synthetic/cost.json").read_text())
    told = "median distance by all layers: {distance_before:.3f} before, {distance_after:.3f} after; {unchanged} images"
    assert told.format(**cost) in " ".join(printed["dfss-synthesize"].split())
    assert len(pd.read_parquet("scores.zarr.selection.parquet")) == 12
    assert json.loads(Path("e.json").read_text())["images"] == 6
    assert "mIoU" in result.stdout


def test_the_card_works_as_written(run_command: Run, image_folder: Path, teacher_file: Path, tmp_path: Path) -> None:
    """`dfss-score --corpus imagenet` and `dfss-distill --shards scores.zarr` need no other option."""
    synset = tmp_path / "data" / "imagenet" / "train" / "n01440764"
    synset.parent.mkdir(parents=True)
    image_folder.rename(synset)
    (tmp_path / "params.yaml").write_text(
        f"dfss:\n  score:\n    teacher: {teacher_file}\n  distill:\n    student: tiny_models:small\n    steps: 2\n"
        "  select:\n    budget: 0.5\n"
    )
    for command, arguments in (("dfss-score", ["--corpus", "imagenet"]), ("dfss-distill", ["--shards", "scores.zarr"])):
        result = run_command(command, *arguments)
        assert result.returncode == 0, result.stderr
    assert "from params.yaml: student tiny_models:small, steps 2\n" in result.stderr
    assert "selection: 12 of 23 images of scores.zarr by ads, made now with budget 0.5\n" in result.stderr
    assert len(pd.read_parquet("runs/student/selection.parquet")) == 12
    assert Path("runs/student/student.safetensors").exists()


def test_a_scored_corpus_is_summed_up(run_command: Run, image_folder: Path, teacher_file: Path) -> None:
    (image_folder / "bad.jpg").write_text("no image")
    result = run_command("dfss-score", "--corpus", "images", "--teacher", teacher_file)
    assert "24 images: 23 scored, 1 unreadable, 0 rejected" in result.stdout
    assert "bad.jpg: " in result.stdout
    for part in ("distance: 0 %", "reading", "inferring", "writing"):
        assert part in result.stdout
    again = run_command("dfss-score", "--corpus", "images", "--teacher", teacher_file)
    assert "already complete" in again.stdout


def test_the_catalogue_is_listed_without_further_arguments(run_command: Run) -> None:
    result = run_command("dfss-score", "--list-corpora")
    assert result.returncode == 0
    for entry in catalogue():
        assert f"{entry.name}: {entry.title}" in result.stdout
        assert f"${entry.variables[0]}" in result.stdout
        assert all(layout in result.stdout for layout in entry.layouts)  # none is cut off


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("dfss-score --corpus images", "--teacher"),
        ("dfss-score --corpus images --teacher absent.safetensors", "model file absent.safetensors does not exist"),
        ("dfss-score --corpus images --teacher plain.safetensors", "no BatchNorm"),
        ("dfss-score --corpus imagenet --teacher teacher.safetensors", "DFSS_IMAGENET_ROOT"),
        ("dfss-score --corpus imagenett --teacher teacher.safetensors", "imagenet"),
        ("dfss-score --corpus empty --teacher teacher.safetensors", "empty"),
        (
            "dfss-score --corpus images --teacher teacher.safetensors --batch-size 0",
            "--batch-size is 0; give 1 or more",
        ),
        ("dfss-score --corpus images --teacher teacher.safetensors --layers nope", "no BatchNorm layer"),
        ("dfss-score --corpus images --teacher teacher.safetensors --device cuda:7", "cuda:7 does not exist"),
        ("dfss-score --corpus images --teacher teacher.safetensors --out images", "not a score store"),
        ("dfss-select --shards absent.zarr", "no scores in absent.zarr; run dfss-score"),
        ("dfss-select --shards half.zarr", "half.zarr is not complete (0 of 23 rows)"),
        ("dfss-select --budget 24", "--budget 24 is more than the 23 images"),
        ("dfss-select --budget lots", "neither a count"),
        ("dfss-select --strategy best", "--strategy"),
        ("dfss-distill --shards half.zarr", "not complete"),
        ("dfss-distill --student nonsense", "unknown network 'nonsense'"),
        ("dfss-distill --val labelled --teacher two.safetensors", "not the teacher"),
        ("dfss-eval --model two.safetensors --data labelled", "two.safetensors has 2 classes, but labelled has 3"),
        ("dfss-eval --model teacher.safetensors --data images", "folder images/images does not exist"),
        ("dfss-distill --shards scores.zarr --student teacher.safetensors", "equals the teacher"),
        ("dfss-distill --shards scores.zarr --features -1", "--features is -1.0; give 0 or more"),
        ("dfss-synthesize --teacher plain.safetensors", "no BatchNorm"),
        ("dfss-synthesize --teacher teacher.safetensors --out images", "images already exists"),
        ("dfss-synthesize --teacher teacher.safetensors --out labelled --overwrite", "so it cannot be replaced"),
        ("dfss-synthesize --teacher teacher.safetensors --steps 0", "--steps is 0; give 1 or more"),
        (
            "dfss-import --builder Unet/resnet18 --weights no.pth --num-classes 3 --out x.safetensors",
            "weights file no.pth does not exist",
        ),
        ("dfss-train --data labelled --builder tiny_models:tiny --image-size big", "not HEIGHTxWIDTH"),
    ],
)
def test_a_mistake_is_one_clear_line_and_never_a_traceback(
    command: str,
    message: str,
    world: Path,
    call: Call,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(world)
    name, *arguments = command.split()
    code = call(ENTRY_POINTS[name], *arguments)  # any other exception than SystemExit fails the test
    printed = capsys.readouterr().err
    assert code in (1, 2)
    assert message in " ".join(printed.split())
    assert printed.count("\n") == 1


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a complete store, an unfinished one, and models of several kinds; made once."""
    from conftest import draw_image, tiny_model

    from pipeline.models.builders import TRUSTED_BUILDERS
    from pipeline.scoring.run import score
    from pipeline.settings import ScoreSettings

    folder = tmp_path_factory.mktemp("world")
    for name in ("images", "empty", "labelled/images", "labelled/labels"):
        (folder / name).mkdir(parents=True)
    for index in range(23):
        draw_image(index).save(folder / "images" / f"{index:03}.png")
    draw_image(0).save(folder / "labelled" / "images" / "0.png")
    draw_image(0).convert("L").point(lambda value: value // 100).save(folder / "labelled" / "labels" / "0.png")
    (folder / "labelled" / "classes.txt").write_text("sky\nroad\ncar\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(TRUSTED_BUILDERS, "tiny_models")
        patch.chdir(folder)
        save_model(tiny_model(), folder / "teacher.safetensors")
        save_model(tiny_model(spec=tiny_spec(classes=("a", "b"))), folder / "two.safetensors")
        save_model(build_model(tiny_spec("tiny_models:without_batch_norm")), folder / "plain.safetensors")
        score(ScoreSettings(corpus="images", teacher="teacher.safetensors", out="scores.zarr", device="cpu"))
        with pytest.raises(KeyboardInterrupt):
            score(
                ScoreSettings(corpus="images", teacher="teacher.safetensors", out="half.zarr", device="cpu"), interrupt
            )
    return folder


def interrupt(step: Step) -> None:
    """Press Ctrl-C at the first report."""
    raise KeyboardInterrupt
