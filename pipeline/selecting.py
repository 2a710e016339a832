"""ADS, Approximate Distribution Sampling: which images to distil on, and the baselines to compare it with.

Every strategy is a total order of all scored images; the selection for budget k is its first k rows, so changing the
budget costs nothing. ``ads`` (ours, after arXiv 2512.13175: close and diverse) sorts by

    d_i + diversity * s * log2(1 + j_i),

where j_i counts the closer images of the same diversity cell and s is the spread of the near half of the distances
(median minus 5 % quantile): each doubling of what a cell has given already must be paid for by closeness.
Near-duplicates of an image that is already taken come after all others.

Shapes: N scored images.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.settings import SelectSettings, Strategy, parse_budget
from pipeline.weights import distance_weights
from storage.errors import SelectionError, SettingsError
from storage.index import near_duplicates
from storage.scores import SCORED, ScoreStore, open_complete
from storage.selection import Selection, write_selection


def select(settings: SelectSettings) -> tuple[Path, Selection]:
    """Make a selection and write it; returns where it went."""
    store = open_complete(Path(settings.shards))
    selection = make_selection(store, settings)
    path = Path(settings.out) if settings.out else default_path(store.path)
    write_selection(selection, path)
    return path, selection


def default_path(store: Path) -> Path:
    """Where the commands look for a store's selection: beside it."""
    return store.parent / "selection.parquet"


def make_selection(store: ScoreStore, settings: SelectSettings) -> Selection:
    """Order a store's scored images and keep the first ones.

    Raises:
        SettingsError: the budget is larger than the number of scored images.
        SelectionError: nothing was scored.
        StoreError: ``confidence`` without entropy in the store.
    """
    rows = np.flatnonzero(store.status() == SCORED)
    if len(rows) == 0:
        raise SelectionError(f"no image of {store.path} could be scored, so there is none to select")
    count = image_count(settings.budget, len(rows)) if settings.strategy != "all" else len(rows)
    distance, cell = store.column("distance")[rows], store.column("diversity/cell")[rows]
    order = _order(store, rows, distance, cell, settings)[:count]
    table = pd.DataFrame(
        {
            "row": rows[order],
            "key": store.column("key")[rows[order]],
            "rank": np.arange(count),
            "distance": distance[order],
            "weight": distance_weights(distance[order], "minmax"),
            "cell": cell[order],
        }
    )
    about = {"scores": scores_fingerprint(store), "strategy": settings.strategy, "budget": settings.budget}
    return Selection(table, about)


def first(selection: Selection, count: int) -> Selection:
    """The selection for a smaller budget: its first rows, weighted among themselves."""
    table = selection.table.head(count)
    weight = distance_weights(table["distance"].to_numpy(np.float32), "minmax")
    return Selection(table.assign(weight=weight), selection.about | {"budget": str(count)})


def image_count(budget: str, available: int) -> int:
    """Budget as a number of images. Raises SettingsError where it exceeds what is there."""
    wanted = parse_budget(budget)
    count = wanted if isinstance(wanted, int) else max(1, round(wanted * available))
    if count > available:
        raise SettingsError(
            f"--budget {budget} is more than the {available} images that there are; give at most {available}"
        )
    return count


def _order(
    store: ScoreStore,
    rows: NDArray[np.int64],
    distance: NDArray[np.float32],
    cell: NDArray[np.int32],
    settings: SelectSettings,
) -> NDArray[np.int64]:
    strategy: Strategy = settings.strategy
    if strategy == "random":
        return np.random.default_rng(settings.seed).permutation(len(rows))
    if strategy == "confidence":
        return np.argsort(store.column("entropy")[rows], kind="stable")
    if strategy in ("nearest", "all"):
        return np.argsort(distance, kind="stable")
    return ads_order(
        distance,
        cell,
        store.column("embedding")[rows],
        diversity=settings.diversity,
        duplicate=settings.duplicate,
    )


def ads_order(
    distance_N: NDArray[np.float32],
    cell_N: NDArray[np.int32],
    embedding_ND: NDArray[np.float16],
    *,
    diversity: float,
    duplicate: float,
) -> NDArray[np.int64]:
    """Close and diverse first, near-duplicates last, [N]. Ties go to the lower row."""
    nearest = np.argsort(distance_N, kind="stable")
    repeated = near_duplicates(embedding_ND, cell_N, nearest, duplicate)
    first = nearest[~repeated[nearest]]
    crowding = np.zeros(len(distance_N))
    crowding[first] = np.log2(1 + _place_in_cell(cell_N[first]))
    low, middle = np.quantile(distance_N, (0.05, 0.5))
    cost = distance_N + diversity * (middle - low) * crowding
    return np.lexsort((np.arange(len(cost)), cost, repeated))


def _place_in_cell(cell_in_order: NDArray[np.int32]) -> NDArray[np.int64]:
    """How many earlier entries share each entry's cell."""
    by_cell = np.argsort(cell_in_order, kind="stable")
    sizes = np.unique(cell_in_order, return_counts=True)[1]
    place = np.empty(len(cell_in_order), dtype=np.int64)
    place[by_cell] = np.arange(len(by_cell)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return place


def check_selection(store: ScoreStore, selection: Selection) -> None:
    """Raise SelectionError where a selection was not made from this store's scores."""
    if selection.about.get("scores") != scores_fingerprint(store):
        raise SelectionError(
            f"the selection was made from other scores than those in {store.path}; run dfss-select again"
        )


def scores_fingerprint(store: ScoreStore) -> str:
    """Sha256 over the settings and distances of a store: what a selection was made from."""
    attributes = {
        name: v for name, v in store.attributes.items() if name not in ("corpus", "sources", "teacher_path", "complete")
    }
    digest = hashlib.sha256(json.dumps(attributes, sort_keys=True).encode())
    digest.update(store.column("distance").tobytes())
    return digest.hexdigest()
