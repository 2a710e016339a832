"""The score store: a Zarr v3 group with one row per image of a corpus (docs/artifacts.md).

One work unit is one whole Zarr shard of every array and has one writer. A unit's ``status`` is written last: it is the
commit. An interrupted unit is scored again from its start and gives the same bytes.

Shapes: N images, L monitored layers, D embedding numbers, S rows per shard.
"""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from numpy.typing import NDArray

from storage.errors import StoreError
from storage.files.publish import publish, remove
from storage.manifest import Manifest
from storage.scores.places import found
from storage.scores.schema import (
    COLUMNS,
    INNER_CHUNK,
    REJECTED,
    SCHEMA_VERSION,
    STATUS_NAMES,
    UNREADABLE,
    Attributes,
    Unit,
    columns_of,
)
from storage.scores.soundness import array_fault, attributes_fault
from storage.scores.units import PENDING, pending, units, write_unit

if TYPE_CHECKING:
    import pandas as pd

# The errors that zarr raises for a folder or a metadata file that is not a Zarr group.
NOT_ZARR = (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError, AttributeError, RecursionError)
SCORE_AGAIN = "score the corpus again with dfss-score --overwrite"


@dataclasses.dataclass(frozen=True, slots=True)
class ScoreStore:
    """An open store. Make one by :func:`create_store` or :func:`open_store`."""

    path: Path
    group: zarr.Group

    def __len__(self) -> int:
        """Return N, the number of images."""
        return int(self._array("status").shape[0])

    @property
    def attributes(self) -> Attributes:
        """The settings that the scores depend on, and whether the scores are complete."""
        return dict(self.group.attrs)

    def _attribute(self, name: str) -> Any:
        if name not in self.group.attrs:
            raise StoreError(f"{self.path} has no attribute {name!r}; {SCORE_AGAIN}")
        return self.group.attrs[name]

    @property
    def corpus(self) -> Attributes:
        """The fields of the corpus; the root is a path from the working folder, or an address nobody trusts yet."""
        corpus: Attributes = dict(self._attribute("corpus"))
        return corpus | {"root": found(str(corpus["root"]), self.path)}

    @property
    def teacher_path(self) -> str:
        """The teacher's model file, as a path from the working folder, or the name of official weights."""
        return found(str(self._attribute("teacher_path")), self.path)

    @property
    def complete(self) -> bool:
        """Whether every row has a status other than pending and the diversity index is built."""
        return bool(self.group.attrs.get("complete", False))

    def units(self) -> list[range]:
        """The rows of each work unit."""
        return units(len(self), int(self._attribute("shard_size")))

    def pending_units(self) -> list[range]:
        """The rows of each work unit that is not committed yet."""
        return pending(self.status(), int(self._attribute("shard_size")))

    def status(self) -> NDArray[np.uint8]:
        """The status of each row, uint8 [N]."""
        return self.column("status")

    def column(self, name: str) -> NDArray[Any]:
        """A whole array: ``distance``, ``embedding``, ``diversity/cell``, ...

        Raises:
            StoreError: the store has no such array, or was removed in the meantime.
        """
        return self.column_of(name, slice(None))

    def column_of(self, name: str, rows: slice) -> NDArray[Any]:
        """Some rows of an array.

        Raises:
            StoreError: the store has no such array, or was removed in the meantime.
        """
        return np.asarray(self._array(name)[rows])

    def has(self, name: str) -> bool:
        """Whether the store keeps this array."""
        return name in self.group

    def _array(self, name: str) -> zarr.Array[Any]:
        try:
            array = self.group[name] if name in self.group else None  # noqa: SIM401  (get would hide a bad codec)
        except NOT_ZARR as error:
            raise StoreError(f"array {name!r} of {self.path} cannot be opened ({error}); {SCORE_AGAIN}") from error
        if array is None:
            self._refuse_if_gone()
            optional = name in COLUMNS and COLUMNS[name].optional
            how = f"dfss-score --overwrite --{name}" if optional else "dfss-score with another --out"
            raise StoreError(f"{self.path} has no {name!r}; score the corpus again with {how}")
        if not isinstance(array, zarr.Array):
            raise StoreError(f"{name!r} of {self.path} is no array; {SCORE_AGAIN}")
        if fault := array_fault(name, array, self.attributes):
            raise StoreError(f"array {name!r} of {self.path} {fault}; {SCORE_AGAIN}")
        return array

    def _refuse_if_gone(self) -> None:
        if not (self.path / "zarr.json").exists():
            raise StoreError(f"{self.path} was removed while it was in use; run dfss-score again")

    def manifest(self) -> Manifest:
        """The manifest of the corpus, as it was listed."""
        return Manifest(
            keys=[str(key) for key in self.column("key")],
            sources=tuple(self._attribute("sources")),
            source=self.column("manifest/source"),
            offset=self.column("manifest/offset"),
            size=self.column("manifest/size"),
        )

    def to_pandas(self) -> "pd.DataFrame":
        """A table of the images: every column of the store with one value per row, status as a word, and the cell."""
        import pandas as pd

        columns = [name for name, column in columns_of(self.attributes).items() if not column.row]
        table = pd.DataFrame({name: self.column(name) for name in columns})
        table["status"] = pd.Categorical.from_codes(self.status().astype(np.int8), pd.Index(STATUS_NAMES))
        table["cell"] = self.column("diversity/cell") if self.has("diversity/cell") else -1
        return table

    def errors(self) -> dict[int, str]:
        """The error texts of the unreadable and rejected rows, by row."""
        failed = np.flatnonzero(np.isin(self.status(), (UNREADABLE, REJECTED)))
        texts = self.column("error")
        return {int(row): str(texts[row]) for row in failed}

    def write_unit(self, rows: range, unit: Unit) -> None:
        """Write one work unit. Its status is the commit and is written last.

        Raises:
            StoreError: the store was removed in the meantime.
        """
        self._refuse_if_gone()  # zarr would create its folders again
        write_unit(self.group, rows, unit)

    def reopen(self, rows: NDArray[np.int64]) -> None:
        """Withdraw the commit of every unit that holds one of these rows."""
        self.set_complete(False)
        for unit in self._units_of(rows):
            self._array("status")[unit.start : unit.stop] = PENDING

    def drop(self, rows: NDArray[np.int64], error: str) -> None:
        """Make rows unreadable whose images are gone, and keep the others of their units."""
        self.set_complete(False)
        for unit in self._units_of(rows):
            where = slice(unit.start, unit.stop)
            columns = {name: self.column_of(name, where) for name in columns_of(self.attributes) if name != "key"}
            if (columns["status"] == PENDING).any():
                continue  # it is still to be scored, and the reader finds that the images are gone
            inside = rows[(rows >= unit.start) & (rows < unit.stop)] - unit.start
            for name, values in columns.items():
                values[inside] = COLUMNS[name].fill
            columns["status"][inside], columns["error"][inside] = UNREADABLE, error
            self.write_unit(unit, columns)

    def _units_of(self, rows: NDArray[np.int64]) -> list[range]:
        numbers = np.unique(rows // int(self._attribute("shard_size")))
        units = self.units()
        return [units[int(number)] for number in numbers]

    def adopt(self, manifest: Manifest) -> None:
        """Keep where the images lie now; the keys stay."""
        for name in ("source", "offset", "size"):
            self._array(f"manifest/{name}")[:] = getattr(manifest, name)
        self.group.attrs.update({"sources": list(manifest.sources), "manifest": manifest.fingerprint})

    def write_diversity(
        self, centroids: NDArray[np.float32], cell: NDArray[np.int32], index: NDArray[np.uint8]
    ) -> None:
        """Write centroids [K, D], the cell of each row [N] (-1 where not scored) and the serialised FAISS index."""
        remove(self.path / "diversity")  # whatever an interrupted run left of it
        diversity = self.group.create_group("diversity")
        rows = int(self._attribute("shard_size"))
        diversity.create_array("centroids", data=centroids)
        diversity.create_array("cell", data=cell, chunks=(max(rows, 65536),), fill_value=-1)
        diversity.create_array("index", data=index, chunks=(min(len(index), 1 << 26),))

    def set_complete(self, complete: bool) -> None:
        """Set or withdraw the final commit."""
        self.group.attrs["complete"] = complete


def create_store(path: Path, manifest: Manifest, attributes: Attributes) -> ScoreStore:
    """Make an empty store atomically, in place of an existing one.

    ``attributes`` holds the settings. Among them ``shard_size``, ``layers``, ``embedding`` and the optional columns
    determine the arrays.
    """
    with publish(path) as partial:
        group = zarr.create_group(partial, zarr_format=3, attributes={**attributes, "complete": False})
        _create_arrays(group, len(manifest), attributes)
        group["key"][:] = np.asarray(manifest.keys, dtype=object)  # type: ignore[index]
        listing = group.create_group("manifest")
        for name in ("source", "offset", "size"):
            listing.create_array(name, data=getattr(manifest, name), chunks=(1 << 16,))
    return ScoreStore(path, zarr.open_group(path, mode="r+"))


def _create_arrays(group: zarr.Group, count: int, attributes: Attributes) -> None:
    rows = int(attributes["shard_size"])
    # Small chunks let a reader take a few rows of a large shard. A shard size that INNER_CHUNK does not divide is one
    # chunk.
    inner = INNER_CHUNK if rows % INNER_CHUNK == 0 else rows
    for name, column in columns_of(attributes).items():
        tail = column.row_shape(attributes)
        group.create_array(
            name,
            shape=(count, *tail),
            dtype=column.dtype,
            chunks=(inner, *tail),
            shards=(rows, *tail),
            fill_value=column.fill,
        )


def open_store(path: Path, *, writable: bool = False) -> ScoreStore:
    """Open a store.

    Raises:
        StoreError: the store does not exist, is something else, or has another schema version.
    """
    if not path.exists():
        raise StoreError(f"no scores in {path}; run dfss-score --out {path} first")
    if (path / "zarr.json").exists() and not (path / "zarr.json").is_file():
        raise StoreError(f"{path} is not a score store (its zarr.json is no file); run dfss-score with another --out")
    try:
        group = zarr.open_group(path, mode="r+" if writable else "r", zarr_format=3)
    except NOT_ZARR as error:
        raise StoreError(f"{path} is not a score store ({error}); run dfss-score with another --out") from error
    version = group.attrs.get("schema_version")
    if version is None:
        raise StoreError(f"{path} is a Zarr group but not a score store; run dfss-score with another --out")
    if version != SCHEMA_VERSION:
        raise StoreError(
            f"{path} has score schema {version}, not {SCHEMA_VERSION}; score it again with dfss-score --overwrite"
        )
    if fault := attributes_fault(dict(group.attrs)):
        raise StoreError(f"{path} is not a sound score store: {fault}; {SCORE_AGAIN}")
    return ScoreStore(path, group)


def is_store(path: Path) -> bool:
    """Whether a folder is a score store, of any schema version, complete or not."""
    try:
        return "schema_version" in zarr.open_group(path, mode="r", zarr_format=3).attrs
    except NOT_ZARR:
        return False


def open_complete(path: Path) -> ScoreStore:
    """Open a complete store for reading.

    Raises:
        StoreError: the store does not exist, has another schema version, or is not complete.
    """
    store = open_store(path)
    done = int((store.status() != PENDING).sum())
    if not store.complete or done < len(store):
        raise StoreError(f"{path} is not complete ({done} of {len(store)} rows); run dfss-score again to finish it")
    return store
