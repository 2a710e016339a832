"""The formats in which a corpus can be: a table with a line for each.

A format says which files it is made of, lists their images, and reads them. To add one, write its module and a line
here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Protocol

from pipeline.corpora.corpus import Corpus
from pipeline.corpora.folder import FolderImages, list_folder
from pipeline.corpora.parquet import ParquetImages, list_parquet
from pipeline.corpora.tars import TarImages, list_tars
from storage.files.places import Files
from storage.manifest import Manifest


class Images(Protocol):
    """Reads the images of one corpus. Several threads may read at once."""

    def read(self, name: str, offset: int, size: int) -> bytes:
        """Return the image at ``offset`` of the file ``name``, as the manifest has them.

        Raises:
            ImageError: when this one image cannot be read.
        """
        ...

    def close(self) -> None:
        """Drop what is kept in memory."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Format:
    """One way to keep a corpus."""

    suffix: str
    """How the names of its files end; empty for a folder of image files."""

    lister: Callable[[Corpus, Files, list[str]], Manifest]
    """Lists the images of the named files (none for a folder), in an order that depends only on them."""

    reader: Callable[[Files], Images]
    """Makes a reader of them."""


FORMATS: dict[str, Format] = {
    "folder": Format(suffix="", lister=list_folder, reader=FolderImages),
    "tars": Format(suffix=".tar", lister=list_tars, reader=TarImages),
    "parquet": Format(suffix=".parquet", lister=list_parquet, reader=ParquetImages),
}
CONTAINERS = {format.suffix: name for name, format in FORMATS.items() if format.suffix}
"""Suffix -> format of files that hold many images."""


def format_of(path: str) -> str | None:
    """Return the format that a file is in by its name, None for a file that holds no images."""
    return CONTAINERS.get(PurePosixPath(path).suffix)
