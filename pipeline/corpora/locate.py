"""Finding a corpus: from ``--corpus`` and ``--root`` to a :class:`~pipeline.corpora.corpus.Corpus`."""

import re
from dataclasses import replace

from pipeline.corpora.catalogue import catalogue, close_names, find_known
from pipeline.corpora.corpus import Corpus, explained
from pipeline.corpora.folder import IMAGE_EXTENSIONS, is_image, walk_images
from pipeline.corpora.formats import CONTAINERS, format_of
from pipeline.corpora.patterns import expand_braces, is_glob, match, split_pattern
from pipeline.corpora.tars import COMPRESSED
from storage.errors import CorpusError
from storage.files.places import Files, is_hidden, join, open_files

KINDS_OF_FILES = " or ".join(CONTAINERS)
"""The files that a corpus may consist of, for messages."""
COMPRESSED_EXTENSIONS = (".gz", ".tgz", ".bz2", ".tbz2", ".xz", ".txz", ".zst", ".tzst", ".zip", ".7z", ".rar")


def resolve_corpus(corpus: str, root: str | None = None) -> Corpus:
    """Find the corpus that ``--corpus`` and ``--root`` name.

    For a catalogue name ``root`` is the folder with the expected layout; a path is taken relative to it.

    Raises:
        CorpusError: when it does not exist, holds no images, or is not a corpus.
    """
    known = find_known(corpus)
    with explained(corpus, root or corpus):
        if known is None:
            return _resolve_path(corpus, join(root, corpus) if root else corpus)
        try:
            folder, pattern = known.find(root)
        except CorpusError as error:
            if root is None and open_files(corpus).is_folder(""):
                raise CorpusError(f"{error}, or use the folder here with --corpus ./{corpus}") from None
            raise
        return Corpus(name=corpus, root=folder, kind=format_of(pattern) or "folder", pattern=pattern)


def moved(corpus: Corpus, root: str | None) -> Corpus:
    """The same corpus at ``root``, or unchanged if ``root`` is None.

    Raises:
        CorpusError: the corpus is one of the catalogue, and ``root`` has none of its layouts.
    """
    if root is None:
        return corpus
    if find_known(corpus.name):
        return resolve_corpus(corpus.name, root)
    return replace(corpus, root=root)


def _resolve_path(name: str, path: str) -> Corpus:
    files = open_files(path)
    if files.is_folder(""):
        return _resolve_folder(name, path, files)
    parent, pattern = split_pattern(path)
    parent = parent or "."
    if files.is_file(""):
        if kind := format_of(pattern):
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
    raise CorpusError(f"{path} does not exist; give a folder, {KINDS_OF_FILES} files, or a name of the catalogue")


def _resolve_folder(name: str, path: str, files: Files) -> Corpus:
    if next(walk_images(files), None):
        return Corpus(name=name, root=path, kind="folder")
    names = sorted(entry.name for entry in files.entries("") if not is_hidden(entry.name))
    for suffix, kind in CONTAINERS.items():
        if any(entry.endswith(suffix) for entry in names):
            return Corpus(name=name, root=path, kind=kind, pattern=f"*{suffix}")
    odd = next((entry for entry in names if entry.lower().endswith(COMPRESSED_EXTENSIONS)), None)
    raise CorpusError(
        f"found no image in {path}: looked for {' '.join(IMAGE_EXTENSIONS)} in it and its subfolders, and for "
        f"{KINDS_OF_FILES} files in it" + (f"; {odd} is {_oddity(odd)}" if odd else "")
    )


def _resolve_pattern(name: str, parent: str, pattern: str) -> Corpus:
    files = open_files(parent)
    first = expand_braces(pattern)[0]
    if is_glob(first):
        found = list(match(files, first)) if files.is_folder("") else []
    else:
        found = [first] if files.is_file(first) else []
    # The listing finds out whether the other names of a range exist. Over a network that takes a request for each.
    if kinds := [kind for path in found if (kind := format_of(path))]:
        return Corpus(name=name, root=parent, kind=kinds[0], pattern=pattern)
    if found:
        raise CorpusError(f"{found[0]} in {parent} is {_oddity(found[0])}")
    raise CorpusError(f"{first} does not exist in {parent}; give {KINDS_OF_FILES} files, or a folder of images")


def _oddity(name: str) -> str:
    if name.lower().endswith(COMPRESSED_EXTENSIONS):
        return COMPRESSED
    if is_image(name):
        return "one image: give its folder"
    return f"neither a folder nor a {KINDS_OF_FILES} file"
