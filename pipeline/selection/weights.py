"""From distances to weights in [0, 1]: near images 1, far ones 0.

    w_i = (high - d_i) / (high - low), clipped

``minmax`` (arXiv 2512.13175):  low and high are the smallest and the largest distance of the selection
``robust`` (ours): its 5 % and 95 % quantiles, so that one extreme image flattens nothing

To add a normalization, add a line to :data:`NORMALIZATIONS` and its name to ``pipeline.settings.Normalization``.

Shapes: N images.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from pipeline.settings import Normalization

NORMALIZATIONS: Mapping[Normalization, tuple[float, float]] = {"robust": (0.05, 0.95), "minmax": (0.0, 1.0)}
"""Quantiles of the distance that get weight 1 and weight 0."""


def distance_weights(distance_N: NDArray[np.float32], normalization: Normalization) -> NDArray[np.float64]:
    """Weight of each image, [N]; all 1 where the distances do not differ."""
    distance = distance_N.astype(np.float64)
    low, high = np.quantile(distance, NORMALIZATIONS[normalization])
    if high <= low:
        return np.ones(len(distance))
    weights: NDArray[np.float64] = np.clip((high - distance) / (high - low), 0.0, 1.0)
    return weights
