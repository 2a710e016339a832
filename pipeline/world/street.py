"""The plan of one street: carriageway, pavements, plots, and the shadow that its buildings cast.

The street runs along z and bends sideways by ``bend * z * min(z, 80)``; a point's ``across`` is its x without the
bend. Buildings are upright boxes along it. A point is in their shadow where the ray to the sun meets a facade line
below the building's top, which :meth:`Street.sunlit` looks up in a table of heights per metre of street.

Shapes: h, w those of a crop.
"""

from dataclasses import dataclass

import numpy as np

from pipeline.world.camera import Vector
from pipeline.world.noise import Field
from pipeline.world.styles import Range, Style

FIRST, LAST = -60, 260  # metres along the street that the table of heights covers


@dataclass(frozen=True, kw_only=True, slots=True)
class Building:
    """One house: a box whose front faces the street, or the camera where it closes the street."""

    side: int
    """-1 left of the street, +1 right of it, 0 across its end."""
    near: float
    far: float
    face: float
    """x of the front; for a building across the end, of its left edge."""
    height: float
    width: float
    """Length of the end wall; for a building across the end, of its front."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Street:
    """The plan of one street; lengths in metres."""

    half_width: float
    pavement: float
    bend: float
    crossing: Range | None
    """z at which a side street begins and ends."""
    end: float
    buildings: tuple[Building, ...]
    heights: Field
    """Heights of the buildings, shape (2, LAST - FIRST): left and right, per metre."""

    @property
    def facade(self) -> float:
        """Distance of the facades from the middle of the road."""
        return self.half_width + self.pavement

    def offset(self, z: float) -> float:
        """X of the middle of the road."""
        return self.bend * z * min(z, 80.0)

    def sunlit(self, x: Field | float, y: Field | float, z: Field, sun: Vector) -> Field:
        """How far points see the sun past the buildings, 0..1, in the shape of ``z``; ``x`` is without the bend."""
        side = 0 if sun[0] < 0 else 1
        lean = max(abs(sun[0]), 1e-3)
        to_facade = np.maximum(self.facade + x if side == 0 else self.facade - x, 0.0) * (1.0 / lean)
        reach = np.minimum(to_facade, 200.0)
        bins = np.clip(z + reach * sun[2] - FIRST, 0, LAST - FIRST - 1).astype(np.int32)
        gap = y + reach * sun[1] - self.heights[side].take(bins)
        lit: Field = np.clip(gap * 2.5 + 0.5, 0.0, 1.0)
        return lit


def draw_street(style: Style, rng: np.random.Generator) -> Street:
    """A random street."""
    half_width, pavement = rng.uniform(*style.road_half_width), rng.uniform(*style.pavement_width)
    bend, end = rng.uniform(*style.bend), rng.uniform(45.0, 130.0)
    start = rng.uniform(7.0, 32.0)
    crossing = (start, start + rng.uniform(5.0, 9.0)) if rng.random() < style.crossing else None
    buildings: list[Building] = []
    for side in (-1, 1):
        buildings += _row(side, style, rng, facade=half_width + pavement, bend=bend, end=end, crossing=crossing)
    heights = np.zeros((2, LAST - FIRST), dtype=np.float32)
    for building in buildings:
        heights[(building.side + 1) // 2, round(building.near) - FIRST : round(building.far) - FIRST] = building.height
    if rng.random() < 0.55 * style.built:
        buildings += _closing(style, rng, end=end, middle=bend * end * min(end, 80.0))
    return Street(
        half_width=half_width,
        pavement=pavement,
        bend=bend,
        crossing=crossing,
        end=end,
        buildings=tuple(buildings),
        heights=heights,
    )


def _row(
    side: int, style: Style, rng: np.random.Generator, *, facade: float, bend: float, end: float, crossing: Range | None
) -> list[Building]:
    """The houses along one side, near to far."""
    row: list[Building] = []
    near = rng.uniform(-14.0, -4.0)
    while near < end:
        far = near + rng.uniform(*style.frontage)
        if crossing and near < crossing[1] and far > crossing[0]:
            far = crossing[0]
        middle = max((near + far) / 2, 0.0)
        if far - near > 3.5 and rng.random() < style.built:
            setback = rng.uniform(0.0, 1.2) * (rng.random() < 0.4)
            face = side * (facade + setback) + bend * middle * min(middle, 80.0)
            height = _height(style, rng)
            row.append(Building(side=side, near=near, far=far, face=face, height=height, width=rng.uniform(7.0, 13.0)))
        gap = rng.uniform(2.0, 7.0) if rng.random() < 0.15 else 0.0
        near = crossing[1] if crossing and far == crossing[0] else far + gap
    return row


def _closing(style: Style, rng: np.random.Generator, *, end: float, middle: float) -> list[Building]:
    """Houses across the far end of the street."""
    houses: list[Building] = []
    left = middle - 30.0
    while left < middle + 30.0:
        width, near = rng.uniform(*style.frontage), end + rng.uniform(0.0, 6.0)
        height = _height(style, rng)
        houses.append(Building(side=0, near=near, far=near + 8.0, face=left, height=height, width=width))
        left += width
    return houses


def _height(style: Style, rng: np.random.Generator) -> float:
    low, high = style.storeys
    return rng.uniform(2.8, 3.6) * int(rng.integers(low, high + 1)) + rng.uniform(0.8, 2.4)
