"""Nature: fields from above, life under water, plants from close by, and the night sky.

Shapes: C = 3 colours, H rows, W columns of the picture, N sites of a mosaic.
"""

import math

import numpy as np

from pipeline.world.canvas import Colour, expose
from pipeline.world.noise import Bytes, Field, blotches, fractal
from pipeline.world.sketch import Sheet, ball, borders, draw_colour, nearest_site, radiance


def aerial(rng: np.random.Generator, height: int, width: int) -> Bytes:
    """Fields, roads, houses and trees from above, shape (H, W, C) in 0..255."""
    sheet = Sheet(height, width)
    rgb, tone = _fields(sheet, rng)
    sheet.rgb_CHW[...] = rgb * tone
    if rng.random() < 0.3:
        _river(sheet, rng)
    for _ in range(int(rng.integers(1, 3))):
        _road_from_above(sheet, rng)
    shadow = rng.uniform(-0.03, 0.03), rng.uniform(-0.03, 0.03)
    for _ in range(int(rng.integers(8, 26))):
        _tree_from_above(sheet, shadow, rng)
    sheet.rgb_CHW *= 1.0 - 0.3 * np.clip(sheet.noise(fractal(3.0), rng, scale=90.0) - 0.6, 0.0, 1.0)
    return expose(sheet.rgb_CHW * np.float32(rng.uniform(0.7, 1.5)), rng, noise=0.03, blur=rng.uniform(0.0, 0.6))


def _fields(sheet: Sheet, rng: np.random.Generator) -> tuple[Field, Field]:
    """Colour (C, H, W) and tone (H, W) of a mosaic of fields, each ploughed in its own direction."""
    count = int(rng.integers(5, 16))
    x_N, y_N = rng.uniform(-0.1, sheet.aspect + 0.1, size=count), rng.uniform(-0.1, 1.1, size=count)
    place_HW = nearest_site(sheet, x_N.astype(np.float32), y_N.astype(np.float32), square=rng.random() < 0.5)
    colours = [draw_colour(rng, hue=(0.08, 0.36), saturation=(0.2, 0.65), value=(0.25, 0.7)) for _ in range(count)]
    angle_N = rng.uniform(0, math.pi, size=count).astype(np.float32)
    pitch_N = rng.uniform(60.0, 220.0, size=count).astype(np.float32)
    depth_N = rng.uniform(0.0, 0.16, size=count).astype(np.float32)
    across = sheet.x_HW * np.cos(angle_N)[place_HW] + sheet.y_HW * np.sin(angle_N)[place_HW]
    rows = np.sin(across * pitch_N[place_HW]) * depth_N[place_HW]
    hedge = borders(place_HW)
    grain = 0.10 * sheet.noise(fractal(1.2), rng, scale=150.0) + 0.08 * sheet.noise(fractal(2.6), rng, scale=60.0)
    rgb_CN = np.concatenate([radiance(colour)[:, :, 0] for colour in colours], axis=1)
    return rgb_CN.take(place_HW, axis=1), np.maximum(1.0 + rows + grain - 0.4 * hedge, 0.1)


def _river(sheet: Sheet, rng: np.random.Generator) -> None:
    bend, slope, start = rng.uniform(0.05, 0.15), rng.uniform(-0.5, 0.5), rng.uniform(0.2, 0.8)
    middle = start + slope * (sheet.x_HW - 0.6) + bend * np.sin(sheet.x_HW * rng.uniform(3.0, 8.0))
    distance = np.abs(sheet.y_HW - middle) - rng.uniform(0.03, 0.09)
    area = sheet.everywhere()
    area.blend(area.cover(distance - 0.02), radiance((0.55, 0.52, 0.40)))
    ripples = 1.0 + 0.15 * sheet.noise(blotches(5.0), rng, scale=160.0)
    area.blend(area.cover(distance), radiance((0.25, 0.38, 0.42)) * ripples)


def _road_from_above(sheet: Sheet, rng: np.random.Generator) -> None:
    """A road across the picture with houses beside it."""
    angle, (x, y) = rng.uniform(0.0, math.pi), sheet.somewhere(rng)
    area = sheet.near(x, y, 2.0)
    if area is None:
        return
    along, across = area.turned(angle)
    bend = rng.uniform(-0.15, 0.15)
    distance = np.abs(across - bend * along * along)
    half = rng.uniform(0.012, 0.03)
    area.blend(area.cover(distance - half), radiance((0.5, 0.49, 0.48)))
    area.blend(area.cover(distance - 0.1 * half) * (np.sin(along * 120.0) > 0), radiance((0.85, 0.85, 0.8)))
    roofs = [draw_colour(rng, hue=(0.0, 0.08), saturation=(0.05, 0.6), value=(0.3, 0.7)) for _ in range(3)]
    for _ in range(int(rng.integers(3, 14))):
        far, side = rng.uniform(-0.8, 0.8), rng.choice([-1, 1]) * (half + rng.uniform(0.05, 0.12))
        side += bend * far * far
        place = x + far * math.cos(angle) - side * math.sin(angle), y + far * math.sin(angle) + side * math.cos(angle)
        _house_from_above(sheet, place, angle, roofs[int(rng.integers(3))], rng)


