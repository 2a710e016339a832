"""Corpora: from what ``--corpus`` and ``--root`` say to an ordered list of images, and to their bytes.

A corpus is a catalogue name, a folder, WebDataset tars (``shard-{000..127}.tar``, a glob, one tar) or Parquet files
with image bytes; local or behind any fsspec URL:

    corpus = resolve_corpus("imagenet")
    manifest = list_images(corpus)
    with ImageReader(corpus, manifest) as reader:
        data = reader.read(0)
"""

import errno
import logging
import os
import re
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from types import TracebackType
from typing import Literal, Self

import numpy as np

from pipeline.catalogue import catalogue, close_names, expand_braces, find_known, is_glob, match, split_pattern
from pipeline.containers import COMPRESSED, ParquetImages, parquet_file, parquet_keys, tar_images
from pipeline.readers import IMAGE_EXTENSIONS, Files, is_hidden, is_image, is_url, join, open_files, walk_images
from storage.errors import CorpusError, DFSSError, ImageError
from storage.manifest import Manifest, distinct_keys, key_to_path, path_to_key

logger = logging.getLogger(__name__)

COMPRESSED_EXTENSIONS = (".gz", ".tgz", ".bz2", ".tbz2", ".xz", ".txz", ".zst", ".tzst", ".zip", ".7z", ".rar")

_KINDS: dict[str, Literal["tars", "parquet"]] = {".tar": "tars", ".parquet": "parquet"}
_FAULTS_OF_ONE_FILE = (errno.EACCES, errno.EPERM, errno.EIO, errno.EISDIR, errno.ELOOP)


@dataclass(frozen=True, kw_only=True, slots=True)
class Corpus:
    """Where the images of a corpus are. Holds nothing open, and its fields are plain JSON values.

    A store keeps the fields, so that ``Corpus(**fields)`` opens the same images later; if they have moved,
    ``dataclasses.replace(corpus, root=…)`` says where to.
    """

    name: str
    """As the user gave it: a catalogue name, a path or a URL."""

    root: str
    """Folder or URL that everything is relative to, not made absolute; ``.`` where it is the current folder."""

    kind: Literal["folder", "tars", "parquet"]

    pattern: str = ""
    """Tars or Parquet files below the root, with wildcards and braces; empty for a folder of images."""


def resolve_corpus(corpus: str, root: str | None = None) -> Corpus:
    """Find the corpus that ``--corpus`` and ``--root`` name.

    For a catalogue name ``root`` is the folder with the expected layout; a path is taken relative to it.

    Raises:
        CorpusError: when it is not there, holds no images, or is not a corpus.
    """
    known = find_known(corpus)
    with _explained(corpus, root or corpus):
        if known is None:
            return _resolve_path(corpus, join(root, corpus) if root else corpus)
        try:
            folder, pattern = known.find(root)
        except CorpusError as error:
            if root is None and open_files(corpus).is_folder(""):
                raise CorpusError(f"{error}, or --corpus ./{corpus} for the folder of that name here") from None
            raise
        return Corpus(name=corpus, root=folder, kind=_kind(pattern) or "folder", pattern=pattern)


def moved(corpus: Corpus, root: str | None) -> Corpus:
    """The same corpus where it lies now: at ``root``, or where it was. Raises CorpusError where a catalogue's layout is
    not there.
    """
    if root is None:
        return corpus
    if find_known(corpus.name):
        return resolve_corpus(corpus.name, root)
    return replace(corpus, root=root)


def list_images(corpus: Corpus) -> Manifest:
    """List a corpus: one row per image, in an order that depends only on its files.

    Image files are ordered by path; tars and Parquet files by path or as the braces say, and inside by position.

    Raises:
        CorpusError: when a file is missing or is no tar or Parquet file, or no image is found.
    """
    files = open_files(corpus.root)
    with _explained(corpus.name, corpus.root):
        if corpus.kind == "folder":
            return _list_folder(corpus, files)
        sources = _expand(corpus, files)
        return (_list_tars if corpus.kind == "tars" else _list_parquet)(corpus, files, sources)


