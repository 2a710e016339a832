"""A corpus: where its images are, and in which format.

A corpus is a catalogue name, a folder, a glob of image files, a text file of paths, WebDataset tars
(``shard-{000..127}.tar``, a glob, one tar) or Parquet files with image bytes. It is local or behind any fsspec URL:

    corpus = resolve_corpus("imagenet")
    manifest = list_images(corpus)
    with ImageReader(corpus, manifest) as reader:
        data = reader.read(0)
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Corpus:
    """Where the images of a corpus are. It holds no open file, and its fields are plain JSON values.

    A store keeps the fields, so that ``Corpus(**fields)`` opens the same images later. If the images have moved,
    ``dataclasses.replace(corpus, root=…)`` gives their new place.
    """

    name: str
    """The name that the user gave: a catalogue name, a path or a URL."""

    root: str
    """Folder or URL that all paths are relative to. It is not made absolute; ``.`` is the current folder."""

    kind: str
    """A format's name: a key of :data:`pipeline.corpora.formats.FORMATS`."""

    pattern: str = ""
    """Tars, Parquet or image files below the root, with wildcards and braces; empty for a whole folder of images.

    For a text file of paths it is the path of that file.
    """

    include: str = ""
    """A glob of the image files or tar members that count; empty for all."""

    column: str = ""
    """The column of Parquet files that holds the images; empty for the one that its name or type tells."""
