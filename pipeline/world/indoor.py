"""Rooms: a corner with floor, walls and ceiling, a window, pictures, and furniture of boxes, lit by one lamp.

Each surface is a quad with a texture. A point p of a surface with normal n gets
``ambient + lamp * max(0, n . (l - p)) / |l - p|**3`` from a lamp at l, as from a point source.

Shapes: C = 3 colours, h, w those of a quad's crop.
"""

from dataclasses import dataclass

import numpy as np

from pipeline.world.camera import EAST, NORTH, UP, Camera, Patch, Quad, Vector, aim, dot, opposite, step
from pipeline.world.canvas import SCALE, VOID, Canvas, Colour, expose
from pipeline.world.noise import SIDE, Bytes, Field, blotches, fractal, look_up
from pipeline.world.sketch import draw_colour, radiance

PLAIN, WOOD, TILES, STRIPES, BOOKS, DOORS, CLOTH, VIEW = range(8)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Room:
    """A room under way; the camera stands at z = 0 and looks towards the far wall."""

    canvas: Canvas
    camera: Camera
    rng: np.random.Generator
    left: float
    right: float
    depth: float
    height: float
    lamp: Vector
    lamp_C: Field
    ambient_C: Field

    def paint(self, quad: Quad, pattern: int, colour: Colour, *, glow: float = 0.0) -> None:
        """Paints one surface; with ``glow`` it shines by itself."""
        patch = self.camera.patch(quad)
        if patch is None:
            return
        tone = _pattern(patch, quad, pattern, self.rng)
        rgb = radiance(colour) * tone * (np.float32(glow) if glow else self._irradiance(patch, quad))
        self.canvas.paint(patch.crop, patch.inside, rgb, depth=patch.depth, label=VOID)

    def _irradiance(self, patch: Patch, quad: Quad) -> Field:
        """Light of the lamp on a surface, shape (C, h, w)."""
        offset = step(self.lamp, quad.origin, -1.0)
        s, t = dot(offset, quad.a) - patch.s, dot(offset, quad.b) - patch.t
        above = max(dot(offset, quad.normal), 0.0)
        falloff = above / np.power(s * s + t * t + above * above + 0.05, 1.5)
        light: Field = self.lamp_C[:, None, None] * np.minimum(falloff, 3.0) + self.ambient_C[:, None, None]
        return light

    def box(self, corner: Vector, size: Vector, pattern: int, colour: Colour) -> None:
        """Paints the faces of an upright box; ``corner`` is its lowest at the left and near."""
        (x, y, z), (width, height, depth) = corner, size
        for origin, a, b, across, up in (
            (corner, EAST, UP, width, height),
            ((x, y, z + depth), opposite(NORTH), UP, depth, height),
            ((x + width, y, z), NORTH, UP, depth, height),
            ((x, y + height, z), EAST, NORTH, width, depth),
        ):
            face = pattern if b == UP or pattern in (WOOD, CLOTH) else PLAIN
            self.paint(Quad(origin=origin, a=a, b=b, width=across, height=up), face, colour)


def indoor(rng: np.random.Generator, height: int, width: int) -> Bytes:
    """A furnished room, shape (H, W, C) in 0..255."""
    room = _draw_room(rng, height, width)
    _shell(room)
    _decorate(room)
    for z in sorted((rng.uniform(1.6, room.depth - 0.9) for _ in range(int(rng.integers(2, 6)))), reverse=True):
        furnish = _FURNITURE[int(rng.integers(len(_FURNITURE)))]
        furnish(room, rng.uniform(room.left + 0.1, room.right - 1.5), z)
    rgb, _, _ = room.canvas.halved()
    gain = 0.42 / float(np.sqrt(np.square(rgb).mean()) + 0.05) * rng.uniform(0.7, 1.4)
    return expose(rgb * np.float32(gain), rng, noise=rng.uniform(0.01, 0.05), blur=rng.uniform(0.0, 0.6))


