"""The manifest of a corpus: an ordered table that fixes row i to one image.

It is made once, when the corpus is listed, and stored with the scores. It is kept as plain arrays, because a corpus has
millions of rows: apart from its key, a row costs 20 bytes.

A key is unique in its corpus, is valid Unicode, and says where the image is: for a folder it is the path of the file
relative to the root (:func:`key_to_path` gives it back), for tars the member's name, for Parquet a key column.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from storage.errors import CorpusError, SettingsError

_HASHED_AT_ONCE = 65536


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
    """[N] byte offset in the tar, row number in the Parquet file, 0 for a file."""

    size: NDArray[np.int64]
    """[N] bytes of the encoded image, -1 where unknown (Parquet)."""

    def __post_init__(self) -> None:
        """Check what every reader of a manifest relies on."""
        lengths = [len(self.keys), len(self.source), len(self.offset), len(self.size)]
        if len(set(lengths)) != 1:
            raise CorpusError(
                f"manifest columns disagree in length (keys, source, offset, size: {lengths}); list again"
            )
        if not _all_differ(self.keys):
            key, count = Counter(self.keys).most_common(1)[0]
            raise CorpusError(f"key {key!r} occurs {count} times in the manifest; keys must be unique")

    def __len__(self) -> int:
        """Return N, the number of images."""
        return len(self.keys)

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over everything that fixes a row to its image; computed anew at each access."""
        digest = hashlib.sha256(b"dfss manifest 1\n")
        _hash_strings(digest, self.sources)
        _hash_strings(digest, self.keys)
        # A fixed byte order, so that the same corpus has the same fingerprint on every machine.
        digest.update(self.source.astype("<i4").tobytes())
        digest.update(self.offset.astype("<i8").tobytes())
        digest.update(self.size.astype("<i8").tobytes())
        return digest.hexdigest()

    def head(self, limit: int) -> "Manifest":
        """Return the first ``limit`` rows, or all of them where there are fewer.

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


def distinct_keys(names: list[str], source: Sequence[int] | NDArray[np.int32], sources: Sequence[str]) -> list[str]:
    """Return one unique key per image, its name where that is unique in the corpus.

    A name that several sources hold becomes ``SOURCE/name``; a name repeated inside one source gets ``#2``, ``#3``, …
    in the order of the rows. The result depends on nothing but the arguments.

    Args:
        names: N names, in the order of the rows.
        source: [N] index into ``sources`` of the source that holds the name.
        sources: the names of the sources.
    """
    if _all_differ(names):
        return names
    counts = Counter(names)
    first_source: dict[str, int] = {}
    shared: set[str] = set()
    for name, index in zip(names, source, strict=True):
        if counts[name] > 1 and first_source.setdefault(name, int(index)) != int(index):
            shared.add(name)
    # Names that occur once keep their key whatever the others become; so they are taken from the start.
    taken = {name for name, count in counts.items() if count == 1}
    keys = list(names)
    repeats: Counter[str] = Counter()
    for row, (name, index) in enumerate(zip(names, source, strict=True)):
        if counts[name] == 1:
            continue
        base = f"{sources[int(index)]}/{name}" if name in shared else name
        repeats[base] += 1
        key = base if repeats[base] == 1 else f"{base}#{repeats[base]}"
        while key in taken:
            repeats[base] += 1
            key = f"{base}#{repeats[base]}"
        taken.add(key)
        keys[row] = key
    return keys


def _all_differ(names: list[str]) -> bool:
    # Their hashes first: a set of millions of names would be the peak of a whole run's memory.
    hashes = np.fromiter(map(hash, names), dtype=np.int64, count=len(names))
    hashes.sort()
    return bool((np.diff(hashes) != 0).all()) or len(set(names)) == len(names)


def path_to_key(path: str) -> str:
    r"""Return a key that is valid Unicode for any path: bytes that are not UTF-8 become ``\xNN``.

    Only a path with such bytes, or with a literal ``\x``, differs from its key; :func:`key_to_path` is the inverse.
    """
    if path.isascii() and "\\x" not in path:
        return path
    try:
        path.encode()
        needs_escape = "\\x" in path
    except UnicodeEncodeError:
        needs_escape = True
    if not needs_escape:
        return path
    return path.replace("\\", "\\x5c").encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def key_to_path(key: str) -> str:
    """Return the path that :func:`path_to_key` made ``key`` of."""
    if "\\x" not in key:
        return key
    escaped = re.sub(rb"\\x([0-9a-f]{2})", lambda match: bytes([int(match[1], 16)]), key.encode())
    return escaped.decode("utf-8", "surrogateescape")


def _hash_strings(digest: "hashlib._Hash", strings: Sequence[str]) -> None:
    # The lengths go in too: without them ("ab", "c") and ("a", "bc") would be the same.
    digest.update(len(strings).to_bytes(8, "little"))
    for start in range(0, len(strings), _HASHED_AT_ONCE):
        part = strings[start : start + _HASHED_AT_ONCE]
        digest.update(np.fromiter(map(len, part), dtype="<i8", count=len(part)).tobytes())
        digest.update("".join(part).encode("utf-8", "surrogatepass"))
