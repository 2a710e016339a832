"""The training loop against AdamW written out in double precision, and the settings that reach it."""

import copy
import dataclasses
import inspect
import json
import math
import threading
from pathlib import Path
from typing import Any

import numpy as np
import oracles
import pandas as pd
import pytest
import segmentation_models_pytorch as smp
import torch
from conftest import tiny_spec
from regression import STEPS, Judged, Regression, network, settings
from stages import (
    Prepared,
    Stopped,
    make_settings,
    make_train_settings,
    prepare_distill,
    prepare_train,
    run_distill,
    run_training,
    score_folder,
    stop_at,
)
from torch import Tensor, nn
from torch.nn import functional as F

from distill.evaluation import Evaluation
from distill.objective import Distillation
from distill.training import loop
from distill.training.loop import ahead
from distill.training.processes import WeightedSum
from distill.training.run_folder import RunFolder
from pipeline.models.files import save_model
from pipeline.models.segmenter import ModelSpec, Segmenter, build_model
from storage.errors import SettingsError
from storage.progress import Step
from storage.scores.store import ScoreStore


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
        x = x / math.sqrt(1 + 1e-5)  # the frozen layer, with its initial statistics
        x = x * leaves["frozen.weight"].view(-1, 1, 1) + leaves["frozen.bias"].view(-1, 1, 1)
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
    run_training(model, objective, settings(**changes), frozen=[model.network.frozen])  # type: ignore[list-item]
    told = {"lr": 0.05, "weight_decay": 1e-4, "warmup": 0.05, **changes}
    expected = by_hand(**told, momentum=0.1)
    for name, tensor in model.network.state_dict().items():
        if "num_batches" not in name:
            torch.testing.assert_close(tensor, expected[name], rtol=1e-7, atol=1e-9, msg=name)


@pytest.mark.parametrize(("momentum", "used"), [(0.01, 0.1), (0.1, 0.1), (0.4, 0.4)])
def test_the_momentum_of_running_statistics_is_at_least_a_tenth(momentum: float, used: float) -> None:
    model = network(momentum)
    run_training(model, Regression(), settings(), frozen=[model.network.frozen])  # type: ignore[list-item]
    expected = by_hand(lr=0.05, weight_decay=1e-4, warmup=0.05, momentum=used)
    for name in ("norm.running_mean", "norm.running_var"):
        torch.testing.assert_close(model.network.state_dict()[name], expected[name], rtol=1e-7, atol=1e-9)


def test_the_learning_rate_that_the_optimiser_has_is_logged() -> None:
    run_training(network(), Regression(), settings(steps=40, warmup=0.5))
    curve = pd.read_csv("trained/curves/plots/metrics/lr.tsv", sep="\t")
    expected = [oracles.learning_rate(step - 1, 40, 0.05, 0.5) for step in (10, 20, 30, 40)]
    assert curve["lr"].tolist() == pytest.approx(expected, abs=1e-9)
    assert max(expected) == 0.05


def test_every_step_trains_and_frozen_modules_stay_in_eval_mode() -> None:
    model, objective = network(), Regression()
    run_training(model, objective, settings(), frozen=[model.network.frozen])  # type: ignore[list-item]
    assert objective.training == [(True, False)] * STEPS
    assert objective.progress == pytest.approx(np.linspace(0, 1, STEPS))
    assert model.network.frozen.running_mean.tolist() == [0] * 4  # type: ignore[union-attr]


def test_randomness_in_a_step_depends_on_the_seed_and_the_step_alone() -> None:
    draws = []
    for out, seed in (("a", 0), ("b", 0), ("c", 1)):
        objective = Regression()
        run_training(network(dropout=0.5), objective, settings(out=out, seed=seed))
        draws.append(objective.random)
    assert draws[0] == draws[1]
    assert len({*draws[0], *draws[2]}) == 2 * STEPS


@pytest.mark.parametrize("seed", [0, 7, 10**12, 10**13, 10**15])
def test_the_seed_of_a_step_stays_what_earlier_runs_had(seed: int) -> None:
    """A run that was begun before is continued with the same numbers, and a large seed is none too large."""
    objective = Regression()
    run_training(network(), objective, settings(seed=seed, steps=3))
    assert objective.seeds == [(step + seed * 1_000_000 + seed * 3) & (2**63 - 1) for step in range(3)]


