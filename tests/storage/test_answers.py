"""What is kept of the teacher's answers: shapes, precision, units, and refusals."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from storage.answers import Bits, open_answers, size_of
from storage.errors import StoreError

SHAPES = {"logits": (3, 4, 5), "stem.1": (2, 8, 10)}


def maps(rows: int, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(0, 3, (rows, *shape)).astype(np.float32) for name, shape in SHAPES.items()}


def batch_of(row: dict[str, Any]) -> dict[str, Any]:
    return {name: values[None] for name, values in row.items()}


def opened(bits: Bits = 16, **about: Any) -> Any:
    return open_answers(Path("answers.zarr"), SHAPES, rows=10, unit=4, bits=bits, about={"teacher": "abc", **about})


@pytest.mark.parametrize(("bits", "error"), [(16, 2**-11), (8, 1 / 510)])
def test_answers_come_back_as_exactly_as_their_bits_allow(bits: Bits, error: float) -> None:
    store, wanted = opened(bits), maps(10)
    for rows in store.pending_units():
        store.write(rows, {name: values[rows.start : rows.stop] for name, values in wanted.items()})
    for row in range(10):
        found = {name: values[0] for name, values in store.maps(batch_of(store.read(row))).items()}
        assert set(found) == set(SHAPES)
        for name, values in found.items():
            truth = wanted[name][row]
            # Half precision errs by its last bit; 8 bits by half a step of the channel's range.
            most = np.abs(truth) if bits == 16 else np.ptp(truth, axis=(1, 2), keepdims=True)
            assert (np.abs(values - truth) <= error * 1.01 * most + 1e-7).all()


def test_units_are_whole_shards_that_count_only_when_their_status_is_written() -> None:
    store = opened()
    assert store.pending_units() == [range(0, 4), range(4, 8), range(8, 10)]
    store.write(range(4, 8), maps(4))
    assert opened().pending_units() == [range(0, 4), range(8, 10)]
    group = zarr.open_group("answers.zarr", mode="r")
    assert group["values"].shards == (4, 60 + 160)  # type: ignore[union-attr]
    assert group["values"].chunks == (1, 60 + 160)  # type: ignore[union-attr]


def test_answers_of_another_kind_and_other_folders_are_not_written_into() -> None:
    opened()
    with pytest.raises(StoreError, match=r"answers.zarr does not hold these answers of the teacher; remove it"):
        opened(teacher="another")
    with pytest.raises(StoreError, match="does not hold these answers"):
        opened(bits=8)
    Path("plain.zarr").mkdir()
    with pytest.raises(StoreError, match=r"plain.zarr does not hold these answers"):
        open_answers(Path("plain.zarr"), SHAPES, rows=10, unit=4, bits=16, about={})


@pytest.mark.parametrize("bits", [16, 8])
def test_the_size_that_is_told_is_that_of_the_arrays(bits: Bits) -> None:
    store = opened(bits)
    arrays = [array for name, array in store.group.arrays() if name != "status"]
    told = size_of(SHAPES, rows=10, bits=bits)
    assert told == sum(array.dtype.itemsize * int(np.prod(array.shape)) for array in arrays)


def test_a_channel_without_range_survives() -> None:
    store, flat = opened(8), {name: np.full((4, *shape), 7.25, dtype=np.float32) for name, shape in SHAPES.items()}
    store.write(range(4), flat)
    for name, values in store.maps(batch_of(store.read(2))).items():
        np.testing.assert_array_equal(values, flat[name][:1])
