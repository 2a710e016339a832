"""A pinhole camera and the planes it sees.

World axes: x right, y up, z along the street, in metres. A pixel at (column u, row v), measured from the centre of the
image in units of the focal length, looks along ``ray = forward + u * right - v * up``. The point of a plane through
``origin`` with normal ``n`` that it sees lies at the depth ``((origin - position) . n) / (ray . n)``. Since a ray is
affine in u and v, ``ray . vector`` for a whole picture is one row plus one column, which keeps rendering cheap.

Shapes: H rows, W columns; h, w those of a crop.
"""

import math
from dataclasses import dataclass
from functools import cache

import numpy as np

from pipeline.world.noise import Field, Mask

Vector = tuple[float, float, float]
Crop = tuple[slice, slice]

UP: Vector = (0.0, 1.0, 0.0)
EAST: Vector = (1.0, 0.0, 0.0)
NORTH: Vector = (0.0, 0.0, 1.0)
NEAR = 0.3  # metres; what is closer is cut off


def dot(a: Vector, b: Vector) -> float:
    """Scalar product."""
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def cross(a: Vector, b: Vector) -> Vector:
    """Vector product."""
    return a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]


def step(start: Vector, direction: Vector, length: float) -> Vector:
    """The point ``length`` metres from ``start`` along ``direction``."""
    return start[0] + direction[0] * length, start[1] + direction[1] * length, start[2] + direction[2] * length


def opposite(a: Vector) -> Vector:
    """The reversed vector."""
    return -a[0], -a[1], -a[2]


@dataclass(frozen=True, kw_only=True, slots=True)
class Quad:
    """A rectangle in the world, seen from the side to which ``b x a`` points (``a`` to the right, ``b`` up)."""

    origin: Vector
    """Its lower left corner."""
    a: Vector
    """Unit vector along its width."""
    b: Vector
    """Unit vector along its height."""
    width: float
    height: float

    @property
    def normal(self) -> Vector:
        """Unit vector out of the visible side."""
        return cross(self.b, self.a)

    def corners(self) -> list[Vector]:
        """Its four corners in order."""
        right = step(self.origin, self.a, self.width)
        return [self.origin, right, step(right, self.b, self.height), step(self.origin, self.b, self.height)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Patch:
    """What a crop of the picture sees of one quad."""

    crop: Crop
    s: Field
    """Metres along the quad's width, shape (h, w)."""
    t: Field
    """Metres along its height, shape (h, w)."""
    depth: Field
    """Metres from the camera along its optical axis, shape (h, w)."""
    inside: Mask
    """Which pixels see the quad, shape (h, w)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Camera:
    """A pinhole camera; make one with :func:`aim`."""

    rows: int
    columns: int
    focal: float
    """Focal length in pixels."""
    position: Vector
    forward: Vector
    right: Vector
    up: Vector
    level: Vector
    """Horizontal unit vector to the right: the width of everything that faces the camera upright."""

    @property
    def whole(self) -> Crop:
        """The crop that is the whole picture."""
        return slice(0, self.rows), slice(0, self.columns)

    def along(self, vector: Vector, crop: Crop) -> Field:
        """``ray . vector`` for each pixel of a crop, shape (h, w)."""
        u_w, v_h = _centres(self.columns)[crop[1]], _centres(self.rows)[crop[0]]
        across_w = u_w * (dot(self.right, vector) / self.focal) + dot(self.forward, vector)
        down_h = v_h * (dot(self.up, vector) / self.focal)
        sum_hw: Field = across_w[None, :] - down_h[:, None]
        return sum_hw

    def crop_of(self, corners: list[Vector]) -> Crop | None:
        """The smallest crop around a convex polygon, or None where nothing of it is in view."""
        points = _cut_near([self._seen_from(corner) for corner in corners])
        if not points:
            return None
        u = [self.columns / 2 + self.focal * x / z for x, _, z in points]
        v = [self.rows / 2 - self.focal * y / z for _, y, z in points]
        left, right = max(0, math.floor(min(u))), min(self.columns, math.ceil(max(u)))
        top, bottom = max(0, math.floor(min(v))), min(self.rows, math.ceil(max(v)))
        if left >= right or top >= bottom:
            return None
        return slice(top, bottom), slice(left, right)

    def patch(self, quad: Quad) -> Patch | None:
        """What the picture sees of a quad; None where it faces away or is out of view."""
        normal = quad.normal
        offset = step(quad.origin, self.position, -1.0)
        distance = dot(offset, normal)
        if distance > -1e-6:
            return None
        crop = self.crop_of(quad.corners())
        if crop is None:
            return None
        depth = distance / np.minimum(self.along(normal, crop), -1e-6)
        s = depth * self.along(quad.a, crop) - dot(offset, quad.a)
        t = depth * self.along(quad.b, crop) - dot(offset, quad.b)
        inside = (s >= 0) & (s <= quad.width) & (t >= 0) & (t <= quad.height) & (depth > NEAR)
        return Patch(crop=crop, s=s, t=t, depth=depth, inside=inside)

    def card(self, base: Vector, width: float, height: float) -> Patch | None:
        """What the picture sees of an upright card that faces it; ``s`` is 0 at its middle, ``t`` 0 at its foot."""
        quad = Quad(origin=step(base, self.level, -width / 2), a=self.level, b=UP, width=width, height=height)
        patch = self.patch(quad)
        if patch is None:
            return None
        return Patch(crop=patch.crop, s=patch.s - width / 2, t=patch.t, depth=patch.depth, inside=patch.inside)

    def _seen_from(self, point: Vector) -> Vector:
        offset = step(point, self.position, -1.0)
        return dot(self.right, offset), dot(self.up, offset), dot(self.forward, offset)


def aim(
    rows: int, columns: int, *, position: Vector, field_of_view: float, angles: tuple[float, float, float]
) -> Camera:
    """A camera at ``position`` with a horizontal field of view and (yaw, pitch, roll), all in degrees."""
    yaw, pitch, roll = (math.radians(angle) for angle in angles)
    level = (math.cos(yaw), 0.0, -math.sin(yaw))
    forward = (math.sin(yaw) * math.cos(pitch), math.sin(pitch), math.cos(yaw) * math.cos(pitch))
    upright = cross(forward, level)
    return Camera(
        rows=rows,
        columns=columns,
        focal=columns / 2 / math.tan(math.radians(field_of_view) / 2),
        position=position,
        forward=forward,
        right=_mix(level, upright, roll),
        up=_mix(upright, opposite(level), roll),
        level=level,
    )


@cache
def _centres(count: int) -> Field:
    """Pixel centres along an axis, from the middle of the image, in pixels."""
    return np.arange(count, dtype=np.float32) + np.float32(0.5 - count / 2)


def _mix(a: Vector, b: Vector, angle: float) -> Vector:
    return step(step((0.0, 0.0, 0.0), a, math.cos(angle)), b, math.sin(angle))


def _cut_near(points: list[Vector]) -> list[Vector]:
    """A polygon in camera axes (right, up, forward) without the part nearer than ``NEAR`` (Sutherland and Hodgman)."""
    kept: list[Vector] = []
    for start, end in zip(points, points[1:] + points[:1], strict=True):
        if start[2] >= NEAR:
            kept.append(start)
        if (start[2] >= NEAR) != (end[2] >= NEAR):
            share = (NEAR - start[2]) / (end[2] - start[2])
            kept.append(step(start, step(end, start, -1.0), share))
    return kept
