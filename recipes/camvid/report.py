"""Reports the experiment's runs as figures, tables, learning curves and pictures.

``python report.py --runs runs --seeds 3 --teacher teacher --synthesized synthesized --data DATA/camvid/val
--json camvid.json --table table.md --curves curves.png --predictions predictions.png`` reads ``runs/ARM/SEED``
for the first seeds. Runs of further seeds may come from an earlier experiment and are not read.

The JSON is a list of runs: ``arm``, ``seed``, ``steps``, ``miou`` (of the last step, on the labels of CamVid val),
``pixel_accuracy``, ``iou`` by class, number of training ``images``, number of ``weights`` of the model, the ``cost`` of
finding or making the images, and the run's ``settings``.
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
from shared.runs import cost_of, read_run

from distill.labelled import open_labelled
from pipeline.models.files import load_model

matplotlib.use("Agg")
from matplotlib import pyplot as plt

SHOWN = ("plain-random", "random", "dfss", "original")
PLAIN = ("paper", "no-inheritance", "labels")  # arms whose students are trained from scratch
COSTED = ("dfss", "refined", "synthesis")
DRAWN = ("dfss", "random", "refined", "synthesis", "original", "labels", "paper", "plain-random", "plain-original")


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
    text += f"\n{cost_table(runs)}"
    options.table.write_text(text)
    print(f"teacher {teacher['miou']:.3f}")
    print(text)
    draw_curves(options.runs, runs, teacher["miou"], options.curves)
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
    """A Markdown table of the mIoU of each arm, best first, also relative to random and original."""
    frame = pd.DataFrame(runs)
    lines = [
        "| arm | images | mIoU, mean ± deviation | each seed | minus random | of original |",
        "|---|---|---|---|---|---|",
    ]
    means = frame.groupby("arm")["miou"].mean()
    for arm in means.sort_values(ascending=False).index:
        own = frame[frame["arm"] == arm].sort_values("seed")
        random, original = (means.get(f"{like(arm)}{name}", float("nan")) for name in ("random", "original"))
        cells = [
            arm,
            "" if own["images"].isna().any() else f"{own['images'].iloc[0]:.0f}",
            f"{means[arm]:.3f}" + (f" ± {own['miou'].std():.3f}" if len(own) > 1 else ""),
            ", ".join(f"{value:.3f}" for value in own["miou"]),
            "" if np.isnan(random) else f"{means[arm] - random:+.3f}",
            "" if np.isnan(original) else f"{100 * means[arm] / original:.0f} %",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def like(arm: str) -> str:
    """The prefix of the arms that train the same student in the same way on other images."""
    if arm in PLAIN:
        return "plain-"
    return next((prefix for prefix in ("half-", "mobile-", "plain-") if arm.startswith(prefix)), "")


def cost_table(runs: list[dict[str, Any]]) -> str:
    """A Markdown table of the cost of finding or making an arm's images, in images through the teacher."""
    lines = ["| arm | teacher forwards | teacher backwards |", "|---|---|---|"]
    for run in runs:
        if run["seed"] == 0 and run["arm"] in COSTED and "cost" in run:
            lines.append(
                f"| {run['arm']} | {run['cost']['teacher_forwards']:,} | {run['cost']['teacher_backwards']:,} |"
            )
    return "\n".join(lines) + "\n"


def draw_curves(folder: Path, runs: list[dict[str, Any]], teacher: float, out: Path) -> None:
    """Draw mIoU on val by step: the mean over seeds, with a band from the lowest to the highest."""
    figure, axes = plt.subplots(figsize=(7.5, 4.8), layout="constrained")
    axes.axhline(teacher, color="black", linestyle=":", label="teacher")
    for arm in (arm for arm in DRAWN if any(run["arm"] == arm for run in runs)):
        files = sorted((folder / arm).glob("*/curves/plots/metrics/miou.tsv"))
        if not files:
            continue
        columns = [pd.read_csv(file, sep="\t").set_index("step")["miou"] for file in files]
        curves = pd.concat(columns, axis=1).sort_index()
        (line,) = axes.plot(curves.index, curves.mean(axis=1), marker=".", label=arm)
        axes.fill_between(curves.index, curves.min(axis=1), curves.max(axis=1), alpha=0.15, color=line.get_color())
    axes.set(xlabel="step", ylabel="mIoU on CamVid val")
    axes.legend(fontsize="small", ncols=2)
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
