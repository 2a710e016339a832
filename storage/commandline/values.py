"""Types of settings: how a value is written on the command line and in params.yaml, and how it is checked.

A setting is declared once, by its annotation::

    steps: Annotated[Count, "Optimiser steps", OPTIMISATION] = 2000

This module imports neither typer nor torch, so that ``--help`` answers at once.
"""

import dataclasses
import difflib
import json
import math
import numbers
import os
import re
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Annotated, Any

from storage.errors import SettingsError
from storage.files.places import is_url


@dataclasses.dataclass(frozen=True, slots=True)
class Rule:
    """A condition that a value must meet."""

    holds: Callable[[Any], bool]
    demand: str
    """The remedy in the error message: ``give 1 or more``."""


@dataclasses.dataclass(frozen=True, slots=True)
class Form:
    """The written form of a value that is more than a word or a number."""

    metavar: str
    parse: Callable[[str], Any]
    """Converts the text of a command line. Raises ValueError, which says what was expected."""
    accept: Callable[[Any], Any]
    """Converts a value from Python or YAML to the type of the setting. Raises ValueError or TypeError."""
    spell: Callable[[Any], Any]
    """The inverse of ``parse``, used for help and params.yaml."""
    several: bool = False
    """Whether the option may be given several times; its text is then a list of texts."""


@dataclasses.dataclass(frozen=True, slots=True)
class Panel:
    """A group of options in a command's help."""

    title: str


DATA = Panel("Data")
MODEL = Panel("Model")
METHOD = Panel("Method")
OPTIMISATION = Panel("Optimisation")
RUN = Panel("Run")
PANELS = (DATA, MODEL, METHOD, OPTIMISATION, RUN)
"""All panels, in the order of the help."""


def at_least(least: float) -> Rule:
    """A rule: the value is no smaller than ``least``."""
    return Rule(lambda value: bool(value >= least), f"give {least} or more")


def above(limit: float) -> Rule:
    """A rule: the value is larger than ``limit``."""
    return Rule(lambda value: bool(value > limit), f"give a number above {limit}")


def below(limit: float) -> Rule:
    """A rule: the value is smaller than ``limit``."""
    return Rule(lambda value: bool(value < limit), f"give a number below {limit}")


def at_most(most: float) -> Rule:
    """A rule: the value is no larger than ``most``."""
    return Rule(lambda value: bool(value <= most), f"give {most} or less")


# A pair of numbers is written 360x480, 360,480 or 360 480; 512 means 512x512.
LONGEST_SIDE = 2**16
_SIZE = re.compile(r"\s*(\d+)(?:\s*[x, ]\s*(\d+))?\s*")


def _parse_size(text: str) -> tuple[int, int]:
    if not (found := _SIZE.fullmatch(text)):
        raise ValueError("is not HEIGHTxWIDTH in pixels, such as 360x480")
    return _accept_size((int(found[1]), int(found[2] or found[1])))


def _accept_size(value: Any) -> tuple[int, int]:
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        value = (value, value)  # 512 is 512x512, as on a command line
    if isinstance(value, str) or not hasattr(value, "__len__") or len(value) != 2:
        raise ValueError("must be height and width in pixels, such as (360, 480)")
    height, width = (_whole(number) for number in value)
    if min(height, width) < 1:
        raise ValueError("is not HEIGHTxWIDTH in pixels, such as 360x480")
    if max(height, width) > LONGEST_SIDE:
        raise ValueError(f"is more than {LONGEST_SIDE} pixels a side")
    return height, width


def _parse_names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if not names:
        raise ValueError("must be names, separated by commas")
    return names


