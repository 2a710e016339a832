import io
import random
import struct
import subprocess
import sys
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

import pipeline.decoding.pillow
from pipeline.decoding.pillow import MAX_PIXELS, Decoder, decode_rgb
from pipeline.process import silence_image_libraries
from storage.errors import ImageError, RejectedImageError, SettingsError


def photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth colours with some noise, [H, W, 3]."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width] / 20
    waves = [np.sin(rows * (1 + c) + c) + np.cos(columns * (2 - 0.5 * c)) for c in range(3)]
    pixels = 128 + 50 * np.stack(waves, -1) + rng.normal(0, 6, (height, width, 3))
    return pixels.clip(0, 255).astype(np.uint8)


def encode(image: Image.Image | np.ndarray, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, kind, **options)
    return buffer.getvalue()


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


# How a camera stores an upright picture with each EXIF orientation: row 0 and column 0 of the stored picture are the
# sides that the standard names (6: row 0 is the right side, column 0 the top).
STORED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: a.transpose(1, 0, 2)[::-1],
    7: lambda a: a.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda a: a.transpose(1, 0, 2)[:, ::-1],
}


def triangle_weights(size: int, start: float, stop: float, target: int) -> np.ndarray:
    """Antialiased linear interpolation of [start, stop) to ``target`` pixels, [target, size], by its definition."""
    step = (stop - start) / target
    centres = start + (np.arange(target)[:, None] + 0.5) * step
    distance = np.abs(np.arange(size)[None] + 0.5 - centres) / max(step, 1)
    weights = np.clip(1 - distance, 0, None)
    return weights / weights.sum(1, keepdims=True)


