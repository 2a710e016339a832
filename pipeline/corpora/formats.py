"""The formats of a corpus, in one table.

A format knows its files by their names, lists their images and reads them. To add a format, write its module and add a
line to :data:`FORMATS`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Protocol

from pipeline.corpora.corpus import Corpus
from pipeline.corpora.folder import FolderImages, list_folder, list_lines
from pipeline.corpora.leftout import LeftOut
from pipeline.corpora.parquet import list_parquet
from pipeline.corpora.parquet_rows import ParquetImages
from pipeline.corpora.tars import TarImages, list_tars
from storage.files.places import Files
from storage.manifest import Manifest


class Images(Protocol):
    """Reads the images of one corpus. Several threads may read at once."""

    def read(self, name: str, offset: int, size: int) -> bytes:
        """Return the bytes of the image at ``offset`` of the file ``name``; both come from the manifest.

        Raises:
            ImageError: when this one image cannot be read.
        """
        ...

    def close(self) -> None:
        """Release the memory that is held."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Format:
    """One format of a corpus."""

    suffix: str
    """The suffixes of its file names; empty for image files."""

    lister: Callable[[Corpus, Files, list[str], LeftOut], Manifest]
    """Lists the images of the named files (none for image files), in an order that depends only on them.

    What might be an image but gets no row is counted.
    """

    reader: Callable[[Files, str, int | None], Images]
    """Makes a reader of the images, from the column of Parquet files and the most bytes of an image."""


FORMATS: dict[str, Format] = {
    "folder": Format(suffix="", lister=list_folder, reader=FolderImages),
    "list": Format(suffix="", lister=list_lines, reader=FolderImages),
    "tars": Format(suffix=".tar", lister=list_tars, reader=TarImages),
    "parquet": Format(suffix=".parquet", lister=list_parquet, reader=ParquetImages),
}
CONTAINERS = {format.suffix: name for name, format in FORMATS.items() if format.suffix}
"""The format of files that hold many images, by suffix."""


def format_of(path: str) -> str | None:
    """Return the format of a file by its name, or None if it is not a file of images."""
    return CONTAINERS.get(PurePosixPath(path).suffix)
