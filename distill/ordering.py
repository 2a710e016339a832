"""Which images a step trains on: every image once per epoch, in a fresh random order each time."""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray


def epoch_slice(count: int, step: int, batch_size: int, seed: int) -> list[int]:
    """Indices of a step's batch among ``count`` images; epochs join seamlessly. A pure function of its arguments."""
    positions = range(step * batch_size, (step + 1) * batch_size)
    return [int(_order(count, position // count, seed)[position % count]) for position in positions]


@lru_cache(maxsize=8)
def _order(count: int, epoch: int, seed: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, epoch, count]).permutation(count)
