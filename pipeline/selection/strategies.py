"""Strategies, which are total orders of the scored images: ADS, Approximate Distribution Sampling, and its baselines.

``ads`` (ours, after arXiv 2512.13175: close and diverse) sorts by

    d_i + diversity * s * log2(1 + j_i),

where j_i counts the closer images of the same diversity cell and s is the spread of the near half of the distances
(median minus 5 % quantile). So a penalty grows with each doubling of the images that a cell has contributed.
Near-duplicates of a chosen image come after all others.

To add a strategy, write its order, add a line to :data:`STRATEGIES`, and its name to ``pipeline.settings.Strategy``.

Shapes: N scored images, D embedding numbers.
"""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from pipeline.settings import SelectSettings, Strategy
from storage.index import near_duplicates
from storage.scores.store import ScoreStore

Order = Callable[[ScoreStore, NDArray[np.int64], SelectSettings], NDArray[np.int64]]
"""Orders the given rows of a store; returns their positions, best first, [N]."""


def _ads(store: ScoreStore, rows: NDArray[np.int64], settings: SelectSettings) -> NDArray[np.int64]:
    return ads_order(
        store.column("distance")[rows],
        store.column("diversity/cell")[rows],
        store.column("embedding")[rows],
        diversity=settings.diversity,
        duplicate=settings.duplicate,
    )


def _nearest(store: ScoreStore, rows: NDArray[np.int64], settings: SelectSettings) -> NDArray[np.int64]:
    return np.argsort(store.column("distance")[rows], kind="stable")


def _random(store: ScoreStore, rows: NDArray[np.int64], settings: SelectSettings) -> NDArray[np.int64]:
    return np.random.default_rng(settings.seed).permutation(len(rows))


def _confidence(store: ScoreStore, rows: NDArray[np.int64], settings: SelectSettings) -> NDArray[np.int64]:
    return np.argsort(store.column("entropy")[rows], kind="stable")


STRATEGIES: Mapping[Strategy, Order] = {
    "ads": _ads,
    "nearest": _nearest,
    "random": _random,
    "confidence": _confidence,
    "all": _nearest,
}


def ads_order(
    distance_N: NDArray[np.float32],
    cell_N: NDArray[np.int32],
    embedding_ND: NDArray[np.float16],
    *,
    diversity: float,
    duplicate: float,
) -> NDArray[np.int64]:
    """The ADS order, [N]: close and diverse images first, near-duplicates last. Ties go to the lower row."""
    nearest = np.argsort(distance_N, kind="stable")
    repeated = near_duplicates(embedding_ND, cell_N, nearest, duplicate)
    first, last = nearest[~repeated[nearest]], nearest[repeated[nearest]]
    crowding = np.log2(1 + _place_in_cell(cell_N[first]))
    low, middle = np.quantile(distance_N, (0.05, 0.5))
    cost = distance_N[first] + diversity * (middle - low) * crowding
    return np.concatenate([first[np.lexsort((first, cost))], last])


def _place_in_cell(cell_in_order: NDArray[np.int32]) -> NDArray[np.int64]:
    """The number of earlier entries in the same cell, for each entry."""
    by_cell = np.argsort(cell_in_order, kind="stable")
    sizes = np.unique(cell_in_order, return_counts=True)[1]
    place = np.empty(len(cell_in_order), dtype=np.int64)
    place[by_cell] = np.arange(len(by_cell)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return place
