"""A corpus that is a folder of image files."""

from array import array
from collections.abc import Iterator

import numpy as np

from pipeline.corpora.corpus import Corpus
from storage.errors import CorpusError
from storage.files.places import Files, is_hidden
from storage.keys import path_to_key
from storage.manifest import Manifest

IMAGE_EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".jp2", ".avif"),
    *(".ppm", ".pgm", ".pbm", ".pnm"),
)
"""Files and tar members with these extensions, in any case, are images."""


def is_image(path: str) -> bool:
    """Tell whether a relative posix path is that of an image: it has a known extension and no hidden part."""
    return path.lower().endswith(IMAGE_EXTENSIONS) and not any(map(is_hidden, path.split("/")))


def walk_images(files: Files, folder: str = "") -> Iterator[tuple[str, int]]:
    """Yield (path, bytes) of every image below ``folder``, in the order of their paths."""
    # "a-b.jpg" sorts before "a/x.jpg". With the slash, the order inside a folder is the order of the complete paths.
    for entry in sorted(files.entries(folder), key=lambda entry: f"{entry.name}/" if entry.is_folder else entry.name):
        if is_hidden(entry.name):
            continue
        path = f"{folder}/{entry.name}" if folder else entry.name
        if entry.is_folder:
            yield from walk_images(files, path)
        elif is_image(entry.name):
            yield path, entry.size


def list_folder(corpus: Corpus, files: Files, paths: list[str]) -> Manifest:
    """List every image below the corpus's root; ``paths`` is empty.

    Raises:
        CorpusError: there is no image.
    """
    keys, sizes = list[str](), array("q")
    for path, size in walk_images(files):
        keys.append(path_to_key(path))
        sizes.append(size)
    if not keys:
        raise CorpusError(f"found no image in {corpus.root}: looked for {' '.join(IMAGE_EXTENSIONS)} in all subfolders")
    count = len(keys)
    return Manifest(
        keys=keys, source=np.full(count, -1, np.int32), offset=np.zeros(count, np.int64), size=np.array(sizes, np.int64)
    )


class FolderImages:
    """Images, each of which is a file of its own."""

    def __init__(self, files: Files) -> None:
        self._files = files

    def read(self, name: str, offset: int, size: int) -> bytes:
        """Return the bytes of a file."""
        return self._files.read_file(name)

    def close(self) -> None:
        """Do nothing: no file stays open."""
