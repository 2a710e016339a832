"""A street scene: who stands where, and the painting from far to near.

:func:`render_street` draws a street, the camera in it and the things along it from one random generator, then paints
sky, ground, the shadows on it, and everything upright in the order of distance.

Shapes: H rows, W columns, C = 3 colours.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from pipeline.world.buildings import draw_facade, paint_building
from pipeline.world.camera import Camera, aim
from pipeline.world.canvas import SCALE, Canvas, develop
from pipeline.world.cars import Car, draw_car, paint_car
from pipeline.world.figures import paint_bin, paint_person, paint_pole, paint_tree, shadow_towards
from pipeline.world.ground import Spot, paint_ground, paint_spot
from pipeline.world.light import Light, draw_film, draw_light, paint_sky
from pipeline.world.noise import Bytes
from pipeline.world.street import Street, draw_street
from pipeline.world.styles import Style


@dataclass(frozen=True, kw_only=True, slots=True)
class _Scene:
    """What all the things of one scene share."""

    camera: Camera
    street: Street
    light: Light
    style: Style
    rng: np.random.Generator

    def sunlit(self, x: float, z: float, height: float) -> float:
        """How far the sun reaches a point, 0..1."""
        across = x - self.street.offset(z)
        lit = self.street.sunlit(across, height, np.array([z], dtype=np.float32), self.light.towards_sun)
        return float(lit[0])

    def crowded(self, x: float, z: float, *, clear: float = 9.0) -> bool:
        """Whether a thing there would fill the picture: straight before the camera and nearer than ``clear``."""
        return z < clear and abs(x - self.camera.position[0]) < 1.6


@dataclass(frozen=True, kw_only=True, slots=True)
class _Thing:
    """Something upright in a scene."""

    z: float
    """Distance along the street by which the order of painting goes."""
    paint: Callable[[Canvas], None]
    shadows: tuple[Spot, ...] = ()


def render_street(rng: np.random.Generator, *, style: Style, height: int, width: int) -> tuple[Bytes, Bytes]:
    """A photograph of a street, shape (H, W, C) in 0..255, and its class ids, shape (H, W)."""
    street, light = draw_street(style, rng), draw_light(style, rng)
    camera = _draw_camera(style, street, rng, height=height, width=width)
    scene = _Scene(camera=camera, street=street, light=light, style=style, rng=rng)
    canvas = Canvas(camera.rows, camera.columns)
    paint_sky(canvas, camera, light, rng)
    paint_ground(canvas, camera, street, light, style=style, rng=rng)
    things = sorted(_things(scene), key=lambda thing: -thing.z)
    for thing in things:
        for spot in thing.shadows:
            paint_spot(canvas, camera, spot)
    for thing in things:
        thing.paint(canvas)
    return develop(canvas, draw_film(style, light, rng), rng)


def _draw_camera(style: Style, street: Street, rng: np.random.Generator, *, height: int, width: int) -> Camera:
    reach = street.half_width * 0.6 if rng.random() < 0.6 else 0.8 * street.facade
    return aim(
        height * SCALE,
        width * SCALE,
        position=(rng.uniform(-reach, reach), rng.uniform(*style.camera_height), 0.0),
        field_of_view=rng.uniform(*style.field_of_view),
        angles=(rng.uniform(*style.yaw), rng.uniform(*style.pitch), rng.uniform(*style.roll)),
    )


def _things(scene: _Scene) -> Iterator[_Thing]:
    yield from _houses(scene)
    yield from _cars(scene)
    yield from _trees(scene)
    yield from _persons(scene)
    yield from _poles(scene)
    yield from _bins(scene)


def _houses(scene: _Scene) -> Iterator[_Thing]:
    for building in scene.street.buildings:
        facade = draw_facade(scene.style, scene.light, scene.rng)
        paint = partial(
            paint_building,
            camera=scene.camera,
            street=scene.street,
            building=building,
            facade=facade,
            light=scene.light,
        )
        yield _Thing(z=building.far, paint=paint)


def _cars(scene: _Scene) -> Iterator[_Thing]:
    for x, z, heading in [*_parked(scene), *_driving(scene)]:
        if scene.crowded(x, z) or z < 3.0:
            continue
        car = draw_car(scene.style, scene.rng, x=x, z=z, heading=heading, sunlit=scene.sunlit(x, z, 0.9))
        paint = partial(paint_car, camera=scene.camera, car=car, light=scene.light)
        yield _Thing(z=z, paint=paint, shadows=_car_shadows(car, scene.light))


def _parked(scene: _Scene) -> Iterator[tuple[float, float, float]]:
    """Places (x, z, heading) along the kerbs."""
    street, rng = scene.street, scene.rng
    for side in (-1, 1):
        if rng.random() < 0.35:
            continue
        z = rng.uniform(3.0, 9.0)
        while z < 60.0:
            free = street.crossing and street.crossing[0] - 6.0 < z < street.crossing[1] + 4.0
            if rng.random() < scene.style.parked and not free:
                x = street.offset(z) + side * (street.half_width - 1.05)
                yield x, z, (0.0 if side > 0 else math.pi) + 2.0 * street.bend * z
            z += rng.uniform(5.6, 8.0)


def _driving(scene: _Scene) -> Iterator[tuple[float, float, float]]:
    """Places (x, z, heading) of cars in the lanes, the right one leading away, and in the side street."""
    street, rng = scene.street, scene.rng
    for _ in range(int(rng.integers(scene.style.cars[0], scene.style.cars[1] + 1))):
        if street.crossing and rng.random() < 0.25:
            x, z = rng.uniform(-9.0, 9.0), rng.uniform(street.crossing[0] + 1.2, street.crossing[1] - 1.2)
            yield street.offset(z) + x, z, math.pi / 2 * float(rng.choice([-1, 1]))
            continue
        side, z = int(rng.choice([-1, 1])), 5.0 + 50.0 * rng.random() ** 1.6
        x = street.offset(z) + side * street.half_width * rng.uniform(0.3, 0.45)
        yield x, z, (0.0 if side > 0 else math.pi) + 2.0 * street.bend * z


def _car_shadows(car: Car, light: Light) -> tuple[Spot, ...]:
    """The dark under a car, and its shadow in the sun."""
    half = car.body.length / 2 - 0.5 * car.body.width
    nose = (car.x + car.ahead[0] * half, car.z + car.ahead[2] * half)
    tail = (car.x - car.ahead[0] * half, car.z - car.ahead[2] * half)
    under = Spot(start=tail, end=nose, radius=0.56 * car.body.width, strength=0.72)
    if car.sunlit < 0.3:
        return (under,)
    away = shadow_towards(light)
    shift_x, shift_z = 0.7 * away[0], 0.7 * away[1]
    cast = Spot(
        start=(tail[0] + shift_x, tail[1] + shift_z),
        end=(nose[0] + shift_x, nose[1] + shift_z),
        radius=0.55 * car.body.width,
        strength=_sun_share(light),
    )
    return under, cast


def _sun_share(light: Light) -> float:
    """Share of the light on the ground that comes from the sun."""
    sun = float(light.sun_on((0.0, 1.0, 0.0)).mean())
    return 0.9 * sun / (sun + float(light.sky_C.mean()) + 1e-6)


def _cast(scene: _Scene, x: float, z: float, *, low: float, high: float, radius: float) -> tuple[Spot, ...]:
    """The dark at a thing's foot, and the shadow in the sun of its part between two heights."""
    if z > 45.0:
        return ()
    foot = Spot(start=(x, z), end=(x, z), radius=0.35, strength=0.35)
    if scene.sunlit(x, z, 0.2) < 0.3:
        return (foot,)
    away = shadow_towards(scene.light)
    cast = Spot(
        start=(x + away[0] * low, z + away[1] * low),
        end=(x + away[0] * high, z + away[1] * high),
        radius=radius,
        strength=_sun_share(scene.light),
    )
    return foot, cast


