"""Where the files of a corpus lie: in a local folder or behind fsspec.

:class:`LocalFiles` and :class:`RemoteFiles` offer the same operations, so that listing and reading a corpus are written
once. Local files stay clear of fsspec: images in tars are read by ``os.pread`` on cached descriptors, without a lock.
"""

import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from storage.errors import CorpusError

logger = logging.getLogger(__name__)

IMAGE_EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".jp2", ".avif"),
    *(".ppm", ".pgm", ".pbm", ".pnm"),
)
"""Files and tar members with these extensions, in any case, are images."""

MAX_OPEN_FILES = 64
"""Tars kept open at once; an ImageNet of 1,000 tars must fit under the usual limit of 1,024 descriptors."""

READAHEAD = 8 * 2**20
"""Bytes fetched at once from a remote file that is being read in order."""

_NEAR = 2**20  # a read that starts at most this far behind the previous one continues it
_WINDOWS = 8  # remote files whose last fetch is kept


def is_hidden(name: str) -> bool:
    """Tell whether a file or folder name is one that no user put there as an image (``._x.jpg``, ``__MACOSX``)."""
    return name == "__MACOSX" or (name.startswith(".") and name not in (".", ".."))


def is_image(path: str) -> bool:
    """Tell by its relative posix path whether a file is an image: a known extension and no hidden part."""
    return path.lower().endswith(IMAGE_EXTENSIONS) and not any(map(is_hidden, path.split("/")))


def is_url(path: str) -> bool:
    """Tell whether a path is for fsspec."""
    return "://" in path or "::" in path


def join(root: str, path: str) -> str:
    """Join a root and a posix path below it; ``""`` and ``.`` as root stand for the current folder."""
    if not path or root in ("", "."):
        return path or root
    return f"{root}{path}" if root.endswith("/") else f"{root}/{path}"


class Entry(NamedTuple):
    """One entry of a folder; ``size`` in bytes, -1 where unknown (folders, local files that are no images)."""

    name: str
    is_folder: bool
    size: int


class _Descriptor:
    """An open file that is closed when the last thread drops it, so that a cache may forget it at any moment."""

    def __init__(self, path: str) -> None:
        self.number = -1
        self.number = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))

    def __del__(self) -> None:
        if self.number >= 0:
            os.close(self.number)


class LocalFiles:
    """Files below a local folder, addressed by posix paths relative to it (``""`` is the folder itself).

    Where a file is not there, the methods raise FileNotFoundError, and other OSErrors as they come.
    """

    def __init__(self, root: str) -> None:
        self._root = str(Path(root).expanduser()) if root else "."
        # Two threads may miss at once and open a file twice: harmless, the loser's descriptor closes itself.
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
        found, broken = list[Entry](), 0
        with os.scandir(self._path(folder)) as entries:
            for entry in entries:
                is_link = entry.is_symlink()
                if is_link and not Path(entry.path).exists():  # first: the next test raises for a link to itself
                    broken += 1
                elif entry.is_dir():
                    # Links are followed, but not to a folder that encloses them: that would never end.
                    if not (is_link and Path(entry.path).parent.resolve().is_relative_to(Path(entry.path).resolve())):
                        found.append(Entry(entry.name, True, -1))
                elif entry.is_file():
                    found.append(Entry(entry.name, False, entry.stat().st_size if is_image(entry.name) else -1))
        if broken:
            logger.warning("%s: %d links whose target is missing are left out", self._path(folder), broken)
        return found

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


