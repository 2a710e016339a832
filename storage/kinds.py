"""Kinds of values that a file may give: a table of names and kinds is a schema.

A model or a store may come from anywhere, so every value of it is checked before anything is made of it.
"""

import dataclasses
import math
import reprlib
from collections.abc import Callable, Mapping
from typing import Any

_SHOWING = reprlib.Repr()
_SHOWING.maxlevel, _SHOWING.maxlist, _SHOWING.maxtuple, _SHOWING.maxdict, _SHOWING.maxstring = 2, 4, 4, 2, 60


@dataclasses.dataclass(frozen=True, slots=True)
class Kind:
    """What a value must be, and the words that say so."""

    words: str
    holds: Callable[[Any], bool]

    def __or__(self, other: "Kind") -> "Kind":
        """Either of two kinds."""
        return Kind(f"{self.words} or {other.words}", lambda value: self.holds(value) or other.holds(value))


def whole(least: int, most: int) -> Kind:
    """A whole number; True and 4.0 are none."""
    return Kind(f"a whole number from {least} to {most}", lambda value: type(value) is int and least <= value <= most)


def number(least: float, most: float) -> Kind:
    """A finite number, whole or not."""
    return Kind(
        f"a number from {least:g} to {most:g}",
        lambda value: type(value) in (int, float) and math.isfinite(value) and least <= value <= most,
    )


def text(longest: int) -> Kind:
    """A text that can be written as UTF-8."""
    return Kind(f"a text of at most {longest} characters", lambda value: _is_text(value) and len(value) <= longest)


def _is_text(value: Any) -> bool:
    if not isinstance(value, str) or "\x00" in value:
        return False
    try:
        value.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    return True


def word(*words: str) -> Kind:
    """One of some words."""
    return Kind(" or ".join(map(repr, words)), lambda value: isinstance(value, str) and value in words)


def several(kind: Kind, least: int, most: int) -> Kind:
    """A list of values of one kind."""
    how_many = f"{least}" if least == most else f"{least} to {most}"
    return Kind(
        f"a list of {how_many} that are each {kind.words}",
        lambda value: isinstance(value, list | tuple) and least <= len(value) <= most and all(map(kind.holds, value)),
    )


def mapping(kinds: Mapping[str, Kind]) -> Kind:
    """A mapping that has only these names, each with its kind."""
    return Kind(
        f"a mapping of {', '.join(kinds)}",
        lambda value: (
            isinstance(value, Mapping)
            and all(name in kinds and kinds[name].holds(held) for name, held in value.items())
        ),
    )


def named(kind: Kind, most: int) -> Kind:
    """A mapping from any names to values of one kind."""
    return Kind(
        f"a mapping of at most {most} names to {kind.words}",
        lambda value: (
            isinstance(value, Mapping)
            and len(value) <= most
            and all(_is_text(name) and kind.holds(held) for name, held in value.items())
        ),
    )


SWITCH = Kind("true or false", lambda value: isinstance(value, bool))
NOTHING = Kind("null", lambda value: value is None)


def plain(deepest: int) -> Kind:
    """A value as JSON has them, with lists and mappings in each other at most so deep."""
    return Kind(f"JSON of at most {deepest} levels", lambda value: _is_plain(value, deepest))


def _is_plain(value: Any, deepest: int) -> bool:
    if isinstance(value, list | tuple | Mapping):
        held = list(value.values()) if isinstance(value, Mapping) else value
        names = list(value) if isinstance(value, Mapping) else []
        return deepest > 0 and all(map(_is_text, names)) and all(_is_plain(item, deepest - 1) for item in held)
    return value is None or isinstance(value, bool | int) or _is_text(value) or _is_finite(value)


def _is_finite(value: Any) -> bool:
    return isinstance(value, float) and math.isfinite(value)


def first_fault(values: Mapping[str, Any], kinds: Mapping[str, Kind]) -> str | None:
    """What is wrong with the first value that is not of its kind; None if all are."""
    for name, value in values.items():
        if not kinds[name].holds(value):
            return f"{name} is {shown(value)}, not {kinds[name].words}"
    return None


def shown(value: Any) -> str:
    """The beginning of a value as Python writes it, however large or deep the value is."""
    return _SHOWING.repr(value)
