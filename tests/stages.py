"""The one place where tests call a stage or spell its settings. A change of a signature changes this file alone.

Settings take plain values (``budget=0.5``, ``student_arguments={"blocks": 2}``) whatever the dataclasses want.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import HEIGHT, WIDTH, draw_image, tiny_model
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from distill.adapters import Adapter
from distill.answers import Guide
from distill.distillation import distill
from distill.evaluation import Evaluation
from distill.hardness import Hardness
from distill.inheritance import Inheritance
from distill.objective import Distillation, DistillBatch
from distill.pictures import Pictures
from distill.settings import DistillSettings, OptimisationSettings, TrainSettings
from distill.supervised import train
from distill.training.loop import Training
from distill.training.run_folder import RunFolder
from distill.views import ViewSettings
from distill.weighting import WeightSchedule
from pipeline.models.segmenter import Segmenter
from pipeline.scoring.run import score
from pipeline.selection.select import make_selection
from pipeline.settings import ScoreSettings, SelectSettings, SynthesisSettings
from pipeline.synthesis import Synthesis, prepared
from storage.progress import Progress, Step, ignore
from storage.scores.store import ScoreStore, open_complete
from storage.selection import Selection


class Stopped(Exception):
    """Ends a stage from its progress, as Ctrl-C would."""


def stop_at(done: int) -> Progress:
    """End a stage after this many units."""

    def report(step: Step) -> None:
        if step.done == done:
            raise Stopped

    return report


def score_folder(corpus: Path, teacher: Path | str, out: str = "scores.zarr", **changes: Any) -> ScoreStore:
    """Score a folder of images with every layer unless told otherwise."""
    fields: dict[str, Any] = {"layers": ("all",), "device": "cpu", **changes}
    return open_complete(score(ScoreSettings(corpus=str(corpus), teacher=str(teacher), out=out, **fields)).path)


def select_images(store: ScoreStore, **changes: Any) -> Selection:
    return make_selection(store, SelectSettings(**changes))


def make_settings(**changes: Any) -> DistillSettings:
    """A short distillation of every scored image on the CPU."""
    fields: dict[str, Any] = {
        "student": "tiny_models:small", "steps": 4, "batch_size": 4, "budget": 1.0, "device": "cpu", "out": "run",
    }  # fmt: skip
    return DistillSettings(**{**fields, **changes})


def make_train_settings(data: Path, **changes: Any) -> TrainSettings:
    fields: dict[str, Any] = {
        "builder": "tiny_models:tiny", "image_size": (HEIGHT, WIDTH), "steps": 4, "batch_size": 4, "device": "cpu",
        "out": "taught",
    }  # fmt: skip
    return TrainSettings(data=str(data), **{**fields, **changes})


def run_distill(settings: DistillSettings) -> None:
    distill(settings)


def run_training(
    model: Segmenter,
    objective: Any,
    settings: OptimisationSettings,
    *,
    frozen: Sequence[nn.Module] = (),
    progress: Progress = ignore,
) -> Evaluation | None:
    """The training loop alone, on an objective of the test's own."""
    folder = RunFolder(Path(settings.out), "model.safetensors")  # type: ignore[attr-defined]
    folder.claim(settings, {})
    training = Training(model=model, objective=objective, settings=settings, folder=folder, frozen=frozen)
    return training.run(progress)


def prepare_synthesis(teacher: Path, **changes: Any) -> Synthesis:
    fields: dict[str, Any] = {"out": "made", "count": 5, "steps": 1, "batch_size": 4, "device": "cpu", **changes}
    with prepared(SynthesisSettings(teacher=str(teacher), **fields)) as synthesis:
        return synthesis  # its files open again where they are needed


def run_synthesis(synthesis: Synthesis) -> NDArray[np.uint8]:
    """Make the images; returns their pixels, [N, H, W, 3]."""
    synthesis.run(ignore)
    return np.stack([np.asarray(Image.open(path)) for path in sorted(Path(synthesis.settings.out).glob("*.png"))])


@dataclasses.dataclass
class Prepared:
    """The objects that a stage gives to the training loop, and the batches that it would train on."""

    model: Segmenter
    objective: Any
    frozen: Sequence[nn.Module]
    settings: OptimisationSettings
    batches: list[Any]


def prepare_distill(settings: DistillSettings, monkeypatch: pytest.MonkeyPatch) -> Prepared:
    """Run the stage up to the first step, and let its steps make batches without training."""
    return _prepare(lambda: run_distill(settings), monkeypatch)


def prepare_train(settings: TrainSettings, monkeypatch: pytest.MonkeyPatch) -> Prepared:
    return _prepare(lambda: train(settings), monkeypatch)


def _prepare(stage: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> Prepared:
    found: list[Prepared] = []

    def run(training: Training[Any], progress: Progress) -> None:
        batches = [batch_of(training.objective, step) for step in range(training.settings.steps)]
        found.append(Prepared(training.model, training.objective, training.frozen, training.settings, batches))

    with monkeypatch.context() as patch:
        patch.setattr(Training, "run", run)
        stage()
    return found[0]


def make_distillation(
    *,
    teacher: Segmenter | None = None,
    images: Sequence[Image.Image] | None = None,
    training_places: Sequence[int] = (0, 2, 3, 5),
    weights: Sequence[float] = (1.0, 0.7, 0.2, 0.0),
    inheritance: Inheritance | None = None,
    made: Sequence[Adapter] = (),
    **changes: Any,
) -> Distillation:
    """An objective over images in memory; ``weights`` are those of the training places at the start."""
    images = images or [draw_image(index) for index in range(6)]
    settings = make_settings(**changes)
    inheritance = inheritance or Inheritance()
    hardness = Hardness(len(training_places), batch_size=settings.batch_size, seed=settings.seed)
    compared = [*(theirs for _, theirs in inheritance.compared), *(adapter.theirs.layer for adapter in made)]
    return Distillation(
        guide=Guide.of((teacher or tiny_model()).requires_grad_(False), compared, settings.precision),
        pictures=Pictures(
            images=images,
            training_places=list(training_places),
            views=ViewSettings(height=HEIGHT, width=WIDTH, min_scale=settings.min_scale, jitter=settings.jitter),
            mixup=settings.mixup,
            fixed=settings.views or 0,
        ),
        held_out=[place for place in range(len(images)) if place not in training_places],
        schedule=WeightSchedule(
            weights_N=np.asarray(weights, dtype=np.float64), weighting=settings.weighting, pacing=settings.pacing
        ),
        val=None,
        inheritance=inheritance,
        adapters=made,
        hardness=hardness if settings.hard else None,
        settings=settings,
    )


def loss_of(distillation: Distillation, model: Segmenter, batch: DistillBatch) -> torch.Tensor:
    return distillation.loss(model, batch, 0.0).mean()


def batch_of(objective: Any, step: int) -> Any:
    """The whole batch of a step."""
    return objective.batch(step, range(objective.settings.batch_size))
