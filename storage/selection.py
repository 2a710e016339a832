"""The selection file: a Parquet table of the images to distil on, best first (docs/artifacts.md)."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from storage.errors import SelectionError
from storage.files.publish import publish

COLUMNS = ("row", "key", "rank", "distance", "weight", "cell")
METADATA_KEY = b"dfss"
TYPES = pa.schema(
    {
        "row": pa.int64(),
        "key": pa.large_string(),
        "rank": pa.int64(),
        "distance": pa.float32(),
        "weight": pa.float64(),
        "cell": pa.int32(),
    }
)


@dataclasses.dataclass(frozen=True, slots=True)
class Selection:
    """A table of selected images, and the settings that it was made with."""

    table: pd.DataFrame
    """Columns row, key, rank, distance, weight, cell; sorted by rank."""
    about: dict[str, Any]
    """``scores`` (fingerprint of the store), ``strategy``, ``budget``."""

    def __len__(self) -> int:
        """Number of images."""
        return len(self.table)


def write_selection(selection: Selection, path: Path) -> None:
    """Write a selection atomically."""
    table = pa.Table.from_pandas(selection.table, preserve_index=False)
    about = json.dumps(selection.about, sort_keys=True).encode()
    with publish(path) as partial:
        pq.write_table(table.replace_schema_metadata({**(table.schema.metadata or {}), METADATA_KEY: about}), partial)


def read_selection(path: Path) -> Selection:
    """Read a selection.

    Raises:
        SelectionError: the file does not exist or is not a selection.
    """
    if not path.is_file():
        raise SelectionError(f"selection {path} does not exist; make it with dfss-select --out {path}")
    try:
        # ParquetFile reads this one file; read_table would also read columns from the names of its folders.
        with pq.ParquetFile(path) as file:
            if missing := [name for name in COLUMNS if name not in file.schema_arrow.names]:
                raise SelectionError(f"{path} has no column {missing[0]!r}; make it again with dfss-select")
            about = json.loads((file.schema_arrow.metadata or {})[METADATA_KEY])
            table = file.read(columns=list(COLUMNS)).select(COLUMNS).cast(TYPES)
    except (pa.ArrowException, OSError, KeyError, ValueError, RecursionError) as error:
        raise SelectionError(f"{path} is not a selection of dfss-select ({error}); make it again") from error
    if fault := _fault(about, table):
        raise SelectionError(f"{path} is not a sound selection: {fault}; make it again with dfss-select")
    frame = pd.DataFrame({name: table[name].to_pandas() for name in COLUMNS})
    return Selection(frame.sort_values("rank", kind="stable", ignore_index=True), about)


def _fault(about: Any, table: pa.Table) -> str | None:
    """What is wrong with a selection by itself; None if nothing is."""
    if not isinstance(about, dict) or not isinstance(about.get("scores"), str):
        return "it does not name its scores"
    if empty := [name for name in COLUMNS if table[name].null_count]:
        return f"column {empty[0]!r} has an empty value"
    for name in ("distance", "weight"):
        if not np.isfinite(table[name].to_numpy()).all():
            return f"column {name!r} has a value that is not finite"
    if not (np.sort(table["rank"].to_numpy()) == np.arange(len(table))).all():
        return "its ranks do not count up from 0"
    if len(np.unique(table["row"].to_numpy())) < len(table):
        return "it has a row twice"
    return None
