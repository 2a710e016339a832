"""The selected images, found through the corpus in the score store, decoded, and cached as far as memory allows.

Shapes: N images of the selection.
"""

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, TypeVar

import numpy as np
from PIL import Image

from pipeline.corpora.corpus import Corpus
from pipeline.corpora.locate import moved
from pipeline.corpora.reader import ImageReader
from pipeline.decoding.batches import content_hash
from pipeline.decoding.pillow import decode_covering
from pipeline.selection.select import check_selection
from storage.errors import CorpusError, ImageError
from storage.scores.places import check_place
from storage.scores.store import ScoreStore
from storage.selection import Selection

CACHE_BYTES = 1 << 30
MOST_BYTES = 1 << 32
"""Most bytes of an encoded image. The images passed the limit of their scoring, which may have been a high one."""
ImageT = TypeVar("ImageT")


class SelectedImages(Generic[ImageT]):
    """Decoded images by their place in the selection. It is a context manager, because it holds files open."""

    def __init__(
        self, store: ScoreStore, selection: Selection, *, decode: Callable[[bytes], ImageT], root: str | None = None
    ) -> None:
        """Check the selection against the store and find the corpus. ``decode`` makes an image of a file's bytes.

        Raises:
            SelectionError: the selection was made from other scores.
            CorpusError: the corpus is neither where it was scored nor at ``root``.
            StoreError: the store names an address that the user did not (:func:`storage.scores.places.check_place`).
        """
        check_selection(store, selection)
        self.rows: Sequence[int] = [int(row) for row in selection.table["row"]]
        if root is None:
            check_place(store.corpus["root"], store.path)
        corpus = moved(Corpus(**store.corpus), root)
        self._decode = decode
        self._keys = list(selection.table["key"])
        # A store of an older version does not know what its images were.
        self._contents = store.column("content")[self.rows] if store.has("content") else None
        self._reader = ImageReader(corpus, store.manifest(), most=MOST_BYTES)
        self._cache: dict[int, ImageT] = {}
        self._room = CACHE_BYTES
        self._lock = threading.Lock()
        try:
            self[0]
        except Exception:
            self._reader.close()
            raise

    def __enter__(self) -> "SelectedImages[ImageT]":
        self._reader.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._reader.__exit__(kind, error, trace)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> ImageT:
        """Decode the image at a place.

        Raises:
            CorpusError: its file changed since it was scored, or is gone.
        """
        cached = self._cache.get(place)
        if cached is not None:
            return cached
        try:
            data = self._reader.read(self.rows[place])
            if self._contents is not None and content_hash(data) != self._contents[place]:
                raise CorpusError(
                    f"{self._keys[place]} is another image than the one that was scored; score the corpus again with "
                    "another --out"
                )
            image = self._decode(data)
        except ImageError as error:
            raise CorpusError(
                f"{self._keys[place]} could be read when it was scored but not now ({error}); score the corpus again"
            ) from error
        size = _bytes_of(image)
        with self._lock:
            if size <= self._room and place not in self._cache:
                self._cache[place] = image
                self._room -= size
        return image


def _bytes_of(image: Any) -> int:
    return image.nbytes if isinstance(image, np.ndarray) else 3 * image.width * image.height


@dataclass(frozen=True, kw_only=True, slots=True)
class Covering:
    """Decodes to upright RGB, and scales larger images down as far as they still cover ``height`` x ``width``."""

    height: int
    width: int

    def __call__(self, data: bytes) -> Image.Image:
        """Return the image.

        Raises:
            ImageError: the bytes cannot be decoded.
        """
        image = decode_covering(data, height=self.height, width=self.width)
        scale = max(self.height / image.height, self.width / image.width)
        if scale >= 1:
            return image
        size = (math.ceil(image.width * scale), math.ceil(image.height * scale))
        return image.resize(size, Image.Resampling.BILINEAR)
