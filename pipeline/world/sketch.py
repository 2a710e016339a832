"""A sheet on which pictures other than streets are drawn: soft-edged shapes over each other, at the final size.

Positions are in units of the picture's height: x from 0 at the left to the aspect ratio, y from 0 at the top to 1.
Shapes are given by a signed distance, negative inside; its value in pixels gives the coverage of an edge pixel.

Shapes: C = 3 colours, H rows, W columns of the picture, h, w those of an area, N sites of a mosaic.
"""

import colorsys
import math
from dataclasses import dataclass

import numpy as np

from pipeline.world.canvas import Colour
from pipeline.world.noise import SIDE, Field, Indices, Mask, look_up


@dataclass(frozen=True, slots=True)
class Area:
    """A part of a sheet around a point."""

    rgb_Chw: Field
    """Radiance, a view into the sheet."""
    x_hw: Field
    """Position right of the point."""
    y_hw: Field
    """Position below the point."""
    pixels: float
    """Pixels per unit."""

    def cover(self, distance: Field) -> Field:
        """Coverage 0..1 of each pixel by a shape of the given signed distance."""
        share: Field = np.clip(0.5 - distance * self.pixels, 0.0, 1.0)
        return share

    def blend(self, alpha: Field, rgb: Field) -> None:
        """Covers the area by a radiance of shape (C, h, w) or (C, 1, 1) to the share ``alpha``."""
        self.rgb_Chw[...] += alpha * (rgb - self.rgb_Chw)

    def turned(self, angle: float) -> tuple[Field, Field]:
        """Position along and across a direction, given in radians clockwise from x."""
        cos, sin = math.cos(angle), math.sin(angle)
        return self.x_hw * cos + self.y_hw * sin, self.y_hw * cos - self.x_hw * sin


class Sheet:
    """A picture under way, its radiance ``rgb_CHW`` and the position of its pixels."""

    def __init__(self, height: int, width: int, colour: Colour = (0.0, 0.0, 0.0)) -> None:
        self.height, self.width, self.aspect = height, width, width / height
        self.rgb_CHW = np.empty((3, height, width), dtype=np.float32)
        self.rgb_CHW[...] = radiance(colour)
        y_h = (np.arange(height, dtype=np.float32) + np.float32(0.5)) / np.float32(height)
        x_w = (np.arange(width, dtype=np.float32) + np.float32(0.5)) / np.float32(height)
        self.x_HW = np.repeat(x_w[None, :], height, axis=0)
        self.y_HW = np.repeat(y_h[:, None], width, axis=1)

    def everywhere(self) -> Area:
        """The whole sheet, seen from its upper left corner."""
        return Area(self.rgb_CHW, self.x_HW, self.y_HW, float(self.height))

    def near(self, x: float, y: float, reach: float) -> Area | None:
        """The square within ``reach`` of a point, or None where it lies outside the sheet."""
        left, right = max(0, math.floor((x - reach) * self.height)), math.ceil((x + reach) * self.height)
        top, bottom = max(0, math.floor((y - reach) * self.height)), math.ceil((y + reach) * self.height)
        rows, columns = slice(top, max(bottom, 0)), slice(left, max(right, 0))
        rgb = self.rgb_CHW[:, rows, columns]
        if not rgb.size:
            return None
        return Area(rgb, self.x_HW[rows, columns] - x, self.y_HW[rows, columns] - y, float(self.height))

    def somewhere(self, rng: np.random.Generator) -> tuple[float, float]:
        """A random point of the sheet."""
        return rng.uniform(0.0, self.aspect), rng.uniform(0.0, 1.0)

    def noise(self, field: Field, rng: np.random.Generator, *, scale: float, stretch: float = 1.0) -> Field:
        """Noise over the whole sheet, ``scale`` texels per unit, ``stretch`` times as many downwards."""
        left, top = rng.uniform(0, SIDE, size=2).astype(np.float32)
        return look_up(field, self.x_HW * scale + left, self.y_HW * (scale * stretch) + top)

    def light(self, rng: np.random.Generator, *, strength: float) -> None:
        """Lights the sheet from a random side, brighter there and darker opposite."""
        angle = rng.uniform(0.0, 2.0 * math.pi)
        ramp = (self.x_HW - self.aspect / 2) * math.cos(angle) + (self.y_HW - 0.5) * math.sin(angle)
        self.rgb_CHW *= np.maximum(1.0 + strength * ramp, 0.05)


