"""Ten kinds of picture that are not streets. Each function draws one on an empty sheet.

Shapes: C = 3 colours, H rows, W columns, N points.
"""

import math
from collections.abc import Callable

import numpy as np
from paint import Bytes, Field, Points, Sheet, develop, ellipse, pick


def render_other(rng: np.random.Generator, source: str, height: int, width: int) -> Bytes:
    """A picture of one of the kinds in ``OTHERS``, shape (H, W, C) in 0..255."""
    sheet = Sheet(rng, height, width)
    OTHERS[source](sheet)
    rgb_HWC = np.asarray(sheet.image, dtype=np.float32) * np.float32(rng.uniform(0.8, 1.2))
    return develop(rgb_HWC, rng, grain=0.03, blur=rng.uniform(-0.3, 1.0))


def indoor(sheet: Sheet) -> None:
    """A room: three walls around a vanishing point, pictures and furniture."""
    rng, right, wall = sheet.rng, sheet.aspect, sheet.colour(saturation=(0.3, 0.8), value=(0.5, 0.95))
    x0, x1, y0, y1 = rng.uniform((0.1, right - 0.4, 0.08, 0.55), (0.4, right - 0.1, 0.25, 0.7))
    sheet.replace(wall)
    sheet.polygon([(0, 0), (right, 0), (x1, y0), (x0, y0)], wall * 1.3)
    floor = sheet.colour(hue=(0.02, 0.12))
    sheet.polygon([(0, 1), (right, 1), (x1, y1), (x0, y1)], floor)
    for x in np.linspace(-1.0, right + 1.0, 16):
        sheet.line([(x, 1), (x0 + (x1 - x0) * (x + 1) / (right + 2), y1)], 0.008, floor * 0.6)
    for side, edge in ((0.0, x0), (right, x1)):
        sheet.polygon([(side, 0), (edge, y0), (edge, y1), (side, 1)], wall * rng.uniform(0.5, 0.85))
    for x, y, size in sheet.scatter((1, 4), (0.1, 0.22)):
        x, y = x0 + (x1 - x0 - size) * x / right, y0 + (y1 - y0 - size) * y
        sheet.box(x - 0.02, y - 0.02, size + 0.04, size + 0.04, wall * 0.3)
        sheet.box(x, y, size, size, sheet.colour())
    for x, y, size in sheet.scatter((2, 6), (0.1, 0.3)):
        y, wide, colour = y1 + 0.25 * y, size * rng.uniform(0.8, 2.5), sheet.colour()
        sheet.box(x, y - size, wide, size, colour * 0.7)
        sheet.box(x + 0.03, y - size - 0.06, wide - 0.06, 0.06, colour)
        sheet.box(x + 0.02, y, wide - 0.04, 0.04, floor * 0.4)


def aerial(sheet: Sheet) -> None:
    """Fields in furrows, a river, a road, houses and trees, from above."""
    rng, angle = sheet.rng, sheet.rng.uniform(0.0, math.pi)
    _mosaic(sheet, [sheet.colour(hue=(0.1, 0.4), saturation=(0.5, 1.0), value=(0.3, 0.9)) for _ in range(14)])
    furrows_HW = np.sin((sheet.x_HW * math.cos(angle) + sheet.y_HW * math.sin(angle)) * rng.uniform(90.0, 160.0))
    sheet.tone(1.0 + 0.15 * furrows_HW)
    for colour, thick in (((40, 110, 190), 0.12), ((225, 215, 190), 0.03)):
        x_N = np.linspace(-0.2, sheet.aspect + 0.2, 9)
        sheet.line(np.stack([x_N, rng.uniform(0.2, 0.8) + 0.08 * rng.standard_normal(9)], axis=1), thick, colour)
    for x, y, size in sheet.scatter((10, 30), (0.01, 0.04)):
        sheet.disc(x, y, size, (20, 70, 25))
        sheet.box(x + 2 * size, y, 1.5 * size, size, sheet.colour(hue=(0.0, 0.06), value=(0.6, 0.9)))


def underwater(sheet: Sheet) -> None:
    """Fish and coral under rays of light."""
    rng = sheet.rng
    sheet.replace(sheet.colour(hue=(0.42, 0.64), saturation=(0.7, 1.0), value=(0.5, 0.9)))
    for x, y, size in sheet.scatter((4, 12), (0.04, 0.14)):
        ahead, colour = pick(rng, (-size, size)), sheet.colour(saturation=(0.7, 1.0))
        sheet.polygon(
            [(x - 0.8 * ahead, y), (x - 1.6 * ahead, y - 0.4 * size), (x - 1.6 * ahead, y + 0.4 * size)], colour
        )
        sheet.disc(x, y, size, colour, squash=0.45)
        sheet.disc(x, y, 0.1 * size, sheet.colour(), squash=4.0)
        sheet.disc(x + 0.65 * ahead, y - 0.08 * size, 0.09 * size, (250, 250, 250))
    for x, _, size in sheet.scatter((6, 16), (0.1, 0.3)):
        colour = sheet.colour(hue=(0.8, 1.15), saturation=(0.6, 1.0), value=(0.5, 1.0))
        for branch in rng.normal(0.0, 0.1, 6):
            sheet.line([(x, 1.0), (x + branch, 1.0 - size)], 0.03, colour)
    rays_HW = np.sin((sheet.x_HW + 0.4 * sheet.y_HW) * rng.uniform(8.0, 20.0))
    sheet.tone((1.35 - 0.8 * sheet.y_HW) * (1.0 + 0.15 * rays_HW))


