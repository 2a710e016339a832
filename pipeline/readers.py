"""Where the bytes of a corpus lie: in a local folder or behind fsspec; in files of their own, tars or Parquet files.

:class:`LocalFiles` and :class:`RemoteFiles` offer the same operations, so that listing and reading a corpus are written
once. Local files stay clear of fsspec: images in tars are read by ``os.pread`` on cached descriptors, without a lock.
"""

import logging
import os
import tarfile
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from storage.errors import CorpusError, ImageError

logger = logging.getLogger(__name__)

IMAGE_EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".jp2", ".avif"),
    *(".ppm", ".pgm", ".pbm", ".pnm"),
)
"""Files and tar members with these extensions, in any case, are images."""

MAX_OPEN_FILES = 64
"""Tars kept open at once; an ImageNet of 1,000 tars must fit under the usual limit of 1,024 descriptors."""

COMPRESSED = "compressed, so that no image in it can be reached alone: unpack it, and give the .tar or the folder"

READAHEAD = 8 * 2**20
"""Bytes fetched at once from a remote file that is being read in order."""

PARQUET_CACHE_BYTES = 256 * 2**20
"""Row groups kept in memory by a reader; the one that was read last is kept whatever its size."""

_IMAGE_COLUMNS = ("image", "bytes", "jpg", "jpeg", "png", "webp", "img")
_KEY_COLUMNS = ("key", "__key__", "path", "id", "file_name")
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


def tar_images(files: Files, path: str) -> Iterator[tuple[str, int, int]]:
    """Yield (member, offset of its data, bytes) of each whole image; only headers are read."""
    with files.open(path) as stream:
        end = stream.seek(0, os.SEEK_END)
        stream.seek(0)
        magic = stream.read(6)
        stream.seek(0)
        try:
            # Tars are written with UTF-8 names everywhere today; the locale of this machine must not change the keys.
            tar = tarfile.TarFile(fileobj=stream, encoding="utf-8", errors="surrogateescape")
        except (tarfile.TarError, ValueError) as error:
            if magic.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")):
                raise CorpusError(f"{path} is {COMPRESSED}") from None
            if end < tarfile.BLOCKSIZE:
                logger.warning("%s is cut off before its first member (%d bytes)", path, end)
                return
            raise CorpusError(f"{path} is no tar ({error}); fetch it again or leave it out") from None
        position = 0
        while True:
            try:
                member = tar.next()
            except (tarfile.TarError, ValueError, OverflowError, RecursionError) as error:
                logger.warning(
                    "%s is damaged or cut off after byte %d (%s); what comes before is used", path, position, error
                )
                return
            if member is None:
                break
            # tarfile keeps every header that it has seen: a gigabyte per million images.
            tar.members.clear()  # type: ignore[attr-defined]
            # A sparse member's bytes do not lie in one piece, and its size is not what they take.
            is_plain = member.isreg() and not member.issparse()
            stop = member.offset_data + (member.size if is_plain else 0)
            if not position < member.offset_data <= stop <= end:
                logger.warning("%s is cut off in member %s; what comes before is used", path, member.name)
                return
            position = member.offset_data
            if is_plain and is_image(member.name):
                yield member.name, member.offset_data, member.size
        stream.seek(tar.offset)
        if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            logger.warning("%s does not end as a tar does: it is damaged or cut off after byte %d", path, tar.offset)


