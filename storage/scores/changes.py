"""How a corpus differs from the manifest that was stored of it, and the manifest by which a run goes on.

A row stays with its image for ever. An image is known again by its key or, where the keys have changed because another
file brought the same name, by its place. What is new gets no row.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from storage.manifest import GONE, UNKNOWN, Manifest


@dataclass(frozen=True, kw_only=True, slots=True)
class Changes:
    """A corpus that has changed: N rows of the stored manifest, and what became of them."""

    manifest: Manifest
    """The N rows at the places where their images lie now."""

    gone: NDArray[np.int64]
    """Rows whose image is no longer in the corpus; those that were gone before are not counted again."""

    replaced: NDArray[np.int64]
    """Rows whose image, or the Parquet file that holds it, has another size in bytes, and rows that have come back."""

    new: Sequence[str]
    """Keys of images that have no row."""

    absent: int
    """Number of rows without an image, now and before."""


def compare(held: Manifest, listed: Manifest) -> Changes:
    """Find each row of ``held`` in a new listing of the corpus.

    An image whose size is unknown, or that has another image's size by chance, cannot be told by a listing.
    """
    found = _places(held, listed)
    here = found >= 0
    sources = tuple(dict.fromkeys((*held.sources, *listed.sources)))
    index = {name: number for number, name in enumerate(sources)}
    # A source of -1 takes the last element, and a file of its own has no source.
    renamed = np.array([*(index[name] for name in listed.sources), -1], np.int32)
    source, offset, size = held.source.copy(), held.offset.copy(), held.size.copy()
    was_gone = held.offset == GONE
    source[here] = renamed[listed.source[found[here]]]
    offset[here], size[here] = listed.offset[found[here]], listed.size[found[here]]
    source[~here], offset[~here], size[~here] = -1, GONE, UNKNOWN
    differs = here & (held.size != UNKNOWN) & (size != UNKNOWN) & (size != held.size)
    taken = np.zeros(len(listed), bool)
    taken[found[here]] = True
    return Changes(
        manifest=Manifest(keys=held.keys, sources=sources, source=source, offset=offset, size=size),
        gone=np.flatnonzero(~here & ~was_gone),
        replaced=np.flatnonzero(differs | (here & was_gone)),
        new=[listed.keys[row] for row in np.flatnonzero(~taken)],
        absent=int((~here).sum()),
    )


def _places(held: Manifest, listed: Manifest) -> NDArray[np.int64]:
    """The row of ``listed`` that has the image of each row of ``held``, [N]; -1 where none has."""
    by_key = {key: row for row, key in enumerate(listed.keys)}
    found = np.array([by_key.get(key, -1) for key in held.keys], np.int64)
    missing, known = np.flatnonzero(found < 0), set(held.keys)
    if len(missing) == 0 or not held.sources:
        return found
    by_place = {_place(listed, row): row for row, key in enumerate(listed.keys) if key not in known}
    for row in map(int, missing):
        found[row] = by_place.get(_place(held, row), -1)
    return found


def _place(manifest: Manifest, row: int) -> tuple[str, int, int]:
    source = int(manifest.source[row])
    name = manifest.sources[source] if source >= 0 else manifest.keys[row]
    return name, int(manifest.offset[row]), max(int(manifest.size[row]), UNKNOWN)
