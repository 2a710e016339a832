"""Files below a local folder, without fsspec. Ranges are read by ``os.pread`` on cached descriptors, without a lock.

Only regular files are opened: a pipe or a device may block for ever, or never end. No read goes beyond the size that
the system states, which is 0 for the files of /proc.
"""

import errno
import os
import stat
from collections.abc import Callable, Hashable
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from storage.files.places import Entry, check_size, is_hidden

MAX_OPEN_FILES = 64
"""Tars kept open at once; an ImageNet of 1,000 tars must fit under the usual limit of 1,024 descriptors."""


class _Descriptor:
    """An open file that is closed when the last thread drops it, so that a cache may forget it at any moment."""

    def __init__(self, path: str) -> None:
        self.number = -1
        self.number = _open(path)

    def __del__(self) -> None:
        if self.number >= 0:
            os.close(self.number)


def _open(path: str) -> int:
    """Open a regular file for reading; the caller closes it. A pipe does not wait for its writer, and is refused."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0))
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "Not a regular file", path)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _read(size: int, read: Callable[[int, int], bytes]) -> bytes:
    """Return ``size`` bytes, or fewer where ``read(done, wanted)`` finds the end; one call may return less."""
    data = read(0, size)
    if len(data) == size or not data:
        return data
    parts, done = [data], len(data)
    while done < size and (data := read(done, size - done)):
        parts.append(data)
        done += len(data)
    return b"".join(parts)


def _entry(entry: os.DirEntry[str], root: Path) -> Entry:
    try:
        is_link = entry.is_symlink()
        if is_link and not os.path.exists(entry.path):  # noqa: PTH110 (a Path raises for some links)
            return Entry(entry.name, False, -1, "links whose target does not exist")
        if entry.is_dir():
            return _linked(entry, root) if is_link else Entry(entry.name, True, -1)
        if entry.is_file():
            return Entry(entry.name, False, entry.stat().st_size)
    except OSError as error:
        return Entry(entry.name, False, -1, f"files that cannot be looked at ({os.strerror(error.errno or 0)})")
    return Entry(entry.name, False, -1, "pipes, sockets or devices")


def _linked(entry: os.DirEntry[str], root: Path) -> Entry:
    """Return the entry of a link to a folder."""
    target = Path(entry.path).resolve()
    if Path(entry.path).parent.resolve().is_relative_to(target):
        return Entry(entry.name, True, -1, "links to a folder that encloses them")
    is_twin = target.is_relative_to(root) and not any(map(is_hidden, target.relative_to(root).parts))
    return Entry(entry.name, True, -1, is_twin=is_twin)


class LocalFiles:
    """:class:`~storage.files.places.Files` below a local folder. Errors other than FileNotFoundError are OSErrors."""

    def __init__(self, root: str) -> None:
        self._root = str(Path(root).expanduser()) if root else "."
        self._real = Path(self._root).resolve()
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
            return [_entry(entry, self._real) for entry in entries]

    def identity(self, folder: str) -> Hashable:
        """Return what tells a folder from all others, by whatever path it is reached."""
        found = Path(self._path(folder)).stat()
        return found.st_dev, found.st_ino

    def open(self, path: str) -> BinaryIO:
        """Open a file for reading and seeking."""
        return os.fdopen(_open(self._path(path)), "rb")

    def read_file(self, path: str, most: int | None = None) -> bytes:
        """Return a whole file; raise a :class:`~storage.errors.ImageError` for more than ``most`` bytes."""
        descriptor = _open(self._path(path))
        try:
            size = os.fstat(descriptor).st_size
            check_size(size, most)
            return _read(size, lambda done, wanted: os.read(descriptor, wanted))
        finally:
            os.close(descriptor)

    def read_range(self, path: str, offset: int, size: int) -> bytes:
        """Return ``size`` bytes from ``offset``, or fewer where the file ends."""
        # The name keeps the descriptor open, even if another thread's miss drops it from the cache meanwhile.
        descriptor = self._descriptor(self._path(path))
        left = os.fstat(descriptor.number).st_size - offset
        return _read(max(0, min(size, left)), lambda done, wanted: os.pread(descriptor.number, wanted, offset + done))

    def close(self) -> None:
        """Close the cached descriptors."""
        self._descriptor.cache_clear()
