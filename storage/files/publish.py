"""Atomic publishing of files and folders: a reader sees the old one or the new one, never half of either."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from storage.errors import SettingsError


@contextmanager
def publish(path: Path) -> Iterator[Path]:
    """Yield a sibling path to write to; on success it becomes ``path``, on failure it is removed.

    The body may create one file or one folder. A file gets the permissions of any new file (the umask), whatever made
    it. The siblings' names are fixed, so that the next process removes what a killed one left behind.

    Raises:
        SettingsError: ``path`` is a folder such as ``.`` that cannot be replaced.
    """
    if not path.name:
        raise SettingsError(f"{path} is a folder that cannot be replaced; give the name of a file or folder to write")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial, old = path.with_name(f"{path.name}.partial"), path.with_name(f"{path.name}.old.partial")
    remove(partial)
    try:
        partial.touch()  # the umask can be read only by making a file, or by changing it for all threads
        permissions = partial.stat().st_mode & 0o777
        partial.unlink()
        yield partial
        if partial.is_file():
            partial.chmod(permissions)
        if partial.is_dir() and path.exists():
            # A folder cannot be renamed onto one that is not empty, and a half-deleted one must never look complete.
            remove(old)
            os.replace(path, old)  # noqa: PTH105  (the name says that it replaces)
        os.replace(partial, path)  # noqa: PTH105
    except BaseException:
        with suppress(OSError):  # another thread may still write there; the next process removes what is left
            remove(partial)
        raise
    finally:
        remove(old)


def remove(path: Path) -> None:
    """Remove a file, or a folder with its contents; do nothing if it does not exist."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Publish values as JSON; the same values give the same bytes."""
    with publish(path) as partial:
        partial.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")
