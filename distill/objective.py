"""The objective of distillation: the teacher's predictions on views of the selected images.

WDPD, Weighted Distribution Progressive Distillation (arXiv 2512.13175), weights the images.

Shapes: N images of a batch, H x W pixels.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distill.adapters import Adapter
from distill.answers import LOGITS, Answers, Guide, KeptAnswers, to_device
from distill.evaluation import Figures, agree, evaluate, to_tensor
from distill.hardness import Hardness, hard_slots
from distill.inheritance import Inheritance, feature_distance, recorded, standardised
from distill.labelled import LabelledFolder
from distill.losses import distillation_loss
from distill.pictures import Pictures
from distill.sampling import draw, epoch_slice
from distill.settings import DistillSettings
from distill.training.processes import Processes, WeightedSum, here
from distill.views import View, crop_image, light_images, whole_view
from distill.weighting import WeightSchedule
from pipeline.models.segmenter import Segmenter
from storage.errors import ModelError

HARD_DRAW = 20260419
"""Ends the seed of a step's draw from the hardest images."""


@dataclasses.dataclass(frozen=True, slots=True)
class DistillBatch:
    """Pictures of selected images and the weights of their losses."""

    images_N3HW: Tensor
    views: tuple[View, ...]
    weights_N: Tensor
    answers: Answers | None
    """The teacher's answers, if it was asked before."""
    step: int
    drawn: tuple[int, ...]
    """The images of all slots of the step's batch, those of other processes too, by their places in training."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distillation:
    """The objective: predict what the teacher predicts, with a loss weight for each image."""

    guide: Guide
    pictures: Pictures
    answers: KeptAnswers | None = None
    """The teacher's answers to the fixed pictures; None if it is asked in every step."""
    held_out: list[int]
    """The places in the selection of images that are not trained on."""
    schedule: WeightSchedule
    """The weights of the training images, in their order."""
    val: LabelledFolder | None
    inheritance: Inheritance
    adapters: Sequence[Adapter] = ()
    hardness: Hardness | None = None
    """Which images are hard; None if no part of a batch is drawn from them."""
    processes: Processes = dataclasses.field(default_factory=here)
    settings: DistillSettings

    @property
    def teacher_forwards(self) -> int:
        """The number of pictures that the teacher answers to for this run, though another run may have asked."""
        pictures, settings = self.pictures, self.settings
        return len(pictures.training_places) * pictures.fixed or settings.steps * settings.batch_size

    def batch(self, step: int, slots: range) -> DistillBatch:
        """Pictures for some slots of a step's batch.

        It is a pure function of seed, step and slot, and of the hardest images of the step's block.
        """
        settings = self.settings
        weights = self.schedule.at(step / max(1, settings.steps - 1))
        drawn = self._drawn(step, weights)
        if settings.by_sampling:
            weights = np.ones(len(weights))
        shown = [(drawn[slot], np.random.default_rng([settings.seed, step, slot])) for slot in slots]
        if self.answers is None:
            pictures = [self.pictures.draw(rng, place) for place, rng in shown]
            answers = None
        else:
            asked = [(place, int(rng.integers(self.pictures.fixed))) for place, rng in shown]
            fixed = [self.pictures.draw_fixed(place, number) for place, number in asked]
            pictures = [self.pictures.lit(picture, rng) for picture, (_, rng) in zip(fixed, shown, strict=True)]
            answers = self.answers(asked)
        return DistillBatch(
            images_N3HW=to_tensor([self.pictures.pixels(picture) for picture in pictures]),
            views=tuple(picture.view for picture in pictures),
            weights_N=torch.tensor([picture.weight(weights) for picture in pictures], dtype=torch.float32),
            answers=answers,
            step=step,
            drawn=tuple(drawn),
        )

    def _drawn(self, step: int, weights_N: NDArray[np.float64]) -> list[int]:
        """The places of the images of a step's batch, the hard ones behind the others."""
        settings = self.settings
        hard = hard_slots(settings.hard, settings.batch_size) if self.hardness is not None else 0
        usual = settings.batch_size - hard
        if settings.by_sampling:
            drawn = draw(weights_N, usual, np.random.default_rng([settings.seed, step]))
        else:
            drawn = epoch_slice(len(weights_N), step, usual, settings.seed)
        if self.hardness is None:
            return drawn
        hardest = self.hardness.hardest(step)
        chances = weights_N[hardest] if settings.by_sampling else np.ones(len(hardest))
        rng = np.random.default_rng([settings.seed, step, 0, HARD_DRAW])
        return [*drawn, *(int(hardest[index]) for index in draw(chances, hard, rng))]

    def loss(self, model: Segmenter, batch: DistillBatch, progress: float) -> WeightedSum:
        """The sums of the images' weighted losses and of their weights."""
        settings, compared = self.settings, self.inheritance.compared if self.settings.features else ()
        images = light_images(batch.images_N3HW.to(model.device), batch.views)
        answers = self.guide(images) if batch.answers is None else to_device(batch.answers, model.device)
        adapted = [adapter.own.layer for adapter in self.adapters]
        with recorded([*(own for own, _ in compared), *adapted]) as seen:
            logits = model(images)
        target = self.guide.enlargement.enlarge(answers[LOGITS], (logits.shape[-2], logits.shape[-1]))
        losses = distillation_loss(logits, target, settings.loss, settings.temperature)
        if self.hardness is not None:
            self.hardness.record(batch.step, batch.drawn, self.processes.gathered(losses.detach()))
        if compared:
            channels = self.inheritance.channels
            own = [standardised(seen[layer], theirs, channels.get(theirs)) for layer, theirs in compared]
            wanted = [self.guide.answer(answers, theirs, channels.get(theirs)) for _, theirs in compared]
            losses = losses + settings.features * feature_distance(own, wanted)
        if self.adapters:
            own = [adapter.convolution(seen[adapter.own.layer]).float() for adapter in self.adapters]
            wanted = [self.guide.answer(answers, adapter.theirs.layer) for adapter in self.adapters]
            losses = losses + settings.adapters * feature_distance(own, wanted)
        return WeightedSum.of(losses, batch.weights_N.to(model.device))

    def check_teacher(self, step: int) -> None:
        """Tell whether a step's loss was not finite because the teacher's answers were not.

        Answers that are kept were checked when the teacher gave them.

        Raises:
            ModelError: its answers are not finite.
        """
        if self.answers is not None or self.hardness is not None:  # the hardest images of the step may be forgotten
            return
        batch = self.batch(step, range(self.settings.batch_size))
        answers = self.guide(light_images(batch.images_N3HW.to(self.guide.teacher.device), batch.views))
        for name, values in answers.items():
            if not values.isfinite().all():
                raise ModelError(
                    f"the teacher's {name} are not finite on the images of step {step + 1}; use --precision float32, "
                    "or check its weights and its normalisation"
                )

    def evaluate(self, model: Segmenter) -> Figures | None:
        """Evaluate the student on the labelled images if there are any, else against the teacher on held-out images."""
        if self.val is not None:
            return evaluate(model, self.val, batch_size=self.settings.batch_size)
        if not self.held_out:
            return None
        return agree(model, self.guide.teacher, self._held_out_batches())

    def _held_out_batches(self) -> Iterator[Tensor]:
        size = self.settings.batch_size
        for start in range(0, len(self.held_out), size):
            yield self.whole_images(self.held_out[start : start + size])

    def whole_images(self, places: Sequence[int]) -> Tensor:
        """Images at some places in the selection, each by its largest centred view, uint8 [N, 3, H, W]."""
        views, images = self.pictures.views, [self.pictures.images[place] for place in places]
        return to_tensor([crop_image(image, whole_view(image.size, views), views) for image in images])
