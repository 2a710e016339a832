"""Stage two: train a student to predict what the teacher predicts on the selected images.

WDPD, Weighted Distribution Progressive Distillation (arXiv 2512.13175), weights the images.
"""

import dataclasses
import hashlib
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from distill.adapters import Adapter, make_adapters
from distill.answers import GIB, Guide, Question, ask, checked_size
from distill.evaluation import Figures
from distill.hardness import Hardness
from distill.inheritance import Inheritance, Inherited, inherit
from distill.labelled import LabelledFolder, check_labels, fit_classes, open_labelled
from distill.objective import Distillation
from distill.pictures import Pictures
from distill.reconstruction import image_count as fitted_images
from distill.reconstruction import reconstruct
from distill.sampling import hold_out
from distill.settings import DistillSettings
from distill.student import goes_on, make_student
from distill.training.loop import Training
from distill.training.run_folder import RunFolder
from distill.views import ViewSettings
from distill.weighting import WeightSchedule
from pipeline.devices import pick_device
from pipeline.models.files import load_model
from pipeline.models.hooks import probe
from pipeline.models.segmenter import Segmenter, fingerprint
from pipeline.selection.images import Covering, SelectedImages
from pipeline.selection.select import check_selection, default_path, earlier_path, first, image_count, make_selection
from pipeline.selection.weights import distance_weights
from pipeline.settings import SelectSettings
from storage.answers import Bits, size_of
from storage.errors import DivergedError, ModelError, SelectionError
from storage.progress import Progress, ignore
from storage.scores.schema import SCORED
from storage.scores.store import ScoreStore, open_complete
from storage.selection import Selection, read_selection, write_selection

logger = logging.getLogger(__name__)
MOST_VIEWS = 8
"""Views of each image that the teacher is asked about once, unless a setting says otherwise."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class DistillResult:
    """A trained student."""

    path: Path
    """The model file of the student."""
    evaluation: Figures | None
    """Figures of the last step, against labels or against the teacher on held-out images; None without either."""
    selection: Selection
    """The images that the student was trained on."""
    inherited: Inherited
    """How much of the student came from the teacher."""


def distill(
    settings: DistillSettings, progress: Progress = ignore, *, choosing: SelectSettings | None = None
) -> DistillResult:
    """Distil a student and write ``student.safetensors`` to its run folder.

    ``choosing`` says how a selection is made where none is given and none lies beside the store; by default by ADS.

    Raises:
        StoreError: the scores are missing or not complete, or another process is writing the run.
        DivergedError: the run diverged.
        SelectionError, SettingsError: the selection cannot be used, or the budget is above it.
        ModelError: teacher or student cannot be built, or differ in their classes.
        CorpusError: the images are no longer where they were scored.
    """
    store = open_complete(Path(settings.shards))
    pair = _pair(settings, store)
    selection = find_selection(settings, store, choosing)
    logger.info("the student %s", pair.inheritance.counts)
    torch.manual_seed(settings.seed)  # whatever a student's making drew: one that goes on draws without a seed
    if settings.adapters:
        pair = dataclasses.replace(pair, adapters=make_adapters(pair.student, pair.teacher, settings.adapter_pairs))
        logger.info("adapters: %s", ", ".join(map(str, pair.adapters)))
    folder = RunFolder(Path(settings.out), "student.safetensors")
    height, width = pair.teacher.spec.image_size
    decode = Covering(height=math.ceil(height / settings.min_scale), width=math.ceil(width / settings.min_scale))
    with folder.alone(), SelectedImages(store, selection, decode=decode, root=settings.root) as images:
        objective = _objective(settings, pair, images, selection)
        question = _question(settings, objective, selection) if objective.pictures.fixed else None
        if question is not None and (settings.overwrite or folder.finished() is None):
            checked_size(question, settings.cache_gib)  # before an earlier run is replaced
        folder.claim(settings, _about(pair, objective, selection))
        write_selection(selection, folder.selection)
        if folder.finished() is None:
            if pair.inheritance.channels and not goes_on(settings):
                _reconstruct(pair.student, objective)
            if question is not None:
                answers = ask(question, most_gib=settings.cache_gib, progress=progress)
                objective = dataclasses.replace(objective, answers=answers)
        evaluation = _train(settings, pair, objective, folder, progress)
    counts = pair.inheritance.counts
    return DistillResult(path=folder.model, evaluation=evaluation, selection=selection, inherited=counts)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Pair:
    """Teacher and student, and what joins them."""

    teacher: Segmenter
    student: Segmenter
    inheritance: Inheritance
    adapters: Sequence[Adapter] = ()
    val: LabelledFolder | None
    """Labelled images to judge the student on."""


def _pair(settings: DistillSettings, store: ScoreStore) -> _Pair:
    """Load the teacher, make the student, and let it inherit."""
    val = open_labelled(settings.val) if settings.val else None
    device = pick_device(settings.device)
    teacher = _teacher(settings, store).to(device).requires_grad_(False)
    probe(teacher)
    if val is not None:
        val = fit_classes(val, teacher.spec.class_names, model="the teacher")
        check_labels(val, teacher.spec.class_names)
    student = make_student(settings, teacher).to(device)
    probe(student)
    if settings.inherit:
        inheritance = inherit(student, teacher, copy=not goes_on(settings))
    else:
        inheritance = Inheritance(counts=Inherited.of(student))
    logger.info("teacher: %s (%s), on %s", settings.teacher or store.teacher_path, teacher.spec.builder, device)
    return _Pair(teacher=teacher, student=student, inheritance=inheritance, val=val)


def _about(pair: _Pair, objective: Distillation, selection: Selection) -> dict[str, Any]:
    """What the student depends on beside the settings."""
    return {
        "teacher": fingerprint(pair.teacher),
        "selection": selection.about,
        "held_out": len(objective.held_out),
        "inherited": dataclasses.asdict(pair.inheritance.counts),
        "views": objective.pictures.fixed,
    }


def _train(
    settings: DistillSettings, pair: _Pair, objective: Distillation, folder: RunFolder, progress: Progress
) -> Figures | None:
    training = Training(
        model=pair.student,
        objective=objective,
        settings=settings,
        folder=folder,
        frozen=pair.inheritance.frozen,
        figures={"teacher_forwards": objective.teacher_forwards},
        companions=nn.ModuleList(adapter.convolution for adapter in pair.adapters),
        kept={"hardness": objective.hardness} if objective.hardness is not None else {},
    )
    try:
        return training.run(progress)
    except DivergedError as error:
        objective.check_teacher(error.step)
        raise


def _reconstruct(student: Segmenter, objective: Distillation) -> None:
    """Fit a cut student to the teacher's features on the first training images."""
    places = objective.pictures.training_places[: fitted_images(student.spec.image_size)]
    images = objective.whole_images(places).to(student.device)
    count = reconstruct(student, objective.guide.teacher, objective.inheritance, images)
    logger.info("%d convolutions of the student were fitted to the teacher's features on %d images", count, len(places))


