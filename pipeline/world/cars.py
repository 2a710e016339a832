"""Cars: a side profile drawn out to the car's width, so that every view has the right perspective.

The profile runs over the car from tail to nose as points (share of the length, height). Each of its pieces becomes a
quad across the car (boot, windows, roof, bonnet, ends); the two sides are quads cut out along the profile.

Shapes: h, w those of a quad's crop; C = 3 colours.
"""

import math
from dataclasses import dataclass

import numpy as np

from pipeline.world.camera import UP, Camera, Patch, Quad, Vector, dot, opposite, step
from pipeline.world.canvas import Canvas, Colour, reflectances
from pipeline.world.light import Light
from pipeline.world.noise import Bytes, Field, Mask
from pipeline.world.styles import CAR, Style

PAINT, GLASS, TYRE, HUB, DARK, TAIL_LAMP, HEAD_LAMP, PLATE = range(8)
CLEARANCE = 0.22  # metres under the body
WHEEL = 0.33  # radius in metres


@dataclass(frozen=True, kw_only=True, slots=True)
class Body:
    """The shape of a car; profile points are (share of the length from the tail, height in metres)."""

    length: float
    width: float
    belt: float
    """Height at which the side windows begin."""
    profile: tuple[tuple[float, float], ...]
    panes: frozenset[int]
    """Which pieces of the profile are glass, counted from the tail."""


SALOON = Body(
    length=4.5, width=1.80, belt=0.92, panes=frozenset({2, 4}),
    profile=((0.0, 0.3), (0.0, 0.88), (0.13, 0.95), (0.27, 1.42), (0.56, 1.45), (0.73, 0.95), (0.98, 0.80), (1.0, 0.3)),
)  # fmt: skip
HATCHBACK = Body(
    length=4.0, width=1.75, belt=0.94, panes=frozenset({1, 3}),
    profile=((0.0, 0.3), (0.0, 0.92), (0.11, 1.44), (0.55, 1.50), (0.76, 0.98), (0.98, 0.82), (1.0, 0.3)),
)  # fmt: skip
OFFROADER = Body(
    length=4.6, width=1.90, belt=1.10, panes=frozenset({1, 3}),
    profile=((0.0, 0.35), (0.0, 1.10), (0.06, 1.66), (0.62, 1.70), (0.76, 1.15), (0.98, 1.02), (1.0, 0.35)),
)  # fmt: skip
VAN = Body(
    length=5.4, width=2.00, belt=1.30, panes=frozenset({3}),
    profile=((0.0, 0.35), (0.0, 1.50), (0.01, 2.35), (0.76, 2.40), (0.90, 1.35), (0.99, 1.10), (1.0, 0.35)),
)  # fmt: skip
BUS = Body(
    length=10.5, width=2.50, belt=1.25, panes=frozenset({1, 3}),
    profile=((0.0, 0.35), (0.0, 1.40), (0.005, 2.90), (0.985, 2.95), (1.0, 1.20), (1.0, 0.35)),
)  # fmt: skip
SHORT, LONG = (SALOON, HATCHBACK, OFFROADER), (VAN, BUS)


_PANE, _RUBBER, _PLASTIC = (0.24, 0.27, 0.30), (0.10, 0.10, 0.10), (0.15, 0.15, 0.16)
_RED, _WHITE, _YELLOW = (0.75, 0.12, 0.10), (0.90, 0.90, 0.84), (0.85, 0.83, 0.72)


@dataclass(frozen=True, kw_only=True, slots=True)
class Car:
    """One car on the ground."""

    body: Body
    x: float
    z: float
    heading: float
    """Direction in which it drives, in radians from the z axis towards x."""
    colours: Field
    """Reflectances of its materials, shape (C, M)."""
    sunlit: float

    @property
    def ahead(self) -> Vector:
        """Unit vector to the nose."""
        return math.sin(self.heading), 0.0, math.cos(self.heading)

    @property
    def side(self) -> Vector:
        """Unit vector to its right side."""
        return math.cos(self.heading), 0.0, -math.sin(self.heading)


def draw_car(style: Style, rng: np.random.Generator, *, x: float, z: float, heading: float, sunlit: float) -> Car:
    """A random car at a place, its nose within a few degrees of ``heading``."""
    kinds = LONG if rng.random() < style.long_cars else SHORT
    paint = style.paints[int(rng.integers(len(style.paints)))]
    level, rim = rng.uniform(0.75, 1.15), rng.uniform(0.3, 0.75)
    body: Colour = (paint[0] * level, paint[1] * level, paint[2] * level)
    return Car(
        body=kinds[int(rng.integers(len(kinds)))],
        x=x,
        z=z,
        heading=heading + rng.normal(0.0, 0.03),
        colours=reflectances([body, _PANE, _RUBBER, (rim, rim, rim), _PLASTIC, _RED, _WHITE, _YELLOW]),
        sunlit=sunlit,
    )


def paint_car(canvas: Canvas, camera: Camera, car: Car, light: Light) -> None:
    """Paints the faces of a car that the camera sees."""
    for piece, quad in _strips(car, camera):
        patch = camera.patch(quad)
        if patch is not None:
            material, tone = _strip(patch, quad, car.body, piece)
            _cover(canvas, patch, patch.inside, (material, tone), car, light, quad.normal)
    for reverse, quad in _sides(car):
        patch = camera.patch(quad)
        if patch is not None:
            inside, material, tone = _side(patch, car.body, reverse=reverse)
            _cover(canvas, patch, inside, (material, tone), car, light, quad.normal)


