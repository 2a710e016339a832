"""What a model does around its network: channels, a factor, padding, the choice of an output, merged classes."""

import dataclasses
import json
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from conftest import HEIGHT, WIDTH, tiny_spec
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import FrozenBatchNorm2d

from pipeline.batchnorm.layers import find_layers
from pipeline.models.builders import build_network
from pipeline.models.enlargement import find_enlargement
from pipeline.models.hooks import adapt
from pipeline.models.segmenter import ModelSpec, Segmenter, as_logits, build_model, fingerprint
from storage.errors import ModelError

MEAN, STD = np.array([0.1, 0.2, 0.3]), np.array([0.5, 0.6, 0.7])


def spec(**changes: Any) -> ModelSpec:
    return dataclasses.replace(tiny_spec(), mean=tuple(MEAN.tolist()), std=tuple(STD.tolist()), **changes)


def noise(height: int = 6, width: int = 5) -> Tensor:
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("channels", "arranged"),
    [
        ("rgb", lambda rgb: rgb),
        ("bgr", lambda rgb: rgb[:, ::-1]),
        ("grey", lambda rgb: 0.299 * rgb[:, :1] + 0.587 * rgb[:, 1:2] + 0.114 * rgb[:, 2:]),
    ],
)
def test_a_network_reads_the_normalised_channels_in_its_order_times_a_factor(channels: Any, arranged: Any) -> None:
    model = Segmenter(nn.Identity(), spec(channels=channels, factor=1 / 255))
    images = noise()
    normalised = (images.double().numpy() - MEAN.reshape(3, 1, 1)) / STD.reshape(3, 1, 1)
    np.testing.assert_allclose(model.normalise(images).numpy(), arranged(normalised) / 255, rtol=1e-5, atol=1e-8)


def test_grey_with_equal_values_for_all_colours_is_normalised_luma_as_pillow_converts_it() -> None:
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    model = Segmenter(nn.Identity(), dataclasses.replace(tiny_spec(), mean=(0.5,) * 3, std=(0.2,) * 3, channels="grey"))
    found = model.normalise(torch.from_numpy(pixels).permute(2, 0, 1)[None])[0, 0].numpy()
    expected = (np.asarray(Image.fromarray(pixels).convert("L")) / 255 - 0.5) / 0.2
    np.testing.assert_allclose(found, expected, atol=0.5 / 255 / 0.2 * 1.01)  # Pillow rounds to whole numbers


