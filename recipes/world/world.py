"""Draws a small world to try DFSS with: streets for a teacher, streets for validation, and unlabelled pictures.

``python world.py --part all --out data/world`` writes ``private/`` and ``val/`` (``images/*.jpg``, ``labels/*.png``
with class ids as in ``classes.txt``, 255 = void) and ``wild/wild-{000000..}.tar``. ``wild-sources.csv`` names the kind
of each wild picture, for evaluation only. Values that are not given come from the section dfss.world of params.yaml.

Each picture has a generator of its own, seeded by (seed, split, index), so the same settings give the same bytes. A few
wild pictures are near-duplicates of another one, slightly cropped, lit differently and compressed more.
"""

import argparse
import csv
import dataclasses
import io
import sys
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from others import OTHERS, render_other
from paint import Bytes, pick
from PIL import Image
from streets import render_street
from styles import CITY, ELSEWHERE
from view import CLASSES

from storage.errors import DFSSError, SettingsError
from storage.files.publish import publish

PARAMS = Path("params.yaml")
PRIVATE, VALIDATION, WILD, PLAN = range(4)
"""Split ids: the second number of each picture's seed."""
STREET = "street"
SHARD = 500  # pictures per tar
DUPLICATES = 0.02  # share of near-duplicates among the wild pictures
QUALITY = 88  # of JPEG, but for the near-duplicates
LEAST = {"seed": 0, "height": 32, "width": 32, "private": 1, "validation": 1, "wild": 1}


@dataclasses.dataclass(frozen=True, kw_only=True)
class World:
    """What to draw. Raises SettingsError if a value cannot be used."""

    out: str = "data/world"
    part: str = "all"
    seed: int = 0
    height: int = 96
    width: int = 128
    private: int = 160
    validation: int = 60
    wild: int = 1500
    like_fraction: float = 0.15  # share of the wild pictures that are streets of another style

    def __post_init__(self) -> None:
        """Checks each value."""
        if self.part not in ("all", *WRITERS):
            raise SettingsError(f"world part is {self.part!r}; set it to one of all, {', '.join(WRITERS)}")
        for name, least in LEAST.items():
            if not isinstance(value := getattr(self, name), int) or value < least:
                raise SettingsError(f"world {name} is {value!r}; set it to a whole number of at least {least}")
        if not 0.0 <= self.like_fraction <= 1.0:
            raise SettingsError(f"world like_fraction is {self.like_fraction}; set it to a share from 0 to 1")

    def rng(self, split: int, index: int) -> np.random.Generator:
        """The random generator of one picture."""
        return np.random.default_rng([self.seed, split, index])


class Plan(NamedTuple):
    """The plan of one wild picture."""

    key: str
    source: str
    number: int
    original: int  # number of the picture that it nearly repeats; its own where it is new


def make_world(world: World) -> None:
    """Draw the parts in the settings, each atomically, in place of those that exist.

    Raises:
        SettingsError: If a part's folder holds something else.
    """
    out = Path(world.out)
    parts = [part for part in WRITERS if world.part in ("all", part)]
    for part in parts:
        _check_replaceable(out / part)
    for part in parts:
        with publish(out / part) as folder:
            folder.mkdir()
            WRITERS[part](folder, world)
        if part == "wild":
            with publish(out / "wild-sources.csv") as path, path.open("w", encoding="utf-8", newline="") as table:
                rows = [(picture.key, picture.source) for picture in plan_wild(world)]
                csv.writer(table, lineterminator="\n").writerows([("key", "source"), *rows])


def _check_replaceable(folder: Path) -> None:
    """Refuse to replace anything that is not a part of a world, because it may be somebody's work."""
    for path in folder.iterdir() if folder.is_dir() else [folder] if folder.exists() else []:
        if not (path.match("wild-*.tar") or path.name in ("images", "labels", "classes.txt")):
            raise SettingsError(f"{path} is not part of a world; choose another folder, or remove it first")


