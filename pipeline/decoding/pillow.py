"""Decoding: from the bytes of any image file to upright RGB pixels, and to an array of a fixed size.

Every fault of the bytes becomes an :class:`~storage.errors.ImageError`. Its short text is the same in every run,
because it is stored with the scores.
"""

import re
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError

from pipeline.decoding.formats import open_image
from pipeline.decoding.limits import JPEG, MAX_PIXELS, check_work, has_shared_tags
from pipeline.decoding.png import without_metadata
from storage.errors import ImageError, RejectedImageError, SettingsError

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
_PILLOW_FILTER = ("ignore", None, Warning, re.compile(_PILLOW_MODULES), 0)


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

    max_pixels: int | None = MAX_PIXELS
    """Most pixels in memory, None for any number. A JPEG file counts at the fraction that it is decoded at."""

    reduced: bool = True
    """Decode large JPEG files at 1/2, 1/4 or 1/8 of their size, but at no less than twice the size of the result."""

    def __post_init__(self) -> None:
        """Check the sizes."""
        for name in ("height", "width", "min_side", "max_pixels"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise SettingsError(f"{name} is {value}; give 1 pixel or more")

    def __call__(self, data: bytes) -> NDArray[np.uint8]:
        """Return the pixels, [H, W, 3] RGB.

        Raises:
            ImageError: when the bytes cannot be decoded.
            RejectedImageError: when the image is too small, or its pixels have no known range.
        """
        with _FaultsOf(data):
            loading = _Loading(
                min_side=self.min_side,
                max_pixels=self.max_pixels,
                cover=(self.height, self.width) if self.reduced else None,
            )
            image, exact = loading(data)
            orientation = orientation_of(image)
            size = (self.height, self.width) if orientation in _SIDEWAYS else (self.width, self.height)
            # Pillow's bilinear filter averages over all pixels under a target pixel, so the result is antialiased.
            scaled = _to_rgb(image).resize(size, Image.Resampling.BILINEAR, box=_centre(exact, size))
            return np.array(_upright(scaled, orientation))


def decode_rgb(data: bytes, *, min_side: int = 1) -> Image.Image:
    """Return an image of any format and mode as upright RGB, at its full size.

    Transparent images are composited on white. 16-bit pixels are scaled to 8 bits, not clipped.

    Raises:
        ImageError: when the bytes cannot be decoded.
        RejectedImageError: when a side is shorter than ``min_side`` pixels, or the pixels have no known range.
    """
    with _FaultsOf(data):
        image, _ = _Loading(min_side=min_side)(data)
        return _upright(_to_rgb(image), orientation_of(image))


def decode_covering(data: bytes, *, height: int, width: int) -> Image.Image:
    """Return an image as :func:`decode_rgb` does; of a JPEG file that is too large, a fraction that covers the size.

    It is for images that have been scored, so there is no limit of pixels: they passed that of their scoring.

    Raises:
        ImageError: when the bytes cannot be decoded.
        RejectedImageError: when the pixels have no known range.
    """
    with _FaultsOf(data):
        image, _ = _Loading(max_pixels=None, cover=(height, width), reduced_from=MAX_PIXELS)(data)
        return _upright(_to_rgb(image), orientation_of(image))


def decode_label(data: bytes) -> tuple[NDArray[Any], str]:
    """Return the values of a label image as they are stored, [H, W] or [H, W, channels], and the name of its format.

    It has the formats and limits of :func:`decode_rgb`. Nothing is turned upright or converted.

    Raises:
        ImageError: when the bytes cannot be decoded.
    """
    with _FaultsOf(data):
        image, _ = _Loading()(data)
        return np.asarray(image), image.format or ""


def upright_size(data: bytes) -> tuple[int, int]:
    """Return width and height in pixels of an image when it is upright; only its header is decoded.

    Raises:
        ImageError: when the header cannot be decoded.
    """
    with _FaultsOf(data):
        image = open_image(data)
        width, height = image.size
        return (height, width) if orientation_of(image) in _SIDEWAYS else (width, height)


def has_one_channel(data: bytes) -> bool | None:
    """Tell by the header whether an image has a single channel, as label images have; None if it cannot be opened.

    GIF files have one as well, but a palette that is made for pictures.
    """
    try:
        with _FaultsOf(data):
            image = open_image(data)
    except ImageError:
        return None
    return image.mode[0] in "1LPIF" and image.mode not in ("LA", "LAB", "PA") and image.format != "GIF"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Loading:
    """Opens an image, checks its size, and decodes its pixels."""

    min_side: int = 1
    max_pixels: int | None = MAX_PIXELS
    cover: tuple[int, int] | None = None
    """Height and width that a JPEG file must still cover twice when it is decoded at a fraction; None: never."""
    reduced_from: int = 0
    """Pixels from which a JPEG file is decoded at a fraction."""

    def __call__(self, data: bytes) -> tuple[ImageFile.ImageFile, tuple[float, float]]:
        """Return the decoded image, and its exact width and height in its pixels."""
        try:
            return self._load(data)
        except ImageError:
            raise
        except Exception:
            if (lean := without_metadata(data)) is None:
                raise
            return self._load(lean)

    def _load(self, data: bytes) -> tuple[ImageFile.ImageFile, tuple[float, float]]:
        if not data:
            raise ImageError("empty: 0 bytes")
        image = open_image(data)
        check_work(image, data)
        if min(image.size) < self.min_side:
            raise RejectedImageError(f"{image.width}x{image.height} is smaller than {self.min_side} pixels")
        pixels, exact = image.width * image.height, None
        if self.cover is not None and image.format in JPEG and pixels >= self.reduced_from:
            exact = _reduce(image, *self.cover)
            # The decoder keeps the coefficients of a progressive file, whatever the fraction.
            pixels = pixels if image.info.get("progressive") else image.width * image.height
        if self.max_pixels is not None and pixels > self.max_pixels:
            raise ImageError(
                f"more than {self.max_pixels:,} pixels: taken for a decompression bomb (see --max-pixels, and "
                "--retry-failed where it was scored)"
            )
        image.load()
        return image, exact or image.size


def _reduce(image: ImageFile.ImageFile, height: int, width: int) -> tuple[float, float] | None:
    """Let the JPEG decoder scale. Return the exact size of the image in its pixels; None if it does not scale."""
    if orientation_of(image) in _SIDEWAYS:
        width, height = height, width
    scale = max(width / image.width, height / image.height)
    if 4 * scale > 1:  # less than 1/2 for twice the size
        return None
    wanted = (int(np.ceil(2 * scale * image.width)), int(np.ceil(2 * scale * image.height)))
    reduced = image.draft(None, wanted)
    return None if reduced is None else reduced[1][2:]


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


def orientation_of(image: Image.Image) -> int:
    """Return the orientation that EXIF gives an image, 1 to 8; 1, which is upright, where it gives none."""
    try:
        exif = image.info.get("exif") or bytes.fromhex(_raw_profile(image))
        if has_shared_tags(exif):
            return 1
        orientation = image.getexif().get(ORIENTATION_TAG, 1)
    except Exception:  # an image with damaged metadata can still be used
        return 1
    return orientation if isinstance(orientation, int) and orientation in _TRANSPOSE else 1


def _raw_profile(image: Image.Image) -> str:
    """The EXIF block that ImageMagick writes as a text of PNG, in hexadecimal after three lines; empty for others."""
    return "".join(str(image.info.get("Raw profile type exif", "")).split("\n")[3:])


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
    if data.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer instead of the image: run git lfs pull"
    if isinstance(error, UnidentifiedImageError):
        return f"no known image format, or a damaged header (it starts with {data[:12]!r})"
    if isinstance(error, MemoryError):
        return "damaged: asks for more memory than there is"
    text = re.sub(r"( object)? at 0x[0-9a-fA-F]+", "", " ".join(str(error).split()))
    return f"damaged: {text or type(error).__name__}"[:160]
