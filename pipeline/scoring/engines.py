"""Engines, which hand work units to workers. The module pipeline.scoring.worker says what a worker does with them.

An engine may score units anywhere, in any order, and even twice. The store says which units are pending, and a unit
scored twice gives the same bytes. The caller alone makes the store, claims it, builds the index and marks it complete.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

from pipeline.scoring.worker import Job, Timing, score_units
from storage.scores.store import ScoreStore


class Engine(Protocol):
    """Scores and commits every unit before it returns."""

    def __call__(
        self, job: Job, store: ScoreStore, units: Sequence[range], timing: Timing, advance: Callable[[int], None]
    ) -> None:
        """Score ``units``, add the seconds to ``timing``, and call ``advance`` with each number of finished rows."""
        ...


def in_this_process(
    job: Job, store: ScoreStore, units: Sequence[range], timing: Timing, advance: Callable[[int], None]
) -> None:
    """Score the units by one worker in this process."""
    score_units(job, store, units, timing, advance)
