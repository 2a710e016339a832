"""Listing a corpus once, and reading its images by row."""

import time
from types import TracebackType
from typing import Self

from pipeline.corpora.corpus import Corpus
from pipeline.corpora.faults import DamagedError, explained, is_outside, of_image, reason, stands
from pipeline.corpora.formats import FORMATS, format_of
from pipeline.corpora.leftout import LeftOut
from pipeline.corpora.patterns import expand_braces, is_glob, match
from pipeline.corpora.recognise import ARCHIVE_EXTENSIONS
from storage.errors import CorpusError, DFSSError, ImageError
from storage.files.places import Files, check_size, is_hidden, is_url, join, open_files
from storage.keys import key_to_path
from storage.manifest import GONE, Manifest

NO_LONGER = "no longer exists"
MAX_BYTES = 2**29
"""By default, most bytes of an encoded image: one of 16-bit RGB with the default of most pixels, uncompressed."""
_PAUSE = 1.0
"""Seconds until a read is tried again that failed in a network."""


def list_images(corpus: Corpus) -> Manifest:
    """List a corpus: one row per image, in an order that depends only on its files. Say what is left out.

    Image files are ordered by path. Tars and Parquet files are ordered by path or by the braces, and their images by
    position.

    Raises:
        CorpusError: when a file is missing or is not of the corpus's format, or no image is found.
    """
    files, left_out, form = open_files(corpus.root), LeftOut(), FORMATS[corpus.kind]
    with explained(corpus.name, corpus.root):
        paths = _expand(corpus, files) if form.suffix else []
        manifest = form.lister(corpus, files, paths, left_out)
        if form.suffix and is_glob(corpus.pattern):
            _count_others(files, form.suffix, left_out)
    left_out.log(corpus.root)
    return manifest


def _count_others(files: Files, suffix: str, left_out: LeftOut) -> None:
    """Count the archives of other kinds that lie beside those of a corpus."""
    for entry in sorted(files.entries("")):
        name = entry.name.lower()
        if name.endswith(ARCHIVE_EXTENSIONS) and not name.endswith(suffix) and not is_hidden(entry.name):
            left_out.add(f"archives or tables of another kind than {suffix}", entry.name)


def _expand(corpus: Corpus, files: Files) -> list[str]:
    if files.is_file(corpus.pattern):  # an existing file is taken literally, even if its name looks like a pattern
        return [corpus.pattern]
    names, missing = list[str](), list[str]()
    for choice in (choices := expand_braces(corpus.pattern)):
        if is_glob(choice):
            found = sorted(path for path in match(files, choice) if format_of(path) == corpus.kind)
        else:
            found = [choice] if files.is_file(choice) else []
        names += found
        missing += [] if found else [choice]
    if missing:
        raise CorpusError(
            f"{missing[0]} is missing from {corpus.root} ({len(missing)} of the {len(choices)} that "
            f"{corpus.pattern!r} stands for are); fetch it, or name the files that exist"
        )
    return list(dict.fromkeys(names))


class ImageReader:
    """Reads images by row. Several threads may read at once; each process makes its own reader.

        with ImageReader(corpus, manifest) as reader:
            data = reader.read(row)

    Every read is random access. Reading rows in order is fast for every kind of corpus. For Parquet it is the only fast
    order, because one image costs the reading of a whole row group.
    """

    def __init__(self, corpus: Corpus, manifest: Manifest, *, most: int = MAX_BYTES) -> None:
        """Make a reader of ``manifest``, which :func:`list_images` made from ``corpus``; open nothing yet.

        Images of more than ``most`` bytes are not read.
        """
        self._corpus = corpus
        self._manifest = manifest
        self._most = most
        self._files = open_files(corpus.root)
        self._images = FORMATS[corpus.kind].reader(self._files, corpus.column, most)
        self._last_read = ""
        """The file that was read last without a fault."""
        self._lost = dict[int, str]()
        """Why the images of a tar or Parquet file are not read any more, by its number."""

    def __enter__(self) -> Self:
        """Return the reader."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the open files."""
        self.close()

    def close(self) -> None:
        """Close the open files; a later read opens them again."""
        self._images.close()
        self._files.close()

    def read(self, row: int) -> bytes:
        """Return the encoded image of a row.

        Raises:
            CorpusError: when its file holds others too and no longer exists, or the corpus cannot be reached.
            ImageError: when this one image no longer exists or cannot be read completely.
        """
        manifest = self._manifest
        if manifest.offset[row] == GONE:
            raise ImageError(NO_LONGER)
        index, size = int(manifest.source[row]), int(manifest.size[row])
        name = key_to_path(manifest.keys[row] if index < 0 else manifest.sources[index])
        check_size(size, self._most)
        if index in self._lost:
            raise ImageError(self._lost[index])
        try:
            data = self._attempt(name, int(manifest.offset[row]), size)
        except DamagedError as error:
            self._lost[index] = str(error)
            raise ImageError(str(error)) from error
        except DFSSError:
            raise
        except Exception as error:
            if (failure := self._failure(row, name, error)) is None:
                raise
            raise failure from error
        self._last_read = name
        if 0 <= size != len(data):
            raise ImageError(f"{len(data)} bytes where {size} were listed: cut off or replaced since")
        return data

    def give_up(self, row: int) -> None:
        """Note that the reading of a row does not end. What lies in the same tar or Parquet file is not tried."""
        if (index := int(self._manifest.source[row])) >= 0:
            self._lost[index] = f"not read: {key_to_path(self._manifest.sources[index])} does not answer"

    def _attempt(self, name: str, offset: int, size: int) -> bytes:
        try:
            return self._images.read(name, offset, size)
        except (DFSSError, MemoryError, FileNotFoundError, PermissionError):
            raise
        except Exception:
            if not is_url(self._corpus.root):
                raise
        time.sleep(_PAUSE)  # networks fail now and then
        return self._images.read(name, offset, size)

    def _failure(self, row: int, name: str, error: Exception) -> DFSSError | None:
        is_file = self._manifest.source[row] < 0
        image = f"image {self._manifest.keys[row]!r} of corpus {self._corpus.name!r}"
        root = self._corpus.root
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            if is_file and self._stands():
                return ImageError(NO_LONGER)
            remedy = "restore it, give its new place with --root, or run again to go on with what is left"
            return CorpusError(f"{image} no longer exists: no {name} in {root}; {remedy}")
        fault = of_image(error, root, "" if is_file else name)
        if fault is not None and self._stands():
            return fault
        if is_outside(error, root):
            return CorpusError(f"cannot read {image} from {join(root, name)}: {reason(error)}; run again to continue")
        return None

    def _stands(self) -> bool:
        """Tell whether the corpus is still there: by the file that was read last, and if that is gone by the root."""
        try:
            return (bool(self._last_read) and self._files.is_file(self._last_read)) or stands(self._files)
        except Exception:  # whatever a network raises
            return False
