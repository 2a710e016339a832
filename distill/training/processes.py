"""The processes that train: one, or several that share every batch.

A batch is a pure function of (seed, step, slot). Process r of w takes its slots r, r + w, ... The processes add up the
weighted losses and the weights, so that their number does not change the result.
"""

import dataclasses
from typing import Protocol

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True, slots=True)
class WeightedSum:
    """Numerator and denominator of a batch's loss, so that the parts of a batch can be added up first."""

    total: Tensor
    """The numerator, sum_i w_i l_i."""
    weight: Tensor
    """The denominator, sum_i w_i."""

    @classmethod
    def of(cls, losses_N: Tensor, weights_N: Tensor) -> "WeightedSum":
        """Sum losses [N] with their weights [N]."""
        return cls((losses_N * weights_N).sum(), weights_N.sum())

    def mean(self) -> Tensor:
        """The weighted mean sum_i w_i l_i / sum_i w_i; 0 if all weights are 0."""
        return self.total / self.weight.clamp(min=torch.finfo(self.total.dtype).tiny)


class Processes(Protocol):
    """The processes of one run, seen from one of them."""

    def slots(self, batch_size: int) -> range:
        """The slots of a batch that this process takes."""
        ...

    def joined(self, loss: WeightedSum) -> WeightedSum:
        """The loss of the complete batch, from the loss of this process's slots."""
        ...

    def gathered(self, losses_N: Tensor) -> Tensor:
        """The losses of all slots of a batch in their order, from those of this process's slots."""
        ...


class OneProcess:
    """A run in this process alone."""

    def slots(self, batch_size: int) -> range:
        """All slots."""
        return range(batch_size)

    def joined(self, loss: WeightedSum) -> WeightedSum:
        """The loss, unchanged."""
        return loss

    def gathered(self, losses_N: Tensor) -> Tensor:
        """The losses, unchanged."""
        return losses_N


def here() -> Processes:
    """The processes of the run that this process belongs to."""
    return OneProcess()
