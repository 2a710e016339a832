"""Reports the students of public teachers as figures, a table and learning curves.

``python report.py --params params.yaml --runs runs --teachers teachers --synthesized synthesized
--json public_teachers.json --table table.md --curves curves.png`` reads ``runs/TEACHER-STUDENT-IMAGES/SEED`` of the
arms and seeds that the parameters name.

The JSON has ``teachers`` (dfss-eval's figures by teacher) and ``runs``, a list: ``arm``, ``teacher``, ``student``,
``from`` (which images), ``seed``, ``steps``, ``miou`` (of the last step, on the labels of CamVid val), ``miou_at``
(by step), ``pixel_accuracy``, ``iou`` by class, number of training ``images``, number of ``weights``, the ``cost`` of
finding or making the images, and the run's ``settings``.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
import yaml
from shared.runs import at, cost_of, read_run

matplotlib.use("Agg")
from matplotlib import pyplot as plt

IMAGES = ("original", "refined", "ads", "random")
"""Which images a student is trained on, in the order of the table."""


def main() -> None:
    """Read the runs, summarise them and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--params", type=Path, required=True, help="params.yaml with the arms")
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--teachers", type=Path, required=True, help="folder of dfss-eval's figures of the teachers")
    parser.add_argument("--synthesized", type=Path, required=True, help="folder of folders that dfss-synthesize made")
    for name in ("json", "table", "curves"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    options = parser.parse_args()
    params = yaml.safe_load(options.params.read_text())
    teachers = {name: json.loads((options.teachers / f"{name}.json").read_text()) for name in params["teachers"]}
    arms = [*params["arms"], *params["references"]]
    runs = [
        read_arm(options.runs / arm / str(seed), options.synthesized) for arm in arms for seed in range(params["seeds"])
    ]
    options.json.write_text(json.dumps({"teachers": teachers, "runs": runs}, indent=1) + "\n")
    text = table(runs, {name: figures["miou"] for name, figures in teachers.items()})
    options.table.write_text(text)
    print(text)
    draw_curves(runs, {name: figures["miou"] for name, figures in teachers.items()}, options.curves)


def read_arm(folder: Path, synthesized: Path) -> dict[str, Any]:
    """One run's figures, with those on the way."""
    arm = folder.parent.name
    teacher, student, images = arm.split("-")
    run = {"arm": arm, "teacher": teacher, "student": student, "from": images} | read_run(folder)
    run["cost"] = cost_of(run["settings"], synthesized)
    return run


def table(runs: list[dict[str, Any]], teachers: dict[str, float]) -> str:
    """A Markdown table of mIoU by teacher, student and images, at a third of the steps and at the end."""
    frame = pd.DataFrame(runs)
    frame["early"] = [at(run, 1 / 3) for run in runs]
    means = frame.groupby("arm")["miou"].mean()
    lines = [
        "| teacher (mIoU) | student (weights) | images | at a third | mIoU, mean ± deviation | each seed "
        "| minus random | of original | teacher forwards, backwards for the images |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for (teacher, student), group in frame.groupby(["teacher", "student"], sort=False):
        for images in (images for images in IMAGES if images in set(group["from"])):
            own = group[group["from"] == images].sort_values("seed")
            arm, first = f"{teacher}-{student}-{images}", own.iloc[0]
            random, original = (means.get(f"{teacher}-{student}-{name}") for name in ("random", "original"))
            cells = [
                f"{teacher} ({teachers[str(teacher)]:.3f})",
                f"{student} ({first['weights'] / 1e6:.2f} M)",
                f"{images}, {first['images']}",
                f"{own['early'].mean():.3f}",
                f"{means[arm]:.3f}" + (f" ± {own['miou'].std():.3f}" if len(own) > 1 else ""),
                ", ".join(f"{miou:.3f}" for miou in own["miou"]),
                "" if random is None else f"{means[arm] - random:+.3f}",
                "" if original is None else f"{means[arm] / original:.2f}",
                f"{first['cost']['teacher_forwards']:,}, {first['cost']['teacher_backwards']:,}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def draw_curves(runs: list[dict[str, Any]], teachers: dict[str, float], out: Path) -> None:
    """Draw mIoU on val by step, a panel for each teacher and student: the mean over seeds and the range."""
    frame = pd.DataFrame(runs)
    panels = list(frame.groupby(["teacher", "student"], sort=False))
    figure, axes = plt.subplots(1, len(panels), figsize=(5 * len(panels), 4.2), layout="constrained", squeeze=False)
    for axis, ((teacher, student), group) in zip(axes[0], panels, strict=True):
        axis.axhline(teachers[str(teacher)], color="black", linestyle=":", label="teacher")
        for images, own in group.groupby("from", sort=False):
            curves = pd.DataFrame([pd.Series(miou_at) for miou_at in own["miou_at"]])
            (line,) = axis.plot(curves.columns, curves.mean(), marker=".", label=images)
            axis.fill_between(curves.columns, curves.min(), curves.max(), alpha=0.15, color=line.get_color())
        axis.set(title=f"{teacher} → {student}", xlabel="step", ylabel="mIoU on CamVid val")
        axis.legend(fontsize="small")
    figure.savefig(out, dpi=100)
    plt.close(figure)


if __name__ == "__main__":
    main()
