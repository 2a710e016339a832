"""A corpus of Parquet files with image bytes.

A column of images holds bytes, or structs of bytes and a path as Hugging Face datasets writes them, or lists of one of
these. Where a struct has a path alone, the image is the file at that path, relative to the root of the corpus.
Parquet keeps rows in groups that can only be read whole, so a few groups are kept in memory.
"""

import logging
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

import numpy as np

from pipeline.corpora.corpus import Corpus
from pipeline.corpora.leftout import LeftOut
from storage.errors import CorpusError, ImageError
from storage.files.places import Files
from storage.keys import path_to_key
from storage.manifest import Manifest

logger = logging.getLogger(__name__)

PARQUET_CACHE_BYTES = 256 * 2**20
"""Row groups that a reader keeps in memory. The one read last is kept whatever its size."""


_IMAGE_COLUMNS = ("image", "images", "pixel_values", "bytes", "jpg", "jpeg", "png", "webp", "img", "photo")
"""Usual names of a column of images; the first that a file has is taken."""


_KEY_COLUMNS = ("key", "__key__", "path", "id", "file_name")


@contextmanager
def parquet_file(files: Files, path: str) -> Iterator[Any]:
    """Open a Parquet file as a pyarrow.parquet.ParquetFile.

    Raises:
        CorpusError: when it is not a complete Parquet file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    with files.open(path) as stream:
        try:
            yield pq.ParquetFile(stream)
        except pa.ArrowException as error:
            stream.seek(0)
            pointer = stream.read(23) == b"version https://git-lfs"
            fault = "a Git LFS pointer" if pointer else f"not a complete Parquet file ({error})"
            remedy = "run git lfs pull" if pointer else "fetch it again or leave it out"
            raise CorpusError(f"{path} is {fault}; {remedy}") from error


def holds_images(kind: Any) -> bool:
    """Tell whether a column's type may hold images: bytes, structs with bytes, or lists or dictionaries of these."""
    import pyarrow as pa

    types = pa.types
    if types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and holds_images(kind.field("bytes").type)
    if types.is_list(kind) or types.is_large_list(kind) or types.is_dictionary(kind):
        return holds_images(kind.value_type)
    return bool(types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind))


def image_column(schema: Any, path: str, wanted: str = "") -> str:
    """Return the name of the column of images: ``wanted``, one of a usual name, or the only one of a fitting type.

    Raises:
        CorpusError: when there is no such column, or several and none has a usual name.
    """
    columns = {field.name.lower(): str(field.name) for field in schema if holds_images(field.type)}
    types = ", ".join(f"{field.name} ({str(field.type)[:40]})" for field in schema)
    if wanted:
        if wanted in columns.values():
            return wanted
        what = "is not a column of image bytes" if wanted in schema.names else "is not a column"
        raise CorpusError(f"{wanted!r} {what} of {path}; its columns are {types}")
    usual = [columns[name] for name in _IMAGE_COLUMNS if name in columns]
    if usual or len(columns) == 1:
        return (usual or list(columns.values()))[0]
    if columns:
        names = ", ".join(columns.values())
        raise CorpusError(f"{path} has several columns of image bytes ({names}); name one of them with --column")
    raise CorpusError(
        f"{path} has no column of image bytes; its columns are {types}; write the bytes of the images into it, not "
        "text or addresses"
    )


def parquet_keys(file: Any, images: str) -> list[str] | None:
    """Return the keys of a file whose images are in the column ``images``; None if not every row has one."""
    import pyarrow as pa

    schema = file.schema_arrow
    if name := next((name for name in _KEY_COLUMNS if name in schema.names and name != images), None):
        column = file.read(columns=[name]).column(0)
    elif pa.types.is_struct(schema.field(images).type) and schema.field(images).type.get_field_index("path") >= 0:
        column = _only_field(file.read(columns=[f"{images}.path"]).column(0))
    else:
        return None
    kind = column.type
    usable = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_integer(kind)
    return list(map(str, column.to_pylist())) if usable and not column.null_count else None


