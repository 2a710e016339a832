"""Embeddings of images for diversity, computed in the scoring pass (ours).

The standard scores (mu - mu^) / sigma^ of the last monitored layer say in which direction, not how far, an image
differs from the teacher's data. They are clipped and, if there are more than D, projected to D numbers by a fixed
Gaussian matrix. They are then scaled to unit length, so that inner products are cosine similarities.

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
    """Maps standard scores to unit vectors."""

    projection_CD: Tensor | None

    @classmethod
    def create(cls, channels: int, size: int, device: torch.device) -> "Embedder":
        """Make an embedder of C channels into at most ``size`` numbers. Equal sizes always give the same projection."""
        if channels <= size:
            return cls(None)
        gaussian = np.random.default_rng([SEED, channels, size]).standard_normal((channels, size))
        return cls(torch.from_numpy(gaussian.astype(np.float32)).to(device))

    def __call__(self, scores_NC: Tensor) -> Tensor:
        """Return the embeddings, float32 [N, D]."""
        clipped = scores_NC.clamp(-MOST, MOST)
        projected = clipped if self.projection_CD is None else clipped @ self.projection_CD
        return F.normalize(projected, dim=1)
