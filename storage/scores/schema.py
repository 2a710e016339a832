"""The columns of a score store. The arrays, the work units and the documentation's test come from this one table.

To add a column, add a line to :data:`COLUMNS`, measure it in pipeline/scoring/scorer.py, and describe it in
docs/artifacts.md.

Shapes: N images, L monitored layers, D embedding numbers, S rows per shard.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.scores.units import PENDING

SCHEMA_VERSION = 1
"""Version of a store's layout. A store of another version is not opened."""
SCORING_VERSION = 1
"""Version of what a score means: decoding, layers, distances, embedding, cells. Raise it when the golden test of the
scores (tests/pipeline/scoring/test_golden.py) fails. A store of another version is not continued."""
SCORED, UNREADABLE, REJECTED = 1, 2, 3
STATUS_NAMES = ("pending", "scored", "unreadable", "rejected")
INNER_CHUNK = 256

Attributes = dict[str, Any]
Unit = dict[str, NDArray[Any]]
"""The rows of one work unit, by column; [S, ...] each."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """One array of a store, with a row for each image."""

    dtype: Any
    """The name of a numpy type, or ``str``."""
    fill: Any
    """Value of a row that has not been scored."""
    row: tuple[str | int, ...] = ()
    """Shape of one row. L is the number of layers, D the size of an embedding."""
    measured: bool = False
    """Whether the scorer measures it in its forward pass."""
    optional: bool = False
    """Whether a setting of its name asks for it. A store has it where its attribute of the same name is true."""
    added: bool = False
    """Whether stores of an older version lack it. A store has it where its attribute of the same name is true."""

    def row_shape(self, attributes: Attributes) -> tuple[int, ...]:
        """Shape of one row in a store with these attributes."""
        sizes: Mapping[str | int, int] = {"L": len(attributes["layers"]), "D": int(attributes["embedding"]["size"])}
        return tuple(int(sizes.get(size, size)) for size in self.row)


COLUMNS: Mapping[str, Column] = {
    "key": Column(dtype=str, fill=""),
    "distance": Column(dtype="float32", fill=np.nan, measured=True),
    "layer_distance": Column(dtype="float32", fill=np.nan, row=("L", 2), measured=True),
    "embedding": Column(dtype="float16", fill=0, row=("D",), measured=True),
    "status": Column(dtype="uint8", fill=PENDING),
    "error": Column(dtype=str, fill=""),
    "entropy": Column(dtype="float32", fill=np.nan, measured=True, optional=True),
    "content": Column(dtype="uint64", fill=0, added=True),
}


def columns_of(attributes: Attributes) -> dict[str, Column]:
    """The columns of a store with these attributes."""
    return {
        name: column
        for name, column in COLUMNS.items()
        if not (column.optional or column.added) or attributes.get(name)
    }


def empty_unit(count: int, attributes: Attributes) -> Unit:
    """The columns of ``count`` rows with their fill values, for a worker to write into."""
    return {
        name: np.full(
            (count, *column.row_shape(attributes)), column.fill, dtype=object if column.dtype is str else column.dtype
        )
        for name, column in columns_of(attributes).items()
        if name != "key"  # written when the corpus is listed
    }
