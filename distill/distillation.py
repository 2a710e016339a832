"""Stage two: train a student to answer as the teacher does on the selected images, weighted by WDPD."""

import dataclasses
import logging
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from distill.evaluation import Evaluation, agreement, evaluate, to_tensor
from distill.images import SelectedImages, hold_back
from distill.inheriting import Inheritance, feature_distance, inherit, recorded
from distill.labelled import LabelledFolder, check_labels, open_labelled
from distill.losses import distillation_loss, weighted_mean
from distill.ordering import epoch_slice
from distill.runs import RunFolder
from distill.settings import DistillSettings
from distill.training import Training
from distill.views import View, ViewSettings, crop_image, draw_view, light_images, whole_view
from distill.weighting import WeightSchedule, draw
from pipeline.builders import resolve_builder
from pipeline.devices import pick_device
from pipeline.models import Segmenter, build_model, fingerprint, load_model
from pipeline.selecting import check_selection, default_path, first, image_count, make_selection
from pipeline.settings import SelectSettings, parse_arguments
from pipeline.statistics import probe
from pipeline.weights import distance_weights
from storage.errors import ModelError, SelectionError
from storage.progress import Step
from storage.scores import SCORED, ScoreStore, open_complete
from storage.selection import Selection, read_selection, write_selection

logger = logging.getLogger(__name__)
MODEL_SUFFIX = ".safetensors"


@dataclasses.dataclass(frozen=True, slots=True)
class DistillBatch:
    """Views of selected images and the weights of their losses."""

    images_N3HW: Tensor
    views: tuple[View, ...]
    weights_N: Tensor


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distillation:
    """Objective: the teacher's answer, image by image as much as its weight says."""

    teacher: Segmenter
    images: SelectedImages
    training_places: list[int]
    held_back: list[int]
    schedule: WeightSchedule
    """Of the training places, in their order."""
    val: LabelledFolder | None
    views: ViewSettings
    inheritance: Inheritance
    settings: DistillSettings

    def batch(self, step: int) -> DistillBatch:
        """Views of the images whose turn it is; a pure function of the seed and the step."""
        settings = self.settings
        weights = self.schedule.at(step / max(1, settings.steps - 1))
        if settings.by_sampling:
            drawn = draw(weights, settings.batch_size, np.random.default_rng([settings.seed, step]))
            batch_weights = np.ones(len(drawn))
        else:
            drawn = epoch_slice(len(self.training_places), step, settings.batch_size, settings.seed)
            batch_weights = weights[drawn]
        crops, views = [], []
        for slot, index in enumerate(drawn):
            image = self.images[self.training_places[index]]
            view = draw_view(np.random.default_rng([settings.seed, step, slot]), image.size, self.views)
            crops.append(crop_image(image, view, self.views))
            views.append(view)
        return DistillBatch(to_tensor(crops), tuple(views), torch.from_numpy(batch_weights).float())

    def loss(self, model: Segmenter, batch: DistillBatch, progress: float) -> Tensor:
        """Weighted mean of the images' losses."""
        device = model.mean_3HW.device
        images = light_images(batch.images_N3HW.to(device), batch.views)
        compared = self.inheritance.compared if self.settings.features else ()
        with torch.no_grad(), recorded([theirs for _, theirs in compared]) as wanted:
            target = self.teacher(images)
        with recorded([own for own, _ in compared]) as seen:
            logits = model(images)
        losses = distillation_loss(logits, target, self.settings.loss, self.settings.temperature)
        if compared:
            losses = losses + self.settings.features * feature_distance(seen, wanted, compared)
        return weighted_mean(losses, batch.weights_N.to(device))

    def evaluate(self, model: Segmenter) -> Evaluation | None:
        """IoU on the labels where there are some, else against the teacher on images held back."""
        if self.val is not None:
            return evaluate(model, self.val, batch_size=self.settings.batch_size)
        if not self.held_back:
            return None
        return agreement(model, self.teacher, self._held_back_batches())

    def _held_back_batches(self) -> Iterator[Tensor]:
        size = self.settings.batch_size
        for start in range(0, len(self.held_back), size):
            images = [self.images[place] for place in self.held_back[start : start + size]]
            yield to_tensor([crop_image(image, whole_view(image.size, self.views), self.views) for image in images])


