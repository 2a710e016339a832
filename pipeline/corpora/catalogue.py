"""The catalogue: corpora that ``--corpus`` knows by name, and where to look for each.

An entry's ``layouts`` are patterns relative to its root, tried in order. In ``train/n*/*`` the folder before the first
wildcard is listed, and the rest must match something in it; ``train/n*.tar`` stands for tars. The counts and layouts
are those of the official downloads. This module downloads nothing.
"""

import difflib
import os
from dataclasses import dataclass

from pipeline.corpora.formats import format_of
from pipeline.corpora.patterns import match, split_pattern
from pipeline.corpora.recognise import is_image
from storage.errors import CorpusError
from storage.files.places import is_hidden, join, open_files

DATA_ROOT_VARIABLE = "DFSS_DATA_ROOT"
"""Environment variable for the folder that holds all corpora, each in a folder of its name."""


DEFAULT_DATA_ROOT = "data"
_SHOWN = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class KnownCorpus:
    """A corpus that has a name, an official source and a usual layout."""

    name: str
    title: str
    layouts: tuple[str, ...]
    """Patterns relative to the root, tried in order; the module's docstring explains them."""

    images: int
    """Approximate number of images."""

    obtain: str
    """Official page, with its terms of use in a few words."""

    folder: str = ""
    """Folder below the data root; if empty, the name. Several entries may be parts of one download."""

    @property
    def variables(self) -> tuple[str, ...]:
        """Environment variables that may hold the root, the most specific first."""
        names = dict.fromkeys((self.name, self.folder or self.name))
        return tuple(f"DFSS_{name.upper().replace('-', '_')}_ROOT" for name in names)

    def roots(self, root: str | None = None) -> tuple[str, ...]:
        """Return the roots to search, in order: ``root``, the corpus's variable, ``$DFSS_DATA_ROOT``, ``data``.

        A root that the user gave for this corpus is the only one. A fallback to another root would score other images
        than the user meant.
        """
        for given in (root, *map(os.environ.get, self.variables)):
            if given:
                return (given,)
        parents = (os.environ.get(DATA_ROOT_VARIABLE), DEFAULT_DATA_ROOT)
        folders = tuple(dict.fromkeys((self.name, self.folder or self.name)))
        return tuple(join(parent, folder) for parent in parents if parent for folder in folders)

    def find(self, root: str | None = None) -> tuple[str, str]:
        """Return where the corpus is, as (folder, pattern in it); the pattern is empty for a folder of images.

        Raises:
            CorpusError: when no root has any of the layouts.
        """
        for place in self.roots(root):
            files = open_files(place)
            for layout in self.layouts if files.is_folder("") else ():
                folder, pattern = split_pattern(layout)
                if format_of(layout):
                    if next(match(files, layout), None):
                        return join(place, folder), pattern
                elif any(map(is_image, match(files, layout))):
                    return join(place, folder), ""
        roots, more = self.roots(root), len(self.layouts) - _SHOWN
        wanted = " or ".join(self.layouts[:_SHOWN]) + (f" or {more} others (see --list-corpora)" if more > 0 else "")
        there = [place for place in roots if open_files(place).is_folder("")]
        raise CorpusError(
            f"corpus {self.name!r} was not found in {' or '.join(roots)}: {'; '.join(map(contents, roots))}; expected "
            f"{wanted}; get it from {self.obtain}, and give its folder with --root DIR or {self.variables[0]}; or give "
            f"any folder of images as --corpus DIR" + (f", such as --corpus {there[0]}" if there else "")
        )


def contents(place: str) -> str:
    """Describe in a few words what lies in a folder."""
    files = open_files(place)
    if not files.is_folder(""):
        return f"{place} is a file" if files.is_file("") else f"there is no {place}"
    names = sorted(
        f"{entry.name}/" if entry.is_folder else entry.name for entry in files.entries("") if not is_hidden(entry.name)
    )
    shown = ", ".join(names[:_SHOWN]) or "nothing"
    return f"{place} holds {shown}" + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def catalogue() -> tuple[KnownCorpus, ...]:
    """Return all entries, for ``--list-corpora``."""
    return _CATALOGUE


def find_known(name: str) -> KnownCorpus | None:
    """Return the entry called ``name``, or None."""
    return next((known for known in _CATALOGUE if known.name == name), None)


def close_names(word: str) -> list[str]:
    """Return the catalogue names that ``word`` may misspell, the closest first."""
    return difflib.get_close_matches(word.lower(), [known.name for known in _CATALOGUE], n=3, cutoff=0.6)


_IMAGENET_PLACES = (
    *("", "ILSVRC/Data/CLS-LOC/", "Data/CLS-LOC/", "CLS-LOC/", "ILSVRC2012/", "imagenet/"),
    "imagenet-object-localization-challenge/ILSVRC/Data/CLS-LOC/",
)
"""Folders that downloads of ImageNet have around ``train`` and ``val``."""
_HUB = ("data/", "", "datasets--*/snapshots/*/data/", "snapshots/*/data/")
"""Folders of Parquet files in a data hub's download, and in the cache of its client."""


def _everywhere(places: tuple[str, ...], *layouts: str) -> tuple[str, ...]:
    return tuple(place + layout for layout in layouts for place in places)


_IMAGENET_PAGE = "https://image-net.org/download.php (free account; non-commercial research)"


_COCO_PAGE = "https://cocodataset.org/#download (images under their Flickr licences)"


_PLACES_PAGE = "http://places2.csail.mit.edu/download.html (research and education)"


