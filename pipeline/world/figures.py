"""What stands along a street and is drawn on an upright card that faces the camera: trees, persons, poles, bins.

On a card, s runs to the right from its middle and t up from its foot, in metres. Limbs are capsules, the points within
a radius of a segment; their sides are shaded as cylinders. A tree's crown is a union of balls with a leafy outline.

Shapes: h, w those of a card's crop; C = 3 colours; M materials.
"""

import math
from dataclasses import dataclass

import numpy as np

from pipeline.world.camera import UP, Camera, Patch, Vector, dot, opposite
from pipeline.world.canvas import VOID, Canvas, Colour, reflectances
from pipeline.world.light import Light
from pipeline.world.noise import SIDE, Bytes, Field, Mask, blotches, fractal, look_up
from pipeline.world.styles import PERSON, POLE, TREE, Style

Segment = tuple[float, float, float, float]

BARK, LEAF = range(2)
SKIN, HAIR, SHIRT, TROUSERS, SHOE, BAG = range(6)
METAL, BOARD, EDGE, LAMP, RED, GREEN = range(6)


@dataclass(slots=True)
class _Drawing:
    """A card being drawn on; all fields have shape (h, w)."""

    patch: Patch
    inside: Mask
    material: Bytes
    tone: Field

    @classmethod
    def on(cls, patch: Patch) -> "_Drawing":
        shape = patch.s.shape
        return cls(patch, np.zeros(shape, np.bool_), np.zeros(shape, np.uint8), np.ones(shape, np.float32))

    def fill(self, mask: Mask, material: int, tone: Field | float = 1.0) -> None:
        """Adds the masked pixels to the drawing."""
        self.inside |= mask
        np.copyto(self.material, np.uint8(material), where=mask)
        np.copyto(self.tone, tone, where=mask)

    def limb(self, segment: Segment, radius: float, material: int, sun: float = 0.0) -> None:
        """Adds a capsule, lit from the right for positive ``sun``."""
        s0, t0, s1, t1 = segment
        along_s, along_t = s1 - s0, t1 - t0
        s, t = self.patch.s - s0, self.patch.t - t0
        share = np.clip((s * along_s + t * along_t) * (1.0 / max(along_s**2 + along_t**2, 1e-9)), 0.0, 1.0)
        s, t = (s - share * along_s) * (1.0 / radius), (t - share * along_t) * (1.0 / radius)
        self.fill(s * s + t * t < 1.0, material, 0.92 + sun * s)

    def finish(self, canvas: Canvas, light: Light, colours: Field, *, sunlit: Field | float, label: int) -> None:
        """Paints the drawing on the canvas under half of the sun, as a round body has it on average."""
        irradiance = 0.5 * light.sun_C[:, None, None] * np.float32(sunlit) + 0.85 * light.sky_C[:, None, None]
        radiance = colours.take(self.material, axis=1) * np.maximum(self.tone, 0.05) * irradiance
        canvas.paint(self.patch.crop, self.inside, radiance, depth=self.patch.depth, label=label)


def sun_from_right(camera: Camera, light: Light) -> float:
    """How far the sun lights things from the right of the picture, -0.45..0.45."""
    return 0.45 * dot(camera.level, light.towards_sun) * (1.0 - light.overcast)


def paint_tree(
    canvas: Canvas, camera: Camera, base: Vector, light: Light, *, style: Style, sunlit: float, rng: np.random.Generator
) -> None:
    """Paints a broad-leaved tree or a conifer."""
    height = rng.uniform(*style.tree_height)
    conifer = rng.random() < style.conifers
    half = height * (rng.uniform(0.16, 0.26) if conifer else rng.uniform(0.26, 0.42))
    leaf = style.leaves[int(rng.integers(len(style.leaves)))]
    bark = rng.uniform(0.18, 0.42)
    layout = _conifer(height, half, rng) if conifer else _crown(height, half, rng)
    patch = camera.card(base, 2.3 * half, height * 1.05)
    if patch is None:
        return
    drawing = _Drawing.on(patch)
    lean = rng.uniform(-0.04, 0.04) * height
    sun = sun_from_right(camera, light)
    drawing.limb((0.0, 0.0, lean, 0.6 * height), 0.022 * height + 0.03, BARK, sun)
    if not conifer:
        for _ in range(2):
            drawing.limb((lean, 0.35 * height, rng.uniform(-0.6, 0.6) * half, 0.62 * height), 0.07, BARK, sun)
    _foliage(drawing, layout, sun, rng)
    gain = rng.uniform(0.8, 1.15)
    colours = reflectances([(bark * 1.1, bark, bark * 0.85), (leaf[0] * gain, leaf[1] * gain, leaf[2] * gain)])
    drawing.finish(canvas, light, colours, sunlit=sunlit, label=TREE)


def _crown(height: float, half: float, rng: np.random.Generator) -> list[tuple[float, float, float]]:
    """Balls (s, t, radius) of a round crown."""
    count = int(rng.integers(4, 8))
    angles = rng.uniform(0.0, 2.0 * math.pi, size=count)
    reach = rng.uniform(0.1, 0.6, size=count)
    return [
        (half * r * math.cos(a), height * 0.68 + 0.30 * height * r * math.sin(a), half * rng.uniform(0.38, 0.62))
        for a, r in zip(angles.tolist(), reach.tolist(), strict=True)
    ]


