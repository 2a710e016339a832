"""The selection file: a Parquet table of the images to distil on, best first (docs/artifacts.md)."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from storage.errors import SelectionError
from storage.files.publish import publish

COLUMNS = ("row", "key", "rank", "distance", "weight", "cell")
METADATA_KEY = b"dfss"


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
        table = pq.read_table(path)
        about = json.loads((table.schema.metadata or {})[METADATA_KEY])
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise SelectionError(f"{path} is not a selection of dfss-select ({error}); make it again") from error
    if missing := [name for name in COLUMNS if name not in table.column_names]:
        raise SelectionError(f"{path} has no column {missing[0]!r}; make it again with dfss-select")
    return Selection(table.to_pandas().sort_values("rank", kind="stable", ignore_index=True), about)
