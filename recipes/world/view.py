"""A camera in a street, the daylight there, and the sheets on which both are drawn: the picture and its class ids.

World axes: x right, y up, z along the street, in metres; the camera is at z = 0. Upright things are drawn as polygons
from far to near. The ground and the sky are computed pixel by pixel: a pixel looks along
``ray = forward + u * right + v * up`` and meets the ground at the depth ``camera height / -ray_y``.

A surface of unit normal n is lit by ``sky * (0.65 + 0.35 n_y) + sun * max(0, n . s)`` for the unit vector s to the
sun, and the second term vanishes in shadows on the ground. Distant things fade into the haze.

Shapes: C = 3 colours, H rows, W columns, N polygons of P points.
"""

import math

import numpy as np
from numpy.typing import ArrayLike
from paint import SCALE, Bytes, Points, as_colour, develop, noise
from PIL import Image, ImageDraw, ImageFilter
from styles import Style

CLASSES = ("sky", "building", "road", "pavement", "tree", "car", "person", "pole")
SKY, BUILDING, ROAD, PAVEMENT, TREE, CAR, PERSON, POLE = range(len(CLASSES))
VOID = 255

NEAR = 0.3  # metres; what is closer is cut off
UP = np.array([0.0, 1.0, 0.0])
ROUGH = np.array([0.0, 0.10, 0.02, 0.02, 0.28, 0.05, 0.12, 0.06] + [0.1] * 248, dtype=np.float32)
"""How far the tone of each class varies from pixel to pixel."""
GRAIN = noise(np.random.default_rng(0), 256, 256, scale=32.0, octaves=3)
"""The roughness of the ground, which repeats."""