def _house_from_above(
    sheet: Sheet, place: tuple[float, float], angle: float, roof: Colour, rng: np.random.Generator
) -> None:
    length, depth = rng.uniform(0.03, 0.07), rng.uniform(0.022, 0.045)
    for shift, colour in ((0.018, None), (0.0, roof)):
        area = sheet.near(place[0] + shift, place[1] + shift, 0.12)
        if area is None:
            return
        along, across = area.turned(angle)
        cover = area.cover(np.maximum(np.abs(along) - length, np.abs(across) - depth))
        if colour is None:
            area.rgb_Chw[...] *= 1.0 - 0.6 * cover
        else:
            area.blend(cover, radiance(colour) * np.where(across < 0, np.float32(1.35), np.float32(0.75)))


def _tree_from_above(sheet: Sheet, shadow: tuple[float, float], rng: np.random.Generator) -> None:
    (x, y), size = sheet.somewhere(rng), rng.uniform(0.012, 0.045)
    dark = sheet.near(x + shadow[0], y + shadow[1], 1.2 * size)
    if dark is not None:
        dark.rgb_Chw[...] *= 1.0 - 0.5 * dark.cover(np.hypot(dark.x_hw, dark.y_hw) - size)
    area = sheet.near(x, y, 1.2 * size)
    if area is not None:
        green = draw_colour(rng, hue=(0.2, 0.38), saturation=(0.3, 0.6), value=(0.2, 0.5))
        ball(area, size, radiance(green), gloss=0.0)


def underwater(rng: np.random.Generator, height: int, width: int) -> Bytes:
    """Fish, rocks and corals under rays of light, shape (H, W, C) in 0..255."""
    hue = rng.uniform(0.42, 0.64)
    sheet = Sheet(height, width)
    deep = radiance(draw_colour(rng, hue=(hue, hue), saturation=(0.6, 0.95), value=(0.15, 0.45)))
    shallow = radiance(draw_colour(rng, hue=(hue - 0.05, hue), saturation=(0.3, 0.7), value=(0.6, 0.95)))
    sheet.rgb_CHW[...] = shallow + (deep - shallow) * np.sqrt(sheet.y_HW)
    _rays(sheet, rng)
    if rng.random() < 0.75:
        _seabed(sheet, rng)
    for _ in range(int(rng.integers(3, 9))):
        _coral(sheet, rng, deep)
    for _ in range(int(rng.integers(2, 11))):
        _fish(sheet, rng, deep)
    for _ in range(int(rng.integers(0, 14))):
        area = sheet.near(*sheet.somewhere(rng), 0.03)
        if area is not None:
            rim = np.abs(np.hypot(area.x_hw, area.y_hw) - rng.uniform(0.005, 0.02)) - 0.002
            area.blend(0.6 * area.cover(rim), radiance((0.9, 0.97, 1.0)))
    return expose(sheet.rgb_CHW * np.float32(rng.uniform(0.7, 1.6)), rng, noise=0.04, blur=rng.uniform(0.0, 0.9))


def _rays(sheet: Sheet, rng: np.random.Generator) -> None:
    angle = (sheet.x_HW - rng.uniform(0.0, sheet.aspect)) / (sheet.y_HW + rng.uniform(0.15, 0.6))
    bands = np.sin(angle * rng.uniform(8, 16)) + np.sin(angle * rng.uniform(17, 29) + 1.0) + np.sin(angle * 5.0)
    sheet.rgb_CHW *= 1.0 + 0.35 * np.clip(bands, 0.0, 2.0) * (1.0 - sheet.y_HW)


def _seabed(sheet: Sheet, rng: np.random.Generator) -> None:
    """Sand with ripples and the net of light that waves cast on it."""
    top = rng.uniform(0.6, 0.85)
    depth = np.maximum(sheet.y_HW - top, 0.0) + 0.06
    u, v = (sheet.x_HW - sheet.aspect / 2) / depth, 1.0 / depth
    net = np.abs(np.sin(u * 2.1 + np.sin(v * 1.3)) + np.sin(v * 2.4 + np.sin(u * 1.7)))
    grain = sheet.noise(fractal(0.5), rng, scale=96.0)
    tone = 0.7 + 0.12 * np.sin(v * 5.0 + u) + 0.5 * np.maximum(0.35 - net, 0.0) + 0.1 * grain
    area = sheet.everywhere()
    edge = top + 0.03 * np.sin(sheet.x_HW * rng.uniform(3.0, 9.0)) - sheet.y_HW
    area.blend(0.75 * area.cover(edge), radiance((0.66, 0.66, 0.52)) * np.maximum(tone, 0.1))


