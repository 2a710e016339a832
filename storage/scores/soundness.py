"""What a store may say of itself: kinds of its attributes, and types and codecs of its arrays.

A store may come from anywhere. An array of another codec than ours could run what another package registered for it.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import zarr

from storage.kinds import NOTHING, SWITCH, Kind, first_fault, mapping, named, plain, several, text, whole
from storage.scores.schema import COLUMNS, SCHEMA_VERSION, Attributes

TEXT, COUNT = text(2**16), whole(0, 2**40)
CORPUS = dict.fromkeys(("name", "root", "kind", "pattern", "include", "column"), "")
ATTRIBUTES: Mapping[str, Kind] = {
    "schema_version": whole(SCHEMA_VERSION, SCHEMA_VERSION),
    "scoring_version": COUNT,
    "teacher": TEXT,
    "layers": several(TEXT, 1, 2**16),
    "distance": TEXT,
    "transform": named(plain(4), 100),
    "embedding": named(whole(1, 2**20) | TEXT, 100),
    "shard_size": whole(1, 2**31),
    "manifest": TEXT,
    "corpus": mapping({name: TEXT for name in CORPUS}),
    "sources": several(TEXT, 0, 2**31),
    "teacher_path": TEXT,
    "complete": SWITCH,
    "images": COUNT,
    "limit": NOTHING | COUNT,
    "include": NOTHING | TEXT,
    "column": NOTHING | TEXT,
    "precision": TEXT,
    **{name: SWITCH for name, column in COLUMNS.items() if column.optional or column.added},
}
"""What each attribute must be where a store has it."""
CODECS = {"sharding_indexed", "bytes", "vlen-utf8", "zstd", "crc32c"}
"""The codecs that we write, and no other."""


def attributes_fault(attributes: Attributes) -> str | None:
    """What is wrong with the attributes of a store; None if nothing is."""
    known = {name: value for name, value in attributes.items() if name in ATTRIBUTES}
    fault = first_fault(known, ATTRIBUTES)
    if fault is None and not {"name", "root", "kind"} <= known.get("corpus", CORPUS).keys():
        return "its attribute corpus does not name a corpus"
    if fault is None and type(known.get("embedding", {"size": 1}).get("size")) is not int:
        return "its attribute embedding has no size"
    return f"its attribute {fault}" if fault else None


def array_fault(name: str, array: "zarr.Array[Any]", attributes: Attributes) -> str | None:
    """What is wrong with the description of an array of a store; None if nothing is."""
    if foreign := sorted(set(_codecs(array.metadata.to_dict())) - CODECS):
        return f"has a codec {foreign[0]!r} that DFSS does not write"
    column = COLUMNS.get(name)
    if column is None:
        return None if array.dtype.kind in "iuf" else f"is of type {array.dtype}, not numbers"
    if (array.dtype.kind in "iufb") != (column.dtype is not str) or (
        column.dtype is not str and array.dtype != np.dtype(column.dtype)
    ):
        return f"is of type {array.dtype}, not {column.dtype if column.dtype is not str else 'text'}"
    if array.ndim == 0 or array.shape[1:] != column.row_shape(attributes):
        return f"has the shape {array.shape}, not (images, {', '.join(map(str, column.row_shape(attributes)))})"
    return None


def _codecs(described: Any) -> Iterator[str]:
    """The names of all codecs in the description of an array, also of those inside a shard."""
    for key, value in described.items():
        if key in ("codecs", "index_codecs"):
            for codec in value:
                yield str(codec["name"])
                yield from _codecs(codec.get("configuration", {}))
