"""Progress of a long task, which stages report and commands show."""

import dataclasses
from collections.abc import Callable


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One report of a long task. The first one comes before any work."""

    done: int
    """Units finished, including those of earlier runs."""
    total: int
    note: str = ""
    """A few words that are shown beside the bar."""
    task: str = ""
    """What is being done, if it is not what the stage is called for."""
    unit: str = ""
    """What ``done`` and ``total`` count in that task."""


Progress = Callable[[Step], None]
"""A stage calls it with each report. An exception that it raises ends the stage like an interruption."""


def ignore(step: Step) -> None:
    """Show nothing."""
