"""The table of the CamVid experiment: what stands where, and what is compared with what."""

from typing import Any

import pytest
from conftest import load_recipe

pytest.importorskip("matplotlib")
runs = load_recipe("shared", "runs")
report = load_recipe("camvid", "report")


def finished(arm: str, seed: int, curve: dict[int, float], **changes: Any) -> dict[str, Any]:
    run = {
        "arm": arm, "seed": seed, "steps": 300, "miou": curve[300], "miou_at": curve, "images": 20, "seconds": 119.0,
        "teacher_forwards": 160, "cost": {"teacher_forwards": 12_587, "teacher_backwards": 0},
    }  # fmt: skip
    return {**run, **changes}


def test_figures_on_the_way_are_those_of_the_first_evaluation_from_there_on() -> None:
    run = finished("dfss", 0, {3: 0.05, 30: 0.1, 100: 0.2, 150: 0.25, 300: 0.3})
    assert [runs.at(run, share) for share in (0.01, 0.1, 1 / 3, 0.4, 1)] == [0.05, 0.1, 0.2, 0.25, 0.3]
    assert runs.reached(run, 0.2) == pytest.approx(1 / 3)
    assert runs.reached(run, 0.31) is None


def test_arms_are_compared_with_those_of_the_same_student() -> None:
    made = [
        finished("dfss", 0, {3: 0.02, 30: 0.2, 100: 0.31, 300: 0.36}),
        finished("dfss", 1, {3: 0.04, 30: 0.2, 100: 0.33, 300: 0.38}),
        finished("random", 0, {3: 0.02, 30: 0.1, 100: 0.2, 300: 0.32}),
        finished("original", 0, {3: 0.02, 30: 0.1, 100: 0.2, 300: 0.40}),
        finished("mobile-dfss", 0, {3: 0.01, 30: 0.02, 100: 0.1, 300: 0.2}, seconds=300.0),
        finished("mobile-random", 0, {3: 0.01, 30: 0.02, 100: 0.1, 300: 0.25}),
        finished("views-4", 0, {3: 0.01, 30: 0.02, 100: 0.1, 300: 0.21}),
    ]
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in report.table(made).splitlines()]
    assert {len(line) for line in lines} == {13}
    assert [line[:2] for line in lines[2:]] == [
        ["small", "original"], ["small", "dfss"], ["small", "random"],
        ["mobile", "mobile-random"], ["mobile", "views-4"], ["mobile", "mobile-dfss"],
    ]  # fmt: skip
    dfss, mobile = lines[3], lines[7]
    assert dfss[2:] == [
        "20", "0.030", "0.200", "0.320", "0.370 ± 0.014", "0.360, 0.380", "+0.050", "92 %", "67 %", "2", "12,587, 160",
    ]  # fmt: skip
    assert mobile[5:] == ["0.100", "0.200", "0.200", "-0.050", "", "", "5", "12,587, 160"]
