"""Files below an fsspec URL."""

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Any, BinaryIO, cast

from storage.errors import CorpusError
from storage.files.places import Entry, check_size

READAHEAD = 8 * 2**20
"""Bytes per request when a remote file is read in order."""

_NEAR = 2**20  # a read that starts at most this far behind the previous one continues it
_WINDOWS = 8  # number of remote files whose last fetch is kept
_WHOLE = 64 * 2**20
"""Files of at most this many bytes are kept whole where their server knows no ranges."""


class _Window:
    """The part of a remote file that was fetched last; ``data`` is empty if nothing is kept."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.start, self.end, self.data = 0, -_NEAR - 1, b""
        self.length: int | None = None
        """Bytes of the file; None until they are needed, or where the server does not say."""


class RemoteFiles:
    """:class:`~storage.files.places.Files` below a URL.

    Connections do not survive a fork, so each process needs its own object.
    """

    def __init__(self, root: str) -> None:
        self._fs, path = _filesystem(root)
        self._root = path.rstrip("/")
        self._windows: OrderedDict[str, _Window] = OrderedDict()
        self._lock = threading.Lock()

    def _path(self, path: str) -> str:
        # The root of an archive is empty, and its members have no leading slash.
        return f"{self._root}/{path}" if self._root and path else path or self._root

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
            # An object store lists the folder itself if there is an empty object of that name.
            if info["name"].strip("/") != here.strip("/"):
                is_folder = info["type"] == "directory"
                found.append(Entry(name, is_folder, -1 if is_folder or info["size"] is None else int(info["size"])))
        self._fs.invalidate_cache()  # fsspec would keep a dictionary for each of a million objects
        return found

    def identity(self, folder: str) -> Hashable:
        """Return what tells a folder from all others: its path, since there are no links."""
        return folder

    def open(self, path: str) -> BinaryIO:
        """Open a file for reading and seeking."""
        return cast(BinaryIO, self._fs.open(self._path(path), "rb"))

    def read_file(self, path: str, most: int | None = None) -> bytes:
        """Return a whole file; raise a :class:`~storage.errors.ImageError` for more than ``most`` bytes."""
        data = bytes(self._fs.cat_file(self._path(path)))
        check_size(len(data), most)
        return data

    def read_range(self, path: str, offset: int, size: int) -> bytes:
        """Return ``size`` bytes from ``offset``, or fewer where the file ends.

        Reads in order are served from blocks of :data:`READAHEAD` bytes, one request for many images; a read elsewhere
        fetches no more than it asks for.
        """
        window = self._window(path)
        with window.lock:
            if window.start <= offset <= window.end + _NEAR:
                if offset + size > window.start + len(window.data) or not window.data:
                    window.start, window.data = self._fetch(window, path, offset, max(size, READAHEAD))
                    window.end = window.start + len(window.data)
                return window.data[offset - window.start : offset - window.start + size]
            # Threads overtake each other, so a read just before the window must not discard it.
            if not 0 < window.start - offset <= _NEAR:
                window.start, window.end, window.data = offset, offset + size, b""
            start, data = self._fetch(window, path, offset, size)
            if start < offset:  # the whole file came
                window.start, window.end, window.data = start, start + len(data), data
        return data[offset - start : offset - start + size]

    def close(self) -> None:
        """Drop the data that was read ahead."""
        self._windows.clear()

    def _window(self, path: str) -> _Window:
        with self._lock:
            window = self._windows.setdefault(path, _Window())
            self._windows.move_to_end(path)
            if len(self._windows) > _WINDOWS:
                self._windows.popitem(last=False)
            return window

    def _fetch(self, window: _Window, path: str, offset: int, size: int) -> tuple[int, bytes]:
        """Return the bytes from ``offset``, as many as ``size`` or the file's end allow, and where they start.

        A server may send the whole file instead, or less than it was asked for.
        """
        data = self._answer(path, offset, offset + size)
        if offset == 0:
            return 0, data[:size]
        if window.length is None:
            window.length = self._length(path)
        wanted = size if window.length is None else max(0, min(size, window.length - offset))
        while 0 < len(data) < wanted and (more := self._answer(path, offset + len(data), offset + wanted)):
            if len(data) + len(more) > wanted:
                data = more  # the whole file
                break
            data += more
        if len(data) <= wanted:
            return offset, data
        if len(data) > _WHOLE or len(data) != (window.length or len(data)):
            raise CorpusError(
                f"the server of {path} answers a request for {wanted:,} of its bytes with {len(data):,}: it knows no "
                "ranges; download the file, and give its local place"
            )
        return 0, data

    def _answer(self, path: str, start: int, end: int) -> bytes:
        return bytes(self._fs.cat_file(self._path(path), start=start, end=end))

    def _length(self, path: str) -> int | None:
        size = self._fs.info(self._path(path)).get("size")
        return None if size is None else int(size)


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