@pytest.mark.parametrize(("steps", "expected"), [(1, [0.0]), (2, [0.0, 1.0]), (3, [0.0, 0.5, 1.0])])
def test_the_first_step_is_at_progress_0_and_the_last_at_1(steps: int, expected: list[float]) -> None:
    objective = Regression()
    run_training(network(), objective, settings(steps=steps))
    assert objective.progress == expected


def curve(name: str) -> dict[int, float]:
    table = pd.read_csv(f"trained/curves/plots/metrics/{name}.tsv", sep="\t")
    return dict(zip(table["step"].tolist(), table[name].tolist(), strict=True))


def test_a_run_reports_every_step_with_its_latest_loss_and_figures() -> None:
    reports: list[Step] = []
    objective = Judged()
    found = run_training(network(), objective, settings(steps=21, eval_every=8), progress=reports.append)
    losses = curve("loss")
    assert list(losses) == [10, 20, 21]
    assert objective.judged == [8, 16, 21]
    assert curve("miou") == pytest.approx({8: 0.1, 16: 0.2, 21: 0.3})
    assert curve("pixel_accuracy") == pytest.approx({8: 0.15, 16: 0.25, 21: 0.35})
    notes = [
        *[""] * 8,
        *["mIoU 0.100"] * 2,
        *[f"loss {losses[10]:.3f}, mIoU 0.100"] * 6,
        *[f"loss {losses[10]:.3f}, mIoU 0.200"] * 4,
        f"loss {losses[20]:.3f}, mIoU 0.200",
        f"loss {losses[21]:.3f}, mIoU 0.300",
    ]
    assert reports == [Step(done=done, total=21, note=note) for done, note in enumerate(notes)]
    assert found == Evaluation(miou=0.3, pixel_accuracy=0.35, iou={"sky": 0.3}, images=3)
    metrics = json.loads(Path("trained/metrics.json").read_text())
    assert metrics.pop("seconds") >= 0
    assert metrics == {"steps": 21, "seed": 0, **found.to_json()}


def test_without_figures_a_run_reports_its_loss_alone() -> None:
    reports: list[Step] = []
    assert run_training(network(), Regression(), settings(steps=2), progress=reports.append) is None
    assert [report.note for report in reports] == ["", "", f"loss {curve('loss')[2]:.3f}"]
    assert set(json.loads(Path("trained/metrics.json").read_text())) == {"steps", "seed", "seconds"}
    assert not Path("trained/curves/plots/metrics/miou.tsv").exists()


def test_a_finished_run_reports_its_end_and_its_figures_and_trains_no_more() -> None:
    first = run_training(network(), Judged(), settings(steps=3, eval_every=3))
    assert first is not None
    reports: list[Step] = []
    objective = Judged()
    again = run_training(network(), objective, settings(steps=3, eval_every=3, resume=True), progress=reports.append)
    assert again == first
    assert reports == [Step(done=3, total=3)]
    assert (objective.progress, objective.judged) == ([], [])


def test_a_run_that_was_stopped_before_its_last_evaluation_only_evaluates() -> None:
    class Interrupted(Judged):
        def evaluate(self, model: Segmenter) -> Evaluation:
            raise Stopped

    told = settings(steps=3, eval_every=3, resume=True)
    with pytest.raises(Stopped):
        run_training(network(), Interrupted(), told)
    reports: list[Step] = []
    objective = Judged()
    found = run_training(network(), objective, told, progress=reports.append)
    assert found == Evaluation(miou=0.1, pixel_accuracy=pytest.approx(0.15), iou={"sky": 0.1}, images=3)
    assert reports == [Step(done=3, total=3)]
    assert (objective.progress, objective.judged) == ([], [0])


def test_the_seconds_of_a_run_are_those_of_all_its_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(loop.time, "monotonic", lambda: now[0])

    class Slow(Regression):
        def loss(self, model: Any, batch: Any, progress: float) -> Any:
            now[0] += 2.004
            return super().loss(model, batch, progress)

    told = settings(steps=10, checkpoint_every=4)
    with pytest.raises(Stopped):
        run_training(network(), Slow(), told, progress=stop_at(6))
    now[0] += 500
    run_training(network(), Slow(), dataclasses.replace(told, resume=True))
    assert json.loads(Path("trained/metrics.json").read_text())["seconds"] == 20.0  # of 20.04


def test_checkpoints_are_kept_at_their_interval_and_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[int] = []
    monkeypatch.setattr(RunFolder, "save_checkpoint", lambda self, step, *_, seconds: kept.append(step))
    run_training(network(), Regression(), settings(checkpoint_every=4))
    assert kept == [4, 8, STEPS]


