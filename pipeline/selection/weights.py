"""Weights in [0, 1] from distances: 1 for near images, 0 for far ones.

    w_i = (high - d_i) / (high - low), clipped

``minmax`` (arXiv 2512.13175):  low and high are the smallest and the largest distance of the selection
``robust`` (ours): they are its 5 % and 95 % quantiles, so that one extreme image does not compress all other weights

To add a normalization, add a line to :data:`NORMALIZATIONS` and its name to ``pipeline.settings.Normalization``.

Shapes: N images.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from pipeline.settings import Normalization

NORMALIZATIONS: Mapping[Normalization, tuple[float, float]] = {"robust": (0.05, 0.95), "minmax": (0.0, 1.0)}
"""The quantiles of the distance that have weight 1 and weight 0."""


def distance_weights(distance_N: NDArray[np.float32], normalization: Normalization) -> NDArray[np.float64]:
    """The weight of each image, [N]; all are 1 if the distances are equal."""
    distance = distance_N.astype(np.float64)
    low, high = np.quantile(distance, NORMALIZATIONS[normalization])
    if high <= low:
        return np.ones(len(distance))
    weights: NDArray[np.float64] = np.clip((high - distance) / (high - low), 0.0, 1.0)
    return weights
