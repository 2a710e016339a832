"""Files whose metadata, size, name or format must not cost a picture that is whole."""

import io
import struct
import sys
import types
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile, PngImagePlugin

from pipeline.decoding import formats
from pipeline.decoding.formats import HEAD_BYTES, is_heif, looks_like_image
from pipeline.decoding.pillow import Decoder, decode_covering, decode_rgb, has_one_channel
from storage.errors import ImageError, SettingsError

HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(4000)
PIXELS = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def encode(image: Image.Image | np.ndarray, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def with_chunks(*chunks: bytes, before: bytes = b"IDAT") -> bytes:
    """The picture as PNG, with further chunks before its pixels or at its end."""
    data = encode(PIXELS)
    where = data.index(before) - 4
    return data[:where] + b"".join(chunks) + data[where:]


MEGABYTE = 2**20
LARGE = {
    "a text of 2 MB": [chunk(b"zTXt", b"k\0\0" + zlib.compress(b"z" * 2 * MEGABYTE))],
    "an international text of 2 MB": [chunk(b"iTXt", b"k\0\1\0\0\0" + zlib.compress(b"z" * 2 * MEGABYTE))],
    "70 texts of 1 MB": [chunk(b"zTXt", b"k\0\0" + zlib.compress(b"z" * 1_000_000))] * 70,
    "plain text of 70 MB": [chunk(b"tEXt", b"k\0" + b"z" * MEGABYTE)] * 70,
    "XMP of 70 MB": [chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + b" " * 70 * MEGABYTE)],
    "a colour profile of 2 MB": [chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(2 * MEGABYTE)))],
    "a text whose checksum is wrong": [chunk(b"tEXt", b"k\0v")[:-1] + b"!"],
}


