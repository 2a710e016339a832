"""A corpus of tars in WebDataset layout, or of tars that hold tars, as ImageNet's official one does.

Listing reads only the headers; reading is random access, because the bytes of a member lie in the tar as they are.
"""

import errno
import io
import logging
import os
import re
import tarfile
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import BinaryIO

import numpy as np

from pipeline.corpora.corpus import Corpus
from pipeline.corpora.faults import FOREIGN_CODE, DamagedError, of_container, reason, stands
from pipeline.corpora.leftout import LeftOut
from pipeline.corpora.recognise import Recogniser, no_image
from pipeline.decoding.formats import HEAD_BYTES
from storage.errors import CorpusError
from storage.files.places import Files
from storage.keys import distinct_keys, path_to_key
from storage.manifest import Manifest

logger = logging.getLogger(__name__)


COMPRESSED = "compressed, so that its images cannot be read one by one; unpack it, and give the .tar or the folder"
_COMPRESSED_MAGIC = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")
_DEEPEST = 3
"""Tars within tars within tars are read; deeper ones are left out."""
NO_IMAGE = "tars without an image"
UNREADABLE = "tars that cannot be read"
_MOST_HEADER = 2**20
"""Bytes that the headers of one member may have, with its long names, attributes and sparse map."""
_PAX = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
_HARMLESS = 4096
"""Bytes of attributes for which quadratic time is no time."""
_MOST_GLOBAL = 1000
"""Attributes that a tar may give to all of its members; each member costs a copy of them."""
_PLAIN = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)


class _Part(io.RawIOBase):
    """The bytes from ``start`` to ``stop`` of a stream, as a file of its own from which only headers are read."""

    def __init__(self, stream: BinaryIO, start: int, stop: int) -> None:
        self._stream, self._start, self._stop, self._position = stream, start, stop, 0
        self.allowed = _MOST_HEADER
        """Bytes that may still be read for the headers of this member."""
        self._kind = b""  # the type of the header that was read last

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._stop - self._start}[whence]
        self._position = max(0, base + offset)
        return self._position

    def read(self, size: int = -1) -> bytes:
        left = max(0, self._stop - self._start - self._position)
        wanted = left if size < 0 else min(size, left)
        self.allowed -= wanted
        if self.allowed < 0:
            raise tarfile.ReadError(f"headers of one member that take more than {_MOST_HEADER:,} bytes")
        try:
            self._stream.seek(self._start + self._position)
            data = self._stream.read(wanted)
        except Exception as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise OSError(errno.EIO, reason(error)) from error  # what the libraries of a network raise
        self._position += len(data)
        if len(data) == tarfile.BLOCKSIZE:
            self._kind = data[156:157]
        elif self._kind in _PAX:
            _check_attributes(data)
        return data


