"""Stage one: stream a corpus through the teacher and keep every image's distance, embedding and status.

A run makes the store, claims it, has an engine score the pending units, builds the diversity index and marks the store
complete. Every image ends as scored, unreadable or rejected.
"""

import dataclasses
import logging
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.corpora.locate import resolve_corpus
from pipeline.corpora.masks import warn_of_masks
from pipeline.corpora.reader import list_images
from pipeline.models.segmenter import fingerprint
from pipeline.scoring.continuation import follow
from pipeline.scoring.engines import Engine, in_this_process
from pipeline.scoring.failures import write_failures
from pipeline.scoring.scorer import make_scorer
from pipeline.scoring.worker import Job, Timing
from pipeline.settings import ScoreSettings
from storage.differences import differences
from storage.errors import StoreError
from storage.files.claim import exclusive, sweep
from storage.index import build_index
from storage.manifest import GONE
from storage.progress import Progress, Step, ignore
from storage.scores.equality import warn_of_equal_distances
from storage.scores.places import kept
from storage.scores.schema import COLUMNS, REJECTED, SCHEMA_VERSION, SCORED, SCORING_VERSION, UNREADABLE, Attributes
from storage.scores.store import ScoreStore, create_store, is_store, open_store

logger = logging.getLogger(__name__)
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ScoreResult:
    """A summary of a complete store, and the time that this run took."""

    path: Path
    scored: int
    unreadable: int
    rejected: int
    quantiles: dict[float, float]
    """Quantiles of the distance; empty if no image was scored."""
    first_errors: list[tuple[str, str]]
    """Key and error of the first unreadable and rejected images."""
    timing: Timing
    already_complete: bool


def score(settings: ScoreSettings, progress: Progress = ignore) -> ScoreResult:
    """Score the pending images, build the index, and mark the store complete.

    Raises:
        CorpusError: the corpus is missing or empty.
        ModelError: the teacher is missing, has no BatchNorm, or lacks a layer in ``layers``.
        StoreError: the store was made with other settings, or another run is writing it.
    """
    return run(prepare(settings), progress)


def prepare(settings: ScoreSettings) -> Job:
    """Check the settings, the teacher and the corpus before anything is written.

    Raises:
        CorpusError: the corpus is missing or empty.
        ModelError: the teacher cannot be used.
        SettingsError: the settings cannot be used, or no such device exists.
    """
    include, column = settings.include or "", settings.column or ""
    corpus = resolve_corpus(settings.corpus, settings.root, include=include, column=column)
    scorer = make_scorer(settings)
    listed = list_images(corpus)
    manifest = listed.head(settings.limit) if settings.limit else listed
    return Job(settings=settings, corpus=corpus, manifest=manifest, listed=listed, scorer=scorer)


def run(job: Job, progress: Progress = ignore, engine: Engine = in_this_process) -> ScoreResult:
    """Carry out a prepared job.

    Raises:
        CorpusError: the corpus no longer exists.
        StoreError: the store was made with other settings, or another run is writing it.
    """
    timing, path = Timing(), Path(job.settings.out)
    with exclusive(path):
        store, job = _open(path, job)
        sweep(path)
        if job.settings.retry_failed and len(failed := _failed(store, job)):
            store.reopen(failed)
        already = store.complete
        if already:
            progress(Step(done=len(store), total=len(store)))
        else:
            warn_of_masks(job.corpus, job.manifest, patience=job.settings.patience)
            _score(job, store, timing, progress, engine)
            with timing.measure("writing"):
                _index(store)
            store.set_complete(True)
        if job.settings.failures:
            write_failures(store, Path(job.settings.failures))
    return _summarise(store, timing, already_complete=already)


def attributes(job: Job) -> Attributes:
    """Everything that the scores depend on. A run that continues the store must agree with it."""
    settings, teacher, layers = job.settings, job.scorer.teacher, job.scorer.layers
    height, width = teacher.spec.image_size
    return {
        "schema_version": SCHEMA_VERSION,
        "scoring_version": SCORING_VERSION,
        "teacher": fingerprint(teacher),
        "layers": [layer.name for layer in layers],
        "distance": settings.distance,
        "transform": {
            "size": [height, width],
            "fit": "cover",
            "min_side": settings.min_side,
            "decoder": settings.decoder,
        },
        "embedding": {"size": min(settings.embedding_size, layers[-1].channels), "layer": layers[-1].name},
        **{name: getattr(settings, name) for name, column in COLUMNS.items() if column.optional},
        **{name: True for name, column in COLUMNS.items() if column.added},
        "precision": settings.precision,
        "shard_size": settings.shard_size,
        "include": job.corpus.include or None,
        "column": job.corpus.column or None,
        "limit": settings.limit,
        "images": len(job.manifest),
        "manifest": job.manifest.fingerprint,
    }


