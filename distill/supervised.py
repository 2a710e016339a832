"""Supervised training on labelled images, for a teacher or a reference student.

The loss is pixel-wise cross-entropy without void pixels.
"""

import dataclasses
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from distill.evaluation import Evaluation, Figures, evaluate, to_tensor
from distill.labelled import LabelledFolder, check_labels, fit_classes, open_labelled
from distill.sampling import epoch_slice
from distill.settings import TrainSettings
from distill.training.loop import Training
from distill.training.processes import WeightedSum
from distill.training.run_folder import RunFolder
from distill.views import View, ViewSettings, crop_image, crop_label, draw_view, light_images
from pipeline.devices import pick_device
from pipeline.models.builders import resolve_builder
from pipeline.models.class_names import VOID, find_class_names
from pipeline.models.hooks import adapt
from pipeline.models.segmenter import ModelSpec, Segmenter, build_model
from storage.errors import DataError
from storage.progress import Progress, ignore


@dataclasses.dataclass(frozen=True, slots=True)
class LabelledBatch:
    """Views of labelled images."""

    images_N3HW: Tensor
    labels_NHW: Tensor
    views: tuple[View, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Supervised:
    """The objective: predict the labels."""

    data: LabelledFolder
    val: LabelledFolder | None
    views: ViewSettings
    settings: TrainSettings

    def batch(self, step: int, slots: range) -> LabelledBatch:
        """Views of images for some slots of a step's batch: every image once per epoch, shuffled anew each time."""
        images, labels, views = [], [], []
        drawn = epoch_slice(len(self.data), step, self.settings.batch_size, self.settings.seed)
        for slot in slots:
            index = drawn[slot]
            rng = np.random.default_rng([self.settings.seed, step, slot])
            image = self.data.image(index)
            view = draw_view(rng, image.size, self.views)
            label = self.data.label(index)  # checked before the first step
            images.append(crop_image(image, view, self.views))
            labels.append(crop_label(label, view, self.views))
            views.append(view)
        return LabelledBatch(to_tensor(images), torch.from_numpy(np.stack(labels)), tuple(views))

    def loss(self, model: Segmenter, batch: LabelledBatch, progress: float) -> WeightedSum:
        """The sum of the cross-entropy over labelled pixels, and their number."""
        logits = model(light_images(batch.images_N3HW.to(model.device), batch.views))
        labels = batch.labels_NHW.to(model.device).long()
        return WeightedSum(
            total=F.cross_entropy(logits.float(), labels, ignore_index=VOID, reduction="sum"),
            weight=(labels != VOID).sum().float(),
        )

    def evaluate(self, model: Segmenter) -> Evaluation | None:
        """Evaluate the model on the validation folder, if there is one."""
        return evaluate(model, self.val, batch_size=self.settings.batch_size) if self.val else None


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TrainResult:
    """A trained model."""

    path: Path
    """The model file."""
    evaluation: Figures | None
    """Figures of the last step on the validation folder; None without such a folder."""


def train(settings: TrainSettings, progress: Progress = ignore) -> TrainResult:
    """Train a model on labelled images and write ``model.safetensors`` to its run folder.

    Raises:
        DataError: the data is malformed, or has no class names.
        ModelError: the network cannot be built.
        SettingsError: the run folder holds another run.
        StoreError: another process is writing the run.
        DivergedError: the run diverged.
    """
    data = open_labelled(settings.data)
    val = open_labelled(settings.val) if settings.val else None
    names = settings.class_names or find_class_names(settings.data)
    if names is None:
        raise DataError(f"{settings.data} and its parent have no classes.txt; give --class-names")
    data = fit_classes(data, names, model="the model")
    check_labels(data, names, training=True)
    if val is not None:
        val = fit_classes(val, names, model="the model")
        check_labels(val, names)
    height, width = settings.image_size
    torch.manual_seed(settings.seed)
    spec = ModelSpec(
        builder=resolve_builder(settings.builder),
        arguments=dict(settings.arguments),
        num_classes=len(names),
        class_names=names,
        image_size=(height, width),
    )
    model = build_model(spec, pretrained_backbone=settings.pretrained_backbone).to(pick_device(settings.device))
    adapt(model)
    folder = RunFolder(Path(settings.out), "model.safetensors")
    views = ViewSettings(height=height, width=width, min_scale=settings.min_scale, jitter=settings.jitter)
    objective = Supervised(data=data, val=val, views=views, settings=settings)
    training = Training(model=model, objective=objective, settings=settings, folder=folder)
    with folder.alone():
        folder.claim(settings, {"data_fingerprint": data.fingerprint})
        return TrainResult(path=folder.model, evaluation=training.run(progress))
