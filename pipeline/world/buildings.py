"""Houses: facades with windows, shops, balconies, cornices and roofs, drawn in perspective.

A wall is a quad with coordinates s along it and t up it, in metres. Windows repeat every ``bay`` metres and every
``storey`` metres: a point belongs to the window whose centre it is near, by ``s / bay`` and ``(t - base) / storey``
without their integer parts.

Shapes: h, w those of a wall's crop; M materials, C = 3 colours.
"""

from dataclasses import dataclass

import numpy as np

from pipeline.world.camera import NORTH, UP, Camera, Patch, Quad, opposite
from pipeline.world.canvas import Canvas, Colour, reflectances
from pipeline.world.light import Light
from pipeline.world.noise import SIDE, Bytes, Field, blotches, fractal, look_up
from pipeline.world.street import Building, Street
from pipeline.world.styles import BUILDING, Style

WALL, GLASS, FRAME, TRIM, SHOP, ROOF, LIT = range(7)
PLASTER, BRICK, PANELS, CURTAIN = range(4)


@dataclass(frozen=True, kw_only=True, slots=True)
class Facade:
    """The look of one house; lengths in metres."""

    kind: int
    """PLASTER, BRICK, PANELS or CURTAIN."""
    colours: Field
    """Reflectances of the materials, shape (C, M)."""
    base: float
    """Height of the ground floor."""
    shop: bool
    storey: float
    bay: float
    window: tuple[float, float]
    """Width and height of a window as shares of bay and storey."""
    cornice: float
    roof: float
    """Height of the roof that shows above the cornice; 0 for a flat roof."""
    balconies: bool
    lit: float
    """Share of the windows behind which a lamp burns."""
    offset: tuple[float, float]
    """Where in the noise fields this house's textures lie."""


def draw_facade(style: Style, light: Light, rng: np.random.Generator) -> Facade:
    """A random house front."""
    curtain = rng.random() < style.curtain_wall
    shop = bool(rng.random() < 0.4 and style.storeys[1] > 2)
    return Facade(
        kind=CURTAIN if curtain else int(rng.integers(PLASTER, CURTAIN)),
        colours=_reflectances(style, rng),
        base=rng.uniform(3.2, 4.2) if shop else rng.uniform(0.4, 1.2),
        shop=shop,
        storey=rng.uniform(2.7, 3.5),
        bay=rng.uniform(1.1, 1.8) if curtain else rng.uniform(1.7, 3.6),
        window=(0.92, 0.9) if curtain else (rng.uniform(0.32, 0.72), rng.uniform(0.4, 0.68)),
        cornice=rng.uniform(0.2, 0.7),
        roof=rng.uniform(1.2, 2.6) if rng.random() < 0.35 and not curtain else 0.0,
        balconies=bool(rng.random() < 0.2 and not curtain),
        lit=rng.uniform(0.2, 0.7) if light.night else 0.0,
        offset=(rng.uniform(0, SIDE), rng.uniform(0, SIDE)),
    )


def paint_building(
    canvas: Canvas, camera: Camera, street: Street, building: Building, facade: Facade, light: Light
) -> None:
    """Paints the walls of a house that face the camera."""
    for quad, blind in _walls(building):
        patch = camera.patch(quad)
        if patch is None:
            continue
        material, tone = _wall(patch, quad, facade, blind=blind)
        irradiance = light.on(quad.normal, sunlit=_sunlit(patch, quad, building, street, light))
        radiance = facade.colours.take(material, axis=1) * tone * irradiance
        if facade.lit:
            np.copyto(radiance, _LAMPLIGHT * tone, where=material == LIT)
        canvas.paint(patch.crop, patch.inside, radiance, depth=patch.depth, label=BUILDING)


_LAMPLIGHT = np.array([1.1, 0.75, 0.35], dtype=np.float32)[:, None, None] * np.float32(0.16)


