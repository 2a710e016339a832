"""Class names of labelled data, from ``classes.txt`` or from a list on the command line."""

import dataclasses
import os
from pathlib import Path
from typing import Annotated, Any

from storage.commandline.values import NAMES_FORM
from storage.errors import SettingsError

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
        SettingsError: the text is neither, or the ids do not count up from 0.
    """
    if not Path(text).is_file():
        names = tuple(name.strip() for name in text.split(","))
        if len(names) < 2 or not all(names):
            raise SettingsError(
                f"class_names {text!r} is neither a file nor names separated by commas", field="class_names"
            )
        return names
    rows = [line.split(maxsplit=1) for line in Path(text).read_text().splitlines() if line.strip()]
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
    return names


ClassNames = Annotated[
    tuple[str, ...],
    dataclasses.replace(NAMES_FORM, metavar="NAME,...|FILE", parse=read_class_names, accept=_accept),
]
"""A setting of class names: the names, or a file of them."""
