"""The files that dfss-eval writes for DVC: short metrics, and the IoU of each class as a table."""

import csv
import json
import math
from pathlib import Path

import pytest
import torch
from conftest import NAMES, Call

import distill.cli
from distill.evaluation import EvalResult, evaluate_models, summarise
from distill.settings import EvalSettings

CONFUSION = torch.tensor([[3, 1, 0], [2, 4, 0], [0, 0, 0]])  # nobody labels or predicts the third class


def test_metrics_are_miou_and_accuracy_alone_by_model(
    teacher_file: Path, labelled_folder: Path, tmp_path: Path
) -> None:
    written = tmp_path / "metrics.json"
    result = evaluate_models(
        EvalSettings(
            model={"teacher": str(teacher_file), "dfss": str(teacher_file)},
            data=str(labelled_folder),
            metrics=str(written),
        )
    )
    expected = {
        name: {"miou": pytest.approx(found.miou), "accuracy": pytest.approx(found.pixel_accuracy)}
        for name, found in result.evaluations.items()
    }
    assert json.loads(written.read_text()) == expected
    assert list(expected) == ["teacher", "dfss"]


def test_metrics_of_one_model_are_by_name_too(teacher_file: Path, labelled_folder: Path, tmp_path: Path) -> None:
    written = tmp_path / "metrics.json"
    evaluate_models(EvalSettings(model={"only": str(teacher_file)}, data=str(labelled_folder), metrics=str(written)))
    assert set(json.loads(written.read_text())) == {"only"}


def test_metrics_of_nothing_but_void_are_null_which_json_can_hold() -> None:
    result = EvalResult(evaluations={"blind": summarise(torch.zeros(3, 3), NAMES, images=1)})
    assert json.loads(json.dumps(result.metrics(), allow_nan=False)) == {"blind": {"miou": None, "accuracy": None}}


def test_a_class_without_iou_is_in_no_row() -> None:
    result = EvalResult(evaluations={"dfss": summarise(CONFUSION, NAMES, images=1)})
    assert list(result.classes()) == [
        ("dfss", NAMES[0], pytest.approx(3 / 6)),
        ("dfss", NAMES[1], pytest.approx(4 / 7)),
    ]


def test_the_command_writes_all_three_files(
    teacher_file: Path, labelled_folder: Path, tmp_path: Path, call: Call
) -> None:
    files = {name: tmp_path / "figures" / f"{name}.out" for name in ("json", "metrics", "classes")}
    options = [word for name, file in files.items() for word in (f"--{name}", file)]
    model = ["--model", f"a, b={teacher_file}"]  # a comma, which CSV has to quote
    assert call(distill.cli.evaluate, *model, "--data", labelled_folder, *options) == 0
    whole = json.loads(files["json"].read_text())
    with files["classes"].open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["model", "class", "iou"]
    assert {row["model"] for row in rows} == {"a, b"}
    written = {row["class"]: float(row["iou"]) for row in rows}
    assert written == {name: iou for name, iou in whole["iou"].items() if iou is not None}
    short = json.loads(files["metrics"].read_text())["a, b"]
    assert math.isclose(short["miou"], sum(written.values()) / len(written))
    assert short["accuracy"] == whole["pixel_accuracy"]
