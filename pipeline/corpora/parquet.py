"""A corpus of Parquet files with image bytes.

A column of images holds bytes, or structs of bytes and a path as Hugging Face datasets writes them, or lists of one of
these. Where a struct has a path alone, the image is the file at that path, relative to the root of the corpus.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from pipeline.corpora.corpus import Corpus
from pipeline.corpora.faults import FOREIGN_CODE, DamagedError, of_container
from pipeline.corpora.leftout import LeftOut
from storage.errors import CorpusError
from storage.files.places import Files
from storage.keys import path_to_key
from storage.manifest import Manifest

logger = logging.getLogger(__name__)

UNREADABLE = "Parquet files that cannot be read"
_BUFFER = 2**20
"""Bytes of a column that are read at once. Without it a reader takes a whole column, as long as the file says it is."""
_MOST_FOOTER = 256 * 2**20
_MOST_KEYS = 2**30
"""Bytes of keys in one file."""
_KEYS_AT_ONCE = 64


_IMAGE_COLUMNS = ("image", "images", "pixel_values", "bytes", "jpg", "jpeg", "png", "webp", "img", "photo")
"""Usual names of a column of images; the first that a file has is taken."""


_KEY_COLUMNS = ("key", "__key__", "path", "id", "file_name")


@contextmanager
def parquet_file(files: Files, path: str) -> Iterator[tuple[Any, int]]:
    """Open a Parquet file as a pyarrow.parquet.ParquetFile, and tell its bytes.

    Raises:
        DamagedError: when it is not a complete Parquet file, or states absurd numbers.
        OSError: when it cannot be read.
    """
    import pyarrow.parquet as pq

    with files.open(path) as stream:
        size = stream.seek(0, 2)
        stream.seek(max(0, size - 8))
        footer = int.from_bytes(stream.read(4), "little")
        stream.seek(0)
        try:
            if size >= 8 and footer > _MOST_FOOTER:
                raise DamagedError(f"its footer would take {footer:,} bytes")
            with FOREIGN_CODE:
                file = pq.ParquetFile(stream, buffer_size=_BUFFER)
                _check_counts(file, size)
        except DamagedError as error:
            stream.seek(0)
            pointer = stream.read(23) == b"version https://git-lfs"
            fault = "a Git LFS pointer" if pointer else f"not a complete Parquet file ({error})"
            remedy = "run git lfs pull" if pointer else "fetch it again or leave it out"
            raise DamagedError(f"{path} is {fault}; {remedy}") from error
        yield file, size


def _check_counts(file: Any, size: int) -> None:
    """Refuse numbers of rows that contradict each other, or the size of the file in bytes.

    Raises:
        DamagedError: the numbers are absurd.
    """
    counts = group_rows(file)
    if min(counts, default=0) < 0 or sum(counts) != file.metadata.num_rows:
        raise DamagedError("its row groups do not add up to its rows")
    if file.metadata.num_rows > size:  # an image takes a byte at least
        raise DamagedError(f"it states {file.metadata.num_rows:,} rows in {size:,} bytes")


def group_rows(file: Any) -> list[int]:
    """Return the number of rows of each row group."""
    return [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]


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
    columns |= {name: name for name in columns.values()}
    types = ", ".join(f"{field.name} ({str(field.type)[:40]})" for field in schema)
    if twice := [name for name in dict.fromkeys(columns.values()) if schema.names.count(name) > 1]:
        raise CorpusError(f"{path} has several columns of the name {twice[0]!r}; rename them so that they differ")
    if wanted:
        if wanted in columns.values():
            return wanted
        what = "is not a column of image bytes" if wanted in schema.names else "is not a column"
        raise CorpusError(f"{wanted!r} {what} of {path}; its columns are {types}")
    usual = [columns[name] for name in _IMAGE_COLUMNS if name in columns]
    if usual or len(set(columns.values())) == 1:
        return (usual or list(columns.values()))[0]
    if columns:
        names = ", ".join(dict.fromkeys(columns.values()))
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
        leaf, field = name, schema.field(schema.names.index(name))
    elif pa.types.is_struct(kind := schema.field(images).type) and kind.get_field_index("path") >= 0:
        leaf, field = f"{images}.path", kind.field("path")
    else:
        return None
    kind = field.type
    usable = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_integer(kind)
    if not usable or schema.names.count(leaf) > 1:
        return None
    with FOREIGN_CODE:
        return _read_keys(file, leaf)


def _read_keys(file: Any, leaf: str) -> list[str] | None:
    """Return the values of a column of texts or integers; None if one is missing or no text, or they are too long."""
    keys, size = list[str](), 0
    for batch in file.iter_batches(batch_size=_KEYS_AT_ONCE, columns=[leaf], use_threads=False):
        column = batch.column(0)
        column = column.field(0) if "." in leaf and batch.schema.names[0] != leaf else column
        size += column.nbytes
        if column.null_count or size > _MOST_KEYS:
            return None
        try:
            keys += map(str, column.to_pylist())
        except UnicodeDecodeError:
            return None
    return keys


def list_parquet(corpus: Corpus, files: Files, paths: list[str], left_out: LeftOut) -> Manifest:
    """List the rows of Parquet files, in the order of the files. A file without use is counted.

    Raises:
        CorpusError: the files have no rows, or no column of images.
    """
    keys, counts, all_have_keys = list[str](), list[int](), True
    used, faults, sound, sizes = dict[str, list[str]](), list[CorpusError](), list[str](), list[int]()
    for path in paths:
        with of_container(files, path, UNREADABLE, left_out, faults), parquet_file(files, path) as (file, size):
            images = image_column(file.schema_arrow, path, corpus.column)
            used[images] = [field.name for field in file.schema_arrow if holds_images(field.type)]
            own_keys, count = _own_keys(file, images), file.metadata.num_rows
            sound.append(path)
            counts.append(count)
            sizes.append(size)
            all_have_keys = all_have_keys and own_keys is not None
            keys += own_keys or ()
            if count == 0:
                left_out.add("Parquet files without rows", path)
    if faults and not sound:
        raise faults[0]
    _mention_columns(used, corpus)
    sources = tuple(map(path_to_key, sound))
    if not all_have_keys or len(set(keys)) != len(keys):
        keys = [f"{source}:{row}" for source, count in zip(sources, counts, strict=True) for row in range(count)]
    if not keys:
        raise CorpusError(f"found no image in {len(paths)} Parquet files in {corpus.root}: they have no rows")
    return Manifest(
        keys=keys,
        sources=sources,
        source=np.repeat(np.arange(len(counts), dtype=np.int32), counts),
        offset=np.concatenate([np.arange(count, dtype=np.int64) for count in counts]),
        size=np.repeat(-np.array(sizes, dtype=np.int64), counts),
    )


def _own_keys(file: Any, images: str) -> list[str] | None:
    """Return the keys of a file, None if it has none or they cannot be read; its images may be sound even so."""
    try:
        keys = parquet_keys(file, images)
    except DamagedError:
        return None
    return keys if keys is None or len(keys) == file.metadata.num_rows else None


def _mention_columns(used: dict[str, list[str]], corpus: Corpus) -> None:
    """Say which column is read where a file has others of a fitting type. ``used``: those of a file by the one read."""
    for name, columns in used.items():
        if (others := [column for column in columns if column != name]) and not corpus.column:
            logger.info("the images are those of column %s; --column names another (%s)", name, ", ".join(others))
