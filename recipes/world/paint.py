"""What all pictures share: colours, noise, a sheet to draw on, and the film that develops it.

Pictures are drawn at ``SCALE`` times the final height and width and are reduced when they are developed.

Shapes: H rows, W columns, C = 3 colours, N points.
"""

import colorsys
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageColor, ImageDraw, ImageFilter

Range = tuple[float, float]
Colour = tuple[int, int, int]
Field = NDArray[np.float32]
Bytes = NDArray[np.uint8]
Points = NDArray[np.float64]

SCALE = 2


def palette(names: str) -> tuple[Colour, ...]:
    """The colours of hexadecimal names, such as ``"9e614c d1bd99"``."""
    return tuple(ImageColor.getrgb(f"#{name}")[:3] for name in names.split())


def draw_colour(
    rng: np.random.Generator, *, hue: Range = (0.0, 1.0), saturation: Range = (0.4, 1.0), value: Range = (0.3, 1.0)
) -> Points:
    """A random colour, shape (C,); hues run from 0 (red) over 1/3 (green) and 2/3 (blue) to 1."""
    return 255.0 * np.array(colorsys.hsv_to_rgb(*(rng.uniform(*part) for part in (hue, saturation, value))))


def as_colour(values_C: ArrayLike) -> Colour:
    """Three numbers as a colour, each cut to 0..255."""
    red, green, blue = np.clip(values_C, 0, 255).astype(int).tolist()
    return red, green, blue


def pick(rng: np.random.Generator, choices: Sequence[Any]) -> Any:
    """One of a few, each equally likely."""
    return choices[int(rng.integers(len(choices)))]


def noise(
    rng: np.random.Generator, height: int, width: int, *, scale: float = 3.0, octaves: int = 4, stretch: float = 1.0
) -> Field:
    """Fractal noise of mean 0 and deviation 1, shape (H, W).

    The coarsest octave has ``scale`` blobs over the height, each ``stretch`` times longer than high; each further
    octave has twice as many and half the weight.
    """
    total = np.zeros((height, width), dtype=np.float32)
    for octave in range(octaves):
        rows = scale * 2.0**octave
        grid = max(2, round(rows)), max(2, round(rows * width / height / stretch))
        blobs = Image.fromarray(rng.standard_normal(grid, dtype=np.float32))
        total += 0.5**octave * np.asarray(blobs.resize((width, height), Image.Resampling.BICUBIC))
    return (total - total.mean()) / (total.std() + 1e-6)


def ellipse(x: float, y: float, long: float, short: float, angle: float = 0.0, corners: int = 20) -> Points:
    """Points around an ellipse, shape (N, 2)."""
    turn = np.linspace(0.0, 2.0 * math.pi, corners, endpoint=False)
    along, across = long * np.cos(turn), short * np.sin(turn)
    cos, sin = math.cos(angle), math.sin(angle)
    return np.stack([x + along * cos - across * sin, y + along * sin + across * cos], axis=1)


def develop(
    rgb_HWC: Field, rng: np.random.Generator, *, grain: float, blur: float = 0.0, vignette: float = 0.0
) -> Bytes:
    """Colours in 0..255 as lens and sensor give them at the final size, shape (H, W, C) in 0..255.

    ``grain`` is the noise at full light as a share of it, ``blur`` a radius in pixels, ``vignette`` the share of the
    light that the corners lose.
    """
    height, width = rgb_HWC.shape[0] // SCALE, rgb_HWC.shape[1] // SCALE
    rgb_HWC = rgb_HWC.reshape(height, SCALE, width, SCALE, 3).mean(axis=(1, 3)) / 255.0
    y_H1, x_W = np.linspace(-1, 1, height)[:, None], np.linspace(-1, 1, width)
    rgb_HWC = rgb_HWC * (1.0 - 0.5 * vignette * (x_W**2 + y_H1**2))[..., None]
    rgb_HWC += grain * np.sqrt(np.maximum(rgb_HWC, 0.02)) * rng.standard_normal(rgb_HWC.shape, dtype=np.float32)
    picture = Image.fromarray((255.0 * np.clip(rgb_HWC, 0.0, 1.0)).astype(np.uint8))
    return np.asarray(picture.filter(ImageFilter.GaussianBlur(blur)) if blur > 0.2 else picture)


class Sheet:
    """A picture under way. Positions are in units of its height: x from 0 to ``aspect``, y from 0 at the top to 1."""

    def __init__(self, rng: np.random.Generator, height: int, width: int) -> None:
        self.rng, self.unit, self.aspect = rng, height * SCALE, width / height
        self.image = Image.new("RGB", (width * SCALE, height * SCALE))
        self.pen = ImageDraw.Draw(self.image)
        y_HW, x_HW = (np.indices((height * SCALE, width * SCALE), dtype=np.float32) + 0.5) / self.unit
        self.x_HW, self.y_HW = x_HW, y_HW

    def colour(self, **ranges: Range) -> Points:
        """A random colour, see :func:`draw_colour`."""
        return draw_colour(self.rng, **ranges)

    def scatter(self, counts: tuple[int, int], sizes: Range) -> Iterator[tuple[float, float, float]]:
        """A random number of places (x, y), each with a random size."""
        for _ in range(int(self.rng.integers(*counts))):
            yield self.rng.uniform(0.0, self.aspect), self.rng.uniform(0.0, 1.0), self.rng.uniform(*sizes)

    def noise(self, **how: Any) -> Field:
        """Noise over the whole sheet, see :func:`noise`."""
        return noise(self.rng, self.image.height, self.image.width, **how)

    def polygon(self, points_N2: ArrayLike, colour_C: ArrayLike) -> None:
        """Fill a polygon."""
        self.pen.polygon((np.asarray(points_N2) * self.unit).ravel().tolist(), fill=as_colour(colour_C))

    def box(self, x: float, y: float, wide: float, tall: float, colour_C: ArrayLike) -> None:
        """Fill a rectangle from its upper left corner."""
        self.polygon([(x, y), (x + wide, y), (x + wide, y + tall), (x, y + tall)], colour_C)

    def disc(
        self, x: float, y: float, size: float, colour_C: ArrayLike, squash: float = 1.0, turn: float = 0.0
    ) -> None:
        """Fill an ellipse of half its length ``size``, ``squash`` times as wide, turned by an angle."""
        self.polygon(ellipse(x, y, size, size * squash, turn), colour_C)

    def line(self, points_N2: ArrayLike, thick: float, colour_C: ArrayLike) -> None:
        """Draw a line through points."""
        points = (np.asarray(points_N2) * self.unit).ravel().tolist()
        self.pen.line(points, fill=as_colour(colour_C), width=max(1, round(thick * self.unit)), joint="curve")

    def replace(self, rgb_HWC: ArrayLike) -> None:
        """Put other colours, of shape (H, W, C) or (C,), in place of all."""
        rgb_HWC = np.broadcast_to(np.clip(rgb_HWC, 0, 255).astype(np.uint8), (*self.x_HW.shape, 3))
        self.image.paste(Image.fromarray(np.ascontiguousarray(rgb_HWC)))

    def tone(self, factor_HW: Field) -> None:
        """Make each pixel brighter or darker by a factor."""
        self.replace(np.asarray(self.image) * factor_HW[..., None])
