"""A corpus of image files: those below a folder, those that match a glob, or those that a text file names."""

from array import array
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath

import numpy as np

from pipeline.corpora.corpus import Corpus
from pipeline.corpora.leftout import LeftOut
from pipeline.corpora.patterns import expand_braces, match_entries
from pipeline.corpora.recognise import Recogniser, no_image
from pipeline.corpora.walk import walk
from pipeline.decoding.formats import HEAD_BYTES
from storage.errors import CorpusError
from storage.files.places import Files, is_url, join, open_files
from storage.keys import path_to_key
from storage.manifest import Manifest

LIST_EXTENSIONS = (".txt", ".lst", ".list")
"""Text files with these extensions name the images of a corpus, a path in a line."""
_LINES_TRIED = 100


def walk_images(files: Files, recogniser: Recogniser) -> Iterator[tuple[str, int]]:
    """Yield (path, bytes) of every image, in the order of their paths."""
    for path, entry in walk(files, left_out=recogniser.left_out, skips=recogniser.skips):
        if entry.fault:
            recogniser.cannot_read(entry.fault, path)
        elif not entry.is_folder and is_image_file(files, path, recogniser):
            yield path, entry.size


def is_image_file(files: Files, path: str, recogniser: Recogniser) -> bool:
    """Tell whether a file is an image, by its name or its first bytes."""
    return recogniser.is_image(path, lambda: files.read_range(path, 0, HEAD_BYTES))


def list_folder(corpus: Corpus, files: Files, paths: list[str], left_out: LeftOut) -> Manifest:
    """List every image below the corpus's root, or those that match its pattern; ``paths`` is empty.

    Raises:
        CorpusError: there is no image.
    """
    recogniser = Recogniser(left_out=left_out, include=corpus.include)
    if corpus.pattern:
        found: Iterable[tuple[str, int]] = _matching(files, corpus.pattern, recogniser)
    else:
        found = walk_images(files, recogniser)
    return _manifest(found, corpus, left_out)


def list_lines(corpus: Corpus, files: Files, paths: list[str], left_out: LeftOut) -> Manifest:
    """List the images that a text file names, in its order. A path that does not exist is an unreadable image.

    Raises:
        CorpusError: the text file names no image, or none of those that it names first exists.
    """
    recogniser = Recogniser(left_out=left_out, include=corpus.include)
    named = read_lines(corpus.pattern)
    if not any(map(files.is_file, named[:_LINES_TRIED])):
        raise CorpusError(
            f"none of the images that {corpus.pattern} names exists in {corpus.root} (the first is "
            f"{named[0]}); give the folder of its paths with --root"
        )
    lines = dict.fromkeys(named)
    for _ in range(len(named) - len(lines)):
        left_out.add("lines that repeat another", corpus.pattern)
    return _manifest(((path, -1) for path in lines if is_image_file(files, path, recogniser)), corpus, left_out)


def read_lines(path: str) -> list[str]:
    """Return the paths that a text file names, a path in a line.

    Raises:
        CorpusError: it names none, or is no text.
    """
    folder, name = (path.rpartition("/")[0], path.rpartition("/")[2]) if "/" in path else ("", path)
    try:
        text = open_files(folder or ("/" if path.startswith("/") else ".")).read_file(name).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise CorpusError(f"{path} is no UTF-8 text; give a text file with the path of an image in each line") from None
    lines = [line.strip() for line in text.splitlines()]
    if not (found := [line.removeprefix("./") for line in lines if line and not line.startswith("#")]):
        raise CorpusError(f"{path} names no image; give a text file with the path of an image in each line")
    return found


def list_root(path: str, root: str | None) -> str:
    """Return the folder to which the paths of a text file are relative.

    It is ``root`` if given, ``/`` where a path is absolute, and otherwise the folder of the text file or the current
    folder, whichever has the first image.

    Raises:
        CorpusError: the text file names no image, names URLs, or mixes absolute and relative paths.
    """
    lines = read_lines(path)
    if addresses := [line for line in lines if is_url(line)]:
        raise CorpusError(f"{path} names the address {addresses[0]}; fetch the images, or give their common --root")
    absolute = [line.startswith("/") for line in lines]
    if any(absolute) and (root or not all(absolute)):
        raise CorpusError(
            f"{path} names absolute and relative paths; give only one kind, and --root only with relative"
        )
    if root or all(absolute):
        return root or "/"
    beside = path.rpartition("/")[0] or ("/" if path.startswith("/") else ".")
    here = open_files(".").is_file(lines[0]) and not open_files(beside).is_file(lines[0])
    return "." if here else beside


def _matching(files: Files, pattern: str, recogniser: Recogniser) -> Iterator[tuple[str, int]]:
    for choice in dict.fromkeys(expand_braces(pattern)):
        entries = match_entries(files, choice, left_out=recogniser.left_out)
        yield from sorted((path, size) for path, size in entries if is_image_file(files, path, recogniser))


def _manifest(found: Iterable[tuple[str, int]], corpus: Corpus, left_out: LeftOut) -> Manifest:
    keys, sizes = list[str](), array("q")
    for path, size in found:
        keys.append(path_to_key(path.removeprefix("/")))
        sizes.append(size)
    if not keys:
        raise no_image(join(corpus.root, corpus.pattern), left_out)
    count = len(keys)
    return Manifest(
        keys=keys, source=np.full(count, -1, np.int32), offset=np.zeros(count, np.int64), size=np.array(sizes, np.int64)
    )


def is_list(path: str) -> bool:
    """Tell by its name whether a file is a text that names images."""
    return PurePosixPath(path).suffix.lower() in LIST_EXTENSIONS


class FolderImages:
    """Images, each of which is a file of its own."""

    def __init__(self, files: Files, column: str = "", most: int | None = None) -> None:
        self._files = files
        self._most = most

    def read(self, name: str, offset: int, size: int) -> bytes:
        """Return the bytes of a file."""
        return self._files.read_file(name, self._most)

    def close(self) -> None:
        """Do nothing: no file stays open."""
