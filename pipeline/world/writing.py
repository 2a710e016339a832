"""Writing a world to disk, all of it or nothing.

The world is written into a temporary folder beside its place and then moved there; readers never see half of one.
"""

import csv
import io
import logging
import tarfile
import tempfile
from pathlib import Path

from PIL import Image

from pipeline.world.noise import Bytes
from pipeline.world.scenes import render_street
from pipeline.world.settings import WorldSettings
from pipeline.world.styles import CITY, CLASSES
from pipeline.world.wild import PRIVATE, QUALITY, VALIDATION, plan_wild, render_wild, seeded
from storage.errors import SettingsError

SHARD = 500
"""Images per tar of the unlabelled mixture."""
SOURCES = "wild-sources.csv"

logger = logging.getLogger(__name__)


def make_world(out: Path, *, settings: WorldSettings) -> None:
    """Generates a world of images at ``out``, in place of the world that may be there.

    The teacher's labelled streets are ``private/images/*.jpg`` and ``private/labels/*.png`` (class ids as in
    ``private/classes.txt``, 255 = void); ``val/`` holds others of the same kind. The unlabelled mixture is
    ``wild/wild-{000000..}.tar``, and ``wild-sources.csv`` tells what each of its images is, for judging only.

    Args:
        out: Folder of the world.
        settings: What to generate.

    Raises:
        SettingsError: If ``out`` holds something other than a world.
    """
    out = out.resolve()
    _check_replaceable(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as temporary:
        new, old = Path(temporary, "new"), Path(temporary, "old")
        new.mkdir()
        _write_streets(new / "private", PRIVATE, settings.private, settings)
        _write_streets(new / "val", VALIDATION, settings.validation, settings)
        classes = "".join(f"{number} {name}\n" for number, name in enumerate(CLASSES))
        (new / "private" / "classes.txt").write_text(classes, encoding="utf-8", newline="\n")
        _write_wild(new, settings)
        if out.exists():
            for hidden in out.glob(".*"):
                hidden.replace(new / hidden.name)  # such as the .gitignore that DVC keeps beside its outputs
            out.replace(old)
        new.replace(out)
    logger.info("made a world of %d images in %s", settings.private + settings.validation + settings.wild, out)


def _check_replaceable(out: Path) -> None:
    """Refuses to replace anything that is not a world, for it may be somebody's work."""
    if not out.exists():
        return
    is_world = (out / SOURCES).is_file()
    if not is_world and not (out.is_dir() and all(path.name.startswith(".") for path in out.iterdir())):
        raise SettingsError(f"{out} exists and is not a world; choose another folder, or remove it first")


def _write_streets(folder: Path, split: int, count: int, settings: WorldSettings) -> None:
    images, labels = folder / "images", folder / "labels"
    images.mkdir(parents=True)
    labels.mkdir()
    for index in range(count):
        rng = seeded(settings, split, index)
        picture, label = render_street(rng, style=CITY, height=settings.height, width=settings.width)
        (images / f"{index:06d}.jpg").write_bytes(_jpeg(picture, QUALITY))
        Image.fromarray(label).save(labels / f"{index:06d}.png")


def _write_wild(folder: Path, settings: WorldSettings) -> None:
    """Writes the shards of the mixture and the table of sources."""
    (folder / "wild").mkdir()
    plan = plan_wild(settings)
    for shard, start in enumerate(range(0, len(plan), SHARD)):
        path = folder / "wild" / f"wild-{shard:06d}.tar"
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
            for image, picture, quality in render_wild(settings, plan[start : start + SHARD]):
                _add(tar, image.key, _jpeg(picture, quality))
    with (folder / SOURCES).open("w", encoding="utf-8", newline="") as table:
        rows = csv.writer(table, lineterminator="\n")
        rows.writerow(["key", "source"])
        rows.writerows([image.key, image.source] for image in plan)


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    # A TarInfo's time and owner default to 0, which keeps the archive the same on every run.
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content))


def _jpeg(picture: Bytes, quality: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()
