"""Labelled images in two folders: ``images/NAME.jpg`` and ``labels/NAME.png`` (class ids, 255 = void).

Shapes: H x W pixels of one image.
"""

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from pipeline.decoding.pillow import decode_rgb
from pipeline.models.class_names import VOID, find_class_names
from storage.errors import DataError, ImageError


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class LabelledFolder:
    """Pairs of an image and a label file, in the order of their names."""

    root: Path
    images: tuple[Path, ...]
    labels: tuple[Path, ...]

    def __len__(self) -> int:
        return len(self.images)

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of names and sizes in bytes of all files. A continued run must have the same data."""
        digest = hashlib.sha256()
        for path in (*self.images, *self.labels):
            digest.update(f"{path.name}\n{path.stat().st_size}\n".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    def image(self, index: int) -> Image.Image:
        """Read an image, upright and RGB.

        Raises:
            DataError: it cannot be read.
        """
        try:
            return decode_rgb(self.images[index].read_bytes())
        except ImageError as error:
            raise DataError(f"{self.images[index]}: {error}; replace or remove it and its label") from error

    def label(self, index: int) -> NDArray[np.uint8]:
        """Read class ids, [H, W].

        Raises:
            DataError: the file is not a single-channel 8-bit image.
        """
        path = self.labels[index]
        try:
            with Image.open(path) as file:
                label = np.asarray(file)
        except (OSError, SyntaxError) as error:
            raise DataError(f"{path} cannot be read as a label image; save it as single-channel PNG") from error
        if label.ndim != 2 or label.dtype != np.uint8:
            raise DataError(f"{path} has shape {label.shape} of {label.dtype}; save single-channel 8-bit class ids")
        return label

    def checked_label(self, index: int, num_classes: int) -> NDArray[np.uint8]:
        """Read class ids, [H, W], and check them against their image and against ``num_classes``.

        Raises:
            DataError: the label differs in size from its image, or has a class above ``num_classes``.
        """
        label = self.label(index)
        width, height = image_size(self.images[index])
        if label.shape != (height, width):
            raise DataError(
                f"{self.labels[index]} is {label.shape[1]}x{label.shape[0]}, but its image {width}x{height}; give "
                "both the same size"
            )
        known = label[label != VOID]
        if known.size and known.max() >= num_classes:
            raise DataError(
                f"{self.labels[index]} has class {known.max()}, but the model only 0 to {num_classes - 1}; "
                "use data with the model's classes"
            )
        return label


def open_labelled(root: str | Path) -> LabelledFolder:
    """List a folder.

    Raises:
        DataError: images/ or labels/ is missing or empty, or their files do not match.
    """
    root = Path(root)
    for part in ("images", "labels"):
        if not (root / part).is_dir():
            raise DataError(f"folder {root / part} does not exist; give a folder with images/ and labels/")
    images = {path.stem: path for path in _files(root / "images")}
    labels = {path.stem: path for path in _files(root / "labels")}
    if not images:
        raise DataError(f"{root / 'images'} holds no images; give a folder with images/ and labels/")
    if unpaired := sorted(images.keys() ^ labels.keys()):
        part = "images" if unpaired[0] in images else "labels"
        raise DataError(f"{root / part}/{unpaired[0]}.* has no file of its name in the other folder; add or remove one")
    names = sorted(images)
    return LabelledFolder(
        root=root, images=tuple(images[name] for name in names), labels=tuple(labels[name] for name in names)
    )


def image_size(path: Path) -> tuple[int, int]:
    """Width and height in pixels of an image when it is upright; only its header is read.

    Raises:
        DataError: the file is not an image.
    """
    try:
        with Image.open(path) as file:
            width, height = file.size
            turned = file.getexif().get(ExifTags.Base.Orientation, 1) >= 5
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{path} is not an image; replace or remove it and its label") from error
    return (height, width) if turned else (width, height)


def _files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith(".")]


def check_labels(data: LabelledFolder, num_classes: int, *, model: str) -> None:
    """Read every label once, so that a bad label ends a run at its start and not in its middle.

    Raises:
        DataError: the class counts differ, a label has an unknown class, or a label has another size than its image.
    """
    check_classes(data, num_classes, model=model)
    for index in range(len(data)):
        data.checked_label(index, num_classes)


def check_classes(data: LabelledFolder, num_classes: int, *, model: str) -> None:
    """Compare the class count of a model with the data's classes.txt, if there is one.

    Raises:
        DataError: they differ.
    """
    names = find_class_names(data.root)
    if names is not None and len(names) != num_classes:
        raise DataError(
            f"{model} has {num_classes} classes, but {data.root} has {len(names)}; use a model with the same classes"
        )