class _Window:
    """The part of a remote file that was fetched last; ``data`` is empty while or unless it is kept."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.start, self.end, self.data = 0, -_NEAR - 1, b""


class RemoteFiles:
    """Files below an fsspec URL, like :class:`LocalFiles`. Each process needs its own: connections survive no fork."""

    def __init__(self, root: str) -> None:
        self._fs, path = _filesystem(root)
        self._root = path.rstrip("/")
        self._windows: OrderedDict[str, _Window] = OrderedDict()
        self._lock = threading.Lock()

    def _path(self, path: str) -> str:
        return f"{self._root}/{path}" if path else self._root

    def _is(self, kind: str, path: str) -> bool:
        try:
            return bool(self._fs.info(self._path(path))["type"] == kind)
        except FileNotFoundError:
            return False

    def is_file(self, path: str) -> bool:
        """Tell whether ``path`` is a file."""
        return self._is("file", path)

    def is_folder(self, path: str) -> bool:
        """Tell whether ``path`` is a folder."""
        return self._is("directory", path)

    def entries(self, folder: str) -> list[Entry]:
        """Return what lies in ``folder``, unsorted."""
        here = self._path(folder)
        found = []
        for info in self._fs.ls(here, detail=True):
            name = info["name"].rstrip("/").rpartition("/")[2]
            # Object stores list the folder itself where somebody made an empty object of its name.
            if info["name"].strip("/") != here.strip("/"):
                is_folder = info["type"] == "directory"
                found.append(Entry(name, is_folder, -1 if is_folder or info["size"] is None else int(info["size"])))
        self._fs.invalidate_cache()  # fsspec would keep a dictionary for each of a million objects
        return found

    def open(self, path: str) -> BinaryIO:
        """Open a file for reading and seeking."""
        return cast(BinaryIO, self._fs.open(self._path(path), "rb"))

    def read_file(self, path: str) -> bytes:
        """Return a whole file."""
        return bytes(self._fs.cat_file(self._path(path)))

    def read_range(self, path: str, offset: int, size: int) -> bytes:
        """Return ``size`` bytes from ``offset``, or fewer where the file ends.

        Reads in order are served from blocks of :data:`READAHEAD` bytes, one request for many images; a read elsewhere
        fetches no more than it asks for.
        """
        window = self._window(path)
        with window.lock:
            if window.start <= offset <= window.end + _NEAR:
                if offset + size > window.start + len(window.data) or not window.data:
                    window.data = self._fetch(path, offset, max(size, READAHEAD))
                    window.start, window.end = offset, offset + len(window.data)
                return window.data[offset - window.start : offset - window.start + size]
            # Threads overtake each other: a read just before the window is no reason to give it up.
            if not 0 < window.start - offset <= _NEAR:
                window.start, window.end, window.data = offset, offset + size, b""
        return self._fetch(path, offset, size)

    def close(self) -> None:
        """Forget what was read ahead."""
        self._windows.clear()

    def _window(self, path: str) -> _Window:
        with self._lock:
            window = self._windows.setdefault(path, _Window())
            self._windows.move_to_end(path)
            if len(self._windows) > _WINDOWS:
                self._windows.popitem(last=False)
            return window

    def _fetch(self, path: str, offset: int, size: int) -> bytes:
        return bytes(self._fs.cat_file(self._path(path), start=offset, end=offset + size))


Files = LocalFiles | RemoteFiles


def open_files(root: str) -> Files:
    """Return the files below a local folder or fsspec URL.

    Raises:
        CorpusError: when the protocol is unknown, or the package that serves it is not installed.
    """
    for prefix in ("file://", "local://"):
        root = root.removeprefix(prefix)
    return RemoteFiles(root) if is_url(root) else LocalFiles(root)


def _filesystem(url: str) -> tuple[Any, str]:
    import fsspec
    from fsspec.registry import known_implementations

    protocol = url.partition("::")[0].partition("://")[0]
    try:
        filesystem, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        package = str(known_implementations.get(protocol, {}).get("class", "")).partition(".")[0]
        remedy = f"pip install {package}" if package not in ("", "fsspec") else str(error)
        raise CorpusError(f"{url} needs a package that is not installed: {remedy}") from error
    except ValueError as error:
        raise CorpusError(f"cannot open {url}: {error}; give a local path, or a URL that fsspec knows") from error
    return filesystem, path


def walk_images(files: Files, folder: str = "") -> Iterator[tuple[str, int]]:
    """Yield (path, bytes) of every image below ``folder``, in the order of their paths."""
    # "a-b.jpg" sorts before "a/x.jpg": with the slash, the order inside a folder is the order of the whole paths.
    for entry in sorted(files.entries(folder), key=lambda entry: f"{entry.name}/" if entry.is_folder else entry.name):
        if is_hidden(entry.name):
            continue
        path = f"{folder}/{entry.name}" if folder else entry.name
        if entry.is_folder:
            yield from walk_images(files, path)
        elif is_image(entry.name):
            yield path, entry.size
