"""The image formats that are opened, and how a format is recognised by its first bytes.

Only raster formats that Pillow itself decodes are opened, so that no file can start an external program (EPS, WMF).
HEIC, the format of many phones, is opened where pillow-heif is installed.
"""

import importlib
import io
import struct
import threading
from contextlib import suppress
from functools import cache
from typing import Any

from PIL import Image, ImageFile, UnidentifiedImageError

from pipeline.decoding.limits import has_shared_tags
from storage.errors import ImageError

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
_PLUGINS = ("Jpeg", "Png", "WebP", "Gif", "Bmp", "Tiff", "Ppm", "Jpeg2K", "Avif", "Mpo")
_SHORT_SIGNATURES = ("BMP", "PPM")
"""Formats with signatures of two letters, with which a text may begin as well."""
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
IMAGE_EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".jp2", ".avif"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".heic", ".heif"),
)
"""Files and tar members with these extensions, in any case, are images."""
HEAD_BYTES = 4096
"""Bytes of a file that :func:`looks_like_image` needs."""
_NOT_THIS_FORMAT = (SyntaxError, IndexError, TypeError, struct.error)
"""What Pillow's plugins raise for a file of another format."""
_importing = threading.Lock()


@cache
def opened_formats() -> tuple[str, ...]:
    """The names of the formats that are opened.

    The first call imports Pillow's modules for all of them. Pillow itself would import each in the first thread that
    meets such a file, which is not safe with other threads.
    """
    with _importing:
        for plugin in _PLUGINS:
            with suppress(ImportError):  # AVIF came with Pillow 11.3
                importlib.import_module(f"PIL.{plugin}ImagePlugin")
        return tuple(name for name in _FORMATS if name in Image.OPEN)


def open_image(data: bytes) -> ImageFile.ImageFile:
    """Open an image of any of the formats, without decoding its pixels.

    It is Pillow's ``Image.open`` without Pillow's limit of pixels, because that limit cannot be set for one caller.

    Raises:
        ImageError: the file is HEIC, and pillow-heif is not installed.
        UnidentifiedImageError: the file has none of the formats.
    """
    if is_heif(data):
        return _open_as(_heif_format(), data)
    if has_shared_tags(data):
        raise ImageError("damaged: its tags share their bytes, and are much longer than the file")
    for name in _formats_of(data):
        with suppress(*_NOT_THIS_FORMAT):
            return _open_as(name, data)
    raise UnidentifiedImageError


def looks_like_image(head: bytes) -> bool:
    """Tell by the first :data:`HEAD_BYTES` bytes of a file whether it is an image, whatever its name."""
    if is_heif(head):
        return True
    for name in _formats_of(head):
        if name not in _SHORT_SIGNATURES:
            return True
        with suppress(*_NOT_THIS_FORMAT, ValueError, OSError):
            _open_as(name, head)  # the header lies in the first bytes
            return True
    return False


def is_heif(head: bytes) -> bool:
    """Tell whether a file is HEIC or HEIF and not AVIF, which shares the container."""
    if head[4:8] != b"ftyp" or head[8:12] not in _HEIF_BRANDS:
        return False
    return b"avif" not in head[8 : int.from_bytes(head[:4], "big")]


def _formats_of(head: bytes) -> list[str]:
    """The formats whose signature the bytes have; Pillow's plugins know the signatures."""
    found = []
    for name in opened_formats():
        accepts = Image.OPEN[name][1]
        if accepts is None or accepts(head[:16]) is True:  # a text says that Pillow was built without the format
            found.append(name)
    return found


def _open_as(name: str, data: bytes) -> ImageFile.ImageFile:
    factory: Any = Image.OPEN[name][0]
    image: ImageFile.ImageFile = factory(io.BytesIO(data), "")
    return image


@cache
def _heif_format() -> str:
    with _importing:
        try:
            importlib.import_module("pillow_heif").register_heif_opener()
        except ImportError:
            raise ImageError("HEIC needs a further decoder: pip install pillow-heif, then use --retry-failed") from None
    return "HEIF"