_CATALOGUE = (
    KnownCorpus(
        name="imagenet",
        title="ImageNet-1k (ILSVRC 2012), training images",
        layouts=(
            *_everywhere(_IMAGENET_PLACES, "train/n*/*"),
            *(
                "ILSVRC2012_img_train/n*/*",
                "n*/*",
                "train/n*_*",
                "train/n*.tar",
                "ILSVRC2012_img_train/n*.tar",
                "n*.tar",
            ),
            *("ILSVRC2012_img_train.tar", "imagenet*-train-*.tar"),
            *_everywhere(_HUB, "train-*.parquet"),
        ),
        images=1_281_167,
        obtain=_IMAGENET_PAGE,
    ),
    KnownCorpus(
        name="imagenet-val",
        title="ImageNet-1k (ILSVRC 2012), validation images",
        layouts=(
            *_everywhere(_IMAGENET_PLACES, "val/*", "val/n*/*"),
            *("ILSVRC2012_img_val/*", "ILSVRC2012_val_*", "ILSVRC2012_img_val.tar", "imagenet*-validation-*.tar"),
            *_everywhere(_HUB, "validation-*.parquet"),
        ),
        images=50_000,
        obtain=_IMAGENET_PAGE,
        folder="imagenet",
    ),
    KnownCorpus(
        name="imagenet-21k",
        title="ImageNet, all synsets (fall 2011)",
        layouts=("n*/*", "n*.tar"),
        images=14_197_122,
        obtain=_IMAGENET_PAGE,
    ),
    KnownCorpus(
        name="coco",
        title="COCO 2017, training images",
        layouts=("train2017/*", "images/train2017/*", "train2014/*", "*", "train2017*.tar"),
        images=118_287,
        obtain=_COCO_PAGE,
    ),
    KnownCorpus(
        name="coco-unlabeled",
        title="COCO 2017, unlabeled images",
        layouts=("unlabeled2017/*", "images/unlabeled2017/*", "unlabeled2017*.tar"),
        images=123_403,
        obtain=_COCO_PAGE,
        folder="coco",
    ),
    KnownCorpus(
        name="places365",
        title="Places365-Standard, training images",
        layouts=("data_256/*/*/*", "data_large/*/*/*", "train/*/*", "places365_standard/train/*/*", "train*.tar"),
        images=1_803_460,
        obtain=_PLACES_PAGE,
    ),
    KnownCorpus(
        name="places365-val",
        title="Places365-Standard, validation images",
        layouts=("val_256/*", "val_large/*", "val/*/*", "places365_standard/val/*/*", "val*.tar"),
        images=36_500,
        obtain=_PLACES_PAGE,
        folder="places365",
    ),
    KnownCorpus(
        name="ade20k",
        title="ADE20K (scene parsing benchmark), training images",
        layouts=("ADEChallengeData2016/images/training/*", "images/training/*"),
        images=20_210,
        obtain="http://sceneparsing.csail.mit.edu (non-commercial research)",
    ),
    KnownCorpus(
        name="openimages",
        title="Open Images V7, training images with boxes",
        layouts=("train/*", "train/data/*", "train/*/*", "train*.tar"),
        images=1_743_042,
        obtain="https://storage.googleapis.com/openimages/web/download_v7.html (images listed as CC BY 2.0)",
    ),
    KnownCorpus(
        name="voc",
        title="Pascal VOC 2012, all images",
        layouts=("VOCdevkit/VOC2012/JPEGImages/*", "VOC2012/JPEGImages/*", "JPEGImages/*"),
        images=17_125,
        obtain="http://host.robots.ox.ac.uk/pascal/VOC/voc2012 (images under Flickr terms)",
    ),
    KnownCorpus(
        name="sun397",
        title="SUN397 scenes",
        layouts=("SUN397/*/*/*", "*/*/sun_*"),
        images=108_754,
        obtain="https://vision.princeton.edu/projects/2010/SUN (research)",
    ),
    KnownCorpus(
        name="food101",
        title="Food-101 dishes",
        layouts=("food-101/images/*/*", "images/*/*"),
        images=101_000,
        obtain="https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101 (research)",
    ),
    KnownCorpus(
        name="dtd",
        title="Describable Textures",
        layouts=("dtd/images/*/*", "images/*/*"),
        images=5_640,
        obtain="https://www.robots.ox.ac.uk/~vgg/data/dtd (research)",
    ),
    KnownCorpus(
        name="inaturalist",
        title="iNaturalist 2021, training images",
        layouts=("train/*/*", "train_mini/*/*"),
        images=2_686_843,
        obtain="https://github.com/visipedia/inat_comp (non-commercial research and education)",
    ),
    KnownCorpus(
        name="cityscapes-extra",
        title="Cityscapes, coarsely annotated street images",
        layouts=("leftImg8bit/train_extra/*/*",),
        images=19_998,
        obtain="https://www.cityscapes-dataset.com (account; non-commercial)",
        folder="cityscapes",
    ),
    KnownCorpus(
        name="bdd100k",
        title="BDD100K, training images",
        layouts=("bdd100k/images/100k/train/*", "images/100k/train/*"),
        images=70_000,
        obtain="http://bdd-data.berkeley.edu (account; research)",
    ),
    KnownCorpus(
        name="cc3m",
        title="Conceptual Captions, fetched by img2dataset",
        layouts=("*.tar", "*/*.jpg"),
        images=3_300_000,
        obtain="https://ai.google.com/research/ConceptualCaptions/download (links only; licences vary)",
    ),
)
