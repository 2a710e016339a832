"""Things people put before them: a laid table, and pages and screens of text.

Shapes: C = 3 colours, H rows, W columns of the picture; G glyphs.
"""

import math
from functools import cache

import numpy as np

from pipeline.world.canvas import Colour, expose
from pipeline.world.noise import SIDE, Bytes, Field, Mask, blotches, fractal, look_up
from pipeline.world.sketch import Area, Sheet, ball, capsule, draw_colour, radiance

Place = tuple[float, float]


def table(rng: np.random.Generator, height: int, width: int) -> Bytes:
    """Food and dishes on a table, seen obliquely, shape (H, W, C) in 0..255."""
    sheet = Sheet(height, width)
    flat = rng.uniform(0.45, 0.95)
    _table_top(sheet, rng, horizon=rng.uniform(-0.5, 0.25) if flat < 0.75 else -1.5)
    places = sorted((sheet.somewhere(rng) for _ in range(int(rng.integers(3, 9)))), key=lambda place: place[1])
    for x, y in places:
        thing = _ON_TABLE[int(rng.integers(len(_ON_TABLE)))]
        thing(sheet, rng, (x, 0.25 + 0.75 * y), (0.6 + 0.5 * y) * rng.uniform(0.10, 0.24), flat)
    sheet.light(rng, strength=rng.uniform(0.2, 0.9))
    return expose(sheet.rgb_CHW * np.float32(rng.uniform(0.7, 1.6)), rng, noise=0.03, blur=rng.uniform(0.0, 0.7))


def _table_top(sheet: Sheet, rng: np.random.Generator, *, horizon: float) -> None:
    """Boards, checked cloth or stone in perspective, and a blurred room behind the edge."""
    depth = 1.0 / np.maximum(sheet.y_HW - horizon + 0.05, 0.05)
    u, v = (sheet.x_HW - sheet.aspect / 2) * depth * 2.0 + 20.0, depth * 2.0 + 20.0
    kind = int(rng.integers(3))
    if kind == 0:
        board = np.floor(u * 1.7)
        tone = 0.8 + 0.2 * look_up(fractal(1.8), u * 60.0, v * 8.0 + 31.0 * board) - 0.4 * (u * 1.7 - board < 0.04)
    elif kind == 1:
        tone = 0.7 + 0.25 * (np.sin(u * 9.0) > 0) + 0.25 * (np.sin(v * 9.0) > 0)
    else:
        tone = 0.85 + 0.12 * look_up(fractal(1.8), u * 50.0, v * 50.0)
    colour = draw_colour(rng, hue=(0.02, 0.16) if kind == 0 else (0.0, 1.0), saturation=(0.05, 0.6))
    sheet.rgb_CHW[...] = radiance(colour) * np.maximum(tone, 0.1)
    area = sheet.everywhere()
    back = area.cover(sheet.y_HW - horizon)
    room = 1.0 + 0.5 * sheet.noise(fractal(3.2), rng, scale=50.0)
    area.blend(back, radiance(draw_colour(rng, value=(0.1, 0.7))) * np.maximum(room, 0.1))


def _shadow(sheet: Sheet, place: Place, size: float, flat: float) -> None:
    area = sheet.near(place[0] + 0.25 * size, place[1] + 0.3 * size, 1.8 * size)
    if area is not None:
        distance = np.hypot(area.x_hw, area.y_hw / flat) / size
        area.rgb_Chw[...] *= 1.0 - 0.6 * np.clip(1.6 - 1.2 * distance, 0.0, 1.0)


def _fruit(sheet: Sheet, rng: np.random.Generator, place: Place, size: float, flat: float) -> None:
    """A few balls beside each other."""
    hue, size = rng.uniform(-0.05, 0.35), 0.6 * size
    for _ in range(int(rng.integers(1, 6))):
        spot = place[0] + rng.uniform(-1.3, 1.3) * size, place[1] + rng.uniform(-0.8, 0.8) * size
        radius = size * rng.uniform(0.6, 1.0)
        _shadow(sheet, (spot[0], spot[1] + 0.5 * radius), radius, flat)
        area = sheet.near(*spot, 1.2 * radius)
        if area is not None:
            colour = draw_colour(rng, hue=(hue - 0.03, hue + 0.03), saturation=(0.6, 0.95), value=(0.5, 0.95))
            ball(area, radius, radiance(colour), gloss=rng.uniform(0.0, 1.0))


