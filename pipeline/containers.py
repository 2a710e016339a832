"""Images inside tars and Parquet files: listed by reading headers alone, then read at random.

Parquet keeps rows in groups that can only be read whole, so a few groups are kept in memory.
"""

import logging
import os
import tarfile
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

from pipeline.readers import Files, is_image
from storage.errors import CorpusError, ImageError

logger = logging.getLogger(__name__)

COMPRESSED = "compressed, so that no image in it can be reached alone: unpack it, and give the .tar or the folder"

PARQUET_CACHE_BYTES = 256 * 2**20
"""Row groups kept in memory by a reader; the one that was read last is kept whatever its size."""

_IMAGE_COLUMNS = ("image", "bytes", "jpg", "jpeg", "png", "webp", "img")
_KEY_COLUMNS = ("key", "__key__", "path", "id", "file_name")


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
