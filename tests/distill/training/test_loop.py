"""The training loop against AdamW written out in double precision, and the settings that reach it."""

import copy
import dataclasses
import inspect
import math
from pathlib import Path
from typing import Any

import numpy as np
import oracles
import pandas as pd
import pytest
import segmentation_models_pytorch as smp
import torch
from conftest import tiny_spec
from stages import (
    Prepared,
    make_settings,
    make_train_settings,
    prepare_distill,
    prepare_train,
    run_distill,
    run_training,
    score_folder,
)
from torch import Tensor, nn
from torch.nn import functional as F

from distill.objective import Distillation
from distill.settings import OptimisationSettings
from distill.training.processes import WeightedSum
from pipeline.models.files import save_model
from pipeline.models.segmenter import ModelSpec, Segmenter, build_model
from storage.scores.store import ScoreStore

STEPS = 9


class Network(nn.Module):
    """A convolution whose bias BatchNorm would swallow has none, so that no gradient is rounding alone."""

    def __init__(self, momentum: float, dropout: float) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4, momentum=momentum)
        self.resting = nn.BatchNorm2d(4, momentum=momentum)
        self.dropout = nn.Dropout(dropout)
        self.last = nn.Conv2d(4, 3, 1)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.last(self.dropout(self.resting(torch.tanh(self.norm(self.first(images))))))
        return logits


def network(momentum: float = 0.1, dropout: float = 0.0) -> Segmenter:
    torch.manual_seed(2)
    return Segmenter(Network(momentum, dropout), tiny_spec()).double()


@dataclasses.dataclass
class Regression:
    """An objective of the test's own: three fixed images a step. It notes what it is shown."""

    asked: list[int] = dataclasses.field(default_factory=list)
    progress: list[float] = dataclasses.field(default_factory=list)
    training: list[tuple[bool, bool]] = dataclasses.field(default_factory=list)
    random: list[float] = dataclasses.field(default_factory=list)
    dtypes: set[torch.dtype] = dataclasses.field(default_factory=set)

    def batch(self, step: int, slots: range) -> tuple[Tensor, Tensor]:
        assert slots == range(4)  # of make_settings
        rng = np.random.default_rng([11, step])
        return torch.from_numpy(rng.random((3, 3, 6, 5))), torch.from_numpy(rng.normal(size=(3, 3, 6, 5)))

    def loss(self, model: Segmenter, batch: tuple[Tensor, Tensor], progress: float) -> WeightedSum:
        self.progress.append(progress)
        self.training.append((model.network.norm.training, model.network.resting.training))  # type: ignore[union-attr]
        self.random.append(float(torch.rand(1)))
        images, wanted = batch
        logits = model(images.to(model.mean_3HW.dtype))
        self.dtypes.add(logits.dtype)
        squares = (logits - wanted.to(logits.dtype)).square()
        return WeightedSum(squares.sum(), torch.tensor(float(squares.numel())))

    def evaluate(self, model: Segmenter) -> None:
        model.eval()  # whatever an evaluation leaves behind
        model.train()


def settings(**changes: Any) -> OptimisationSettings:
    return make_settings(**{"steps": STEPS, "lr": 0.05, "eval_every": 2, "out": "trained", **changes})


