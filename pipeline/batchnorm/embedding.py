"""An embedding of each image from the scoring pass itself, for diversity (ours).

The standard scores (mu - mu^) / sigma^ of the last monitored layer say in which way, not how far, an image differs
from the teacher's data. They are clipped, projected to D numbers by a fixed Gaussian matrix where there are more, and
scaled to unit length, so that inner products are cosine similarities.

Shapes: N images, C channels, D embedding numbers.
"""

import dataclasses

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

SEED = 20251213
MOST = 10.0  # standard deviations; a nearly dead channel must not be all that an embedding says


@dataclasses.dataclass(frozen=True, slots=True)
class Embedder:
    """Standard scores -> unit vectors."""

    projection_CD: Tensor | None

    @classmethod
    def create(cls, channels: int, size: int, device: torch.device) -> "Embedder":
        """For C channels and at most ``size`` numbers. The same sizes give the same projection everywhere."""
        if channels <= size:
            return cls(None)
        gaussian = np.random.default_rng([SEED, channels, size]).standard_normal((channels, size))
        return cls(torch.from_numpy(gaussian.astype(np.float32)).to(device))

    def __call__(self, scores_NC: Tensor) -> Tensor:
        """Embed, float32 [N, D]."""
        clipped = scores_NC.clamp(-MOST, MOST)
        projected = clipped if self.projection_CD is None else clipped @ self.projection_CD
        return F.normalize(projected, dim=1)