def _walls(building: Building) -> list[tuple[Quad, bool]]:
    """The walls that may face the camera, and whether each is an end wall with few windows."""
    face, height, length = building.face, building.height, building.far - building.near
    if building.side == 0:
        front = Quad(origin=(face, 0.0, building.near), a=(1.0, 0.0, 0.0), b=UP, width=building.width, height=height)
        return [(front, False)]
    left = min(face, face + building.side * building.width)
    end = Quad(origin=(left, 0.0, building.near), a=(1.0, 0.0, 0.0), b=UP, width=building.width, height=height)
    start, along = (building.near, NORTH) if building.side < 0 else (building.far, opposite(NORTH))
    return [(end, True), (Quad(origin=(face, 0.0, start), a=along, b=UP, width=length, height=height), False)]


def _sunlit(patch: Patch, quad: Quad, building: Building, street: Street, light: Light) -> Field | float:
    """Whether the opposite houses let the sun reach a front; end walls count as lit."""
    if building.side == 0 or quad.a[0] != 0.0:
        return 1.0
    z = quad.origin[2] + patch.s * quad.a[2]
    return street.sunlit(building.side * street.facade, patch.t, z, light.towards_sun)


def _wall(patch: Patch, quad: Quad, facade: Facade, *, blind: bool) -> tuple[Bytes, Field]:
    """Material and tone of a wall, shape (h, w) each."""
    material = np.zeros(patch.s.shape, dtype=np.uint8)
    tone = _masonry(patch, facade)
    top = quad.height - facade.roof
    bay = facade.bay * (2.6 if blind else 1.0)
    _windows(material, tone, patch, facade, bay=bay, top=top)
    if facade.shop and not blind:
        _shops(material, tone, patch, facade)
    trim = (patch.t > top - facade.cornice) & (patch.t <= top)
    material[trim] = TRIM
    if facade.roof and not blind:
        _roof(material, tone, patch, facade, top=top)
    tone *= 1.0 - 0.35 * np.exp(np.maximum(patch.t, 0.0) * -1.2)  # little light reaches the corner with the ground
    return material, tone


def _masonry(patch: Patch, facade: Facade) -> Field:
    """Tone of the bare wall: stains, grain, and the joints of bricks or panels."""
    sharp = np.minimum(9.0 / (patch.depth + 1.0), 1.0)
    left, low = facade.offset
    stain = look_up(fractal(2.2), patch.s * 9.0 + left, patch.t * 5.0 + low)
    tone: Field = 1.0 + 0.10 * stain
    if facade.kind == BRICK:
        course = np.floor(patch.t * 6.0)
        brick = patch.s * 2.6 + 0.5 * (course % 2.0)
        joint = (patch.t * 6.0 - course < 0.16) | (brick - np.floor(brick) < 0.08)
        each = look_up(fractal(0.0), brick + left + SIDE, course + low)
        tone = tone + sharp * (0.10 * each - np.float32(0.22) * joint)
    elif facade.kind == PANELS:
        joint = (patch.s % 2.4 < 0.06) | (patch.t % facade.storey < 0.07)
        tone = tone - np.float32(0.30) * joint
    else:
        tone = tone + 0.06 * sharp * look_up(blotches(5.0), patch.s * 30.0 + low, patch.t * 30.0 + left)
    return np.maximum(tone, np.float32(0.15))


def _windows(material: Bytes, tone: Field, patch: Patch, facade: Facade, *, bay: float, top: float) -> None:
    """Sets windows into a wall: frame, glass that mirrors the sky more towards its top, sill, balcony."""
    columns, rows = patch.s * (1.0 / bay), (patch.t - facade.base) * (1.0 / facade.storey)
    column, row = np.floor(columns), np.floor(rows)
    x, y = np.abs(columns - column - 0.5), rows - row - 0.5
    width, height = facade.window[0] * facade.bay / bay / 2, facade.window[1] / 2
    whole_storey = (patch.t > facade.base) & (row < np.floor((top - facade.cornice - facade.base) / facade.storey))
    frame = (x < width) & (np.abs(y) < height) & whole_storey
    margin = 0.07 / bay
    glass = frame & (x < width - margin) & (np.abs(y) < height - 0.025) & (x > margin * 0.4)
    each = look_up(fractal(0.0), column + facade.offset[0] + SIDE, row + facade.offset[1] + SIDE)
    material[frame] = FRAME
    material[glass] = GLASS
    if facade.lit:
        material[glass & (each < 2.0 * facade.lit - 1.0)] = LIT
    np.copyto(tone, 0.75 + 0.9 * y + 0.28 * np.abs(each) + 0.5 * (each > 1.1), where=glass)
    tone[(x < width + margin) & (y < -height) & (y > -height - 0.05) & whole_storey] *= 0.6
    if facade.balconies:
        rail = (y < -0.12) & (y > -0.46) & (x < 0.46) & whole_storey
        rail &= ((patch.s * 9.0) % 1.0 < 0.4) | (y > -0.16) | (y < -0.42)
        material[rail] = TRIM
        tone[rail] = 0.5


