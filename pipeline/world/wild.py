"""The unlabelled mixture: some streets of another look, and everything else.

Every image is made from its own generator, seeded by (seed, split, index), so any one can be made alone. A few are
near-duplicates: an earlier image, slightly cropped, lit differently and compressed harder.

Shapes: H rows, W columns, C = 3 colours.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image

from pipeline.world.indoor import indoor
from pipeline.world.nature import aerial, foliage, night_sky, underwater
from pipeline.world.noise import Bytes
from pipeline.world.scenes import render_street
from pipeline.world.settings import WorldSettings
from pipeline.world.styles import ELSEWHERE
from pipeline.world.surfaces import abstract, cells, texture
from pipeline.world.things import document, table

PRIVATE, VALIDATION, WILD, PLAN = range(4)
"""Split ids: the second number of each image's seed."""
STREET = "street"
DUPLICATES = 0.02
"""Share of near-duplicates in the mixture."""
QUALITY = 88


def street(rng: np.random.Generator, height: int, width: int) -> Bytes:
    """A street of another look than the private ones, shape (H, W, C) in 0..255."""
    style = ELSEWHERE[int(rng.integers(len(ELSEWHERE)))]
    picture, _ = render_street(rng, style=style, height=height, width=width)
    return picture


OTHERS: Mapping[str, Callable[[np.random.Generator, int, int], Bytes]] = {
    "indoor": indoor,
    "aerial": aerial,
    "underwater": underwater,
    "table": table,
    "texture": texture,
    "foliage": foliage,
    "night-sky": night_sky,
    "abstract": abstract,
    "document": document,
    "cells": cells,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class WildImage:
    """The plan of one image of the mixture."""

    index: int
    source: str
    original: int
    """Index of the image that it nearly repeats; its own where it is new."""

    @property
    def key(self) -> str:
        """Its file name inside the mixture."""
        return f"{self.index:06d}.jpg"


def seeded(settings: WorldSettings, split: int, index: int) -> np.random.Generator:
    """The random generator of one image."""
    return np.random.default_rng([settings.seed, split, index])


def plan_wild(settings: WorldSettings) -> list[WildImage]:
    """Which generator makes which image, in random order; streets are exactly ``like_fraction``, rounded."""
    rng = seeded(settings, PLAN, 0)
    streets = round(settings.like_fraction * settings.wild)
    names = list(OTHERS)
    sources = [STREET] * streets + [names[i % len(names)] for i in range(settings.wild - streets)]
    sources = [sources[i] for i in rng.permutation(settings.wild)]
    originals = _originals(sources, round(DUPLICATES * settings.wild), rng)
    return [WildImage(index=i, source=sources[i], original=originals[i]) for i in range(settings.wild)]


def _originals(sources: list[str], repeats: int, rng: np.random.Generator) -> list[int]:
    """For each image the one that it repeats, of the same source and itself new, or else itself."""
    originals = list(range(len(sources)))
    repeating = {int(i) for i in rng.choice(len(sources), size=repeats, replace=False)}
    for index in sorted(repeating):
        alike = [i for i, source in enumerate(sources) if source == sources[index] and i not in repeating]
        if alike:
            originals[index] = alike[int(rng.integers(len(alike)))]
    return originals


def render_wild(settings: WorldSettings, plan: list[WildImage]) -> Iterator[tuple[WildImage, Bytes, int]]:
    """Makes the planned images: each with its plan and the JPEG quality to save it with."""
    for image in plan:
        make = street if image.source == STREET else OTHERS[image.source]
        picture = make(seeded(settings, WILD, image.original), settings.height, settings.width)
        if image.original == image.index:
            yield image, picture, QUALITY
        else:
            rng = seeded(settings, WILD, image.index)
            yield image, _slightly_changed(picture, rng), int(rng.integers(70, QUALITY))


def _slightly_changed(picture: Bytes, rng: np.random.Generator) -> Bytes:
    """The same picture with up to 4 % cut off each side, and up to 8 % brighter or darker."""
    height, width, _ = picture.shape
    left, top, right, bottom = rng.uniform(0.0, 0.04, size=4) * (width, height, width, height)
    box = (float(left), float(top), float(width - right), float(height - bottom))
    cut = Image.fromarray(picture).resize((width, height), Image.Resampling.BILINEAR, box=box)
    brighter = np.asarray(cut, dtype=np.float32) * np.float32(rng.uniform(0.92, 1.08))
    changed: Bytes = np.clip(brighter, 0, 255).astype(np.uint8)
    return changed