def _plate(sheet: Sheet, rng: np.random.Generator, place: Place, size: float, flat: float) -> None:
    """A plate with a rim and food in lumps."""
    size *= 1.4
    _shadow(sheet, place, size, flat)
    area = sheet.near(*place, 1.1 * size)
    if area is None:
        return
    distance = np.hypot(area.x_hw, area.y_hw / flat)
    shade = 0.85 - 0.25 * area.x_hw / size - 0.2 * area.y_hw / size
    china = radiance(draw_colour(rng, saturation=(0.0, 0.25), value=(0.75, 0.98)))
    area.blend(area.cover(distance - size), china * shade)
    area.blend(area.cover(np.abs(distance - 0.93 * size) - 0.03 * size), radiance(draw_colour(rng)))
    area.blend(area.cover(distance - 0.7 * size), china * (1.6 - shade))
    _food(area, rng, distance, size)


def _food(area: Area, rng: np.random.Generator, distance: Field, size: float) -> None:
    """Lumps of two colours on a plate or in a bowl."""
    left, top = rng.uniform(0, SIDE, size=2).astype(np.float32)
    zoom = np.float32(rng.uniform(4.0, 12.0) / size)
    lumps = look_up(blotches(8.0), area.x_hw * zoom + left, area.y_hw * zoom * 1.4 + top)
    heap = 0.62 * size * (1.0 + 0.12 * lumps)
    first = radiance(draw_colour(rng, hue=(-0.03, 0.3), saturation=(0.4, 0.9)))
    second = radiance(draw_colour(rng, hue=(0.0, 0.35), saturation=(0.3, 0.9)))
    tone = np.clip(0.8 + 0.35 * lumps - 0.5 * area.y_hw / size, 0.1, 2.0)
    area.blend(area.cover(distance - heap), np.where(lumps > 0.3, first, second) * tone)


def _cup(sheet: Sheet, rng: np.random.Generator, place: Place, size: float, flat: float) -> None:
    """A mug or a glass: a cylinder, a handle, and what is in it."""
    size *= 0.6
    tall = size * rng.uniform(1.2, 2.6) * (1.25 - 0.5 * flat)
    _shadow(sheet, place, 1.2 * size, flat)
    area = sheet.near(place[0], place[1] - tall / 2, size + tall)
    if area is None:
        return
    x, y = area.x_hw, area.y_hw
    lid = np.hypot(x, (y + tall / 2) / flat) - size
    wall = np.maximum(np.abs(x) - size, np.abs(y) - tall / 2)
    foot = np.hypot(x, (y - tall / 2) / flat) - size
    china = radiance(draw_colour(rng, saturation=(0.0, 0.8), value=(0.4, 0.95)))
    if rng.random() < 0.6:
        handle = np.abs(np.hypot(x - size, y * 1.1) - 0.42 * tall) - 0.1 * size
        area.blend(area.cover(handle), china * np.float32(0.8))
    shade = 0.35 + 0.7 * np.sqrt(np.maximum(1.0 - np.square((x / size + 0.3) / 1.35), 0.0))
    area.blend(area.cover(np.minimum(wall, foot)), china * shade)
    area.blend(area.cover(lid), china * np.float32(1.1))
    area.blend(area.cover(lid + 0.12 * size), radiance(draw_colour(rng, hue=(0.0, 0.12), value=(0.15, 0.6))))