def _coral(sheet: Sheet, rng: np.random.Generator, deep: Field) -> None:
    """A knobbly lump on the ground, paler in the distance."""
    x, size, near = rng.uniform(0.0, sheet.aspect), rng.uniform(0.08, 0.26), rng.uniform(0.4, 1.0)
    y = 0.75 + 0.25 * near
    area = sheet.near(x, y, 1.6 * size)
    if area is None:
        return
    angle = np.arctan2(area.y_hw, area.x_hw)
    lobes = np.sin(angle * rng.integers(3, 9) + rng.uniform(0, 6)) + 0.6 * np.sin(angle * rng.integers(7, 19))
    radius = size * (1.0 + rng.uniform(0.05, 0.25) * lobes)
    distance = np.hypot(area.x_hw, area.y_hw * rng.uniform(0.7, 1.4))
    knobs = np.sin(area.x_hw * 90.0 + 3.0 * np.sin(area.y_hw * 40.0)) * np.sin(area.y_hw * 90.0)
    tone = np.clip(0.7 - 1.4 * area.y_hw / size * 0.4 + 0.3 * knobs, 0.1, 2.0)
    body = radiance(draw_colour(rng, hue=(0.8, 1.2), saturation=(0.2, 0.8)))
    area.blend(area.cover(distance - radius), (body * tone) * near + deep * (1.0 - near))


def _fish(sheet: Sheet, rng: np.random.Generator, deep: Field) -> None:
    (x, y), size, near = sheet.somewhere(rng), rng.uniform(0.03, 0.14), rng.uniform(0.5, 1.0)
    area = sheet.near(x, 0.85 * y, 1.7 * size)
    if area is None:
        return
    along, across = area.turned(rng.uniform(-0.4, 0.4) + math.pi * rng.integers(2))
    slim = rng.uniform(0.3, 0.6)
    body = np.hypot(along, across / slim) - size
    tail = np.maximum(np.abs(across) - 0.8 * (-along - 0.8 * size), -along - 1.45 * size)
    stripes = 1.0 + rng.uniform(0.0, 0.6) * np.sign(np.sin(along / size * rng.uniform(3, 14)))
    tone = np.clip((0.8 - 0.5 * area.y_hw / (size * slim)) * stripes, 0.1, 2.0)
    colour = radiance(draw_colour(rng, saturation=(0.1, 0.95))) * near + deep * (1.0 - near)
    area.blend(area.cover(np.minimum(body, tail)), colour * tone)
    eye = np.hypot(along - 0.62 * size, across + 0.1 * size)
    area.blend(area.cover(eye - 0.11 * size), radiance((0.9, 0.9, 0.85)))
    area.blend(area.cover(eye - 0.06 * size), radiance((0.05, 0.05, 0.05)))


def foliage(rng: np.random.Generator, height: int, width: int) -> Bytes:
    """Leaves and flowers from close by before a blurred background, shape (H, W, C) in 0..255."""
    sheet = Sheet(height, width, draw_colour(rng, hue=(0.15, 0.4), saturation=(0.2, 0.6), value=(0.15, 0.6)))
    for _ in range(int(rng.integers(4, 12))):
        area = sheet.near(*sheet.somewhere(rng), 0.4)
        if area is not None:
            blur = np.exp(-(area.x_hw**2 + area.y_hw**2) * np.float32(1.0 / rng.uniform(0.05, 0.2) ** 2))
            area.blend(0.7 * blur, radiance(draw_colour(rng, hue=(0.1, 0.4)), rng.uniform(0.4, 1.4)))
    hue = rng.uniform(0.15, 0.38)
    layers = int(rng.integers(6, 18))
    for layer in range(layers):
        _leaf(sheet, rng, hue, 0.45 + 0.55 * layer / layers)
    petal = rng.uniform(0.75, 1.2)
    for _ in range(int(rng.integers(0, 6))):
        _flower(sheet, rng, petal)
    sheet.light(rng, strength=rng.uniform(0.0, 0.8))
    return expose(sheet.rgb_CHW * np.float32(rng.uniform(0.7, 1.7)), rng, noise=0.03, blur=rng.uniform(0.0, 0.7))


