"""WDPD, Weighted Distribution Progressive Distillation (arXiv 2512.13175): reliable images first, all of them in the
end.

At progress t in [0, 1] the weight of image i is

    w_i(t) = (1 - p(t)) w_i + p(t),

with w_i from its distance (pipeline.weights) and a pacing p that rises from 0 to 1.

Shapes: N images of the selection.
"""

import dataclasses
import math

import numpy as np
from numpy.typing import NDArray

from distill.settings import Pacing, Weighting


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class WeightSchedule:
    """Weights of a selection over a run."""

    weights_N: NDArray[np.float64]
    """w_i in [0, 1]."""
    weighting: Weighting
    pacing: Pacing

    def at(self, progress: float) -> NDArray[np.float64]:
        """Weight of every image at ``progress`` in [0, 1], [N]."""
        if self.weighting == "uniform":
            return np.ones_like(self.weights_N)
        if self.weighting == "static":
            return self.weights_N
        start = 1 - self.weights_N if self.weighting == "reversed" else self.weights_N
        paced = pace(progress, self.pacing)
        return (1 - paced) * start + paced


def pace(progress: float, pacing: Pacing) -> float:
    """P(t): ``linear``, half a ``cosine``, or three equal ``step`` s of 0, 1/2 and 1."""
    if pacing == "linear":
        return progress
    if pacing == "cosine":
        return (1 - math.cos(math.pi * progress)) / 2
    return min(int(3 * progress), 2) / 2