def table(sheet: Sheet) -> None:
    """Plates and fruit on a striped cloth, from above."""
    rng, cloth, pitch = sheet.rng, sheet.colour(saturation=(0.5, 0.9), value=(0.6, 1.0)), sheet.rng.uniform(0.1, 0.3)
    sheet.replace(cloth)
    for x in np.arange(0.0, sheet.aspect, pitch):
        sheet.box(x, 0.0, pitch / 2, 1.0, cloth * 0.8)
    for x, y, size in sheet.scatter((4, 9), (0.08, 0.2)):
        if rng.random() < 0.5:
            food = sheet.colour(hue=(0.0, 0.3))
            for share, colour in ((1.05, cloth * 0.4), (1.0, (245, 243, 238)), (0.75, (222, 220, 216)), (0.68, food)):
                sheet.disc(x, y, size * share, colour, squash=0.9)
        for u, v in rng.normal((x, y), 0.4 * size, size=(int(rng.integers(2, 7)), 2)):
            fruit = sheet.colour(hue=(0.0, 0.32), saturation=(0.7, 1.0), value=(0.5, 1.0))
            for share, shift, tone in ((0.26, 0.0, 0.6), (0.22, 0.03, 1.0), (0.07, 0.1, 1.5)):
                sheet.disc(u - shift * size, v - shift * size, share * size, fruit * tone)


def texture(sheet: Sheet) -> None:
    """One material that fills the picture: bricks, planks, scales or stone, lit from above."""
    rng, pitch, kind = sheet.rng, sheet.rng.uniform(7.0, 16.0), int(sheet.rng.integers(4))
    sheet.replace(sheet.colour(value=(0.4, 0.9)))
    row_HW = sheet.y_HW * pitch
    u_HW, v_HW = (sheet.x_HW * pitch / 2 + 0.5 * (np.floor(row_HW) % 2)) % 1.0, row_HW % 1.0
    if kind == 0:
        relief_HW = 4.0 * np.clip(np.minimum(6 * np.minimum(v_HW, 1 - v_HW), 12 * np.minimum(u_HW, 1 - u_HW)), 0, 1)
    elif kind == 1:
        relief_HW = 2.0 * sheet.noise(scale=pitch, stretch=12.0) + 3.0 * (v_HW > 0.08)
    elif kind == 2:
        relief_HW = 8.0 * (np.hypot(u_HW - 0.5, v_HW) % 0.5)
    else:
        relief_HW = 2.0 * sheet.noise(scale=pitch, octaves=5)
    relief_HW = relief_HW + 0.4 * sheet.noise(scale=40.0, octaves=2)
    sheet.tone(np.clip(0.8 + 0.12 * relief_HW + rng.uniform(0.2, 0.7) * np.gradient(relief_HW, axis=0), 0.05, 2.0))


def foliage(sheet: Sheet) -> None:
    """Leaves and flowers from near."""
    rng, hue = sheet.rng, sheet.rng.uniform(0.2, 0.38)
    sheet.replace(sheet.colour(hue=(0.2, 0.4), saturation=(0.5, 0.9), value=(0.1, 0.4)))
    for layer, (x, y, size) in enumerate(sheet.scatter((20, 50), (0.1, 0.35))):
        angle, bright = rng.uniform(0.0, math.pi), 0.2 + 0.011 * layer
        leaf = sheet.colour(hue=(hue - 0.06, hue + 0.05), saturation=(0.6, 1.0), value=(bright, bright + 0.2))
        sheet.disc(x, y, size, leaf, squash=0.36, turn=angle)
        sheet.disc(x, y, size, leaf * 1.5, squash=0.02, turn=angle)
    for x, y, size in sheet.scatter((0, 6), (0.06, 0.15)):
        colour = sheet.colour(hue=(0.75, 1.15), value=(0.8, 1.0))
        for u, v in ellipse(x, y, 0.6 * size, 0.6 * size, corners=int(rng.integers(5, 11))):
            sheet.disc(u, v, 0.5 * size, colour, squash=0.5, turn=math.atan2(v - y, u - x))
        sheet.disc(x, y, 0.3 * size, (240, 200, 60))


