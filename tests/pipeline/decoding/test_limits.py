"""A crafted image costs no more than an honest one of its pixels."""

import io
import struct
import time
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from pipeline.decoding import limits
from pipeline.decoding.pillow import Decoder, decode_rgb
from storage.errors import ImageError

DECODER = Decoder(height=16, width=16)


def encoded(form: str, size: tuple[int, int] = (64, 64), **options: Any) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(file, form, **options)
    return file.getvalue()


def jpeg_of_scans(count: int, *, size: tuple[int, int], scan: bytes) -> bytes:
    """A progressive JPEG file whose scans hold nothing, each a few bytes for all of its pixels."""
    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, "JPEG", progressive=True, subsampling=0)
    data = bytearray(file.getvalue())
    frame = data.find(b"\xff\xc2")
    data[frame + 5 : frame + 9] = struct.pack(">HH", size[1], size[0])
    head = bytes(data[: data.find(b"\xff\xda")])
    table = b"\xff\xc4\x00\x14\x10\x01" + bytes(15) + b"\xe0"
    first = b"\xff\xda\x00\x0c\x03\x01\x00\x02\x00\x03\x00\x00\x00\x00"
    return head + table + first + scan * count + b"\xff\xd9"


AC = b"\xff\xda\x00\x08\x01\x01\x00\x01\x3f\x00"
DC = b"\xff\xda\x00\x0c\x03\x01\x00\x02\x00\x03\x00\x00\x00\x10"


@pytest.mark.parametrize("decode", [DECODER, decode_rgb])
@pytest.mark.parametrize("scan", [AC, DC])
@pytest.mark.parametrize(("count", "size"), [(4000, (65500, 1366)), (100_000, (64, 64))])
def test_scans_without_end_are_refused_at_once(
    count: int, size: tuple[int, int], scan: bytes, decode: Callable[[bytes], object]
) -> None:
    start = time.perf_counter()
    with pytest.raises(ImageError, match="scans of .* pixels: taken for a decompression bomb"):
        decode(jpeg_of_scans(count, size=size, scan=scan))
    assert time.perf_counter() - start < 2


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"progressive": True, "quality": 100}])
def test_scans_of_encoders_are_few(options: dict[str, Any]) -> None:
    data = encoded("JPEG", (200, 150), **options)
    assert data.count(b"\xff\xda") <= limits._USUAL_SCANS // 2
    assert DECODER(data).shape == (16, 16, 3)


def tiff(entries: list[tuple[int, int, int, int]], content: bytes, *, order: str = "<", is_big: bool = False) -> bytes:
    """A TIFF file of these (tag, type, number, value) whose directory lies behind its content."""
    magic = (b"II" if order == "<" else b"MM") + struct.pack(order + "H", 43 if is_big else 42)
    head = magic + struct.pack(order + "HHQ", 8, 0, 16 + len(content)) if is_big else b""
    head = head or magic + struct.pack(order + "I", 8 + len(content))
    fields = [struct.pack(order + ("HHQQ" if is_big else "HHII"), *entry) for entry in entries]
    return head + content + struct.pack(order + ("Q" if is_big else "H"), len(fields)) + b"".join(fields) + bytes(8)


def test_tiles_that_are_drawn_over_each_other_are_refused() -> None:
    side, count = 1000, 20_000
    pixels, offsets = bytes(side * side), struct.pack("<I", 8) * count
    sizes = struct.pack("<I", side * side // 2) * count
    at = 8 + len(pixels)
    entries = [
        *((256, 4, 1, side), (257, 4, 1, side), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1)),
        *((273, 4, count, at), (277, 3, 1, 1), (278, 4, 1, side // 2), (279, 4, count, at + len(offsets))),
    ]
    with pytest.raises(ImageError, match="tiles that cover its pixels again and again"):
        DECODER(tiff(entries, pixels + offsets + sizes))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("is_big", [False, True])
def test_tags_that_share_their_bytes_are_refused(order: str, is_big: bool) -> None:
    size = 1_000_000
    data = tiff([(1000 + tag, 1, size, 16) for tag in range(60_000)], bytes(size), order=order, is_big=is_big)
    with pytest.raises(ImageError, match="tags share their bytes"):  # 60 GB
        DECODER(data)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "text of PNG"])
def test_metadata_that_share_their_bytes_cost_the_orientation_and_not_the_image(form: str) -> None:
    blob = b"Exif\0\0" + tiff([(1000 + tag, 1, 60_000, 8) for tag in range(4000)], b"")
    blob += bytes(60_000 - len(blob))
    if form == "text of PNG":
        texts = PngImagePlugin.PngInfo()
        texts.add_text("Raw profile type exif", f"\nexif\n{len(blob)}\n{blob.hex()}")
        data = encoded("PNG", pnginfo=texts)
    else:
        data = encoded(form, exif=blob)
    assert limits.has_shared_tags(blob)
    assert np.array_equal(DECODER(data), DECODER(encoded("PNG" if form == "text of PNG" else form)))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_honest_metadata_and_orientations_are_read(form: str) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010E], exif[0x0131] = 6, "a description " * 500, "software"
    upright, turned = encoded(form, (64, 32), lossless=True), encoded(form, (64, 32), lossless=True, exif=exif)
    assert np.array_equal(np.array(decode_rgb(turned)), np.rot90(np.array(decode_rgb(upright)), -1))


@pytest.mark.parametrize("form", ["TIFF", "GIF", "PNG", "BMP", "PPM", "WEBP"])
def test_usual_files_of_many_tiles_are_no_bombs(form: str) -> None:
    assert DECODER(encoded(form, (700, 500))).shape == (16, 16, 3)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def test_a_png_file_that_inflates_to_more_than_its_pixels_costs_its_pixels() -> None:
    lines = zlib.compress((b"\0" + bytes(64)) * 64 + bytes(200 << 20), 9)
    head = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 64, 64, 8, 0, 0, 0, 0))
    texts = chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(200 << 20), 9))
    start = time.perf_counter()
    pixels = DECODER(head + texts + chunk(b"IDAT", lines) + chunk(b"IEND", b""))
    assert not pixels.any()
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize("form", ["GIF", "BMP", "PNG", "JPEG"])
def test_a_header_of_absurd_size_is_refused_before_memory_is_taken(form: str) -> None:
    data, where = bytearray(encoded(form)), {"GIF": 6, "BMP": 18, "PNG": 16}
    if form == "JPEG":
        frame = data.find(b"\xff\xc0")
        data[frame + 5 : frame + 9] = b"\xff\xdc\xff\xdc"
    else:
        size = {"GIF": b"\xff\xff\xff\xff", "BMP": b"\xff\xff\xff\x7f" * 2, "PNG": b"\x7f\xff\xff\xff" * 2}[form]
        data[where[form] : where[form] + len(size)] = size
    if form == "PNG":
        data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    with pytest.raises(ImageError, match="more than 89,478,485 pixels|damaged"):
        decode_rgb(bytes(data))
