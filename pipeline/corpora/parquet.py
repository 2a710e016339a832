"""A corpus of Parquet files with image bytes.

Parquet keeps rows in groups that can only be read whole, so a few groups are kept in memory.
"""

import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

import numpy as np

from pipeline.corpora.corpus import Corpus
from storage.errors import CorpusError, ImageError
from storage.files.places import Files
from storage.keys import path_to_key
from storage.manifest import Manifest

PARQUET_CACHE_BYTES = 256 * 2**20
"""Row groups that a reader keeps in memory. The one read last is kept whatever its size."""


_IMAGE_COLUMNS = ("image", "bytes", "jpg", "jpeg", "png", "webp", "img")


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
            raise CorpusError(
                f"{path} is not a complete Parquet file ({error}); fetch it again or leave it out"
            ) from error


def image_column(schema: Any, path: str) -> str:
    """Return the column of image bytes: ``image``, or ``image.bytes`` if Hugging Face datasets wrote the file.

    Raises:
        CorpusError: when there is no such column, or several and none has a usual name.
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
    """Return the key column of a Parquet file, or None if it has no such column or one with gaps."""
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
    """Images in Parquet files, by row. The last row groups are kept, so that reading in order reads each group once."""

    def __init__(self, files: Files) -> None:
        self._files = files
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
        data = column[offset - starts[group]].as_py()
        if data is None:
            raise ImageError("the row has no image bytes")
        return bytes(data)

    def close(self) -> None:
        """Release the row groups that are kept."""
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
        # Without an errno the error is Arrow's about damaged data, and the other row groups may be intact.
        raise ImageError(f"row group {group} of the Parquet file is damaged") from error


def _flat(column: Any) -> Any:
    """Return the only field of a struct column, and any other column unchanged."""
    import pyarrow as pa
    import pyarrow.compute as pc

    return pc.struct_field(column, [0]) if pa.types.is_struct(column.type) else column


def list_parquet(corpus: Corpus, files: Files, paths: list[str]) -> Manifest:
    """List the rows of Parquet files, in the order of the files.

    Raises:
        CorpusError: the files have no rows, or one of them cannot be read.
    """
    keys, counts, all_have_keys = list[str](), list[int](), True
    for path in paths:
        with parquet_file(files, path) as file:
            own_keys = parquet_keys(file, path)
            counts.append(file.metadata.num_rows)
        all_have_keys = all_have_keys and own_keys is not None
        keys += own_keys or ()
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
