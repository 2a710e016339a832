"""Daylight: the sun, the sky that fills the shadows, and the sky itself as a backdrop.

A surface with unit normal n gets ``sky * (0.65 + 0.35 n_y) + sun * max(0, n . s)`` for the unit vector s to the sun;
the second term vanishes in cast shadows. A low sun is warm; clouds take from the sun and give to the sky.

Shapes: C = 3 colours, H rows, W columns.
"""

import math
from dataclasses import dataclass

import numpy as np

from pipeline.world.camera import EAST, NORTH, UP, Camera, Vector, dot
from pipeline.world.canvas import Canvas, Film
from pipeline.world.noise import SIDE, Field, fractal, look_up
from pipeline.world.styles import SKY, Style

CLOUD_HEIGHT = 60.0  # texels of cloud noise per unit of x / y: how high the clouds seem


@dataclass(frozen=True, kw_only=True, slots=True)
class Light:
    """The light of one scene; radiances have shape (C,)."""

    towards_sun: Vector
    sun_C: Field
    sky_C: Field
    horizon_C: Field
    zenith_C: Field
    overcast: float
    """Share of the sky that clouds cover, 0..1."""
    night: bool

    def sun_on(self, normal: Vector) -> Field:
        """Irradiance by the sun where no shadow falls, shape (C,)."""
        return self.sun_C * max(0.0, dot(normal, self.towards_sun))

    def sky_on(self, normal: Vector) -> Field:
        """Irradiance by the sky, shape (C,)."""
        return self.sky_C * (0.65 + 0.35 * normal[1])

    def on(self, normal: Vector, *, sunlit: Field | float = 1.0) -> Field:
        """Irradiance, shape (C, 1, 1) or, with ``sunlit`` of shape (h, w), (C, h, w)."""
        sky_C11 = self.sky_on(normal)[:, None, None]
        total: Field = self.sun_on(normal)[:, None, None] * np.float32(sunlit) + sky_C11
        return total


def draw_light(style: Style, rng: np.random.Generator) -> Light:
    """The light of a random time of day and weather."""
    elevation = math.radians(rng.uniform(*style.sun_elevation))
    azimuth = rng.uniform(0.0, 2.0 * math.pi)
    overcast = float(rng.beta(0.6, 0.9))
    warm = math.exp(-elevation / 0.35)
    sun = _blend((1.0, 0.95, 0.86), (1.0, 0.58, 0.28), warm) * (3.2 * (1.0 - overcast) ** 1.5)
    blue = _blend((0.42, 0.58, 0.95), (0.60, 0.56, 0.72), warm)
    sky = blue * (1.0 - overcast) + _blend((0.84, 0.87, 0.92), (0.80, 0.78, 0.80), warm) * (1.1 * overcast)
    horizon = 0.55 * sky + _blend((0.62, 0.66, 0.70), (0.85, 0.58, 0.36), warm)
    zenith = _blend((0.16, 0.33, 0.78), (0.34, 0.38, 0.58), warm) * (1.0 - overcast) + sky * overcast
    level = np.float32(style.brightness)
    return Light(
        towards_sun=(
            math.cos(elevation) * math.sin(azimuth),
            math.sin(elevation),
            math.cos(elevation) * math.cos(azimuth),
        ),
        sun_C=sun * level,
        sky_C=sky * level,
        horizon_C=horizon * level,
        zenith_C=zenith * level,
        overcast=overcast,
        night=style.brightness < 0.2,
    )


def draw_film(style: Style, light: Light, rng: np.random.Generator) -> Film:
    """A camera's reaction to the light: its exposure is right on average and off in each single picture."""
    ground = light.sky_on(UP) + light.sun_on(UP)
    exposure = float(2.3 ** rng.uniform(-0.55, 0.5)) * 1.9 / (0.35 + float(ground.mean()))
    balance_C = rng.uniform(0.93, 1.07, size=3).astype(np.float32) / np.sqrt(ground / ground.mean())
    return Film(
        haze_C=light.horizon_C,
        haze_distance=float(np.exp(rng.uniform(math.log(style.haze[0]), math.log(style.haze[1])))),
        exposure_C=np.float32(exposure) * balance_C.astype(np.float32),
        noise=rng.uniform(0.015, 0.06),
        vignette=rng.uniform(0.0, 0.45),
        blur=max(0.0, rng.uniform(-0.5, 0.75)),
    )


def paint_sky(canvas: Canvas, camera: Camera, light: Light, rng: np.random.Generator) -> None:
    """Fills the canvas above the horizon with sky: a gradient, a glow around the sun, and clouds in perspective."""
    above = np.flatnonzero((camera.along(UP, camera.whole)[:, [0, -1]] > -0.02).any(axis=1))
    if not above.size:
        return
    crop = slice(0, int(above[-1]) + 1), slice(0, camera.columns)
    x, y, z = (camera.along(axis, crop) for axis in (EAST, UP, NORTH))
    inverse_length = 1.0 / np.sqrt(x * x + y * y + z * z)
    height = np.clip(y * inverse_length, 0.0, 1.0)
    clear = np.exp(-4.0 * height)
    rgb = light.zenith_C[:, None, None] + clear * (light.horizon_C - light.zenith_C)[:, None, None]
    sun = light.towards_sun
    nearness = np.maximum((x * sun[0] + y * sun[1] + z * sun[2]) * inverse_length, 0.0)
    glow = np.square(np.square(np.square(nearness)))
    rgb += (0.35 * glow + 2.0 * np.exp(200.0 * (nearness - 1.0))) * light.sun_C[:, None, None]
    rgb += _clouds(x, y, z, light, rng)
    canvas.paint(crop, np.ones_like(y, dtype=np.bool_), rgb, depth=0.0, label=SKY)


def _clouds(x: Field, y: Field, z: Field, light: Light, rng: np.random.Generator) -> Field:
    scale = CLOUD_HEIGHT / (np.maximum(y, 0.0) + 0.06)
    left, front = rng.uniform(0, SIDE, size=2).astype(np.float32)
    density = look_up(fractal(3.0), x * scale + left, z * scale + front)
    cover = np.clip(0.7 * density + (2.2 * light.overcast - 1.1), 0.0, 1.0)
    shade = 0.75 - 0.22 * np.clip(density - 0.8, -0.5, 2.0)
    white_C11 = (0.9 * light.sky_C + 0.35 * light.sun_C + 0.1 * light.horizon_C)[:, None, None]
    mix: Field = (white_C11 * shade - 0.5 * light.zenith_C[:, None, None]) * (cover * 0.9)
    return mix


def _blend(start: Vector, end: Vector, share: float) -> Field:
    return np.array([(1.0 - share) * a + share * b for a, b in zip(start, end, strict=True)], dtype=np.float32)
