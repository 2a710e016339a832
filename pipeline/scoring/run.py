"""Stage one: stream a corpus through the teacher and keep every image's distance, embedding and fate.

Reader, scorer and writer: batches of decoded images come from a thread pool, the scorer measures them in one forward
pass, and each whole work unit goes to the store in a thread of its own. Every image ends as scored, unreadable or
rejected.

Shapes: N images of a batch, S rows of a work unit, L monitored layers, D embedding numbers.
"""

import dataclasses
import os
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.corpora.corpus import Corpus
from pipeline.corpora.locate import resolve_corpus
from pipeline.corpora.reader import ImageReader, list_images
from pipeline.decoding.batches import ImageBatch, load_batches, split
from pipeline.decoding.nvjpeg import GpuDecoder
from pipeline.decoding.pillow import Decoder
from pipeline.devices import stack_pinned
from pipeline.models.segmenter import fingerprint
from pipeline.scoring.scorer import BatchScores, make_scorer
from pipeline.scoring.worker import Timing, UnitScores, _nothing, _Writer
from pipeline.settings import ScoreSettings
from storage.differences import settings_difference
from storage.errors import StoreError
from storage.index import build_index
from storage.manifest import Manifest
from storage.progress import Step
from storage.scores.claim import exclusive, sweep
from storage.scores.schema import REJECTED, SCHEMA_VERSION, SCORED, SCORING_VERSION, UNREADABLE, Attributes
from storage.scores.store import ScoreStore, create_store, is_store, open_store

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ScoreSummary:
    """What a complete store holds, and where this run's time went."""

    path: Path
    scored: int
    unreadable: int
    rejected: int
    quantiles: dict[float, float]
    """Of the distance; empty where nothing was scored."""
    first_errors: list[tuple[str, str]]
    """Key and error of the first images that were not scored."""
    timing: Timing
    already_complete: bool


