"""Writing a world to disk, part by part, each whole or not at all."""

import csv
import io
import logging
import tarfile
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from pipeline.world.noise import Bytes
from pipeline.world.scenes import render_street
from pipeline.world.settings import WorldSettings
from pipeline.world.styles import CITY, CLASSES
from pipeline.world.wild import PRIVATE, QUALITY, VALIDATION, plan_wild, render_wild, seeded
from storage.errors import SettingsError
from storage.files.publish import publish

SHARD = 500
"""Images per tar of the unlabelled mixture."""
SOURCES = "wild-sources.csv"

logger = logging.getLogger(__name__)


def make_world(out: Path, *, settings: WorldSettings) -> None:
    """Draws the parts of a world that ``settings.part`` asks for, in place of those that may be there.

    The teacher's labelled streets are ``private/images/*.jpg`` and ``private/labels/*.png`` (class ids as in
    ``private/classes.txt``, 255 = void); ``val/`` holds others of the same kind. The unlabelled mixture is
    ``wild/wild-{000000..}.tar``, and ``wild-sources.csv`` tells what each of its images is, for judging only.

    Args:
        out: Folder of the world.
        settings: What to draw.

    Raises:
        SettingsError: If a part's folder holds something else.
    """
    parts = [part for part in WRITERS if settings.part in ("all", part)]
    for part in parts:
        _check_replaceable(out / part)
    for part in parts:
        with publish(out / part) as folder:
            folder.mkdir()
            WRITERS[part](folder, settings)
        if part == "wild":
            with publish(out / SOURCES) as table:  # apart from the images, for no selection may read it
                _write_sources(table, settings)
        logger.info("drew the %s images of %s", part, out)


def _check_replaceable(folder: Path) -> None:
    """Refuses to replace anything that is not a part of a world, for it may be somebody's work."""
    foreign = [] if not folder.exists() else [folder] if not folder.is_dir() else list(folder.iterdir())
    if foreign := [path for path in foreign if not path.match("wild-*.tar") and path.name not in PART_NAMES]:
        raise SettingsError(f"{foreign[0]} is not part of a world; choose another folder, or remove it first")


def _write_streets(folder: Path, split: int, count: int, settings: WorldSettings) -> None:
    images, labels = folder / "images", folder / "labels"
    images.mkdir()
    labels.mkdir()
    for index in range(count):
        rng = seeded(settings, split, index)
        picture, label = render_street(rng, style=CITY, height=settings.height, width=settings.width)
        (images / f"{index:06d}.jpg").write_bytes(_jpeg(picture, QUALITY))
        Image.fromarray(label).save(labels / f"{index:06d}.png")
    classes = "".join(f"{number} {name}\n" for number, name in enumerate(CLASSES))
    (folder / "classes.txt").write_text(classes, encoding="utf-8", newline="\n")


def _write_private(folder: Path, settings: WorldSettings) -> None:
    _write_streets(folder, PRIVATE, settings.private, settings)


def _write_validation(folder: Path, settings: WorldSettings) -> None:
    _write_streets(folder, VALIDATION, settings.validation, settings)


def _write_wild(folder: Path, settings: WorldSettings) -> None:
    plan = plan_wild(settings)
    for shard, start in enumerate(range(0, len(plan), SHARD)):
        path = folder / f"wild-{shard:06d}.tar"
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
            for image, picture, quality in render_wild(settings, plan[start : start + SHARD]):
                _add(tar, image.key, _jpeg(picture, quality))


def _write_sources(path: Path, settings: WorldSettings) -> None:
    with path.open("w", encoding="utf-8", newline="") as table:
        rows = csv.writer(table, lineterminator="\n")
        rows.writerow(["key", "source"])
        rows.writerows([image.key, image.source] for image in plan_wild(settings))


WRITERS: dict[str, Callable[[Path, WorldSettings], None]] = {
    "private": _write_private,
    "val": _write_validation,
    "wild": _write_wild,
}
PART_NAMES = {"images", "labels", "classes.txt"}


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    # A TarInfo's time and owner default to 0, which keeps the archive the same on every run.
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content))


def _jpeg(picture: Bytes, quality: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()