class ImageReader:
    """Reads images by row. Several threads may read at once; each process makes its own reader.

        with ImageReader(corpus, manifest) as reader:
            data = reader.read(row)

    Every read is random access; reading rows in order is fast for every kind of corpus, and for Parquet, where a whole
    row group has to be read for one image, it is the only fast order.
    """

    def __init__(self, corpus: Corpus, manifest: Manifest) -> None:
        """Read the rows of ``manifest``, which :func:`list_images` made of ``corpus``; nothing is opened yet."""
        self._corpus = corpus
        self._manifest = manifest
        self._files = open_files(corpus.root)
        self._parquet = ParquetImages(self._files)

    def __enter__(self) -> Self:
        """Return the reader."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close what is open."""
        self.close()

    def close(self) -> None:
        """Close what is open; a later read opens it again."""
        self._parquet.close()
        self._files.close()

    def read(self, row: int) -> bytes:
        """Return the encoded image of a row.

        Raises:
            CorpusError: when the file that held it is gone or cannot be reached; the next image would fare no better.
            ImageError: when this one image cannot be read whole.
        """
        manifest, corpus = self._manifest, self._corpus
        index, size = int(manifest.source[row]), int(manifest.size[row])
        name = key_to_path(manifest.keys[row] if index < 0 else manifest.sources[index])
        try:
            if index < 0:
                data = self._files.read_file(name)
            elif corpus.kind == "parquet":
                data = self._parquet.read(name, int(manifest.offset[row]))
            else:
                data = self._files.read_range(name, int(manifest.offset[row]), size)
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
            remedy = "put it back, say where it is now with --root, or list the corpus anew"
            return CorpusError(f"{image} is gone: no {name} in {root}; {remedy}")
        if isinstance(error, OSError) and error.errno in _FAULTS_OF_ONE_FILE and self._manifest.source[row] < 0:
            return ImageError(f"cannot be read: {os.strerror(error.errno or 0)}")
        if _is_outside(error, root):
            return CorpusError(f"cannot read {image} from {join(root, name)}: {_reason(error)}; run again to continue")
        return None


def _resolve_path(name: str, path: str) -> Corpus:
    files = open_files(path)
    if files.is_folder(""):
        return _resolve_folder(name, path, files)
    parent, pattern = split_pattern(path)
    parent = parent or "."
    if files.is_file(""):
        if kind := _kind(pattern):
            return Corpus(name=name, root=parent, kind=kind, pattern=pattern)
        raise CorpusError(f"{path} is {_oddity(pattern)}")
    if is_glob(pattern) or "{" in pattern:
        return _resolve_pattern(name, parent, pattern)
    if re.fullmatch(r"[\w-]+", name):
        guesses = close_names(name)
        raise CorpusError(
            f"{name!r} is neither a path nor a known corpus"
            + (f"; did you mean {' or '.join(guesses)}?" if guesses else "")
            + f" (known: {', '.join(known.name for known in catalogue())})"
        )
    raise CorpusError(f"there is no {path}; give a folder, .tar or .parquet files, or a name of the catalogue")


def _resolve_folder(name: str, path: str, files: Files) -> Corpus:
    if next(walk_images(files), None):
        return Corpus(name=name, root=path, kind="folder")
    names = sorted(entry.name for entry in files.entries("") if not is_hidden(entry.name))
    for suffix, kind in _KINDS.items():
        if any(entry.endswith(suffix) for entry in names):
            return Corpus(name=name, root=path, kind=kind, pattern=f"*{suffix}")
    odd = next((entry for entry in names if entry.lower().endswith(COMPRESSED_EXTENSIONS)), None)
    raise CorpusError(
        f"no image in {path}: looked for {' '.join(IMAGE_EXTENSIONS)} in it and its subfolders, and for .tar and "
        f".parquet files in it" + (f"; {odd} is {_oddity(odd)}" if odd else "")
    )


def _resolve_pattern(name: str, parent: str, pattern: str) -> Corpus:
    files = open_files(parent)
    first = expand_braces(pattern)[0]
    if is_glob(first):
        found = list(match(files, first)) if files.is_folder("") else []
    else:
        found = [first] if files.is_file(first) else []
    # Whether the other names of a range are there, the listing tells: over a network that is a request for each.
    if kinds := [kind for path in found if (kind := _kind(path))]:
        return Corpus(name=name, root=parent, kind=kinds[0], pattern=pattern)
    if found:
        raise CorpusError(f"{found[0]} in {parent} is {_oddity(found[0])}")
    raise CorpusError(f"there is no {first} in {parent}; give .tar or .parquet files, or a folder of images")


def _kind(path: str) -> Literal["tars", "parquet"] | None:
    return _KINDS.get(PurePosixPath(path).suffix)


