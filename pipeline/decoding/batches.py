"""Batches of decoded images, which threads read and decode ahead of the teacher. Pillow decodes without the GIL.

Shapes: B rows of a batch, N <= B images that could be decoded, H x W pixels.
"""

import dataclasses
import hashlib
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from pipeline.decoding.crew import Crew, GivenUpError, Task
from storage.errors import CorpusError, ImageError, RejectedImageError
from storage.scores.schema import REJECTED, UNREADABLE

BATCHES_AHEAD = 3
PATIENCE = 120.0
"""By default, seconds after which an image that is being read or decoded is given up."""
_MOST_GIVEN_UP = 8
"""So many images in a row that are given up are no fault of theirs."""
Pixels = Any
"""One image or a stack of images: a uint8 array, or another type that a decoder returns and ``stack`` joins."""


class Reader(Protocol):
    """Encoded images by row."""

    def read(self, row: int) -> bytes:
        """The bytes of one image."""
        ...

    def give_up(self, row: int) -> None:
        """Note that the reading of an image does not end."""
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
    patience: float = PATIENCE,
    stack: Callable[[list[Pixels]], Pixels] = np.stack,
) -> Generator[ImageBatch, None, None]:
    """Yield the rows of all units in order, in batches.

    No batch crosses the border of a unit, so that a unit's bytes do not depend on where a run began. Memory is bounded
    by a few batches, whatever the number of units. An image that takes more than ``patience`` seconds to read and
    decode is given up, and fails.

    Raises:
        CorpusError: the corpus no longer exists, or does not answer; a bad image is a :class:`Failure` instead.
    """
    load = _Loader(reader, decoder)
    with Crew(workers, patience=patience, name="decode") as crew:
        collect = _Collector(crew, reader, patience, stack)
        waiting: deque[tuple[range, list[_Work]]] = deque()
        for rows in split(units, batch_size):
            waiting.append((rows, [_Work.begin(crew, load, row) for row in rows]))
            if len(waiting) > BATCHES_AHEAD:
                yield collect(*waiting.popleft())
        while waiting:
            yield collect(*waiting.popleft())


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

    def __call__(self, row: int, is_read: threading.Event) -> _Loaded:
        """Read and decode a row; set ``is_read`` in between."""
        start = time.perf_counter()
        data = self._attempt(self.reader.read, row)
        is_read.set()
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


@dataclasses.dataclass(frozen=True, slots=True)
class _Work:
    """The loading of one row."""

    task: Task[_Loaded]
    is_read: threading.Event

    @classmethod
    def begin(cls, crew: Crew, load: _Loader, row: int) -> "_Work":
        is_read = threading.Event()
        return cls(crew.submit(load, row, is_read), is_read)


class _Collector:
    """Waits for the rows of batches, and gives up those that do not come."""

    def __init__(self, crew: Crew, reader: Reader, patience: float, stack: Callable[[list[Pixels]], Pixels]) -> None:
        self._crew, self._reader, self._patience, self._stack = crew, reader, patience, stack
        self._given_up = 0  # rows in a row

    def __call__(self, rows: range, works: list[_Work]) -> ImageBatch:
        """Return a batch."""
        loaded = [self._result(row, work) for row, work in zip(rows, works, strict=True)]
        images = {row: one.result for row, one in zip(rows, loaded, strict=True) if not isinstance(one.result, Failure)}
        failures = {row: one.result for row, one in zip(rows, loaded, strict=True) if isinstance(one.result, Failure)}
        return ImageBatch(
            rows=rows,
            good=list(images),
            images_NHW3=self._stack(list(images.values())) if images else None,
            failures=failures,
            contents={row: one.content for row, one in zip(rows, loaded, strict=True) if one.content is not None},
            reading=sum(one.reading for one in loaded),
            decoding=sum(one.decoding for one in loaded),
        )

    def _result(self, row: int, work: _Work) -> _Loaded:
        try:
            loaded = self._crew.result(work.task)
        except GivenUpError:
            return self._give_up(row, "decoding" if work.is_read.is_set() else "reading")
        self._given_up = 0
        return loaded

    def _give_up(self, row: int, what: str) -> _Loaded:
        self._given_up += 1
        if self._given_up == _MOST_GIVEN_UP:
            raise CorpusError(
                f"{_MOST_GIVEN_UP} images in a row did not come within {self._patience:g} seconds each; see whether "
                "their disk or server answers, and run again to continue (or wait longer with --patience)"
            )
        if what == "reading":
            self._reader.give_up(row)
        return _Loaded(
            Failure(UNREADABLE, f"given up: {what} it took more than {self._patience:g} seconds"), None, 0, 0
        )
