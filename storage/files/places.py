"""Where files lie: below a local folder or behind an fsspec URL.

:class:`Files` is the interface of every place, so that listing and reading a corpus are written once. Add a new kind of
place to :func:`open_files`; it must pass the contract of tests/storage_files_contract.py.
"""

from collections.abc import Hashable
from typing import BinaryIO, NamedTuple, Protocol

from storage.errors import ImageError


class Entry(NamedTuple):
    """One entry of a folder; ``size`` in bytes, -1 where unknown."""

    name: str
    is_folder: bool
    size: int
    fault: str = ""
    """What it is instead, where it is neither a file nor a folder that can be entered: a broken link, a pipe, ..."""
    is_twin: bool = False
    """It is a link to a folder that a walk from the root meets at its own place."""


class Files(Protocol):
    """Files below a root, addressed by posix paths relative to it; ``""`` is the root itself.

    The methods raise FileNotFoundError where a file does not exist. Other errors are those of the place.
    """

    def is_file(self, path: str) -> bool:
        """Tell whether ``path`` is a file."""
        ...

    def is_folder(self, path: str) -> bool:
        """Tell whether ``path`` is a folder."""
        ...

    def entries(self, folder: str) -> list[Entry]:
        """Return what lies in ``folder``, unsorted."""
        ...

    def identity(self, folder: str) -> Hashable:
        """Return what tells a folder from all others, by whatever path it is reached."""
        ...

    def open(self, path: str) -> BinaryIO:
        """Open a file for reading and seeking."""
        ...

    def read_file(self, path: str, most: int | None = None) -> bytes:
        """Return a whole file; raise a :class:`~storage.errors.ImageError` for more than ``most`` bytes."""
        ...

    def read_range(self, path: str, offset: int, size: int) -> bytes:
        """Return ``size`` bytes from ``offset``, or fewer where the file ends."""
        ...

    def close(self) -> None:
        """Release open files and memory; a later call opens them again."""
        ...


def check_size(size: int, most: int | None) -> None:
    """Refuse a file of more than ``most`` bytes, None for any number, before it fills the memory.

    Raises:
        ImageError: it has more.
    """
    if most is not None and size > most:
        raise ImageError(f"{size:,} bytes, and no image has more than {most:,} (see --max-pixels)")


def open_files(root: str) -> Files:
    """Return the files below a local folder or fsspec URL.

    Raises:
        CorpusError: when the protocol is unknown, or the package that serves it is not installed.
    """
    for prefix in ("file://", "local://"):
        root = root.removeprefix(prefix)
    if is_url(root):
        from storage.files.remote import RemoteFiles

        return RemoteFiles(root)
    from storage.files.local import LocalFiles

    return LocalFiles(root)


SYSTEM_FOLDERS = ("__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found")
"""Folders that systems make for themselves: resource forks, thumbnails, deleted files."""


def is_hidden(name: str) -> bool:
    """Tell whether a file or folder name belongs to the system and not to the corpus (``._x.jpg``, ``__MACOSX``)."""
    return name in SYSTEM_FOLDERS or (name.startswith(".") and name not in (".", ".."))


def is_url(path: str) -> bool:
    """Tell whether a path is a URL, which fsspec opens."""
    return "://" in path or "::" in path


def join(root: str, path: str) -> str:
    """Join a root and a posix path below it; ``""`` and ``.`` as root stand for the current folder."""
    if not path or root in ("", "."):
        return path or root
    return f"{root}{path}" if root.endswith("/") else f"{root}/{path}"