def _objective(
    settings: DistillSettings, pair: _Pair, images: SelectedImages[Image.Image], selection: Selection
) -> Distillation:
    held_out = [] if pair.val is not None else hold_out(len(selection))
    training_places = sorted(set(range(len(selection))) - set(held_out))
    distance = selection.table["distance"].to_numpy(dtype=np.float32)[training_places]
    height, width = pair.teacher.spec.image_size
    guide = _guide(settings, pair)
    return Distillation(
        guide=guide,
        pictures=Pictures(
            images=images,
            training_places=training_places,
            views=ViewSettings(height=height, width=width, min_scale=settings.min_scale, jitter=settings.jitter),
            mixup=settings.mixup,
            fixed=_views(settings, guide, len(training_places)),
        ),
        answers=None,
        held_out=held_out,
        schedule=WeightSchedule(
            weights_N=distance_weights(distance, settings.normalization),
            weighting=settings.weighting,
            pacing=settings.pacing,
        ),
        val=pair.val,
        inheritance=pair.inheritance,
        adapters=pair.adapters,
        hardness=_hardness(settings, len(training_places), pair.teacher) if settings.hard else None,
        settings=settings,
    )


def _guide(settings: DistillSettings, pair: _Pair) -> Guide:
    """The teacher with the layers whose inputs are compared."""
    compared = [theirs for _, theirs in pair.inheritance.compared] if settings.features else []
    adapted = [adapter.theirs.layer for adapter in pair.adapters]  # they compare all channels
    channels = {layer: kept for layer, kept in pair.inheritance.channels.items() if layer not in adapted}
    return Guide.of(pair.teacher, [*compared, *adapted], settings.precision, channels)