def _draw_room(rng: np.random.Generator, height: int, width: int) -> _Room:
    left, right, depth = -rng.uniform(1.2, 3.0), rng.uniform(1.2, 3.0), rng.uniform(3.0, 6.0)
    camera = aim(
        height * SCALE,
        width * SCALE,
        position=(rng.uniform(left, right) * 0.5, rng.uniform(1.0, 1.9), 0.0),
        field_of_view=rng.uniform(60.0, 85.0),
        angles=(rng.uniform(-30.0, 30.0), rng.uniform(-18.0, 2.0), rng.uniform(-3.0, 3.0)),
    )
    warm = rng.uniform(0.0, 1.0)
    return _Room(
        canvas=Canvas(camera.rows, camera.columns),
        camera=camera,
        rng=rng,
        left=left,
        right=right,
        depth=depth,
        height=rng.uniform(2.4, 3.0),
        lamp=(rng.uniform(left, right) * 0.8, rng.uniform(1.4, 2.3), rng.uniform(0.8, depth - 0.4)),
        lamp_C=np.array([1.0, 0.92 - 0.2 * warm, 0.85 - 0.45 * warm], dtype=np.float32) * np.float32(1.6),
        ambient_C=np.array([0.9, 0.95, 1.0], dtype=np.float32) * np.float32(rng.uniform(0.12, 0.5)),
    )


def _shell(room: _Room) -> None:
    """Paints floor, ceiling and walls, which reach one metre behind the camera."""
    rng, left, right, far, high = room.rng, room.left, room.right, room.depth, room.height
    wall = draw_colour(rng, saturation=(0.02, 0.38), value=(0.5, 0.95))
    paper = int(rng.choice([PLAIN, PLAIN, STRIPES, TILES]))
    width, length = right - left, far + 1.0
    floor = Quad(origin=(left, 0.0, -1.0), a=EAST, b=NORTH, width=width, height=length)
    ceiling = Quad(origin=(right, high, -1.0), a=opposite(EAST), b=NORTH, width=width, height=length)
    room.paint(floor, int(rng.choice([WOOD, TILES, CLOTH])), draw_colour(rng, hue=(0.03, 0.14), saturation=(0.1, 0.6)))
    room.paint(ceiling, PLAIN, (0.9, 0.89, 0.87))
    room.paint(Quad(origin=(left, 0.0, far), a=EAST, b=UP, width=width, height=high), paper, wall)
    room.paint(Quad(origin=(left, 0.0, -1.0), a=NORTH, b=UP, width=length, height=high), paper, wall)
    room.paint(Quad(origin=(right, 0.0, far), a=opposite(NORTH), b=UP, width=length, height=high), paper, wall)


def _decorate(room: _Room) -> None:
    """Hangs a window and pictures on the walls, and lays a rug."""
    rng = room.rng
    if rng.random() < 0.6:
        _window(room)
    for _ in range(int(rng.integers(0, 4))):
        _picture(room)
    if rng.random() < 0.5:
        corner = (rng.uniform(room.left, 0.0), 0.01, rng.uniform(1.0, 2.0))
        rug = Quad(origin=corner, a=EAST, b=NORTH, width=1.8, height=1.4)
        room.paint(rug, CLOTH, draw_colour(rng, saturation=(0.4, 0.9)))


def _window(room: _Room) -> None:
    rng, wall = room.rng, room.depth - 0.02
    x, y = rng.uniform(room.left + 0.2, room.right - 1.4), rng.uniform(0.7, 1.1)
    room.paint(Quad(origin=(x, y, wall), a=EAST, b=UP, width=1.3, height=1.3), PLAIN, (0.9, 0.9, 0.88))
    for column in range(2):
        corner = (x + 0.07 + 0.61 * column, y + 0.07, wall - 0.01)
        pane = Quad(origin=corner, a=EAST, b=UP, width=0.55, height=1.16)
        room.paint(pane, VIEW, (0.75, 0.85, 0.98), glow=rng.uniform(0.5, 1.6))


