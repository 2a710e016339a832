"""The picture being painted: linear radiance, class ids and depth, and its development into a photograph.

Everything is painted far to near at twice the final size. A surface is given as a material per pixel, the materials'
reflectances and a tone per pixel: ``radiance = reflectance[material] * tone * light``. Development follows a camera:
haze ``1 - exp(-depth / distance)``, vignetting, exposure, photon noise, and the response ``sqrt(1 - exp(-x))``.

Shapes: C = 3 colours, M materials, H rows, W columns of the picture, h, w those of a crop.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from pipeline.world.camera import Crop
from pipeline.world.noise import Bytes, Field, Mask

SCALE = 2  # painted pixels per final pixel, along each axis
VOID = 255

Colour = tuple[float, float, float]


def reflectances(colours: Sequence[Colour]) -> Field:
    """Linear reflectances of display colours in 0..1, shape (C, M)."""
    return np.square(np.array(colours, dtype=np.float32)).T.copy()


class Canvas:
    """A picture under way, at ``SCALE`` times the final height and width."""

    def __init__(self, height: int, width: int) -> None:
        self.rgb_CHW = np.zeros((3, height, width), dtype=np.float32)
        self.label_HW = np.zeros((height, width), dtype=np.uint8)
        self.depth_HW = np.zeros((height, width), dtype=np.float32)

    def paint(self, crop: Crop, mask: Mask, rgb: Field, *, depth: Field | float, label: int) -> None:
        """Covers the masked pixels of a crop with a radiance of shape (C, h, w), a depth in metres and a class."""
        np.copyto(self.rgb_CHW[:, crop[0], crop[1]], rgb, where=mask)
        np.copyto(self.depth_HW[crop], depth, where=mask)
        np.copyto(self.label_HW[crop], np.uint8(label), where=mask)

    def glow(self, crop: Crop, rgb: Field) -> None:
        """Adds radiance of shape (C, h, w) in front of a crop."""
        self.rgb_CHW[:, crop[0], crop[1]] += rgb

    def halved(self) -> tuple[Field, Field, Bytes]:
        """Radiance (C, H, W), depth and class ids (H, W) at the final size."""
        return _mean(self.rgb_CHW), _mean(self.depth_HW), _majority(self.label_HW)


@dataclass(frozen=True, kw_only=True, slots=True)
class Film:
    """How a picture is developed."""

    haze_C: Field
    """Radiance of the haze, shape (C,)."""
    haze_distance: float
    """Metres at which 63 % of the light comes from the haze."""
    exposure_C: Field
    """Factor on the radiance of each colour, white balance included, shape (C,)."""
    noise: float
    """Standard deviation of the photon noise at radiance 1."""
    vignette: float
    """Share of the light lost in the corners."""
    blur: float
    """Radius of the blur in pixels."""


def develop(canvas: Canvas, film: Film, rng: np.random.Generator) -> tuple[Bytes, Bytes]:
    """The finished picture, shape (H, W, C) in 0..255, and its class ids, shape (H, W)."""
    rgb_CHW, depth_HW, label_HW = canvas.halved()
    clear_HW = np.exp(depth_HW * (-1.0 / film.haze_distance))
    haze_C11 = film.haze_C[:, None, None]
    rgb_CHW = (rgb_CHW - haze_C11) * clear_HW + haze_C11
    rgb_CHW *= film.exposure_C[:, None, None] * _vignette(rgb_CHW.shape[1], rgb_CHW.shape[2], film.vignette)
    return expose(rgb_CHW, rng, noise=film.noise, blur=film.blur), label_HW


def expose(rgb_CHW: Field, rng: np.random.Generator, *, noise: float = 0.03, blur: float = 0.0) -> Bytes:
    """Radiance (C, H, W) as sensor and display give it, shape (H, W, C) in 0..255; ``blur`` is a radius in pixels."""
    rgb_CHW = np.maximum(rgb_CHW, 0.0)
    grain_CHW = rng.standard_normal(rgb_CHW.shape, dtype=np.float32)
    response_CHW = 1.0 - np.exp(-np.maximum(rgb_CHW + grain_CHW * np.sqrt(rgb_CHW + 0.02) * noise, 0.0))
    picture_HWC = np.ascontiguousarray((255.0 * np.sqrt(response_CHW) + 0.5).astype(np.uint8).transpose(1, 2, 0))
    if blur <= 0.2:
        return picture_HWC
    return np.asarray(Image.fromarray(picture_HWC).filter(ImageFilter.GaussianBlur(blur)))


def _vignette(height: int, width: int, strength: float) -> Field:
    x_w = np.linspace(-1, 1, width, dtype=np.float32)
    y_h = np.linspace(-1, 1, height, dtype=np.float32)
    loss_hw: Field = 1.0 - 0.5 * strength * (np.square(x_w)[None, :] + np.square(y_h)[:, None])
    return loss_hw


def _mean(field: Field) -> Field:
    columns = field[..., 0::2] + field[..., 1::2]
    mean: Field = (columns[..., 0::2, :] + columns[..., 1::2, :]) * np.float32(0.25)
    return mean


def _majority(label_HW: Bytes) -> Bytes:
    """The third smallest of each four ids: the majority, and on a tie the higher id, which is the thinner class."""
    height, width = label_HW.shape
    four = label_HW.reshape(height // 2, 2, width // 2, 2).transpose(0, 2, 1, 3).reshape(height // 2, width // 2, 4)
    third: Bytes = np.partition(four, 2, axis=-1)[..., 2]
    return third
