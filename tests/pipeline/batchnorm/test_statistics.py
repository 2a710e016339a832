"""Statistics and distances against float64 numpy formulas that share no code with ours."""

import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_model, tiny_spec
from numpy.typing import NDArray
from torch import nn

from pipeline.batchnorm import moments
from pipeline.batchnorm.distances import distance, layer_distances
from pipeline.batchnorm.layers import BatchNormLayer, choose_layers, dead_channels, default_layers, find_layers
from pipeline.batchnorm.moments import (
    FusedMoments,
    LayerStatistics,
    record_bn_statistics,
    shifted_moments,
    statistics_of,
)
from pipeline.models.hooks import forward_until_stopped
from pipeline.models.segmenter import ModelSpec, Segmenter, build_model
from storage.errors import ModelError

Oracle = dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]


def inputs_of(teacher: Segmenter, images: torch.Tensor, names: list[str]) -> dict[str, NDArray[np.float64]]:
    """The BatchNorm layers' inputs, one image at a time, by hooks of the test's own."""
    kept: dict[str, list[NDArray[np.float64]]] = {name: [] for name in names}
    handles = [
        teacher.network.get_submodule(name).register_forward_hook(
            lambda module, inputs, output, name=name: kept[name].append(inputs[0].double().numpy())
        )
        for name in names
    ]
    with torch.no_grad():
        for image in images:
            teacher(image[None])
    for handle in handles:
        handle.remove()
    return {name: np.concatenate(values) for name, values in kept.items()}


def oracle(teacher: Segmenter, images: torch.Tensor, names: list[str], kind: str) -> NDArray[np.float64]:
    parts = []
    for name, inputs in inputs_of(teacher, images, names).items():
        module = teacher.network.get_submodule(name)
        assert isinstance(module, nn.BatchNorm2d)
        running_mean = module.running_mean.double().numpy()  # type: ignore[union-attr]
        running_var = module.running_var.double().numpy()  # type: ignore[union-attr]
        mean, var = inputs.mean(axis=(2, 3)), inputs.var(axis=(2, 3))
        if kind == "paper":
            one, two = np.linalg.norm(mean - running_mean, axis=1), np.linalg.norm(var - running_var, axis=1)
        else:
            score = (mean - running_mean) / np.sqrt(running_var + module.eps)
            ratio = np.log((var + module.eps) / (running_var + module.eps))
            one, two = np.sqrt((score**2).mean(axis=1)), np.sqrt((ratio**2).mean(axis=1))
        parts.append(np.stack([one, two], axis=1))
    return np.stack(parts, axis=1)


def measured(teacher: Segmenter, images: torch.Tensor, kind: str, batch_size: int, layers: str = "all") -> torch.Tensor:
    chosen = choose_layers(find_layers(teacher), layers.split(","))
    results = []
    with torch.inference_mode():
        for batch in images.split(batch_size):
            with record_bn_statistics(chosen, stop_after_last=True) as statistics:
                forward_until_stopped(teacher, batch)
            results.append(layer_distances(statistics, chosen, kind))  # type: ignore[arg-type]
    return torch.cat(results)


def resnet_teacher() -> Segmenter:
    spec = ModelSpec(
        builder="torchvision:deeplabv3_resnet50",
        num_classes=3,
        class_names=("a", "b", "c"),
        image_size=(64, 96),
    )
    torch.manual_seed(0)
    model = build_model(spec).eval()
    for module in model.modules():  # running statistics as training leaves them: every channel different
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 2.0)  # type: ignore[arg-type]
            nn.init.normal_(module.running_mean, std=0.3)  # type: ignore[arg-type]
    return model


@pytest.mark.parametrize("kind", ["paper", "standardized"])
@pytest.mark.parametrize("make", [tiny_model, resnet_teacher], ids=["tiny", "deeplabv3_resnet50"])
def test_distances_agree_with_float64_numpy_for_batches_of_1_and_7(make: Callable[[], Segmenter], kind: str) -> None:
    teacher = make()
    height, width = teacher.spec.image_size
    images = torch.rand(7, 3, height, width, generator=torch.Generator().manual_seed(1))
    names = [layer.name for layer in find_layers(teacher)]
    expected = oracle(teacher, images, names, kind)
    for batch_size in (1, 7):
        actual = measured(teacher, images, kind, batch_size)
        np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-4)
        np.testing.assert_allclose(distance(actual).numpy(), expected.sum(axis=2).mean(axis=1), rtol=1e-4)


