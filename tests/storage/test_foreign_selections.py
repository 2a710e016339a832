"""What a selection from a stranger can say: rows of its store, each once, with finite figures."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage.errors import SelectionError
from storage.selection import Selection, read_selection, write_selection

TABLE = pd.DataFrame(
    {
        "row": [4, 2],
        "key": ["a", "b"],
        "rank": [0, 1],
        "distance": np.float32([0.1, 0.2]),
        "weight": [1.0, 0.1],
        "cell": np.int32([0, 1]),
    }
)


def written(path: Path, **columns: Any) -> Path:
    write_selection(Selection(TABLE.assign(**columns), {"scores": "x"}), path)
    return path


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    pd.testing.assert_frame_equal(read_selection(written(tmp_path / "s.parquet")).table, TABLE)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"distance": [0.1, np.inf]}, "'distance' has a value that is not finite"),
        ({"weight": [np.nan, 0.0]}, "column 'weight'"),
        ({"row": [2, 2]}, "a row twice"),
        ({"rank": [0, 5]}, "ranks do not count up"),
        ({"rank": [-1, 0]}, "ranks do not count up"),
        ({"row": ["x", "y"]}, "not a selection"),
        ({"row": [0.5, 1.0]}, "not a selection"),
        ({"key": [None, "b"]}, "'key' has an empty value"),
        ({"distance": [{"a": 1}, {"a": 2}]}, "not a selection"),
    ],
)
def test_a_selection_that_is_not_sound_is_one_line(columns: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(SelectionError, match=message) as raised:
        read_selection(written(tmp_path / "s.parquet", **columns))
    assert str(tmp_path / "s.parquet") in str(raised.value)


@pytest.mark.parametrize("about", [b"[]", b"5", b"{}", b'{"scores": 5}', b"[" * 100_000, b"\xff"])
def test_a_selection_with_other_metadata_is_one_line(about: bytes, tmp_path: Path) -> None:
    table = pa.Table.from_pandas(TABLE, preserve_index=False)
    pq.write_table(table.replace_schema_metadata({b"dfss": about}), tmp_path / "s.parquet")
    with pytest.raises(SelectionError, match="selection"):
        read_selection(tmp_path / "s.parquet")


def test_the_names_of_folders_give_a_selection_no_columns(tmp_path: Path) -> None:
    (tmp_path / "row=7").mkdir()
    assert list(read_selection(written(tmp_path / "row=7" / "s.parquet")).table["row"]) == [4, 2]