def _leaf(sheet: Sheet, rng: np.random.Generator, hue: float, level: float) -> None:
    """A leaf with a midrib and veins, one half turned to the light."""
    length, slim = rng.uniform(0.15, 0.5), rng.uniform(0.18, 0.45)
    (x, y), angle = sheet.somewhere(rng), rng.uniform(0.0, 2.0 * math.pi)
    dark = sheet.near(x + 0.02, y + 0.03, 1.05 * length)
    area = sheet.near(x, y, 1.05 * length)
    if area is None or dark is None:
        return
    for part, shade in ((dark, True), (area, False)):
        along, across = part.turned(angle)
        share = np.clip(along / length, -1.0, 1.0)
        half = slim * length * (1.0 - share * share) * (1.0 - 0.35 * share)
        cover = part.cover(np.abs(across) - half) * (np.abs(along) < length)
        if shade:
            part.rgb_Chw[...] *= 1.0 - 0.4 * cover
            continue
        veins = np.sin((along - 1.1 * np.abs(across)) / length * rng.uniform(20, 45))
        rib = np.exp(-np.abs(across) * (90.0 / (1.0 + length)))
        tone = np.where(across > 0, 1.0, rng.uniform(0.55, 0.95)) * (1.0 + 0.10 * veins + 0.45 * rib)
        colour = draw_colour(rng, hue=(hue - 0.05, hue + 0.05), saturation=(0.3, 0.75), value=(0.35, 0.8))
        part.blend(cover, radiance(colour, level) * tone.astype(np.float32))


def _flower(sheet: Sheet, rng: np.random.Generator, hue: float) -> None:
    (x, y), size = sheet.somewhere(rng), rng.uniform(0.07, 0.32)
    area = sheet.near(x, y, 1.2 * size)
    if area is None:
        return
    angle, radius = np.arctan2(area.y_hw, area.x_hw) + rng.uniform(0, 6), np.hypot(area.x_hw, area.y_hw)
    petals = int(rng.integers(4, 13))
    wave = np.abs(np.cos(angle * (petals / 2)))
    tone = 0.55 + 0.45 * radius / size + 0.18 * np.cos(angle * petals * 5) - 0.35 * (wave < 0.25)
    colour = radiance(draw_colour(rng, hue=(hue - 0.04, hue + 0.04), saturation=(0.1, 0.85), value=(0.7, 1.0)))
    area.blend(area.cover(radius - size * (0.55 + 0.45 * np.sqrt(wave))), colour * np.maximum(tone, 0.1))
    ball(area, size * rng.uniform(0.15, 0.3), radiance((0.8, 0.62, 0.15)), gloss=0.0)


def night_sky(rng: np.random.Generator, height: int, width: int) -> Bytes:
    """Stars and nebulae, with a moon or hills before them, shape (H, W, C) in 0..255."""
    sheet = Sheet(height, width, draw_colour(rng, hue=(0.55, 0.8), saturation=(0.4, 0.9), value=(0.03, 0.25)))
    for _ in range(int(rng.integers(1, 4))):
        cloud = np.maximum(sheet.noise(fractal(2.8), rng, scale=rng.uniform(60.0, 140.0)), 0.0)
        sheet.rgb_CHW += radiance(draw_colour(rng, saturation=(0.4, 0.95), value=(0.2, 0.6))) * np.square(cloud)
    sheet.rgb_CHW *= 1.0 - 0.7 * np.clip(sheet.noise(fractal(2.4), rng, scale=110.0), 0.0, 1.0)
    _stars(sheet, rng)
    moon = sheet.near(*sheet.somewhere(rng), 0.3)
    if moon is not None and rng.random() < 0.4:
        pale = draw_colour(rng, saturation=(0.0, 0.5), value=(0.6, 1.0))
        ball(moon, rng.uniform(0.05, 0.22), radiance(pale), gloss=0.0)
    if rng.random() < 0.45:
        ridge = 0.8 + 0.08 * np.sin(sheet.x_HW * rng.uniform(2, 6)) + 0.04 * np.sin(sheet.x_HW * rng.uniform(9, 20))
        area = sheet.everywhere()
        area.blend(area.cover(ridge - sheet.y_HW), radiance((0.05, 0.06, 0.08)))
    return expose(sheet.rgb_CHW * np.float32(rng.uniform(0.8, 2.0)), rng, noise=rng.uniform(0.02, 0.08))


def _stars(sheet: Sheet, rng: np.random.Generator) -> None:
    """Many faint stars, and a few bright ones with rays."""
    count = int(rng.integers(60, 420))
    rows, columns = rng.integers(sheet.height, size=count), rng.integers(sheet.width, size=count)
    bright = np.minimum(rng.pareto(1.6, size=count) * 0.12, 3.0) * rng.uniform(0.6, 1.0, size=(3, count))
    sheet.rgb_CHW[:, rows, columns] += bright
    for _ in range(int(rng.integers(0, 6))):
        area = sheet.near(*sheet.somewhere(rng), 0.15)
        if area is not None:
            x, y = np.abs(area.x_hw), np.abs(area.y_hw)
            area.rgb_Chw[...] += 0.0012 / (x * x + y * y + 0.0008) * (x * y < 0.0004)
