"""Whether a store's distances tell its images apart."""

import logging

import numpy as np
from numpy.typing import NDArray

logger = logging.getLogger(__name__)
ALIKE = 1e-3
"""Distances tell no image from another if their range is at most this share of the largest one."""


def warn_of_equal_distances(distance_N: NDArray[np.float32], *, where: object) -> None:
    """Say so where all distances, [N], are all but equal, as those of a teacher that was not trained."""
    if len(distance_N) > 1 and np.ptp(distance_N) <= ALIKE * np.max(distance_N):
        logger.warning(
            "the distances of all %d images in %s are equal (%.4g), so they tell no image from another; check the "
            "teacher's weights and its normalisation",
            *(len(distance_N), where, np.max(distance_N)),
        )