def _picture(room: _Room) -> None:
    """A framed picture on any of the three walls."""
    rng = room.rng
    width, height = rng.uniform(0.3, 0.8), rng.uniform(0.3, 0.7)
    y, z = rng.uniform(1.2, 1.7), rng.uniform(1.0, room.depth - 1.0)
    places: list[tuple[Vector, Vector]] = [
        ((room.left + 0.02, y, z), NORTH),
        ((room.right - 0.02, y, z), opposite(NORTH)),
        ((rng.uniform(room.left, room.right - width), y, room.depth - 0.02), EAST),
    ]
    origin, a = places[int(rng.integers(3))]
    frame = Quad(origin=origin, a=a, b=UP, width=width, height=height)
    room.paint(frame, PLAIN, draw_colour(rng, value=(0.1, 0.4)))
    corner = step(step(step(origin, a, 0.05), UP, 0.05), frame.normal, 0.01)
    room.paint(Quad(origin=corner, a=a, b=UP, width=width - 0.1, height=height - 0.1), VIEW, draw_colour(rng))


def _shade(room: _Room, x: float, z: float, width: float, depth: float) -> None:
    """Darkens the floor around something that stands on it."""
    quad = Quad(origin=(x - 0.3, 0.0, z - 0.3), a=EAST, b=NORTH, width=width + 0.6, height=depth + 0.6)
    patch = room.camera.patch(quad)
    if patch is None:
        return
    edge = np.minimum(np.minimum(patch.s, quad.width - patch.s), np.minimum(patch.t, quad.height - patch.t))
    room.canvas.rgb_CHW[:, patch.crop[0], patch.crop[1]] *= 1.0 - 0.6 * np.clip(edge * 2.2, 0.0, 1.0) * patch.inside


def _table(room: _Room, x: float, z: float) -> None:
    rng, high = room.rng, room.rng.uniform(0.45, 0.8)
    width, depth, colour = rng.uniform(0.8, 1.5), rng.uniform(0.5, 0.9), draw_colour(rng, hue=(0.04, 0.12))
    _shade(room, x, z, width, depth)
    for leg_z in (z + depth - 0.07, z):
        for leg_x in (x, x + width - 0.07):
            room.box((leg_x, 0.0, leg_z), (0.07, high, 0.07), WOOD, colour)
    room.box((x, high, z), (width, 0.05, depth), WOOD, colour)
    for _ in range(int(rng.integers(0, 4))):
        thing = (rng.uniform(0.08, 0.3), rng.uniform(0.04, 0.35), rng.uniform(0.08, 0.2))
        spot = (x + rng.uniform(0.0, width - 0.3), high + 0.05, z + rng.uniform(0.0, depth - 0.2))
        room.box(spot, thing, PLAIN, draw_colour(rng))


def _sofa(room: _Room, x: float, z: float) -> None:
    rng, width = room.rng, room.rng.uniform(0.9, 2.0)
    colour = draw_colour(rng, saturation=(0.1, 0.7))
    _shade(room, x, z, width, 0.8)
    room.box((x, 0.08, z + 0.6), (width, rng.uniform(0.6, 0.8), 0.22), CLOTH, colour)
    room.box((x + width - 0.2, 0.08, z), (0.2, 0.52, 0.7), CLOTH, colour)
    room.box((x + 0.2, 0.08, z), (width - 0.4, 0.34, 0.62), CLOTH, colour)
    room.box((x, 0.08, z), (0.2, 0.52, 0.7), CLOTH, colour)
    cushion = draw_colour(rng, saturation=(0.4, 0.9))
    room.box((x + rng.uniform(0.2, width - 0.5), 0.42, z + 0.42), (0.36, 0.32, 0.14), CLOTH, cushion)


def _cupboard(room: _Room, x: float, z: float) -> None:
    rng = room.rng
    width, height = rng.uniform(0.6, 1.4), rng.uniform(0.7, 2.1)
    _shade(room, x, z, width, 0.45)
    front = int(rng.choice([DOORS, BOOKS, WOOD]))
    room.box((x, 0.0, z), (width, height, 0.45), front, draw_colour(rng, hue=(0.02, 0.16)))