def _sources(job: Job, path: Path) -> Attributes:
    """The places of corpus and teacher. Later stages look there; a run that continues may find them elsewhere."""
    corpus = dataclasses.asdict(job.corpus)
    return {
        "corpus": corpus | {"root": kept(job.corpus.root, path)},
        "sources": list(job.manifest.sources),
        "teacher_path": kept(job.settings.teacher, path),
    }


def _open(path: Path, job: Job) -> tuple[ScoreStore, Job]:
    """Open or make the store. The job that is returned has the images that have a row in it."""
    wanted = attributes(job)
    if path.exists():
        try:
            store = open_store(path, writable=True)
            differing = _differences(store, job, wanted)
        except StoreError as error:
            if not job.settings.overwrite or not is_store(path):
                raise  # something that is not a score store is never replaced
            differing = [str(error)]
        if not differing and store.attributes["manifest"] == wanted["manifest"]:
            return store, job
        if not job.settings.overwrite:
            if differing:
                raise StoreError(
                    f"{path} was made with other settings: {differing[0]}; use --overwrite or another --out"
                )
            manifest = follow(store, job.listed, limited=job.settings.limit is not None)
            return store, dataclasses.replace(job, manifest=manifest)
    return create_store(path, job.manifest, {**wanted, **_sources(job, path)}), job


def _failed(store: ScoreStore, job: Job) -> NDArray[np.int64]:
    """The rows that are unreadable or rejected and whose images are still there."""
    rows = np.array(list(store.errors()), np.int64)
    still_there: NDArray[np.int64] = rows[job.manifest.offset[rows] != GONE]
    return still_there


def _differences(store: ScoreStore, job: Job, wanted: Attributes) -> list[str]:
    """Describe each setting of a store that differs from those of a job. A teacher is named by its file."""
    # What stores of older versions do not say is as it was.
    held = {**wanted, "include": None, "column": None, **store.attributes}
    names = [name for name in wanted if name not in ("images", "manifest")]  # the corpus is followed
    there, now = str(held.get("teacher")), wanted["teacher"]
    if there == now:
        return differences(held, wanted, names)
    names.remove("teacher")
    files = f"{store.teacher_path} (weights {there[:8]}) there and {job.settings.teacher} (weights {now[:8]}) now"
    return [f"teacher is {files}", *differences(held, wanted, names)]


def _score(job: Job, store: ScoreStore, timing: Timing, progress: Progress, engine: Engine) -> None:
    pending = store.pending_units()
    done = len(store) - sum(map(len, pending))
    teacher, layers = job.scorer.teacher, len(job.scorer.layers)
    where = f"{job.settings.teacher} ({teacher.spec.builder}), {layers} BatchNorm layers, on {teacher.device}"
    logger.info("teacher: %s", where)
    progress(Step(done=done, total=len(store)))

    def advance(rows: int) -> None:
        nonlocal done
        done += rows
        progress(Step(done=done, total=len(store)))

    engine(job, store, pending, timing, advance)


def _index(store: ScoreStore) -> None:
    rows = np.flatnonzero(store.status() == SCORED)
    built = build_index(store.column("embedding")[rows], rows)
    cell = np.full(len(store), -1, dtype=np.int32)
    cell[rows] = built.cell
    store.write_diversity(built.centroids, cell, built.serialised)


def _summarise(store: ScoreStore, timing: Timing, *, already_complete: bool) -> ScoreResult:
    """Count the statuses and describe the distances of a complete store."""
    status = store.status()
    distances = store.column("distance")[status == SCORED]
    warn_of_equal_distances(distances, where=store.path)
    keys = store.column("key")
    errors = list(store.errors().items())[:3]
    return ScoreResult(
        path=store.path,
        scored=int((status == SCORED).sum()),
        unreadable=int((status == UNREADABLE).sum()),
        rejected=int((status == REJECTED).sum()),
        quantiles={q: float(np.quantile(distances, q)) for q in QUANTILES} if len(distances) else {},
        first_errors=[(str(keys[row]), text) for row, text in errors],
        timing=timing,
        already_complete=already_complete,
    )
