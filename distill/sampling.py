"""The images that a step trains on: each once per epoch, or drawn in proportion to their weights."""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray


def epoch_slice(count: int, step: int, batch_size: int, seed: int) -> list[int]:
    """Indices of a step's batch among ``count`` images, shuffled anew in each epoch. A batch may span two epochs."""
    positions = range(step * batch_size, (step + 1) * batch_size)
    return [int(_order(count, position // count, seed)[position % count]) for position in positions]


@lru_cache(maxsize=8)
def _order(count: int, epoch: int, seed: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, epoch, count]).permutation(count)


def draw(weights_N: NDArray[np.float64], count: int, rng: np.random.Generator) -> list[int]:
    """Draw ``count`` images by systematic sampling, so that image i is expected ``count * w_i / sum w`` times.

    No image is drawn twice unless it is expected more than once. If all weights are 0, they count as equal.
    """
    order = rng.permutation(len(weights_N))
    weights = weights_N[order] if weights_N.any() else np.ones(len(order))
    edges = np.cumsum(weights)
    points = (rng.random() + np.arange(count)) * (edges[-1] / max(1, count))
    points = points.clip(max=np.nextafter(edges[-1], 0))  # the last may be rounded up to the end
    places = np.searchsorted(edges, points, side="right")
    return [int(index) for index in rng.permutation(order[places])]


def hold_out(count: int, share: float = 0.05, most: int = 64) -> list[int]:
    """Places of the held-out images in a selection of ``count``, evenly spread over the ranks."""
    held = min(most, int(count * share))
    return [round((index + 0.5) * count / held) for index in range(held)]
