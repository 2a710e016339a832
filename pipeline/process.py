"""What a command does to its own process. The library does none of it, for its process belongs to somebody else."""

import ctypes
import logging
from contextlib import suppress
from pathlib import Path


def own_process() -> None:
    """Prepare a process that runs one stage and ends."""
    keep_freed_memory()
    silence_image_libraries()


def keep_freed_memory() -> None:
    """Let the C library keep what large tensors free, for the next ones, instead of giving every one back to the
    system and having its pages zeroed again: on CPUs a quarter to a third of a network's forward (docs/speed.md).

    Does nothing where there is no glibc.
    """
    m_trim_threshold, m_mmap_threshold = -1, -3  # malloc.h
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(m_trim_threshold, 2**31 - 1)
        # Older ones take no more than 32 MiB, and say 0 then.
        _ = mallopt(m_mmap_threshold, 1 << 30) or mallopt(m_mmap_threshold, 1 << 25)


def silence_image_libraries() -> None:
    """Keep what Pillow and libtiff say of odd files off the terminal; scores keep what is wrong with an image."""
    import PIL.Image

    # Pillow logs some faults of TIFF files; without a handler, logging would print them.
    logging.getLogger("PIL").addHandler(logging.NullHandler())
    logging.getLogger("PIL").propagate = False
    # The libtiff in Pillow's wheels prints its errors itself, beside the exceptions that Pillow makes of them.
    package = Path(PIL.Image.__file__).parent
    for library in (*package.parent.glob("pillow.libs/libtiff*"), *package.glob(".dylibs/libtiff*")):
        with suppress(OSError, AttributeError):
            ctypes.CDLL(str(library)).TIFFSetErrorHandler(None)
