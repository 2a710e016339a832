"""Batches of decoded images, which threads read and decode ahead of the teacher. Pillow decodes without the GIL.

Shapes: B rows of a batch, N <= B images that could be decoded, H x W pixels.
"""

import dataclasses
import hashlib
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np

from storage.errors import ImageError, RejectedImageError
from storage.scores.schema import REJECTED, UNREADABLE

BATCHES_AHEAD = 3
Pixels = Any
"""One image or a stack of images: a uint8 array, or another type that a decoder returns and ``stack`` joins."""


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
    """The rows that could be decoded, [N]."""
    images_NHW3: Pixels
    """The stacked images, [N, H, W, 3]; None if no row could be decoded."""
    failures: dict[int, Failure]
    contents: dict[int, int]
    """:func:`content_hash` of the bytes of each row that could be read."""
    reading: float
    """Seconds that threads spent reading the rows."""
    decoding: float
    """Seconds of processor time that threads spent decoding them."""


def load_batches(
    reader: Reader,
    decoder: Callable[[bytes], Pixels],
    units: Sequence[range],
    *,
    batch_size: int,
    workers: int,
    stack: Callable[[list[Pixels]], Pixels] = np.stack,
) -> Generator[ImageBatch, None, None]:
    """Yield the rows of all units in order, in batches.

    No batch crosses the border of a unit, so that a unit's bytes do not depend on where a run began. Memory is bounded
    by a few batches, whatever the number of units.

    Raises:
        CorpusError: the corpus no longer exists; a bad image is a :class:`Failure` instead.
    """
    load = _Loader(reader, decoder)
    with ThreadPoolExecutor(max_workers=workers, thread_name_prefix="decode") as pool:
        waiting: deque[tuple[range, list[Future[_Loaded]]]] = deque()
        try:
            for rows in split(units, batch_size):
                waiting.append((rows, [pool.submit(load, row) for row in rows]))
                if len(waiting) > BATCHES_AHEAD:
                    yield _collect(*waiting.popleft(), stack)
            while waiting:
                yield _collect(*waiting.popleft(), stack)
        finally:
            pool.shutdown(cancel_futures=True)


def content_hash(data: bytes) -> int:
    """Return 64 bits of the BLAKE2b hash of an encoded image, by which a replaced image is told from the scored one."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def split(units: Sequence[range], batch_size: int) -> Iterator[range]:
    """Cut each unit into batches."""
    for unit in units:
        for start in range(unit.start, unit.stop, batch_size):
            yield range(start, min(start + batch_size, unit.stop))


@dataclasses.dataclass(frozen=True, slots=True)
class _Loaded:
    result: Pixels | Failure
    content: int | None
    reading: float
    decoding: float


@dataclasses.dataclass(frozen=True, slots=True)
class _Loader:
    reader: Reader
    decoder: Callable[[bytes], Pixels]

    def __call__(self, row: int) -> _Loaded:
        start = time.perf_counter()
        data = self._attempt(self.reader.read, row)
        read, busy = time.perf_counter(), time.thread_time()
        result, content = data, None
        if not isinstance(data, Failure):
            result, content = self._attempt(self.decoder, data), content_hash(data)
        return _Loaded(result, content, read - start, time.thread_time() - busy)

    @staticmethod
    def _attempt(work: Callable[[Any], Any], argument: object) -> Any:
        try:
            return work(argument)
        except RejectedImageError as error:
            return Failure(REJECTED, str(error))
        except ImageError as error:
            return Failure(UNREADABLE, str(error))


def _collect(rows: range, futures: list[Future[_Loaded]], stack: Callable[[list[Pixels]], Pixels]) -> ImageBatch:
    loaded = [future.result() for future in futures]
    images = {row: one.result for row, one in zip(rows, loaded, strict=True) if not isinstance(one.result, Failure)}
    failures = {row: one.result for row, one in zip(rows, loaded, strict=True) if isinstance(one.result, Failure)}
    return ImageBatch(
        rows=rows,
        good=list(images),
        images_NHW3=stack(list(images.values())) if images else None,
        failures=failures,
        contents={row: one.content for row, one in zip(rows, loaded, strict=True) if one.content is not None},
        reading=sum(one.reading for one in loaded),
        decoding=sum(one.decoding for one in loaded),
    )
