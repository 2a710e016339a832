"""The images of Parquet files, by row.

A row can only be read by decoding its row group from the beginning. A group is decoded one row at a time, and what was
decoded is kept for a while. So a few bytes of a hostile file that stand for more than any memory holds cost no more
than one row does. What is damaged is met once, and not again for each row behind it.
"""

import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import accumulate
from typing import Any

from pipeline.corpora.faults import FOREIGN_CODE, DamagedError
from pipeline.corpora.parquet import group_rows, image_column, parquet_file
from storage.errors import ImageError
from storage.files.places import Files, check_size

PARQUET_CACHE_BYTES = 256 * 2**20
"""Rows that a reader keeps in memory. The one decoded last is kept whatever its size."""
_OPEN_FILES = 4
"""Files that are kept open; threads that read in order are in one or two."""
_OPEN_GROUPS = 2
"""Row groups of a file that are decoded at once, because threads that read in order overtake each other."""
_MOST_DECODED, _MOST_EXPANSION = 2**30, 1000
"""A row group may decode to the first of bytes, and the second times the bytes of its file."""
_COST = 100
"""Bytes of memory that a row takes beside its image."""

Row = bytes | str | ImageError
"""An image, the path of its file, or why there is none."""


class ParquetImages:
    """Images in Parquet files, by row. The last rows are kept, so that reading in order decodes each group once."""

    def __init__(self, files: Files, column: str = "", most: int | None = None) -> None:
        self._files = files
        self._column = column
        self._most = most
        self._lock = threading.Lock()
        self._rows = _Rows()
        self._opened: OrderedDict[str, _File] = OrderedDict()

    def read(self, name: str, offset: int, size: int) -> bytes:
        """Return the image in row ``offset`` of a file.

        Raises:
            ImageError: when the row has no image or does not exist, or what lies before it in its group is damaged.
        """
        row = self._file(name).row(offset)
        if isinstance(row, ImageError):
            raise row
        return self._at(row) if isinstance(row, str) else row

    def close(self) -> None:
        """Close the files, and release the rows that are kept."""
        with self._lock:
            for file in self._opened.values():
                file.close()
            self._opened.clear()
            self._rows = _Rows()

    def _file(self, name: str) -> "_File":
        with self._lock:
            if name not in self._opened:
                self._opened[name] = _File(self._files, name, self._column, self._most, self._rows)
            self._opened.move_to_end(name)
            for file in list(self._opened.values())[:-_OPEN_FILES]:
                file.close_if_idle()
            return self._opened[name]

    def _at(self, path: str) -> bytes:
        if path.startswith("/") or ".." in path.split("/"):
            raise ImageError(f"the row has no image bytes, and its path {path!r} leads out of the corpus")
        try:
            return self._files.read_file(path, self._most)
        except FileNotFoundError:
            raise ImageError(f"the row has no image bytes, and no file {path!r} lies in the corpus") from None


