"""Decoding: from the bytes of any image file to upright RGB pixels, and to an array of a fixed size.

Every fault of the bytes becomes an :class:`~storage.errors.ImageError`. Its short text is the same in every run,
because it is stored with the scores. Only raster formats that Pillow itself decodes are opened, so that no file can
start an external program (EPS, WMF).
"""

import importlib
import io
import re
import threading
import warnings
from contextlib import suppress
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError

from storage.errors import ImageError, RejectedImageError, SettingsError

MAX_PIXELS = 89_478_485
"""Larger images count as decompression bombs. Pillow needs 341 MiB for this many RGB pixels."""

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
_PLUGINS = ("Jpeg", "Png", "WebP", "Gif", "Bmp", "Tiff", "Ppm", "Jpeg2K", "Avif", "Mpo")
ORIENTATION_TAG = 0x0112  # the EXIF tag
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = (5, 6, 7, 8)
_WHITE = (255, 255, 255, 255)
_PILLOW_MODULES = r"PIL\."
_importing = threading.Lock()
_PILLOW_FILTER = ("ignore", None, Warning, re.compile(_PILLOW_MODULES), 0)


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


@dataclass(frozen=True, kw_only=True, slots=True)
class Decoder:
    """Decodes to a fixed size: scales an image, keeping its aspect, to cover the size, and crops it to the centre.

    A decoder holds no state, so any number of threads may share one.

    Raises:
        SettingsError: when a size is below 1.
    """

    height: int
    """H, pixels of the result."""

    width: int
    """W, pixels of the result."""

    min_side: int = 16
    """Images with a side shorter than this many pixels are rejected."""

    reduced: bool = True
    """Decode large JPEG files at 1/2, 1/4 or 1/8 of their size, but at no less than twice the size of the result."""

    def __post_init__(self) -> None:
        """Check the sizes."""
        for name in ("height", "width", "min_side"):
            if getattr(self, name) < 1:
                raise SettingsError(f"{name} is {getattr(self, name)}; give 1 pixel or more")

    def __call__(self, data: bytes) -> NDArray[np.uint8]:
        """Return the pixels, [H, W, 3] RGB.

        Raises:
            ImageError: when the bytes cannot be decoded.
            RejectedImageError: when the image is too small, or its pixels have no known range.
        """
        with _FaultsOf(data):
            image = _open(data, self.min_side)
            reduced = self._reduce(image) if self.reduced and image.format in ("JPEG", "MPO") else None
            image.load()
            orientation = _orientation(image)
            size = (self.height, self.width) if orientation in _SIDEWAYS else (self.width, self.height)
            box = _centre(reduced or image.size, size)
            # Pillow's bilinear filter averages over all pixels under a target pixel, so the result is antialiased.
            scaled = _to_rgb(image).resize(size, Image.Resampling.BILINEAR, box=box)
            return np.array(_upright(scaled, orientation))

    def _reduce(self, image: ImageFile.ImageFile) -> tuple[float, float] | None:
        """Let the JPEG decoder scale. Return the exact size of the image in its pixels; None if it does not scale."""
        sideways = _orientation(image) in _SIDEWAYS
        width, height = (self.height, self.width) if sideways else (self.width, self.height)
        scale = max(width / image.width, height / image.height)
        if 4 * scale > 1:  # less than 1/2 for twice the size
            return None
        wanted = (int(np.ceil(2 * scale * image.width)), int(np.ceil(2 * scale * image.height)))
        reduced = image.draft(None, wanted)
        return None if reduced is None else reduced[1][2:]


def decode_rgb(data: bytes, *, min_side: int = 1) -> Image.Image:
    """Return an image of any format and mode as upright RGB, at its full size.

    Transparent images are composited on white. 16-bit pixels are scaled to 8 bits, not clipped.

    Raises:
        ImageError: when the bytes cannot be decoded.
        RejectedImageError: when a side is shorter than ``min_side`` pixels, or the pixels have no known range.
    """
    with _FaultsOf(data):
        image = _open(data, min_side)
        image.load()
        return _upright(_to_rgb(image), _orientation(image))


class _FaultsOf:
    """Turns any error of Pillow in its block into an ImageError."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def __enter__(self) -> None:
        silence_pillow()

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if error is None or isinstance(error, ImageError) or not isinstance(error, Exception):
            return
        raise ImageError(_explain(error, self._data)) from error


def _open(data: bytes, min_side: int) -> ImageFile.ImageFile:
    if not data:
        raise ImageError("empty: 0 bytes")
    image = Image.open(io.BytesIO(data), formats=opened_formats())
    if image.width * image.height > MAX_PIXELS:
        raise Image.DecompressionBombError
    if min(image.size) < min_side:
        raise RejectedImageError(f"{image.width}x{image.height} is smaller than {min_side} pixels")
    return image


def _orientation(image: Image.Image) -> int:
    try:
        orientation = image.getexif().get(ORIENTATION_TAG, 1)
    except Exception:  # an image with damaged metadata can still be used
        return 1
    return orientation if isinstance(orientation, int) and orientation in _TRANSPOSE else 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(_TRANSPOSE[orientation]) if orientation in _TRANSPOSE else image


def _centre(size: tuple[float, float], target: tuple[int, int]) -> tuple[float, float, float, float]:
    """Return the largest centred box in ``size`` with the aspect of ``target``, both (width, height)."""
    (width, height), (target_width, target_height) = size, target
    scale = max(target_width / width, target_height / height)
    left = max(0.0, (width - target_width / scale) / 2)
    top = max(0.0, (height - target_height / scale) / 2)
    return left, top, width - left, height - top


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        return _from_16_bits(image)
    if image.mode == "F":
        raise RejectedImageError("floating-point pixels, whose range is not known")
    if image.has_transparency_data:
        background = Image.new("RGBA", image.size, _WHITE)
        return Image.alpha_composite(background, image.convert("RGBA")).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _from_16_bits(image: Image.Image) -> Image.Image:
    pixels = np.asarray(image)
    # Mode I has 32 bits, which usually hold 16-bit values.
    if pixels.dtype.itemsize > 2 and (pixels.min() < 0 or pixels.max() > 65535):
        raise RejectedImageError("32-bit pixels outside 0 to 65535, whose range is not known")
    # 65535 = 255 * 257, so this is the nearest 8-bit value.
    grey = (pixels.astype(np.uint32) + 128) // 257
    return Image.fromarray(grey.astype(np.uint8)).convert("RGB")


def silence_pillow() -> None:
    """Suppress Pillow's warnings about odd files. The scores keep what is wrong with an image."""
    # warnings.catch_warnings is not safe with threads, and Pillow has no switch. So this is a filter for its modules
    # alone, which is added again if somebody (a test runner, for one) has changed the filters.
    if not warnings.filters or warnings.filters[0] != _PILLOW_FILTER:
        warnings.filterwarnings("ignore", module=_PILLOW_MODULES)


def _explain(error: Exception, data: bytes) -> str:
    """Describe the fault in a short line that depends on the bytes alone."""
    if isinstance(error, Image.DecompressionBombError):
        return f"more than {MAX_PIXELS:,} pixels: taken for a decompression bomb"
    if isinstance(error, UnidentifiedImageError):
        return f"no known image format, or a damaged header (it starts with {data[:12]!r})"
    if isinstance(error, MemoryError):
        return "damaged: asks for more memory than there is"
    text = re.sub(r"( object)? at 0x[0-9a-fA-F]+", "", " ".join(str(error).split()))
    return f"damaged: {text or type(error).__name__}"[:160]
