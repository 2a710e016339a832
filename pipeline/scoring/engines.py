"""Who works: an engine hands work units to workers. What a worker does with them is pipeline.scoring.worker's affair.

An engine may work anywhere and in any order, and may do a unit twice: what is still to be done comes from the store,
and a unit done twice writes the same bytes. The caller alone makes the store, claims it, builds the index and completes
it.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

from pipeline.scoring.worker import Job, Timing, score_units
from storage.scores.store import ScoreStore


class Engine(Protocol):
    """Has every unit scored and committed before it returns."""

    def __call__(
        self, job: Job, store: ScoreStore, units: Sequence[range], timing: Timing, advance: Callable[[int], None]
    ) -> None:
        """Score ``units``; add the seconds it took to ``timing``, and tell ``advance`` of the rows done."""
        ...


def in_this_process(
    job: Job, store: ScoreStore, units: Sequence[range], timing: Timing, advance: Callable[[int], None]
) -> None:
    """One worker, here."""
    score_units(job, store, units, timing, advance)
