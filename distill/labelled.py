"""Labelled images in two folders: ``images/NAME.jpg`` and ``labels/NAME.png`` (class ids, 255 = void).

NAME may hold folders. Shapes: H x W pixels of one image, K classes.
"""

import dataclasses
import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.decoding.formats import IMAGE_EXTENSIONS
from pipeline.decoding.pillow import decode_label, decode_rgb, upright_size
from pipeline.models.class_names import VOID, find_class_names, order_of
from storage.errors import DataError, ImageError

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class LabelledFolder:
    """Pairs of an image and a label file, in the order of their names."""

    root: Path
    images: tuple[Path, ...]
    labels: tuple[Path, ...]
    classes: tuple[int, ...] | None = None
    """The model's class of each class id in the files; None if they are the same."""

    def __len__(self) -> int:
        return len(self.images)

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of names and sizes in bytes of all files. A continued run must have the same data."""
        digest = hashlib.sha256()
        for part, paths in (("images", self.images), ("labels", self.labels)):
            for path in paths:
                name = path.relative_to(self.root / part).as_posix()
                digest.update(f"{name}\n{path.stat().st_size}\n".encode("utf-8", "surrogateescape"))
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
        """Read class ids of the model, [H, W].

        Raises:
            DataError: the file is not a single-channel 8-bit image without losses.
        """
        label = _read_label(self.labels[index])
        if self.classes is None:
            return label
        table = np.arange(VOID + 1, dtype=np.uint8)
        table[: len(self.classes)] = self.classes
        return table[label]

    def checked_label(self, index: int, num_classes: int) -> NDArray[np.uint8]:
        """Read class ids, [H, W], and check them against their image and against ``num_classes``.

        Raises:
            DataError: the label differs in size from its image, or has a class above ``num_classes``.
        """
        label = self.label(index)
        width, height = image_size(self.images[index])
        if label.shape != (height, width):
            what = f"{self.labels[index]} is {label.shape[1]}x{label.shape[0]}, but its image {width}x{height}"
            if label.shape == (width, height):
                raise DataError(f"{what} when it is upright, as its EXIF orientation may say; turn the label alike")
            raise DataError(f"{what}; give both the same size")
        known = label[label != VOID]
        if known.size and known.max() >= num_classes:
            raise DataError(
                f"{self.labels[index]} has class {known.max()}, but the model only 0 to {num_classes - 1}; "
                f"use data with the model's classes, counted from 0, and write void as {VOID}"
            )
        return label


def _read_label(path: Path) -> NDArray[np.uint8]:
    try:
        label, form = decode_label(path.read_bytes())
    except ImageError as error:
        raise DataError(f"{path} cannot be read as a label image ({error}); save it as single-channel PNG") from error
    if form in ("JPEG", "MPO"):
        raise DataError(f"{path} is a JPEG, which changes class ids; save labels as single-channel PNG")
    if label.dtype == np.bool_:
        return label.astype(np.uint8)
    if label.ndim != 2 or label.dtype != np.uint8:
        raise DataError(f"{path} has shape {label.shape} of {label.dtype}; save single-channel 8-bit class ids")
    return label


def open_labelled(root: str | Path) -> LabelledFolder:
    """List a folder.

    Raises:
        DataError: images/ or labels/ is missing or empty, or their files do not match one to one.
    """
    root = Path(root)
    for part in ("images", "labels"):
        if not (root / part).is_dir():
            raise DataError(f"folder {root / part} does not exist; give a folder with images/ and labels/")
    images, labels = (_by_name(root / part) for part in ("images", "labels"))
    if not images:
        raise DataError(f"{root / 'images'} holds no images; give a folder with images/ and labels/")
    for part, own, other, others in (("images", images, "labels", labels), ("labels", labels, "images", images)):
        if unpaired := sorted(own.keys() - others.keys()):
            seen = next(iter(sorted(others)), None)
            raise DataError(
                f"{own[unpaired[0]]} has no partner {root / other / unpaired[0]}.*"
                + (f" ({len(unpaired)} of {len(own)} {part} have none)" if len(unpaired) > 1 else "")
                + (f"; a file there is called {others[seen].name}" if seen and len(unpaired) == len(own) else "")
                + "; both must have the same name up to the ending"
            )
    names = sorted(images)
    return LabelledFolder(
        root=root, images=tuple(images[name] for name in names), labels=tuple(labels[name] for name in names)
    )


def _by_name(folder: Path) -> dict[str, Path]:
    """The images of a folder and the folders in it, by their path in it without the ending."""
    files = [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    if others := [path for path in files if path.suffix.lower() not in IMAGE_EXTENSIONS]:
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        logger.warning("left out %s%s: no image by its ending", others[0], more)
    found: dict[str, Path] = {}
    for path in files:
        if path.suffix.lower() in IMAGE_EXTENSIONS:
            name = path.relative_to(folder).with_suffix("").as_posix()
            if name in found:
                raise DataError(f"{found[name]} and {path} have one name; keep one of them, or rename one")
            found[name] = path
    return found


def image_size(path: Path) -> tuple[int, int]:
    """Width and height in pixels of an image when it is upright; only its header is read.

    Raises:
        DataError: the file is not an image.
    """
    try:
        return upright_size(path.read_bytes())
    except ImageError as error:
        raise DataError(f"{path} is not an image ({error}); replace or remove it and its label") from error


def fit_classes(data: LabelledFolder, class_names: Sequence[str], *, model: str) -> LabelledFolder:
    """The folder with the class ids of a model, by the folder's classes.txt if there is one.

    Where both have the same words in another order, the labels are mapped.

    Raises:
        DataError: the classes differ in number, or contradict each other.
    """
    names = find_class_names(data.root)
    if names is None:
        return data
    classes = order_of(names, class_names, whose=str(data.root), model=model)
    if classes is not None:
        logger.warning("%s has the classes of %s in another order; its labels are matched by name", data.root, model)
    return dataclasses.replace(data, classes=classes)


def check_labels(data: LabelledFolder, class_names: Sequence[str], *, training: bool = False) -> None:
    """Read every label once, so that a bad label ends a run at its start and not in its middle.

    Raises:
        DataError: a label has an unknown class or another size than its image, or see :func:`check_counts`.
    """
    pixels_K = np.zeros(VOID + 1, dtype=np.int64)
    for index in range(len(data)):
        pixels_K += np.bincount(data.checked_label(index, len(class_names)).ravel(), minlength=VOID + 1)
    void = int(pixels_K[VOID])
    check_counts(data, pixels_K[: len(class_names)], class_names, void=void, training=training)


def check_counts(
    data: LabelledFolder, pixels_K: NDArray[np.int64], class_names: Sequence[str], *, void: int, training: bool = False
) -> None:
    """Refuse labels of which no sound figure and no training comes, and say which classes they lack.

    Raises:
        DataError: nothing is labelled; the labels hold 0 and 255 alone, as masks do; or, for training, a single class.
    """
    labelled = [name for name, pixels in zip(class_names, pixels_K, strict=True) if pixels]
    if not labelled:
        raise DataError(f"no pixel of {data.root} is labelled: all are {VOID}, which is void; correct the labels")
    if void and pixels_K[0] and len(labelled) == 1:
        raise DataError(
            f"the labels of {data.root} hold only 0 and {VOID}, and {VOID} is void; save masks with 1 for the "
            "second class"
        )
    if training and len(labelled) == 1:
        raise DataError(f"all labels of {data.root} are {labelled[0]!r}; a model needs a second class to learn")
    if lacking := [name for name in class_names if name not in labelled]:
        shown = ", ".join(lacking[:5]) + (f" and {len(lacking) - 5} more" if len(lacking) > 5 else "")
        logger.warning("%s has no pixel of %d of the %d classes: %s", data.root, len(lacking), len(class_names), shown)
