"""A small training run of the tests' own: a convolutional network that regresses three fixed images in each step."""

import dataclasses
from typing import Any

import numpy as np
import torch
from conftest import tiny_spec
from stages import make_settings
from torch import Tensor, nn

from distill.evaluation import Evaluation
from distill.settings import OptimisationSettings
from distill.training.processes import WeightedSum
from pipeline.models.segmenter import Segmenter

STEPS = 9


class Network(nn.Module):
    """A convolution whose bias BatchNorm would swallow has none, so that no gradient is rounding alone."""

    def __init__(self, momentum: float, dropout: float) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4, momentum=momentum)
        self.frozen = nn.BatchNorm2d(4, momentum=momentum)
        self.dropout = nn.Dropout(dropout)
        self.last = nn.Conv2d(4, 3, 1)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.last(self.dropout(self.frozen(torch.tanh(self.norm(self.first(images))))))
        return logits


def network(momentum: float = 0.1, dropout: float = 0.0) -> Segmenter:
    torch.manual_seed(2)
    return Segmenter(Network(momentum, dropout), tiny_spec()).double()


@dataclasses.dataclass
class Regression:
    """An objective of the test's own with three fixed images per step. It records its batches."""

    asked: list[int] = dataclasses.field(default_factory=list)
    progress: list[float] = dataclasses.field(default_factory=list)
    training: list[tuple[bool, bool]] = dataclasses.field(default_factory=list)
    random: list[float] = dataclasses.field(default_factory=list)
    seeds: list[int] = dataclasses.field(default_factory=list)
    dtypes: set[torch.dtype] = dataclasses.field(default_factory=set)

    def batch(self, step: int, slots: range) -> tuple[Tensor, Tensor]:
        assert slots == range(4)  # of make_settings
        rng = np.random.default_rng([11, step])
        return torch.from_numpy(rng.random((3, 3, 6, 5))), torch.from_numpy(rng.normal(size=(3, 3, 6, 5)))

    def loss(self, model: Segmenter, batch: tuple[Tensor, Tensor], progress: float) -> WeightedSum:
        self.progress.append(progress)
        self.training.append((model.network.norm.training, model.network.frozen.training))  # type: ignore[union-attr]
        self.random.append(float(torch.rand(1)))
        self.seeds.append(torch.initial_seed())
        images, wanted = batch
        logits = model(images.to(model.mean_3HW.dtype))
        self.dtypes.add(logits.dtype)
        squares = (logits - wanted.to(logits.dtype)).square()
        return WeightedSum(squares.sum(), torch.tensor(float(squares.numel())))

    def evaluate(self, model: Segmenter) -> None:
        model.eval()  # whatever an evaluation leaves behind


def settings(**changes: Any) -> OptimisationSettings:
    return make_settings(**{"steps": STEPS, "lr": 0.05, "eval_every": 2, "out": "trained", **changes})


@dataclasses.dataclass
class Judged(Regression):
    """The same, judged: the n-th evaluation has the mIoU n / 10. It notes after which step it was asked."""

    judged: list[int] = dataclasses.field(default_factory=list)

    def evaluate(self, model: Segmenter) -> Evaluation:  # type: ignore[override]
        self.judged.append(len(self.progress))
        miou = len(self.judged) / 10
        return Evaluation(miou=miou, pixel_accuracy=miou + 0.05, iou={"sky": miou}, images=3)
