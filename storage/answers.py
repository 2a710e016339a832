"""The teacher's answers to fixed views of images, in a Zarr group (docs/artifacts.md).

An answer is a set of maps: the logits, and inputs of layers that a student's are compared with. It is kept in half
precision, or in 8 bits between the least and the greatest value of each channel. A row is one view: all maps of an
answer, one behind the other in the order of their names, so that reading it is one access.

Shapes: R rows, S rows of a work unit, C channels of a map, h x w positions, V values of an answer in all maps.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import zarr
from numpy.typing import NDArray

from storage.errors import StoreError
from storage.files.publish import publish
from storage.scores.units import PENDING, pending, write_unit

ANSWERS_VERSION = 2
"""Version of the layout and of the meaning of the arrays."""
DONE = 1
VALUES, RANGES = "values", "ranges"
Bits = Literal[8, 16]
MapShape = tuple[int, int, int]
"""Channels, height and width of a map."""
Maps = dict[str, NDArray[Any]]
"""Maps of several rows by name, [R, C, h, w] each."""
Kept = dict[str, NDArray[Any]]
"""One or more rows as they are kept: the values [R, V], and with 8 bits each channel's least value and step."""


@dataclasses.dataclass(frozen=True, slots=True)
class AnswerStore:
    """Answers in one folder. Make or open it by :func:`open_answers`."""

    path: Path
    group: zarr.Group
    shapes: Mapping[str, MapShape]
    bits: Bits

    def __len__(self) -> int:
        """Return R, the number of rows."""
        return int(self._array("status").shape[0])

    def pending_units(self) -> list[range]:
        """The rows of each work unit that is not committed yet."""
        return pending(np.asarray(self._array("status")[:]), int(self.group.attrs["unit"]))  # type: ignore[arg-type]

    def write(self, rows: range, maps: Mapping[str, NDArray[np.floating[Any]]]) -> None:
        """Write and commit one work unit, [S, C, h, w] of each map."""
        columns: Kept = {}
        ordered: list[NDArray[Any]] = [maps[name] for name in sorted(self.shapes)]
        if self.bits == 8:
            parts = [quantised(values.astype(np.float32)) for values in ordered]
            columns[RANGES] = np.concatenate([span for _, span in parts], axis=1)
            ordered = [steps for steps, _ in parts]
        kind = np.uint8 if self.bits == 8 else np.float16
        columns[VALUES] = np.concatenate([values.reshape(len(rows), -1) for values in ordered], axis=1, dtype=kind)
        write_unit(self.group, rows, {**columns, "status": np.full(len(rows), DONE, dtype=np.uint8)})

    def read(self, row: int) -> Kept:
        """One row as it is kept, for :meth:`maps`."""
        names = (VALUES, RANGES) if self.bits == 8 else (VALUES,)
        return {name: np.asarray(self._array(name)[row]) for name in names}

    def maps(self, kept: Kept) -> Maps:
        """The maps of rows as they are kept, in half precision, or in float32 where 8 bits are kept."""
        found: Maps = {}
        for name, place, channels in self._places():
            channel_count, height, width = self.shapes[name]
            values = kept[VALUES][:, place].reshape(-1, channel_count, height, width)
            if self.bits == 8:
                low, step = (kept[RANGES][:, channels, part, None, None] for part in (0, 1))
                values = values * step + low
            found[name] = values
        return found

    def _places(self) -> Iterator[tuple[str, slice, slice]]:
        """Name, place among the values and place among the ranges of each map."""
        value, channel = 0, 0
        for name in sorted(self.shapes):
            size, channels = int(np.prod(self.shapes[name])), self.shapes[name][0]
            yield name, slice(value, value + size), slice(channel, channel + channels)
            value, channel = value + size, channel + channels

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
    if not path.exists():
        _make(path, wanted, shapes)
    try:
        group = zarr.open_group(path, mode="r+", zarr_format=3)
        same = dict(group.attrs) == wanted
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        same = False
    if not same:
        raise StoreError(f"{path} does not hold these answers of the teacher; remove it")
    return AnswerStore(path, group, shapes, bits)


def _make(path: Path, attributes: Mapping[str, Any], shapes: Mapping[str, MapShape]) -> None:
    rows, unit = int(attributes["rows"]), int(attributes["unit"])
    values = sum(int(np.prod(shape)) for shape in shapes.values())
    with publish(path) as partial:
        group = zarr.create_group(partial, zarr_format=3, attributes=dict(attributes))
        group.create_array("status", shape=(rows,), dtype="uint8", chunks=(unit,), fill_value=PENDING)
        group.create_array(
            VALUES,
            shape=(rows, values),
            dtype="uint8" if attributes["bits"] == 8 else "float16",
            chunks=(1, values),
            shards=(unit, values),
            fill_value=0,
            compressors=None,  # it would save a twelfth of half precision, and take ten times as long to write
        )
        if attributes["bits"] == 8:
            channels = sum(shape[0] for shape in shapes.values())
            group.create_array(
                RANGES, shape=(rows, channels, 2), dtype="float32", chunks=(1, channels, 2),
                shards=(unit, channels, 2), fill_value=0,
            )  # fmt: skip


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
