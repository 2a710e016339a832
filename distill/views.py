"""Random views of images for training: crops at many scales, flips, and changes of brightness, contrast and saturation.

Teacher and student see the same view, so the teacher's logits are the label of the student's input. Randomness comes
from ``(seed, step, slot)`` alone, so a resumed run continues with the same views.

Shapes: N images, H x W pixels.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

Box = tuple[float, float, float, float]
Light = tuple[float, float, float]
"""Factors of brightness, contrast and saturation."""
PLAIN: Light = (1.0, 1.0, 1.0)
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as in Pillow's conversion to grey


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ViewSettings:
    """Size in pixels and strength of the random views."""

    height: int
    width: int
    min_scale: float
    jitter: float


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """One random view: a part of the image, mirrored or not, with factors for its colours."""

    box: Box
    flip: bool = False
    light: Light = PLAIN
    """Factors of brightness, contrast and saturation."""


def draw_view(rng: np.random.Generator, size: tuple[int, int], settings: ViewSettings) -> View:
    """Draw a view of an image of ``size`` = (width, height) pixels."""
    width, height = size
    aspect = settings.width / settings.height * float(np.exp(rng.uniform(-0.1, 0.1)))
    scale = rng.uniform(settings.min_scale, 1.0)
    crop_width = min(width, height * aspect) * scale
    crop_height = min(height, width / aspect) * scale
    left, top = rng.uniform(0, width - crop_width), rng.uniform(0, height - crop_height)
    light = draw_light(rng, settings)
    return View(box=(left, top, left + crop_width, top + crop_height), flip=bool(rng.random() < 0.5), light=light)


def draw_light(rng: np.random.Generator, settings: ViewSettings) -> Light:
    """Draw factors of brightness, contrast and saturation."""
    brightness, contrast, saturation = 1 + settings.jitter * rng.uniform(-1, 1, size=3)
    return float(brightness), float(contrast), float(saturation)


def whole_view(size: tuple[int, int], settings: ViewSettings) -> View:
    """The largest centred view of an image of ``size`` = (width, height) pixels, not mirrored, colours unchanged."""
    width, height = size
    aspect = settings.width / settings.height
    crop_width, crop_height = min(width, height * aspect), min(height, width / aspect)
    left, top = (width - crop_width) / 2, (height - crop_height) / 2
    return View(box=(left, top, left + crop_width, top + crop_height))


def crop_image(image: Image.Image, view: View, settings: ViewSettings) -> NDArray[np.uint8]:
    """The view's part of an RGB image, resized with antialiasing, uint8 [H, W, 3]."""
    return _crop(image, view, settings, Image.Resampling.BILINEAR)


def crop_label(label: NDArray[np.uint8], view: View, settings: ViewSettings) -> NDArray[np.uint8]:
    """The same part of a label map, resized by nearest neighbour, uint8 [H, W]."""
    return _crop(Image.fromarray(label), view, settings, Image.Resampling.NEAREST)


def _crop(image: Image.Image, view: View, settings: ViewSettings, resample: Image.Resampling) -> NDArray[np.uint8]:
    pixels = np.asarray(image.resize((settings.width, settings.height), resample, box=view.box))
    return np.ascontiguousarray(pixels[:, ::-1]) if view.flip else pixels


def light_images(images_N3HW: Tensor, views: Sequence[View]) -> Tensor:
    """Change brightness, contrast and saturation of uint8 images; return floats in [0, 1], [N, 3, H, W]."""
    images = images_N3HW.float() / 255
    factors = torch.tensor([view.light for view in views], device=images.device)
    brightness, contrast, saturation = (column.view(-1, 1, 1, 1) for column in factors.unbind(dim=1))
    luma = torch.tensor(LUMA, device=images.device).view(1, 3, 1, 1)
    images = images * brightness
    mean = (images * luma).sum(dim=1, keepdim=True).mean(dim=(2, 3), keepdim=True)
    images = mean + (images - mean) * contrast
    grey = (images * luma).sum(dim=1, keepdim=True)
    return (grey + (images - grey) * saturation).clamp_(0, 1)
