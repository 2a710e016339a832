"""Patterns of file names with wildcards and braces, for ``--corpus`` and the catalogue."""

import fnmatch
import re
from collections.abc import Iterator

from pipeline.corpora.leftout import LeftOut
from pipeline.corpora.walk import list_sorted, walk
from storage.errors import CorpusError
from storage.files.places import Entry, Files, is_hidden

MAX_BRACE_CHOICES = 1_000_000


def split_pattern(path: str) -> tuple[str, str]:
    """Split a path before its first part that has a wildcard or brace; if none has, before its last part."""
    prefix, body = re.fullmatch(r"([\w.+:-]*://|/)?(.*)", path, re.DOTALL).groups(default="")  # type: ignore[union-attr]
    parts = body.split("/")
    special = (index for index, part in enumerate(parts) if is_glob(part) or "{" in part)
    index = next(special, len(parts) - 1)
    return prefix + "/".join(parts[:index]), "/".join(parts[index:])


def expand_braces(pattern: str) -> list[str]:
    """Return the names that a pattern with ``{000..127}`` or ``{a,b}`` stands for, in the order of its braces.

    Raises:
        CorpusError: when the braces hold something else, or stand for more than a million names.
    """
    braces = re.search(r"\{([^{}]*)\}", pattern)
    if braces is None:
        return [pattern]
    if span := re.fullmatch(r"(\d+)\.\.(\d+)", braces[1]):
        first, last = int(span[1]), int(span[2])
        # As in the shell, a leading zero on either side makes all numbers equally wide.
        padded = any(len(end) > 1 and end.startswith("0") for end in span.groups())
        width = max(map(len, span.groups())) if padded else 0
        choices = [f"{number:0{width}d}" for number in range(first, min(last, first + MAX_BRACE_CHOICES) + 1)]
    else:
        choices = braces[1].split(",") if "," in braces[1] else []
    tails = expand_braces(pattern[braces.end() :])
    if not 0 < len(choices) * len(tails) <= MAX_BRACE_CHOICES:
        raise CorpusError(f"cannot expand {braces[0]} in {pattern!r}; write a range like {{000..127}}, or {{a,b}}")
    return [f"{pattern[: braces.start()]}{choice}{tail}" for choice in choices for tail in tails]


def match(files: Files, pattern: str) -> Iterator[str]:
    """Yield the files that match a glob (``*``, ``?``, ``[…]``, ``**``), lazily, folder by folder, each sorted."""
    return (path for path, _ in match_entries(files, pattern))


def match_entries(
    files: Files, pattern: str, folder: str = "", left_out: LeftOut | None = None
) -> Iterator[tuple[str, int]]:
    """Yield (path, bytes) as :func:`match` yields paths; count folders that cannot be opened."""
    part, _, rest = pattern.partition("/")
    if part == "**":
        # The walk lists every folder, and what it cannot enter is counted once.
        yield from match_entries(files, rest or "*", folder)
        for path, entry in walk(files, folder, left_out=left_out, skips=_is_no_part):
            if entry.is_folder:
                yield from match_entries(files, rest or "*", path)
    elif rest and not is_glob(part):
        if files.is_folder(inside := f"{folder}/{part}" if folder else part):
            yield from match_entries(files, rest, inside, left_out)
    else:
        for entry in list_sorted(files, folder, LeftOut() if left_out is None else left_out):
            path = f"{folder}/{entry.name}" if folder else entry.name
            fits = entry.is_folder == bool(rest) and fnmatch.fnmatchcase(entry.name, part)
            if not fits or _is_no_part(path, entry):
                continue
            if rest:
                yield from match_entries(files, rest, path, left_out)
            else:
                yield path, entry.size


def _is_no_part(path: str, entry: Entry) -> bool:
    """Tell whether an entry is hidden, or can be neither read nor entered."""
    return bool(entry.fault) or is_hidden(entry.name)


def is_glob(pattern: str) -> bool:
    """Tell whether a pattern has a wildcard."""
    return any(character in pattern for character in "*?[")