def test_a_row_does_not_depend_on_the_other_images_of_its_batch() -> None:
    teacher = tiny_model()
    images = torch.rand(6, 3, 24, 32)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    torch.testing.assert_close(
        measured(teacher, images[order], "standardized", 4), measured(teacher, images, "standardized", 6)[order]
    )


def test_statistics_stay_exact_where_the_mean_dwarfs_the_deviation() -> None:
    module = nn.BatchNorm2d(2)
    module.running_mean = torch.tensor([1000.0, -1000.0])
    values = np.random.default_rng(0).normal([1000.5, -1000.5], 0.01, (3, 20, 30, 2)).transpose(0, 3, 1, 2)
    values32 = values.astype(np.float32)
    found = statistics_of(torch.from_numpy(values32), module)
    exact = values32.astype(np.float64)
    np.testing.assert_allclose(found.mean_NC.numpy(), exact.mean(axis=(2, 3)), rtol=1e-6)
    np.testing.assert_allclose(found.var_NC.numpy(), exact.var(axis=(2, 3)), rtol=1e-2)


def test_statistics_by_two_plain_means_are_exact_around_the_running_mean() -> None:
    values = np.random.default_rng(0).normal(1000.5, 0.5, (3, 2, 20, 30)).astype(np.float32)
    mean, var = shifted_moments(torch.from_numpy(values), torch.tensor([1000.0, 1001.0]))
    exact = values.astype(np.float64)
    np.testing.assert_allclose(mean.numpy(), exact.mean(axis=(2, 3)), rtol=1e-6)
    np.testing.assert_allclose(var.numpy(), exact.var(axis=(2, 3)), rtol=1e-4)


def test_on_a_cpu_statistics_are_exact_however_far_the_running_mean_is() -> None:
    module = nn.BatchNorm2d(2)  # its running mean is 0
    values = np.random.default_rng(0).normal(1000, 0.01, (3, 2, 20, 30)).astype(np.float32)
    found = statistics_of(torch.from_numpy(values), module)
    np.testing.assert_allclose(found.var_NC.numpy(), values.astype(np.float64).var(axis=(2, 3)), rtol=1e-2)


def moments_of(values: torch.Tensor) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and variance, [N, C] each, as they are measured for a layer of the values' channels."""
    found = statistics_of(values, nn.BatchNorm2d(values.shape[1]))
    return found.mean_NC.numpy(), found.var_NC.numpy()


def assert_exact(values: torch.Tensor, tolerance: float = 1e-6) -> None:
    """The moments are those of float64 numpy, relative to the variance and to the root mean square."""
    exact = values.numpy().astype(np.float64)
    mean, var = moments_of(values)
    scale = np.sqrt((exact**2).mean(axis=(2, 3)))
    assert np.abs(mean - exact.mean(axis=(2, 3))).max() <= tolerance * scale.max()
    np.testing.assert_allclose(var, exact.var(axis=(2, 3)), rtol=tolerance)


def channels_last(*shape: int, mean: float = 1, std: float = 1) -> torch.Tensor:
    count, channels, height, width = shape
    values = np.random.default_rng(0).normal(mean, std, (count, height, width, channels)).astype(np.float32)
    return torch.from_numpy(values).permute(0, 3, 1, 2)


@pytest.mark.parametrize(("mean", "std"), [(0, 1), (100, 0.1)])
def test_statistics_of_two_million_positions_are_exact(mean: float, std: float) -> None:
    assert_exact(channels_last(1, 3, 1024, 2048, mean=mean, std=std))


@pytest.mark.parametrize(
    "shape", [(2, 64, 96, 128), (3, 40, 33, 17), (2, 3, 5, 7), (1, 1, 9, 300), (4, 7, 1, 13), (2, 300, 2, 1)]
)
def test_statistics_are_the_same_for_every_memory_layout_and_exact_for_odd_sizes(shape: tuple[int, ...]) -> None:
    values = channels_last(*shape)
    assert_exact(values)
    expected = moments_of(values)
    layouts = (
        values.contiguous(),
        torch.cat([values, values], dim=1)[:, : shape[1]],  # a slice of the channels
        torch.cat([values, values], dim=3)[..., : shape[3]].contiguous(memory_format=torch.channels_last),
        values.transpose(2, 3).contiguous().transpose(2, 3),
    )
    for layout in layouts:
        for found, bits in zip(moments_of(layout), expected, strict=True):
            np.testing.assert_array_equal(found, bits)


