"""Keys of images: unique in their corpus, valid Unicode, and reversible to the paths that they come from."""

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def distinct_keys(names: list[str], source: Sequence[int] | NDArray[np.int32], sources: Sequence[str]) -> list[str]:
    """Return one unique key per image, its name where that is unique in the corpus.

    A name that occurs in several sources becomes ``SOURCE/name``. A name repeated inside one source gets ``#2``,
    ``#3``, … in the order of the rows. The result depends on the arguments alone.

    Args:
        names: N names, in the order of the rows.
        source: [N] index into ``sources`` of the source that holds the name.
        sources: the names of the sources.
    """
    if all_differ(names):
        return names
    counts = Counter(names)
    first_source: dict[str, int] = {}
    shared: set[str] = set()
    for name, index in zip(names, source, strict=True):
        if counts[name] > 1 and first_source.setdefault(name, int(index)) != int(index):
            shared.add(name)
    # Names that occur once are reserved first, so that they keep their key whatever the others become.
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


def all_differ(names: list[str]) -> bool:
    """Tell whether no name occurs twice."""
    # Hashes are compared first: a set of millions of names would be the peak of a whole run's memory.
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
    """Return the path from which :func:`path_to_key` made ``key``."""
    if "\\x" not in key:
        return key
    escaped = re.sub(rb"\\x([0-9a-f]{2})", lambda match: bytes([int(match[1], 16)]), key.encode())
    return escaped.decode("utf-8", "surrogateescape")
