"""WDPD, Weighted Distribution Progressive Distillation (arXiv 2512.13175): near images first, all images in the end.

At progress t in [0, 1] the weight of image i is

    w_i(t) = (1 - p(t)) w_i + p(t),

where w_i comes from its distance (pipeline.selection.weights) and the pacing p rises from 0 to 1. To add a weighting or
a pacing, add a line to :data:`WEIGHTINGS` or :data:`PACINGS`, and its name to distill.settings.

Shapes: N images of the selection.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from distill.settings import Pacing, Weighting

PACINGS: Mapping[Pacing, Callable[[float], float]] = {
    "linear": lambda progress: progress,
    "cosine": lambda progress: (1 - math.cos(math.pi * progress)) / 2,
    "step": lambda progress: min(int(3 * progress), 2) / 2,  # three equal steps of 0, 1/2 and 1
}
"""The pacings p(t), by name."""


def _progressive(weights_N: NDArray[np.float64], paced: float) -> NDArray[np.float64]:
    return (1 - paced) * weights_N + paced


WEIGHTINGS: Mapping[Weighting, Callable[[NDArray[np.float64], float], NDArray[np.float64]]] = {
    "wdpd": _progressive,
    "static": lambda weights_N, paced: weights_N,
    "uniform": lambda weights_N, paced: np.ones_like(weights_N),
    "reversed": lambda weights_N, paced: _progressive(1 - weights_N, paced),
}
"""The weightings by name: functions from w_i and p(t) to w_i(t), [N]."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class WeightSchedule:
    """The loss weights of a selection over a run."""

    weights_N: NDArray[np.float64]
    """The weights w_i in [0, 1]."""
    weighting: Weighting
    pacing: Pacing

    def at(self, progress: float) -> NDArray[np.float64]:
        """The weight of every image at ``progress`` in [0, 1], [N]."""
        return WEIGHTINGS[self.weighting](self.weights_N, pace(progress, self.pacing))


def pace(progress: float, pacing: Pacing) -> float:
    """The pacing p(t) at ``progress`` in [0, 1]."""
    return PACINGS[pacing](progress)