class Unnormalisable(Regression):
    """Its BatchNorm sees one value per channel."""

    def loss(self, model: Segmenter, batch: tuple[Tensor, Tensor], progress: float) -> WeightedSum:
        model.network.norm(torch.ones(1, 4, 1, 1).double())  # type: ignore[operator, union-attr]
        raise AssertionError("BatchNorm takes one value per channel")


def test_a_batch_that_is_too_small_for_batchnorm_is_an_error_of_the_batch_size() -> None:
    with pytest.raises(SettingsError, match="batch_size 1 is too small.*give 2 or more") as caught:
        run_training(network(), Unnormalisable(), settings())
    assert caught.value.field == "batch_size"


def test_any_other_error_of_an_objective_stays_what_it_is() -> None:
    class Wrong(Regression):
        def loss(self, model: Segmenter, batch: tuple[Tensor, Tensor], progress: float) -> WeightedSum:
            raise ValueError("a value is wrong")

    with pytest.raises(ValueError, match="^a value is wrong$"):
        run_training(network(), Wrong(), settings())


def test_two_batches_are_made_in_advance_in_threads_of_their_own() -> None:
    made, begun = [], threading.Semaphore(0)

    def make(step: int) -> str:
        made.append((step, threading.current_thread().name.partition("_")[0]))
        begun.release()
        return f"batch {step}"

    batches = ahead(make, 3, 9)
    assert next(batches) == (3, "batch 3")
    for _ in range(3):
        assert begun.acquire(timeout=20)
    assert not begun.acquire(timeout=0.05)  # a third is not begun before it is its turn
    assert sorted(made) == [(step, "batch") for step in (3, 4, 5)]
    assert list(batches) == [(step, f"batch {step}") for step in range(4, 9)]


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


def test_the_initial_weights_depend_on_the_seed_alone(
    scored_store: ScoreStore, monkeypatch: pytest.MonkeyPatch
) -> None:
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
    """Stands for the pretrained backbone that torchvision would download."""
    from torchvision.models import _api, mobilenet_v3_large

    torch.manual_seed(77)
    weights: dict[str, Tensor] = mobilenet_v3_large().state_dict()
    monkeypatch.setattr(_api, "load_state_dict_from_url", lambda *_, **__: weights)
    return weights


@pytest.mark.parametrize("pretrained", [False, True])
def test_a_student_is_initialised_from_a_pretrained_backbone(
    pretrained: bool, scored_store: ScoreStore, published: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    told = make_settings(student="lraspp_mobilenet_v3_large", pretrained_backbone=pretrained)
    state = state_of(prepare_distill(told, monkeypatch))
    assert torch.equal(state["backbone.0.0.weight"], published["features.0.0.weight"]) is pretrained
    assert torch.equal(state["backbone.16.0.weight"], published["features.16.0.weight"]) is pretrained


@pytest.mark.parametrize("pretrained", [False, True])
def test_a_supervised_model_is_initialised_from_a_pretrained_backbone(
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
    asked_for = []

    def preprocessing(*arguments: Any) -> dict[str, Any]:
        asked_for.append(arguments)
        return {"input_space": "RGB", "input_range": [0, 255], "mean": [51.0, 102.0, 153.0], "std": [25.5, 51.0, 76.5]}

    monkeypatch.setattr(smp, "create_model", create)
    monkeypatch.setattr(smp.encoders, "get_preprocessing_params", preprocessing)
    told = make_settings(student="Unet/resnet18", pretrained_backbone=pretrained)
    spec = prepare_distill(told, monkeypatch).model.spec
    assert seen == [asked]
    assert asked_for == ([("resnet18", "imagenet")] if pretrained else [])
    assert spec.mean == pytest.approx((0.2, 0.4, 0.6) if pretrained else (0.485, 0.456, 0.406))
    assert spec.std == pytest.approx((0.1, 0.2, 0.3) if pretrained else (0.229, 0.224, 0.225))


def test_the_teacher_of_a_run_is_frozen_and_stays_in_eval_mode(
    scored_store: ScoreStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, seen = Distillation.loss, []

    def loss(self: Distillation, model: Segmenter, *rest: Any) -> Tensor:
        frozen = not any(parameter.requires_grad for parameter in self.guide.teacher.parameters())
        seen.append((frozen, self.guide.teacher.training, model.training))
        return plain(self, model, *rest)

    monkeypatch.setattr(Distillation, "loss", loss)
    run_distill(make_settings(steps=3, eval_every=1))
    assert seen == [(True, False, True)] * 3
