"""Files below a local folder, without fsspec. Ranges are read by ``os.pread`` on cached descriptors, without a lock."""

import os
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from storage.files.places import Entry

MAX_OPEN_FILES = 64
"""Tars kept open at once; an ImageNet of 1,000 tars must fit under the usual limit of 1,024 descriptors."""


class _Descriptor:
    """An open file that is closed when the last thread drops it, so that a cache may forget it at any moment."""

    def __init__(self, path: str) -> None:
        self.number = -1
        self.number = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))

    def __del__(self) -> None:
        if self.number >= 0:
            os.close(self.number)


def _entry(entry: os.DirEntry[str]) -> Entry:
    is_link = entry.is_symlink()
    if is_link and not os.path.exists(entry.path):  # noqa: PTH110 (a Path raises for some links)
        return Entry(entry.name, False, -1, "links whose target does not exist")
    if entry.is_dir():
        # Links are followed, but not to a folder that encloses them: that would never end.
        if is_link and Path(entry.path).parent.resolve().is_relative_to(Path(entry.path).resolve()):
            return Entry(entry.name, True, -1, "links to a folder that encloses them")
        return Entry(entry.name, True, -1)
    if entry.is_file():
        return Entry(entry.name, False, entry.stat().st_size)
    return Entry(entry.name, False, -1, "pipes, sockets or devices")


class LocalFiles:
    """:class:`~storage.files.places.Files` below a local folder. Errors other than FileNotFoundError are OSErrors."""

    def __init__(self, root: str) -> None:
        self._root = str(Path(root).expanduser()) if root else "."
        # Two threads may miss at once and open a file twice. That does no harm: the descriptor that is dropped closes.
        self._descriptor = lru_cache(maxsize=MAX_OPEN_FILES)(_Descriptor)

    def _path(self, path: str) -> str:
        return f"{self._root}/{path}" if path else self._root

    def is_file(self, path: str) -> bool:
        """Tell whether ``path`` is a file."""
        return Path(self._path(path)).is_file()

    def is_folder(self, path: str) -> bool:
        """Tell whether ``path`` is a folder."""
        return Path(self._path(path)).is_dir()

    def entries(self, folder: str) -> list[Entry]:
        """Return what lies in ``folder``, unsorted."""
        with os.scandir(self._path(folder)) as entries:
            return [_entry(entry) for entry in entries]

    def open(self, path: str) -> BinaryIO:
        """Open a file for reading and seeking."""
        return Path(self._path(path)).open("rb")

    def read_file(self, path: str) -> bytes:
        """Return a whole file."""
        with open(self._path(path), "rb", buffering=0) as file:  # noqa: PTH123 (a Path costs as much as the opening)
            return file.read()

    def read_range(self, path: str, offset: int, size: int) -> bytes:
        """Return ``size`` bytes from ``offset``, or fewer where the file ends."""
        # The name keeps the descriptor open, even if another thread's miss drops it from the cache meanwhile.
        descriptor = self._descriptor(self._path(path))
        return os.pread(descriptor.number, size, offset)

    def close(self) -> None:
        """Close the cached descriptors."""
        self._descriptor.cache_clear()
