"""From distances to weights in [0, 1]: near images 1, far ones 0.

``minmax`` (arXiv 2512.13175):  w_i = (d_max - d_i) / (d_max - d_min) over the selection
``robust`` (ours): the same between the 5 % and 95 % quantiles, clipped, so that one extreme image flattens nothing

Shapes: N images.
"""

import numpy as np
from numpy.typing import NDArray

from pipeline.settings import Normalization

ROBUST_QUANTILES = (0.05, 0.95)


def distance_weights(distance_N: NDArray[np.float32], normalization: Normalization) -> NDArray[np.float64]:
    """Weight of each image, [N]; all 1 where the distances do not differ."""
    distance = distance_N.astype(np.float64)
    if normalization == "robust":
        low, high = np.quantile(distance, ROBUST_QUANTILES)
    else:
        low, high = distance.min(), distance.max()
    if high <= low:
        return np.ones(len(distance))
    weights: NDArray[np.float64] = np.clip((high - distance) / (high - low), 0.0, 1.0)
    return weights
