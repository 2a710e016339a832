"""The teacher's answers to fixed views of images, in a Zarr group (docs/artifacts.md).

An answer is a set of maps: the logits, and inputs of layers that a student's are compared with. A map is kept in half
precision, or in 8 bits between the least and the greatest value of each of its channels. A row is one view.

Shapes: R rows, S rows of a work unit, C channels of a map, h x w positions.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import zarr
from numpy.typing import NDArray

from storage.errors import StoreError
from storage.files.publish import publish
from storage.scores.units import PENDING, pending, write_unit

ANSWERS_VERSION = 1
"""Version of the layout and of the meaning of the arrays."""
DONE = 1
RANGE = ".range"
Bits = Literal[8, 16]
MapShape = tuple[int, int, int]
"""Channels, height and width of a map."""
Maps = dict[str, NDArray[np.float32]]
"""Maps of several rows by name, [R, C, h, w] each."""


@dataclasses.dataclass(frozen=True, slots=True)
class AnswerStore:
    """Answers in one folder. Make or open it by :func:`open_answers`."""

    path: Path
    group: zarr.Group

    def __len__(self) -> int:
        """Return R, the number of rows."""
        return int(self._array("status").shape[0])

    def pending_units(self) -> list[range]:
        """The rows of each work unit that is not committed yet."""
        return pending(np.asarray(self._array("status")[:]), int(self.group.attrs["unit"]))  # type: ignore[arg-type]

    def write(self, rows: range, maps: Mapping[str, NDArray[np.float32]]) -> None:
        """Write and commit one work unit, [S, C, h, w] of each map."""
        columns: dict[str, NDArray[Any]] = {"status": np.full(len(rows), DONE, dtype=np.uint8)}
        for name, values in maps.items():
            if self._array(name).dtype == np.uint8:
                columns[name], columns[name + RANGE] = quantised(values)
            else:
                columns[name] = values.astype(np.float16)
        write_unit(self.group, rows, columns)

    def read(self, row: int) -> dict[str, NDArray[Any]]:
        """The maps of one row as they are kept, for :func:`restored`. It reads one chunk of each array."""
        return {name: np.asarray(self._array(name)[row]) for name in self.group.array_keys() if name != "status"}

    def _array(self, name: str) -> zarr.Array[Any]:
        array = self.group[name]
        assert isinstance(array, zarr.Array)
        return array


def open_answers(
    path: Path, shapes: Mapping[str, MapShape], *, rows: int, unit: int, bits: Bits, about: Mapping[str, Any]
) -> AnswerStore:
    """Open the answers in a folder, or make an empty store. ``about`` is everything that the answers depend on.

    Raises:
        StoreError: the folder holds something else, or answers of another kind.
    """
    wanted = {
        "answers_version": ANSWERS_VERSION, "maps": {name: list(shape) for name, shape in shapes.items()},
        "rows": rows, "unit": unit, "bits": bits, "about": dict(about),
    }  # fmt: skip
    if path.exists():
        return _existing(path, wanted)
    with publish(path) as partial:
        group = zarr.create_group(partial, zarr_format=3, attributes=wanted)
        group.create_array("status", shape=(rows,), dtype="uint8", chunks=(unit,), fill_value=PENDING)
        for name, (channels, height, width) in shapes.items():
            group.create_array(
                name,
                shape=(rows, channels, height, width),
                dtype="uint8" if bits == 8 else "float16",
                chunks=(1, channels, height, width),
                shards=(unit, channels, height, width),
                fill_value=0,
                compressors=None,  # it would save a twelfth of half precision, and take ten times as long to write
            )
            if bits == 8:
                group.create_array(
                    name + RANGE, shape=(rows, channels, 2), dtype="float32", chunks=(1, channels, 2),
                    shards=(unit, channels, 2), fill_value=0,
                )  # fmt: skip
    return AnswerStore(path, zarr.open_group(path, mode="r+"))


def _existing(path: Path, wanted: Mapping[str, Any]) -> AnswerStore:
    try:
        group = zarr.open_group(path, mode="r+", zarr_format=3)
        same = dict(group.attrs) == wanted
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        same = False
    if not same:
        raise StoreError(f"{path} does not hold these answers of the teacher; remove it")
    return AnswerStore(path, group)


def size_of(shapes: Mapping[str, MapShape], *, rows: int, bits: Bits) -> int:
    """Bytes of the answers before compression."""
    values = sum(int(np.prod(shape)) for shape in shapes.values())
    ranges = sum(8 * shape[0] for shape in shapes.values()) if bits == 8 else 0
    return rows * (values * bits // 8 + ranges)


def quantised(values_RChw: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Values in 8 bits, [R, C, h, w], and the least value and the step of each channel, [R, C, 2]."""
    low = values_RChw.min(axis=(2, 3), keepdims=True)
    step = (values_RChw.max(axis=(2, 3), keepdims=True) - low) / 255
    steps = np.rint((values_RChw - low) / np.where(step > 0, step, 1)).astype(np.uint8)
    return steps, np.concatenate([low, step], axis=2)[..., 0].astype(np.float32)


def restored(kept: Mapping[str, NDArray[Any]]) -> Maps:
    """The maps of one or more rows from what is kept of them."""
    maps = {}
    for name, values in kept.items():
        if name.endswith(RANGE):
            continue
        maps[name] = values.astype(np.float32)
        if name + RANGE in kept:
            low, step = (kept[name + RANGE][..., place, None, None] for place in (0, 1))
            maps[name] = maps[name] * step + low
    return maps
