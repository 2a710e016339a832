"""Who trains: one process, or several that share every batch.

A batch is a pure function of (seed, step, slot). Process r of w takes the slots r, r + w, ... of it; totals and weights
of the loss are added up over the processes, so that their number does not change what is learnt.
"""

import dataclasses
from typing import Protocol

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True, slots=True)
class WeightedSum:
    """A batch's loss before it is divided, so that the parts of a batch can be added up first."""

    total: Tensor
    """sum_i w_i l_i."""
    weight: Tensor
    """sum_i w_i."""

    @classmethod
    def of(cls, losses_N: Tensor, weights_N: Tensor) -> "WeightedSum":
        """Of losses and their weights."""
        return cls((losses_N * weights_N).sum(), weights_N.sum())

    def mean(self) -> Tensor:
        """Sum w_i l_i / sum w_i; 0 where all weights are 0."""
        return self.total / self.weight.clamp(min=torch.finfo(self.total.dtype).tiny)


class Processes(Protocol):
    """The processes of one run, as one of them sees them."""

    def slots(self, batch_size: int) -> range:
        """Which slots of a batch are this process's."""
        ...

    def joined(self, loss: WeightedSum) -> WeightedSum:
        """The loss of the whole batch, from that of this process's slots."""
        ...


class OneProcess:
    """This process alone."""

    def slots(self, batch_size: int) -> range:
        """All slots."""
        return range(batch_size)

    def joined(self, loss: WeightedSum) -> WeightedSum:
        """The loss as it is."""
        return loss


def here() -> Processes:
    """The processes of the run that this process belongs to."""
    return OneProcess()