def plan_wild(world: World) -> list[Plan]:
    """What each wild picture shows, in random order; streets are exactly ``like_fraction``, rounded."""
    rng, names, streets = world.rng(PLAN, 0), list(OTHERS), round(world.like_fraction * world.wild)
    sources = [STREET] * streets + [names[i % len(names)] for i in range(world.wild - streets)]
    sources = [sources[i] for i in rng.permutation(world.wild)]
    originals = list(range(world.wild))
    repeating = {int(i) for i in rng.choice(world.wild, size=round(DUPLICATES * world.wild), replace=False)}
    for index in sorted(repeating):
        alike = [i for i, source in enumerate(sources) if source == sources[index] and i not in repeating]
        originals[index] = pick(rng, alike) if alike else index
    return [Plan(f"{i:06d}.jpg", source, i, originals[i]) for i, source in enumerate(sources)]


def render_wild(world: World, plan: Plan) -> tuple[Bytes, int]:
    """The planned picture, shape (H, W, C) in 0..255, and the JPEG quality to save it with."""
    rng = world.rng(WILD, plan.original)
    if plan.source == STREET:
        pixels_HWC, _ = render_street(rng, style=pick(rng, ELSEWHERE), height=world.height, width=world.width)
    else:
        pixels_HWC = render_other(rng, plan.source, world.height, world.width)
    if plan.original == plan.number:
        return pixels_HWC, QUALITY
    rng = world.rng(WILD, plan.number)
    left, top, right, bottom = rng.uniform(0.0, 0.04, size=4) * np.tile((world.width, world.height), 2)
    box = (left, top, world.width - right, world.height - bottom)
    cut = Image.fromarray(pixels_HWC).resize((world.width, world.height), Image.Resampling.BILINEAR, box=box)
    brighter = np.asarray(cut) * rng.uniform(0.92, 1.08)
    return np.clip(brighter, 0, 255).astype(np.uint8), int(rng.integers(70, QUALITY))


def _write_streets(folder: Path, world: World, split: int, count: int) -> None:
    for part in ("images", "labels"):
        (folder / part).mkdir()
    for index in range(count):
        rng = world.rng(split, index)
        pixels_HWC, label_HW = render_street(rng, style=CITY, height=world.height, width=world.width)
        (folder / "images" / f"{index:06d}.jpg").write_bytes(_jpeg(pixels_HWC, QUALITY))
        Image.fromarray(label_HW).save(folder / "labels" / f"{index:06d}.png")
    classes = "".join(f"{number} {name}\n" for number, name in enumerate(CLASSES))
    (folder / "classes.txt").write_text(classes, encoding="utf-8", newline="\n")


def _write_wild(folder: Path, world: World) -> None:
    plans = plan_wild(world)
    for shard, start in enumerate(range(0, len(plans), SHARD)):
        with tarfile.open(folder / f"wild-{shard:06d}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for plan in plans[start : start + SHARD]:
                entry, content = tarfile.TarInfo(plan.key), _jpeg(*render_wild(world, plan))
                entry.size = len(content)  # its time and owner stay 0, which keeps the archive the same on every run
                tar.addfile(entry, io.BytesIO(content))


def _jpeg(pixels_HWC: Bytes, quality: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels_HWC).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


WRITERS: dict[str, Callable[[Path, World], None]] = {
    "private": lambda folder, world: _write_streets(folder, world, PRIVATE, world.private),
    "val": lambda folder, world: _write_streets(folder, world, VALIDATION, world.validation),
    "wild": _write_wild,
}


def read_settings(arguments: Sequence[str] | None = None) -> World:
    """The settings of a command line, else those of params.yaml, else their defaults.

    Raises:
        SettingsError: If params.yaml names a setting that does not exist, or a value cannot be used.
    """
    document: Any = yaml.safe_load(PARAMS.read_text(encoding="utf-8")) if PARAMS.exists() else {}
    given: dict[str, Any] = ((document or {}).get("dfss") or {}).get("world") or {}
    defaults = {field.name: field.default for field in dataclasses.fields(World)}
    if unknown := sorted(given.keys() - defaults.keys()):
        raise SettingsError(f"{PARAMS}: dfss.world.{unknown[0]} is not a setting; use one of {', '.join(defaults)}")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in defaults.items():
        flag, value = f"--{name.replace('_', '-')}", given.get(name, default)
        parser.add_argument(flag, type=type(default), default=value, help=f"default: {value}")
    return World(**vars(parser.parse_args(arguments)))


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw the parts that the command line names, and return the exit code."""
    try:
        world = read_settings(arguments)
        make_world(world)
    except (DFSSError, OSError) as error:
        print(f"world.py: error: {error}", file=sys.stderr)
        return getattr(error, "exit_code", 1)
    print(f"drew {world.part} of {world.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
