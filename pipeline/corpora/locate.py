"""Finding a corpus: from ``--corpus`` and ``--root`` to a :class:`~pipeline.corpora.corpus.Corpus`."""

import difflib
import re
from dataclasses import replace
from pathlib import Path

from pipeline.corpora.catalogue import catalogue, close_names, contents, find_known
from pipeline.corpora.corpus import Corpus
from pipeline.corpora.faults import explained
from pipeline.corpora.folder import is_list, list_root, walk_images
from pipeline.corpora.formats import CONTAINERS, FORMATS, format_of
from pipeline.corpora.leftout import LeftOut
from pipeline.corpora.patterns import expand_braces, is_glob, match, split_pattern
from pipeline.corpora.recognise import ARCHIVE_EXTENSIONS, Recogniser, is_image, no_image
from pipeline.corpora.tars import COMPRESSED
from storage.errors import CorpusError, SettingsError
from storage.files.places import Files, is_hidden, is_url, join, open_files

KINDS_OF_FILES = " or ".join(CONTAINERS)
"""The files that a corpus may consist of, for messages."""


def resolve_corpus(corpus: str, root: str | None = None, *, include: str = "", column: str = "") -> Corpus:
    """Find the corpus that ``--corpus`` and ``--root`` name.

    For a catalogue name ``root`` is the folder with the expected layout; a path is taken relative to it. ``include`` is
    a glob of the images that count, ``column`` the column of Parquet files that holds them.

    Raises:
        CorpusError: when it does not exist, holds no images, or is not a corpus.
        SettingsError: ``include`` or ``column`` is given for a kind of corpus that has no such thing.
    """
    known = find_known(corpus)
    with explained(corpus, root or corpus):
        if known is None:
            found = _resolve_path(corpus, _below(root, corpus), include, root)
        else:
            try:
                folder, pattern = known.find(root)
            except CorpusError as error:
                if root is None and open_files(corpus).is_folder(""):
                    raise CorpusError(f"{error}, or use the folder here with --corpus ./{corpus}") from None
                raise
            found = Corpus(name=corpus, root=folder, kind=format_of(pattern) or "folder", pattern=pattern)
    _check(found, include, column)
    return replace(found, include=include, column=column)


def moved(corpus: Corpus, root: str | None) -> Corpus:
    """The same corpus at ``root``, or unchanged if ``root`` is None.

    Raises:
        CorpusError: the corpus is one of the catalogue, and ``root`` has none of its layouts.
    """
    if root is None:
        return corpus
    if find_known(corpus.name):
        return resolve_corpus(corpus.name, root, include=corpus.include, column=corpus.column)
    return replace(corpus, root=root)


def _below(root: str | None, corpus: str) -> str:
    return join(root, corpus) if root and not is_list(corpus) else corpus


def _check(corpus: Corpus, include: str, column: str) -> None:
    """Refuse options that a kind of corpus has no use for."""
    if column and corpus.kind != "parquet":
        raise SettingsError(f"column is for Parquet files, but {corpus.name} is none; leave it out", field="column")
    if include and corpus.kind == "parquet":
        raise SettingsError(
            "include is for image files and members of tars, but this corpus is Parquet; name a column instead",
            field="include",
        )


def _resolve_path(name: str, path: str, include: str, root: str | None) -> Corpus:
    files = open_files(path)
    if files.is_folder(""):
        return _resolve_folder(name, path, files, include)
    parent, pattern = split_pattern(path)
    parent = parent or "."
    if files.is_file(""):
        if kind := format_of(pattern):
            return Corpus(name=name, root=parent, kind=kind, pattern=pattern)
        if is_list(pattern):
            return Corpus(name=name, root=list_root(path, root), kind="list", pattern=path)
        if pattern.lower().endswith(".zip") and not is_url(path):
            # fsspec reads the members of a zip in place.
            return _resolve_path(name, f"zip://::{Path(path).absolute().as_posix()}", include, root)
        raise CorpusError(f"{path} is {_oddity(pattern)}")
    if is_glob(pattern) or "{" in pattern:
        return _resolve_pattern(name, parent, pattern)
    raise CorpusError(_unknown(name, path))


def _unknown(name: str, path: str) -> str:
    """The message for a word that is neither a path nor the name of a corpus."""
    parent = open_files(path.rpartition("/")[0] or ".")
    beside = [entry.name for entry in parent.entries("") if entry.is_folder] if parent.is_folder("") else []
    last = path.rpartition("/")[2]
    guesses = difflib.get_close_matches(last, beside, n=2, cutoff=0.7)
    if not re.fullmatch(r"[\w-]+", name):
        meant = f"; did you mean {' or '.join(guesses)}?" if guesses else ""
        return (
            f"{path} does not exist{meant or ''}; give a folder, image files as a glob, {KINDS_OF_FILES} files, a text "
            "file of paths, or a name of the catalogue"
        )
    guesses = [*close_names(name), *guesses]
    meant = f"; did you mean {' or '.join(guesses)}?" if guesses else ""
    return f"{name!r} is neither a path nor a known corpus{meant} (known: {', '.join(k.name for k in catalogue())})"


def _resolve_folder(name: str, path: str, files: Files, include: str) -> Corpus:
    left_out = LeftOut()
    if next(walk_images(files, Recogniser(left_out=left_out, include=include)), None):
        return Corpus(name=name, root=path, kind="folder")
    for suffix, kind in CONTAINERS.items():
        for pattern in (f"*{suffix}", f"**/*{suffix}"):
            if next(match(files, pattern), None):
                return Corpus(name=name, root=path, kind=kind, pattern=pattern)
    names = sorted(entry.name for entry in files.entries("") if not is_hidden(entry.name))
    odd = next((entry for entry in names if entry.lower().endswith(ARCHIVE_EXTENSIONS)), None)
    error = no_image(path, left_out)
    found = f"{odd} is {_oddity(odd)}" if odd else contents(path)
    raise CorpusError(f"{error}; there are no {KINDS_OF_FILES} files either; {found}")


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
    if any(map(is_image, found)):
        return Corpus(name=name, root=parent, kind="folder", pattern=pattern)
    if found:
        raise CorpusError(f"{found[0]} in {parent} is {_oddity(found[0])}")
    raise CorpusError(
        f"{first} does not exist in {parent}; give image files, {KINDS_OF_FILES} files, or a folder of images"
    )


def _oddity(name: str) -> str:
    if name.lower().endswith(".zip"):
        return "a zip: give it as --corpus itself, and its images are read in place"
    if name.lower().endswith(ARCHIVE_EXTENSIONS) and format_of(name) not in FORMATS:
        return COMPRESSED
    if is_image(name):
        return "one image: give its folder"
    return f"neither a folder nor a {KINDS_OF_FILES} file nor a text file of paths"