def by_hand(*, lr: float, weight_decay: float, warmup: float, momentum: float, steps: int = STEPS) -> dict[str, Tensor]:
    """The same run by formulas: BatchNorm, AdamW (Loshchilov and Hutter, 2019) and the learning rate written out."""
    state = {name: tensor.clone() for name, tensor in network().network.state_dict().items()}
    learnt = [name for name, _ in network().network.named_parameters()]
    first = {name: torch.zeros_like(state[name]) for name in learnt}
    second = {name: torch.zeros_like(state[name]) for name in learnt}
    mean, std = (torch.tensor(values).double().view(3, 1, 1) for values in (tiny_spec().mean, tiny_spec().std))
    for step in range(steps):
        images, wanted = Regression().batch(step, range(4))
        leaves = {name: state[name].clone().requires_grad_() for name in learnt}
        x = F.conv2d((images - mean.float().double()) / std.float().double(), leaves["first.weight"], padding=1)
        seen = x.detach()
        for name, value in (("mean", seen.mean((0, 2, 3))), ("var", seen.var((0, 2, 3), correction=1))):
            state[f"norm.running_{name}"] = (1 - momentum) * state[f"norm.running_{name}"] + momentum * value
        centred = x - x.mean((0, 2, 3), keepdim=True)
        x = centred / (centred.square().mean((0, 2, 3), keepdim=True) + 1e-5).sqrt()
        x = torch.tanh(x * leaves["norm.weight"].view(-1, 1, 1) + leaves["norm.bias"].view(-1, 1, 1))
        x = x / math.sqrt(1 + 1e-5)  # at rest, with the statistics that it was made with
        x = x * leaves["resting.weight"].view(-1, 1, 1) + leaves["resting.bias"].view(-1, 1, 1)
        logits = F.conv2d(x, leaves["last.weight"], leaves["last.bias"])
        gradients = torch.autograd.grad((logits - wanted).square().mean(), list(leaves.values()))
        rate = oracles.learning_rate(step, steps, lr, warmup)
        for name, gradient in zip(learnt, gradients, strict=True):
            first[name] = 0.9 * first[name] + 0.1 * gradient
            second[name] = 0.999 * second[name] + 0.001 * gradient**2
            direction = first[name] / (1 - 0.9 ** (step + 1))
            scale = (second[name] / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8
            state[name] = state[name] - rate * weight_decay * state[name] - rate * direction / scale
    return state


@pytest.mark.parametrize(
    "changes",
    [{}, {"lr": 0.2}, {"weight_decay": 0.0}, {"weight_decay": 0.7}, {"warmup": 0.0}, {"warmup": 0.5}, {"warmup": 0.3}],
    ids=str,
)
def test_a_run_is_adamw_under_warmup_and_cosine_written_out(changes: dict[str, Any]) -> None:
    model, objective = network(), Regression()
    run_training(model, objective, settings(**changes), frozen=[model.network.resting])  # type: ignore[list-item]
    told = {"lr": 0.05, "weight_decay": 1e-4, "warmup": 0.05, **changes}
    expected = by_hand(**told, momentum=0.1)
    for name, tensor in model.network.state_dict().items():
        if "num_batches" not in name:
            torch.testing.assert_close(tensor, expected[name], rtol=1e-7, atol=1e-9, msg=name)


@pytest.mark.parametrize(("momentum", "used"), [(0.01, 0.1), (0.1, 0.1), (0.4, 0.4)])
def test_running_statistics_follow_at_least_by_a_tenth_a_step(momentum: float, used: float) -> None:
    model = network(momentum)
    run_training(model, Regression(), settings(), frozen=[model.network.resting])  # type: ignore[list-item]
    expected = by_hand(lr=0.05, weight_decay=1e-4, warmup=0.05, momentum=used)
    for name in ("norm.running_mean", "norm.running_var"):
        torch.testing.assert_close(model.network.state_dict()[name], expected[name], rtol=1e-7, atol=1e-9)


def test_the_learning_rate_that_the_optimiser_has_is_logged() -> None:
    run_training(network(), Regression(), settings(steps=40, warmup=0.5))
    curve = pd.read_csv("trained/curves/plots/metrics/lr.tsv", sep="\t")
    expected = [oracles.learning_rate(step - 1, 40, 0.05, 0.5) for step in (10, 20, 30, 40)]
    assert curve["lr"].tolist() == pytest.approx(expected, abs=1e-9)
    assert max(expected) == 0.05


def test_every_step_trains_and_what_rests_stays_in_eval_mode() -> None:
    model, objective = network(), Regression()
    run_training(model, objective, settings(), frozen=[model.network.resting])  # type: ignore[list-item]
    assert objective.training == [(True, False)] * STEPS
    assert objective.progress == pytest.approx(np.linspace(0, 1, STEPS))
    assert model.network.resting.running_mean.tolist() == [0] * 4  # type: ignore[union-attr]


def test_what_is_random_in_a_step_is_of_the_seed_and_the_step() -> None:
    draws = []
    for out, seed in (("a", 0), ("b", 0), ("c", 1)):
        objective = Regression()
        run_training(network(dropout=0.5), objective, settings(out=out, seed=seed))
        draws.append(objective.random)
    assert draws[0] == draws[1]
    assert len({*draws[0], *draws[2]}) == 2 * STEPS


@pytest.mark.parametrize(("precision", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_the_forward_pass_has_the_precision_asked_for_and_the_weights_stay_float32(
    precision: str, dtype: torch.dtype
) -> None:
    model, objective = network().float(), Regression()
    run_training(model, objective, settings(precision=precision))
    assert objective.dtypes == {dtype}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def state_of(prepared: Prepared) -> dict[str, Tensor]:
    return copy.deepcopy(prepared.model.network.state_dict())


def differing(one: dict[str, Tensor], other: dict[str, Tensor]) -> set[str]:
    assert one.keys() == other.keys()
    return {name for name in one if not torch.equal(one[name], other[name])}


def test_the_initial_weights_are_of_the_seed_alone(scored_store: ScoreStore, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    for number, seed in enumerate((0, 0, 1)):
        torch.manual_seed(number)  # whatever drew numbers before
        made.append(state_of(prepare_distill(make_settings(seed=seed, overwrite=True), monkeypatch)))
    assert not differing(made[0], made[1])
    assert {"stem.0.weight", "head.weight"} <= differing(made[0], made[2])


def test_a_supervised_run_begins_with_the_weights_of_its_seed(
    labelled_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    for number, seed in enumerate((0, 0, 1)):
        torch.manual_seed(number)
        told = make_train_settings(labelled_folder, seed=seed, overwrite=True)
        made.append(state_of(prepare_train(told, monkeypatch)))
    assert not differing(made[0], made[1])
    assert {"stem.0.weight", "head.weight"} <= differing(made[0], made[2])


def test_arguments_reach_the_students_builder(scored_store: ScoreStore, monkeypatch: pytest.MonkeyPatch) -> None:
    told = make_settings(student="tiny_models:tiny", student_arguments={"width": 5})
    assert len(state_of(prepare_distill(told, monkeypatch))["stem.0.weight"]) == 5


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """Stands for the pretrained backbone that torchvision would fetch."""
    from torchvision.models import _api, mobilenet_v3_large

    torch.manual_seed(77)
    weights: dict[str, Tensor] = mobilenet_v3_large().state_dict()
    monkeypatch.setattr(_api, "load_state_dict_from_url", lambda *_, **__: weights)
    return weights


@pytest.mark.parametrize("pretrained", [False, True])
def test_a_pretrained_backbone_is_what_the_student_begins_with(
    pretrained: bool, scored_store: ScoreStore, published: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    told = make_settings(student="lraspp_mobilenet_v3_large", pretrained_backbone=pretrained)
    state = state_of(prepare_distill(told, monkeypatch))
    assert torch.equal(state["backbone.0.0.weight"], published["features.0.0.weight"]) is pretrained
    assert torch.equal(state["backbone.16.0.weight"], published["features.16.0.weight"]) is pretrained


@pytest.mark.parametrize("pretrained", [False, True])
def test_a_pretrained_backbone_is_what_a_supervised_model_begins_with(
    pretrained: bool, labelled_folder: Path, published: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    told = make_train_settings(labelled_folder, builder="lraspp_mobilenet_v3_large", pretrained_backbone=pretrained)
    state = state_of(prepare_train(told, monkeypatch))
    assert torch.equal(state["backbone.0.0.weight"], published["features.0.0.weight"]) is pretrained


@pytest.mark.parametrize(("pretrained", "asked"), [(False, None), (True, "imagenet")])
def test_smp_is_asked_for_the_encoder_of_imagenet(
    pretrained: bool, asked: str | None, image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, seen = smp.create_model, []

    def create(*arguments: Any, **named: Any) -> nn.Module:
        given = inspect.signature(plain).bind(*arguments, **named).arguments
        seen.append(given["encoder_weights"])
        return plain(*arguments, **{**named, "encoder_weights": None})  # type: ignore[no-any-return]

    spec = ModelSpec(builder="tiny_models:tiny", num_classes=2, class_names=("a", "b"), image_size=(32, 32))
    torch.manual_seed(0)
    save_model(build_model(spec).eval(), Path("square.safetensors"))
    score_folder(image_folder, "square.safetensors", limit=4)
    monkeypatch.setattr(smp, "create_model", create)
    prepare_distill(make_settings(student="Unet/resnet18", pretrained_backbone=pretrained), monkeypatch)
    assert seen == [asked]


def test_the_teacher_of_a_run_is_frozen_and_stays_in_eval_mode(
    scored_store: ScoreStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, seen = Distillation.loss, []

    def loss(self: Distillation, model: Segmenter, *rest: Any) -> Tensor:
        frozen = not any(parameter.requires_grad for parameter in self.teacher.parameters())
        seen.append((frozen, self.teacher.training, model.training))
        return plain(self, model, *rest)

    monkeypatch.setattr(Distillation, "loss", loss)
    run_distill(make_settings(steps=3, eval_every=1))
    assert seen == [(True, False, True)] * 3
