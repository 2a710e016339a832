"""The figures of finished runs, for the reports of the recipes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from safetensors import safe_open

from storage.scores.schema import SCORED
from storage.scores.store import open_complete
from storage.selection import read_selection


def cost_of(settings: dict[str, Any], synthesized: Path) -> dict[str, Any]:
    """The cost of a run's images: making those that were made, and scoring the images that they were chosen from."""
    made = synthesized / Path(settings["shards"]).stem / "cost.json"
    cost: dict[str, Any] = {"teacher_forwards": 0, "teacher_backwards": 0}
    if made.exists():
        cost = json.loads(made.read_text())
    pile = cost.get("begun_from") if made.exists() else settings["shards"]
    if pile:
        cost["teacher_forwards"] += int((open_complete(Path(pile)).status() == SCORED).sum())
    return cost


def read_run(folder: Path) -> dict[str, Any]:
    """One run's figures: of the last step, on the way (``miou_at``, by step), and what the run took."""
    metrics = json.loads((folder / "metrics.json").read_text())
    settings = json.loads((folder / "settings.json").read_text())
    if settings.get("held_out"):
        raise SystemExit(f"{folder} was evaluated by agreement with its teacher, not on labels; run it with --val")
    chosen = folder / "selection.parquet"
    run = {name: metrics[name] for name in ("seed", "steps", "seconds", "miou", "pixel_accuracy", "iou")}
    run["teacher_forwards"] = metrics.get("teacher_forwards", 0)
    curve = pd.read_csv(folder / "curves" / "plots" / "metrics" / "miou.tsv", sep="\t")
    run["miou_at"] = {int(step): float(miou) for step, miou in zip(curve["step"], curve["miou"], strict=True)}
    run["images"] = len(read_selection(chosen)) if chosen.exists() else None
    run["weights"] = count_weights(next(folder.glob("*.safetensors")))
    run["settings"] = settings
    return run


def at(run: dict[str, Any], share: float) -> float:
    """The mIoU of a run at the first evaluation after a share of its steps."""
    miou: float = run["miou_at"][min(step for step in run["miou_at"] if step >= share * run["steps"] - 1e-6)]
    return miou


def reached(run: dict[str, Any], miou: float) -> float | None:
    """The share of the steps after which a run is first evaluated at an mIoU, or None if it never is."""
    steps = [step for step, value in run["miou_at"].items() if value >= miou]
    return min(steps) / run["steps"] if steps else None


def count_weights(path: Path) -> int:
    """The number of values in a model file, including BatchNorm's statistics."""
    with safe_open(path, framework="np") as file:
        return int(sum(np.prod(file.get_slice(name).get_shape(), dtype=int) for name in file.keys()))  # noqa: SIM118
