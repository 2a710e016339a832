"""Walks through the folders of a corpus, in the order of paths, into each of them once and to any depth."""

from collections.abc import Callable, Hashable, Iterator

from pipeline.corpora.faults import stands
from pipeline.corpora.leftout import LeftOut
from storage.files.places import Entry, Files

CLOSED_FOLDERS = "folders that cannot be opened"
TWINS = "links to folders that are visited at another place"


def walk(
    files: Files,
    folder: str = "",
    *,
    left_out: LeftOut | None = None,
    skips: Callable[[str, Entry], bool] = lambda path, entry: False,
) -> Iterator[tuple[str, Entry]]:
    """Yield (path, entry) of all that lies below ``folder``, a folder before what it holds.

    What ``skips`` names is neither yielded nor entered. Links to folders are followed unless their target is met at
    another place, so links that cross end. An entry with a fault is yielded and not entered.

    Raises:
        OSError: the root cannot be listed, or the corpus is out of reach.
    """
    counted = LeftOut() if left_out is None else left_out
    visited: set[Hashable] = {files.identity(folder)}
    stack = [(folder, iter(list_sorted(files, folder, counted)))]
    while stack:
        parent, entries = stack[-1]
        if (entry := next(entries, None)) is None:
            stack.pop()
            continue
        path = f"{parent}/{entry.name}" if parent else entry.name
        if skips(path, entry):
            continue
        if entry.is_folder and not entry.fault:
            if entry.is_twin or (identity := _identity(files, path)) in visited:
                counted.add(TWINS, path)
                continue
            visited.add(identity)
            stack.append((path, iter(list_sorted(files, path, counted))))
        yield path, entry


def list_sorted(files: Files, folder: str, left_out: LeftOut) -> list[Entry]:
    """Return what lies in a folder, in the order of the paths below it. A closed folder is counted, and gives nothing.

    Raises:
        OSError: the folder is the root, or the corpus is out of reach.
    """
    try:
        entries = files.entries(folder)
    except OSError:
        if not folder or not stands(files):
            raise
        left_out.add(CLOSED_FOLDERS, folder)
        return []
    # "a-b.jpg" sorts before "a/x.jpg". With the slash, the order inside a folder is the order of the complete paths.
    return sorted(entries, key=lambda entry: f"{entry.name}/" if entry.is_folder else entry.name)


def _identity(files: Files, folder: str) -> Hashable:
    try:
        return files.identity(folder)
    except OSError:  # listing it meets the error again
        return folder
