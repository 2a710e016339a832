"""Which images a step trains on: every image once per epoch, in a fresh random order each time."""

import numpy as np


def epoch_slice(count: int, step: int, batch_size: int, seed: int) -> list[int]:
    """Indices of a step's batch among ``count`` images; epochs join seamlessly. A pure function of its arguments."""
    positions = np.arange(step * batch_size, (step + 1) * batch_size)
    orders = {
        int(epoch): np.random.default_rng([seed, int(epoch), count]).permutation(count)
        for epoch in np.unique(positions // count)
    }
    return [int(orders[position // count][position % count]) for position in positions.tolist()]
