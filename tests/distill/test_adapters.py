"""Adapters: which maps are paired, what is compared, and what is left of them in the end."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import HEIGHT, WIDTH, tiny_model, tiny_spec
from safetensors import safe_open
from stages import (
    Stopped,
    batch_of,
    loss_of,
    make_distillation,
    make_settings,
    prepare_distill,
    run_distill,
    score_folder,
    stop_at,
)
from torch import Tensor, nn

import distill.distillation
from distill.adapters import make_adapters, maps_of
from distill.views import light_images
from pipeline.models.files import save_model
from pipeline.models.segmenter import ModelSpec, Segmenter, build_model
from storage.errors import SettingsError


def unet(builder: str, depth: int) -> Segmenter:
    torch.manual_seed(0)
    channels = [8 * 2**power for power in reversed(range(depth))]
    spec = ModelSpec(
        builder=builder, num_classes=3, class_names=("a", "b", "c"), image_size=(64, 64),
        arguments={"encoder_depth": depth, "decoder_channels": channels},
    )  # fmt: skip
    return build_model(spec)


def test_the_last_maps_of_each_grid_are_paired_on_the_way_down_and_up() -> None:
    student, teacher = unet("smp:Unet/mobilenet_v2", 3), unet("smp:Unet/resnet18", 4)
    found = [(str(adapter), adapter.own.phase) for adapter in make_adapters(student, teacher, ["auto"])]
    assert found == [
        ("encoder.features.2.conv.0.1=encoder.bn1 (32x32)", "encoder"),
        ("encoder.features.4.conv.0.1=encoder.layer1.1.bn2 (16x16)", "encoder"),
        ("encoder.features.6.conv.3=encoder.layer2.1.bn2 (8x8)", "encoder"),
        ("decoder.blocks.0.conv2.1=decoder.blocks.1.conv2.1 (16x16)", "decoder"),
        ("decoder.blocks.1.conv2.1=decoder.blocks.2.conv2.1 (32x32)", "decoder"),
        ("decoder.blocks.2.conv2.1=decoder.blocks.3.conv2.1 (64x64)", "decoder"),
    ]


def test_maps_of_a_single_position_and_layers_that_run_twice_are_left_out() -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.twice = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
            self.pooled, self.last = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

        def forward(self, images: Tensor) -> Tensor:
            images = self.twice(self.twice(self.stem(images)))
            pooled: Tensor = self.pooled(images.mean(dim=(2, 3), keepdim=True))
            return self.last(images + pooled)  # type: ignore[no-any-return]

    names = [found.name for found in maps_of(Segmenter(Network(), tiny_spec()).eval(), (HEIGHT, WIDTH))]
    assert names == ["stem", "last"]


def test_the_loss_compares_the_adapted_maps_in_the_teachers_standard_deviations() -> None:
    teacher, model = tiny_model(1), tiny_model(2, tiny_spec("tiny_models:small"))
    pairs = ["stem.1=stem.1", "neck.1=body.1"]
    adapters = make_adapters(model, teacher, pairs)
    distillation = make_distillation(teacher=teacher, adapters=2.5, adapter_pairs=pairs, made=adapters)
    plain = make_distillation(teacher=teacher)
    batch = batch_of(distillation, 1)
    seen: dict[str, np.ndarray] = {}
    for whose, network in (("own", model.network), ("theirs", teacher.network)):
        for name in ("stem.1", "neck.1", "body.1"):
            network.get_submodule(name).register_forward_hook(
                lambda _, inputs, __, key=f"{whose} {name}": seen.__setitem__(key, inputs[0].double().detach().numpy())
            )
    model.eval()
    added = loss_of(distillation, model, batch) - loss_of(plain, model, batch)
    with torch.no_grad():
        teacher(light_images(batch.images_N3HW, batch.views))
    terms = []
    for adapter, (own, theirs) in zip(adapters, (("stem.1", "stem.1"), ("neck.1", "body.1")), strict=True):
        convolution = adapter.convolution
        assert convolution.bias is not None
        weight, bias = convolution.weight.double().detach().numpy(), convolution.bias.double().detach().numpy()
        mapped = np.einsum("oc,nchw->nohw", weight[:, :, 0, 0], seen[f"own {own}"]) + bias[:, None, None]
        layer = teacher.network.get_submodule(theirs)
        mean, var = layer.running_mean.double().numpy(), layer.running_var.double().numpy()  # type: ignore[union-attr,operator]
        wanted = (seen[f"theirs {theirs}"] - mean[:, None, None]) / np.sqrt(var + layer.eps)[:, None, None]
        terms.append(((mapped - wanted) ** 2).mean(axis=(1, 2, 3)))
    weights = batch.weights_N.double().numpy()
    expected = 2.5 * (weights * np.mean(terms, axis=0)).sum() / weights.sum()
    assert float(added.detach()) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (["stem.1"], r"'stem.1' is not STUDENT.LAYER=TEACHER.LAYER; or give auto"),
        (["stem.1=head"], r"the teacher has no BatchNorm layer 'head' that runs once; give for example one of stem.1"),
        (["steam=stem.1"], r"the student has no BatchNorm layer 'steam'"),
    ],
)
def test_pairs_that_do_not_exist_are_refused(pairs: list[str], message: str) -> None:
    with pytest.raises(SettingsError, match=message) as caught:
        make_adapters(tiny_model(), tiny_model(), pairs)
    assert caught.value.field == "adapter_pairs"


def test_maps_of_different_grids_are_refused_by_name() -> None:
    student, teacher = unet("smp:Unet/mobilenet_v2", 3), unet("smp:Unet/resnet18", 3)
    with pytest.raises(SettingsError, match=r"have grids of 32x32 and 16x16; give two of one grid"):
        make_adapters(student, teacher, ["encoder.features.1.conv.2=encoder.layer1.1.bn2"])


@pytest.mark.parametrize("views", [0, 2])
def test_adapters_learn_are_resumed_with_the_run_and_dropped_in_the_end(
    image_folder: Path, teacher_file: Path, views: int
) -> None:
    score_folder(image_folder, teacher_file)
    settings = make_settings(adapters=1.0, views=views, steps=8, checkpoint_every=3, seed=3)
    run_distill(settings)
    whole = Path("run/student.safetensors").read_bytes()
    with safe_open("run/student.safetensors", framework="pt") as file:
        assert set(file.keys()) == set(build_model(tiny_spec("tiny_models:small")).network.state_dict())
    interrupted = dataclasses.replace(settings, out="other", answers="answers")
    with pytest.raises(Stopped):
        distill.distillation.distill(interrupted, stop_at(7))
    state = torch.load("other/checkpoint.pt", weights_only=True)["companions"]
    assert state
    run_distill(dataclasses.replace(interrupted, resume=True))
    assert Path("other/student.safetensors").read_bytes() == whole
    run_distill(dataclasses.replace(settings, adapters=0.0, out="without"))
    assert Path("without/student.safetensors").read_bytes() != whole


def test_adapters_of_a_student_that_goes_on_begin_by_the_seed(
    image_folder: Path, teacher_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    score_folder(image_folder, teacher_file)
    save_model(tiny_model(4, tiny_spec("tiny_models:small")), Path("begun.safetensors"))
    found = []
    for out in ("one", "two"):
        torch.manual_seed(len(found))  # another process begins with any state
        begun = prepare_distill(make_settings(student="begun.safetensors", adapters=1.0, out=out), monkeypatch)
        found.append([adapter.convolution.weight for adapter in begun.objective.adapters])
    assert found[0]
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
