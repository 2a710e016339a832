"""The table of the small world: means over seeds, in the order of the table, and what DVC compares."""

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import load_recipe

table = load_recipe("world", "table")


def finish(arm: str, seed: int, miou: float, iou: dict[str, float | None]) -> None:
    folder = Path("runs") / arm / str(seed)
    curve = folder / "curves" / "plots" / "metrics" / "miou.tsv"
    curve.parent.mkdir(parents=True)
    curve.write_text(f"step\tmiou\n10\t{miou / 2}\n20\t{miou}\n")
    (folder / "metrics.json").write_text(json.dumps({"miou": miou, "iou": iou, "images": 60, "seed": seed}))


@pytest.fixture
def runs() -> None:
    Path("runs/teacher").mkdir(parents=True)
    Path("runs/teacher/metrics.json").write_text(json.dumps({"miou": 0.5, "iou": {"road": 0.6, "pole": None}}))
    for arm, mious in {
        "foreign-private": [0.4], "foreign-dfss": [0.3, 0.36, 0.33], "inheriting-private": [0.45],
        "inheriting-dfss": [0.44, 0.46], "inheriting-random": [0.42, 0.43],
    }.items():  # fmt: skip
        for seed, miou in enumerate(mious):
            finish(arm, seed, miou, {"road": miou + 0.1, "pole": 0.2 * seed if "dfss" in arm else None})


def run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["table.py", "--runs", "runs"])
    table.main()


@pytest.mark.usefixtures("runs")
def test_the_table_gives_mean_deviation_and_each_seed_of_every_arm_and_its_share_of_private(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    run(monkeypatch)
    rows = [line.strip("│").split("│") for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    cells = [[cell.strip() for cell in row] for row in rows]
    assert [row[:2] for row in cells] == [
        ["inheriting", "random"], ["inheriting", "dfss"], ["inheriting", "private"],
        ["foreign", "dfss"], ["foreign", "private"],
    ]  # fmt: skip
    assert cells[3][2:] == [f"0.330 ± {np.std([0.3, 0.36, 0.33], ddof=1):.3f}", "0.300, 0.360, 0.330", "0.82"]
    assert cells[4][2:] == ["0.400", "0.400", "1.00"]


@pytest.mark.usefixtures("runs")
def test_dvc_gets_means_over_seeds_by_short_names(monkeypatch: pytest.MonkeyPatch) -> None:
    run(monkeypatch)
    figures = json.loads(Path("evaluation.json").read_text())
    assert figures["teacher"] == 0.5
    assert figures["foreign"] == {"dfss": 0.33, "private": 0.4}
    assert figures["inheriting"] == {"random": 0.425, "dfss": 0.45, "private": 0.45}
    curves = pd.read_csv("curves.csv").set_index(["student", "images", "step"])["miou"]
    assert curves["foreign", "dfss", 10] == pytest.approx(0.165)
    iou = pd.read_csv("iou.csv").set_index(["model", "class"])["iou"]
    assert iou["foreign, dfss", "pole"] == pytest.approx(0.2)
    assert iou["teacher", "road"] == pytest.approx(0.6)
    assert ("teacher", "pole") not in iou.index
    assert ("foreign, private", "pole") not in iou.index


def test_a_folder_without_students_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("runs/teacher").mkdir(parents=True)
    Path("runs/teacher/metrics.json").write_text("{}")
    with pytest.raises(SystemExit, match="runs holds no runs of students; run dvc repro"):
        run(monkeypatch)