class View:
    """One picture of a street while it is drawn."""

    def __init__(self, rng: np.random.Generator, style: Style, height: int, width: int, across: float) -> None:
        self.rng, self.rows, self.columns = rng, height * SCALE, width * SCALE
        self.position = np.array([across, rng.uniform(*style.camera_height), 0.0])
        self.focal = self.columns / 2 / math.tan(math.radians(rng.uniform(*style.field_of_view)) / 2)
        yaw, pitch, roll = np.radians([rng.uniform(*style.yaw), rng.uniform(*style.pitch), rng.normal(0.0, 1.2)])
        forward = np.array([math.sin(yaw) * math.cos(pitch), math.sin(pitch), math.cos(yaw) * math.cos(pitch)])
        level = np.array([math.cos(yaw), 0.0, -math.sin(yaw)])
        upright = np.cross(forward, level)
        right, up = level * math.cos(roll) + upright * math.sin(roll), upright * math.cos(roll) - level * math.sin(roll)
        self.level, self.axes = level, np.stack([right, up, forward])
        u_W = (np.arange(self.columns) + 0.5 - self.columns / 2) / self.focal
        v_H1 = (self.rows / 2 - np.arange(self.rows)[:, None] - 0.5) / self.focal
        self.rays_3HW = np.stack([a + b * u_W + c * v_H1 for a, b, c in zip(forward, right, up, strict=True)])
        self._draw_light(style)
        self.label = Image.new("L", (self.columns, self.rows), SKY)
        self.shade = Image.new("L", self.label.size, 255)
        self.image = Image.fromarray(self._sky())
        self.pens = [ImageDraw.Draw(sheet) for sheet in (self.image, self.label, self.shade)]

    def _draw_light(self, style: Style) -> None:
        rng = self.rng
        elevation, azimuth = math.radians(rng.uniform(*style.sun)), rng.uniform(0.0, 2.0 * math.pi)
        overcast, warm, flat = float(rng.beta(0.6, 0.9)), math.exp(-elevation / 0.35), math.cos(elevation)
        self.to_sun = np.array([flat * math.sin(azimuth), math.sin(elevation), flat * math.cos(azimuth)])
        self.sun = np.array([1.0, 0.93 - 0.28 * warm, 0.82 - 0.48 * warm]) * (0.9 * (1 - overcast) ** 1.5) * style.day
        self.sky = np.array([0.40 + 0.42 * overcast, 0.45 + 0.39 * overcast, 0.56 + 0.30 * overcast]) * style.day
        self.haze = 215.0 * np.array([0.86 + 0.14 * warm, 0.90 - 0.04 * warm, 0.96 - 0.2 * warm]) * style.day
        self.zenith = self.haze * np.array([0.42, 0.62, 1.0]) * (1 - overcast) + self.haze * 0.85 * overcast
        self.overcast, self.night = overcast, style.day < 0.3
        self.haze_distance = math.exp(rng.uniform(*np.log(style.haze)))
        exposure = 2.3 ** rng.uniform(-0.35, 0.45) * 1.55 / (0.35 + self.light(UP).mean())
        self.balance = exposure * rng.uniform(0.93, 1.07, size=3)

    def light(self, normal: ArrayLike) -> Points:
        """Light on a surface in the sun, shape (C,)."""
        normal = np.asarray(normal)
        return self.sky * (0.65 + 0.35 * normal[1]) + self.sun * max(0.0, float(normal @ self.to_sun))

    def _sky(self) -> Bytes:
        high_HW = np.clip(self.rays_3HW[1] / np.linalg.norm(self.rays_3HW, axis=0), 0.0, 1.0)
        clouds_HW = noise(self.rng, self.rows, self.columns, scale=3.0, stretch=2.5)
        cover_HW = np.clip(0.6 * clouds_HW + 2.2 * self.overcast - 1.1, 0.0, 0.9)[..., None]
        clear_HWC = self.zenith + np.exp(-4.0 * high_HW)[..., None] * (self.haze - self.zenith)
        white_HWC = self.haze * (1.05 - 0.08 * clouds_HW)[..., None]
        return np.clip(clear_HWC + cover_HW * (white_HWC - clear_HWC), 0, 255).astype(np.uint8)

    def polygons(self, points_NP3: ArrayLike, colours_NC: ArrayLike, label: int) -> None:
        """Draw polygons of one class over the picture, in colours that are lit already; add the haze."""
        points_NP3 = np.asarray(points_NP3, dtype=np.float64)
        away_N1 = np.linalg.norm(points_NP3.mean(axis=1) - self.position, axis=1)[:, None]
        colours = self.haze + (np.asarray(colours_NC) - self.haze) * np.exp(-away_N1 / self.haze_distance)
        fills = map(tuple, np.clip(colours, 0, 255).astype(int).tolist())
        for outline, fill in zip(self._outlines(points_NP3), fills, strict=True):
            if outline:
                self.pens[0].polygon(outline, fill=fill)
                self.pens[1].polygon(outline, fill=label)

    def ground(self, points_P2: ArrayLike, colour: ArrayLike, label: int) -> None:
        """Draw a polygon (x, z) on the ground, which :meth:`light_ground` will light."""
        for outline in filter(None, self._outlines(_flat(points_P2))):
            self.pens[0].polygon(outline, fill=as_colour(colour))
            self.pens[1].polygon(outline, fill=label)

    def shadow(self, points_P2: ArrayLike, height: float = 0.0) -> None:
        """Cast the shadow of a polygon (x, z) at a height."""
        for outline in filter(None, self._outlines(_flat(np.asarray(points_P2) + self.shift(height)))):
            self.pens[2].polygon(outline, fill=0)

    def shift(self, height: float) -> Points:
        """How far (x, z) the shadow of a point at a height lies from its foot."""
        return -self.to_sun[[0, 2]] * height / self.to_sun[1]

    def light_ground(self) -> None:
        """Light the ground, which must be drawn and shaded before, and nothing else yet."""
        depth_HW = np.minimum(self.position[1] / np.maximum(-self.rays_3HW[1], 1e-3), 400.0)
        x_HW, _, z_HW = self.rays_3HW * depth_HW + self.position[:, None, None]
        near_HW = np.minimum(self.rng.uniform(4.0, 9.0) / (depth_HW + 1.0), 1.0)
        fine_HW = GRAIN[(x_HW * 30).astype(int) % 256, (z_HW * 30).astype(int) % 256]
        tone_HW = 1.0 + self.rng.uniform(0.05, 0.16) * near_HW * fine_HW
        tone_HW += self.rng.uniform(0.04, 0.12) * GRAIN[(x_HW * 3).astype(int) % 256, z_HW.astype(int) % 256]
        shade = self.shade.filter(ImageFilter.GaussianBlur(1.0))
        lit_HW1 = np.asarray(shade, dtype=np.float32)[..., None] / 255.0
        rgb_HWC = np.asarray(self.image, dtype=np.float32)
        lit_HWC = rgb_HWC * tone_HW[..., None] * (self.sky + self.sun * self.to_sun[1] * lit_HW1)
        lit_HWC = self.haze + (lit_HWC - self.haze) * np.exp(-depth_HW / self.haze_distance)[..., None]
        ground_HW1 = np.isin(np.asarray(self.label), (ROAD, PAVEMENT))[..., None]
        self.image.paste(Image.fromarray(np.clip(np.where(ground_HW1, lit_HWC, rgb_HWC), 0, 255).astype(np.uint8)))

    def develop(self) -> tuple[Bytes, Bytes]:
        """The finished picture, shape (H, W, C) in 0..255, and its class ids, shape (H, W)."""
        rng, label_HW = self.rng, np.asarray(self.label)
        rough_HW = 1.0 + ROUGH[label_HW] * noise(rng, self.rows, self.columns, scale=self.rows / 16, octaves=4)
        rgb_HWC = np.asarray(self.image, dtype=np.float32) * rough_HW[..., None] * self.balance.astype(np.float32)
        blur, grain, vignette = rng.uniform(-0.5, 0.7), rng.uniform(0.015, 0.05), rng.uniform(0.0, 0.45)
        picture_HWC = develop(rgb_HWC, rng, grain=grain, blur=blur, vignette=vignette)
        four = label_HW.reshape(self.rows // SCALE, SCALE, self.columns // SCALE, SCALE).transpose(0, 2, 1, 3)
        # The third of four ids in order is the majority, and on a tie the higher id, which is the thinner class.
        return picture_HWC, np.sort(four.reshape(*four.shape[:2], SCALE * SCALE), axis=-1)[..., 2]

    def _outlines(self, points_NP3: Points) -> list[list[float]]:
        """Pixel coordinates x, y, x, y, ... of each polygon; empty where the camera does not see it."""
        camera_NP3 = (points_NP3 - self.position) @ self.axes.T
        outlines: list[list[float]] = self._pixels(np.maximum(camera_NP3, (-np.inf, -np.inf, NEAR))).tolist()
        for n in np.flatnonzero(camera_NP3[..., 2].min(axis=1) < NEAR):
            outlines[n] = self._pixels(_cut_near(camera_NP3[n])[None])[0].tolist()
        return outlines

    def _pixels(self, camera_NP3: Points) -> Points:
        """Pixel coordinates (x, y) of points in camera axes, one row for each polygon."""
        pixels = self.focal * camera_NP3[..., :2] / camera_NP3[..., 2:] * (1.0, -1.0)
        return (pixels + np.array([self.columns / 2, self.rows / 2])).reshape(len(pixels), -1)


def _flat(points_P2: ArrayLike) -> Points:
    """Points (x, z) of the ground as one polygon, shape (1, P, 3)."""
    return np.insert(np.asarray(points_P2, dtype=np.float64), 1, 0.0, axis=1)[None]


def _cut_near(points_P3: Points) -> Points:
    """A polygon in camera axes without the part nearer than ``NEAR`` (Sutherland and Hodgman)."""
    kept: list[Points] = []
    for start, end in zip(points_P3, np.roll(points_P3, -1, axis=0), strict=True):
        if start[2] >= NEAR:
            kept.append(start)
        if (start[2] >= NEAR) != (end[2] >= NEAR):
            kept.append(start + (end - start) * (NEAR - start[2]) / (end[2] - start[2]))
    return np.array(kept).reshape(-1, 3)