def distill(settings: DistillSettings) -> Iterator[Step]:
    """Distil a student; its run folder then holds ``student.safetensors``.

    Raises:
        StoreError: the scores are missing or not complete.
        SelectionError, SettingsError: no usable selection, or a budget above it.
        ModelError: teacher or student cannot be built, or differ in their classes.
        CorpusError: the images are not where they were scored.
    """
    store = open_complete(Path(settings.shards))
    val = open_labelled(settings.val) if settings.val else None
    device = pick_device(settings.device)
    teacher = _teacher(settings, store).to(device).requires_grad_(False)
    if val is not None:
        check_labels(val, teacher.spec.num_classes, model="the teacher")
    selection = find_selection(settings, store)
    student = _student(settings, teacher).to(device)
    probe(student)
    from_scratch = not settings.student.endswith(MODEL_SUFFIX)
    inheritance = inherit(student, teacher, copy=from_scratch) if settings.inherit else Inheritance()
    folder = RunFolder(Path(settings.out), "student.safetensors")
    held_back = [] if val is not None else hold_back(len(selection))
    height, width = teacher.spec.image_size
    largest = math.ceil(height / settings.min_scale), math.ceil(width / settings.min_scale)
    with SelectedImages(store, selection, largest=largest, root=settings.root) as images:
        about = {"teacher": fingerprint(teacher), "selection": selection.about, "held_back": len(held_back)}
        folder.claim(settings, about)
        write_selection(selection, folder.selection)
        objective = _objective(settings, teacher, images, selection, held_back, val, inheritance)
        training = Training(
            model=student, objective=objective, settings=settings, folder=folder, resting=inheritance.resting
        )
        yield from training.run()


def _objective(
    settings: DistillSettings,
    teacher: Segmenter,
    images: SelectedImages,
    selection: Selection,
    held_back: list[int],
    val: LabelledFolder | None,
    inheritance: Inheritance,
) -> Distillation:
    training_places = sorted(set(range(len(selection))) - set(held_back))
    distance = selection.table["distance"].to_numpy(dtype=np.float32)[training_places]
    height, width = teacher.spec.image_size
    return Distillation(
        teacher=teacher,
        images=images,
        training_places=training_places,
        held_back=held_back,
        schedule=WeightSchedule(
            weights_N=distance_weights(distance, settings.normalization),
            weighting=settings.weighting,
            pacing=settings.pacing,
        ),
        val=val,
        views=ViewSettings(height=height, width=width, min_scale=settings.min_scale, jitter=settings.jitter),
        inheritance=inheritance,
        settings=settings,
    )


def _teacher(settings: DistillSettings, store: ScoreStore) -> Segmenter:
    path = settings.teacher or str(store.attributes["teacher_path"])
    teacher = load_model(path)
    if fingerprint(teacher) != store.attributes["teacher"]:
        raise ModelError(
            f"{path} is not the teacher that {store.path} was scored with; score with it (dfss-score --teacher {path} "
            "--overwrite), or give the one that was used"
        )
    return teacher


def _student(settings: DistillSettings, teacher: Segmenter) -> Segmenter:
    if settings.student.endswith(MODEL_SUFFIX):
        student = load_model(settings.student)
        if student.spec.num_classes != teacher.spec.num_classes:
            raise ModelError(
                f"{settings.student} has {student.spec.num_classes} classes, the teacher {teacher.spec.num_classes}; "
                "begin from a network name or a student of the same classes"
            )
        return student
    torch.manual_seed(settings.seed)
    arguments = parse_arguments(settings.student_arguments)
    spec = dataclasses.replace(teacher.spec, builder=resolve_builder(settings.student), arguments=arguments)
    return build_model(spec, pretrained_backbone=settings.pretrained_backbone)


def find_selection(settings: DistillSettings, store: ScoreStore) -> Selection:
    """The selection asked for, else the one beside the store if it is this store's, else ADS of the budget.

    Raises:
        SelectionError: the selection is missing, belongs to other scores, or is smaller than the budget.
    """
    scored = int((store.status() == SCORED).sum())
    count = image_count(settings.budget, scored) if settings.budget else None
    path = Path(settings.selection) if settings.selection else default_path(store.path)
    selection = _read_checked(path, store) if settings.selection else _selection_beside(store)
    if selection is None:
        defaults = SelectSettings(shards=settings.shards)
        return make_selection(store, dataclasses.replace(defaults, budget=settings.budget or defaults.budget))
    if count is None:
        return selection
    if count > len(selection):
        raise SelectionError(
            f"{path} holds {len(selection)} images, --budget asks for {count}; make a larger one with "
            f"dfss-select --budget {settings.budget}"
        )
    return first(selection, count)


def _read_checked(path: Path, store: ScoreStore) -> Selection:
    selection = read_selection(path)
    check_selection(store, selection)
    return selection


def _selection_beside(store: ScoreStore) -> Selection | None:
    path = default_path(store.path)
    if not path.exists():
        return None
    try:
        return _read_checked(path, store)
    except SelectionError as error:
        logger.warning("%s; choosing images anew", error)
        return None
