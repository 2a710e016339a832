"""Going on with a store whose corpus has changed since it was listed, and saying what has become of its images."""

import logging

import numpy as np
from numpy.typing import NDArray

from pipeline.corpora.reader import NO_LONGER
from storage.errors import StoreError
from storage.manifest import Manifest
from storage.scores.changes import Changes, compare
from storage.scores.store import ScoreStore

logger = logging.getLogger(__name__)


def follow(store: ScoreStore, listed: Manifest, *, limited: bool) -> Manifest:
    """Bring a store up to date with its corpus, and return the manifest of its rows.

    Rows whose images are gone become unreadable. Units with replaced images are to be scored again. New images get no
    row; they are not mentioned where the store was ``limited`` to a part of the corpus.

    Raises:
        StoreError: more than half of the images are gone, so that the corpus is another one.
    """
    held = store.manifest()
    changes = compare(held, listed)
    if 2 * changes.absent > len(held):
        raise StoreError(
            f"{store.path} was made of other images: {changes.absent} of its {len(held)} are not in the corpus; "
            "restore them, or use --overwrite or another --out"
        )
    _say(store, held, changes, limited=limited)
    if len(changes.replaced):
        store.reopen(changes.replaced)
    if len(changes.gone):
        store.drop(changes.gone, NO_LONGER)
    if changes.manifest.fingerprint != store.attributes["manifest"]:
        store.adopt(changes.manifest)
    return changes.manifest


def _say(store: ScoreStore, held: Manifest, changes: Changes, *, limited: bool) -> None:
    if len(changes.gone):
        logger.warning(
            "%s: of its images, %d of %d no longer exist (such as %s); their rows are unreadable",
            *(store.path, len(changes.gone), len(held), _first(held, changes.gone)),
        )
    if len(changes.replaced):
        logger.warning(
            "%s: of its images, %d of %d were replaced since it was made (such as %s); their shards are scored again",
            *(store.path, len(changes.replaced), len(held), _first(held, changes.replaced)),
        )
    if changes.new and not limited:
        logger.warning(
            "%s: left out %d of %d images, which are new since it was made (such as %s); a new store has them all "
            "(another --out, or --overwrite)",
            *(store.path, len(changes.new), len(held) + len(changes.new) - changes.absent, ", ".join(changes.new[:3])),
        )


def _first(manifest: Manifest, rows: NDArray[np.int64]) -> str:
    return ", ".join(manifest.keys[int(row)] for row in rows[:3])
