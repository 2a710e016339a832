"""Reports the experiment's runs as figures, tables, learning curves and pictures.

``python report.py --runs runs --seeds 3 --teacher teacher --synthesized synthesized --data DATA/camvid/val
--json camvid.json --table table.md --curves curves.png --predictions predictions.png`` reads ``runs/ARM/SEED``
for the first seeds. Runs of further seeds may come from an earlier experiment and are not read.

The JSON is a list of runs: ``arm``, ``seed``, ``steps``, ``miou`` (of the last step, on the labels of CamVid val),
``pixel_accuracy``, ``iou`` by class, ``miou_at`` (by step), ``seconds`` and ``teacher_forwards`` of the training,
number of training ``images``, number of ``weights`` of the model, the ``cost`` of finding or making the images, and
the run's ``settings``.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from PIL import Image
from shared.runs import at, cost_of, reached, read_run

from distill.labelled import open_labelled
from pipeline.models.files import load_model

matplotlib.use("Agg")
from matplotlib import pyplot as plt

SHOWN = ("random", "dfss", "refined", "mobile-random", "mobile-dfss", "original")
DRAWN = ("dfss", "random", "nearest", "refined", "synthesis", "original")


def main() -> None:
    """Read the runs, summarise them and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--seeds", type=int, required=True, help="how many runs each arm has")
    parser.add_argument("--teacher", type=Path, required=True, help="the teacher's run")
    parser.add_argument("--synthesized", type=Path, required=True, help="folder of folders that dfss-synthesize made")
    parser.add_argument("--data", type=Path, required=True, help="folder with images/ and labels/")
    for name in ("json", "table", "curves", "predictions"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    options = parser.parse_args()
    runs = read_runs(options.runs, options.synthesized, options.seeds)
    teacher = read_run(options.teacher) | {"arm": "teacher"}
    options.json.write_text(json.dumps([teacher, *runs], indent=1) + "\n")
    text = table(runs)
    options.table.write_text(text)
    print(f"teacher {teacher['miou']:.3f}")
    print(text)
    draw_curves(runs, teacher["miou"], options.curves)
    draw_predictions(options.runs, options.data, options.teacher / "model.safetensors", options.predictions)


def read_runs(folder: Path, synthesized: Path, seeds: int) -> list[dict[str, Any]]:
    """Every finished run below ``folder`` with one of the first seeds, by arm and seed."""
    runs = []
    for metrics in sorted(folder.glob("*/*/metrics.json")):
        if int(metrics.parent.name) >= seeds:
            continue
        run = read_run(metrics.parent)
        if "shards" in run["settings"]:
            run["cost"] = cost_of(run["settings"], synthesized)
        runs.append({"arm": metrics.parent.parent.name} | run)
    if not runs:
        raise SystemExit(f"{folder} holds no finished run; finish the runs first")
    teachers = {run["settings"]["teacher"] for run in runs if "teacher" in run["settings"]}
    if len(teachers) > 1:
        raise SystemExit(f"{folder} holds students of {len(teachers)} teachers; delete the runs of the other scale")
    return runs


def table(runs: list[dict[str, Any]]) -> str:
    """A Markdown table of the mIoU of each arm by student, best first: on the way, at the end, and at what cost."""
    frame = pd.DataFrame(runs)
    lines = [
        "| student | arm | images | at 1 % | at 10 % | at a third | mIoU, mean ± deviation | each seed | minus random "
        "| of original | reaches random's end after | minutes of training | teacher forwards: images, training |",
        f"|{'---|' * 13}",
    ]
    means = frame.groupby("arm")["miou"].mean()
    for student, group in frame.groupby(frame["arm"].map(student_of), sort=False):
        prefix = "" if student == "small" else f"{student}-"
        random, original = (means.get(f"{prefix}{name}", float("nan")) for name in ("random", "original"))
        for arm in means[group["arm"].unique()].sort_values(ascending=False).index:
            own = [run for run in sorted(runs, key=lambda run: int(run["seed"])) if run["arm"] == arm]
            lines.append(row(str(student), own, random, original))
    return "\n".join(lines) + "\n"


def row(student: str, runs: list[dict[str, Any]], random: float, original: float) -> str:
    """The row of one arm, from its runs and from the mean mIoU of the random and the original arm."""
    final = np.array([run["miou"] for run in runs])
    after = [reached(run, random) for run in runs]
    cells = [
        student,
        runs[0]["arm"],
        "" if runs[0]["images"] is None else str(runs[0]["images"]),
        *(f"{np.mean([at(run, share) for run in runs]):.3f}" for share in (0.01, 0.1, 1 / 3)),
        f"{final.mean():.3f}" + (f" ± {final.std(ddof=1):.3f}" if len(final) > 1 else ""),
        ", ".join(f"{miou:.3f}" for miou in final),
        "" if np.isnan(random) else f"{final.mean() - random:+.3f}",
        "" if np.isnan(original) else f"{100 * final.mean() / original:.0f} %",
        "" if np.isnan(random) or None in after else f"{100 * np.mean([share for share in after if share]):.0f} %",
        f"{np.mean([run['seconds'] for run in runs]) / 60:.0f}",
        f"{runs[0].get('cost', {}).get('teacher_forwards', 0):,}, {runs[0]['teacher_forwards']:,}",
    ]
    return f"| {' | '.join(cells)} |"


def student_of(arm: str) -> str:
    """The student of an arm: small, unless its name says another."""
    if arm.startswith("views-"):
        return "mobile"
    return next((name for name in ("mobile", "half") if arm.startswith(f"{name}-")), "small")


def draw_curves(runs: list[dict[str, Any]], teacher: float, out: Path) -> None:
    """Draw mIoU on val by step, a panel for each student: the mean over seeds, with a band from lowest to highest."""
    figure, panels = plt.subplots(1, 2, figsize=(13, 4.8), layout="constrained", sharey=True)
    for axes, prefix in zip(panels, ("", "mobile-"), strict=True):
        axes.axhline(teacher, color="black", linestyle=":", label="teacher")
        for arm in DRAWN:
            curves = pd.DataFrame([pd.Series(run["miou_at"]) for run in runs if run["arm"] == f"{prefix}{arm}"])
            if len(curves):
                (line,) = axes.plot(curves.columns, curves.mean(), marker=".", label=arm)
                axes.fill_between(curves.columns, curves.min(), curves.max(), alpha=0.15, color=line.get_color())
        axes.set(xlabel="step", title=f"{student_of(prefix)} student")
        axes.legend(fontsize="small", ncols=2)
    panels[0].set_ylabel("mIoU on CamVid val")
    figure.savefig(out, dpi=120)
    plt.close(figure)


def draw_predictions(runs: Path, data: Path, teacher: Path, out: Path, count: int = 4) -> None:
    """Draw images of val with their labels and the predictions of the models, one row each."""
    labelled = open_labelled(str(data))
    models = {"teacher": teacher} | {arm: runs / arm / "0" / "student.safetensors" for arm in SHOWN}
    loaded = {name: load_model(path) for name, path in models.items() if path.exists()}
    places = np.linspace(0, len(labelled) - 1, count).round().astype(int)
    figure, axes = plt.subplots(
        count, 2 + len(loaded), figsize=(2.6 * (2 + len(loaded)), 2 * count), layout="constrained", squeeze=False
    )
    for row, place in zip(axes, places, strict=True):
        image = labelled.image(int(place))
        size = next(iter(loaded.values())).spec.image_size[::-1]
        pixels = np.asarray(image.resize(size, Image.Resampling.BILINEAR))
        row[0].imshow(pixels)
        row[1].imshow(coloured(np.asarray(labelled.label(int(place)))))
        for axis, model in zip(row[2:], loaded.values(), strict=True):
            with torch.inference_mode():
                logits = model(torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None])
            axis.imshow(coloured(logits.argmax(dim=1)[0].numpy()))
    for axis, title in zip(axes[0], ["image", "label", *loaded], strict=True):
        axis.set_title(title)
    for axis in axes.flat:
        axis.set_axis_off()
    figure.savefig(out, dpi=80)
    plt.close(figure)


def coloured(classes_HW: NDArray[Any]) -> NDArray[np.uint8]:
    """A colour for each class, black for void (255)."""
    palette = (np.asarray(plt.get_cmap("tab20").colors) * 255).astype(np.uint8)
    colours = palette[classes_HW.astype(int) % len(palette)]
    colours[classes_HW == 255] = 0
    return colours


if __name__ == "__main__":
    main()
