"""Inheritance: how a student is initialised from a teacher with the same architecture."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import oracles
import pytest
import torch
from conftest import HEIGHT, WIDTH, tiny_model, tiny_spec
from stages import Stopped, make_settings, prepare_distill, score_folder, stop_at
from torch import nn

from distill.distillation import distill
from distill.inheritance import Inherited, Pass, feature_distance, inherit, live_variance, recorded, standardised
from distill.settings import DistillSettings
from pipeline.models.files import load_model, save_model
from pipeline.models.segmenter import IMAGENET_MEAN, IMAGENET_STD, ModelSpec, Segmenter, build_model
from pipeline.scoring.run import score
from pipeline.settings import ScoreSettings
from storage.errors import ModelError, SettingsError

TEACHER = "tiny_models:stacked"


def spec(**arguments: Any) -> ModelSpec:
    return ModelSpec(
        builder=TEACHER,
        num_classes=3,
        class_names=("sky", "road", "car"),
        image_size=(HEIGHT, WIDTH),
        arguments=arguments,
    )


@pytest.fixture
def stacked_teacher() -> Segmenter:
    return tiny_model(seed=3, spec=spec())


def student(**arguments: Any) -> Segmenter:
    torch.manual_seed(9)
    return build_model(spec(**arguments))


def same(one: nn.Module, other: nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_shorter_student_is_initialised_from_the_teachers_first_and_last_modules(stacked_teacher: Segmenter) -> None:
    own, theirs = student(blocks=2), stacked_teacher
    inheritance = inherit(own, theirs)
    assert same(own.network.stem, theirs.network.stem)
    assert same(own.network.blocks[0], theirs.network.blocks[1])
    assert same(own.network.blocks[1], theirs.network.blocks[2])
    assert same(own.network.head, theirs.network.head)
    fixed = {name for name, parameter in own.network.named_parameters() if not parameter.requires_grad}
    assert {name.split(".")[0] for name in fixed} == {"stem"}
    assert [pair[1] for pair in inheritance.compared] == [theirs.network.blocks[1][1], theirs.network.blocks[2][1]]
    frozen = {name for name, module in own.network.named_modules() if module in inheritance.frozen}
    assert frozen == {"stem", "stem.0", "stem.1", "blocks.0.1", "blocks.1.1"}


def test_modules_of_other_shapes_are_the_students_own(stacked_teacher: Segmenter) -> None:
    own, before = student(width=5), student(width=5)
    inherit(own, stacked_teacher)
    assert same(own.network.stem, stacked_teacher.network.stem)
    assert same(own.network.blocks[1], before.network.blocks[1])
    # Its BatchNorm has the teacher's shape, but another convolution feeds it.
    assert same(own.network.blocks[2], before.network.blocks[2])
    assert same(own.network.head, stacked_teacher.network.head)


def test_other_networks_inherit_nothing(stacked_teacher: Segmenter) -> None:
    own = build_model(tiny_spec("tiny_models:small"))
    before = {name: tensor.clone() for name, tensor in own.state_dict().items()}
    inheritance = inherit(own, stacked_teacher)
    assert (inheritance.frozen, inheritance.compared) == ((), ())
    assert all(torch.equal(tensor, before[name]) for name, tensor in own.state_dict().items())
    assert all(parameter.requires_grad for parameter in own.parameters())


def test_modules_in_blocks_of_another_kind_are_not_the_same() -> None:
    bottlenecks, basic = smp_model("Unet/resnet50"), smp_model("Unet/resnet34")
    taken = basic.network.encoder.layer1[0].conv2  # both have a 3x3 convolution of 64 channels here
    before = taken.weight.clone()
    inherit(basic, bottlenecks)
    assert torch.equal(taken.weight, before)
    assert torch.equal(basic.network.encoder.conv1.weight, bottlenecks.network.encoder.conv1.weight)


def test_a_module_with_the_same_input_and_another_output_is_not_frozen() -> None:
    dilated, strided = smp_model("DeepLabV3/resnet18"), smp_model("Unet/resnet18", seed=2)
    inheritance = inherit(strided, dilated)
    layer3 = strided.network.encoder.layer3[0]
    assert same(layer3, dilated.network.encoder.layer3[0])  # and yet a fair beginning
    assert inheritance.compared == ()
    assert not strided.network.encoder.layer2[0].conv1.weight.requires_grad
    assert layer3.conv1.weight.requires_grad  # stride 2 here, dilation 2 there
    assert layer3.downsample[0].weight.requires_grad


def test_convolutions_that_pad_by_themselves_inherit_too() -> None:
    teacher = smp_model("Unet/efficientnet-b0")
    own = smp_model("Unet/efficientnet-b0", seed=2, encoder_depth=4, decoder_channels=[128, 64, 32, 16])
    frozen = inherit(own, teacher).frozen
    before_the_last_stage = [own.network.encoder._conv_stem, *own.network.encoder._blocks[:8]]
    assert not any(parameter.requires_grad for module in before_the_last_stage for parameter in module.parameters())
    own.train()  # in which a block may drop parts of itself
    for module in frozen:
        module.eval()
    image = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        seen, wanted = own.network.encoder(image)[3], teacher.network.encoder(image)[3]
    assert torch.allclose(seen, wanted)


def smp_model(builder: str, seed: int = 1, **arguments: Any) -> Segmenter:
    torch.manual_seed(seed)
    return build_model(
        ModelSpec(
            builder=f"smp:{builder}",
            num_classes=3,
            class_names=("sky", "road", "car"),
            image_size=(64, 64),
            arguments=arguments,
        )
    ).eval()


def test_a_continued_student_that_is_normalised_otherwise_keeps_that_and_sees_nothing_as_the_teacher_does(
    stacked_teacher: Segmenter,
) -> None:
    own = student(blocks=2)
    inherit(own, stacked_teacher)
    own.requires_grad_(True).describe(mean=(0.5, 0.5, 0.5), std=(0.3, 0.3, 0.3))
    inheritance = inherit(own, stacked_teacher, copy=False)
    assert own.spec.std == (0.3, 0.3, 0.3)
    assert all(parameter.requires_grad for parameter in own.parameters())
    assert names_of(own, inheritance.frozen) == {"stem.1", "blocks.0.1", "blocks.1.1"}  # statistics are shared yet
    assert (inheritance.counts.modules, inheritance.counts.frozen, inheritance.counts.compared) == (3, 0, 3)


FOREIGN = ((0.41, 0.42, 0.43), (69.9, 72.6, 72.0))


def foreign(model: Segmenter) -> Segmenter:
    """As of authors who divide by 255 after the standardisation."""
    model.describe(mean=FOREIGN[0], std=FOREIGN[1])
    return model


def normalisation(model: Segmenter) -> tuple[tuple[float, ...], tuple[float, ...]]:
    mean, std = (tuple(values.flatten().tolist()) for values in (model.mean_3HW, model.std_3HW))
    assert (mean, std) == (pytest.approx(model.spec.mean), pytest.approx(model.spec.std))  # what its file says
    return model.spec.mean, model.spec.std


def test_a_student_that_inherits_what_reads_the_image_is_normalised_like_the_teacher(
    stacked_teacher: Segmenter,
) -> None:
    own = student(blocks=2)
    inherit(own, foreign(stacked_teacher))
    assert normalisation(own) == FOREIGN
    assert not own.network.stem[0].weight.requires_grad  # type: ignore[index, union-attr]


def with_other_stem() -> Segmenter:
    own = student(blocks=2)
    own.network.stem[0] = nn.Conv2d(3, 8, 5, stride=2, padding=2)  # type: ignore[operator, index]
    return own


@pytest.mark.parametrize("make", [lambda: build_model(tiny_spec("tiny_models:small")), with_other_stem])
def test_a_student_with_a_stem_of_its_own_keeps_its_normalisation(
    make: Callable[[], Segmenter], stacked_teacher: Segmenter
) -> None:
    own = make()
    inherit(own, foreign(stacked_teacher))
    assert normalisation(own) == (IMAGENET_MEAN, IMAGENET_STD)


class Reinforced(nn.Module):
    """Its second convolution reads the image again, at half the size, as ESPNetv2's do."""

    def __init__(self, kernel: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, kernel, stride=2, padding=kernel // 2)
        self.again = nn.Conv2d(3, 4, 1)
        self.head = nn.Conv2d(4, 3, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        small = nn.functional.avg_pool2d(images, 2)
        logits: torch.Tensor = self.head(self.stem(images) + self.again(small))
        return logits


def test_it_need_not_be_the_first_module_that_reads_the_image() -> None:
    own, teacher = (Segmenter(Reinforced(kernel), spec()) for kernel in (3, 5))
    inherit(own, foreign(teacher))
    assert normalisation(own) == FOREIGN


@pytest.mark.parametrize("inherits", [True, False])
def test_a_new_student_of_a_foreign_teacher_has_imagenets_normalisation_where_it_begins_anew(
    inherits: bool, stacked_teacher: Segmenter, image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model(foreign(stacked_teacher), Path("foreign.safetensors"))
    score_folder(image_folder, "foreign.safetensors")
    for name, arguments, likewise in (("stacked", {"blocks": 2}, inherits), ("small", {}, False)):
        told = make_settings(
            student=f"tiny_models:{name}", student_arguments=arguments, inherit=inherits, out=name, device="cpu"
        )
        own = prepare_distill(told, monkeypatch).model
        assert normalisation(own) == (FOREIGN if likewise else (IMAGENET_MEAN, IMAGENET_STD))


def test_a_student_that_equals_the_teacher_is_refused(stacked_teacher: Segmenter) -> None:
    with pytest.raises(ModelError, match="equals the teacher and has nothing to learn"):
        inherit(student(), stacked_teacher)
    with pytest.raises(ModelError, match="equals the teacher"):  # though it has stages that never run
        inherit(smp_model("PSPNet/resnet18", seed=2), smp_model("PSPNet/resnet18"))


class Gate(nn.Module):
    """A module with a tensor and parts of its own; its part ``side`` is not of its own forward pass."""

    def __init__(self, kernel: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((1,), 1.5))
        self.side = nn.Conv2d(3, 3, kernel, padding=kernel // 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images * self.scale


class Gated(nn.Module):
    def __init__(self, kernel: int = 1, *, aside: bool = True) -> None:
        super().__init__()
        self.gate, self.aside = Gate(kernel), aside

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        gated: torch.Tensor = self.gate(images)
        return gated + self.gate.side(images) if self.aside else gated


def test_a_part_that_differs_goes_on_learning_though_the_module_around_it_is_fixed() -> None:
    own = Segmenter(Gated(kernel=3), spec())
    inheritance = inherit(own, Segmenter(Gated(kernel=1), spec()))
    learning = {name for name, parameter in own.network.named_parameters() if parameter.requires_grad}
    assert learning == {"gate.side.weight", "gate.side.bias"}
    assert names_of(own, inheritance.frozen) == set()  # a module in eval mode would take its parts along


def test_a_part_that_never_runs_is_nothing_to_learn() -> None:
    with pytest.raises(ModelError, match="equals the teacher and has nothing to learn"):
        inherit(Segmenter(Gated(kernel=3, aside=False), spec()), Segmenter(Gated(kernel=1, aside=False), spec()))


class Repeated(nn.Module):
    """Its last convolution and BatchNorm run ``times`` times."""

    def __init__(self, times: int, stem: int = 3) -> None:
        super().__init__()
        self.times = times
        self.stem = nn.Conv2d(3, 4, stem, padding=stem // 2)
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.head = nn.Conv2d(4, 3, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.stem(images)
        for _ in range(self.times):
            features = self.norm(self.conv(features))
        logits: torch.Tensor = self.head(features)
        return logits


@pytest.mark.parametrize(("own_times", "their_times"), [(1, 1), (1, 2), (2, 1), (2, 2)])
def test_features_are_compared_where_a_layer_runs_once_in_both(own_times: int, their_times: int) -> None:
    own, teacher = (Segmenter(Repeated(times, stem), spec()) for times, stem in ((own_times, 1), (their_times, 3)))
    inheritance = inherit(own, teacher)
    assert same(own.network.conv, teacher.network.conv)
    once = own_times == their_times == 1
    assert inheritance.compared == (((own.network.norm, teacher.network.norm),) if once else ())


def test_a_layer_that_runs_twice_is_not_fixed() -> None:
    own, teacher = (Segmenter(Repeated(times=2), spec()) for _ in range(2))
    inherit(own, teacher)
    learning = {name.split(".")[0] for name, parameter in own.network.named_parameters() if parameter.requires_grad}
    assert learning == {"conv", "norm"}


class Strided(nn.Module):
    def __init__(self, stride: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, padding=1, stride=stride), nn.BatchNorm2d(4)
        self.head = nn.Conv2d(4, 3, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.norm(self.conv(images)))
        return logits


def test_features_of_another_resolution_are_not_compared() -> None:
    own, teacher = Segmenter(Strided(stride=2), spec()), Segmenter(Strided(stride=1), spec())
    inheritance = inherit(own, teacher)
    assert same(own.network, teacher.network)
    assert inheritance.compared == ()


@pytest.mark.parametrize("changed", ["running_mean", "running_var"])
def test_features_are_not_compared_where_a_student_that_goes_on_has_statistics_of_its_own(
    changed: str, stacked_teacher: Segmenter
) -> None:
    own = student(blocks=2)
    inherit(own, stacked_teacher)
    getattr(own.network.blocks[0][1], changed)[3] += 0.5  # type: ignore[index, union-attr]
    compared = [mine for mine, _ in inherit(own, stacked_teacher, copy=False).compared]
    assert names_of(own, compared) == {"blocks.1.1"}


class Grid(nn.Module):
    """A convolution of any settings with its BatchNorm, after a convolution of its own."""

    def __init__(self, kernel: int = 3, norm: type[nn.Module] = nn.BatchNorm2d, stem: int = 1, **settings: Any) -> None:
        super().__init__()
        eps = settings.pop("eps", 1e-5)
        momentum = settings.pop("momentum", 0.1)
        self.stem = nn.Conv2d(3, 4, stem, padding=stem // 2)
        self.conv = nn.Conv2d(settings.pop("channels", 4), 4, kernel, **{"padding": "same", **settings})
        self.norm = norm(4, eps=eps, momentum=momentum)
        self.head = nn.Conv2d(4, 3, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.stem(images)[:, : self.conv.in_channels]
        logits: torch.Tensor = self.head(self.norm(self.conv(features)))
        return logits


@pytest.mark.parametrize(
    ("own", "theirs", "copied", "compared"),
    [
        ({}, {}, True, True),
        ({"dilation": 2}, {}, True, False),
        ({"padding_mode": "reflect"}, {}, True, False),
        ({"eps": 1e-3}, {}, True, False),
        ({"momentum": 0.01}, {}, True, True),
        ({"norm": nn.SyncBatchNorm}, {}, True, True),
        ({"kernel": 1, "dilation": 2}, {"kernel": 1}, True, True),  # as in dilated ResNets
        ({"groups": 2}, {"channels": 2}, False, False),  # weights of the same shape
    ],
)
def test_features_are_compared_where_all_settings_are_equal_and_weights_are_copied_where_they_mean_the_same(
    own: dict[str, Any], theirs: dict[str, Any], copied: bool, compared: bool
) -> None:
    mine, teacher = Segmenter(Grid(stem=3, **own), spec()).eval(), Segmenter(Grid(**theirs), spec()).eval()
    assert mine.network.conv.weight.shape == teacher.network.conv.weight.shape
    inheritance = inherit(mine, teacher)
    assert torch.equal(mine.network.conv.weight, teacher.network.conv.weight) is copied
    assert bool(inheritance.compared) is compared


class Wrapped(nn.Sequential):
    """As a plain sequence, but a kind of its own."""


MODULES = {f"{part}.{index}" for part in ("stem", "blocks.0", "blocks.1", "blocks.2") for index in (0, 1)} | {"head"}


@pytest.mark.parametrize("changed", ["stem", "blocks.1", "blocks.1.0"])
def test_a_module_inherits_only_where_it_and_all_that_it_lies_in_are_of_the_same_kind(
    changed: str, stacked_teacher: Segmenter
) -> None:
    own = student()
    parent, _, name = changed.rpartition(".")
    module = own.network.get_submodule(changed)
    kind = Wrapped(*module) if isinstance(module, nn.Sequential) else nn.ConvTranspose2d(8, 8, 3, padding=1)
    setattr(own.network.get_submodule(parent), name, kind)
    inherit(own, stacked_teacher)
    taken = {n for n in MODULES if same(own.network.get_submodule(n), stacked_teacher.network.get_submodule(n))}
    around = changed.removesuffix(".0")  # BatchNorm comes with the convolution that feeds it
    assert taken == {n for n in MODULES if not n.startswith(f"{around}.")}


def test_a_model_stays_in_the_mode_that_it_had(stacked_teacher: Segmenter) -> None:
    own = student(blocks=2).train()
    inherit(own, stacked_teacher)
    assert own.training
    assert own.network.blocks[0][1].training  # type: ignore[index, union-attr]
    assert not stacked_teacher.training


def test_models_are_compared_on_one_image_of_noise_that_is_always_the_same(stacked_teacher: Segmenter) -> None:
    """Both halves of an interrupted run must find the same modules fixed, whatever drew numbers before."""
    seen: list[torch.Tensor] = []
    stacked_teacher.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    torch.manual_seed(123)
    Pass.of(stacked_teacher, (HEIGHT, WIDTH))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (stacked_teacher.spec.mean, stacked_teacher.spec.std))
    noise = torch.rand(1, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(seen[0] * std + mean, noise)


def test_what_ran_before_a_module_is_known_for_all_but_the_first() -> None:
    first, second, third, idle = (nn.Identity() for _ in range(4))
    found = Pass([first, second, third], {}, {})
    assert [found.before(module) for module in (first, second, third, idle)] == [None, first, second, None]


def names_of(model: Segmenter, modules: Sequence[nn.Module]) -> set[str]:
    return {name for name, module in model.network.named_modules() if module in modules}


def test_a_continued_student_begins_with_its_own_weights_and_shares_what_it_shared(
    settings: DistillSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = prepare_distill(change(settings, out="start"), monkeypatch)
    distill(settings)
    ended = load_model("run/student.safetensors").network
    assert not same(ended.blocks[0][0], start.model.network.blocks[0][0])  # type: ignore[index, union-attr]
    told = change(settings, student="run/student.safetensors", student_arguments={}, out="on")
    goes_on = prepare_distill(told, monkeypatch)
    assert same(goes_on.model.network, ended)  # not the teacher's modules again
    for run in (start, goes_on):
        compared = [own for own, _ in run.objective.inheritance.compared]
        fixed = [name for name, parameter in run.model.network.named_parameters() if not parameter.requires_grad]
        assert names_of(run.model, run.frozen) == {"stem", "stem.0", "stem.1", "blocks.0.1", "blocks.1.1"}
        assert names_of(run.model, compared) == {"blocks.0.1", "blocks.1.1"}
        assert {name.partition(".")[0] for name in fixed} == {"stem"}


def test_a_continued_student_learns_and_keeps_the_teachers_stem_and_statistics(
    settings: DistillSettings, stacked_teacher: Segmenter
) -> None:
    distill(settings)
    distill(change(settings, student="run/student.safetensors", student_arguments={}, out="on"))
    first, second = (load_model(f"{out}/student.safetensors").network for out in ("run", "on"))
    assert same(second.stem, stacked_teacher.network.stem)
    for before, after, theirs in zip(first.blocks, second.blocks, stacked_teacher.network.blocks[1:], strict=True):
        assert torch.equal(after[1].running_mean, theirs[1].running_mean)
        assert torch.equal(after[1].running_var, theirs[1].running_var)
        assert not torch.equal(after[0].weight, before[0].weight)


def test_feature_distance_is_in_the_teachers_standard_deviations_image_by_image() -> None:
    layer = nn.BatchNorm2d(2, eps=0.0)
    layer.running_var = torch.tensor([4.0, 25.0])
    theirs = torch.zeros(3, 2, 4, 5)
    own = theirs.clone()
    own[1, 0] = 2.0  # one standard deviation in one of two channels
    own[2, 1] = -10.0  # two
    distance = feature_distance([standardised(own, layer)], [standardised(theirs, layer)])
    assert distance.tolist() == pytest.approx([0.0, 0.5, 2.0])


def test_feature_distance_is_the_mean_over_layers_of_numpys_squares_over_variance_and_eps() -> None:
    rng = np.random.default_rng(0)
    shapes = [(3, 4, 5, 6), (3, 2, 3, 3)]
    own, theirs = ([rng.normal(0, 2, shape).astype(np.float32) for shape in shapes] for _ in range(2))
    var = [rng.uniform(0, 0.5, shape[1]).astype(np.float32) for shape in shapes]
    var[0][2] = 1e-6  # a dead channel
    layers = [nn.BatchNorm2d(len(values), eps=0.2) for values in var]
    for layer, values in zip(layers, var, strict=True):
        layer.running_var = torch.from_numpy(values)
    found = feature_distance(
        *(
            [standardised(torch.from_numpy(maps), layer) for maps, layer in zip(side, layers, strict=True)]
            for side in (own, theirs)
        )
    )
    np.testing.assert_allclose(found, oracles.feature_terms(own, theirs, var, 0.2), rtol=1e-5)


def batch_norm(variances: Sequence[float], eps: float = 0.0) -> nn.BatchNorm2d:
    layer = nn.BatchNorm2d(len(variances), eps=eps)
    layer.running_var = torch.tensor(variances)
    return layer


def test_a_dead_channel_is_measured_by_the_mean_variance_of_its_layer() -> None:
    assert live_variance(batch_norm([0.0, 1e-9, 0.031, 0.033, 15.936])).tolist() == pytest.approx(
        [3.2, 3.2, 3.2, 0.033, 15.936], rel=1e-5
    )
    assert live_variance(batch_norm([2.0, 0.5])).tolist() == [2.0, 0.5]


def test_dead_channels_do_not_rule_the_feature_term() -> None:
    """The same difference in every channel counts about the same, whether a fifth of them is dead or none."""
    difference = torch.full((1, 10, 4, 4), 3.0)
    found = {}
    for dead in (0, 2):
        layer = batch_norm([1e-12] * dead + [9.0] * (10 - dead), eps=1e-5)
        distance = feature_distance([standardised(difference, layer)], [standardised(0 * difference, layer)])
        found[dead] = float(distance)
    assert found == pytest.approx({0: 1.0, 2: 0.8 + 0.2 * 10 / 8}, rel=1e-4)


def test_a_layer_without_any_variance_adds_nothing_and_is_not_compared(stacked_teacher: Segmenter) -> None:
    layers, apart = (batch_norm([0.0, 0.0]), batch_norm([4.0, 4.0])), torch.full((1, 2, 3, 3), 2.0)
    own, theirs = ([standardised(maps, layer) for layer in layers] for maps in (apart, 0 * apart))
    distance = feature_distance(own, theirs)
    assert distance.tolist() == [0.5]
    stacked_teacher.network.blocks[1][1].running_var.zero_()  # type: ignore[index, union-attr, operator]
    own = student(blocks=2)
    assert names_of(own, [mine for mine, _ in inherit(own, stacked_teacher).compared]) == {"blocks.1.1"}


def test_the_feature_term_reaches_the_student_only(stacked_teacher: Segmenter) -> None:
    own, teacher = student(blocks=2), stacked_teacher
    compared = inherit(own, teacher).compared
    image = torch.rand(2, 3, HEIGHT, WIDTH)
    with torch.no_grad(), recorded([theirs for _, theirs in compared]) as wanted:
        teacher(image)
    with recorded([mine for mine, _ in compared]) as seen:
        own(image)
    inputs = (
        [standardised(seen[own], theirs) for own, theirs in compared],
        [standardised(wanted[theirs], theirs) for _, theirs in compared],
    )
    feature_distance(*inputs).sum().backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    learning = {name for name, parameter in own.network.named_parameters() if parameter.grad is not None}
    assert learning  # what lies before the last compared layer
    assert all(name.startswith("blocks") for name in learning)


@pytest.fixture
def settings(stacked_teacher: Segmenter, image_folder: Path) -> DistillSettings:
    save_model(stacked_teacher, Path("stacked.safetensors"))
    score(ScoreSettings(corpus=str(image_folder), teacher="stacked.safetensors", layers=("all",)))
    return DistillSettings(
        student=TEACHER, student_arguments={"blocks": 2}, steps=40, batch_size=4, lr=0.01, budget=1.0, out="run"
    )


def change(settings: DistillSettings, **changes: Any) -> DistillSettings:
    return dataclasses.replace(settings, **changes)


def test_a_run_keeps_frozen_modules_and_the_teachers_statistics(
    settings: DistillSettings, stacked_teacher: Segmenter
) -> None:
    distill(settings)
    trained = load_model("run/student.safetensors").network
    teacher = stacked_teacher.network
    assert same(trained.stem, teacher.stem)
    for mine, theirs in zip(trained.blocks, list(teacher.blocks)[1:], strict=True):
        assert torch.equal(mine[1].running_mean, theirs[1].running_mean)
        assert torch.equal(mine[1].running_var, theirs[1].running_var)
        assert not torch.equal(mine[0].weight, theirs[0].weight)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_an_inheriting_run_that_is_interrupted_and_resumed_ends_with_the_same_student(
    precision: Any, settings: DistillSettings
) -> None:
    settings = change(settings, steps=12, checkpoint_every=5, precision=precision)
    distill(change(settings, out="whole"))
    with pytest.raises(Stopped):
        distill(change(settings, out="halved"), stop_at(8))
    distill(change(settings, out="halved", resume=True))
    whole, halved = (Path(out, "student.safetensors").read_bytes() for out in ("whole", "halved"))
    assert whole == halved


def features_apart(path: str, teacher: Segmenter, images: torch.Tensor) -> float:
    own = load_model(path)
    pairs = [(mine[1], theirs[1]) for mine, theirs in zip(own.network.blocks, teacher.network.blocks[1:], strict=True)]
    with torch.no_grad(), recorded([mine for mine, _ in pairs]) as seen, recorded([theirs for _, theirs in pairs]) as w:
        own(images)
        teacher(images)
    own_maps = [standardised(seen[mine], theirs) for mine, theirs in pairs]
    return float(feature_distance(own_maps, [standardised(w[theirs], theirs) for _, theirs in pairs]).mean())


def test_the_feature_term_brings_the_features_nearer(settings: DistillSettings, stacked_teacher: Segmenter) -> None:
    images = torch.rand(8, 3, HEIGHT, WIDTH)
    apart = {}
    for weight in (0.0, 10.0):
        distill(change(settings, features=weight, out=f"run-{weight}"))
        apart[weight] = features_apart(f"run-{weight}/student.safetensors", stacked_teacher, images)
    assert apart[10.0] < 0.8 * apart[0.0]


def test_without_inheritance_every_weight_is_trained(settings: DistillSettings, stacked_teacher: Segmenter) -> None:
    distill(change(settings, inherit=False))
    assert not same(load_model("run/student.safetensors").network.stem, stacked_teacher.network.stem)


def test_it_is_counted_what_a_student_inherits(stacked_teacher: Segmenter) -> None:
    own = student(blocks=3, width=5)
    counts = inherit(own, stacked_teacher).counts
    stem, blocks, head = 8 * 3 * 9 + 8 + 16, (8 * 5 + 5 * 5 + 5 * 8) * 9 + 2 * (5 + 10) + (8 + 16), 3 * 8 + 3
    assert counts == Inherited(
        modules=3, all_modules=9, weights=stem + head, all_weights=stem + blocks + head, frozen=2
    )
    assert str(counts) == (
        f"inherits 3 of its 9 modules (267 of {267 + blocks:,} weights) from the teacher: "
        "2 frozen, 0 compared by their features"
    )
    assert str(Inherited.of(own)) == "inherits nothing from the teacher"
    assert inherit(student(blocks=2), stacked_teacher).counts.compared == 2


def test_weights_that_two_modules_share_are_counted_once() -> None:
    network = nn.Sequential(nn.Conv2d(3, 3, 1, bias=False), nn.Conv2d(3, 3, 1, bias=False))
    network[1].weight = network[0].weight
    assert Inherited.of(Segmenter(network, spec()), list(network)).weights == 9


@pytest.mark.parametrize(("inherits", "told"), [(True, "inherits 7 of its 7 modules"), (False, "inherits nothing")])
def test_what_a_run_inherited_is_told_and_kept(
    inherits: bool, told: str, settings: DistillSettings, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="distill")
    inherited = distill(change(settings, inherit=inherits, steps=1)).inherited
    assert [record.message for record in caplog.records if told in record.message] == [f"the student {inherited}"]
    assert json.loads(Path("run/settings.json").read_text())["inherited"] == dataclasses.asdict(inherited)
    assert inherited.all_modules == 7


def test_a_negative_weight_is_refused() -> None:
    with pytest.raises(SettingsError, match="features is -1"):
        DistillSettings(features=-1)
