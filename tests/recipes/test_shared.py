"""What recipes share, and the table of the public teachers: seeds, trusted modules, ratios."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import load_recipe

repeat = load_recipe("shared", "repeat")

SHOW = "import os, pathlib, sys; pathlib.Path(sys.argv[1]).write_text(' '.join(os.environ.get(n, '-') for n in {}))"
NAMES = ["DFSS_TRUSTED_BUILDERS", "PYTHONPATH"]


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["repeat.py", *words])
    repeat.main()


def test_a_command_runs_once_for_every_seed_and_trusts_modules_of_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", "elsewhere")
    command = [sys.executable, "-c", SHOW.format(NAMES), "seen-{seed}"]
    run(monkeypatch, "--seeds", "2", "--trust", "mine,yours", "--", *command)
    seen = {path.name: path.read_text() for path in tmp_path.glob("seen-*")}
    assert seen == dict.fromkeys(("seen-0", "seen-1"), f"mine,yours {tmp_path}:elsewhere")


def test_without_trust_a_command_has_the_environment_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "elsewhere")
    monkeypatch.setenv("DFSS_TRUSTED_BUILDERS", "theirs")
    run(monkeypatch, "--seeds", "1", "--", sys.executable, "-c", SHOW.format(NAMES), "seen")
    assert (tmp_path / "seen").read_text() == "theirs elsewhere"


def test_a_failed_seed_is_named_after_all_have_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import pathlib, sys; pathlib.Path('ran-{seed}').touch(); sys.exit(int('{seed}') == 0)"
    with pytest.raises(SystemExit, match="failed with seed 0$"):
        run(monkeypatch, "--seeds", "2", "--", sys.executable, "-c", code)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ran-0", "ran-1"]


def finished(images: str, seed: int, miou: float, early: float) -> dict[str, object]:
    return {
        "arm": f"net-mobile-{images}",
        "teacher": "net",
        "student": "mobile",
        "from": images,
        "seed": seed,
        "steps": 300,
        "miou": miou,
        "miou_at": {90: 0.0, 120: early, 300: miou},
        "images": 20,
        "weights": 1_020_000,
        "cost": {"teacher_forwards": 12_587, "teacher_backwards": 0},
    }


def test_the_table_of_public_teachers_compares_with_random_and_original_images() -> None:
    pytest.importorskip("matplotlib")
    report = load_recipe("public_teachers", "report")
    figures = {"ads": [0.50, 0.44], "random": [0.40, 0.42], "original": [0.52, 0.48]}
    runs = [finished(name, seed, miou, miou / 2) for name, own in figures.items() for seed, miou in enumerate(own)]
    lines = [line.strip("| ").split(" | ") for line in report.table(runs, {"net": 0.6}).splitlines()]
    rows = {cells[2].split(",")[0]: cells for cells in lines[2:]}
    assert list(rows) == ["original", "ads", "random"]
    ads = rows["ads"]
    assert ads[:2] == ["net (0.600)", "mobile (1.02 M)"]
    assert float(ads[3]) == pytest.approx(np.mean(figures["ads"]) / 2, abs=6e-4)
    deviation = math.dist((0.50, 0.44), (0.47, 0.47))
    assert ads[4:8] == [f"0.470 ± {deviation:.3f}", "0.500, 0.440", f"{0.47 - 0.41:+.3f}", f"{0.47 / 0.5:.2f}"]
    assert ads[8] == "12,587, 0"
