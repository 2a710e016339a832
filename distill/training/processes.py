"""Who trains: one process, or several that share every batch.

A batch is a pure function of (seed, step, slot). Process r of w takes the slots r, r + w, ... of it; totals and weights
of the loss are added up over the processes, so that their number does not change what is learnt.
"""

import dataclasses
from typing import Protocol

from distill.losses import WeightedSum


class Processes(Protocol):
    """The processes of one run, as one of them sees them."""

    @property
    def publishes(self) -> bool:
        """Whether this process writes checkpoints, curves and the model: exactly one does."""
        ...

    def slots(self, batch_size: int) -> range:
        """Which slots of a batch are this process's."""
        ...

    def joined(self, loss: WeightedSum) -> WeightedSum:
        """The loss of the whole batch, from that of this process's slots."""
        ...


@dataclasses.dataclass(frozen=True, slots=True)
class OneProcess:
    """This process alone."""

    publishes: bool = True

    def slots(self, batch_size: int) -> range:
        """All slots."""
        return range(batch_size)

    def joined(self, loss: WeightedSum) -> WeightedSum:
        """The loss as it is."""
        return loss
