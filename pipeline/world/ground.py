"""The ground: carriageway, markings, kerbs, pavement, and the shadows that lie on it.

Each pixel below the horizon sees the ground at the depth ``height / -ray_y``. Texture is evaluated there in metres and
fades with distance where it would become finer than a pixel.

Shapes: h, w those of the crop below the horizon.
"""

from dataclasses import dataclass

import numpy as np

from pipeline.world.camera import EAST, NORTH, UP, Camera, Crop, Vector
from pipeline.world.canvas import Canvas, Colour, reflectances
from pipeline.world.light import Light
from pipeline.world.noise import SIDE, Bytes, Field, Mask, fractal, look_up
from pipeline.world.street import Street
from pipeline.world.styles import PAVEMENT, ROAD, Style

ASPHALT, PAVING, PAINT, KERB = range(4)
FARTHEST = 500.0  # metres; the ground beyond is drawn as if it were there


@dataclass(frozen=True, kw_only=True, slots=True)
class Spot:
    """A soft shadow on the ground: a rounded bar from ``start`` to ``end``."""

    start: tuple[float, float]
    """(x, z) in metres."""
    end: tuple[float, float]
    radius: float
    strength: float
    """Share of the light that it takes, 0..1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Points:
    """Where the pixels of a crop meet the ground; each field has shape (h, w)."""

    depth: Field
    x: Field
    z: Field
    across: Field
    """x from the middle of the road."""
    seen: Mask


def paint_ground(
    canvas: Canvas, camera: Camera, street: Street, light: Light, *, style: Style, rng: np.random.Generator
) -> None:
    """Paints road and pavement under the light of the sun past the buildings."""
    crop = _below_horizon(camera)
    if crop is None:
        return
    points = _meet(camera, street, crop)
    on_road = np.abs(points.across) < street.half_width
    if street.crossing:
        on_road |= (points.z > street.crossing[0]) & (points.z < street.crossing[1])
    material, tone = _texture(points, on_road, street, style, rng)
    sunlit = street.sunlit(points.across, 0.0, points.z, light.towards_sun)
    radiance = _reflectances(style, rng).take(material, axis=1) * tone * light.on(UP, sunlit=sunlit)
    canvas.paint(crop, points.seen, radiance, depth=points.depth, label=PAVEMENT)
    np.copyto(canvas.label_HW[crop], np.uint8(ROAD), where=points.seen & on_road)


def paint_spot(canvas: Canvas, camera: Camera, spot: Spot) -> None:
    """Darkens the ground under one soft shadow; paint it before anything that stands on the ground."""
    (x0, z0), (x1, z1), margin = spot.start, spot.end, 1.25 * spot.radius
    left, right, near, far = min(x0, x1) - margin, max(x0, x1) + margin, min(z0, z1) - margin, max(z0, z1) + margin
    corners: list[Vector] = [(left, 0.0, near), (right, 0.0, near), (right, 0.0, far), (left, 0.0, far)]
    crop = camera.crop_of(corners)
    if crop is None:
        return
    depth = camera.position[1] / np.maximum(-camera.along(UP, crop), 1e-3)
    x = depth * camera.along(EAST, crop) + (camera.position[0] - x0)
    z = depth * camera.along(NORTH, crop) + (camera.position[2] - z0)
    bar_x, bar_z = x1 - x0, z1 - z0
    share = np.clip((x * bar_x + z * bar_z) * (1.0 / max(bar_x**2 + bar_z**2, 1e-6)), 0.0, 1.0)
    distance = np.sqrt(np.square(x - share * bar_x) + np.square(z - share * bar_z)) * (1.0 / spot.radius)
    cover = np.clip((1.25 - distance) * 2.0, 0.0, 1.0)
    canvas.rgb_CHW[:, crop[0], crop[1]] *= 1.0 - spot.strength * cover


def _below_horizon(camera: Camera) -> Crop | None:
    ends = camera.along(UP, camera.whole)[:, [0, -1]]
    rows = np.flatnonzero((ends < -2e-3).any(axis=1))
    return (slice(int(rows[0]), camera.rows), slice(0, camera.columns)) if rows.size else None


def _meet(camera: Camera, street: Street, crop: Crop) -> _Points:
    slope = camera.along(UP, crop)
    depth = np.minimum(camera.position[1] / np.maximum(-slope, 1e-4), FARTHEST)
    x = depth * camera.along(EAST, crop) + camera.position[0]
    z = depth * camera.along(NORTH, crop) + camera.position[2]
    across = x - street.bend * z * np.minimum(z, 80.0)
    return _Points(depth=depth, x=x, z=z, across=across, seen=slope < -1e-3)


def _texture(
    points: _Points, on_road: Mask, street: Street, style: Style, rng: np.random.Generator
) -> tuple[Bytes, Field]:
    """Material and tone of the ground, shape (h, w) each."""
    left, front = rng.uniform(0, SIDE, size=2).astype(np.float32)
    sharp = np.minimum(rng.uniform(4.0, 9.0) / (points.depth + 1.0), 1.0)
    grain = look_up(fractal(0.4), points.x * 36.0 + left, points.z * 36.0 + front)
    stain = look_up(fractal(2.2), points.across * 11.0 + left, points.z * rng.uniform(3.0, 9.0) + front)
    tone = 1.0 + grain * sharp * rng.uniform(0.05, 0.15) + stain * rng.uniform(0.05, 0.14)
    material = np.where(on_road, np.uint8(ASPHALT), np.uint8(PAVING))
    edge = np.abs(points.across) - street.half_width
    if style.slabs > rng.random():
        tone = np.where(on_road, tone, tone * _slabs(points, sharp, rng))
    if rng.random() < 0.8:
        material[(edge > 0.0) & (edge < 0.22) & ~on_road] = KERB
        tone *= 1.0 - 0.45 * np.clip(1.0 - np.abs(edge + 0.08) * 7.0, 0.0, 1.0)
    if style.markings > rng.random():
        marked = _markings(points, on_road, street, rng) & (stain + 0.6 * grain < rng.uniform(0.9, 2.5))
        material[marked] = PAINT
    wear = 1.0 + rng.uniform(-0.08, 0.12) * np.cos(points.across * (4.0 * np.pi / street.half_width))
    return material, np.maximum(np.where(on_road, tone * wear, tone), 0.1)


def _slabs(points: _Points, sharp: Field, rng: np.random.Generator) -> Field:
    """Tone of paving slabs: joints, and each slab a little different."""
    size = rng.uniform(0.35, 1.1)
    rows = points.z * (1.0 / size)
    columns = points.across * (1.0 / (size * rng.uniform(0.7, 1.6)))
    joint = np.minimum(rows - np.floor(rows), columns - np.floor(columns)) < 0.08
    slab = look_up(fractal(0.0), rows + SIDE, columns + SIDE)
    tone: Field = 1.0 + sharp * (slab * rng.uniform(0.02, 0.10) - joint * np.float32(rng.uniform(0.1, 0.4)))
    return tone


def _markings(points: _Points, on_road: Mask, street: Street, rng: np.random.Generator) -> Mask:
    """Where the road is painted: the middle, the edges, and a zebra crossing before the side street."""
    dash = rng.uniform(2.0, 6.0)
    middle = np.abs(points.across) < rng.uniform(0.06, 0.12)
    if rng.random() < 0.75:
        middle &= np.mod(points.z, 2.0 * dash) < dash
    marked = middle
    if rng.random() < 0.5:
        marked |= np.abs(np.abs(points.across) - (street.half_width - 0.35)) < 0.07
    if street.crossing:
        marked &= (points.z < street.crossing[0] - 0.5) | (points.z > street.crossing[1] + 0.5)
    if street.crossing or rng.random() < 0.25:
        start = street.crossing[0] - 4.2 if street.crossing else rng.uniform(5.0, 25.0)
        zebra = (points.z > start) & (points.z < start + 3.0) & (np.mod(points.across, 1.1) < 0.55)
        marked |= zebra & (np.abs(points.across) < street.half_width - 0.2)
    return marked & on_road


def _reflectances(style: Style, rng: np.random.Generator) -> Field:
    """Reflectances of the materials, shape (C, M), around the style's means; road and pavement may well be alike."""
    road, paving = (_varied(colour, rng) for colour in style.ground)
    if rng.random() < 0.3:
        paving = _varied(road, rng, by=0.04)
    kerb = _varied((0.62, 0.61, 0.60), rng)
    return reflectances([road, paving, (0.86, 0.86, 0.82), kerb])


def _varied(colour: Colour, rng: np.random.Generator, by: float = 0.10) -> Colour:
    level = rng.uniform(1.0 - by, 1.0 + by)
    red, green, blue = (part * level + rng.uniform(-0.25, 0.25) * by for part in colour)
    return red, green, blue