def _conifer(height: float, half: float, rng: np.random.Generator) -> list[tuple[float, float, float]]:
    """Balls (s, t, radius) of a pointed crown, smaller towards its top."""
    shares = np.linspace(0.0, 1.0, 6).tolist()
    return [
        (rng.uniform(-0.1, 0.1) * half, height * (0.22 + 0.72 * share), half * (1.0 - 0.85 * share)) for share in shares
    ]


def _foliage(drawing: _Drawing, balls: list[tuple[float, float, float]], sun: float, rng: np.random.Generator) -> None:
    """Adds leaves: inside a ball or, by noise, near it; lighter towards sun and sky, darker in between."""
    s, t = drawing.patch.s, drawing.patch.t
    left, low = rng.uniform(0, SIDE, size=2).astype(np.float32)
    density = rng.uniform(12.0, 24.0)
    leaves = look_up(blotches(5.0), s * density + left, t * density + low)
    clumps = look_up(fractal(1.6), s * 16.0 + low, t * 16.0 + left)
    inner = np.full(s.shape, -9.0, dtype=np.float32)
    tone = np.zeros(s.shape, dtype=np.float32)
    for ball_s, ball_t, radius in balls:
        across, up = (s - ball_s) * (1.0 / radius), (t - ball_t) * (1.0 / radius)
        closeness = 1.0 - across * across - up * up
        nearer = closeness > inner
        np.copyto(inner, closeness, where=nearer)
        np.copyto(tone, 0.72 + 0.30 * up + sun * across, where=nearer)
    ragged = inner + 0.22 * leaves + 0.25 * clumps
    tone *= 1.0 + 0.30 * leaves + 0.16 * clumps
    drawing.fill(ragged > rng.uniform(0.0, 0.25), LEAF, np.maximum(tone, 0.12))


def paint_person(
    canvas: Canvas, camera: Camera, base: Vector, light: Light, *, sunlit: float, rng: np.random.Generator
) -> None:
    """Paints a person who stands or walks."""
    tall = rng.uniform(0.62, 1.0) if rng.random() < 0.15 else rng.uniform(0.92, 1.08)
    patch = camera.card(base, 1.1 * tall, 1.9 * tall)
    if patch is None:
        return
    scaled = Patch(crop=patch.crop, s=patch.s / tall, t=patch.t / tall, depth=patch.depth, inside=patch.inside)
    drawing = _Drawing.on(scaled)
    sun = 0.8 * sun_from_right(camera, light)
    stride, swing = rng.uniform(0.0, 0.28), rng.uniform(0.05, 0.25)
    broad = rng.uniform(0.15, 0.22)
    for foot in (-stride, stride):
        drawing.limb((0.06 * (1 if foot > 0 else -1), 0.88, foot, 0.08), 0.085, TROUSERS, sun)
        drawing.limb((foot, 0.05, foot + 0.08, 0.04), 0.055, SHOE)
    if rng.random() < 0.35:
        drawing.limb((-0.24 * rng.choice([-1, 1]), 1.18, -0.2, 1.32), 0.17, BAG, sun)
    coat = rng.uniform(0.55, 0.95)
    drawing.limb((0.0, coat, 0.0, 1.36), broad, SHIRT, sun)
    for side in (-1, 1):
        hand = side * (broad + swing * rng.random())
        drawing.limb((side * broad, 1.40, hand, 0.88), 0.06, SHIRT if rng.random() < 0.7 else SKIN, sun)
    drawing.limb((0.0, 1.60, 0.0, 1.68), 0.105, SKIN, sun)
    drawing.limb((-0.02, 1.70, 0.02, 1.73), 0.105, HAIR, sun)
    drawing.tone *= 1.0 + 0.10 * look_up(fractal(1.5), scaled.s * 60.0 + SIDE * rng.random(), scaled.t * 60.0)
    drawing.finish(canvas, light, _clothes(rng), sunlit=sunlit, label=PERSON)


def _clothes(rng: np.random.Generator) -> Field:
    def cloth() -> Colour:
        level, tint = rng.uniform(0.15, 0.75), rng.uniform(-0.2, 0.2, size=3) * (rng.random() < 0.6)
        return level + tint[0], level + tint[1], level + tint[2]

    skin = rng.uniform(0.35, 1.0)
    hair = rng.uniform(0.1, 0.5)
    body = [(0.85 * skin, 0.66 * skin, 0.54 * skin), (hair, hair * 0.8, hair * 0.6)]
    worn = [cloth() for _ in (SHIRT, TROUSERS, SHOE, BAG)]
    return reflectances([(max(r, 0.05), max(g, 0.05), max(b, 0.05)) for r, g, b in body + worn])