class _Rows:
    """The rows that were decoded last, as many as memory allows."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[str, int], Row] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, file: str, row: int) -> Row | None:
        with self._lock:
            if (file, row) in self._kept:
                self._kept.move_to_end((file, row))
            return self._kept.get((file, row))

    def put(self, file: str, row: int, content: Row) -> None:
        with self._lock:
            self._bytes += _size(content) - _size(self._kept.pop((file, row), None))
            self._kept[file, row] = content
            while len(self._kept) > 1 and self._bytes > PARQUET_CACHE_BYTES:
                self._bytes -= _size(self._kept.popitem(last=False)[1])


def _size(content: Row | None) -> int:
    return 0 if content is None else _COST + (len(content) if isinstance(content, bytes) else 0)


class _File:
    """One Parquet file, with the row groups that are being decoded."""

    def __init__(self, files: Files, name: str, column: str, most: int | None, rows: _Rows) -> None:
        self._files, self._name, self._wanted, self._most, self._rows = files, name, column, most, rows
        self._lock = threading.Lock()
        self._starts: list[int] = []  # where row groups start and end
        self._groups: OrderedDict[int, _Group] = OrderedDict()
        self._damage: dict[int, int] = {}  # group -> the first of its rows that cannot be decoded

    def row(self, row: int) -> Row:
        """Return a row, and decode and keep those before it in its group."""
        with self._lock:
            if (kept := self._rows.get(self._name, row)) is not None:
                return kept
            if not self._starts:
                with parquet_file(self._files, self._name) as (file, _):
                    self._starts = [0, *accumulate(group_rows(file))]
            if row >= self._starts[-1]:
                return ImageError(
                    f"the file has {self._starts[-1]} rows and no row {row}: replaced since it was listed"
                )
            group = bisect_right(self._starts, row) - 1
            if row >= self._damage.get(group, row + 1):
                return _damaged(group)
            try:
                return self._decode_to(row, group)
            except BaseException:
                self._end()
                raise

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._end()

    def close_if_idle(self) -> None:
        """Close the file unless another thread is reading it."""
        if self._lock.acquire(blocking=False):
            try:
                self._end()
            finally:
                self._lock.release()

    def _end(self) -> None:
        while self._groups:
            self._groups.popitem()[1].close()

    def _group_at(self, row: int, group: int) -> "_Group":
        """Return a group whose next row is ``row`` or one before it."""
        found = self._groups.pop(group, None)
        if found is not None and found.next > row:
            found.close()
            found = None
        if found is None:
            found = _Group(self._files, self._name, self._wanted, self._most, group, self._starts[group])
        self._groups[group] = found
        while len(self._groups) > _OPEN_GROUPS:
            self._groups.popitem(last=False)[1].close()
        return found

    def _decode_to(self, row: int, group: int) -> Row:
        decoded = self._group_at(row, group)
        while True:
            here = decoded.next
            if (content := decoded.decode()) is None:
                self._damage[group] = here
                self._groups.pop(group).close()
                return _damaged(group)
            self._rows.put(self._name, here, content)
            if here == row:
                if decoded.next == self._starts[group + 1]:
                    self._groups.pop(group).close()
                return content


class _Group:
    """A row group that is being decoded."""

    def __init__(self, files: Files, name: str, wanted: str, most: int | None, group: int, start: int) -> None:
        self.next = start
        self._opened = ExitStack()
        with self._opened:
            file, size = self._opened.enter_context(parquet_file(files, name))
            column = image_column(file.schema_arrow, name, wanted)
            self._rows = _read_group(file, group, column, most)
            self._allowed = _MOST_DECODED + _MOST_EXPANSION * size
            self._opened = self._opened.pop_all()

    def decode(self) -> Row | None:
        """Return the next row; None if the group is damaged from there on, or grows without bounds."""
        try:
            with FOREIGN_CODE:
                row = next(self._rows, None)
        except DamagedError as error:
            _raise_of_network(error.__cause__)
            return None
        self._allowed -= _size(row)
        if self._allowed < 0:
            return None
        self.next += 1
        return row

    def close(self) -> None:
        """Close the file."""
        self._opened.close()


def _damaged(group: int) -> ImageError:
    return ImageError(f"row group {group} of the Parquet file is damaged")


def _raise_of_network(cause: BaseException | None) -> None:
    """Raise what comes neither from Arrow nor from the bytes, but from what fetches them."""
    import pyarrow as pa

    if cause is not None and not isinstance(cause, pa.ArrowException | MemoryError | ValueError | OSError):
        raise cause


def _read_group(file: Any, group: int, column: str, most: int | None) -> Iterator[Row]:
    """Yield the rows of a group, each decoded when it is asked for."""
    for batch in file.iter_batches(batch_size=1, row_groups=[group], columns=[column], use_threads=False):
        for value in batch.column(batch.schema.names.index(column)):
            try:
                yield _content(value, most)
            except ImageError as error:
                yield error


def _content(value: Any, most: int | None) -> bytes | str:
    """Return the bytes of an image, or the path of its file.

    Raises:
        ImageError: the row has neither, or has several, or too many bytes.
    """
    import pyarrow as pa

    if isinstance(value, pa.DictionaryScalar) and value.is_valid:
        value = value.value
    if not value.is_valid:
        raise ImageError("the row has no image bytes")
    if isinstance(value, pa.ListScalar | pa.LargeListScalar):
        if len(value) > 1:
            raise ImageError(f"the row holds {len(value)} images, and only rows of one are read")
        if len(value) == 0:
            raise ImageError("the row has no image bytes")
        return _content(value[0], most)
    if not isinstance(value, pa.StructScalar):
        buffer = value.as_buffer()
        check_size(buffer.size, most)
        return bytes(buffer.to_pybytes())
    if value["bytes"].is_valid:
        return _content(value["bytes"], most)
    path = value["path"].as_py() if "path" in value.keys() else None  # noqa: SIM118 (it is no mapping)
    if not path:
        raise ImageError("the row has no image bytes")
    return str(path)