def _bread(sheet: Sheet, rng: np.random.Generator, place: Place, size: float, flat: float) -> None:
    """A loaf or a cake with a crust, cut in slices or not."""
    size *= 1.2
    _shadow(sheet, place, size, 0.6 * flat)
    area = sheet.near(*place, 1.3 * size)
    if area is None:
        return
    along, across = area.turned(rng.uniform(-0.6, 0.6))
    distance = (np.power(np.abs(along / size) ** 3 + np.abs(across / (0.55 * size)) ** 3, 1 / 3) - 1.0) * 0.55 * size
    crumb = look_up(fractal(1.4), area.x_hw * (200.0) + SIDE * rng.random(), area.y_hw * 200.0)
    tone = np.clip(0.9 - 0.7 * across / size + 0.15 * crumb - 0.25 * (np.sin(along / size * 14.0) > 0.8), 0.1, 2.0)
    crust = draw_colour(rng, hue=(0.05, 0.11), saturation=(0.4, 0.75), value=(0.45, 0.85))
    area.blend(area.cover(distance), radiance(crust) * tone)


def _cutlery(sheet: Sheet, rng: np.random.Generator, place: Place, size: float, flat: float) -> None:
    """Bars of metal with a wider end."""
    angle = rng.uniform(0.0, math.pi)
    for number in range(int(rng.integers(1, 4))):
        start = place[0] + 0.25 * number * size, place[1] + 0.1 * number * size
        area = sheet.near(*start, 2.2 * size)
        if area is None:
            continue
        end_x, end_y = 1.8 * size * math.cos(angle), 1.8 * size * math.sin(angle) * flat
        bar = capsule(area, end_x, end_y, 0.05 * size)
        bowl = np.hypot(area.x_hw, area.y_hw / flat) - 0.17 * size
        area.rgb_Chw[...] *= 1.0 - 0.3 * area.cover(np.minimum(bar, bowl) - 0.05 * size)
        shine = 0.75 + 0.45 * np.sin(area.x_hw / size * 9.0 + 2.0 * number)
        area.blend(area.cover(np.minimum(bar, bowl)), radiance((0.72, 0.73, 0.75)) * shine)


_ON_TABLE = (_fruit, _fruit, _plate, _plate, _cup, _bread, _cutlery)


def document(rng: np.random.Generator, height: int, width: int) -> Bytes:
    """A page or a screen full of text, shape (H, W, C) in 0..255."""
    dark = rng.random() < 0.35
    paper: Colour = draw_colour(rng, saturation=(0.0, 0.25), value=(0.03, 0.25) if dark else (0.82, 1.0))
    page = Sheet(height * 2, width * 2, paper)
    _typeset(page, rng, dark)
    sheet = Sheet(height, width, draw_colour(rng, value=(0.1, 0.6)))
    sheet.rgb_CHW *= 1.0 + 0.2 * sheet.noise(fractal(1.8), rng, scale=100.0)
    _lay(sheet, page, rng)
    sheet.light(rng, strength=rng.uniform(0.0, 0.7))
    return expose(sheet.rgb_CHW * np.float32(rng.uniform(0.7, 1.5)), rng, noise=0.03, blur=rng.uniform(0.0, 0.5))


@cache
def _glyphs() -> Mask:
    """Shapes of letters, shape (G, 7, 6) with a margin; drawn as strokes through a grid of 3 x 3 points."""
    rng = np.random.default_rng(7)
    glyphs = np.zeros((64, 7, 6), dtype=np.bool_)
    for glyph in glyphs[2:]:
        for _ in range(int(rng.integers(2, 5))):
            row, column = 1 + 2 * int(rng.integers(3)), 2 * int(rng.integers(3))
            if rng.random() < 0.5:
                glyph[row, : column + 1] = True
            else:
                glyph[1 : row + 1, column] = True
    return glyphs


def _typeset(page: Sheet, rng: np.random.Generator, dark: bool) -> None:
    """Fills a page with blocks of text, headings, pictures and tables."""
    rows, columns = page.height, page.width
    margin, split = int(rng.integers(4, 20)), int(rng.integers(1, 4))
    block = (columns - margin) // split
    ink: Colour = draw_colour(rng, saturation=(0.0, 0.3), value=(0.7, 1.0) if dark else (0.02, 0.35))
    for column in range(split):
        left, row = margin + column * block, margin
        while row < rows - margin - 14:
            kind = rng.random()
            size = 1 if kind < 0.72 else int(rng.integers(1, 4))
            if kind > 0.86:
                row += _figure(page, rng, (row, left), block - margin)
                continue
            colour = draw_colour(rng, saturation=(0.4, 0.9), value=(0.5, 0.95)) if rng.random() < 0.2 else ink
            row += _line(page, rng, (row, left), block - margin, colour=colour, size=size)