def paint_pole(
    canvas: Canvas, camera: Camera, base: Vector, light: Light, *, sunlit: float, rng: np.random.Generator
) -> None:
    """Paints a street lamp, a road sign or a traffic light."""
    kind = int(rng.integers(3))
    height = (rng.uniform(4.5, 7.0), rng.uniform(2.3, 3.0), rng.uniform(2.8, 3.6))[kind]
    reach = rng.uniform(0.5, 1.6) * float(rng.choice([-1, 1]))
    patch = camera.card(base, 2.0 * abs(reach) + 1.0 if kind == 0 else 1.2, height + 0.6)
    if patch is None:
        return
    drawing = _Drawing.on(patch)
    sun = 1.2 * sun_from_right(camera, light)
    drawing.limb((0.0, 0.0, 0.0, height), rng.uniform(0.07, 0.13), METAL, sun)
    (_lamp_head, _sign, _signals)[kind](drawing, height, reach, rng)
    grey, hue = rng.uniform(0.25, 0.7), int(rng.integers(4))
    boards = ((0.80, 0.78, 0.74), (0.16, 0.30, 0.62), (0.70, 0.60, 0.16), (0.62, 0.16, 0.14))
    edge = (0.70, 0.14, 0.12) if rng.random() < 0.5 else (0.85, 0.85, 0.85)
    colours = reflectances(
        [(grey, grey, grey * 1.03), boards[hue], edge, (0.9, 0.88, 0.8), (0.9, 0.15, 0.1), (0.2, 0.8, 0.4)]
    )
    drawing.finish(canvas, light, colours, sunlit=sunlit, label=POLE)
    if light.night and kind == 0:
        _halo(canvas, patch, reach, height)


def _lamp_head(drawing: _Drawing, height: float, reach: float, rng: np.random.Generator) -> None:
    drawing.limb((0.0, height, reach, height + rng.uniform(0.0, 0.35)), 0.05, METAL)
    drawing.limb((reach * 0.8, height + 0.2, reach * 1.2, height + 0.2), 0.12, METAL)
    drawing.limb((reach * 0.85, height + 0.12, reach * 1.15, height + 0.12), 0.08, LAMP)


def _sign(drawing: _Drawing, height: float, reach: float, rng: np.random.Generator) -> None:
    s, t = drawing.patch.s, drawing.patch.t - height
    size = rng.uniform(0.28, 0.42)
    if rng.random() < 0.5:
        distance = np.hypot(s, t) * (1.0 / size)
    elif rng.random() < 0.5:
        distance = np.maximum(np.abs(s) * (0.9 / size), np.abs(t) * (1.1 / size))
    else:
        distance = np.maximum(np.abs(s) * (1.1 / size) + t * (0.6 / size), -t * (1.6 / size))
    drawing.fill(distance < 1.0, EDGE)
    drawing.fill(distance < 0.8, BOARD)
    drawing.fill((np.abs(t) < 0.06) & (np.abs(s) < 0.5 * size) & (distance < 0.7), EDGE)


def _signals(drawing: _Drawing, height: float, reach: float, rng: np.random.Generator) -> None:
    s, t = drawing.patch.s, drawing.patch.t - height
    drawing.fill((np.abs(s) < 0.20) & (np.abs(t) < 0.52), METAL, 0.3)
    burning = int(rng.integers(2))
    for place, material in enumerate((RED, GREEN)):
        lens = np.hypot(s, t + 0.6 * place - 0.3) < 0.13
        drawing.fill(lens, material, 2.5 if place == burning else 0.4)


def _halo(canvas: Canvas, patch: Patch, reach: float, height: float) -> None:
    distance = np.hypot(patch.s - reach, patch.t - height)
    glow = 0.02 / (0.03 + distance * distance) * np.clip(1.2 - distance, 0.0, 1.0)
    canvas.glow(patch.crop, np.array([1.0, 0.7, 0.35], dtype=np.float32)[:, None, None] * glow)


def paint_bin(
    canvas: Canvas, camera: Camera, base: Vector, light: Light, *, sunlit: float, rng: np.random.Generator
) -> None:
    """Paints a litter bin or a box on the pavement, which belongs to no class."""
    width, height = rng.uniform(0.4, 1.1), rng.uniform(0.6, 1.2)
    patch = camera.card(base, width, height)
    if patch is None:
        return
    drawing = _Drawing.on(patch)
    round_ = np.sqrt(np.maximum(1.0 - np.square(patch.s * (2.0 / width)), 0.0))
    drawing.fill(patch.inside, METAL, 0.6 + 0.4 * round_ + 0.2 * (patch.t > 0.85 * height))
    grey = rng.uniform(0.2, 0.6)
    colours = reflectances([(grey * rng.uniform(0.6, 1.2), grey, grey * rng.uniform(0.6, 1.2))])
    drawing.finish(canvas, light, colours, sunlit=sunlit, label=VOID)


def shadow_towards(light: Light) -> tuple[float, float]:
    """Where the shadow of a point one metre up falls, (x, z) in metres; limited for a low sun."""
    away = opposite(light.towards_sun)
    length = min(1.0 / max(dot(light.towards_sun, UP), 0.1), 4.0)
    return away[0] * length, away[2] * length
