"""Publishing whole files and folders: a reader sees the old one or the new one, never half of either."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def publish(path: Path) -> Iterator[Path]:
    """Yield a sibling path to write to; on success it becomes ``path``, on failure it is removed.

    Works for one file or one folder, whichever the body creates. The sibling's name is fixed, so that what a killed
    process left behind is replaced by the next one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    remove(partial)
    try:
        yield partial
        if partial.is_dir():
            remove(path)  # a folder cannot be renamed onto a full one
        os.replace(partial, path)  # noqa: PTH105  (the name says that it replaces)
    finally:
        remove(partial)


def remove(path: Path) -> None:
    """Remove a file or a folder with all it holds; nothing happens where it is absent."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