def _oddity(name: str) -> str:
    if name.lower().endswith(COMPRESSED_EXTENSIONS):
        return COMPRESSED
    if is_image(name):
        return "one image: give its folder"
    return "neither a folder nor a .tar or .parquet file"


def _expand(corpus: Corpus, files: Files) -> list[str]:
    if files.is_file(corpus.pattern):  # as it stands, even where its name looks like a pattern
        return [corpus.pattern]
    names, missing = list[str](), list[str]()
    for choice in (choices := expand_braces(corpus.pattern)):
        if is_glob(choice):
            found = sorted(path for path in match(files, choice) if _kind(path) == corpus.kind)
        else:
            found = [choice] if files.is_file(choice) else []
        names += found
        missing += [] if found else [choice]
    if missing:
        raise CorpusError(
            f"{missing[0]} is missing from {corpus.root} ({len(missing)} of the {len(choices)} that "
            f"{corpus.pattern!r} stands for are); fetch it, or name those that are there"
        )
    return list(dict.fromkeys(names))


def _list_folder(corpus: Corpus, files: Files) -> Manifest:
    keys, sizes = list[str](), array("q")
    for path, size in walk_images(files):
        keys.append(path_to_key(path))
        sizes.append(size)
    if not keys:
        raise CorpusError(f"no image in {corpus.root}: looked for {' '.join(IMAGE_EXTENSIONS)} in all subfolders")
    containers = [entry.name for entry in files.entries("") if _kind(entry.name)]
    if containers:
        logger.warning(
            "%s holds image files, so its %d tars or Parquet files are left out; give them as %s to use them instead",
            *(corpus.root, len(containers), join(corpus.root, "*" + PurePosixPath(containers[0]).suffix)),
        )
    count = len(keys)
    return Manifest(
        keys=keys, source=np.full(count, -1, np.int32), offset=np.zeros(count, np.int64), size=np.array(sizes, np.int64)
    )


def _list_tars(corpus: Corpus, files: Files, tars: list[str]) -> Manifest:
    names, source, offsets, sizes = list[str](), array("i"), array("q"), array("q")
    for index, tar in enumerate(tars):
        for member, offset, size in tar_images(files, tar):
            names.append(path_to_key(member))
            source.append(index)
            offsets.append(offset)
            sizes.append(size)
    if not names:
        raise CorpusError(
            f"no image in {', '.join(tars[:3])}{', …' if tars[3:] else ''} in {corpus.root}: looked for members "
            f"{' '.join(IMAGE_EXTENSIONS)}; a tar of tars has to be unpacked once"
        )
    sources = tuple(map(path_to_key, tars))
    return Manifest(
        keys=distinct_keys(names, source, sources),
        sources=sources,
        source=np.array(source, np.int32),
        offset=np.array(offsets, np.int64),
        size=np.array(sizes, np.int64),
    )


def _list_parquet(corpus: Corpus, files: Files, paths: list[str]) -> Manifest:
    keys, counts, all_have_keys = list[str](), list[int](), True
    for path in paths:
        with parquet_file(files, path) as file:
            own_keys = parquet_keys(file, path)
            counts.append(file.metadata.num_rows)
        all_have_keys = all_have_keys and own_keys is not None
        keys += own_keys or ()
    sources = tuple(map(path_to_key, paths))
    if not all_have_keys or len(set(keys)) != len(keys):
        keys = [f"{source}:{row}" for source, count in zip(sources, counts, strict=True) for row in range(count)]
    if not keys:
        raise CorpusError(f"no image in {len(paths)} Parquet files in {corpus.root}: they have no rows")
    return Manifest(
        keys=keys,
        sources=sources,
        source=np.repeat(np.arange(len(counts), dtype=np.int32), counts),
        offset=np.concatenate([np.arange(count, dtype=np.int64) for count in counts]),
        size=np.full(len(keys), -1, np.int64),
    )


@contextmanager
def _explained(name: str, root: str) -> Iterator[None]:
    try:
        yield
    except DFSSError:
        raise
    except Exception as error:
        if not _is_outside(error, root):
            raise
        raise CorpusError(f"cannot list corpus {name!r} in {root}: {_reason(error)}") from error


def _is_outside(error: Exception, root: str) -> bool:
    # Local files fail with OSErrors; the libraries behind fsspec raise what they like. Anything else is our own fault.
    return isinstance(error, OSError) or is_url(root)


def _reason(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
