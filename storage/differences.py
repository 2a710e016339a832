"""Describes how two sets of settings differ: ``lr is 0.1 there and 0.01 now``."""

from collections.abc import Iterable, Mapping
from typing import Any

MISSING = "missing"
LONGEST = 60


def differences(held: Mapping[str, Any], wanted: Mapping[str, Any], names: Iterable[str]) -> list[str]:
    """Describe each named setting in which the two differ, in the order of ``names``."""
    return [
        _describe(name, held.get(name, MISSING), wanted.get(name, MISSING))
        for name in names
        if held.get(name, MISSING) != wanted.get(name, MISSING)
    ]


def _describe(name: str, held: Any, wanted: Any) -> str:
    if isinstance(held, Mapping) and isinstance(wanted, Mapping):
        return differences(
            {f"{name} {part}": value for part, value in held.items()},
            {f"{name} {part}": value for part, value in wanted.items()},
            (f"{name} {part}" for part in sorted(held.keys() | wanted.keys())),
        )[0]
    return f"{name} is {_short(held)} there and {_short(wanted)} now"


def _short(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return text if len(text) <= LONGEST else f"{text[:40]}... ({len(text)} characters)"
