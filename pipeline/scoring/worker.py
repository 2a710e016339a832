"""What a worker does with work units: read, decode, measure, write."""

import dataclasses
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np

from pipeline.decoding.batches import ImageBatch
from pipeline.scoring.scorer import BatchScores
from storage.scores.schema import REJECTED, SCORED, ShardScores
from storage.scores.store import ScoreStore


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


def _nothing() -> None:
    """The scores of no images."""


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

    def put(self, rows: range, scores: ShardScores) -> None:
        """Begin to write a unit, once the one before is written. Raises what writing that one raised."""
        self._finish()
        self._last = self._thread.submit(self._write, rows, scores)

    def _finish(self) -> None:
        if self._last is not None:
            self._last.result()

    def _write(self, rows: range, scores: ShardScores) -> None:
        with self._timing.measure("writing"):
            self._store.write_unit(rows, scores)


class UnitScores:
    """The rows of one work unit, filled batch by batch."""

    def __init__(self, rows: range, store: ScoreStore) -> None:
        self.rows = rows
        count = len(rows)
        layers, numbers = len(store.attributes["layers"]), int(store.attributes["embedding"]["size"])
        self.scores = ShardScores(
            status=np.zeros(count, np.uint8),
            error=[""] * count,
            distance=np.full(count, np.nan, np.float32),
            layer_distance=np.full((count, layers, 2), np.nan, np.float32),
            embedding=np.zeros((count, numbers), np.float16),
            entropy=np.full(count, np.nan, np.float32) if store.has("entropy") else None,
        )

    def add(self, batch: ImageBatch, measured: BatchScores | None) -> None:
        """Enter a batch's scores and failures."""
        for row, failure in batch.failures.items():
            self.scores.status[row - self.rows.start] = failure.status
            self.scores.error[row - self.rows.start] = failure.error
        if measured is None:
            return
        places = np.asarray(batch.good) - self.rows.start
        finite = np.isfinite(measured.distance_N) & np.isfinite(measured.embedding_ND).all(axis=1)
        for place in places[~finite]:
            self.scores.status[place] = REJECTED
            self.scores.error[place] = "its statistics in the teacher are not finite"
        places, measured = places[finite], measured.take(finite)
        self.scores.status[places] = SCORED
        self.scores.distance[places] = measured.distance_N
        self.scores.layer_distance[places] = measured.layer_distance_NL2
        self.scores.embedding[places] = measured.embedding_ND
        if self.scores.entropy is not None and measured.entropy_N is not None:
            self.scores.entropy[places] = measured.entropy_N
