"""Listing a corpus once, and reading its images by row."""

import errno
import os
from types import TracebackType
from typing import Self

from pipeline.corpora.corpus import Corpus, explained, is_outside, reason
from pipeline.corpora.formats import FORMATS, format_of
from pipeline.corpora.leftout import LeftOut
from pipeline.corpora.patterns import expand_braces, is_glob, match
from pipeline.corpora.recognise import ARCHIVE_EXTENSIONS
from storage.errors import CorpusError, DFSSError, ImageError
from storage.files.places import Files, is_hidden, join, open_files
from storage.keys import key_to_path
from storage.manifest import GONE, Manifest

NO_LONGER = "no longer exists"
_FAULTS_OF_ONE_FILE = (errno.EACCES, errno.EPERM, errno.EIO, errno.EISDIR, errno.ELOOP)


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

    def __init__(self, corpus: Corpus, manifest: Manifest) -> None:
        """Make a reader of ``manifest``, which :func:`list_images` made from ``corpus``; open nothing yet."""
        self._corpus = corpus
        self._manifest = manifest
        self._files = open_files(corpus.root)
        self._images = FORMATS[corpus.kind].reader(self._files, corpus.column)

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
        try:
            data = self._images.read(name, int(manifest.offset[row]), size)
        except DFSSError:
            raise
        except Exception as error:
            if (failure := self._failure(row, name, error)) is None:
                raise
            raise failure from error
        if 0 <= size != len(data):
            raise ImageError(f"{len(data)} bytes where {size} were listed: cut off or replaced since")
        return data

    def _failure(self, row: int, name: str, error: Exception) -> DFSSError | None:
        image = f"image {self._manifest.keys[row]!r} of corpus {self._corpus.name!r}"
        root = self._corpus.root
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            if self._manifest.source[row] < 0 and self._stands():
                return ImageError(NO_LONGER)
            remedy = "restore it, give its new place with --root, or run again to go on with what is left"
            return CorpusError(f"{image} no longer exists: no {name} in {root}; {remedy}")
        if isinstance(error, OSError) and error.errno in _FAULTS_OF_ONE_FILE and self._manifest.source[row] < 0:
            return ImageError(f"cannot be read: {os.strerror(error.errno or 0)}")
        if is_outside(error, root):
            return CorpusError(f"cannot read {image} from {join(root, name)}: {reason(error)}; run again to continue")
        return None

    def _stands(self) -> bool:
        """Tell whether the corpus as a whole is still there: an unmounted disk leaves nothing or an empty folder."""
        try:
            return any(not is_hidden(entry.name) for entry in self._files.entries(""))
        except OSError:
            return False