class Halving(nn.Module):
    """Three halvings, and as many enlargements by 2, as a U-Net has; it refuses what cannot be halved."""

    def __init__(self, classes: int = 3, channels: int = 3) -> None:
        super().__init__()
        self.head = nn.Conv2d(channels, classes, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[2] % 8 or images.shape[3] % 8:
            raise AssertionError("sides must be multiples of 8")
        coarse = F.avg_pool2d(images, 8)
        return F.interpolate(self.head(coarse), scale_factor=8.0, mode="bilinear")


@pytest.mark.parametrize("size", [(26, 24), (20, 33), (16, 32)])
def test_images_are_padded_by_their_borders_and_logits_are_cropped(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    model = Segmenter(Halving(), spec(image_size=size)).eval()
    adapt(model)
    images = noise(*size)
    padded = np.pad(images.numpy(), ((0, 0), (0, 0), (0, -size[0] % 8), (0, -size[1] % 8)), mode="edge")
    plain = Segmenter(model.network, spec()).eval()
    expected = plain(torch.from_numpy(padded))[:, :, : size[0], : size[1]]
    torch.testing.assert_close(model(images), expected)
    assert (model.spec.multiple > 1) == (size[0] % 8 > 0 or size[1] % 8 > 0)
    found = find_enlargement(model, size)
    coarse = found.coarse(images)
    assert tuple(coarse.shape[-2:]) == (padded.shape[2] // 8, padded.shape[3] // 8)
    torch.testing.assert_close(found.enlarge(coarse, size), model(images))


def test_padding_that_does_not_help_is_not_kept_and_the_networks_words_are_told() -> None:
    class Picky(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            raise KeyError("no such luck")

    model = Segmenter(Picky(), spec())
    with pytest.raises(ModelError, match=f"does not take {HEIGHT}x{WIDTH} images: KeyError: no such luck"):
        adapt(model, grey=True)
    assert (model.spec.multiple, model.spec.channels) == (1, "rgb")


def test_a_network_of_one_channel_reads_grey_if_that_is_allowed() -> None:
    network = Halving(channels=1)
    model = Segmenter(network, spec(image_size=(20, 24)))
    with pytest.raises(ModelError, match="does not take 20x24 images"):
        adapt(model)
    adapt(model, grey=True)
    assert model.spec.channels == "grey"
    assert model(noise(20, 24)).shape == (2, 3, 20, 24)


class Pair(NamedTuple):
    coarse: Tensor
    fine: Tensor


A, B = torch.zeros(1, 3, 2, 2), torch.ones(1, 3, 2, 2)


@pytest.mark.parametrize(
    ("output", "choice", "expected"),
    [
        (B, "", B),
        (B, "1", B),
        ([A, B], "", A),
        ([A, B], "1", B),
        ((torch.ones(1, 5), B), "", B),
        ({"aux": A, "out": B}, "", B),
        ({"aux": A, "logits": B}, "", B),
        ({"out": A, "aux": B}, "aux", B),
        ({"masks": B, "labels": torch.ones(1, 2)}, "", B),
        (Pair(A, B), "fine", B),
    ],
)
def test_the_logits_are_one_of_the_outputs(output: Any, choice: str, expected: Tensor) -> None:
    assert as_logits(output, choice) is expected


@pytest.mark.parametrize(
    ("output", "choice", "message"),
    [
        ([A, B], "2", r"returns no output '2' .*, but 0 \[1, 3, 2, 2\], 1 \[1, 3, 2, 2\]; see --output"),
        ({"label": torch.ones(1, 2)}, "", r"returns no \[N, K, H, W\] logits.* but label \[1, 2\]"),
        (None, "", "returns no .* logits.* but a NoneType"),
    ],
)
def test_an_output_that_is_not_there_is_told_with_those_that_are(output: Any, choice: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        as_logits(output, choice)


class Enlarging(nn.Module):
    """Four classes on a quarter of the grid, enlarged by the network itself, or not."""

    def __init__(self, *, itself: bool) -> None:
        super().__init__()
        self.itself = itself
        self.head = nn.Conv2d(3, 4, 3, stride=4, padding=1)
        self.head.weight.data *= 5

    def forward(self, images: Tensor) -> list[Tensor]:
        coarse = self.head(images)
        fine = F.interpolate(coarse, size=images.shape[-2:], mode="bilinear") if self.itself else coarse
        return [torch.zeros_like(fine), fine]


@pytest.mark.parametrize("itself", [True, False])
@pytest.mark.parametrize("members", [((0, 2), (3,)), ((3,), (1,)), ()])
def test_merged_classes_are_those_of_the_networks_own_grid_and_answered_on_the_coarse_one(
    itself: bool, members: tuple[tuple[int, ...], ...]
) -> None:
    torch.manual_seed(0)
    names = tuple("abcd")[: len(members) or 4]
    described = spec(class_names=names, num_classes=len(names), network_classes=4, members=members, output="1")
    model = Segmenter(Enlarging(itself=itself), described).eval()
    images = noise(HEIGHT, WIDTH)
    own = model.network(model.normalise(images))[1].detach().numpy().astype(np.float64)
    groups = members or tuple((index,) for index in range(4))
    made = np.stack([np.log(np.exp(own[:, list(group)]).sum(axis=1)) for group in groups], axis=1)
    expected = F.interpolate(torch.from_numpy(made), size=(HEIGHT, WIDTH), mode="bilinear").float()
    torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-4)
    found = find_enlargement(model, (HEIGHT, WIDTH))
    coarse = found.coarse(images)
    assert tuple(coarse.shape[-2:]) == (HEIGHT // 4, WIDTH // 4)
    assert coarse.shape[1] == (4 if itself and (0, 2) in members else len(names))
    torch.testing.assert_close(found.enlarge(coarse, (HEIGHT, WIDTH)), model(images), rtol=1e-4, atol=1e-4)


def test_a_sigmoids_logit_is_the_difference_of_two_classes_on_any_grid() -> None:
    torch.manual_seed(0)
    two = ("background", "person")
    model = Segmenter(Halving(classes=1), spec(class_names=two, num_classes=2, network_classes=1)).eval()
    images = noise(16, 24)
    own = model.network(model.normalise(images))
    torch.testing.assert_close(model(images), torch.cat([torch.zeros_like(own), own], dim=1))
    found = find_enlargement(model, (16, 24))
    assert tuple(found.coarse(images).shape) == (2, 2, 2, 3)
    torch.testing.assert_close(found.enlarge(found.coarse(images), (16, 24)), model(images))


DIFFERENT: list[dict[str, Any]] = [
    {"channels": "bgr"},
    {"factor": 0.5},
    {"multiple": 32},
    {"output": "1"},
    {"network_classes": 4, "members": ((0,), (1, 2), (3,))},
]


@pytest.mark.parametrize("changes", DIFFERENT)
def test_what_the_model_does_around_its_network_is_in_its_file_and_its_fingerprint(changes: dict[str, Any]) -> None:
    network = Halving()
    plain, other = Segmenter(network, spec()), Segmenter(network, spec(**changes))
    assert fingerprint(plain) != fingerprint(other)
    assert ModelSpec.from_json(other.spec.to_json()) == other.spec
    assert not changes.keys() & ModelSpec.from_json(plain.spec.to_json()).differences().keys()


def test_models_without_any_of_it_keep_the_fingerprint_and_the_description_that_they_had() -> None:
    network = nn.Conv2d(3, 3, 1)
    nn.init.constant_(network.weight, 0.5)
    nn.init.zeros_(network.bias)  # type: ignore[arg-type]
    model = Segmenter(network, tiny_spec())
    assert fingerprint(model) == "fc90e9ee38abbf03f39f793de4ca60f0a9149a44cfb16a65c0d10aff9c4b848c"
    assert set(json.loads(model.spec.to_json())) == {
        "builder", "num_classes", "class_names", "image_size", "arguments", "mean", "std",
    }  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [
        {"channels": "cmyk"},
        {"factor": 0},
        {"factor": float("nan")},
        {"multiple": 0},
        {"network_classes": 4},
        {"network_classes": 1},
        {"members": ((0,), (1,))},
        {"members": ((0,), (1,), (3,))},
        {"members": ((0,), (1,), ())},
    ],
)
def test_a_description_that_contradicts_itself_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ModelError):
        spec(**changes)


class Frozen(nn.Module):
    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.stem, self.norm, self.head = nn.Conv2d(3, 4, 3, padding=1), norm, nn.Conv2d(4, 3, 1)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.norm(self.stem(images)))
        return logits


def test_frozen_batchnorm_counts_as_batchnorm(monkeypatch: pytest.MonkeyPatch) -> None:
    import tiny_models

    torch.manual_seed(0)
    frozen = Frozen(FrozenBatchNorm2d(4, eps=1e-3))
    for buffer in frozen.norm.buffers():
        buffer.uniform_(0.5, 2)
    monkeypatch.setattr(
        tiny_models, "frozen", lambda num_classes: Frozen(FrozenBatchNorm2d(4, eps=1e-3)), raising=False
    )
    model = build_model(tiny_spec("tiny_models:frozen"))
    model.network.load_state_dict(frozen.state_dict(), strict=False)
    assert [layer.name for layer in find_layers(model)] == ["norm"]
    images = noise(HEIGHT, WIDTH)
    torch.testing.assert_close(model.eval()(images), frozen(model.normalise(images)))


def test_an_attribute_that_hides_a_method_of_torch_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import tiny_models

    class Hiding(Frozen):
        def __init__(self) -> None:
            super().__init__(nn.Identity())
            self.modules = []  # type: ignore[method-assign, assignment]

    monkeypatch.setattr(tiny_models, "hiding", lambda num_classes: Hiding(), raising=False)
    with pytest.raises(ModelError, match="attribute 'modules' of the network .Hiding. hides torch's method"):
        build_model(tiny_spec("tiny_models:hiding"))


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RuntimeError("odd"), "cannot be built: odd"),
        (AssertionError(), "cannot be built: AssertionError"),
        (
            FileNotFoundError(2, "No such file", "pretrained.pth"),
            "FileNotFoundError: .*pretrained.pth",
        ),
        (KeyError("backbone"), "cannot be built: KeyError: backbone"),
        (SystemExit(2), "cannot be built: SystemExit: 2"),
    ],
)
def test_whatever_a_factory_raises_ends_in_one_line(
    error: BaseException, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tiny_models

    def failing(num_classes: int) -> nn.Module:
        raise error

    monkeypatch.setattr(tiny_models, "failing", failing, raising=False)
    with pytest.raises(ModelError, match=message) as caught:
        build_network("tiny_models:failing", 3, {})
    assert "\n" not in str(caught.value)