class TestMetadata:
    @pytest.mark.parametrize("before", [b"IDAT", b"IEND"])
    @pytest.mark.parametrize("name", LARGE)
    def test_metadata_of_a_png_does_not_cost_the_picture(self, name: str, before: bytes) -> None:
        data = with_chunks(*LARGE[name], before=before)
        np.testing.assert_array_equal(np.asarray(decode_rgb(data)), PIXELS)
        np.testing.assert_array_equal(Decoder(height=20, width=30)(data), PIXELS)

    def test_the_orientation_survives_the_loss_of_the_texts(self) -> None:
        exif = Image.Exif()
        exif[0x0112] = 6
        text = PngImagePlugin.PngInfo()
        text.add_text("k", "z" * 2 * MEGABYTE, zip=True)
        with_exif = encode(PIXELS, exif=exif, pnginfo=text)
        xmp = b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="6"/>'
        with_xmp = with_chunks(chunk(b"iTXt", xmp), *LARGE["a text of 2 MB"])
        for data in (with_exif, with_xmp):
            np.testing.assert_array_equal(np.asarray(decode_rgb(data)), np.rot90(PIXELS, -1))

    def test_a_png_that_is_cut_off_stays_unreadable_with_and_without_texts(self) -> None:
        for data in (encode(PIXELS), with_chunks(*LARGE["a text of 2 MB"])):
            with pytest.raises(ImageError, match="damaged"):
                decode_rgb(data[: len(data) // 2])


class TestLimits:
    def test_a_jpeg_counts_at_the_fraction_that_it_is_decoded_at(self) -> None:
        data = encode(Image.new("RGB", (1600, 1200), (10, 200, 90)), "JPEG")
        decoder = Decoder(height=60, width=80, max_pixels=200 * 150)  # an eighth of each side
        assert np.abs(decoder(data).astype(int) - (10, 200, 90)).max() < 4
        with pytest.raises(ImageError, match="more than 29,999 pixels"):
            Decoder(height=60, width=80, max_pixels=200 * 150 - 1)(data)

    def test_a_progressive_jpeg_counts_whole_because_its_coefficients_are_kept(self) -> None:
        data = encode(Image.new("RGB", (1600, 1200)), "JPEG", progressive=True)
        with pytest.raises(ImageError, match="more than 1,919,999 pixels"):
            Decoder(height=60, width=80, max_pixels=1600 * 1200 - 1)(data)
        assert Decoder(height=60, width=80, max_pixels=1600 * 1200)(data).shape == (60, 80, 3)

    def test_the_limit_can_be_raised_above_that_of_pillow_and_lowered(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # Pillow refuses twice as many
        assert decode_rgb(encode(PIXELS)).size == (30, 20)
        assert Decoder(height=8, width=8, max_pixels=600)(encode(PIXELS)).shape == (8, 8, 3)
        with pytest.raises(ImageError, match="more than 599 pixels: .*--max-pixels"):
            Decoder(height=8, width=8, max_pixels=599)(encode(PIXELS))
        with pytest.raises(SettingsError, match="max_pixels is 0"):
            Decoder(height=8, width=8, max_pixels=0)

    def test_an_image_that_was_scored_can_be_decoded_for_training(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("pipeline.decoding.pillow.MAX_PIXELS", 500_000)
        large = Image.fromarray(PIXELS).resize((1600, 1200), Image.Resampling.BICUBIC)
        jpeg, png = (decode_covering(encode(large, kind), height=90, width=120) for kind in ("JPEG", "PNG"))
        assert (jpeg.size, png.size) == ((400, 300), (1600, 1200))
        difference = np.asarray(jpeg).astype(float) - np.asarray(large.resize((400, 300), Image.Resampling.BOX))
        assert np.abs(difference).mean() < 3
        small = encode(large.resize((800, 600)), "JPEG")  # 480,000 pixels: whole
        np.testing.assert_array_equal(np.asarray(decode_covering(small, height=9, width=12)), decode_rgb(small))


class TestFormats:
    @pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF"])
    def test_an_image_is_known_by_its_first_bytes(self, kind: str) -> None:
        assert looks_like_image(encode(np.tile(PIXELS, (20, 20, 1)), kind)[:HEAD_BYTES])

    @pytest.mark.parametrize(
        "head",
        [b"", b"x", b"BMW is a car", b"P1 is a name", b"Python", b"P6", b"<html>", b"%PDF-1.7", b"{}", bytes(5000)],
    )
    def test_other_files_are_not_taken_for_images(self, head: bytes) -> None:
        assert not looks_like_image(head[:HEAD_BYTES])

    def test_heic_is_told_from_avif_in_the_same_container(self) -> None:
        assert is_heif(HEIC)
        assert looks_like_image(HEIC[:HEAD_BYTES])
        assert not is_heif(b"\0\0\0\x1cftypmif1\0\0\0\0mif1avifmiaf" + bytes(100))
        assert not is_heif(encode(PIXELS, "AVIF"))

    def test_heic_without_its_decoder_says_what_to_install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        formats._heif_format.cache_clear()
        monkeypatch.setitem(sys.modules, "pillow_heif", None)
        with pytest.raises(ImageError, match="HEIC needs a further decoder: pip install pillow-heif"):
            decode_rgb(HEIC)

    def test_heic_is_decoded_by_the_decoder_that_is_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class FakeHeif(ImageFile.ImageFile):
            format = "HEIF"

            def _open(self) -> None:
                self._size, self._mode = (30, 20), "RGB"

            def load(self):  # as pillow-heif does, it decodes here
                self.im = Image.fromarray(PIXELS).im

        module = types.ModuleType("pillow_heif")
        module.register_heif_opener = lambda: Image.register_open("HEIF", FakeHeif)  # type: ignore[attr-defined]
        formats._heif_format.cache_clear()
        monkeypatch.setitem(sys.modules, "pillow_heif", module)
        monkeypatch.setattr(Image, "OPEN", dict(Image.OPEN))
        monkeypatch.setattr(Image, "ID", list(Image.ID))
        try:
            np.testing.assert_array_equal(np.asarray(decode_rgb(HEIC)), PIXELS)
        finally:
            formats._heif_format.cache_clear()

    def test_a_pointer_of_git_lfs_says_what_to_do(self) -> None:
        with pytest.raises(ImageError, match="Git LFS pointer instead of the image: run git lfs pull"):
            decode_rgb(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12345\n")


@pytest.mark.parametrize(
    ("mode", "kind", "single"),
    [("L", "PNG", True), ("P", "PNG", True), ("1", "PNG", True), ("L", "JPEG", True), ("I;16", "PNG", True),
     ("P", "GIF", False), ("RGB", "PNG", False), ("RGBA", "PNG", False), ("LA", "PNG", False), ("CMYK", "JPEG", False)],
)  # fmt: skip
def test_images_of_one_channel_are_told_by_their_header(mode: str, kind: str, single: bool) -> None:
    image = Image.fromarray(PIXELS)
    image = image.convert("L").convert("I;16") if mode == "I;16" else image.convert(mode)
    assert has_one_channel(encode(image, kind)) is single
    assert has_one_channel(b"no image") is None