def _hardness(settings: DistillSettings, images: int, teacher: Segmenter) -> Hardness:
    return Hardness(images, batch_size=settings.batch_size, seed=settings.seed, device=teacher.device)


def _views(settings: DistillSettings, guide: Guide, images: int) -> int:
    """The number of views of each image that the teacher is asked about once; 0 if it is asked in every step."""
    if settings.views is not None:
        return settings.views
    views = MOST_VIEWS
    size = size_of(guide.shapes, rows=images * views, bits=_bits(settings))
    pays = 2 * images * views <= settings.steps * settings.batch_size
    return views if pays and size <= settings.cache_gib * GIB else 0


def _bits(settings: DistillSettings) -> Bits:
    return 8 if settings.answer_bits == "8" else 16


def _question(settings: DistillSettings, objective: Distillation, selection: Selection) -> Question:
    """What the teacher is asked once: the fixed pictures of the training images."""
    pictures = objective.pictures
    rows = selection.table["row"].to_numpy(dtype=np.int64)[pictures.training_places]
    about = {
        "teacher": fingerprint(objective.guide.teacher),
        "store": selection.about,
        "rows": hashlib.sha256(rows.tobytes()).hexdigest(),
        "size": [pictures.views.height, pictures.views.width],
        "min_scale": settings.min_scale,
        "mixup": settings.mixup,
        "precision": settings.precision,
    }
    guide = objective.guide
    kept = {name: guide.channels[layer] for name, layer in guide.compared.items() if layer in guide.channels}
    if kept:
        about["channels"] = {name: channels.tolist() for name, channels in kept.items()}
    return Question(
        guide=objective.guide,
        pictures=pictures,
        folder=Path(settings.answers) if settings.answers else Path(settings.out).parent / "answers",
        bits=_bits(settings),
        about=about,
    )


def _teacher(settings: DistillSettings, store: ScoreStore) -> Segmenter:
    path = settings.teacher or store.teacher_path
    try:
        teacher = load_model(path, fetch=settings.teacher is not None)  # what a store names is not fetched
    except ModelError as error:
        if settings.teacher or Path(path).exists():
            raise
        raise ModelError(
            f"{error}; {store.path} was scored with this teacher: give its place now as --teacher"
        ) from error
    if fingerprint(teacher) != store.attributes["teacher"]:
        raise ModelError(
            f"{path} is not the teacher that {store.path} was scored with; score with it (dfss-score --teacher {path} "
            "--overwrite), or give the teacher of the scores"
        )
    return teacher


def find_selection(settings: DistillSettings, store: ScoreStore, choosing: SelectSettings | None = None) -> Selection:
    """The selection in the settings, else the one beside the store if it belongs to it, else one that is made now.

    Raises:
        SelectionError: the selection is missing, belongs to other scores, or is smaller than the budget.
    """
    scored = int((store.status() == SCORED).sum())
    count = image_count(settings.budget, scored) if settings.budget else None
    path = Path(settings.selection) if settings.selection else _selection_beside(store)
    if path is not None:
        selection = _shortened(_read_checked(path, store), count, path)
        origin = f"from {path}"
    else:
        choosing = choosing or SelectSettings(shards=settings.shards)
        budget = settings.budget or choosing.budget
        selection = make_selection(store, dataclasses.replace(choosing, budget=budget))
        origin = f"made now with budget {budget}"
    strategy = selection.about["strategy"]
    logger.info("selection: %d of %d images of %s by %s, %s", len(selection), scored, store.path, strategy, origin)
    return selection


def _shortened(selection: Selection, count: int | None, path: Path) -> Selection:
    if count is None:
        return selection
    if count > len(selection):
        raise SelectionError(
            f"{path} holds {len(selection)} images, but the budget asks for {count}; make a larger one with "
            f"dfss-select --budget {count}"
        )
    return first(selection, count)


def _read_checked(path: Path, store: ScoreStore) -> Selection:
    selection = read_selection(path)
    check_selection(store, selection)
    return selection


def _selection_beside(store: ScoreStore) -> Path | None:
    """The selection file that lies beside a store and belongs to it."""
    for path in (default_path(store.path), earlier_path(store.path)):
        if not path.exists():
            continue
        try:
            _read_checked(path, store)
        except SelectionError as error:
            logger.warning("%s is passed over: %s", path, error)
        else:
            return path
    return None
