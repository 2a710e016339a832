"""Surfaces: woven, laid and grown materials, abstract pictures, and cells under a microscope.

Shapes: C = 3 colours, H rows, W columns of the picture, N cells.
"""

import math

import numpy as np

from pipeline.world.canvas import expose
from pipeline.world.noise import SIDE, Bytes, Field, blotches, fractal, look_up
from pipeline.world.sketch import Sheet, borders, draw_colour, nearest_site, radiance, relief


def texture(rng: np.random.Generator, height: int, width: int) -> Bytes:
    """One material that fills the picture, lit from a side, shape (H, W, C) in 0..255."""
    sheet = Sheet(height, width)
    angle, zoom = rng.normal(0.0, 0.25), rng.uniform(0.6, 1.8)
    u, v = sheet.everywhere().turned(angle)
    material = _MATERIALS[int(rng.integers(len(_MATERIALS)))]
    share, bump = material(u * zoom + 1.0, v * zoom + 1.0, rng)
    share = share + 0.15 * sheet.noise(fractal(2.2), rng, scale=80.0)
    hue = rng.uniform(0.0, 0.14) if rng.random() < 0.65 else rng.uniform(0.0, 1.0)
    low = radiance(draw_colour(rng, hue=(hue, hue + 0.08), saturation=(0.0, 0.6), value=(0.2, 0.6)))
    high = radiance(draw_colour(rng, hue=(hue - 0.04, hue + 0.1), saturation=(0.0, 0.6), value=(0.5, 0.95)))
    sheet.rgb_CHW[...] = low + (high - low) * np.clip(share, 0.0, 1.3)
    sheet.rgb_CHW *= relief(bump, rng, strength=rng.uniform(0.5, 2.5))
    sheet.light(rng, strength=rng.uniform(0.1, 0.9))
    return expose(sheet.rgb_CHW * np.float32(rng.uniform(0.7, 1.5)), rng, noise=0.03, blur=rng.uniform(0.0, 0.6))


def _bricks(u: Field, v: Field, rng: np.random.Generator) -> tuple[Field, Field]:
    rows = v * rng.uniform(5.0, 11.0)
    row = np.floor(rows)
    columns = u * rng.uniform(2.0, 4.5) + 0.5 * (row % 2.0)
    column = np.floor(columns)
    edge = np.minimum(np.minimum(rows - row, row + 1 - rows), 2.2 * np.minimum(columns - column, column + 1 - columns))
    each = look_up(fractal(0.0), column + rng.uniform(0, SIDE), row)
    bump = np.clip(edge * 8.0, 0.0, 1.0)
    grain = look_up(fractal(0.8), u * 150.0, v * 150.0)
    return bump * (0.6 + 0.22 * each + 0.12 * grain), bump + 0.08 * grain


def _wood(u: Field, v: Field, rng: np.random.Generator) -> tuple[Field, Field]:
    plank = np.floor(v * rng.uniform(1.5, 5.0))
    bend = look_up(fractal(3.0), u * 25.0 + 91.0 * plank, v * 60.0 + rng.uniform(0, SIDE))
    rings = np.sin(v * rng.uniform(50.0, 120.0) + 3.5 * bend)
    fibre = look_up(fractal(1.4), u * 12.0 + 37.0 * plank, v * 240.0)
    gap = (np.diff(plank, axis=0, prepend=plank[:1]) != 0).astype(np.float32)
    return 0.55 + 0.22 * rings + 0.12 * fibre + 0.1 * np.sin(plank * 9.0) - 0.6 * gap, 0.1 * fibre + 0.05 * rings - gap


def _cloth(u: Field, v: Field, rng: np.random.Generator) -> tuple[Field, Field]:
    pitch, band = rng.uniform(60.0, 170.0), rng.uniform(3.0, 14.0)
    warp, weft = np.sin(u * pitch), np.sin(v * pitch)
    weave = np.where(warp * weft > 0, np.abs(warp), np.abs(weft))
    plaid = np.sign(np.sin(u * band)) * 0.2 * rng.integers(2) + np.sign(np.sin(v * band * rng.uniform(0.6, 1.6))) * 0.2
    folds = look_up(fractal(3.0), u * 30.0 + rng.uniform(0, SIDE), v * 30.0)
    return 0.5 + plaid + 0.25 * (weave - 0.5), 0.4 * weave + 1.2 * folds


def _stone(u: Field, v: Field, rng: np.random.Generator) -> tuple[Field, Field]:
    left = rng.uniform(0, SIDE)
    rough = look_up(fractal(2.0), u * 90.0 + left, v * 90.0)
    veins = np.abs(look_up(fractal(2.6), u * 70.0 + 20.0 * rough, v * 70.0 + left))
    return 0.5 + 0.2 * rough + 0.5 * np.exp(-9.0 * veins), rough


