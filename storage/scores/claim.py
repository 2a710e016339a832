"""One writer for each output: the claim, and the clearing away of what a killed writer left."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from storage.errors import StoreError


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold a store, present or to be made, for writing. The claim is a kernel's lock on the empty file ``.NAME.lock``
    beside it, so it ends with the process, however that ends; the file itself means nothing.

    Raises:
        StoreError: another process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreError(f"another run is writing {path}; wait for it to end, or give another --out") from None
        yield
    finally:
        os.close(handle)


def sweep(path: Path) -> None:
    """Remove the temporary files that a killed writer left in a store. Only for the one who holds it."""
    for leftover in path.rglob("*.partial"):
        leftover.unlink(missing_ok=True)
