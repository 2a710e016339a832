"""The manifest of a corpus: an ordered table that fixes row i to one image.

It is made once, when the corpus is listed, and stored with the scores. It is kept as plain arrays, because a corpus has
millions of rows: apart from its key, a row costs 20 bytes.

A key is unique in its corpus and valid Unicode, and it says where the image is. In a folder it is the path of the file
relative to the root (:func:`key_to_path` returns that path). In tars it is the member's name, in Parquet files the
value of a key column.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from storage.errors import CorpusError, SettingsError
from storage.keys import all_differ

_HASHED_AT_ONCE = 65536
GONE = -1
"""Offset of an image that is no longer in its corpus. Its row stays, because a row is never given to another image."""
UNKNOWN = -1
"""The size of an image of which nothing is known."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Manifest:
    """N images in a fixed order; row i is the image called ``keys[i]``.

    Raises:
        CorpusError: when the columns disagree in length, or a key occurs twice.
    """

    keys: list[str]
    """N unique keys."""

    sources: tuple[str, ...] = ()
    """Files that hold the images (tars, Parquet files), relative to the corpus root; none for a folder of images."""

    source: NDArray[np.int32]
    """[N] index into ``sources``, -1 for an image that is a file of its own."""

    offset: NDArray[np.int64]
    """[N] byte offset in the tar, row number in the Parquet file, 0 for a file, :data:`GONE` for what is gone."""

    size: NDArray[np.int64]
    """[N] bytes of the encoded image. Negative where these are unknown: :data:`UNKNOWN`, or less the bytes of the
    Parquet file that holds it, which tell whether the file was replaced."""

    def __post_init__(self) -> None:
        """Check the lengths of the columns and the uniqueness of the keys."""
        lengths = [len(self.keys), len(self.source), len(self.offset), len(self.size)]
        if len(set(lengths)) != 1:
            raise CorpusError(
                f"manifest columns disagree in length (keys, source, offset, size: {lengths}); list again"
            )
        if not all_differ(self.keys):
            key, count = Counter(self.keys).most_common(1)[0]
            raise CorpusError(f"key {key!r} occurs {count} times in the manifest; keys must be unique")

    def __len__(self) -> int:
        """Return N, the number of images."""
        return len(self.keys)

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of everything that ties a row to its image. Each access computes it anew."""
        digest = hashlib.sha256(b"dfss manifest 1\n")
        _hash_strings(digest, self.sources)
        _hash_strings(digest, self.keys)
        # A fixed byte order, so that the same corpus has the same fingerprint on every machine.
        digest.update(self.source.astype("<i4").tobytes())
        digest.update(self.offset.astype("<i8").tobytes())
        digest.update(self.size.astype("<i8").tobytes())
        return digest.hexdigest()

    def head(self, limit: int) -> "Manifest":
        """Return the first ``limit`` rows, or all rows if there are fewer.

        Raises:
            SettingsError: when ``limit`` is below 1.
        """
        if limit < 1:
            raise SettingsError(f"the limit of images is {limit}; give 1 or more")
        return replace(
            self,
            keys=self.keys[:limit],
            source=self.source[:limit],
            offset=self.offset[:limit],
            size=self.size[:limit],
        )


def _hash_strings(digest: "hashlib._Hash", strings: Sequence[str]) -> None:
    # The lengths are hashed too: without them ("ab", "c") and ("a", "bc") would be equal.
    digest.update(len(strings).to_bytes(8, "little"))
    for start in range(0, len(strings), _HASHED_AT_ONCE):
        part = strings[start : start + _HASHED_AT_ONCE]
        digest.update(np.fromiter(map(len, part), dtype="<i8", count=len(part)).tobytes())
        digest.update("".join(part).encode("utf-8", "surrogatepass"))