class ParquetImages:
    """Images in Parquet files, by row. The last row groups are kept, so that reading in order reads each group once."""

    def __init__(self, files: Files, column: str = "") -> None:
        self._files = files
        self._column = column
        self._lock = threading.Lock()
        self._layouts: dict[str, tuple[str, list[int]]] = {}  # path -> image column, where row groups start and end
        self._groups: OrderedDict[tuple[str, int], Any] = OrderedDict()

    def read(self, name: str, offset: int, size: int) -> bytes:
        """Return the image in row ``offset`` of a file.

        Raises:
            ImageError: when the row has no image or does not exist.
        """
        with self._lock:
            _, starts = self._layout(name)
            if offset >= starts[-1]:
                raise ImageError(f"the file has {starts[-1]} rows and no row {offset}: replaced since it was listed")
            group = bisect_right(starts, offset) - 1
            column = self._group(name, group)
        return self._bytes(column[offset - starts[group]].as_py())

    def _bytes(self, value: Any) -> bytes:
        if isinstance(value, list):
            if len(value) > 1:
                raise ImageError(f"the row holds {len(value)} images, and only rows of one are read")
            value = value[0] if value else None
        path = value.get("path") if isinstance(value, dict) else None
        data = value["bytes"] if isinstance(value, dict) else value
        if data is not None:
            return bytes(data)
        if not path:
            raise ImageError("the row has no image bytes")
        if str(path).startswith("/") or ".." in str(path).split("/"):
            raise ImageError(f"the row has no image bytes, and its path {path!r} leads out of the corpus")
        try:
            return self._files.read_file(str(path))
        except FileNotFoundError:
            raise ImageError(f"the row has no image bytes, and no file {path!r} lies in the corpus") from None

    def close(self) -> None:
        """Release the row groups that are kept."""
        self._layouts.clear()
        self._groups.clear()

    def _layout(self, path: str) -> tuple[str, list[int]]:
        if path not in self._layouts:
            with parquet_file(self._files, path) as file:
                counts = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
                column = image_column(file.schema_arrow, path, self._column)
                self._layouts[path] = column, [0, *accumulate(counts)]
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
        return file.read_row_group(group, columns=[column]).column(0)
    except (pa.ArrowException, OSError) as error:
        if getattr(error, "errno", None) is not None:
            raise
        # Without an errno the error is Arrow's about damaged data, and the other row groups may be intact.
        raise ImageError(f"row group {group} of the Parquet file is damaged") from error


def _only_field(column: Any) -> Any:
    import pyarrow.compute as pc

    return pc.struct_field(column, [0])


def list_parquet(corpus: Corpus, files: Files, paths: list[str], left_out: LeftOut) -> Manifest:
    """List the rows of Parquet files, in the order of the files.

    Raises:
        CorpusError: the files have no rows, or one of them cannot be read.
    """
    keys, counts, all_have_keys = list[str](), list[int](), True
    used = dict[str, list[str]]()
    for path in paths:
        with parquet_file(files, path) as file:
            images = image_column(file.schema_arrow, path, corpus.column)
            used[images] = [field.name for field in file.schema_arrow if holds_images(field.type)]
            own_keys = parquet_keys(file, images)
            counts.append(file.metadata.num_rows)
        if counts[-1] == 0:
            left_out.add("Parquet files without rows", path)
        all_have_keys = all_have_keys and own_keys is not None
        keys += own_keys or ()
    _mention_columns(used, corpus)
    sources = tuple(map(path_to_key, paths))
    if not all_have_keys or len(set(keys)) != len(keys):
        keys = [f"{source}:{row}" for source, count in zip(sources, counts, strict=True) for row in range(count)]
    if not keys:
        raise CorpusError(f"found no image in {len(paths)} Parquet files in {corpus.root}: they have no rows")
    return Manifest(
        keys=keys,
        sources=sources,
        source=np.repeat(np.arange(len(counts), dtype=np.int32), counts),
        offset=np.concatenate([np.arange(count, dtype=np.int64) for count in counts]),
        size=np.full(len(keys), -1, np.int64),
    )


def _mention_columns(used: dict[str, list[str]], corpus: Corpus) -> None:
    """Say which column is read where a file has others of a fitting type. ``used``: those of a file by the one read."""
    for name, columns in used.items():
        if (others := [column for column in columns if column != name]) and not corpus.column:
            logger.info("the images are those of column %s; --column names another (%s)", name, ", ".join(others))
