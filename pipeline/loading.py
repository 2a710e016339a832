"""Batches of decoded images, read and decoded by threads ahead of the teacher. Pillow decodes without holding the GIL.

Shapes: B rows of a batch, N <= B images that decoded, H x W pixels.
"""

import dataclasses
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from storage.errors import ImageError, RejectedImageError
from storage.scores import REJECTED, UNREADABLE

BATCHES_AHEAD = 3
Pixels = NDArray[np.uint8]


class Reader(Protocol):
    """Encoded images by row."""

    def read(self, row: int) -> bytes:
        """The bytes of one image."""
        ...


@dataclasses.dataclass(frozen=True, slots=True)
class Failure:
    """Why a row has no image."""

    status: int
    error: str


@dataclasses.dataclass(frozen=True, slots=True)
class ImageBatch:
    """Consecutive rows of one work unit."""

    rows: range
    good: list[int]
    """[N] the rows that decoded."""
    images_NHW3: Pixels
    failures: dict[int, Failure]


def load_batches(
    reader: Reader,
    decoder: Callable[[bytes], Pixels],
    units: Sequence[range],
    *,
    batch_size: int,
    workers: int,
) -> Iterator[ImageBatch]:
    """Yield the rows of all units in order, in batches that never cross a unit, so that a unit's bytes do not depend on
    where a run began. Memory is bounded by a few batches, however many units there are.

    Raises:
        CorpusError: the corpus itself has gone; a bad image is a :class:`Failure` instead.
    """
    load = _Loader(reader, decoder)
    with ThreadPoolExecutor(max_workers=workers, thread_name_prefix="decode") as pool:
        waiting: deque[tuple[range, list[Future[Pixels | Failure]]]] = deque()
        try:
            for rows in split(units, batch_size):
                waiting.append((rows, [pool.submit(load, row) for row in rows]))
                if len(waiting) > BATCHES_AHEAD:
                    yield _collect(*waiting.popleft())
            while waiting:
                yield _collect(*waiting.popleft())
        finally:
            pool.shutdown(cancel_futures=True)


def split(units: Sequence[range], batch_size: int) -> Iterator[range]:
    """Cut each unit into batches."""
    for unit in units:
        for start in range(unit.start, unit.stop, batch_size):
            yield range(start, min(start + batch_size, unit.stop))


@dataclasses.dataclass(frozen=True, slots=True)
class _Loader:
    reader: Reader
    decoder: Callable[[bytes], Pixels]

    def __call__(self, row: int) -> Pixels | Failure:
        try:
            return self.decoder(self.reader.read(row))
        except RejectedImageError as error:
            return Failure(REJECTED, str(error))
        except ImageError as error:
            return Failure(UNREADABLE, str(error))


def _collect(rows: range, futures: list[Future[Pixels | Failure]]) -> ImageBatch:
    results = [future.result() for future in futures]
    images = {row: result for row, result in zip(rows, results, strict=True) if not isinstance(result, Failure)}
    failures = {row: result for row, result in zip(rows, results, strict=True) if isinstance(result, Failure)}
    stacked = np.stack(list(images.values())) if images else np.zeros((0, 0, 0, 3), dtype=np.uint8)
    return ImageBatch(rows, list(images), stacked, failures)
