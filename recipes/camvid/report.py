"""The experiment's runs as figures, a table, learning curves and pictures.

``python report.py --runs runs --data DATA/camvid/val --teacher runs/teacher/model.safetensors --json camvid.json
--table table.md --curves curves.png --predictions predictions.png`` reads every ``runs/ARM-SEED/metrics.json``.

The JSON is a list of runs: ``arm``, ``seed``, ``steps``, ``miou`` (of the last epoch, on the labels of CamVid val),
``pixel_accuracy``, ``iou`` by class, and the run's ``settings``.
"""

import argparse
import json
import re
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from PIL import Image

from distill.labelled import open_labelled
from pipeline.models import load_model

matplotlib.use("Agg")
from matplotlib import pyplot as plt

SHOWN = ("random", "dfss", "original")
SETTINGS = ("shards", "selection", "weighting", "normalization", "by_sampling", "loss", "student", "batch_size", "lr")


def main() -> None:
    """Read, summarise, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="folder with images/ and labels/")
    parser.add_argument("--teacher", type=Path, required=True)
    for name in ("json", "table", "curves", "predictions"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    options = parser.parse_args()
    runs = read_runs(options.runs)
    options.json.write_text(json.dumps(runs, indent=1) + "\n")
    text = table(runs)
    options.table.write_text(text)
    print(text)
    draw_curves(options.runs, runs, options.curves)
    draw_predictions(options.runs, options.data, options.teacher, options.predictions)


def read_runs(folder: Path) -> list[dict[str, Any]]:
    """Every finished run below ``folder``, by arm and seed."""
    runs = []
    for path in sorted(folder.glob("*/metrics.json")):
        if not (name := re.fullmatch(r"(.+)-(\d+)", path.parent.name)):
            continue  # the teacher
        metrics = json.loads(path.read_text())
        settings = json.loads((path.parent / "settings.json").read_text())
        runs.append(
            {
                "arm": name[1],
                "seed": int(name[2]),
                "steps": metrics["steps"],
                "miou": metrics["miou"],
                "pixel_accuracy": metrics["pixel_accuracy"],
                "iou": metrics["iou"],
                "settings": {key: settings[key] for key in SETTINGS if key in settings},
            }
        )
    if not runs:
        raise SystemExit(f"no finished run in {folder}")
    return runs


def table(runs: list[dict[str, Any]]) -> str:
    """Markdown: mean, spread and every seed's mIoU of each arm, best first, beside random and original."""
    frame = pd.DataFrame(runs)
    lines = [
        "| arm | seeds | mIoU, mean ± deviation | each seed | minus random | of original |",
        "|---|---|---|---|---|---|",
    ]
    means = frame.groupby("arm")["miou"].mean()
    for arm in means.sort_values(ascending=False).index:
        values = frame[frame["arm"] == arm].sort_values("seed")["miou"]
        spread = f" ± {values.std():.3f}" if len(values) > 1 else ""
        beside = [
            f"{means[arm] - means['random']:+.3f}" if "random" in means else "",
            f"{100 * means[arm] / means['original']:.0f} %" if "original" in means else "",
        ]
        each = ", ".join(f"{value:.3f}" for value in values)
        lines.append(f"| {arm} | {len(values)} | {means[arm]:.3f}{spread} | {each} | {' | '.join(beside)} |")
    return "\n".join(lines) + "\n"


def draw_curves(folder: Path, runs: list[dict[str, Any]], out: Path) -> None:
    """MIoU on val by step: the seeds' mean, and from the lowest to the highest of them as a band."""
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for arm in dict.fromkeys(run["arm"] for run in runs):
        seeds = [run["seed"] for run in runs if run["arm"] == arm]
        files = [folder / f"{arm}-{seed}" / "curves" / "plots" / "metrics" / "miou.tsv" for seed in seeds]
        curves = pd.concat([pd.read_csv(file, sep="\t").set_index("step")["miou"] for file in files], axis=1)
        (line,) = axes.plot(curves.index, curves.mean(axis=1), label=arm)
        axes.fill_between(curves.index, curves.min(axis=1), curves.max(axis=1), alpha=0.15, color=line.get_color())
    axes.set(xlabel="step", ylabel="mIoU on CamVid val")
    axes.legend(fontsize="small", ncols=2)
    figure.savefig(out, dpi=120)


def draw_predictions(runs: Path, data: Path, teacher: Path, out: Path, count: int = 4) -> None:
    """Images of val with their labels and what models see in them, one row each."""
    labelled = open_labelled(str(data))
    models = {"teacher": teacher} | {arm: runs / f"{arm}-0" / "student.safetensors" for arm in SHOWN}
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


def coloured(classes_HW: NDArray[Any]) -> NDArray[np.uint8]:
    """A colour for each class, black for void (255)."""
    palette = (np.asarray(plt.get_cmap("tab20").colors) * 255).astype(np.uint8)
    colours = palette[classes_HW.astype(int) % len(palette)]
    colours[classes_HW == 255] = 0
    return colours


if __name__ == "__main__":
    main()
