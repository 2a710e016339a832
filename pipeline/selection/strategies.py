"""ADS, Approximate Distribution Sampling: which images to distil on, and the baselines to compare it with.

Every strategy is a total order of all scored images; the selection for budget k is its first k rows, so changing the
budget costs nothing. ``ads`` (ours, after arXiv 2512.13175: close and diverse) sorts by

    d_i + diversity * s * log2(1 + j_i),

where j_i counts the closer images of the same diversity cell and s is the spread of the near half of the distances
(median minus 5 % quantile): each doubling of what a cell has given already must be paid for by closeness.
Near-duplicates of an image that is already taken come after all others.

Shapes: N scored images.
"""

import numpy as np
from numpy.typing import NDArray

from pipeline.settings import SelectSettings, Strategy
from storage.index import near_duplicates
from storage.scores.store import ScoreStore


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
