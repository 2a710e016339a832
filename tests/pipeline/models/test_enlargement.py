"""Where a network enlarges its logits is found by trial, in any network."""

import pytest
import torch
from conftest import HEIGHT, NAMES, WIDTH, tiny_model, tiny_spec
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.models.enlargement import find_enlargement
from pipeline.models.segmenter import ModelSpec, Segmenter, build_model

SIZE = (HEIGHT, WIDTH)


class Enlarging(nn.Module):
    """Logits on a third of the grid, enlarged in a way of the test's choice."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.head = nn.Conv2d(3, 3, 3, stride=4, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        coarse = self.head(images)
        if self.how == "nearest":
            return F.interpolate(coarse, size=images.shape[-2:], mode="nearest")
        if self.how == "softmax":
            return F.interpolate(coarse, size=images.shape[-2:], mode="bilinear").softmax(dim=1)
        return F.interpolate(coarse, size=images.shape[-2:], mode="bilinear", align_corners=self.how == "corners")


def enlarging(how: str) -> Segmenter:
    return Segmenter(Enlarging(how), tiny_spec()).eval()


def check(model: Segmenter, *, coarse: tuple[int, int], align_corners: bool = False) -> None:
    found = find_enlargement(model, SIZE)
    images = torch.rand(2, 3, *SIZE)
    with torch.no_grad():
        small = found.coarse(images)
        logits = model(images)
    assert tuple(small.shape) == (2, model.spec.num_classes, *coarse)
    torch.testing.assert_close(found.enlarge(small, SIZE), logits)
    assert found.align_corners is align_corners


@pytest.mark.parametrize(("how", "align_corners"), [("plain", False), ("corners", True)])
def test_both_conventions_of_bilinear_enlargement_are_found(how: str, align_corners: bool) -> None:
    check(enlarging(how), coarse=(HEIGHT // 4, WIDTH // 4), align_corners=align_corners)


@pytest.mark.parametrize("how", ["nearest", "softmax"])
def test_an_output_that_bilinear_enlargement_does_not_explain_is_kept_whole(how: str) -> None:
    check(enlarging(how), coarse=SIZE)


def test_a_network_that_returns_smaller_logits_in_a_dict_needs_no_enlargement_of_its_own() -> None:
    check(tiny_model(), coarse=(HEIGHT // 2, WIDTH // 2))


@pytest.mark.parametrize(
    ("builder", "arguments", "coarse", "align_corners"),
    [
        ("torchvision:lraspp_mobilenet_v3_large", {}, (8, 8), False),
        ("torchvision:deeplabv3_mobilenet_v3_large", {}, (4, 4), False),
        ("smp:DeepLabV3Plus/resnet18", {}, (16, 16), True),
        ("smp:Unet/resnet18", {"encoder_depth": 3, "decoder_channels": [8, 8, 8]}, (64, 64), False),
    ],
)
def test_networks_of_the_libraries_are_cut_where_they_enlarge(
    builder: str, arguments: dict[str, object], coarse: tuple[int, int], align_corners: bool
) -> None:
    torch.manual_seed(0)
    spec = ModelSpec(builder=builder, num_classes=3, class_names=NAMES, image_size=(64, 64), arguments=arguments)
    model = build_model(spec).eval()
    found = find_enlargement(model, (64, 64))
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        small = found.coarse(images)
        torch.testing.assert_close(found.enlarge(small, (64, 64)), model(images), rtol=1e-4, atol=1e-4)
    assert tuple(small.shape[-2:]) == coarse
    assert found.align_corners is align_corners


def test_looking_for_it_leaves_the_model_as_it_was() -> None:
    model = tiny_model().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    find_enlargement(model, SIZE)
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
