"""What a worker does with work units: read, decode, measure, write.

Batches of decoded images come from a thread pool, the scorer measures them in one forward pass, and each whole work
unit goes to the store in a thread of its own. Only counts and timing come back, so that a worker may be anywhere.

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
from pipeline.corpora.reader import ImageReader
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
    """What a worker has to know."""

    settings: ScoreSettings
    corpus: Corpus
    manifest: Manifest
    scorer: Scorer


@dataclasses.dataclass(kw_only=True)
class Timing:
    """Seconds of this run: of the main thread, and of those that work beside it."""

    waiting: float = 0.0
    """The main thread had no decoded images to go on with."""
    inferring: float = 0.0
    """The main thread computed (on a GPU: prepared and waited for results)."""
    reading: float = 0.0
    """Reader threads waited for bytes, added up."""
    decoding: float = 0.0
    """Processor time of the reader threads' decoding, added up."""
    writing: float = 0.0
    """The writer thread wrote work units; the index."""

    @contextmanager
    def measure(self, part: str) -> Iterator[None]:
        """Add the time that the block takes to one part."""
        start = time.perf_counter()
        yield
        setattr(self, part, getattr(self, part) + time.perf_counter() - start)


def score_units(
    job: Job, store: ScoreStore, units: Sequence[range], timing: Timing, advance: Callable[[int], None]
) -> None:
    """Score work units in their order and commit each; ``advance`` hears of every batch's rows.

    Raises:
        CorpusError: the corpus itself has gone.
        StoreError: the store has gone.
    """
    with (
        ImageReader(job.corpus, job.manifest) as reader,
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
    decoder = Decoder(height=height, width=width, min_side=settings.min_side)
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
        stack=stack,
    )


def _measure(
    job: Job, batches: Iterator[ImageBatch], timing: Timing
) -> Generator[tuple[ImageBatch, Measured | None], None, None]:
    """Scores of each batch, None where none of its images decoded; a GPU is kept one batch ahead."""
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
    """The scores of no images."""


class UnitScores:
    """The rows of one work unit, filled batch by batch."""

    def __init__(self, rows: range, store: ScoreStore) -> None:
        self.rows = rows
        self.columns: Unit = empty_unit(len(rows), store.attributes)

    def add(self, batch: ImageBatch, measured: Measured | None) -> None:
        """Enter a batch's scores and failures."""
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
        """Begin to write a unit, once the one before is written. Raises what writing that one raised."""
        self._finish()
        self._last = self._thread.submit(self._write, rows, unit)

    def _finish(self) -> None:
        if self._last is not None:
            self._last.result()

    def _write(self, rows: range, unit: Unit) -> None:
        with self._timing.measure("writing"):
            self._store.write_unit(rows, unit)
