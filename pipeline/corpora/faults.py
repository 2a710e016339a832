"""The one place where errors of the system, and of libraries that read what strangers wrote, become errors of ours.

An image's fault is the image's, a container's fault costs what lies behind it, and only a corpus that is gone or out
of reach stops a run.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.corpora.leftout import LeftOut
from storage.errors import CorpusError, DFSSError, ImageError
from storage.files.places import Files, is_hidden, is_url

_OF_THE_PROCESS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
"""What this process or machine lacks, which is the fault of no file."""
_OF_THE_BYTES = (MemoryError, RecursionError, ArithmeticError, LookupError, ValueError, EOFError)
"""What the reading of absurd names, offsets and sizes raises."""
_LONGEST = 200


class DamagedError(CorpusError):
    """One file of a corpus is not what its name says, or is damaged; the other files can be used."""


class _ForeignCode:
    """A block in which a library parses what a stranger wrote. All that it raises becomes a DamagedError.

    Errors of the system keep their type, because they may be those of a network or a disk.
    """

    def __enter__(self) -> None:
        """Do nothing."""

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, Exception) or isinstance(error, DFSSError):
            return
        is_of_system = isinstance(error, OSError) and error.errno is not None
        if not is_of_system and not isinstance(error, TimeoutError | ConnectionError):
            raise DamagedError(reason(error)) from error


FOREIGN_CODE = _ForeignCode()


@contextmanager
def of_container(files: Files, path: str, kind: str, left_out: LeftOut, faults: list[CorpusError]) -> Iterator[None]:
    """Inside the block, which lists one container, let its fault cost that container alone.

    It is counted under ``kind``, and its error is added to ``faults``, for a corpus in which no container can be used.

    Raises:
        OSError: the corpus as a whole is gone or out of reach.
    """
    try:
        yield
    except DamagedError as error:
        fault: CorpusError = error
    except OSError as error:
        if isinstance(error, DFSSError) or error.errno in _OF_THE_PROCESS or not stands(files):
            raise
        fault = DamagedError(f"{path} cannot be read: {reason(error)}")
        fault.__cause__ = error
    else:
        return
    faults.append(fault)
    left_out.add(kind, str(fault))


@contextmanager
def explained(corpus: str, root: str) -> Iterator[None]:
    """Inside the block, turn errors of file access into a CorpusError that names the corpus and its root."""
    try:
        yield
    except DFSSError:
        raise
    except Exception as error:
        if not is_outside(error, root):
            raise
        raise CorpusError(f"cannot list corpus {corpus!r} in {root}: {reason(error)}") from error


def is_outside(error: Exception, root: str) -> bool:
    """Tell whether an error comes from file access or from absurd input, and is not a bug in DFSS."""
    # Local files fail with OSErrors; the libraries behind fsspec raise errors of any type.
    return isinstance(error, OSError | MemoryError | RecursionError) or is_url(root)


def of_image(error: Exception, root: str, container: str = "") -> ImageError | None:
    """Return the fault of one image, whose corpus stands; None for a fault of this process, or a bug.

    The text depends on the kind of fault alone, because it is stored.
    """
    where = f" from {container}" if container else ""
    if isinstance(error, MemoryError):
        return ImageError(f"cannot be read{where}: it asks for more memory than there is")
    if isinstance(error, OSError) and error.errno in _OF_THE_PROCESS:
        return None
    if isinstance(error, OSError) and error.errno is not None:
        text = os.strerror(error.errno) if is_url(root) else error.strerror
        return ImageError(f"cannot be read{where}: {text}")
    if isinstance(error, _OF_THE_BYTES) or is_url(root):
        return ImageError(f"cannot be read{where}: {type(error).__name__}")
    return None


def stands(files: Files) -> bool:
    """Tell whether a corpus as a whole is still there: an unmounted disk leaves nothing or an empty folder."""
    try:
        return any(not is_hidden(entry.name) for entry in files.entries(""))
    except Exception:  # whatever a network raises
        return False


def reason(error: Exception) -> str:
    """Describe an error in one short line."""
    line = " ".join(f"{type(error).__name__}: {error}".split())
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]} …"