def _pebbles(u: Field, v: Field, rng: np.random.Generator) -> tuple[Field, Field]:
    left, pitch = rng.uniform(0, SIDE), rng.uniform(60.0, 160.0)
    lumps = look_up(blotches(12.0), u * pitch + left, v * pitch)
    each = look_up(blotches(16.0), u * pitch, v * pitch + left)
    return 0.45 + 0.2 * lumps + 0.2 * each, np.clip(lumps, -0.8, 1.0)


def _tiles(u: Field, v: Field, rng: np.random.Generator) -> tuple[Field, Field]:
    pitch = rng.uniform(2.0, 7.0)
    x, y = u * pitch, v * pitch
    column, row = np.floor(x), np.floor(y)
    x, y = np.abs(x - column - 0.5), np.abs(y - row - 0.5)
    shape = np.hypot(x, y) if rng.random() < 0.4 else (x + y if rng.random() < 0.5 else np.maximum(x, y))
    ornament = np.sin(shape * rng.uniform(8.0, 30.0)) * rng.uniform(0.0, 0.4)
    checked = ((column + row) % 2.0) * rng.uniform(0.0, 0.5)
    joint = (np.maximum(x, y) > 0.47).astype(np.float32)
    gloss = look_up(fractal(2.8), u * 50.0, v * 50.0 + rng.uniform(0, SIDE))
    return 0.4 + checked + ornament - 0.4 * joint + 0.1 * gloss, -joint


def _scales(u: Field, v: Field, rng: np.random.Generator) -> tuple[Field, Field]:
    rows = v * rng.uniform(5.0, 13.0)
    row = np.floor(rows)
    columns = u * rng.uniform(4.0, 11.0) + 0.5 * (row % 2.0)
    x, y = columns - np.floor(columns) - 0.5, rows - row
    arc = np.sqrt(np.maximum(0.3 - x * x, 0.0)) * 1.6
    each = look_up(fractal(0.0), np.floor(columns) + rng.uniform(0, SIDE), row)
    inside = y < arc
    return np.where(inside, 0.35 + 0.5 * y + 0.15 * each, 0.15).astype(np.float32), np.where(inside, y, np.float32(0.0))


_MATERIALS = (_bricks, _wood, _cloth, _stone, _pebbles, _tiles, _scales)


def abstract(rng: np.random.Generator, height: int, width: int) -> Bytes:
    """Marbling, overlapping shapes or bands of light, shape (H, W, C) in 0..255."""
    sheet = Sheet(height, width, draw_colour(rng, value=(0.05, 0.9)))
    kind = int(rng.integers(3))
    if kind == 0:
        _marble(sheet, rng)
    elif kind == 1:
        _shapes(sheet, rng)
    else:
        _neon(sheet, rng)
    return expose(sheet.rgb_CHW * np.float32(rng.uniform(0.7, 1.4)), rng, noise=0.02, blur=rng.uniform(0.0, 1.2))


def _marble(sheet: Sheet, rng: np.random.Generator) -> None:
    """Waves of colour, bent by noise twice."""
    pitch, bend = rng.uniform(3.0, 14.0), rng.uniform(0.2, 1.6)
    first = sheet.noise(fractal(3.0), rng, scale=rng.uniform(40.0, 110.0))
    second = sheet.noise(fractal(2.6), rng, scale=60.0)
    phase = (sheet.x_HW + sheet.y_HW * rng.uniform(-1, 1)) * pitch + bend * first + 0.4 * second
    for _ in range(3):
        wave = 0.5 + 0.5 * np.sin(phase * rng.uniform(0.5, 2.0) + rng.uniform(0.0, 6.0))
        sheet.everywhere().blend(wave * rng.uniform(0.4, 0.9), radiance(draw_colour(rng)))


def _shapes(sheet: Sheet, rng: np.random.Generator) -> None:
    """Discs, rings, bars and boxes over each other, half transparent, some shaded."""
    for _ in range(int(rng.integers(8, 26))):
        size = rng.uniform(0.04, 0.35)
        area = sheet.near(*sheet.somewhere(rng), 1.5 * size)
        if area is None:
            continue
        x, y = area.turned(rng.uniform(0.0, math.pi))
        radius = np.hypot(x, y)
        disc, ring = radius - size, np.abs(radius - 0.8 * size) - 0.15 * size
        box, bar = np.maximum(np.abs(x), np.abs(y)) - 0.7 * size, np.abs(y) - 0.12 * size
        distance = (disc, ring, box, bar)[int(rng.integers(4))]
        ramp = 1.0 + rng.uniform(-0.8, 0.8) * x / size
        colour = radiance(draw_colour(rng)) * np.clip(ramp, 0.1, 2.0)
        area.blend(area.cover(distance) * rng.uniform(0.5, 1.0), colour)