def radiance(colour: Colour, level: float = 1.0) -> Field:
    """Radiance of a display colour in 0..1 under light of a level, shape (C, 1, 1)."""
    return np.square(np.array(colour, dtype=np.float32))[:, None, None] * np.float32(1.6 * level)


def draw_colour(
    rng: np.random.Generator,
    *,
    hue: tuple[float, float] = (0.0, 1.0),
    saturation: tuple[float, float] = (0.2, 0.8),
    value: tuple[float, float] = (0.3, 0.95),
) -> Colour:
    """A random display colour; hues run from 0 (red) over 1/3 (green) and 2/3 (blue) to 1."""
    return colorsys.hsv_to_rgb(rng.uniform(*hue) % 1.0, rng.uniform(*saturation), rng.uniform(*value))


def relief(height_HW: Field, rng: np.random.Generator, *, strength: float) -> Field:
    """Tone of a surface of the given relief under light from a random side, shape (H, W), about 1 on average."""
    angle = rng.uniform(0.0, 2.0 * math.pi)
    right: Field = np.diff(height_HW, axis=1, append=height_HW[:, -1:])
    down: Field = np.diff(height_HW, axis=0, append=height_HW[-1:])
    tone: Field = np.clip(1.0 + strength * (right * math.cos(angle) + down * math.sin(angle)), 0.15, 2.5)
    return tone


def nearest_site(sheet: Sheet, x_N: Field, y_N: Field, *, square: bool = False) -> Indices:
    """Index of the nearest of N sites for each pixel, shape (H, W); ``square`` measures by the longer axis."""
    x_NHW = np.abs(sheet.x_HW[0][None, None, :] - x_N[:, None, None])
    y_NHW = np.abs(sheet.y_HW[:, 0][None, :, None] - y_N[:, None, None])
    distance_NHW = np.maximum(x_NHW, y_NHW) if square else x_NHW * x_NHW + y_NHW * y_NHW
    nearest: Indices = np.argmin(distance_NHW, axis=0)
    return nearest


def borders(site_HW: Indices) -> Mask:
    """Where a mosaic's pixel belongs to another site than the one above or left of it, shape (H, W)."""
    below: Mask = np.diff(site_HW, axis=0, prepend=site_HW[:1]) != 0
    beside: Mask = np.diff(site_HW, axis=1, prepend=site_HW[:, :1]) != 0
    return below | beside


def ball(area: Area, radius: float, colour: Field, *, gloss: float) -> None:
    """Draws a shaded ball with a highlight around the area's point, lit from the upper left."""
    x, y = area.x_hw * (1.0 / radius), area.y_hw * (1.0 / radius)
    squared = x * x + y * y
    out = np.sqrt(np.maximum(1.0 - squared, 0.0))
    facing = np.maximum(0.62 * out - 0.45 * x - 0.62 * y, 0.0)
    shade = 0.25 + 0.95 * facing + gloss * facing**16 * 2.0
    area.blend(area.cover((np.sqrt(squared) - 1.0) * radius), colour * shade)


def capsule(area: Area, x: float, y: float, radius: float) -> Field:
    """Signed distance from a rounded bar that runs from the area's point to (x, y) beside it."""
    share = np.clip((area.x_hw * x + area.y_hw * y) * (1.0 / max(x * x + y * y, 1e-9)), 0.0, 1.0)
    distance: Field = np.sqrt(np.square(area.x_hw - share * x) + np.square(area.y_hw - share * y)) - radius
    return distance
