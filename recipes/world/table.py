"""Compares the students of the small world: ``python recipes/world/table.py --runs runs``.

It reads ``RUNS/teacher`` and ``RUNS/STUDENT-IMAGES/SEED`` and prints the mIoU of the last step on the validation
split, as mean and standard deviation over seeds. It writes what DVC compares and draws:

- ``evaluation.json``: ``{"teacher": ..., STUDENT: {IMAGES: ...}}``, the mean mIoU;
- ``curves.csv``: ``step,student,images,miou``, the mean over seeds;
- ``iou.csv``: ``model,class,iou``, the mean over seeds, without classes that no run has.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table

IMAGES = ("random", "dfss", "private")
"""Which images a student is trained on, in the order of the table."""


def main() -> None:
    """Read the runs, print the table and write the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True)
    folder = parser.parse_args().runs
    teacher = json.loads((folder / "teacher" / "metrics.json").read_text())
    runs = pd.DataFrame(read_runs(folder))
    print_table(runs, teacher["miou"])
    means = runs.groupby(["student", "images"], sort=False)["miou"].mean()
    figures: dict[str, Any] = {"teacher": rounded(teacher["miou"])}
    for (student, images), miou in means.items():
        figures.setdefault(student, {})[images] = rounded(miou)
    Path("evaluation.json").write_text(json.dumps(figures, indent=1) + "\n")
    curves(runs).to_csv("curves.csv", index=False, float_format="%.4f")
    classes(runs, teacher["iou"]).to_csv("iou.csv", index=False, float_format="%.4f")


def rounded(miou: float) -> float:
    """A figure with as many digits as mean anything."""
    return round(float(miou), 4)


def read_runs(folder: Path) -> Iterator[dict[str, Any]]:
    """The figures of all students, by student and images.

    Raises:
        SystemExit: there are none.
    """
    found = {path.parent.parent.name: path.parent.parent for path in sorted(folder.glob("*-*/*/metrics.json"))}
    if not found:
        raise SystemExit(f"{folder} holds no runs of students; run dvc repro")
    for name in sorted(found, key=lambda name: (name.split("-")[0] != "inheriting", IMAGES.index(name.split("-")[1]))):
        student, images = name.split("-")
        for path in sorted(found[name].glob("*/metrics.json")):
            curve = pd.read_csv(path.parent / "curves" / "plots" / "metrics" / "miou.tsv", sep="\t")
            metrics = json.loads(path.read_text())
            figures = {name: metrics[name] for name in ("miou", "iou")}
            yield {"student": student, "images": images, **figures, "curve": curve.set_index("step")["miou"]}


def print_table(runs: pd.DataFrame, teacher: float) -> None:
    """Print mean, deviation and each seed of every arm."""
    table = Table(title=f"mIoU on the validation split; the teacher has {teacher:.3f}")
    for title in ("student", "images", "mean ± deviation", "each seed", "of private"):
        table.add_column(title, justify="left" if title in ("student", "images") else "right")
    for student, arms in runs.groupby("student", sort=False):
        private = arms[arms["images"] == "private"]["miou"].mean()
        for images, arm in arms.groupby("images", sort=False):
            miou = arm["miou"]
            table.add_row(
                str(student),
                str(images),
                f"{miou.mean():.3f}" + (f" ± {miou.std():.3f}" if len(miou) > 1 else ""),
                ", ".join(f"{value:.3f}" for value in miou),
                f"{miou.mean() / private:.2f}",
            )
        table.add_section()
    Console().print(table)


def curves(runs: pd.DataFrame) -> pd.DataFrame:
    """The mean mIoU by step, student and images."""
    rows = [
        {"step": step, "student": student, "images": images, "miou": miou}
        for (student, images), arm in runs.groupby(["student", "images"], sort=False)
        for step, miou in pd.DataFrame(list(arm["curve"])).mean().items()
    ]
    return pd.DataFrame(rows)


def classes(runs: pd.DataFrame, teacher: dict[str, float | None]) -> pd.DataFrame:
    """The mean IoU by model and class."""
    means = {"teacher": pd.Series(teacher, dtype=float)}
    for (student, images), arm in runs.groupby(["student", "images"], sort=False):
        means[f"{student}, {images}"] = pd.DataFrame(list(arm["iou"]), dtype=float).mean()
    frame = pd.concat(means, names=["model", "class"]).rename("iou").reset_index()
    return frame.dropna()


if __name__ == "__main__":
    main()
