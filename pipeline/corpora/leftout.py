"""What a listing leaves out, counted by reason and named, so that no file vanishes without a word."""

import logging
from collections import Counter

logger = logging.getLogger(__name__)

EXAMPLES = 3


class LeftOut:
    """Counts what has no row, by reason."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._examples: dict[str, list[str]] = {}
        self._wished: set[str] = set()

    def add(self, reason: str, name: str, *, wished: bool = False) -> None:
        """Count a file. ``reason`` names its kind in the plural; ``wished`` means that the user left it out."""
        self._counts[reason] += 1
        examples = self._examples.setdefault(reason, [])
        if len(examples) < EXAMPLES:
            examples.append(name)
        if wished:
            self._wished.add(reason)

    def __len__(self) -> int:
        """Return how many files were left out."""
        return self._counts.total()

    def lines(self) -> list[str]:
        """Describe each reason in a line, in the order in which they were met."""
        return [
            f"{reason}: {count:,} (such as {', '.join(self._examples[reason])})"
            for reason, count in self._counts.items()
        ]

    def log(self, place: str) -> None:
        """Say what was left out of ``place``: as a warning, or as information where the user wished it."""
        for reason, line in zip(self._counts, self.lines(), strict=True):
            level = logging.INFO if reason in self._wished else logging.WARNING
            logger.log(level, "%s: left out %s", place, line)
