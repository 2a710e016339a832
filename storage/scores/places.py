"""The places that a store remembers: those of its corpus and of its teacher.

A relative path of the working folder is kept as a path from the folder that holds the store, and begins with ``./``.
So the store is understood from any folder, and can be moved together with what it names. An absolute path, a URL and
the name of official weights are kept as they are. So are the relative paths of stores from before this rule; they begin
at the working folder.
"""

import os
from pathlib import Path

from storage.files.places import is_url

FROM_THE_STORE = "./"


def kept(path: str, store: Path) -> str:
    """A path of the working folder, in the form in which a store keeps it."""
    if os.path.isabs(path) or path.startswith("~") or is_url(path) or not os.path.exists(path):  # noqa: PTH110, PTH117
        return path
    return FROM_THE_STORE + os.path.relpath(path, store.parent)


def found(path: str, store: Path) -> str:
    """The path of the working folder for a path that a store keeps."""
    if not path.startswith(FROM_THE_STORE):
        return path
    return os.path.normpath(store.parent / path)
