"""The objective of distillation: the teacher's predictions on views of the selected images.

WDPD, Weighted Distribution Progressive Distillation (arXiv 2512.13175), weights the images.

Shapes: N images of a batch, H x W pixels.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from distill.evaluation import Evaluation, agreement, evaluate, to_tensor
from distill.inheritance import Inheritance, feature_distance, recorded
from distill.labelled import LabelledFolder
from distill.losses import distillation_loss
from distill.sampling import draw, epoch_slice
from distill.settings import DistillSettings
from distill.training.processes import WeightedSum
from distill.views import View, ViewSettings, crop_image, draw_view, light_images, whole_view
from distill.weighting import WeightSchedule
from pipeline.models.segmenter import Segmenter
from pipeline.selection.images import SelectedImages


@dataclasses.dataclass(frozen=True, slots=True)
class DistillBatch:
    """Views of selected images and the weights of their losses."""

    images_N3HW: Tensor
    views: tuple[View, ...]
    weights_N: Tensor


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distillation:
    """The objective: predict what the teacher predicts, with a loss weight for each image."""

    teacher: Segmenter
    images: SelectedImages[Image.Image]
    training_places: list[int]
    held_out: list[int]
    schedule: WeightSchedule
    """The weights of the training images, in their order."""
    val: LabelledFolder | None
    views: ViewSettings
    inheritance: Inheritance
    settings: DistillSettings

    def batch(self, step: int, slots: range) -> DistillBatch:
        """Views of images for some slots of a step's batch. It is a pure function of seed, step and slot."""
        settings = self.settings
        weights = self.schedule.at(step / max(1, settings.steps - 1))
        if settings.by_sampling:
            drawn = draw(weights, settings.batch_size, np.random.default_rng([settings.seed, step]))
            weights = np.ones(len(weights))
        else:
            drawn = epoch_slice(len(self.training_places), step, settings.batch_size, settings.seed)
        crops, views = [], []
        for slot in slots:
            image = self.images[self.training_places[drawn[slot]]]
            view = draw_view(np.random.default_rng([settings.seed, step, slot]), image.size, self.views)
            crops.append(crop_image(image, view, self.views))
            views.append(view)
        batch_weights = weights[[drawn[slot] for slot in slots]]
        return DistillBatch(to_tensor(crops), tuple(views), torch.from_numpy(batch_weights).float())

    def loss(self, model: Segmenter, batch: DistillBatch, progress: float) -> WeightedSum:
        """The sums of the images' weighted losses and of their weights."""
        images = light_images(batch.images_N3HW.to(model.device), batch.views)
        compared = self.inheritance.compared if self.settings.features else ()
        with torch.no_grad(), recorded([theirs for _, theirs in compared]) as wanted:
            target = self.teacher(images)
        with recorded([own for own, _ in compared]) as seen:
            logits = model(images)
        losses = distillation_loss(logits, target, self.settings.loss, self.settings.temperature)
        if compared:
            losses = losses + self.settings.features * feature_distance(seen, wanted, compared)
        return WeightedSum.of(losses, batch.weights_N.to(model.device))

    def evaluate(self, model: Segmenter) -> Evaluation | None:
        """Evaluate the student on the labelled images if there are any, else against the teacher on held-out images."""
        if self.val is not None:
            return evaluate(model, self.val, batch_size=self.settings.batch_size)
        if not self.held_out:
            return None
        return agreement(model, self.teacher, self._held_out_batches())

    def _held_out_batches(self) -> Iterator[Tensor]:
        size = self.settings.batch_size
        for start in range(0, len(self.held_out), size):
            images = [self.images[place] for place in self.held_out[start : start + size]]
            yield to_tensor([crop_image(image, whole_view(image.size, self.views), self.views) for image in images])