@pytest.mark.parametrize("shape", [(3, 40, 33, 48), (1, 96, 160, 128), (1, 2048, 8, 12)])
def test_statistics_have_the_same_bits_for_any_number_of_threads(shape: tuple[int, ...]) -> None:
    values, threads = channels_last(*shape), torch.get_num_threads()
    found = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(np.stack(moments_of(values)))
    finally:
        torch.set_num_threads(threads)
    np.testing.assert_array_equal(found[1], found[0])
    np.testing.assert_array_equal(found[2], found[0])


def test_the_squared_deviations_that_are_held_at_a_time_fill_a_piece_and_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert moments.PIECE * torch.float32.itemsize == 2 * 2**20  # 2 MiB, whatever the size of the images
    held: list[tuple[int, ...]] = []
    loss = nn.functional.mse_loss

    def counted(values: torch.Tensor, *others: Any, **options: Any) -> torch.Tensor:
        held.append(tuple(values.shape))
        return loss(values, *others, **options)

    monkeypatch.setattr(nn.functional, "mse_loss", counted)
    monkeypatch.setattr(moments, "PIECE", 5 * 6 * 40 * 20)
    small, large, wide = channels_last(7, 6, 40, 20), channels_last(2, 6, 100, 100), channels_last(1, 6, 20, 1000)
    for values in (small, large, wide):
        assert_exact(values)
    assert held == [
        *[(5, 6, 40, 20), (2, 6, 40, 20)],  # whole images
        *[(1, 6, 40, 100), (1, 6, 40, 100), (1, 6, 20, 100)] * 2,  # stripes of one image
        *[(1, 6, 8, 1000), (1, 6, 8, 1000), (1, 6, 4, 1000)],  # no stripe is lower than a window
    ]


def test_a_row_has_the_same_bits_in_any_batch() -> None:
    values = channels_last(5, 30, 80, 96)  # the first four are one piece, and the fifth is a part of one
    together = np.stack(moments_of(values))
    for row in range(5):
        np.testing.assert_array_equal(np.stack(moments_of(values[row : row + 1]))[:, 0], together[:, row])


def test_the_variance_of_a_constant_channel_is_never_negative() -> None:
    constants = np.random.default_rng(0).uniform(1, 2, (1, 300, 1, 1)).astype(np.float32)
    values = np.broadcast_to(constants, (1, 300, 5, 7)).copy()
    mean, var = shifted_moments(torch.from_numpy(values), torch.zeros(300))
    np.testing.assert_allclose(mean.numpy(), constants[:, :, 0, 0], rtol=1e-6)
    assert 0 <= float(var.min()) <= float(var.max()) < 1e-5


