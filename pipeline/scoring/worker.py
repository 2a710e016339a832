"""The worker, which reads, decodes, measures and writes work units.

A thread pool decodes batches of images, the scorer measures them in one forward pass, and a thread of its own writes
each complete work unit. Only counts and timing are returned, so that a worker may run anywhere.

Shapes: N images of a batch, S rows of a work unit.
"""

import dataclasses
import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import Any

import numpy as np
import torch

from pipeline.corpora.corpus import Corpus
from pipeline.corpora.reader import MAX_BYTES, ImageReader
from pipeline.decoding.batches import ImageBatch, load_batches, split
from pipeline.decoding.nvjpeg import GpuDecoder
from pipeline.decoding.pillow import Decoder
from pipeline.devices import stack_pinned
from pipeline.scoring.scorer import Measured, Scorer
from pipeline.settings import ScoreSettings
from storage.manifest import Manifest
from storage.scores.schema import REJECTED, SCORED, Unit, empty_unit
from storage.scores.store import ScoreStore


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """The inputs of a worker."""

    settings: ScoreSettings
    corpus: Corpus
    manifest: Manifest
    """The images that have a row."""
    listed: Manifest
    """All images of the corpus, also those beyond ``limit``."""
    scorer: Scorer


@dataclasses.dataclass(kw_only=True)
class Timing:
    """Seconds of this run, in the main thread and in the threads beside it."""

    waiting: float = 0.0
    """Time that the main thread waited for decoded images."""
    inferring: float = 0.0
    """Time that the main thread computed; with a GPU, time that it prepared and waited for results."""
    reading: float = 0.0
    """Time that the decoding threads waited for bytes, summed over threads."""
    decoding: float = 0.0
    """CPU time that the decoding threads decoded, summed over threads."""
    writing: float = 0.0
    """Time that the writer thread wrote work units, and time for the index."""

    @contextmanager
    def measure(self, part: str) -> Iterator[None]:
        """Add the time that the block takes to one part."""
        start = time.perf_counter()
        yield
        setattr(self, part, getattr(self, part) + time.perf_counter() - start)


def score_units(
    job: Job, store: ScoreStore, units: Sequence[range], timing: Timing, advance: Callable[[int], None]
) -> None:
    """Score work units in their order and commit each. ``advance`` is called with the number of rows of every batch.

    Raises:
        CorpusError: the corpus no longer exists.
        StoreError: the store no longer exists.
    """
    with (
        ImageReader(job.corpus, job.manifest, most=max(MAX_BYTES, 6 * job.settings.max_pixels)) as reader,
        _Writer(store, timing) as writer,
        closing(_load(job, reader, units)) as batches,
        closing(_measure(job, batches, timing)) as measured,
    ):
        for unit in units:
            collected = UnitScores(unit, store)
            for _ in split([unit], job.settings.batch_size):
                batch, scores = next(measured)
                collected.add(batch, scores)
                advance(len(batch.rows))
            writer.put(unit, collected.columns)


def _load(job: Job, reader: ImageReader, units: Sequence[range]) -> Generator[ImageBatch, None, None]:
    settings, device = job.settings, job.scorer.device
    height, width = job.scorer.teacher.spec.image_size
    decoder = Decoder(height=height, width=width, min_side=settings.min_side, max_pixels=settings.max_pixels)
    on_gpu = settings.decoder == "nvjpeg"
    stack: Callable[[list[Any]], Any] = np.stack
    if device.type == "cuda":
        stack = torch.stack if on_gpu else stack_pinned
    return load_batches(
        reader,
        GpuDecoder(decoder, device) if on_gpu else decoder,
        units,
        batch_size=settings.batch_size,
        workers=settings.workers or os.cpu_count() or 1,
        patience=settings.patience,
        stack=stack,
    )


def _measure(
    job: Job, batches: Iterator[ImageBatch], timing: Timing
) -> Generator[tuple[ImageBatch, Measured | None], None, None]:
    """Yield each batch with its results, or None if no image could be decoded. A GPU is kept one batch ahead."""
    ahead = 1 if job.scorer.device.type == "cuda" else 0
    launched: deque[tuple[ImageBatch, Callable[[], Measured | None]]] = deque()
    while True:
        with timing.measure("waiting"):
            batch = next(batches, None)
        if batch is not None:
            timing.reading += batch.reading
            timing.decoding += batch.decoding
            with timing.measure("inferring"):
                launched.append((batch, job.scorer.launch(batch.images_NHW3) if batch.good else _nothing))
        while launched and (batch is None or len(launched) > ahead):
            finished, wait = launched.popleft()
            with timing.measure("inferring"):
                scores = wait()
            yield finished, scores
        if batch is None:
            return


def _nothing() -> None:
    """Return the results of a batch without images, None."""


class UnitScores:
    """The rows of one work unit, filled batch by batch."""

    def __init__(self, rows: range, store: ScoreStore) -> None:
        self.rows = rows
        self.columns: Unit = empty_unit(len(rows), store.attributes)

    def add(self, batch: ImageBatch, measured: Measured | None) -> None:
        """Enter the results and failures of a batch, and what its images were."""
        if "content" in self.columns:
            for row, content in batch.contents.items():
                self.columns["content"][row - self.rows.start] = content
        for row, failure in batch.failures.items():
            self._fail(row - self.rows.start, failure.status, failure.error)
        if measured is None:
            return
        places = np.asarray(batch.good) - self.rows.start
        finite = np.all(
            [np.isfinite(values.reshape(len(places), -1)).all(axis=1) for values in measured.values()], axis=0
        )
        for place in places[~finite]:
            self._fail(place, REJECTED, "its statistics in the teacher are not finite")
        self.columns["status"][places[finite]] = SCORED
        for name in measured.keys() & self.columns.keys():
            self.columns[name][places[finite]] = measured[name][finite]

    def _fail(self, place: int, status: int, error: str) -> None:
        self.columns["status"][place] = status
        self.columns["error"][place] = error


class _Writer:
    """Writes work units in a thread of its own, one at a time and in order, so that at most two are in memory."""

    def __init__(self, store: ScoreStore, timing: Timing) -> None:
        self._store = store
        self._timing = timing
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="write")
        self._last: Future[None] | None = None

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._thread.shutdown()
        if error is None:
            self._finish()

    def put(self, rows: range, unit: Unit) -> None:
        """Begin to write a unit as soon as the one before is written. Re-raise an error from writing that one."""
        self._finish()
        self._last = self._thread.submit(self._write, rows, unit)

    def _finish(self) -> None:
        if self._last is not None:
            self._last.result()

    def _write(self, rows: range, unit: Unit) -> None:
        with self._timing.measure("writing"):
            self._store.write_unit(rows, unit)
