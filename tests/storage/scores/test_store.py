"""The score store: units, commits, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from storage.errors import SettingsError, StoreError
from storage.files.claim import exclusive, sweep
from storage.manifest import Manifest
from storage.scores.schema import COLUMNS, REJECTED, SCORED, UNREADABLE, Unit
from storage.scores.store import ScoreStore, create_store, open_complete, open_store
from storage.scores.units import PENDING

ATTRIBUTES: dict[str, Any] = {
    "schema_version": 1,
    "layers": ["a", "b"],
    "embedding": {"size": 4, "layer": "b"},
    "shard_size": 8,
    "sources": ["x.tar"],
    "content": True,
}


def manifest(count: int = 20) -> Manifest:
    return Manifest(
        keys=[f"été/{index:03}.jpg" for index in range(count)],
        sources=("x.tar",),
        source=np.zeros(count, np.int32),
        offset=np.arange(count, dtype=np.int64) * 512,
        size=np.full(count, 100, np.int64),
    )


def scores(rows: range, seed: int = 0) -> Unit:
    rng, count = np.random.default_rng([seed, rows.start]), len(rows)
    status = np.full(count, SCORED, np.uint8)
    status[1] = UNREADABLE
    return {
        "status": status,
        "error": np.array(["", "not an image", *[""] * (count - 2)], dtype=object),
        "distance": rng.random(count, np.float32),
        "layer_distance": rng.random((count, 2, 2), np.float32),
        "embedding": rng.random((count, 4)).astype(np.float16),
        "content": rng.integers(1, 2**63, count).astype(np.uint64),
    }


@pytest.fixture
def store(tmp_path: Path) -> ScoreStore:
    return create_store(tmp_path / "a.zarr", manifest(), ATTRIBUTES)


def test_what_is_written_is_read_back(store: ScoreStore) -> None:
    for rows in store.units():
        store.write_unit(rows, scores(rows))
    again = open_store(store.path)
    for rows in again.units():
        expected, where = scores(rows), slice(rows.start, rows.stop)
        np.testing.assert_array_equal(again.column("distance")[where], expected["distance"])
        np.testing.assert_array_equal(again.column("layer_distance")[where], expected["layer_distance"])
        np.testing.assert_array_equal(again.column("embedding")[where], expected["embedding"])
    assert again.errors() == {row: "not an image" for row in (1, 9, 17)}
    assert again.manifest().fingerprint == manifest().fingerprint


def test_arrays_have_the_types_and_shards_of_the_contract(store: ScoreStore) -> None:
    group = zarr.open_group(store.path, mode="r")
    described = {
        name: (str(array.dtype), array.shape, array.shards)
        for name, array in group.arrays()
        if not name.startswith("entropy")
    }
    assert described.pop("key")[1:] == ((20,), (8,))
    assert described.pop("error")[1:] == ((20,), (8,))
    contract = {
        "distance": ("float32", (20,), (8,)),
        "layer_distance": ("float32", (20, 2, 2), (8, 2, 2)),
        "embedding": ("float16", (20, 4), (8, 4)),
        "status": ("uint8", (20,), (8,)),
    }
    assert {name: described[name] for name in contract} == contract
    assert all((shape[0], shards[0]) == (20, 8) for _, shape, shards in described.values())
    assert np.isnan(store.column("distance")).all()


def test_units_cover_every_row_once_and_are_pending_until_written(store: ScoreStore) -> None:
    assert [list(rows) for rows in store.units()] == [list(range(8)), list(range(8, 16)), list(range(16, 20))]
    store.write_unit(range(8, 16), scores(range(8, 16)))
    assert store.pending_units() == [range(8), range(16, 20)]


def test_the_order_of_the_units_does_not_show_in_the_bytes(tmp_path: Path) -> None:
    forwards = create_store(tmp_path / "f.zarr", manifest(), ATTRIBUTES)
    backwards = create_store(tmp_path / "b.zarr", manifest(), ATTRIBUTES)
    for rows in forwards.units():
        forwards.write_unit(rows, scores(rows))
    for rows in reversed(backwards.units()):
        backwards.write_unit(rows, scores(rows, seed=1))  # interrupted and done again
        backwards.write_unit(rows, scores(rows))
    assert tree(forwards.path) == tree(backwards.path)


def tree(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_an_interrupted_creation_leaves_no_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("storage.scores.store._create_arrays", fail)
    with pytest.raises(KeyboardInterrupt):
        create_store(tmp_path / "a.zarr", manifest(), ATTRIBUTES)
    assert list(tmp_path.iterdir()) == []


def test_reading_waits_for_completeness(store: ScoreStore) -> None:
    store.write_unit(range(8), scores(range(8)))
    with pytest.raises(StoreError, match=r"not complete \(8 of 20 rows\)"):
        open_complete(store.path)
    for rows in store.units():
        store.write_unit(rows, scores(rows))
    with pytest.raises(StoreError, match=r"not complete \(20 of 20 rows\)"):  # the index is still to be built
        open_complete(store.path)
    store.set_complete(True)
    assert open_complete(store.path).complete


def test_failed_rows_can_be_opened_again(store: ScoreStore) -> None:
    for rows in store.units():
        good = scores(rows)
        good["status"][1] = REJECTED if rows.start == 8 else SCORED
        store.write_unit(rows, good)
    store.set_complete(True)
    store.reopen(np.flatnonzero(store.status() == REJECTED))
    assert store.pending_units() == [range(8, 16)]
    assert (store.status()[8:16] == PENDING).all()
    assert not store.complete


@pytest.mark.parametrize("content", [None, "folder", "file"])
def test_something_else_is_not_a_store(content: str | None, tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    if content == "folder":
        path.mkdir()
        (path / "photo.jpg").touch()
    elif content == "file":
        path.write_text("hello")
    with pytest.raises(StoreError, match=r"no scores in|not a score store"):
        open_store(path)


def test_a_store_of_another_schema_is_refused(store: ScoreStore) -> None:
    store.group.attrs["schema_version"] = 99
    with pytest.raises(StoreError, match="score schema 99"):
        open_store(store.path)


def test_a_second_writer_is_refused_and_a_dead_one_does_not_block(store: ScoreStore) -> None:
    with exclusive(store.path), pytest.raises(StoreError, match="another run is writing"), exclusive(store.path):
        pass
    with exclusive(store.path):
        pass


def test_a_store_that_says_complete_with_rows_missing_is_not_believed(store: ScoreStore) -> None:
    store.set_complete(True)
    with pytest.raises(StoreError, match=r"not complete \(0 of 20 rows\)"):
        open_complete(store.path)


@pytest.mark.parametrize("text", ["", "[]", '"x"', "{}"])
def test_broken_metadata_is_not_a_store(text: str, store: ScoreStore) -> None:
    (store.path / "zarr.json").write_text(text)
    with pytest.raises(StoreError, match="not a score store"):
        open_store(store.path)


def test_sweeping_removes_what_a_killed_writer_left(store: ScoreStore) -> None:
    before = tree(store.path)
    (store.path / "status" / "c.1a2b.partial").write_bytes(b"half")
    sweep(store.path)
    assert tree(store.path) == before


def test_a_store_is_a_table_for_pandas(store: ScoreStore) -> None:
    for rows in store.units():
        store.write_unit(rows, scores(rows))
    cell = np.arange(20, dtype=np.int32)
    store.write_diversity(np.zeros((1, 4), np.float32), cell, np.zeros(3, np.uint8))
    table = open_store(store.path).to_pandas()
    assert set(table.columns) >= {"key", "distance", "status", "error", "cell"}
    assert not {"layer_distance", "embedding", "entropy"} & set(table.columns)
    assert list(table["status"][:3]) == ["scored", "unreadable", "scored"]
    assert list(table["error"][:3]) == ["", "not an image", ""]
    np.testing.assert_array_equal(table["distance"], store.column("distance"))
    np.testing.assert_array_equal(table["cell"], cell)


def test_the_documentation_describes_every_column_as_it_is() -> None:
    text = (Path(__file__).parents[3] / "docs" / "artifacts.md").read_text()
    for name, column in COLUMNS.items():
        dtype = "string" if column.dtype is str else column.dtype
        shape = ", ".join(["N", *map(str, column.row)])
        assert f"| `{name}` | [{shape}] {dtype} |" in text


def test_a_place_without_a_name_cannot_be_claimed() -> None:
    with pytest.raises(SettingsError, match="give the name of the output"), exclusive(Path()):
        pass
