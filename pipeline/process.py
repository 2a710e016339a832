"""Changes that a command makes to its own process. The library makes none, because its process is the caller's."""

import ctypes
import logging
from contextlib import suppress
from pathlib import Path


def own_process() -> None:
    """Prepare a process that runs one stage and ends."""
    keep_freed_memory()
    silence_image_libraries()


def keep_freed_memory() -> None:
    """Let the C library keep the memory that large tensors free, for the next tensors.

    Otherwise it returns the pages to the system, which zeroes them again. On CPUs that takes a quarter to a third of a
    network's forward pass (docs/speed.md). Without glibc the function does nothing.
    """
    m_trim_threshold, m_mmap_threshold = -1, -3  # malloc.h
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(m_trim_threshold, 2**31 - 1)
        # Older versions accept at most 32 MiB, and return 0 for more.
        _ = mallopt(m_mmap_threshold, 1 << 30) or mallopt(m_mmap_threshold, 1 << 25)


def silence_image_libraries() -> None:
    """Keep messages of Pillow and libtiff about odd files off the terminal. The scores keep the fault of an image."""
    import PIL.Image

    # Pillow logs some faults of TIFF files; without a handler, logging would print them.
    logging.getLogger("PIL").addHandler(logging.NullHandler())
    logging.getLogger("PIL").propagate = False
    # The libtiff in Pillow's wheels prints its errors itself, in addition to Pillow's exceptions.
    package = Path(PIL.Image.__file__).parent
    for library in (*package.parent.glob("pillow.libs/libtiff*"), *package.glob(".dylibs/libtiff*")):
        with suppress(OSError, AttributeError):
            ctypes.CDLL(str(library)).TIFFSetErrorHandler(None)
