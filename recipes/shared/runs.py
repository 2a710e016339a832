"""The figures of finished runs, for the reports of the recipes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
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
    """One run's figures."""
    metrics = json.loads((folder / "metrics.json").read_text())
    settings = json.loads((folder / "settings.json").read_text())
    if settings.get("held_out"):
        raise SystemExit(f"{folder} was evaluated by agreement with its teacher, not on labels; run it with --val")
    chosen = folder / "selection.parquet"
    run = {name: metrics[name] for name in ("seed", "steps", "miou", "pixel_accuracy", "iou")}
    run["images"] = len(read_selection(chosen)) if chosen.exists() else None
    run["weights"] = count_weights(next(folder.glob("*.safetensors")))
    run["settings"] = settings
    return run


def count_weights(path: Path) -> int:
    """The number of values in a model file, including BatchNorm's statistics."""
    with safe_open(path, framework="np") as file:
        return int(sum(np.prod(file.get_slice(name).get_shape(), dtype=int) for name in file.keys()))  # noqa: SIM118
