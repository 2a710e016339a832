"""Work units of a Zarr group: whole shards of its arrays, each with one writer, committed by their ``status``.

An interrupted unit is made again from its start and gives the same bytes.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

PENDING = 0
"""Status of a row whose unit is not committed."""


def units(count: int, size: int) -> list[range]:
    """The rows of each work unit: ``count`` rows by ``size``."""
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


def pending(status_N: NDArray[np.uint8], size: int) -> list[range]:
    """The rows of each work unit that is not committed yet."""
    return [rows for rows in units(len(status_N), size) if (status_N[rows.start : rows.stop] == PENDING).any()]


def write_unit(group: zarr.Group, rows: range, columns: Mapping[str, NDArray[Any]]) -> None:
    """Write the rows of one unit. Their status is the commit and is written last."""
    where = slice(rows.start, rows.stop)
    for name in sorted(columns.keys() - {"status"}):
        group[name][where] = columns[name]  # type: ignore[index]
    group["status"][where] = columns["status"]  # type: ignore[index]