def _cover(
    canvas: Canvas, patch: Patch, inside: Mask, look: tuple[Bytes, Field], car: Car, light: Light, normal: Vector
) -> None:
    material, tone = look
    radiance = car.colours.take(material, axis=1) * tone * light.on(normal, sunlit=car.sunlit)
    # Paint and glass mirror the sky, the more the flatter the ray and the higher they look.
    mirror = np.where(material == GLASS, np.float32(0.15), np.float32(0.04)) * (material <= GLASS) * tone
    radiance += mirror * (light.horizon_C * (0.4 + 0.6 * max(normal[1], 0.0)))[:, None, None]
    if light.night:
        lamp = (material == TAIL_LAMP) | (material == HEAD_LAMP)
        np.copyto(radiance, car.colours.take(material, axis=1) * 1.5, where=lamp)
    canvas.paint(patch.crop, inside, radiance, depth=patch.depth, label=CAR)


def _strips(car: Car, camera: Camera) -> list[tuple[int, Quad]]:
    """The pieces across the car as quads, far ends first, each with its index from the tail."""
    body, ahead, side = car.body, car.ahead, car.side
    strips = []
    for piece, (start, end) in enumerate(zip(body.profile[:-1], body.profile[1:], strict=True)):
        run, rise = (end[0] - start[0]) * body.length, end[1] - start[1]
        length = math.hypot(run, rise)
        up: Vector = (ahead[0] * run / length, rise / length, ahead[2] * run / length)
        middle = step((car.x, start[1], car.z), ahead, (start[0] - 0.5) * body.length)
        corner = step(middle, side, -body.width / 2)
        strips.append((piece, Quad(origin=corner, a=side, b=up, width=body.width, height=length)))
    tail_first = dot(step(camera.position, (car.x, 0.0, car.z), -1.0), ahead) > 0
    return strips if tail_first else strips[::-1]


def _sides(car: Car) -> list[tuple[bool, Quad]]:
    """The two sides, each with whether its s runs from the nose instead of the tail."""
    body, ahead, side = car.body, car.ahead, car.side
    tail = step((car.x, 0.0, car.z), ahead, -body.length / 2)
    nose = step((car.x, 0.0, car.z), ahead, body.length / 2)
    height = max(height for _, height in body.profile)
    right = Quad(origin=step(tail, side, body.width / 2), a=ahead, b=UP, width=body.length, height=height)
    left = Quad(origin=step(nose, side, -body.width / 2), a=opposite(ahead), b=UP, width=body.length, height=height)
    return [(False, right), (True, left)]


def _strip(patch: Patch, quad: Quad, body: Body, piece: int) -> tuple[Bytes, Field]:
    """Material and tone of one piece across the car, shape (h, w) each."""
    x = np.abs(patch.s - quad.width / 2) * (2.0 / quad.width)
    t = patch.t * (1.0 / quad.height)
    material = np.zeros(x.shape, dtype=np.uint8)
    tone = 0.92 + 0.14 * t
    last = len(body.profile) - 2
    if piece in body.panes:
        material[(x < 0.9) & (t > 0.06) & (t < 0.94)] = GLASS
        tone = tone + 0.5 * (t - 0.3) * (material == GLASS)
    elif piece == 0:
        material[(t < 0.3) | ((t < 0.42) & (x > 0.9))] = DARK
        material[(x > 0.66) & (x < 0.96) & (t > 0.62) & (t < 0.9)] = TAIL_LAMP
        material[(x < 0.28) & (t > 0.45) & (t < 0.66)] = PLATE
    elif piece == last:  # t runs down the nose
        material[(t > 0.72) | ((x < 0.55) & (t > 0.2) & (t < 0.5))] = DARK
        material[(x > 0.6) & (x < 0.95) & (t > 0.12) & (t < 0.42)] = HEAD_LAMP
        material[(x < 0.28) & (t > 0.55) & (t < 0.72)] = PLATE
    tone[x > 0.97] *= 0.75
    return material, tone


def _side(patch: Patch, body: Body, *, reverse: bool) -> tuple[Mask, Bytes, Field]:
    """Outline, material and tone of a side, shape (h, w) each."""
    length = body.length - patch.s if reverse else patch.s
    share, height = length * (1.0 / body.length), patch.t
    top = np.interp(share, *_outline(body)).astype(np.float32)
    material = np.zeros(height.shape, dtype=np.uint8)
    tone = 0.72 + 0.32 * np.clip(height * (1.0 / body.belt), 0.0, 1.0)
    pillar = (np.abs(length % 1.25 - 0.6) > 0.08) & (share > 0.06)
    material[(height > body.belt) & (height < top - 0.10) & pillar] = GLASS
    tone[(np.abs(length % 1.25 - 0.6) < 0.02) & (height < body.belt)] = 0.5
    material[height < 0.36] = DARK
    axle = np.minimum(np.abs(share - 0.17), np.abs(share - 0.81)) * body.length
    radius = np.hypot(axle, height - WHEEL)
    material[radius < WHEEL + 0.05] = DARK
    material[radius < WHEEL] = TYRE
    material[radius < 0.62 * WHEEL] = HUB
    inside = patch.inside & (height < top) & ((height > CLEARANCE) | (radius < WHEEL))
    return inside, material, tone


def _outline(body: Body) -> tuple[list[float], list[float]]:
    """The profile as shares and heights; where it rises upright its shares still have to grow for interpolation."""
    shares = [share + 1e-4 * index for index, (share, _) in enumerate(body.profile)]
    return shares, [height for _, height in body.profile]