class Scoring:
    """One run of stage one: iterate over :meth:`run`, then read :attr:`summary`."""

    def __init__(self, settings: ScoreSettings) -> None:
        """Resolve everything that can be wrong before anything is written.

        Raises:
            CorpusError: the corpus is missing or empty.
            ModelError: the teacher is missing, has no BatchNorm, or lacks a layer asked for.
        """
        self.settings = settings
        self.corpus: Corpus = resolve_corpus(settings.corpus, settings.root)
        self.scorer = make_scorer(settings)
        manifest = list_images(self.corpus)
        self.manifest: Manifest = manifest.head(settings.limit) if settings.limit else manifest
        self.timing = Timing()
        self.summary: ScoreSummary | None = None

    def attributes(self) -> Attributes:
        """Everything that the scores depend on: what a second run has to agree with."""
        teacher, layers = self.scorer.teacher, self.scorer.layers
        height, width = teacher.spec.image_size
        size = min(self.settings.embedding_size, layers[-1].channels)
        return {
            "schema_version": SCHEMA_VERSION,
            "scoring_version": SCORING_VERSION,
            "teacher": fingerprint(teacher),
            "layers": [layer.name for layer in layers],
            "distance": self.settings.distance,
            "transform": {
                "size": [height, width],
                "fit": "cover",
                "min_side": self.settings.min_side,
                "decoder": self.settings.decoder,
            },
            "embedding": {"size": size, "layer": layers[-1].name},
            "entropy": self.settings.entropy,
            "precision": self.settings.precision,
            "shard_size": self.settings.shard_size,
            "images": len(self.manifest),
            "manifest": self.manifest.fingerprint,
        }

    def sources(self) -> Attributes:
        """Where things were: later stages look there, and a run may find them elsewhere."""
        return {
            "corpus": dataclasses.asdict(self.corpus),
            "sources": list(self.manifest.sources),
            "teacher_path": self.settings.teacher,
        }

    def run(self) -> Iterator[Step]:
        """Score what is still to be scored, build the index, and mark the store complete.

        Raises:
            StoreError: the store was made with other settings, or another run is writing it.
        """
        path = Path(self.settings.out)
        with exclusive(path):
            store = self._open(path)
            sweep(path)
            if self.settings.retry_failed and store.errors():
                store.reopen_failed()
            already = store.complete
            if not already:
                yield from self._score(store)
                self._index(store)
                store.set_complete(True)
        self.summary = summarise(store, self.timing, already_complete=already)

    def _open(self, path: Path) -> ScoreStore:
        wanted = self.attributes()
        if path.exists():
            try:
                store = open_store(path, writable=True)
                differs = settings_difference(store.attributes, wanted)
            except StoreError as error:
                if not self.settings.overwrite or not is_store(path):
                    raise  # never replace something that is no store of ours
                differs = str(error)
            if differs is None:
                return store
            if not self.settings.overwrite:
                raise StoreError(f"{path} was made with other settings: {differs}; use --overwrite or another --out")
        return self._create(path, wanted)

    def _create(self, path: Path, wanted: Attributes) -> ScoreStore:
        return create_store(path, self.manifest, {**wanted, **self.sources()}, entropy=self.settings.entropy)

    def _score(self, store: ScoreStore) -> Iterator[Step]:
        pending = store.pending_units()
        done = len(store) - sum(map(len, pending))
        yield Step(done=done, total=len(store))
        with ImageReader(self.corpus, self.manifest) as reader, _Writer(store, self.timing) as writer:
            measured = self._measure(self._load(reader, pending))
            for unit in pending:
                collected = UnitScores(unit, store)
                for _ in split([unit], self.settings.batch_size):
                    batch, scores = next(measured)
                    collected.add(batch, scores)
                    done += len(batch.rows)
                    yield Step(done=done, total=len(store))
                writer.put(unit, collected.scores)

    def _load(self, reader: ImageReader, units: list[range]) -> Iterator[ImageBatch]:
        height, width = self.scorer.teacher.spec.image_size
        decoder = Decoder(height=height, width=width, min_side=self.settings.min_side)
        on_gpu = self.settings.decoder == "nvjpeg"
        stack: Callable[[list[Any]], Any] = np.stack
        if self.scorer.device.type == "cuda":
            stack = torch.stack if on_gpu else stack_pinned
        return load_batches(
            reader,
            GpuDecoder(decoder, self.scorer.device) if on_gpu else decoder,
            units,
            batch_size=self.settings.batch_size,
            workers=self.settings.workers or os.cpu_count() or 1,
            stack=stack,
        )

    def _measure(self, batches: Iterator[ImageBatch]) -> Iterator[tuple[ImageBatch, BatchScores | None]]:
        """Scores of each batch, None where none of its images decoded; a GPU is kept one batch ahead."""
        ahead = 1 if self.scorer.device.type == "cuda" else 0
        launched: deque[tuple[ImageBatch, Callable[[], BatchScores | None]]] = deque()
        while True:
            with self.timing.measure("waiting"):
                batch = next(batches, None)
            if batch is not None:
                self.timing.reading += batch.reading
                self.timing.decoding += batch.decoding
                with self.timing.measure("inferring"):
                    launched.append((batch, self.scorer.launch(batch.images_NHW3) if batch.good else _nothing))
            while launched and (batch is None or len(launched) > ahead):
                finished, wait = launched.popleft()
                with self.timing.measure("inferring"):
                    scores = wait()
                yield finished, scores
            if batch is None:
                return

    def _index(self, store: ScoreStore) -> None:
        with self.timing.measure("writing"):
            rows = np.flatnonzero(store.status() == SCORED)
            built = build_index(store.column("embedding")[rows], rows)
            cell = np.full(len(store), -1, dtype=np.int32)
            cell[rows] = built.cell
            store.write_diversity(built.centroids, cell, built.serialised)


def summarise(store: ScoreStore, timing: Timing, *, already_complete: bool) -> ScoreSummary:
    """Count fates and describe the distances of a complete store."""
    status = store.status()
    distances = store.column("distance")[status == SCORED]
    keys = store.column("key")
    errors = list(store.errors().items())[:3]
    return ScoreSummary(
        path=store.path,
        scored=int((status == SCORED).sum()),
        unreadable=int((status == UNREADABLE).sum()),
        rejected=int((status == REJECTED).sum()),
        quantiles={q: float(np.quantile(distances, q)) for q in QUANTILES} if len(distances) else {},
        first_errors=[(str(keys[row]), text) for row, text in errors],
        timing=timing,
        already_complete=already_complete,
    )
