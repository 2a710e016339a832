"""Limits of the work that one image may ask for. A few bytes of a crafted file can stand for hours or for any memory.

The number of pixels is checked where an image is loaded. Here are the ways around it: a JPEG file of many empty scans,
tiles that are drawn over each other, and TIFF tags (also those of EXIF) that share their bytes.
"""

import struct
from typing import Any

import numpy as np
from PIL import ImageFile

from storage.errors import ImageError

MAX_PIXELS = 89_478_485
"""By default, images of more pixels in memory count as decompression bombs. Pillow needs 341 MiB for this many."""
JPEG = ("JPEG", "MPO")
_START_OF_SCAN = b"\xff\xda"
_MOST_SCANS = 1000
_USUAL_SCANS = 20
"""Encoders write up to a dozen. So many may have all the pixels that an image may have."""
_LAYERS = 8
"""Times that the pixels of an image may be drawn; a TIFF file may draw each channel on its own."""
_TIFF = {b"II*\0": ("<", False), b"MM\0*": (">", False), b"II+\0": ("<", True), b"MM\0+": (">", True)}
"""Byte order, and whether it is a BigTIFF, by the first bytes."""
_UNITS = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}
"""Bytes of a value of each type (TIFF 6.0, section 2)."""
_SLACK = 2**20


def check_work(image: ImageFile.ImageFile, data: bytes) -> None:
    """Refuse an image whose decoding would take far more work than its pixels. Call it before the image is loaded.

    Raises:
        ImageError: it has too many scans, or its tiles cover its pixels too often.
    """
    pixels = image.width * image.height
    if image.format in JPEG:
        codes = np.frombuffer(data, np.uint8)  # bytes.count takes ten times as long
        scans = np.count_nonzero((codes[:-1] == _START_OF_SCAN[0]) & (codes[1:] == _START_OF_SCAN[1]))
        if scans > _MOST_SCANS or (scans > _USUAL_SCANS and scans * pixels > _USUAL_SCANS * MAX_PIXELS):
            raise ImageError(f"{scans:,} scans of {pixels:,} pixels: taken for a decompression bomb")
    if len(image.tile) > 1 and sum(map(_area, image.tile)) > _LAYERS * pixels:
        raise ImageError(f"{len(image.tile):,} tiles that cover its pixels again and again: taken for a bomb")


def _area(tile: Any) -> int:
    left, top, right, bottom = tile[1]
    return int((right - left) * (bottom - top))


def has_shared_tags(data: bytes) -> bool:
    """Tell whether the tags of a TIFF file or an EXIF block together are much longer than its bytes.

    Pillow copies the bytes of every tag, so that tags that share them take memory by the product of both. The format:
    TIFF 6.0, section 2, and BigTIFF.
    """
    data = data.removeprefix(b"Exif\0\0")
    order, is_big = _TIFF.get(data[:4], ("", False))
    if not order:
        return False
    start, head, entry = ("Q", "Q", "HHQ8x") if is_big else ("I", "H", "HHI4x")
    try:
        (first,) = struct.unpack_from(order + start, data, 8 if is_big else 4)
        (count,) = struct.unpack_from(order + head, data, first)
    except struct.error:
        return False
    first += struct.calcsize(order + head)
    size = struct.calcsize(order + entry)
    entries = struct.iter_unpack(order + entry, data[first : first + size * min(count, (len(data) - first) // size)])
    total = sum(min(_UNITS.get(kind, 0) * number, len(data)) for _, kind, number in entries)
    return bool(total > 4 * len(data) + _SLACK)
