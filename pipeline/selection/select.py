"""Making a selection: a total order of the scored images, cut at the budget.

Every strategy orders all scored images. The selection for budget k is the first k rows, so another budget costs
nothing.
"""

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.selection.strategies import STRATEGIES
from pipeline.selection.weights import distance_weights
from pipeline.settings import SelectSettings
from storage.errors import SelectionError, SettingsError
from storage.progress import Progress, Step, ignore
from storage.scores.equality import warn_of_equal_distances
from storage.scores.schema import SCORED
from storage.scores.store import ScoreStore, open_complete
from storage.selection import Selection, write_selection


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SelectResult:
    """A selection, and the file that holds it."""

    path: Path
    selection: Selection


def select(settings: SelectSettings, progress: Progress = ignore) -> SelectResult:
    """Make a selection and write it.

    Raises:
        StoreError: the scores are missing or not complete.
        SelectionError, SettingsError: see :func:`make_selection`.
    """
    store = open_complete(Path(settings.shards))
    selection = make_selection(store, settings)
    path = Path(settings.out) if settings.out else default_path(store.path)
    write_selection(selection, path)
    progress(Step(done=len(selection), total=len(selection)))
    return SelectResult(path=path, selection=selection)


def default_path(store: Path) -> Path:
    """The path, beside the store and under its name, where the commands look for its selection."""
    store = store if store.name not in ("", "..") else store.resolve()
    return store.with_name(f"{store.name}.selection.parquet")


def earlier_path(store: Path) -> Path:
    """The path of earlier versions, which the stores of a folder shared."""
    return store.parent / "selection.parquet"


def make_selection(store: ScoreStore, settings: SelectSettings) -> Selection:
    """Order a store's scored images and keep the first of them.

    Raises:
        SettingsError: the budget is larger than the number of scored images.
        SelectionError: nothing was scored.
        StoreError: the strategy is ``confidence`` and the store holds no entropy.
    """
    rows = np.flatnonzero(store.status() == SCORED)
    if len(rows) == 0:
        raise SelectionError(f"no image of {store.path} could be scored, so none can be selected; score another corpus")
    count = image_count(settings.budget, len(rows)) if settings.strategy != "all" else len(rows)
    distance, cell = store.column("distance")[rows], store.column("diversity/cell")[rows]
    warn_of_equal_distances(distance, where=store.path)
    order = STRATEGIES[settings.strategy](store, rows, settings)[:count]
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
    """The selection for a smaller budget: the first rows, with weights computed from these rows alone."""
    table = selection.table.head(count)
    weight = distance_weights(table["distance"].to_numpy(np.float32), "minmax")
    return Selection(table.assign(weight=weight), selection.about | {"budget": count})


def image_count(budget: int | float, available: int) -> int:
    """The budget as a number of images.

    Raises:
        SettingsError: it exceeds the number of scored images.
    """
    count = budget if isinstance(budget, int) else max(1, round(budget * available))
    if count > available:
        raise SettingsError(
            f"budget {budget} is more than the {available} images that were scored; give at most {available}",
            field="budget",
        )
    return count


def check_selection(store: ScoreStore, selection: Selection) -> None:
    """Raise SelectionError if a selection was not made from this store's scores, or contradicts them."""
    if selection.about.get("scores") != scores_fingerprint(store):
        raise SelectionError(
            f"the selection was made from other scores than those in {store.path}; run dfss-select again"
        )
    rows, last = selection.table["row"].to_numpy(), len(store) - 1
    if outside := [int(row) for row in rows if not 0 <= row <= last][:1]:
        raise SelectionError(
            f"the selection has row {outside[0]}, but {store.path} only 0 to {last}; run dfss-select again"
        )
    if (store.status()[rows] != SCORED).any():
        raise SelectionError(f"the selection has an image without a score in {store.path}; run dfss-select again")
    for name in ("key", "distance"):
        held, there = selection.table[name].to_numpy(), store.column(name)[rows]
        if (wrong := np.flatnonzero(held != there)).size:
            raise SelectionError(
                f"the selection gives row {rows[wrong[0]]} another {name} than {store.path}; run dfss-select again"
            )


def scores_fingerprint(store: ScoreStore) -> str:
    """SHA-256 (hex) of a store's settings and distances, which identifies the scores behind a selection."""
    attributes = {
        name: v for name, v in store.attributes.items() if name not in ("corpus", "sources", "teacher_path", "complete")
    }
    digest = hashlib.sha256(json.dumps(attributes, sort_keys=True).encode())
    digest.update(store.column("distance").tobytes())
    return digest.hexdigest()
