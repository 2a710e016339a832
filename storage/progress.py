"""How far a long task is: what stages report and commands show."""

import dataclasses
from collections.abc import Callable


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One report of a long task; the first comes before any work."""

    done: int
    """Units finished, those of earlier runs among them."""
    total: int
    note: str = ""
    """A few words to show beside the bar."""


Progress = Callable[[Step], None]
"""What a stage calls with each report. An exception that it raises ends the stage, as an interruption would."""


def ignore(step: Step) -> None:
    """Show nothing."""
