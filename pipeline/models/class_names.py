"""Class names of labelled data, from ``classes.txt`` or from a list on the command line, and of models."""

import dataclasses
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from storage.commandline.values import NAMES_FORM
from storage.errors import DataError, SettingsError

logger = logging.getLogger(__name__)
VOID = 255
"""Label of pixels that belong to no class."""


def find_class_names(root: str | Path) -> tuple[str, ...] | None:
    """The class names in ``classes.txt`` of the folder or its parent; None if neither has this file."""
    for folder in (Path(root), Path(root).parent):
        if (folder / "classes.txt").is_file():
            return read_class_names(str(folder / "classes.txt"))
    return None


def read_class_names(text: str) -> tuple[str, ...]:
    """Parse ``road,car,tree``, or a file with a name or ``id name`` on each line; id 255 is void and left out.

    Raises:
        SettingsError: the text is neither, the ids do not count up from 0, or two classes have one name.
    """
    return _distinct(_read_names(text), text)


def _distinct(names: tuple[str, ...], origin: object) -> tuple[str, ...]:
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise SettingsError(
            f"class_names {origin!r} has {twice[0]!r} twice; give every class its own name", field="class_names"
        )
    return names


def _read_names(text: str) -> tuple[str, ...]:
    if not Path(text).is_file():
        names = tuple(name.strip() for name in text.split(","))
        if len(names) < 2 or not all(names):
            raise SettingsError(
                f"class_names {text!r} is neither a file nor names separated by commas", field="class_names"
            )
        return names
    lines = Path(text).read_text(encoding="utf-8-sig").splitlines()
    rows = [line.split(maxsplit=1) for line in lines if line.strip()]
    if not all(row[0].isdigit() and len(row) == 2 for row in rows):
        return tuple(" ".join(row) for row in rows)
    ids = [int(row[0]) for row in rows if int(row[0]) != VOID]
    if ids != list(range(len(ids))):
        raise SettingsError(f"{text}: class ids must count up from 0, but they are {ids}; correct the file")
    return tuple(row[1] for row in rows if int(row[0]) != VOID)


def _accept(value: Any) -> tuple[str, ...]:
    if isinstance(value, str | os.PathLike):
        return read_class_names(os.fspath(value))
    names: tuple[str, ...] = NAMES_FORM.accept(value)
    return _distinct(names, value)


ClassNames = Annotated[
    tuple[str, ...],
    dataclasses.replace(NAMES_FORM, metavar="NAME,...|FILE", parse=read_class_names, accept=_accept),
]
"""A setting of class names: the names, or a file of them."""


def order_of(names: Sequence[str], wanted: Sequence[str], *, whose: str, model: str) -> tuple[int, ...] | None:
    """The place in ``wanted`` of each of ``names``, where both are the same words in another order; else None.

    Words are compared without case, spaces, hyphens and underscores. Other names at the same places stay matched by
    their places, which is said, unless the model's are ``class 0``, ``class 1``, ...

    Raises:
        DataError: the numbers of classes differ, or a name is at another place and the words are not the same.
    """
    if len(names) != len(wanted):
        shown = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
        raise DataError(
            f"{model} has {len(wanted)} classes, but {whose} has {len(names)} ({shown}); use a model with the same "
            f"classes, and write void as '{VOID} name'"
        )
    here, there = ([re.sub(r"[\s_-]", "", name).casefold() for name in each] for each in (names, wanted))
    if here == there:
        return None
    if sorted(here) == sorted(there) and len(set(here)) == len(here):
        return tuple(there.index(word) for word in here)
    for place, word in enumerate(here):
        if word in there and there[place] != word:
            raise DataError(
                f"class {names[place]!r} is number {place} of {whose}, but number {there.index(word)} of {model}, and "
                "other names differ; correct the names, or the labels"
            )
    if not all(re.fullmatch(r"class\d+", word) for word in there):
        place = next(place for place, word in enumerate(here) if word != there[place])
        logger.warning(
            "%s calls class %d %r, and %s calls it %r; classes are matched by their numbers",
            *(whose, place, names[place], model, wanted[place]),
        )
    return None