def test_memory_that_runs_out_is_no_reason_to_run_uncompiled(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def call(*_: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(torch, "compile", lambda *_, **__: call)
    moments = FusedMoments()
    for _ in range(2):
        with pytest.raises(torch.OutOfMemoryError):
            moments(torch.rand(2, 3, 4, 5), torch.zeros(3))
    assert not caplog.records


def test_statistics_are_compiled_once_for_batches_of_any_size(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[dict[str, Any]] = []

    def compiled(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        asked.append(options)
        return function

    monkeypatch.setattr(torch, "compile", compiled)
    moments = FusedMoments()
    for count in (2, 3):
        moments(torch.rand(count, 3, 4, 5), torch.zeros(3))
    assert asked == [{"dynamic": True}]
    with pytest.raises(RuntimeError, match="size"):  # a mistake of the caller's has nothing to do with the compiler
        moments(torch.rand(2, 3, 4, 5), torch.zeros(4))
    assert not caplog.records


def test_without_a_working_compiler_statistics_run_uncompiled_and_say_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def compile_fails(*_: object, **__: object) -> object:
        def call(*_: object) -> None:
            raise RuntimeError("Failed to find C compiler\nmore")

        return call

    monkeypatch.setattr(torch, "compile", compile_fails)
    moments, values, shift = FusedMoments(), torch.rand(2, 3, 4, 5), torch.zeros(3)
    for _ in range(2):
        torch.testing.assert_close(moments(values, shift), shifted_moments(values, shift))
    assert len(caplog.records) == 1
    assert "run uncompiled and slower: torch.compile failed: Failed to find C compiler" in caplog.text
    assert "more" not in caplog.text


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")
def test_compiled_statistics_are_those_of_the_plain_means() -> None:
    moments = FusedMoments()
    for shape in ((2, 3, 8, 6), (5, 16, 12, 20), (1, 7, 2, 3)):
        values, shift = torch.randn(shape).contiguous(memory_format=torch.channels_last), torch.randn(shape[1])
        torch.testing.assert_close(moments(values, shift), shifted_moments(values, shift), rtol=1e-4, atol=1e-5)
    assert moments._moments is not shifted_moments


def test_statistics_are_float32_whatever_the_forward_computes_in() -> None:
    teacher = tiny_model()
    layers = find_layers(teacher)
    with (
        torch.inference_mode(),
        torch.autocast("cpu", torch.bfloat16),
        record_bn_statistics(layers, stop_after_last=True) as statistics,
    ):
        forward_until_stopped(teacher, torch.rand(2, 3, 24, 32))
    assert {value.mean_NC.dtype for value in statistics.values()} == {torch.float32}


def test_the_forward_ends_at_the_last_monitored_layer() -> None:
    teacher = tiny_model()
    ran: list[str] = []
    for name in ("stem.0", "body.0", "neck.0"):
        teacher.network.get_submodule(name).register_forward_hook(lambda *_, name=name: ran.append(name))
    layers = choose_layers(find_layers(teacher), ("body.1",))
    ran.clear()
    with record_bn_statistics(layers, stop_after_last=True) as statistics:
        assert forward_until_stopped(teacher, torch.rand(1, 3, 24, 32)) is None
    assert ran == ["stem.0", "body.0"]
    assert list(statistics) == ["body.1"]


def test_hooks_are_removed_after_the_block_even_when_it_fails() -> None:
    teacher = tiny_model()
    layers = find_layers(teacher)
    with pytest.raises(ZeroDivisionError), record_bn_statistics(layers, stop_after_last=True):
        raise ZeroDivisionError
    assert not any(layer.module._forward_pre_hooks for layer in layers)


def test_layers_come_in_the_order_of_the_forward_pass_and_pooled_ones_are_left_out() -> None:
    names = [layer.name for layer in find_layers(resnet_teacher())]
    assert names[0] == "backbone.bn1"
    assert not any("convs.4" in name for name in names)  # the ASPP's global pooling


class Shrinking(nn.Module):
    """BatchNorm layers over fewer and fewer positions, down to one."""

    def __init__(self, *shapes: tuple[int, int]) -> None:
        super().__init__()
        self.shapes, self.norms = shapes, nn.ModuleList(nn.BatchNorm2d(3) for _ in shapes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        for shape, norm in zip(self.shapes, self.norms, strict=True):
            images = norm(nn.functional.adaptive_avg_pool2d(images, shape))
        return images


def test_a_layer_says_over_how_many_positions_it_averages_and_two_are_enough() -> None:
    network = Shrinking((20, 30), (3, 5), (2, 1), (1, 1))
    layers = find_layers(Segmenter(network, tiny_spec()).eval())
    assert {layer.name: layer.positions for layer in layers} == {"norms.0": 600, "norms.1": 15, "norms.2": 2}


def test_a_teacher_whose_layers_see_one_position_alone_is_refused() -> None:
    with pytest.raises(
        ModelError, match=r"no BatchNorm layer of the teacher \(tiny_models:tiny\) can .* a single position"
    ):
        find_layers(Segmenter(Shrinking((1, 1)), tiny_spec()).eval())


def named_layers(*names: str) -> list[BatchNormLayer]:
    return [BatchNormLayer(name, nn.BatchNorm2d(3), positions=6) for name in names]


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (1, [0]),
        (2, [1]),
        (3, [1]),
        (4, [2]),
        (5, [3]),
        (10, [7]),
        (20, [15]),
        (53, [39, 40, 41]),
        (100, [*range(75, 80)]),
    ],
)
def test_a_backbone_of_any_depth_has_default_layers(count: int, expected: list[int]) -> None:
    layers = named_layers(*(f"backbone.{number}" for number in range(count)))
    assert [layers.index(layer) for layer in default_layers(layers)] == expected


@pytest.mark.parametrize(
    ("count", "shown"), [(3, "0, 1, 2"), (13, "0, 2, 4, 6, 8, 10, 12"), (21, "0, 3, 6, 9, 12, 15, 18")]
)
def test_an_unknown_layer_is_told_of_some_six_evenly_over_the_network(count: int, shown: str) -> None:
    with pytest.raises(ModelError, match=rf"no BatchNorm layer is called .tail.;\D*{shown}$"):
        choose_layers(named_layers(*map(str, range(count))), ("tail",))


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ("all", ["stem.1", "body.1", "neck.1"]),
        ("neck.1,stem.1", ["stem.1", "neck.1"]),
        ("*k.1", ["neck.1"]),
    ],
)
def test_layers_are_chosen_by_name_and_glob(wanted: str, expected: list[str]) -> None:
    assert [layer.name for layer in choose_layers(find_layers(tiny_model()), wanted.split(","))] == expected


@pytest.mark.parametrize(
    ("builder", "expected"),
    [
        # layers 40 to 42 of the backbone's 53
        (
            "torchvision:deeplabv3_resnet50",
            ["backbone.layer3.4.bn3", "backbone.layer3.5.bn1", "backbone.layer3.5.bn2"],
        ),
        # 35 to 37 of 46
        (
            "torchvision:lraspp_mobilenet_v3_large",
            ["backbone.12.block.1.1", "backbone.12.block.3.1", "backbone.13.block.0.1"],
        ),
        ("smp:Unet/resnet18", ["encoder.layer4.0.bn1"]),  # 16 of the encoder's 20
        ("tiny_models:tiny", ["stem.1"]),  # the stem is a third of the layers, so it is the backbone
        ("tiny_models:stacked", ["blocks.1.1"]),  # it is a quarter, so the whole network is: the third of four
    ],
)
def test_the_default_layers_lie_at_75_to_80_percent_of_the_backbone(builder: str, expected: list[str]) -> None:
    names = ("a", "b", "c")
    spec = ModelSpec(builder=builder, num_classes=3, class_names=names, image_size=(64, 64))
    layers = find_layers(build_model(spec).eval())
    assert [layer.name for layer in choose_layers(layers, ("default",))] == expected


def test_an_unknown_layer_is_named_beside_those_that_exist() -> None:
    with pytest.raises(ModelError, match=r"no BatchNorm layer is called 'tail\.\*'.*stem\.1"):
        choose_layers(
            find_layers(tiny_model()),
            (
                "stem.1",
                "tail.*",
            ),
        )


def test_a_layer_that_a_pass_runs_through_twice_is_left_out() -> None:
    model = tiny_model()
    network = model.network
    network.body = nn.Sequential(network.body, nn.Conv2d(16, 16, 1), network.body[1])  # type: ignore[index]
    assert [layer.name for layer in find_layers(model)] == ["stem.1", "neck.1"]


def test_a_teacher_that_normalises_by_its_batch_is_refused() -> None:
    model = tiny_model()
    model.network.body[1] = nn.BatchNorm2d(16, track_running_stats=False)  # type: ignore[index, operator, union-attr]
    with pytest.raises(ModelError, match=r"layer body\.1 .* by its batch"):
        find_layers(model)


def test_inputs_passed_by_name_are_seen_too() -> None:
    class ByName(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(3)
            self.head = nn.Conv2d(3, 3, 1)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.head(self.norm(input=images))  # type: ignore[no-any-return]

    model = Segmenter(ByName(), tiny_spec()).eval()
    assert measured(model, torch.rand(2, 3, 24, 32), "paper", 2).shape == (2, 1, 2)


def test_a_teacher_without_batch_norm_is_told_what_it_has_instead() -> None:
    with pytest.raises(ModelError, match=r"no BatchNorm.*1 GroupNorm"):
        find_layers(build_model(tiny_spec("tiny_models:without_batch_norm")))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", ["paper", "standardized"])
def test_a_gpu_measures_what_the_cpu_does(kind: str) -> None:
    images = torch.rand(5, 3, 24, 32)
    on_gpu = measured(tiny_model().cuda(), images.cuda(), kind, 5)
    torch.testing.assert_close(on_gpu.cpu(), measured(tiny_model(), images, kind, 5), rtol=2e-3, atol=1e-4)


def test_a_channel_is_dead_at_a_hundredth_of_its_layers_mean_variance() -> None:
    module = nn.BatchNorm2d(5)
    module.running_var = torch.tensor([0.0, 0.0319, 0.0321, 9.0, 6.936])
    assert dead_channels(module).tolist() == [True, True, False, False, False]
    module.running_var = torch.zeros(5)
    assert dead_channels(module).all()


@pytest.mark.parametrize("kind", ["standardized", "paper"])
def test_the_gradient_of_a_distance_of_0_is_0(kind: Any) -> None:
    layer = BatchNormLayer("layer", nn.BatchNorm2d(3), 4)
    mean, var = torch.zeros(2, 3, requires_grad=True), torch.ones(2, 3, requires_grad=True)
    found = distance(layer_distances({"layer": LayerStatistics(mean, var)}, [layer], kind))
    found.sum().backward()  # type: ignore[no-untyped-call]
    np.testing.assert_allclose(found.detach().numpy(), [0, 0], atol=1e-12)
    for statistics in (mean, var):
        np.testing.assert_array_equal(statistics.grad, np.zeros((2, 3)))