def _trees(scene: _Scene) -> Iterator[_Thing]:
    street, style, rng = scene.street, scene.style, scene.rng
    for _ in range(int(rng.integers(style.trees[0], style.trees[1] + 1))):
        side, z = int(rng.choice([-1, 1])), 5.0 + 60.0 * rng.random() ** 1.3
        near_kerb = street.half_width + rng.uniform(0.6, 1.1)
        x = street.offset(z) + side * (near_kerb if rng.random() < 0.7 else street.facade + rng.uniform(-0.5, 9.0))
        if scene.crowded(x, z):
            continue
        spots = _cast(scene, x, z, low=0.0, high=2.5, radius=0.2) + _cast(scene, x, z, low=3.2, high=5.2, radius=1.6)
        paint = partial(_figure(paint_tree, scene, x, z, at=5.0), style=style)
        yield _Thing(z=z, paint=paint, shadows=spots)


def _persons(scene: _Scene) -> Iterator[_Thing]:
    """Persons: most on the pavements, some in pairs, some on the road."""
    street, style, rng = scene.street, scene.style, scene.rng
    for _ in range(int(rng.integers(style.persons[0], style.persons[1] + 1))):
        z = 3.2 + 26.0 * rng.random() ** 1.6
        walk = rng.uniform(street.half_width + 0.4, street.facade - 0.3) * float(rng.choice([-1, 1]))
        across = walk if rng.random() < 0.75 else rng.uniform(-street.half_width, street.half_width)
        for place in range(1 + int(rng.random() < 0.2)):
            x = street.offset(z) + across + 0.6 * place
            if not scene.crowded(x, z, clear=5.0):
                spots = _cast(scene, x, z, low=0.0, high=1.7, radius=0.22)
                yield _Thing(z=z, paint=_figure(paint_person, scene, x, z, at=1.0), shadows=spots)


def _poles(scene: _Scene) -> Iterator[_Thing]:
    street, style, rng = scene.street, scene.style, scene.rng
    for _ in range(int(rng.integers(style.poles[0], style.poles[1] + 1))):
        z = 3.5 + 36.0 * rng.random() ** 1.4
        x = street.offset(z) + (street.half_width + rng.uniform(0.25, 0.7)) * float(rng.choice([-1, 1]))
        if not scene.crowded(x, z):
            spots = _cast(scene, x, z, low=0.0, high=4.0, radius=0.1)
            yield _Thing(z=z, paint=_figure(paint_pole, scene, x, z, at=2.0), shadows=spots)


def _bins(scene: _Scene) -> Iterator[_Thing]:
    street, rng = scene.street, scene.rng
    for _ in range(int(rng.integers(0, 3))):
        z = rng.uniform(5.0, 25.0)
        x = street.offset(z) + (street.facade - 0.5) * float(rng.choice([-1, 1]))
        spots = _cast(scene, x, z, low=0.0, high=0.9, radius=0.35)
        yield _Thing(z=z, paint=_figure(paint_bin, scene, x, z, at=0.5), shadows=spots)


def _figure(paint: Callable[..., None], scene: _Scene, x: float, z: float, *, at: float) -> Callable[..., None]:
    """The painting of a figure at a place, in the sun if the sun reaches the height ``at`` there."""
    sunlit = scene.sunlit(x, z, at)
    return partial(paint, camera=scene.camera, base=(x, 0.0, z), light=scene.light, sunlit=sunlit, rng=scene.rng)
