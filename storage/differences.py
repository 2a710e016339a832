"""In what two runs differ, in words: ``lr is 0.1 there and 0.01 now``."""

from collections.abc import Mapping
from typing import Any


def settings_difference(held: Mapping[str, Any], wanted: Mapping[str, Any]) -> str | None:
    """Name the first of the wanted settings that a store does not agree with, None where it agrees with all."""
    for name in wanted:
        if held.get(name) != wanted[name]:
            return _describe(name, held.get(name), wanted[name])
    return None


def _describe(name: str, held: Any, wanted: Any) -> str:
    if isinstance(held, Mapping) and isinstance(wanted, Mapping):
        for part in sorted(held.keys() | wanted.keys()):
            if held.get(part) != wanted.get(part):
                return _describe(f"{name} {part}", held.get(part), wanted.get(part))
    return f"{name} is {_short(held)} there and {_short(wanted)} now"


def _short(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return text if len(text) <= 60 else f"{text[:40]}... ({len(text)} characters)"


def difference(held: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """Name the settings in which two runs differ: ``lr=0.1 (now 0.01)``."""
    names = [name for name in sorted(held.keys() | wanted.keys()) if held.get(name) != wanted.get(name)]
    return ", ".join(f"{name}={held.get(name)} (now {wanted.get(name)})" for name in names)