def _shops(material: Bytes, tone: Field, patch: Patch, facade: Facade) -> None:
    """Turns the ground floor into shops: windows, doors and a sign above."""
    columns = patch.s * (0.5 / facade.bay)
    column = np.floor(columns)
    x = columns - column
    ground = patch.t < facade.base
    each = look_up(fractal(0.0), column + facade.offset[1] + SIDE, column + facade.offset[0])
    sign = ground & (patch.t > facade.base - 0.8) & (x > 0.04) & (x < 0.96)
    glass = (patch.t < facade.base - 0.95) & (patch.t > 0.45) & (x > 0.08) & (x < 0.66)
    door = (patch.t < 2.3) & (x > 0.72) & (x < 0.9)
    material[sign] = SHOP
    material[glass | door] = GLASS
    if facade.lit:
        material[glass] = LIT
    goods = look_up(blotches(9.0), patch.s * 14.0 + facade.offset[0], patch.t * 14.0 + facade.offset[1])
    np.copyto(tone, 0.9 + 0.4 * goods, where=glass)
    np.copyto(tone, 0.8 + 0.35 * each, where=sign)
    letters = sign & (np.abs(patch.t - facade.base + 0.4) < 0.2) & (goods > 0.1) & (x > 0.2) & (x < 0.8)
    tone[letters] = 2.2
    np.maximum(tone, 0.15, out=tone)


def _roof(material: Bytes, tone: Field, patch: Patch, facade: Facade, *, top: float) -> None:
    """Covers the top of a front with a steep tiled roof and its dormers."""
    between = np.abs((patch.s / facade.bay) % 2.0 - 1.0) > 0.28
    tiles = (patch.t > top) & (between | (patch.t > top + facade.roof * 0.8))
    material[tiles] = ROOF
    tone[tiles] *= (1.0 + 0.22 * np.sin(patch.t * 22.0))[tiles]
    material[(patch.t > top) & ~tiles] = GLASS


def _reflectances(style: Style, rng: np.random.Generator) -> Field:
    """Reflectances of a house's materials, shape (C, M)."""
    wall = style.walls[int(rng.integers(len(style.walls)))]
    level = rng.uniform(0.8, 1.1)
    tint = rng.uniform(-0.03, 0.03, size=3)
    base: Colour = (wall[0] * level + tint[0], wall[1] * level + tint[1], wall[2] * level + tint[2])
    dark, blue = rng.uniform(0.2, 0.45), rng.uniform(-0.02, 0.10)
    glass: Colour = (dark - 0.4 * blue, dark, dark + blue)
    pale = rng.uniform(0.7, 0.95)
    frame: Colour = (pale, pale, pale * 0.97) if rng.random() < 0.6 else (0.25, 0.22, 0.2)
    trim: Colour = (base[0] * 1.15, base[1] * 1.15, base[2] * 1.12)
    sign: Colour = (rng.uniform(0.1, 0.75), rng.uniform(0.1, 0.6), rng.uniform(0.1, 0.6))
    roof: Colour = (0.5, 0.28, 0.22) if rng.random() < 0.5 else (0.33, 0.34, 0.37)
    return reflectances([base, glass, frame, trim, sign, roof, (1.0, 0.8, 0.5)])