def cover(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Scale to cover, crop to the centre: the oracle, in float64."""
    scale = max(height / pixels.shape[0], width / pixels.shape[1])
    weights = []
    for size, target in ((pixels.shape[0], height), (pixels.shape[1], width)):
        margin = (size - target / scale) / 2
        weights.append(triangle_weights(size, margin, size - margin, target))
    rows = np.tensordot(weights[0], pixels.astype(float), 1)
    return np.tensordot(weights[1], rows, (1, 1)).swapaxes(0, 1)


SIZES = [(60, 80), (61, 47), (200, 90), (37, 333), (20, 20), (48, 64), (500, 700)]


class TestGeometry:
    @pytest.mark.parametrize("size", SIZES)
    def test_covers_keeps_the_aspect_and_crops_to_the_centre(self, size):
        pixels = photo(*size)
        result = Decoder(height=48, width=64)(encode(pixels))
        assert (result.shape, result.dtype) == ((48, 64, 3), np.uint8)
        assert result.flags.writeable
        assert np.abs(result - cover(pixels, 48, 64)).max() < 1.5

    @pytest.mark.parametrize("orientation", range(1, 9))
    @pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
    def test_pictures_are_upright_whatever_their_exif_says(self, orientation, kind):
        upright = photo(50, 90)
        stored = np.ascontiguousarray(STORED[orientation](upright))
        options = {"lossless": True} if kind == "WEBP" else {}
        data = encode(stored, kind, exif=exif(orientation), **options)
        assert np.array_equal(np.asarray(decode_rgb(data)), upright)
        assert np.abs(Decoder(height=30, width=20)(data) - cover(upright, 30, 20)).max() < 1.5

    @pytest.mark.parametrize("orientation", range(1, 9))
    @pytest.mark.parametrize("reduced", [False, True])
    def test_large_jpegs_are_upright_and_alike_with_reduced_decoding(self, orientation, reduced):
        upright = photo(403, 610)
        data = encode(np.ascontiguousarray(STORED[orientation](upright)), "JPEG", quality=95, exif=exif(orientation))
        result = Decoder(height=40, width=50, reduced=reduced)(data)
        assert np.abs(result - cover(upright, 40, 50)).mean() < 1.5

    @pytest.mark.parametrize(("size", "expected"), [((159, 159), 1), ((160, 160), 2), ((400, 330), 4), ((900, 700), 8)])
    def test_reduced_decoding_leaves_twice_the_target(self, size, expected, monkeypatch):
        decoded, resize = [], Image.Image.resize

        def spy(self, *arguments, **options):
            decoded.append(self.size)
            return resize(self, *arguments, **options)

        monkeypatch.setattr(Image.Image, "resize", spy)
        data = encode(photo(*size), "JPEG")
        Decoder(height=40, width=40)(data)
        Decoder(height=40, width=40, reduced=False)(data)
        assert decoded[0] == (-(-size[1] // expected), -(-size[0] // expected))
        assert min(decoded[0]) >= 80 or expected == 1
        assert decoded[1] == (size[1], size[0])

    @pytest.mark.parametrize("name", ["height", "width", "min_side"])
    def test_sizes_below_one_are_refused(self, name):
        with pytest.raises(SettingsError, match=name):
            Decoder(**{"height": 4, "width": 4, name: 0})


class TestModes:
    """Each mode against the colours that it stands for."""

    PIXELS = photo(40, 60)

    def check(self, data: bytes, expected: np.ndarray, tolerance: float = 0) -> None:
        image = decode_rgb(data)
        assert (image.mode, image.size) == ("RGB", (60, 40))
        assert np.abs(np.asarray(image).astype(float) - expected).max() <= tolerance
        small = Decoder(height=20, width=30)(data)
        assert np.abs(small - cover(expected, 20, 30)).max() < 1.5 + tolerance

    def test_grey_and_bilevel(self):
        grey = self.PIXELS[..., 0]
        self.check(encode(grey), np.repeat(grey[..., None], 3, -1))
        bits = np.repeat((grey[..., None] > 128) * 255, 3, -1)
        self.check(encode(Image.fromarray(grey > 128)), bits)

    def test_palette(self):
        image = Image.fromarray(self.PIXELS).quantize(64)
        self.check(encode(image), np.asarray(image.convert("RGB")))
        self.check(encode(image, "GIF"), np.asarray(image.convert("RGB")))

    @pytest.mark.parametrize("mode", ["RGBA", "LA"])
    def test_transparency_is_composited_on_white(self, mode):
        alpha = np.tile(np.linspace(0, 255, 60).astype(np.uint8), (40, 1))
        colours = self.PIXELS if mode == "RGBA" else self.PIXELS[..., :1]
        expected = colours * (alpha[..., None] / 255) + 255 * (1 - alpha[..., None] / 255)
        data = encode(np.concatenate([colours, alpha[..., None]], -1))
        self.check(data, np.broadcast_to(expected, (40, 60, 3)), tolerance=1)

    def test_transparent_palette_entries_and_colour_keys_are_white(self):
        index = (np.indices((40, 60)).sum(0) % 4).astype(np.uint8)
        image = Image.fromarray(index, "P")
        colours = np.array([[10, 20, 30], [200, 0, 0], [0, 200, 0], [0, 0, 200]], np.uint8)
        image.putpalette(colours.tobytes())
        self.check(
            encode(image, transparency=bytes([255, 0, 128, 255])),
            self.on_white(colours, index, [1, 0, 128 / 255, 1]),
            1,
        )
        self.check(encode(image, "GIF", transparency=2), self.on_white(colours, index, [1, 1, 0, 1]))
        keyed = encode(image.convert("RGB"), transparency=(200, 0, 0))
        self.check(keyed, self.on_white(colours, index, [1, 0, 1, 1]))

    @staticmethod
    def on_white(colours: np.ndarray, index: np.ndarray, alpha: list[float]) -> np.ndarray:
        opacity = np.array(alpha)[:, None]
        return (colours * opacity + 255 * (1 - opacity))[index]

    def test_cmyk_jpegs_have_adobes_inverted_inks(self):
        # Pillow writes them as Photoshop does. No black ink: red is what cyan leaves, and so on.
        inks = np.concatenate([255 - self.PIXELS, np.zeros((40, 60, 1), np.uint8)], -1)
        data = encode(Image.fromarray(inks, "CMYK"), "JPEG", quality=100, subsampling=0)
        assert b"Adobe" in data[:64]
        self.check(data, self.PIXELS, tolerance=6)

    def test_ycbcr_and_16_bit_colours(self):
        data = encode(self.PIXELS, "JPEG", quality=100, subsampling=0)
        self.check(data, self.PIXELS, tolerance=4)
        self.check(png_of_16_bits(self.PIXELS.astype(np.uint16) * 257), self.PIXELS)

    @pytest.mark.parametrize("kind", ["PNG", "TIFF"])
    def test_16_bit_grey_is_scaled_and_not_clipped(self, kind):
        deep = np.linspace(0, 65535, 2400).astype(np.uint16).reshape(40, 60)
        expected = np.repeat(np.round(deep / 257)[..., None], 3, -1)
        self.check(encode(Image.fromarray(deep), kind), expected)
        self.check(encode(Image.fromarray(deep.astype(np.int32)), "TIFF"), expected)
        self.check(encode(Image.fromarray(deep.astype(">u2")), "TIFF"), expected)

    def test_pixels_without_a_known_range_are_rejected_with_the_reason(self):
        with pytest.raises(RejectedImageError, match="floating-point"):
            decode_rgb(encode(np.zeros((40, 60), np.float32), "TIFF"))
        for value in (-1, 70000):
            with pytest.raises(RejectedImageError, match="32-bit"):
                decode_rgb(encode(np.full((40, 60), value, np.int32), "TIFF"))

    @pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
    def test_of_several_frames_the_first_is_taken(self, kind):
        frames = [Image.new("RGB", (60, 40), colour) for colour in ("red", "blue")]
        options = {"lossless": True} if kind == "WEBP" else {}
        data = encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        self.check(data, np.broadcast_to([255, 0, 0], (40, 60, 3)))


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def png_of_16_bits(pixels: np.ndarray) -> bytes:
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    return png(pixels.shape[1], pixels.shape[0], 16, 2, rows)


class TestFaults:
    @pytest.mark.parametrize(
        ("data", "reason"),
        [
            (b"", "empty: 0 bytes"),
            (b"just some text", r"no known image format.*just some te"),
            (b"<!DOCTYPE html><html>", "no known image format.*<!DOCTYPE ht"),
            (b"\xff\xd8\xff", "."),
            (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 40\n", "no known image format"),
            (encode(photo(40, 40), "JPEG")[:-100], "truncated"),
            (encode(photo(40, 40))[:-2000], "truncated|broken"),
        ],
    )
    def test_what_cannot_be_decoded_says_why(self, data, reason):
        for decode in (decode_rgb, Decoder(height=8, width=8)):
            with pytest.raises(ImageError, match=reason) as caught:
                decode(data)
            assert not isinstance(caught.value, RejectedImageError)
            assert "\n" not in str(caught.value)
            assert len(str(caught.value)) <= 160

    def test_small_images_are_rejected_before_they_are_decoded(self):
        with pytest.raises(RejectedImageError, match=r"^1x1 is smaller than 16 pixels$"):
            Decoder(height=8, width=8)(encode(photo(1, 1)))
        with pytest.raises(RejectedImageError, match=r"^40x15 is smaller than 16 pixels$"):
            Decoder(height=8, width=8)(encode(photo(15, 40))[:100])
        assert Decoder(height=8, width=8)(encode(photo(16, 40))).shape == (8, 8, 3)
        assert decode_rgb(encode(photo(1, 1))).size == (1, 1)

    @pytest.mark.parametrize("side", [9460, 20_000, 60_000])
    def test_a_decompression_bomb_is_refused_without_spending_memory(self, side, monkeypatch):
        # load_prepare is where Pillow allocates the pixels; had it been called, the reason would be another.
        monkeypatch.delattr(ImageFile.ImageFile, "load_prepare")
        monkeypatch.delattr("PIL.PngImagePlugin.PngImageFile.load_prepare")
        assert side**2 > MAX_PIXELS
        for decode in (decode_rgb, Decoder(height=8, width=8)):
            with pytest.raises(ImageError, match=r"89,478,485 pixels: .* bomb"):
                decode(png(side, side, 8, 2, b""))

    def test_broken_metadata_does_not_cost_the_image(self):
        pixels = photo(40, 60)
        for broken in (b"Exif\0\0garbage", b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\xff\xff\xff\xff"):
            data = encode(pixels, "JPEG", exif=broken)
            assert decode_rgb(data).size == (60, 40)
            assert Decoder(height=8, width=8)(data).shape == (8, 8, 3)
        assert decode_rgb(encode(pixels, exif=exif(9))).size == (60, 40)

    @pytest.mark.parametrize("fault", [MemoryError(), KeyError("x"), struct.error("y"), RecursionError(), Exception()])
    def test_nothing_that_pillow_raises_leaks(self, fault, monkeypatch):
        def fail(self):
            raise fault

        monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
        monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", fail)
        with pytest.raises(ImageError, match=r"^damaged: .+"):
            decode_rgb(encode(photo(4, 4)))

    def test_an_interrupt_is_not_taken_for_a_fault_of_the_image(self, monkeypatch):
        def interrupt(*arguments, **options):
            raise KeyboardInterrupt

        monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", interrupt)
        with pytest.raises(KeyboardInterrupt):
            decode_rgb(encode(photo(4, 4)))

    def test_corrupted_files_give_pixels_or_the_same_error_each_time_and_stay_silent(self, capfd, caplog):
        chance = random.Random(0)
        silence_image_libraries()
        decoder = Decoder(height=16, width=24, min_side=2)
        for data in corrupted_files(chance, 600):
            outcomes = []
            for _ in range(2):
                try:
                    outcomes.append(decoder(data).tobytes())
                except ImageError as error:
                    outcomes.append(str(error))
            assert outcomes[0] == outcomes[1]
            assert " at 0x" not in str(outcomes[0])
        assert capfd.readouterr() == ("", "")

    def test_memory_addresses_are_kept_out_of_the_text(self):
        text = pipeline.decoding.pillow._explain(OSError("cannot use <_io.BytesIO object at 0x7f12ab34cd56>"), b"")
        assert text == "damaged: cannot use <_io.BytesIO>"


def corrupted_files(chance: random.Random, count: int):
    image = Image.fromarray(photo(31, 45))
    deflated, fax = {"compression": "tiff_lzw"}, {"compression": "group4"}
    originals = [
        *(encode(image, kind, exif=exif(6)) for kind in ("JPEG", "PNG", "WEBP", "TIFF")),
        *(encode(image, kind) for kind in ("BMP", "PPM", "GIF", "JPEG2000")),
        *(encode(image, "TIFF", **deflated), encode(image.convert("1"), "TIFF", **fax)),
        *(encode(image.convert("RGBA")), encode(image.convert("CMYK"), "JPEG"), encode(image.quantize(9))),
    ]
    for number in range(count):
        data = bytearray(originals[number % len(originals)])
        if number % 3 == 0:
            del data[chance.randrange(len(data)) :]
        for _ in range(chance.choice([0, 1, 3, 20])):
            if data:
                data[chance.randrange(min(len(data), chance.choice([100, 10_000])))] = chance.choice(
                    [0, 255, chance.randrange(256)]
                )
        yield bytes(data)


class TestConsoleAndThreads:
    def test_pillows_warnings_are_silenced_and_those_of_others_are_not(self):
        palette = Image.fromarray(np.zeros((40, 60), np.uint8), "P")
        palette.putpalette(bytes(768))
        noisy = encode(palette, transparency=bytes([128] * 256))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert decode_rgb(noisy).size == (60, 40)
            decode_rgb(encode(photo(40, 60), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x05\0"))
            with pytest.raises(UserWarning, match="mine"):
                warnings.warn("mine", stacklevel=1)

    def test_a_command_keeps_pillows_log_off_the_terminal_and_the_library_does_not_touch_it(self):
        code = (
            "import logging, pipeline.decoding.pillow\n"
            "logger = logging.getLogger('PIL')\n"
            "assert logger.propagate and not logger.handlers\n"
            "from pipeline.process import own_process\n"
            "own_process()\n"
            "logger.error('noise')\n"
        )
        root = Path(pipeline.decoding.pillow.__file__).parents[2]
        result = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
        assert (result.stdout, result.stderr) == ("", "")

    def test_threads_that_begin_together_get_what_one_thread_gets(self, tmp_path):
        kinds = ("WEBP", "TIFF", "JPEG2000", "PNG", "GIF", "JPEG", "BMP", "PPM")
        files = [encode(photo(60, 80, seed), kind) for seed, kind in enumerate(kinds * 4)]
        decoder = Decoder(height=24, width=32)
        alone = [decoder(data) for data in files]
        with ThreadPoolExecutor(8) as pool:
            assert np.array_equal(list(pool.map(decoder, files)), alone)
        # The same in a fresh process, where no format has been used yet.
        for number, data in enumerate(files):
            (tmp_path / f"{number:02}").write_bytes(data)
        command = [sys.executable, "-W", "error", "-c", DECODE_BY_THREADS, str(tmp_path)]
        result = subprocess.run(
            command, cwd=Path(pipeline.decoding.pillow.__file__).parents[2], capture_output=True, check=True
        )
        assert result.stderr == b""
        assert result.stdout == b"".join(array.tobytes() for array in alone)


DECODE_BY_THREADS = """
import pathlib, sys, threading
from concurrent.futures import ThreadPoolExecutor
from pipeline.decoding.pillow import Decoder

files = [path.read_bytes() for path in sorted(pathlib.Path(sys.argv[1]).iterdir())]
decoder, together = Decoder(height=24, width=32), threading.Barrier(len(files))
with ThreadPoolExecutor(len(files)) as pool:
    for array in pool.map(lambda data: (together.wait(), decoder(data))[1], files):
        sys.stdout.buffer.write(array.tobytes())
"""