def _check_attributes(body: bytes) -> None:
    """Refuse the body of a pax header with which Python's tarfile (CVE-2024-6232) takes quadratic time.

    The format: POSIX.1-2017, pax, "pax Extended Header": records of ``length keyword=value``.
    """
    if len(body) <= _HARMLESS:
        return
    position, end = 0, len(body.rstrip(b"\0"))
    while position < end:
        record = re.compile(rb"(\d{1,20}) ").match(body, position)
        stop = position + int(record[1]) if record else 0
        if record is None or body.find(b"=", record.end(), stop) < 0:
            raise tarfile.ReadError("attributes that are not as POSIX has them")
        position = stop
    if any(len(digits) > _HARMLESS // 16 for digits in re.findall(rb"\d+", body)):
        raise tarfile.ReadError("attributes that are numbers of absurd length")


@dataclass(frozen=True, slots=True)
class _TarFile:
    """One tar, which may be a member of another: the bytes from ``start`` to ``stop`` of a stream."""

    files: Files
    name: str
    stream: BinaryIO
    start: int
    stop: int
    depth: int
    recogniser: Recogniser

    def images(self) -> Iterator[tuple[str, int, int]]:
        """Yield (member, offset of its data in the stream, bytes) of each complete image."""
        part = _Part(self.stream, self.start, self.stop)
        if (tar := self._open(part)) is None:
            return
        position = 0
        while True:
            part.allowed = _MOST_HEADER
            try:
                with FOREIGN_CODE:
                    member = tar.next()
            except DamagedError as error:
                self._lose(position, error)
                return
            except OSError as error:
                if not stands(self.files):
                    raise
                self._lose(position, error.strerror)
                return
            if member is None:
                break
            if len(tar.pax_headers) > _MOST_GLOBAL:
                self._lose(position, f"more than {_MOST_GLOBAL:,} attributes for all members")
                return
            # tarfile keeps every header that it has seen, a gigabyte per million images.
            tar.members.clear()  # type: ignore[attr-defined]
            # The bytes of a sparse member are not contiguous, and its size is not their number.
            is_plain = member.type in _PLAIN and not member.issparse()
            stop = member.offset_data + (member.size if is_plain else 0)
            if not position < member.offset_data <= stop <= self.stop - self.start:
                logger.warning("%s is cut off in member %s; the images before it are used", self.name, member.name)
                return
            position = member.offset_data
            if is_plain:
                yield from self._of_member(member.name, self.start + member.offset_data, member.size)
            elif not member.isdir():
                self.recogniser.cannot_read("tar members that are links, sparse or no files", self._place(member.name))
        part.seek(tar.offset)
        if part.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            logger.warning(
                "%s has no end-of-archive block: it is damaged or cut off after byte %d", self.name, tar.offset
            )

    def _lose(self, position: int, why: object) -> None:
        """Say that what lies behind a byte is not used."""
        logger.warning(
            "%s is damaged or cut off after byte %d (%s); the images before it are used", self.name, position, why
        )

    def _open(self, part: _Part) -> tarfile.TarFile | None:
        try:
            magic = part.read(6)
            part.seek(0)
            with FOREIGN_CODE:
                # Tars have UTF-8 names everywhere today, and the locale of this machine must not change the keys.
                return tarfile.TarFile(fileobj=part, encoding="utf-8", errors="surrogateescape")
        except DamagedError as error:
            if magic.startswith(_COMPRESSED_MAGIC):
                fault, remedy = COMPRESSED, ""
            elif self.stop - self.start < tarfile.BLOCKSIZE:
                logger.warning("%s is cut off before its first member (%d bytes)", self.name, self.stop - self.start)
                return None
            else:
                fault, remedy = f"not a tar ({error})", "; fetch it again or leave it out"
        except OSError as error:
            if self.depth == 0 or not stands(self.files):
                raise
            fault, remedy = f"not readable ({error.strerror})", ""
        if self.depth == 0:
            raise DamagedError(f"{self.name} is {fault}{remedy}")
        self.recogniser.left_out.add("tars inside a tar that are compressed or damaged", self.name)
        return None

    def _of_member(self, name: str, offset: int, size: int) -> Iterator[tuple[str, int, int]]:
        """Yield a member if it is an image, or the images of a member that is a tar."""
        if self.recogniser.skips_member(name):
            return
        if name.lower().endswith(".tar"):
            if self.depth == _DEEPEST:
                self.recogniser.left_out.add("tars too deep inside other tars", self._place(name))
                return
            inner = replace(self, name=self._place(name), start=offset, stop=offset + size, depth=self.depth + 1)
            count = 0
            for member, where, length in inner.images():
                count += 1
                yield f"{name}/{member}", where, length
            if count == 0:
                self.recogniser.left_out.add(NO_IMAGE, inner.name)
        elif self.recogniser.is_image(name, lambda: self._head(offset, size)):
            yield name, offset, size

    def _head(self, offset: int, size: int) -> bytes:
        self.stream.seek(offset)
        return self.stream.read(min(size, HEAD_BYTES))

    def _place(self, member: str) -> str:
        return f"{self.name}/{member}"


def tar_images(files: Files, path: str, recogniser: Recogniser) -> Iterator[tuple[str, int, int]]:
    """Yield (member, offset of its data, bytes) of each complete image; only headers are read.

    The member of a tar inside the tar is named by both: ``n01440764.tar/n01440764_10026.JPEG``.

    Raises:
        DamagedError: when the file is compressed or is not a tar.
        OSError: when it cannot be read.
    """
    with files.open(path) as stream:
        end = stream.seek(0, os.SEEK_END)
        yield from _TarFile(files, path, stream, 0, end, 0, recogniser).images()


def list_tars(corpus: Corpus, files: Files, tars: list[str], left_out: LeftOut) -> Manifest:
    """List the image members of tars, in the order of the tars and of their members. A tar without use is counted.

    Raises:
        CorpusError: there is no image.
    """
    recogniser = Recogniser(left_out=left_out, include=corpus.include)
    names, source, offsets, sizes = list[str](), array("i"), array("q"), array("q")
    faults = list[CorpusError]()
    for index, tar in enumerate(tars):
        before, known = len(names), len(faults)
        with of_container(files, tar, UNREADABLE, left_out, faults):
            for member, offset, size in tar_images(files, tar, recogniser):
                names.append(path_to_key(member))
                source.append(index)
                offsets.append(offset)
                sizes.append(size)
        if len(names) == before and len(faults) == known:
            left_out.add(NO_IMAGE, tar)
    if not names and faults:
        raise faults[0]
    if not names:
        raise no_image(f"{', '.join(tars[:3])}{', …' if tars[3:] else ''} in {corpus.root}", left_out)
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

    def __init__(self, files: Files, column: str = "", most: int | None = None) -> None:
        self._files = files

    def read(self, name: str, offset: int, size: int) -> bytes:
        """Return a member's bytes."""
        return self._files.read_range(name, offset, size)

    def close(self) -> None:
        """Do nothing: the files object keeps the tars open."""