@contextmanager
def parquet_file(files: Files, path: str) -> Iterator[Any]:
    """Open a Parquet file as a pyarrow.parquet.ParquetFile.

    Raises:
        CorpusError: when it is not a whole one.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    with files.open(path) as stream:
        try:
            yield pq.ParquetFile(stream)
        except pa.ArrowException as error:
            raise CorpusError(f"{path} is no whole Parquet file ({error}); fetch it again or leave it out") from error


def image_column(schema: Any, path: str) -> str:
    """Return the column of image bytes: ``image``, or ``image.bytes`` where Hugging Face datasets wrote the file.

    Raises:
        CorpusError: when there is none, or several and none has a usual name.
    """
    import pyarrow as pa

    def leaf(field: Any) -> str | None:
        if pa.types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0:
            return f"{field.name}.bytes"
        is_bytes = pa.types.is_binary(field.type) or pa.types.is_large_binary(field.type)
        return str(field.name) if is_bytes else None

    columns = {field.name.lower(): column for field in schema if (column := leaf(field))}
    found = [columns[name] for name in _IMAGE_COLUMNS if name in columns] or list(columns.values())[:2]
    if len(found) == 1 or (found and found[0] in map(columns.get, _IMAGE_COLUMNS)):
        return found[0]
    usual = ", ".join(_IMAGE_COLUMNS)
    raise CorpusError(f"{path} has no column of image bytes ({usual}); its columns are {', '.join(schema.names)}")


def parquet_keys(file: Any, path: str) -> list[str] | None:
    """Return the key column of a Parquet file, or None where it has none, or one with gaps."""
    import pyarrow as pa

    schema, images = file.schema_arrow, image_column(file.schema_arrow, path).removesuffix(".bytes")
    if name := next((name for name in _KEY_COLUMNS if name in schema.names and name != images), None):
        column = file.read(columns=[name]).column(0)
    elif pa.types.is_struct(schema.field(images).type) and schema.field(images).type.get_field_index("path") >= 0:
        column = _flat(file.read(columns=[f"{images}.path"]).column(0))
    else:
        return None
    kind = column.type
    usable = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_integer(kind)
    return list(map(str, column.to_pylist())) if usable and not column.null_count else None


class ParquetImages:
    """Images in Parquet files, by row. The row groups read last are kept, so that reading in order reads each once."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._lock = threading.Lock()
        self._layouts: dict[str, tuple[str, list[int]]] = {}  # path -> image column, where row groups start and end
        self._groups: OrderedDict[tuple[str, int], Any] = OrderedDict()

    def read(self, path: str, row: int) -> bytes:
        """Return the image in a row of a file.

        Raises:
            ImageError: when the row has no image, or is not there.
        """
        with self._lock:
            _, starts = self._layout(path)
            if row >= starts[-1]:
                raise ImageError(f"the file has {starts[-1]} rows and no row {row}: replaced since it was listed")
            group = bisect_right(starts, row) - 1
            column = self._group(path, group)
        data = column[row - starts[group]].as_py()
        if data is None:
            raise ImageError("the row has no image bytes")
        return bytes(data)

    def close(self) -> None:
        """Drop what is kept."""
        self._layouts.clear()
        self._groups.clear()

    def _layout(self, path: str) -> tuple[str, list[int]]:
        if path not in self._layouts:
            with parquet_file(self._files, path) as file:
                counts = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
                self._layouts[path] = image_column(file.schema_arrow, path), [0, *accumulate(counts)]
        return self._layouts[path]

    def _group(self, path: str, group: int) -> Any:
        if (path, group) not in self._groups:
            with parquet_file(self._files, path) as file:
                self._groups[path, group] = _read_group(file, group, self._layout(path)[0])
            while len(self._groups) > 1 and sum(kept.nbytes for kept in self._groups.values()) > PARQUET_CACHE_BYTES:
                self._groups.popitem(last=False)
        self._groups.move_to_end((path, group))
        return self._groups[path, group]


def _read_group(file: Any, group: int, column: str) -> Any:
    import pyarrow as pa

    try:
        return _flat(file.read_row_group(group, columns=[column]).column(0))
    except (pa.ArrowException, OSError) as error:
        if getattr(error, "errno", None) is not None:
            raise
        # Without an errno it is what Arrow says of damaged data, and the other row groups may be whole.
        raise ImageError(f"row group {group} of the Parquet file is damaged") from error


def _flat(column: Any) -> Any:
    """Return the only field of a struct column, and any other column as it is."""
    import pyarrow as pa
    import pyarrow.compute as pc

    return pc.struct_field(column, [0]) if pa.types.is_struct(column.type) else column
