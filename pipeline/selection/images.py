"""The selected images: found through the corpus that the score store recorded, decoded, and kept while memory allows.

Shapes: N images of the selection.
"""

import math
import threading
from collections.abc import Sequence
from types import TracebackType

from PIL import Image

from pipeline.corpora.corpus import Corpus
from pipeline.corpora.locate import moved
from pipeline.corpora.reader import ImageReader
from pipeline.decoding.pillow import decode_rgb
from pipeline.selection.select import check_selection
from storage.errors import CorpusError, ImageError
from storage.scores.store import ScoreStore
from storage.selection import Selection

CACHE_BYTES = 1 << 30


class SelectedImages:
    """Upright RGB images by their place in the selection. A context manager: it holds files open."""

    def __init__(
        self, store: ScoreStore, selection: Selection, *, largest: tuple[int, int], root: str | None = None
    ) -> None:
        """Check the selection against the store and find the corpus. Images are kept no larger than they are of use:
        scaled down, where they are larger, to cover ``largest`` = (height, width).

        Raises:
            SelectionError: the selection was made from other scores.
            CorpusError: the corpus is not where it was scored, nor at ``root``.
        """
        check_selection(store, selection)
        self.rows: Sequence[int] = [int(row) for row in selection.table["row"]]
        corpus = moved(Corpus(**store.attributes["corpus"]), root)
        self._largest = largest
        self._keys = list(selection.table["key"])
        self._reader = ImageReader(corpus, store.manifest())
        self._cache: dict[int, Image.Image] = {}
        self._room = CACHE_BYTES
        self._lock = threading.Lock()
        self[0]

    def __enter__(self) -> "SelectedImages":
        self._reader.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._reader.__exit__(kind, error, trace)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> Image.Image:
        """Decode the image at a place. Raises CorpusError where its file changed since it was scored."""
        cached = self._cache.get(place)
        if cached is not None:
            return cached
        try:
            image = self._shrink(decode_rgb(self._reader.read(self.rows[place])))
        except ImageError as error:
            raise CorpusError(
                f"{self._keys[place]} could be read when it was scored and cannot now ({error}); score the corpus again"
            ) from error
        size = 3 * image.width * image.height
        with self._lock:
            if size <= self._room:
                self._cache[place] = image
                self._room -= size
        return image

    def _shrink(self, image: Image.Image) -> Image.Image:
        scale = max(self._largest[0] / image.height, self._largest[1] / image.width)
        if scale >= 1:
            return image
        size = (math.ceil(image.width * scale), math.ceil(image.height * scale))
        return image.resize(size, Image.Resampling.BILINEAR)