def _bed(room: _Room, x: float, z: float) -> None:
    rng = room.rng
    cloth = draw_colour(rng, saturation=(0.1, 0.7))
    _shade(room, x, z, 1.3, 1.6)
    room.box((x, 0.0, z + 1.6), (1.3, 0.9, 0.07), WOOD, draw_colour(rng, hue=(0.04, 0.12)))
    room.box((x, 0.0, z), (1.3, 0.42, 1.6), CLOTH, cloth)
    room.box((x + 0.15, 0.42, z + 1.2), (0.5, 0.12, 0.32), CLOTH, (0.92, 0.91, 0.88))


_FURNITURE = (_table, _table, _sofa, _cupboard, _bed)


def _pattern(patch: Patch, quad: Quad, pattern: int, rng: np.random.Generator) -> Field:
    """Tone of a surface with a pattern, shape (h, w) or, where the pattern has colours, (C, h, w)."""
    s, t = patch.s, patch.t
    left, low = rng.uniform(0, SIDE, size=2).astype(np.float32)
    tone: Field = 1.0 + 0.06 * look_up(fractal(2.0), s * 30.0 + left, t * 30.0 + low)
    if pattern == WOOD:
        plank = np.floor(s * 7.0)
        each = look_up(fractal(0.0), plank + left + SIDE, np.floor(t * 0.8 + plank * 0.37) + low)
        tone = 1.0 + 0.10 * each + 0.13 * look_up(fractal(1.8), s * 90.0 + left, t * 9.0 + low + 40.0 * plank)
        tone -= 0.35 * (s * 7.0 - plank < 0.06)
    elif pattern == TILES:
        rows, columns = s * 3.2, t * 3.2
        checked = (np.floor(rows) + np.floor(columns)) % 2.0
        joint = np.minimum(rows - np.floor(rows), columns - np.floor(columns)) < 0.05
        tone *= 1.0 - rng.uniform(0.0, 0.55) * checked - 0.3 * joint
    elif pattern == STRIPES:
        tone *= 1.0 + rng.uniform(0.05, 0.25) * np.sign(np.sin(s * rng.uniform(12.0, 40.0)))
    elif pattern == DOORS:
        door = np.abs((s / quad.width * 2.0) % 1.0 - 0.5)
        tone *= 1.0 - 0.45 * ((door > 0.46) | (np.abs(t / quad.height - 0.5) > 0.47))
        tone += 1.2 * ((np.abs(door - 0.38) < 0.02) & (np.abs(t / quad.height - 0.5) < 0.06))
    elif pattern == CLOTH:
        weave = np.sin(s * rng.uniform(20.0, 90.0)) * np.sin(t * rng.uniform(20.0, 90.0))
        tone *= 1.0 + 0.16 * weave + 0.08 * look_up(blotches(4.0), s * 60.0 + left, t * 60.0 + low)
    elif pattern in (BOOKS, VIEW):
        return _coloured(patch, quad, pattern, left, low)
    return np.maximum(tone, 0.05)


def _coloured(patch: Patch, quad: Quad, pattern: int, left: float, low: float) -> Field:
    """Tone per colour of a bookcase, or of what a window or a picture shows, shape (C, h, w)."""
    if pattern == BOOKS:
        shelf = np.floor(patch.t * 3.0)
        u, v = np.floor(patch.s * 22.0) + left + SIDE, shelf + low
        tall = patch.t * 3.0 - shelf < 0.72 + 0.10 * look_up(fractal(0.0), u, v)
        tones = [np.where(tall, 1.0 + 0.5 * look_up(fractal(0.0), u + 40.0 * c, v), 0.15) for c in range(3)]
    else:
        horizon = patch.t / quad.height - 0.45 + 0.12 * look_up(fractal(2.6), patch.s * 40.0 + left, patch.t + low)
        leaves = look_up(fractal(1.6), patch.s * 60.0 + left, patch.t * 60.0 + low)
        tones = [np.where(horizon > 0, 1.0, green + 0.2 * leaves) for green in (0.35, 0.5, 0.22)]
    stacked: Field = np.maximum(np.stack(tones), 0.05).astype(np.float32)
    return stacked
