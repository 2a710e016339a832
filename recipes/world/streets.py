"""A street scene: who stands where, and the drawing from far to near.

Shapes: C = 3 colours, H rows, W columns, N polygons of P points, S and F the bays and floors of a wall.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from paint import Bytes, Points, Range, draw_colour, ellipse, palette, pick
from styles import Style
from view import BUILDING, CAR, PAVEMENT, PERSON, POLE, ROAD, TREE, UP, VOID, View

Thing = tuple[float, Callable[[], None]]  # something upright: its distance along the street, and its drawing


class Body(NamedTuple):
    """The shape of a car. Points of its profile, from tail to nose, are (share of the length, height)."""

    length: float
    width: float
    sill: float  # height at which the side windows begin
    panes: tuple[int, ...]  # which pieces of the profile are glass
    profile: tuple[Range, ...]


SALOON = Body(4.5, 1.8, 0.9, (2, 4), (
    (0, 0.3), (0, 0.88), (0.13, 0.95), (0.27, 1.42), (0.56, 1.45), (0.73, 0.95), (0.98, 0.8), (1, 0.3)
))  # fmt: skip
HATCHBACK = Body(4.0, 1.75, 0.92, (1, 3), (
    (0, 0.3), (0, 0.92), (0.11, 1.44), (0.55, 1.5), (0.76, 0.98), (0.98, 0.82), (1, 0.3)
))  # fmt: skip
VAN = Body(5.4, 2.0, 1.3, (3,), ((0, 0.35), (0, 1.5), (0.01, 2.35), (0.76, 2.4), (0.9, 1.35), (0.99, 1.1), (1, 0.35)))
BUS = Body(10.5, 2.5, 1.25, (1, 3), ((0, 0.35), (0, 1.4), (0.005, 2.9), (0.985, 2.95), (1, 1.2), (1, 0.35)))
GLASS, RUBBER, TAIL_LAMP, HEAD_LAMP = np.array(palette("384048 161616 c83020 e8e4d0"), dtype=np.float64)
SKINS, HAIR = palette("e8b996 c68e65 8d5a3b f2cfb0 5c3a28"), palette("2b1d14 5a3d22 8c6b3a 1a1a1c 9a9a98")
STEEL, ROOFS = palette("6b6e70 3c4043 8a8d8f 4b5a4c"), palette("6e3f33 4a4a4d 7a5a48 5a3a34")


@dataclass(frozen=True, kw_only=True, slots=True)
class Street:
    """The plan of one street, and the view of it."""

    view: View
    style: Style
    rng: np.random.Generator
    half: float  # half of the road's width
    facade: float  # distance of the facades from the middle of the road
    bend: float
    end: float
    crossing: Range  # z at which a side street begins and ends; infinite without a side street

    def middle(self, z: float) -> float:
        """X of the middle of the road."""
        return self.bend * z * min(z, 80.0)

    def places(self, counts: tuple[int, int], reach: float, power: float) -> Iterator[tuple[float, int]]:
        """Random distances z, more of them near the camera, each with a side of the street."""
        for _ in range(int(self.rng.integers(counts[0], counts[1] + 1))):
            yield 3.2 + reach * self.rng.random() ** power, pick(self.rng, (-1, 1))

    def crowded(self, x: float, z: float, clear: float = 9.0) -> bool:
        """Whether a thing there would fill the picture: straight before the camera and nearer than ``clear``."""
        return z < clear and abs(x - self.view.position[0]) < 1.6


def render_street(rng: np.random.Generator, *, style: Style, height: int, width: int) -> tuple[Bytes, Bytes]:
    """A photograph of a street, shape (H, W, C) in 0..255, and its class ids, shape (H, W)."""
    half, pavement = rng.uniform(*style.road), rng.uniform(*style.pavement)
    reach = half * 0.6 if rng.random() < 0.6 else 0.8 * (half + pavement)
    start = rng.uniform(7.0, 32.0) if rng.random() < style.crossing else math.inf
    street = Street(
        view=View(rng, style, height, width, rng.uniform(-reach, reach)),
        style=style,
        rng=rng,
        half=half,
        facade=half + pavement,
        bend=rng.uniform(*style.bend),
        end=rng.uniform(45.0, 130.0),
        crossing=(start, start + rng.uniform(5.0, 9.0)),
    )
    _lay_ground(street)
    things = [*_houses(street), *_cars(street), *_figures(street)]
    street.view.light_ground()
    for _, draw in sorted(things, key=lambda thing: -thing[0]):
        draw()
    return street.view.develop()


def _lay_ground(street: Street) -> None:
    """Draw pavement, kerbs, road and markings."""
    view, rng, half, (begin, end) = street.view, street.rng, street.half, street.crossing
    road, paving = (np.array(mean) * rng.uniform(0.85, 1.15) + rng.normal(0.0, 5.0, 3) for mean in street.style.ground)
    if rng.random() < 0.12:
        paving = road * rng.uniform(0.95, 1.05)

    def band(near: float, far: float, colour: ArrayLike, label: int) -> None:
        """Draw a band across the street between two distances."""
        view.ground([(-400, near), (400, near), (400, far), (-400, far)], colour, label)

    def lane(left: float, right: float, near: float, far: float, colour: ArrayLike, label: int = ROAD) -> None:
        """Draw a strip along the street between two distances, sideways from its middle."""
        z = [near, *(step for step in (*range(0, 60, 4), 75, 100, 150) if near < step < far), far]
        edges = [[(street.middle(at) + side, at) for at in z] for side in (left, right)]
        view.ground([*edges[0], *edges[1][::-1]], colour, label)

    band(-5.0, 400.0, paving, PAVEMENT)
    if rng.random() < 0.6:
        for z in np.arange(1.0, 30.0, rng.uniform(0.8, 1.8)):
            band(z, z + 0.06, paving * 0.82, PAVEMENT)
    lane(-half - 0.2, half + 0.2, -4.0, 400.0, paving * rng.uniform(0.7, 1.25), PAVEMENT)
    if begin < math.inf:
        band(begin, end, road, ROAD)
    lane(-half, half, -4.0, 400.0, road)
    if rng.random() > street.style.marked:
        return
    paint, dash, thick = road + rng.uniform(60.0, 120.0), rng.uniform(2.0, 6.0), rng.uniform(0.06, 0.12)
    for z in np.arange(rng.uniform(-4.0, 0.0), 90.0, dash * pick(rng, (1.0, 2.0, 2.0, 2.0))):
        if z + dash < begin or z > end:
            lane(-thick, thick, z, z + dash, paint)
    if rng.random() < 0.5:
        for side in (-1, 1):
            lane(side * (half - 0.3), side * (half - 0.42), -4.0, min(begin, 120.0), paint)
    if begin < math.inf or rng.random() < 0.25:
        zebra = begin - 4.0 if begin < math.inf else rng.uniform(5.0, 25.0)
        for x in np.arange(0.3 - half, half - 0.6, 1.1):
            lane(x, x + 0.55, zebra, zebra + 3.0, paint)


def _houses(street: Street) -> Iterator[Thing]:
    """The houses along both sides, and those across the far end."""
    style, rng, (begin, end) = street.style, street.rng, street.crossing
    for side in (-1, 1):
        near = rng.uniform(-14.0, -4.0)
        while near < street.end:
            far = near + rng.uniform(*style.frontage)
            crossed = near < end and far > begin
            far = begin if crossed else far
            if far - near > 3.5 and rng.random() < style.built:
                house, setback = House(street), max(0.0, rng.uniform(-1.2, 1.0))
                face = street.middle(max(near + far, 0.0) / 2) + side * (street.facade + setback)
                if street.view.to_sun[0] * side > 0:
                    foot = np.array([(face, near), (face, far)])
                    street.view.shadow([*foot, *(foot[::-1] + street.view.shift(house.height))])
                yield far, partial(house.draw, side, face, near, far)
            near = end if crossed else far + max(0.0, rng.uniform(-30.0, 6.0))
    if rng.random() < 0.55 * style.built:
        left = street.middle(street.end) - 30.0
        while left < street.middle(street.end) + 30.0:
            wide, near = rng.uniform(*style.frontage), street.end + rng.uniform(0.0, 6.0)
            yield near, partial(House(street).wall, (left, 0.0, near), (1.0, 0.0, 0.0), (0.0, 0.0, -1.0), wide)
            left += wide


class House:
    """One house: what its walls look like."""

    def __init__(self, street: Street) -> None:
        rng, style = street.rng, street.style
        self.view, self.rng = street.view, rng
        self.floors, self.storey = int(rng.integers(style.storeys[0], style.storeys[1] + 1)), rng.uniform(2.8, 3.6)
        self.height, self.bay = self.floors * self.storey + rng.uniform(0.6, 1.6), rng.uniform(1.6, 3.4)
        self.colour = np.array(pick(rng, style.walls)) * rng.uniform(0.8, 1.15) + rng.normal(0.0, 6.0, 3)
        self.trim = np.clip(self.colour * pick(rng, (0.6, 0.8, 1.3)), 0, 245)
        glass = rng.random() < style.glass
        self.open = rng.uniform(*((0.75, 0.92) if glass else (0.32, 0.62)), size=2)  # share of a bay that is window
        self.shop = draw_colour(rng, saturation=(0.3, 0.9), value=(0.2, 0.7)) if rng.random() < 0.3 else None
        self.roof = np.array(pick(rng, ROOFS)) if self.floors < 5 and rng.random() < 0.5 else None

    def draw(self, side: int, face: float, near: float, far: float) -> None:
        """Draw the end wall that the camera may see, and the front."""
        if near > 1.0:
            self.wall((face, 0.0, near), (side, 0.0, 0.0), (0.0, 0.0, -1.0), 10.0)
        self.wall((face, 0.0, near), (0.0, 0.0, 1.0), (-side, 0.0, 0.0), far - near)

    def wall(self, corner: ArrayLike, along: ArrayLike, normal: ArrayLike, length: float) -> None:
        """Draw one wall from its lower corner ``along`` a unit vector."""
        view, rng, light, along = self.view, self.rng, self.view.light(normal), np.array(along)
        boxes_N4: list[Points] = []
        colours_NC: list[Points] = []

        def boxes(s: ArrayLike, t: ArrayLike, wide: float, high: float, colours: ArrayLike) -> None:
            """Add rectangles of one size with their lower corners at (s, t) of the wall."""
            lower = np.stack([part.ravel() for part in np.broadcast_arrays(s, t)], axis=1)
            boxes_N4.append(lower[:, None] + np.array([(0.0, 0.0), (wide, 0.0), (wide, high), (0.0, high)]))
            colours_NC.append(np.broadcast_to(colours, (len(lower), 3)) * light)

        bays = max(1, round(length / self.bay))
        bay, count = length / bays, bays * self.floors
        s_S, t_F1 = np.arange(bays) * bay, np.arange(self.floors)[:, None] * self.storey + 0.5
        wide, high = self.open * (bay, self.storey)
        s, t = s_S + (bay - wide) / 2, t_F1 + (self.storey - high) / 2
        panes = GLASS * rng.uniform(0.5, 1.3, (count, 1)) + view.haze / light * rng.uniform(0.02, 0.35, (count, 1))
        if view.night:
            panes = np.where(rng.random((count, 1)) < 0.4, np.array([170.0, 125.0, 65.0]) / light, panes)
        boxes(s_S, 0.0, bay + 0.02, self.height, self.colour)
        boxes(s - 0.08, t - 0.12, wide + 0.16, high + 0.2, self.trim)
        boxes(s, t, wide, high, panes)
        boxes(0.0, self.height - 0.35, length, 0.35, self.trim)
        if self.shop is None:
            boxes(0.0, 0.0, length, 0.5, self.colour * 0.7)
            boxes(bay * (rng.integers(bays) + 0.2), 0.0, 1.1, 2.2, self.trim * 0.6)
        else:
            boxes(0.0, 0.0, length, 3.3, GLASS * 0.8)
            boxes(0.0, 2.6, length, 0.8, self.shop)
        st_N4 = np.concatenate(boxes_N4)
        view.polygons(corner + st_N4[..., :1] * along + st_N4[..., 1:] * UP, np.concatenate(colours_NC), BUILDING)
        if self.roof is not None:
            corners_43 = (
                np.array([0.0 * along, along * length, along * length, 0.0 * along]) + corner + self.height * UP
            )
            corners_43[2:] += 2.4 * UP - 3.0 * np.array(normal)
            view.polygons([corners_43], [self.roof * view.light(UP)], BUILDING)


def _cars(street: Street) -> Iterator[Thing]:
    """Cars along the kerbs, in the lanes, of which the right one leads away, and in the side street."""
    rng, style, (begin, end) = street.rng, street.style, street.crossing
    places: list[tuple[float, float, float]] = []
    for side in (-1, 1):
        taken = style.parked * (rng.random() < 0.65)
        for z in np.arange(rng.uniform(3.0, 9.0), 60.0, rng.uniform(5.6, 8.0)):
            if rng.random() < taken and not begin - 6.0 < z < end + 4.0:
                places.append((street.middle(z) + side * (street.half - 1.05), z, math.pi * (side < 0)))
    for z, side in street.places(style.cars, 50.0, 1.6):
        if begin < math.inf and rng.random() < 0.25:
            places.append((rng.uniform(-9.0, 9.0), rng.uniform(begin + 1.2, end - 1.2), side * math.pi / 2))
        else:
            places.append((street.middle(z) + side * street.half * rng.uniform(0.3, 0.45), z, math.pi * (side < 0)))
    for x, z, heading in places:
        if z > 4.5 and not street.crowded(x, z):
            body = pick(rng, (VAN, BUS) if rng.random() < style.long_cars else (SALOON, HATCHBACK))
            heading += 2.0 * street.bend * z + rng.normal(0.0, 0.04)
            for height in (0.0, 0.7):
                shape = ellipse(x, z, 0.54 * body.length, 0.6 * body.width, math.pi / 2 - heading)
                street.view.shadow(shape, height)
            yield z, partial(_car, street, body, np.array([x, 0.0, z]), heading)


def _car(street: Street, body: Body, base: Points, heading: float) -> None:
    """Draw the faces of a car that the camera sees: the pieces of the profile across it, and its two sides."""
    view, paint = street.view, np.array(pick(street.rng, street.style.paints)) * street.rng.uniform(0.75, 1.15)
    sin, cos = math.sin(heading), math.cos(heading)
    ahead, right = np.array([sin, 0.0, cos]), np.array([cos, 0.0, -sin])

    def at(points_P3: ArrayLike) -> Points:
        """Points (share of the length, share of half the width, height) in the world."""
        share, across, height = np.asarray(points_P3, dtype=np.float64).T[..., None]
        return base + (share - 0.5) * body.length * ahead + across * body.width / 2 * right + height * UP

    faces: list[list[tuple[Points, Points]]] = []
    for piece, ((tail, low), (nose, high)) in enumerate(pairwise(body.profile)):
        colour = GLASS + 0.2 * view.haze if piece in body.panes else paint
        faces.append([(at([(tail, -1, low), (tail, 1, low), (nose, 1, high), (nose, -1, high)]), colour)])
    for end, lamp, parts in ((0, TAIL_LAMP, faces[0]), (1, HEAD_LAMP, faces[-1])):
        parts += [(at([(end, a, 0.6), (end, a * 0.6, 0.6), (end, a * 0.6, 0.8), (end, a, 0.8)]), lamp) for a in (-1, 1)]
    top = max(height for _, height in body.profile)
    cabin = [share for share, height in body.profile if height > body.sill + 0.3]
    for side in (-1, 1):
        parts = [(at([(share, side, height) for share, height in body.profile]), paint * 0.92)]
        for start, end in pairwise(np.linspace(cabin[0] + 0.02, cabin[-1] + 0.04, round(body.length / 1.6) + 1)):
            sill, lintel = (side, body.sill), (side, top - 0.14)
            parts.append((at([(start, *sill), (end - 0.02, *sill), (end - 0.03, *lintel), (start, *lintel)]), GLASS))
        for share in (0.2, 0.8):
            for radius, colour in ((0.33, RUBBER), (0.18, RUBBER * 5.0)):
                wheel = ellipse(share, 0.33, radius / body.length, radius, corners=10)
                parts.append((at(np.insert(wheel, 1, side, axis=1)), colour))
        faces.append(parts)
    for parts in sorted(faces, key=lambda parts: -np.linalg.norm(parts[0][0].mean(axis=0) - view.position)):
        outline, centre = parts[0][0], parts[0][0].mean(axis=0)
        normal = np.cross(outline, np.roll(outline, -1, axis=0)).sum(axis=0)
        normal *= np.sign(normal @ (centre - base - top / 2 * UP)) / np.linalg.norm(normal)
        if normal @ (view.position - centre) > 0:
            for points, colour in parts:
                view.polygons([points], [colour * view.light(normal)], CAR)


class Card:
    """An upright board at a place of the ground that faces the camera; s runs to the right and t up, in metres."""

    def __init__(self, street: Street, x: float, z: float, label: int) -> None:
        self.view, self.rng, self.style, self.label = street.view, street.rng, street.style, label
        self.base = np.array([x, 0.0, z])
        self.light = street.view.light((0.0, 0.3, -0.95)) * street.rng.uniform(0.85, 1.2)

    def fill(self, shapes_NP2: ArrayLike, colours_NC: ArrayLike) -> None:
        """Draw polygons (s, t)."""
        shapes_NP2 = np.asarray(shapes_NP2, dtype=np.float64)
        points_NP3 = self.base + shapes_NP2[..., :1] * self.view.level + shapes_NP2[..., 1:] * UP
        self.view.polygons(points_NP3, np.broadcast_to(colours_NC, (len(points_NP3), 3)) * self.light, self.label)

    def bar(self, s: float, t: float, u: float, v: float, thick: float, colour_C: ArrayLike) -> None:
        """Draw a straight bar from (s, t) to (u, v)."""
        a, b = np.array([t - v, u - s]) / math.hypot(u - s, v - t) * thick / 2
        self.fill([[(s - a, t - b), (s + a, t + b), (u + a, v + b), (u - a, v - b)]], colour_C)

    def disc(self, t: float, radius: float, colour_C: ArrayLike, corners: int = 10) -> None:
        """Draw a disc or a plate of a few corners at a height, the first corner on top."""
        self.fill([ellipse(0.0, t, radius, radius, math.pi / 2, corners)], colour_C)


def _figures(street: Street) -> Iterator[Thing]:
    """Trees, persons, poles and bins, each kind at its own distances from the middle of the road."""
    rng, style, half, facade = street.rng, street.style, street.half, street.facade
    for kind, draw, counts, reach, clear, kerb, shadow in (
        (TREE, _tree, style.trees, 60.0, 9.0, (0.7, half + 0.6, half + 1.1, facade, facade + 8.0), (1.8, 4.0)),
        (PERSON, _person, style.persons, 18.0, 4.5, (0.75, half + 0.4, facade - 0.3, 0.0, half), (0.3, 1.2)),
        (POLE, _pole, style.poles, 26.0, 6.0, (1.0, half + 0.25, half + 0.7, 0.0, 0.0), (0.2, 0.3)),
        (VOID, _bin, style.clutter, 22.0, 9.0, (1.0, facade - 1.0, facade - 0.4, 0.0, 0.0), (0.5, 0.3)),
    ):
        for z, side in street.places(counts, reach, 1.5):
            usual, *bounds = kerb
            low, high = bounds[:2] if rng.random() < usual else bounds[2:]
            x = street.middle(z) + side * rng.uniform(low, high)
            if not street.crowded(x, z, clear):
                street.view.shadow(ellipse(x, z, shadow[0], shadow[0]), shadow[1])
                yield z, partial(draw, Card(street, x, z, kind))


def _tree(card: Card) -> None:
    rng, size = card.rng, card.rng.uniform(4.0, 9.5)
    leaves, trunk = np.array(pick(rng, card.style.leaves)), np.array([82.0, 68.0, 54.0]) * rng.uniform(0.7, 1.2)
    card.bar(0.0, 0.0, rng.uniform(-0.2, 0.2), 0.6 * size, 0.045 * size, trunk)
    count, flat = int(rng.integers(30, 70)), rng.uniform(0.7, 1.1)
    angle, radius = rng.uniform(0.0, 2.0 * math.pi, count), np.sqrt(rng.random(count))
    s_N, t_N = 0.27 * size * radius * np.cos(angle), (0.68 + 0.3 * flat * radius * np.sin(angle)) * size
    blobs = ellipse(0.0, 0.0, 0.075 * size, 0.06 * size, corners=7) + np.stack([s_N, t_N], axis=1)[:, None]
    tones = 0.55 + 0.6 * (t_N / size - 0.35) + rng.normal(0.0, 0.13, count)
    card.fill(blobs + rng.normal(0.0, 0.012 * size, blobs.shape), leaves * np.clip(tones, 0.3, 1.5)[:, None])


def _person(card: Card) -> None:
    rng = card.rng
    tall, wide, stride = rng.uniform(1.5, 1.9), rng.uniform(0.85, 1.2), rng.uniform(0.02, 0.3)
    coat, legs = (draw_colour(rng, saturation=(0.0, 0.8), value=(0.1, high)) for high in (0.95, 0.6))
    for side in (-1, 1):
        card.bar(side * stride, 0.0, side * 0.08, 0.5 * tall, 0.15 * wide, legs * (0.9 + 0.1 * side))
        card.bar(side * (0.24 + 0.5 * stride), 0.46 * tall, side * 0.2 * wide, 0.8 * tall, 0.11 * wide, coat * 0.85)
    card.bar(0.0, pick(rng, (0.28, 0.45, 0.45)) * tall, 0.0, 0.82 * tall, 0.42 * wide, coat)
    card.disc(0.935 * tall, 0.11, pick(rng, HAIR))
    card.disc(0.905 * tall, 0.095, pick(rng, (*SKINS, *HAIR)))


def _pole(card: Card) -> None:
    """A street lamp, a traffic light or a sign."""
    rng, steel, kind = card.rng, pick(card.rng, STEEL), int(card.rng.integers(3))
    tall = (rng.uniform(5.0, 8.0), 3.1, rng.uniform(2.4, 3.2))[kind]
    card.bar(0.0, 0.0, 0.0, tall, 0.17 if kind < 2 else 0.12, steel)
    if kind == 0:
        arm = pick(rng, (-1.3, 1.3))
        card.bar(0.0, tall, arm, tall + 0.25, 0.1, steel)
        card.bar(0.6 * arm, tall + 0.15, 1.15 * arm, tall + 0.25, 0.22, (205, 200, 180))
    elif kind == 1:
        card.bar(0.0, 2.2, 0.0, 3.1, 0.36, (28, 30, 30))
        lit = int(rng.integers(3))
        for lamp, colour in enumerate(palette("2fbf5b e0a92e d8322a")):
            card.disc(2.36 + 0.29 * lamp, 0.12, np.array(colour) * (1.0 if lamp == lit else 0.3))
    else:
        corners = pick(rng, (3, 4, 12))
        card.disc(tall, 0.36, pick(rng, palette("d02020 2a55c0 e0b020")), corners)
        card.disc(tall, 0.22, pick(rng, palette("e8e8e6 2f55a5")), corners)


def _bin(card: Card) -> None:
    rng, colour = card.rng, draw_colour(card.rng, value=(0.15, 0.6))
    card.bar(0.0, 0.0, 0.0, rng.uniform(0.8, 1.3), rng.uniform(0.4, 0.8), colour)