def _line(
    page: Sheet, rng: np.random.Generator, corner: tuple[int, int], length: int, *, colour: Colour, size: int
) -> int:
    """Sets one line of text; returns its height in pixels of the page."""
    count = max(1, int(length // (6 * size) * rng.choice([1.0, 1.0, 1.0, rng.uniform(0.2, 1.0)])))
    letters = rng.integers(2, 64, size=count)
    letters[rng.random(count) < 0.16] = 0
    marks = _glyphs()[letters].transpose(1, 0, 2).reshape(7, count * 6)
    marks = marks.repeat(size, axis=0).repeat(size, axis=1)
    tall, wide = marks.shape
    region = page.rgb_CHW[:, corner[0] : corner[0] + tall, corner[1] : corner[1] + wide]
    np.copyto(region, radiance(colour), where=marks[: region.shape[1], : region.shape[2]])
    return 7 * size + int(rng.integers(2, 5))


def _figure(page: Sheet, rng: np.random.Generator, corner: tuple[int, int], length: int) -> int:
    """Places a picture, a chart or a table; returns its height in pixels of the page."""
    height = int(rng.integers(24, 70))
    region = page.rgb_CHW[:, corner[0] : corner[0] + height, corner[1] : corner[1] + max(length, 8)]
    rows, columns = np.indices(region.shape[1:])
    region[...] = radiance(draw_colour(rng))
    kind = int(rng.integers(3))
    if kind == 0:
        hills = 0.5 + 0.3 * np.sin(columns * rng.uniform(0.03, 0.12) + rng.uniform(0, 6))
        np.copyto(region, radiance(draw_colour(rng)), where=rows > hills * height)
    elif kind == 1:
        values: Field = rng.uniform(0.1, 0.95, size=region.shape[2] // 8 + 1)
        bars: Mask = (rows > (1.0 - values[columns // 8]) * height) & (columns % 8 < 6)
        np.copyto(region, radiance(draw_colour(rng)), where=bars)
    else:
        np.copyto(region, radiance(draw_colour(rng)), where=(rows % 10 == 0) | (columns % 30 == 0))
    return height + 4


def _lay(sheet: Sheet, page: Sheet, rng: np.random.Generator) -> None:
    """Copies the page onto the sheet, turned, tilted and magnified."""
    along, across = sheet.everywhere().turned(rng.normal(0.0, 0.12))
    tilt = 1.0 + rng.uniform(-0.35, 0.35) * (across - 0.5) + rng.uniform(-0.3, 0.3) * (along - 0.6)
    zoom = rng.uniform(0.55, 1.1)
    x = ((along - sheet.aspect / 2) * tilt * zoom + page.aspect / 2 + rng.uniform(-0.1, 0.1)) * page.height
    y = ((across - 0.5) * tilt * zoom + 0.5 + rng.uniform(-0.1, 0.1)) * page.height
    inside = (x >= 0) & (x < page.width - 1) & (y >= 0) & (y < page.height - 1)
    index = np.where(inside, y, 0.0).astype(np.int32) * page.width + np.where(inside, x, 0.0).astype(np.int32)
    flat = page.rgb_CHW.reshape(3, -1)
    # Letters are as thin as a pixel of the page, so each pixel of the sheet takes the mean of a 2 x 2 square.
    seen = (flat.take(index, axis=1) + flat.take(index + 1, axis=1)) * np.float32(0.25)
    seen += (flat.take(index + page.width, axis=1) + flat.take(index + page.width + 1, axis=1)) * np.float32(0.25)
    np.copyto(sheet.rgb_CHW, seen, where=inside)
