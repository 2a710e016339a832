"""A corpus of tars in WebDataset layout. Listing reads only the headers; reading is random access."""

import logging
import os
import tarfile
from array import array
from collections.abc import Iterator

import numpy as np

from pipeline.corpora.corpus import Corpus
from pipeline.corpora.folder import IMAGE_EXTENSIONS, is_image
from storage.errors import CorpusError
from storage.files.places import Files
from storage.keys import distinct_keys, path_to_key
from storage.manifest import Manifest

logger = logging.getLogger(__name__)


COMPRESSED = "compressed, so that its images cannot be read one by one; unpack it, and give the .tar or the folder"


def tar_images(files: Files, path: str) -> Iterator[tuple[str, int, int]]:
    """Yield (member, offset of its data, bytes) of each complete image; only headers are read.

    Raises:
        CorpusError: when the file is compressed or is not a tar.
    """
    with files.open(path) as stream:
        end = stream.seek(0, os.SEEK_END)
        stream.seek(0)
        magic = stream.read(6)
        stream.seek(0)
        try:
            # Tars have UTF-8 names everywhere today, and the locale of this machine must not change the keys.
            tar = tarfile.TarFile(fileobj=stream, encoding="utf-8", errors="surrogateescape")
        except (tarfile.TarError, ValueError) as error:
            if magic.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")):
                raise CorpusError(f"{path} is {COMPRESSED}") from None
            if end < tarfile.BLOCKSIZE:
                logger.warning("%s is cut off before its first member (%d bytes)", path, end)
                return
            raise CorpusError(f"{path} is not a tar ({error}); fetch it again or leave it out") from None
        position = 0
        while True:
            try:
                member = tar.next()
            except (tarfile.TarError, ValueError, OverflowError, RecursionError) as error:
                logger.warning(
                    "%s is damaged or cut off after byte %d (%s); the images before it are used", path, position, error
                )
                return
            if member is None:
                break
            # tarfile keeps every header that it has seen, a gigabyte per million images.
            tar.members.clear()  # type: ignore[attr-defined]
            # The bytes of a sparse member are not contiguous, and its size is not their number.
            is_plain = member.isreg() and not member.issparse()
            stop = member.offset_data + (member.size if is_plain else 0)
            if not position < member.offset_data <= stop <= end:
                logger.warning("%s is cut off in member %s; the images before it are used", path, member.name)
                return
            position = member.offset_data
            if is_plain and is_image(member.name):
                yield member.name, member.offset_data, member.size
        stream.seek(tar.offset)
        if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            logger.warning("%s has no end-of-archive block: it is damaged or cut off after byte %d", path, tar.offset)


def list_tars(corpus: Corpus, files: Files, tars: list[str]) -> Manifest:
    """List the image members of tars, in the order of the tars and of their members.

    Raises:
        CorpusError: there is no image.
    """
    names, source, offsets, sizes = list[str](), array("i"), array("q"), array("q")
    for index, tar in enumerate(tars):
        for member, offset, size in tar_images(files, tar):
            names.append(path_to_key(member))
            source.append(index)
            offsets.append(offset)
            sizes.append(size)
    if not names:
        raise CorpusError(
            f"found no image in {', '.join(tars[:3])}{', …' if tars[3:] else ''} in {corpus.root}: looked for members "
            f"{' '.join(IMAGE_EXTENSIONS)}; unpack a tar of tars once"
        )
    sources = tuple(map(path_to_key, tars))
    return Manifest(
        keys=distinct_keys(names, source, sources),
        sources=sources,
        source=np.array(source, np.int32),
        offset=np.array(offsets, np.int64),
        size=np.array(sizes, np.int64),
    )


class TarImages:
    """Images that are members of tars."""

    def __init__(self, files: Files) -> None:
        self._files = files

    def read(self, name: str, offset: int, size: int) -> bytes:
        """Return a member's bytes."""
        return self._files.read_range(name, offset, size)

    def close(self) -> None:
        """Do nothing: the files object keeps the tars open."""
