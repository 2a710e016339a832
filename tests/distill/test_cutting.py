"""A student cut out of the teacher: which channels stay, and what it inherits."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import oracles
import pytest
import torch
from conftest import HEIGHT, NAMES, WIDTH, tiny_model
from numpy.typing import NDArray
from stages import Prepared, batch_of, prepare_distill
from torch import nn

from distill.cutting import asked_width, channel_sets, cut_channels, importance, kept_count
from distill.distillation import distill
from distill.inheritance import inherit, standardised
from distill.settings import DistillSettings
from distill.student import make_student
from pipeline.models.files import load_model, save_model
from pipeline.models.narrowing import Kept
from pipeline.models.segmenter import ModelSpec, Segmenter, build_model
from pipeline.scoring.run import score
from pipeline.settings import ScoreSettings
from storage.errors import DFSSError, ModelError, SettingsError


def spec(builder: str = "tiny_models:braided", size: tuple[int, int] = (HEIGHT, WIDTH), **arguments: Any) -> ModelSpec:
    return ModelSpec(builder=builder, num_classes=3, class_names=NAMES, image_size=size, arguments=arguments)


def varied(model: Segmenter) -> Segmenter:
    """The model with BatchNorm layers whose scales, shifts and statistics differ from channel to channel."""
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.weight.data.uniform_(-1, 1)
            layer.bias.data.uniform_(-0.5, 0.5)
    return model


@pytest.fixture
def braided() -> Segmenter:
    return varied(tiny_model(seed=5, spec=dataclasses.replace(spec(), mean=(0.4, 0.4, 0.4))))


def cut(teacher: Segmenter, width: float = 0.5) -> Segmenter:
    return make_student(DistillSettings(student=f"teacher:{width}"), teacher)


@pytest.mark.parametrize(
    ("channels", "width", "kept"),
    [
        (64, 0.5, 32), (64, 0.25, 16), (64, 0.3, 16), (64, 0.32, 24), (24, 0.5, 16), (20, 0.5, 8), (100, 0.75, 72),
        (100, 0.99, 96), (16, 0.1, 8), (8, 0.5, 8), (5, 0.5, 5), (12, 0.99, 8), (13, 0.99, 13), (2048, 0.01, 24),
    ],
)  # fmt: skip
def test_a_share_of_the_channels_in_multiples_of_eight_is_kept(channels: int, width: float, kept: int) -> None:
    assert kept_count(channels, width) == kept


def test_channels_that_are_added_concatenated_or_read_belong_together(braided: Segmenter) -> None:
    found = [{(member.name, member.side) for member in members} for members in channel_sets(braided)]
    stage = {("stem.0", "out"), ("stem.1", "out"), ("block.0", "in"), ("block.3", "out"), ("block.4", "out")}
    wanted = [
        {*stage, ("down.0", "in"), ("mix.0", "in")},
        {("block.0", "out"), ("block.1", "out"), ("block.3", "in")},
        {("down.0", "out"), ("down.1", "out"), ("deep.0", "out"), ("deep.1", "out"), ("up", "in")},
        {("up", "out"), ("mix.0", "in")},
        {("mix.0", "out"), ("mix.1", "out"), ("mix.2", "out"), ("head", "in")},
    ]
    assert sorted(map(sorted, found)) == sorted(map(sorted, wanted))


def relative_size(values: torch.Tensor) -> NDArray[np.float64]:
    norms = np.sqrt((values.detach().double().numpy().reshape(len(values), -1) ** 2).sum(axis=1))
    return np.asarray(norms / norms.mean())


def test_channels_of_the_largest_gammas_over_their_layers_means_stay(braided: Segmenter) -> None:
    kept = cut_channels(braided, 0.5)
    layers = dict(braided.network.named_modules())
    layers["block.4"].weight.data *= 100  # type: ignore[union-attr, operator]  # a layer's scale does not count
    by_layers = {
        "stem.0": ["stem.1", "block.4"],
        "block.0": ["block.1"],
        "down.0": ["down.1", "deep.1"],
        "mix.0": ["mix.1"],
    }
    counts = {"stem.0": 8, "block.0": 16, "down.0": 16, "mix.0": 8}
    for first, norms in by_layers.items():
        sizes = np.mean([relative_size(layers[name].weight) for name in norms], axis=0)  # type: ignore[arg-type]
        assert kept[first]["out"] == sorted(np.argsort(-sizes)[: counts[first]].tolist())
    assert kept["block.4"]["out"] == kept["down.0"]["in"] == kept["stem.1"]["out"] == kept["stem.0"]["out"]
    assert kept["mix.2"]["out"] == kept["head"]["in"] == kept["mix.0"]["out"]
    assert cut_channels(braided, 0.5) == kept


def test_channels_without_batch_norm_stay_by_the_norms_of_their_filters(braided: Segmenter) -> None:
    weight = braided.network.up.weight  # type: ignore[union-attr]
    sizes = relative_size(weight.transpose(0, 1))  # type: ignore[operator]
    kept = cut_channels(braided, 0.5)
    assert kept["up"]["out"] == sorted(np.argsort(-sizes)[:8].tolist())
    found = next(importance(members) for members in channel_sets(braided) if members[0].name == "up")
    np.testing.assert_allclose(found, sizes, rtol=1e-6)
    # The concatenation has the channels of the transposed convolution first, then those of the stage.
    assert kept["mix.0"]["in"] == [*kept["up"]["out"], *(16 + channel for channel in kept["stem.0"]["out"])]


def test_images_and_classes_keep_their_channels(braided: Segmenter) -> None:
    own = cut(braided, 0.3).network
    assert own.stem[0].in_channels == 3  # type: ignore[index, union-attr]
    assert own.head.out_channels == 3  # type: ignore[union-attr]


def test_grouped_convolutions_are_left_whole() -> None:
    kept = cut_channels(varied(tiny_model(spec=spec(groups=2))), 0.5)
    assert set(kept) == {"block.0", "block.1", "block.3", "up", "mix.0", "mix.1", "mix.2", "head"}
    assert "in" not in kept["up"]


def without(teacher: Segmenter, kept: Kept) -> Segmenter:
    """The teacher, in which nothing reads the channels that are not kept."""
    whole = copy.deepcopy(teacher)
    for name, sides in kept.items():
        if "in" in sides:
            weight = whole.network.get_submodule(name).weight
            axis = 0 if name == "up" else 1
            gone = sorted(set(range(weight.shape[axis])) - set(sides["in"]))  # type: ignore[union-attr, arg-type]
            weight.data.index_fill_(axis, torch.tensor(gone), 0.0)  # type: ignore[union-attr, operator]
    return whole


@pytest.mark.parametrize("width", [0.25, 0.5, 0.7])
def test_a_cut_student_begins_as_the_teacher_without_the_other_channels(width: float, braided: Segmenter) -> None:
    own = cut(braided, width).eval()
    inherit(own, braided)
    assert own.spec.mean == (0.4, 0.4, 0.4)
    for size in ((HEIGHT, WIDTH), (40, 48)):
        images = torch.rand(2, 3, *size)
        torch.testing.assert_close(own(images), without(braided, own.spec.kept)(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "builder", ["smp:Unet/resnet18", "smp:DeepLabV3/mobilenet_v2", "torchvision:lraspp_mobilenet_v3_large"]
)
def test_networks_of_the_libraries_are_cut_saved_and_loaded(builder: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    teacher = varied(build_model(spec(builder, (64, 64)))).eval()
    own = cut(teacher, 0.25).eval()
    counts = inherit(own, teacher).counts
    assert counts.modules == counts.all_modules
    assert counts.frozen >= 2
    assert counts.all_weights < 0.1 * sum(parameter.numel() for parameter in teacher.parameters())
    save_model(own, tmp_path / "cut.safetensors")
    loaded = load_model(tmp_path / "cut.safetensors")
    for size in ((64, 64), (96, 128)):
        images = torch.rand(1, 3, *size)
        torch.testing.assert_close(loaded(images), own(images), rtol=0, atol=0)


def test_a_student_without_inheritance_has_the_same_shapes_and_its_own_weights(braided: Segmenter) -> None:
    one, other = cut(braided), cut(braided)
    assert one.spec.mean != braided.spec.mean
    assert torch.equal(one.network.mix[0].weight, other.network.mix[0].weight)  # type: ignore[index, union-attr]
    inherit(other, braided)
    assert {n: t.shape for n, t in one.state_dict().items()} == {n: t.shape for n, t in other.state_dict().items()}
    assert not torch.equal(one.network.mix[0].weight, other.network.mix[0].weight)  # type: ignore[index, union-attr]


def test_only_what_reads_the_image_is_frozen_and_other_layers_are_compared_at_the_kept_channels(
    braided: Segmenter,
) -> None:
    own = cut(braided)
    inheritance = inherit(own, braided)
    fixed = {name for name, parameter in own.network.named_parameters() if not parameter.requires_grad}
    assert {name.rpartition(".")[0] for name in fixed} == {"stem.0", "stem.1"}
    names = {module: name for name, module in braided.network.named_modules()}
    found = {names[theirs]: inheritance.channels[theirs].tolist() for _, theirs in inheritance.compared}
    assert found == {n: own.spec.kept[n]["out"] for n in ("block.1", "block.4", "down.1", "deep.1", "mix.1")}
    for layer, theirs in inheritance.compared:
        assert layer.running_var is not None
        assert theirs.running_var is not None
        assert torch.equal(layer.running_var, theirs.running_var[inheritance.channels[theirs]])


def test_kept_channels_are_standardised_as_in_the_whole_layer() -> None:
    layer = nn.BatchNorm2d(4)
    layer.running_mean, layer.running_var = torch.tensor([1.0, 2, 3, 4]), torch.tensor([1e-9, 4.0, 9.0, 1e-9])
    inputs, channels = torch.rand(2, 4, 3, 3), torch.tensor([0, 2])
    torch.testing.assert_close(
        standardised(inputs[:, channels], layer, channels), standardised(inputs, layer)[:, channels]
    )


@pytest.fixture
def settings(braided: Segmenter, image_folder: Path) -> DistillSettings:
    save_model(braided, Path("braided.safetensors"))
    score(ScoreSettings(corpus=str(image_folder), teacher="braided.safetensors", layers=("all",)))
    return DistillSettings(student="teacher:0.5", steps=12, batch_size=4, lr=0.01, budget=1.0, jitter=0.0, out="run")


def change(settings: DistillSettings, **changes: Any) -> DistillSettings:
    return dataclasses.replace(settings, **changes)


def inputs_of(model: Segmenter, names: list[str], images: torch.Tensor) -> dict[str, NDArray[np.float64]]:
    seen: dict[str, NDArray[np.float64]] = {}
    for name in names:
        model.network.get_submodule(name).register_forward_pre_hook(
            lambda _, inputs, name=name: seen.__setitem__(name, inputs[0].detach().double().numpy())
        )
    model(images)
    return seen


@pytest.mark.parametrize("changes", [{}, {"views": 2}, {"views": 2, "adapters": 0.5}])
def test_the_feature_loss_compares_the_inputs_at_the_kept_channels(
    changes: dict[str, Any], settings: DistillSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(features: float, out: str) -> Prepared:
        return prepare_distill(change(settings, features=features, out=out, **changes), monkeypatch)

    with_term, without_term = run(1.0, "one"), run(0.0, "two")
    teacher, layers = load_model("braided.safetensors"), ["block.1", "block.4", "down.1", "deep.1", "mix.1"]
    losses = []
    for prepared in (with_term, without_term):
        prepared.model.eval()
        torch.manual_seed(0)
        objective = prepared.objective
        for adapter in objective.adapters:
            adapter.convolution.weight.data.fill_(0.1)
            adapter.convolution.bias.data.fill_(0.1)
        losses.append(objective.loss(prepared.model, batch_of(objective, 0), 0.0).mean().item())
    batch = batch_of(with_term.objective, 0)
    own = inputs_of(with_term.model, layers, batch.images_N3HW)
    theirs = inputs_of(teacher, layers, batch.images_N3HW)
    kept = with_term.model.spec.kept
    variances = [teacher.network.get_submodule(name).running_var[kept[name]["out"]].numpy() for name in layers]  # type: ignore[index, operator, union-attr]
    terms = oracles.feature_terms(
        [own[name] for name in layers], [theirs[name][:, kept[name]["out"]] for name in layers], variances, 1e-5
    )
    weights = batch.weights_N.numpy()
    wanted = (terms * weights).sum() / weights.sum()
    assert losses[0] - losses[1] == pytest.approx(wanted, rel=2e-2 if "views" in changes else 1e-4)
    if "views" in changes and "adapters" not in changes:  # what is answered once are the kept channels alone
        shapes = with_term.objective.guide.shapes
        assert {name: shapes[name][0] for name in layers} == {name: len(kept[name]["out"]) for name in layers}


def test_students_that_keep_other_channels_have_answers_of_their_own(
    settings: DistillSettings, braided: Segmenter
) -> None:
    distill(change(settings, steps=1, views=2))
    assert len(list(Path("answers").glob("*.zarr"))) == 1
    kept = copy.deepcopy(load_model("run/student.safetensors").spec.kept)
    student = Segmenter(copy.deepcopy(load_model("run/student.safetensors").network), braided.spec)
    other = sorted(set(range(24)) - set(kept["block.0"]["out"]))
    moved = [*other, *kept["block.0"]["out"]][:16]
    for name, side in (("block.0", "out"), ("block.1", "out"), ("block.3", "in")):
        kept[name] = {**kept[name], side: sorted(moved)}
    student.spec = dataclasses.replace(braided.spec, kept=kept)
    theirs = braided.network.get_submodule("block.1")
    layer = student.network.get_submodule("block.1")
    for name in ("running_mean", "running_var"):
        getattr(layer, name).copy_(getattr(theirs, name)[sorted(moved)])
    save_model(student, Path("other.safetensors"))
    distill(change(settings, steps=1, views=2, student="other.safetensors", out="second"))
    assert len(list(Path("answers").glob("*.zarr"))) == 2


def test_a_cut_student_is_trained_and_goes_on_from_its_file(
    settings: DistillSettings, braided: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = prepare_distill(change(settings, out="start"), monkeypatch)
    distill(settings)
    ended = load_model("run/student.safetensors")
    goes_on = prepare_distill(change(settings, student="run/student.safetensors", out="on"), monkeypatch)
    assert torch.equal(goes_on.model.network.mix[0].weight, ended.network.mix[0].weight)  # type: ignore[index, union-attr]
    found = []
    for run in (start, goes_on):
        own = {module: name for name, module in run.model.network.named_modules()}
        inheritance = run.objective.inheritance
        channels = [inheritance.channels[theirs].tolist() for _, theirs in inheritance.compared]
        found.append(([own[module] for module in run.frozen], [own[a] for a, _ in inheritance.compared], channels))
    assert found[0] == found[1]
    assert len(found[0][1]) == 5
    kept = ended.spec.kept
    for name in ("block.1", "mix.1"):
        mine, theirs = (model.network.get_submodule(name) for model in (ended, braided))
        assert torch.equal(mine.running_mean, theirs.running_mean[kept[name]["out"]])  # type: ignore[arg-type, index]
        assert not torch.equal(mine.weight, theirs.weight[kept[name]["out"]])  # type: ignore[arg-type, index]


def test_a_teacher_that_was_cut_is_cut_again(braided: Segmenter, tmp_path: Path) -> None:
    first = cut(braided, 0.75).eval()
    inherit(first, braided)
    second = cut(first, 0.5).eval()
    inheritance = inherit(second, first)
    assert inheritance.counts.modules == inheritance.counts.all_modules
    assert set(second.spec.kept["down.0"]["out"]) < set(first.spec.kept["down.0"]["out"])
    images = torch.rand(1, 3, HEIGHT, WIDTH)
    torch.testing.assert_close(second(images), without(braided, second.spec.kept)(images), rtol=1e-4, atol=1e-5)
    save_model(second, tmp_path / "second.safetensors")
    torch.testing.assert_close(load_model(tmp_path / "second.safetensors")(images), second(images), rtol=0, atol=0)


def test_a_student_with_channels_that_the_teacher_lacks_inherits_nothing_of_them(braided: Segmenter) -> None:
    narrower = cut(braided, 0.25).eval()
    own = cut(braided, 0.75).eval()
    inheritance = inherit(own, narrower)
    assert inheritance.compared == ()
    assert inheritance.counts.frozen == 0


@pytest.mark.parametrize(
    "student", ["Unet/resnet18", "teacher:factory", "lraspp_mobilenet_v3_large", "run/a.safetensors"]
)
def test_other_students_have_no_width(student: str) -> None:
    assert asked_width(student) is None


@pytest.mark.parametrize(("student", "width"), [("teacher:0.5", 0.5), ("teacher:.25", 0.25), ("teacher:0.125", 0.125)])
def test_a_width_is_a_number_after_the_word_teacher(student: str, width: float) -> None:
    assert asked_width(student) == width


@pytest.mark.parametrize("text", ["0", "-0.5", "1.5", "1e-1", "50%", "", "0.5.5", "0,5", "0.0", "²"])
def test_a_width_out_of_range_is_refused(text: str, braided: Segmenter) -> None:
    with pytest.raises(SettingsError, match="give a width above 0 and below 1, for example teacher:0.5") as raised:
        make_student(DistillSettings(student=f"teacher:{text}"), braided)
    assert raised.value.field == "student"


def test_the_whole_width_equals_the_teacher(braided: Segmenter) -> None:
    with pytest.raises(SettingsError, match="equals the teacher and has nothing to learn") as raised:
        make_student(DistillSettings(student="teacher:1.0"), braided)
    assert raised.value.field == "student"


@pytest.mark.parametrize("changes", [{"student_arguments": {"groups": 1}}, {"pretrained_backbone": True}])
def test_settings_for_another_network_are_refused(changes: dict[str, Any], braided: Segmenter) -> None:
    with pytest.raises(SettingsError, match=r"is of no use for teacher:0.5") as raised:
        make_student(DistillSettings(student="teacher:0.5", **changes), braided)
    assert raised.value.field in changes


@pytest.mark.parametrize(
    ("builder", "arguments", "told"),
    [
        ("mixed", {"attention": True}, "in a way that is not understood"),
        ("mixed", {"attention": False}, "in a way that is not understood"),
        ("tiny", {"width": 4}, "tiny_models:tiny loses no channels at a width of 0.5"),
        ("picky", {}, "cannot be cut"),
    ],
)
def test_networks_that_cannot_be_cut_are_refused_in_one_line(builder: str, arguments: Any, told: str) -> None:
    teacher = build_model(spec(f"tiny_models:{builder}", **arguments))
    with pytest.raises(DFSSError, match=told) as raised:
        cut(teacher)
    assert isinstance(raised.value, ModelError)
    assert "\n" not in str(raised.value)


def test_a_model_is_left_as_it_was(braided: Segmenter) -> None:
    braided.requires_grad_(False)
    before = copy.deepcopy(braided.state_dict())
    cut(braided)
    assert all(torch.equal(tensor, before[name]) for name, tensor in braided.state_dict().items())
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in braided.parameters())