def night_sky(sheet: Sheet) -> None:
    """Stars before glowing clouds."""
    glow_HW = np.clip(sheet.noise(scale=2.0, octaves=6) + sheet.rng.uniform(-0.8, 0.4), 0.0, 2.5) ** 1.5
    veil_HW = np.clip(sheet.noise(scale=3.0, octaves=5), 0.0, 2.0)
    sheet.replace(12 + glow_HW[..., None] * sheet.colour() * 0.5 + veil_HW[..., None] * sheet.colour() * 0.2)
    for x, y, size in sheet.scatter((60, 220), (0.0, 1.0)):
        size = 0.003 + 0.012 * size**6
        sheet.disc(x, y, size, sheet.colour(saturation=(0.0, 0.3), value=(0.6, 1.0)))
        for turn in (0.0, math.pi / 2) if size > 0.008 else ():
            sheet.disc(x, y, 7 * size, (230, 235, 255), squash=0.05, turn=turn)


def abstract(sheet: Sheet) -> None:
    """Waves of two colours with shapes over them."""
    rng, pitch = sheet.rng, sheet.rng.uniform(3.0, 14.0)
    phase_HW = (sheet.x_HW + rng.uniform(-1, 1) * sheet.y_HW) * pitch + rng.uniform(0.0, 1.6) * sheet.noise(scale=2.0)
    share_HW1 = 0.5 + 0.5 * np.sin(phase_HW)[..., None]
    sheet.replace(share_HW1 * sheet.colour() + (1.0 - share_HW1) * sheet.colour())
    for x, y, size in sheet.scatter((0, 16), (0.04, 0.3)):
        corners, turn = pick(rng, (3, 4, 5, 24)), rng.uniform(0.0, math.pi)
        outline = ellipse(x, y, size, size * rng.uniform(0.4, 1.0), turn, corners=corners)
        sheet.polygon(outline, sheet.colour(saturation=(0.7, 1.0)))


def document(sheet: Sheet) -> None:
    """A page of words with charts, flat before the camera."""
    rng, dark = sheet.rng, sheet.rng.random() < 0.3
    sheet.replace((18, 20, 26) if dark else np.array([255, 253, 246]) * rng.uniform(0.85, 1.0))
    ink = np.array([230, 232, 235]) if dark else sheet.colour(saturation=(0.0, 0.6), value=(0.0, 0.3))
    pitch, columns = rng.uniform(0.03, 0.06), int(rng.integers(1, 4))
    wide = sheet.aspect / columns
    for column in range(columns):
        for y in np.arange(0.05, 0.95, pitch):
            x, end = (column + 0.08) * wide, (column + rng.uniform(0.6, 0.92)) * wide
            while x < end:
                word = rng.uniform(0.02, 0.09)
                sheet.box(x, y, word, 0.5 * pitch, ink)
                x += word + 0.4 * pitch
    for x, y, size in sheet.scatter((1, 3), (0.3, 0.6)):
        sheet.box(x - size / 2, 0.6 * y, size, 0.35, (250, 250, 250))
        bar = sheet.colour()
        for place, tall in zip(np.linspace(0.02, 0.9, 8), rng.uniform(0.05, 0.32, 8), strict=True):
            sheet.box(x + (place - 0.5) * size, 0.6 * y + 0.34 - tall, 0.08 * size, tall, bar)


def cells(sheet: Sheet) -> None:
    """Stained or glowing cells under a microscope."""
    rng, hue, glowing = sheet.rng, sheet.rng.uniform(0.0, 1.0), sheet.rng.random() < 0.4
    ground = (0.02, 0.1) if glowing else (0.8, 1.0)
    sheet.replace(sheet.colour(hue=(hue, hue), saturation=(0.1, 0.4), value=ground))
    if rng.random() < 0.4:
        _mosaic(sheet, [sheet.colour(hue=(hue, hue + 0.08), value=(0.4, 0.9)) for _ in range(40)])
    for x, y, size in sheet.scatter((10, 45), (0.03, 0.1)):
        body, turn = sheet.colour(hue=(hue, hue + 0.12), value=(0.5, 0.95)), rng.uniform(0.0, math.pi)
        for share, tone in ((1.0, 1.5 if glowing else 0.6), (0.88, 1.0), (0.35, 0.3)):
            sheet.disc(x, y, share * size, body * tone, squash=0.8, turn=turn)


_KINDS = (indoor, aerial, underwater, table, texture, foliage, night_sky, abstract, document, cells)
OTHERS: dict[str, Callable[[Sheet], None]] = {draw.__name__.replace("_", "-"): draw for draw in _KINDS}


def _mosaic(sheet: Sheet, colours_NC: list[Points]) -> None:
    """Fill the sheet with patches around random sites, dark at their borders."""
    sites_N2: Field = sheet.rng.random((len(colours_NC), 2)).astype(np.float32) * (sheet.aspect, 1.0)
    nearest_HW = np.argmin([(sheet.x_HW - x) ** 2 + (sheet.y_HW - y) ** 2 for x, y in sites_N2], axis=0)
    border_HW = (np.diff(nearest_HW, axis=0, prepend=0) != 0) | (np.diff(nearest_HW, axis=1, prepend=0) != 0)
    sheet.replace(np.array(colours_NC)[nearest_HW] * np.where(border_HW, 0.5, 1.0)[..., None])