def _neon(sheet: Sheet, rng: np.random.Generator) -> None:
    """Glowing curves before a dark ground."""
    sheet.rgb_CHW *= 0.12
    for _ in range(int(rng.integers(3, 9))):
        wave = rng.uniform(0.05, 0.35) * np.sin(sheet.x_HW * rng.uniform(2.0, 12.0) + rng.uniform(0.0, 6.0))
        line = np.abs(sheet.y_HW - rng.uniform(0.1, 0.9) - wave - rng.uniform(-0.6, 0.6) * (sheet.x_HW - 0.6))
        glow = 0.006 / (line + 0.006) * rng.uniform(0.5, 2.0)
        sheet.rgb_CHW += radiance(draw_colour(rng, saturation=(0.5, 1.0), value=(0.7, 1.0))) * glow


def cells(rng: np.random.Generator, height: int, width: int) -> Bytes:
    """Stained or glowing cells under a microscope, shape (H, W, C) in 0..255."""
    glowing = rng.random() < 0.4
    hue = rng.uniform(0.0, 1.0)
    ground = (0.02, 0.12) if glowing else (0.75, 0.97)
    sheet = Sheet(height, width, draw_colour(rng, hue=(hue, hue), saturation=(0.05, 0.35), value=ground))
    sheet.rgb_CHW *= 1.0 + 0.12 * sheet.noise(fractal(2.4), rng, scale=70.0)
    if rng.random() < 0.4:
        _tissue(sheet, rng, hue)
    else:
        size = rng.uniform(0.05, 0.16)
        for _ in range(int(rng.uniform(0.3, 0.9) / size**1.4)):
            _cell(sheet, rng, hue, size * rng.uniform(0.7, 1.4), glowing)
    if rng.random() < 0.4:
        radius = np.hypot(sheet.x_HW - sheet.aspect / 2, sheet.y_HW - 0.5)
        sheet.rgb_CHW *= np.clip((rng.uniform(0.5, 0.7) - radius) * 12.0, 0.02, 1.0)
    return expose(sheet.rgb_CHW * np.float32(rng.uniform(0.8, 1.6)), rng, noise=0.03, blur=rng.uniform(0.0, 1.0))


def _tissue(sheet: Sheet, rng: np.random.Generator, hue: float) -> None:
    """Cells wall to wall, each with a nucleus."""
    count = int(rng.integers(14, 40))
    x_N = rng.uniform(0.0, sheet.aspect, size=count).astype(np.float32)
    y_N = rng.uniform(0.0, 1.0, size=count).astype(np.float32)
    cell_HW = nearest_site(sheet, x_N, y_N)
    tone_HW = rng.uniform(0.6, 1.2, size=count).astype(np.float32)[cell_HW]
    grain = 1.0 + 0.15 * sheet.noise(blotches(4.0), rng, scale=96.0)
    body = radiance(draw_colour(rng, hue=(hue, hue + 0.1), saturation=(0.3, 0.8), value=(0.4, 0.9)))
    edge = radiance(draw_colour(rng, hue=(hue, hue + 0.2), saturation=(0.3, 0.9), value=(0.2, 0.9)))
    sheet.rgb_CHW[...] = np.where(borders(cell_HW), edge, body * (tone_HW * grain))
    nucleus = radiance(draw_colour(rng, hue=(hue + 0.1, hue + 0.3), saturation=(0.5, 0.9), value=(0.2, 0.6)))
    size = rng.uniform(0.02, 0.05)
    for x, y in zip(x_N.tolist(), y_N.tolist(), strict=True):
        area = sheet.near(x, y, 1.3 * size)
        if area is not None:
            area.blend(0.8 * area.cover(np.hypot(area.x_hw, area.y_hw) - size * rng.uniform(0.6, 1.2)), nucleus)


def _cell(sheet: Sheet, rng: np.random.Generator, hue: float, size: float, glowing: bool) -> None:
    """A single cell: translucent body, darker rim, nucleus."""
    area = sheet.near(*sheet.somewhere(rng), 1.7 * size)
    if area is None:
        return
    along, across = area.turned(rng.uniform(0.0, math.pi))
    angle = np.arctan2(across, along)
    radius = np.hypot(along, across * rng.uniform(1.0, 1.7)) + size * 0.07 * np.sin(angle * rng.integers(2, 7))
    value = (0.4, 0.9) if glowing else (0.45, 0.85)
    body = radiance(draw_colour(rng, hue=(hue, hue + 0.12), saturation=(0.3, 0.9), value=value))
    area.blend(rng.uniform(0.45, 0.85) * area.cover(radius - size), body)
    area.blend(0.6 * area.cover(np.abs(radius - 0.95 * size) - 0.05 * size), body * np.float32(1.6 if glowing else 0.5))
    centre = np.hypot(along - size * rng.uniform(-0.3, 0.3), across - size * rng.uniform(-0.2, 0.2))
    nucleus = radiance(draw_colour(rng, hue=(hue + 0.1, hue + 0.3), saturation=(0.5, 0.95), value=(0.2, 0.7)))
    area.blend(0.85 * area.cover(centre - size * rng.uniform(0.25, 0.5)), nucleus)
