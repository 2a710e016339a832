"""Notices label images among photographs: masks that lie beside their images are scored like any other picture."""

import logging
from collections.abc import Iterable
from pathlib import PurePosixPath

import numpy as np

from pipeline.corpora.corpus import Corpus
from pipeline.corpora.reader import ImageReader
from pipeline.decoding.batches import PATIENCE
from pipeline.decoding.crew import Crew, GivenUpError
from pipeline.decoding.pillow import has_one_channel
from storage.errors import ImageError
from storage.manifest import Manifest

logger = logging.getLogger(__name__)

SAMPLE = 64
FEWEST, MOST = 0.25, 0.9
"""Shares of single-channel images that make one suspect masks. Photographs in grey are rarer, corpora in grey purer."""


def warn_of_masks(corpus: Corpus, manifest: Manifest, *, patience: float = PATIENCE) -> None:
    """Warn where a quarter or more of a random sample of images has a single channel and others have colours.

    Parquet is not sampled: it has a column for each kind, and one image costs the reading of a row group.
    """
    if corpus.kind == "parquet":
        return
    rows = np.random.default_rng(0).permutation(len(manifest))[:SAMPLE]
    grey, coloured = list[str](), list[str]()
    with ImageReader(corpus, manifest) as reader, Crew(1, patience=patience, name="look") as crew:
        for row in sorted(map(int, rows)):
            try:
                single = crew.result(crew.submit(lambda row: has_one_channel(reader.read(row)), row))
            except ImageError:
                continue
            except GivenUpError:  # the scoring says which images these are
                return
            if single is not None:
                (grey if single else coloured).append(manifest.keys[row])
    seen = len(grey) + len(coloured)
    if seen == 0 or not FEWEST <= len(grey) / seen <= MOST:
        return
    logger.warning(
        "%s: %d of %d images that were looked at have a single channel, as masks have (such as %s), and the others do "
        "not (such as %s); if these are labels, leave them out by --include GLOB%s",
        *(corpus.name, len(grey), seen, grey[0], coloured[0], _suggestion(grey, coloured)),
    )


def _suggestion(grey: list[str], coloured: list[str]) -> str:
    """A glob that tells the coloured images from the others by their extension or folder, if one does."""
    for part in (_extension, _folder):
        wanted, others = set(map(part, coloured)), set(map(part, grey))
        if len(wanted) == 1 and not wanted & others and (glob := wanted.pop()):
            return f", such as --include '{glob}'"
    return ""


def _extension(key: str) -> str:
    return f"*{''.join(_named(PurePosixPath(key).suffixes))}"


def _named(suffixes: Iterable[str]) -> list[str]:
    """The suffixes that are words and no numbers: ``.seg.png`` of ``0001.5.seg.png``."""
    return [suffix for suffix in suffixes if not suffix[1:].isdigit()]


def _folder(key: str) -> str:
    return f"{key.partition('/')[0]}/*" if "/" in key else ""
