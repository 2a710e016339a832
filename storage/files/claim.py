"""One writer for each output: the claim of a writer, and the removal of what a killed writer left."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from storage.errors import SettingsError, StoreError

logger = logging.getLogger(__name__)


@contextmanager
def exclusive(path: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold an output, which need not exist yet, for writing.

    The claim is the system's lock on the file ``.NAME.lock`` beside the output. So it ends with the process, however
    that ends. The file itself has no meaning. With ``wait`` the block begins when no other process holds the output; a
    line says that it waits.

    Raises:
        StoreError: another process holds it.
        SettingsError: ``path`` is a folder such as ``.`` that cannot be replaced.
    """
    if not path.name:
        raise SettingsError(f"{path} is a folder; give the name of the output to write")
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if not wait:
            raise StoreError(f"another run is writing {path}; wait for it to end, or give another --out") from None
        logger.info("another run is writing %s; waiting for it to end", path)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def sweep(path: Path) -> None:
    """Remove the temporary files that a killed writer left in a store. The caller must hold the store."""
    for leftover in path.rglob("*.partial"):
        leftover.unlink(missing_ok=True)