def _accept_names(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        return _parse_names(value)
    if not isinstance(value, Sequence) or not value or not all(isinstance(name, str) and name for name in value):
        raise ValueError("must be a list of names")
    return tuple(value)


def _parse_triple(text: str) -> tuple[float, float, float]:
    try:
        return _accept_triple([float(number) for number in text.replace(",", " ").split()])
    except ValueError:
        raise ValueError("must be three numbers, such as 0.485,0.456,0.406") from None


def _accept_triple(value: Any) -> tuple[float, float, float]:
    if isinstance(value, str) or not hasattr(value, "__len__") or len(value) != 3:
        raise ValueError("must be three numbers, such as 0.485,0.456,0.406")
    red, green, blue = (_finite(number) for number in value)
    return red, green, blue


def _parse_arguments(text: str) -> dict[str, Any]:
    try:
        return _accept_arguments(json.loads(text))
    except json.JSONDecodeError as error:
        raise ValueError(f'is not JSON ({error}); write for example {{"width": 64}}') from error


def _accept_arguments(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise ValueError('must be a mapping from names to values, such as {"width": 64}')
    try:
        json.dumps(dict(value), allow_nan=False)  # a model file keeps them so, as JSON that others read
    except (TypeError, ValueError) as error:
        raise ValueError(f"cannot be kept in a model file: {error}") from None
    return dict(value)


def _parse_budget(text: str) -> int | float:
    text = text.strip()
    try:
        if text.endswith("%"):
            return _accept_budget(float(text[:-1]) / 100)
        return _accept_budget(int(text) if re.fullmatch(r"[+-]?\d+", text) else float(text))
    except ValueError as error:
        message = (
            str(error) if str(error).startswith("must be") else "is neither a count (20000) nor a fraction (0.1 or 10%)"
        )
        raise ValueError(message) from None


def _accept_budget(value: Any) -> int | float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise ValueError("is neither a count (20000) nor a fraction (0.1)")
    budget = int(value) if isinstance(value, numbers.Integral) else float(value)
    if not (budget >= 1 if isinstance(budget, int) else 0 < budget <= 1):
        raise ValueError("must be a count of at least 1, or a fraction above 0 and at most 1")
    return budget


def _parse_files(texts: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in texts:
        name, separator, path = text.partition("=")
        # An existing file whose own name contains "=" is taken literally.
        name, path = (text, text) if not separator or os.path.exists(text) else (name, path)  # noqa: PTH110
        if name in found:
            raise ValueError(f"names {name!r} twice")
        found[name] = path
    return _accept_files(found)


def _accept_files(value: Any) -> dict[str, str]:
    if isinstance(value, str | os.PathLike):
        value = {os.fspath(value): value}
    elif isinstance(value, Sequence):
        return _parse_files([_text(path) for path in value])
    if not isinstance(value, Mapping) or not value:
        raise ValueError("must name at least one file")
    files = {str(name): _text(path) for name, path in value.items()}
    for path in files.values():
        if not LOCAL.holds(path):
            raise ValueError(f"must be local: {LOCAL.demand}")
    return files


def _spell_files(files: Mapping[str, str]) -> list[str]:
    return [path if name == path else f"{name}={path}" for name, path in files.items()]


def _parse_groups(texts: Sequence[str]) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for text in texts:
        name, separator, members = text.partition("=")
        if not separator or not name.strip():
            raise ValueError("is not NAME=MEMBER,..., such as vehicle=car,bus")
        if name.strip() in found:
            raise ValueError(f"names {name.strip()!r} twice")
        found[name.strip()] = _parse_names(members)
    return found


def _accept_groups(value: Any) -> dict[str, tuple[str, ...]]:
    if not isinstance(value, Mapping):
        raise ValueError("must be a mapping from names to their members, such as {vehicle: [car, bus]}")
    return {str(name): _accept_labels(members) for name, members in value.items()}


def _accept_labels(value: Any) -> tuple[str, ...]:
    if isinstance(value, int) and not isinstance(value, bool):
        return (str(value),)
    if isinstance(value, Sequence) and not isinstance(value, str):
        value = tuple(str(item) if type(item) is int else item for item in value)
    return _accept_names(value)


def _parse_ratio(text: str) -> float:
    try:
        return _finite(float(Fraction(text)))
    except (ValueError, ZeroDivisionError):
        raise ValueError("must be a number or a ratio, such as 0.5 or 1/255") from None


def _accept_ratio(value: Any) -> float:
    return _parse_ratio(value) if isinstance(value, str) else _finite(value)


LOCAL = Rule(lambda value: not is_url(value), "only --corpus and --root can be URLs yet: give a local path")
FILE = Rule(lambda value: value != "-", "give the name of a file, because nothing is written to standard output")
Local = Annotated[str, LOCAL, FILE]
"""A local file or folder."""
Count = Annotated[int, at_least(1), at_most(2**31 - 1)]
BatchSize = Annotated[int, at_least(1), at_most(2**16)]
"""Number of images that are worked on together."""
Amount = Annotated[float, at_least(0)]
Whole = Annotated[int, at_least(0)]
Seed = Annotated[int, at_least(0), at_most(2**63 - 1)]
Size = Annotated[tuple[int, int], Form("HEIGHTxWIDTH", _parse_size, _accept_size, lambda size: f"{size[0]}x{size[1]}")]
"""Height and width in pixels."""
NAMES_FORM = Form("NAME,...", _parse_names, _accept_names, ",".join)
Names = Annotated[tuple[str, ...], NAMES_FORM]
Labels = Annotated[tuple[str, ...], Form("NAME,...", _parse_names, _accept_labels, ",".join)]
"""Names or numbers of classes."""
Ratio = Annotated[float, Form("NUMBER|RATIO", _parse_ratio, _accept_ratio, repr)]
Groups = Annotated[
    Mapping[str, tuple[str, ...]],
    Form(
        "NAME=MEMBER,...",
        _parse_groups,
        _accept_groups,
        lambda groups: [f"{name}={','.join(members)}" for name, members in groups.items()],
        several=True,
    ),
]
"""Members by the name of what consists of them."""
Triple = Annotated[
    tuple[float, float, float], Form("R,G,B", _parse_triple, _accept_triple, lambda three: ",".join(map(str, three)))
]
"""One number for red, green and blue."""
Arguments = Annotated[Mapping[str, Any], Form("JSON", _parse_arguments, _accept_arguments, json.dumps)]
"""Keyword arguments of a builder."""
Budget = Annotated[int | float, Form("COUNT|FRACTION", _parse_budget, _accept_budget, str)]
"""A number of images: an int is a count, a float is a fraction of the scored images."""
NamedFiles = Annotated[
    Mapping[str, str],
    Form("[NAME=]FILE", _parse_files, _accept_files, _spell_files, several=True),
]
"""Files by name; a file without a name is named by its path."""


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise ValueError("must be a whole number")
    return int(value)


def _finite(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise ValueError("must be a number")
    if not math.isfinite(value):
        raise ValueError("must be a finite number")
    return float(value)


def _truth(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("must be true or false")
    return value


def _text(value: Any) -> str:
    text = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(text, str):
        raise ValueError("must be text")
    return text


PLAIN: Mapping[Any, Callable[[Any], Any]] = {int: _whole, float: _finite, bool: _truth, str: _text}
"""Types that need no form, with the function that accepts a value of each."""


def _parse_whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError("must be a whole number") from None


def _parse_number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError("must be a number") from None


WRITTEN: Mapping[Any, tuple[str, Callable[[str], Any]]] = {
    int: ("INTEGER", _parse_whole),
    float: ("NUMBER", _parse_number),
    str: ("TEXT", str),
}
"""The written form of plain types: the metavar, and the function that converts the text of a command line."""


def one_of(value: Any, choices: Sequence[str]) -> Any:
    """Return the value if it is one of the choices.

    Raises:
        ValueError: it is not; the message lists the choices and suggests the most similar one.
    """
    if value in choices:
        return value
    guess = difflib.get_close_matches(str(value).lower(), choices, n=1)
    meant = f"did you mean {guess[0]!r}? " if guess else ""
    raise ValueError(f"is not one of {', '.join(choices)}" + (f"; {meant.strip()}" if meant else ""))


def refuse(field: str, value: Any, reason: str) -> SettingsError:
    """The error for a setting that cannot be used: ``budget is 0; give ...`` or ``budget 'x' is neither ...``."""
    shown = repr(value) if isinstance(value, str) else str(value)
    return SettingsError(f"{field} {shown} {reason}", field=field)
