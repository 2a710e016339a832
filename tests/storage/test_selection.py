"""The selection file."""

from pathlib import Path

import pandas as pd
import pytest

from storage.errors import SelectionError
from storage.selection import Selection, read_selection, write_selection


def selection() -> Selection:
    table = pd.DataFrame(
        {
            "row": [5, 2, 9],
            "key": ["é.jpg", "b.jpg", "c.jpg"],
            "rank": [0, 1, 2],
            "distance": [0.5, 0.75, 1.0],
            "weight": [1.0, 0.5, 0.0],
            "cell": [0, 1, 0],
        }
    )
    return Selection(table, {"scores": "abc", "strategy": "ads", "budget": "3"})


def test_a_selection_survives_the_file(tmp_path: Path) -> None:
    write_selection(selection(), tmp_path / "s.parquet")
    again = read_selection(tmp_path / "s.parquet")
    pd.testing.assert_frame_equal(again.table, selection().table, check_dtype=False)
    assert again.about == selection().about


def test_pandas_reads_it_without_us(tmp_path: Path) -> None:
    write_selection(selection(), tmp_path / "s.parquet")
    assert list(pd.read_parquet(tmp_path / "s.parquet")["row"]) == [5, 2, 9]


@pytest.mark.parametrize("kind", ["absent", "text", "other table"])
def test_something_else_is_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "s.parquet"
    if kind == "text":
        path.write_text("hello")
    elif kind == "other table":
        pd.DataFrame({"a": [1]}).to_parquet(path)
    with pytest.raises(SelectionError, match=r"does not exist|not a selection"):
        read_selection(path)
