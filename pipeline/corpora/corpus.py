"""A corpus: where its images are, and in which format.

A corpus is a catalogue name, a folder, WebDataset tars (``shard-{000..127}.tar``, a glob, one tar) or Parquet files
with image bytes; local or behind any fsspec URL:

    corpus = resolve_corpus("imagenet")
    manifest = list_images(corpus)
    with ImageReader(corpus, manifest) as reader:
        data = reader.read(0)
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from storage.errors import CorpusError, DFSSError
from storage.files.places import is_url


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

    kind: str
    """A format's name: a key of :data:`pipeline.corpora.formats.FORMATS`."""

    pattern: str = ""
    """Tars or Parquet files below the root, with wildcards and braces; empty for a folder of images."""


@contextmanager
def explained(corpus: str, root: str) -> Iterator[None]:
    """Inside the block, turn what a place raises into a CorpusError that names the corpus and its root."""
    try:
        yield
    except DFSSError:
        raise
    except Exception as error:
        if not is_outside(error, root):
            raise
        raise CorpusError(f"cannot list corpus {corpus!r} in {root}: {reason(error)}") from error


def is_outside(error: Exception, root: str) -> bool:
    """Tell whether an error is the place's and not our own fault."""
    # Local files fail with OSErrors; the libraries behind fsspec raise what they like.
    return isinstance(error, OSError) or is_url(root)


def reason(error: Exception) -> str:
    """Say an error in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())
