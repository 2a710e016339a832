"""Teachers that only look right: probabilities instead of logits, weights of other kinds, lazy networks."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from conftest import NAMES, tiny_model
from torch import Tensor, nn

from pipeline.models.builders import build_network
from pipeline.models.files import load_model
from pipeline.models.importing import import_weights
from pipeline.models.soundness import check_not_probabilities
from pipeline.settings import ImportSettings
from storage.errors import ModelError


def imported(network: nn.Module | dict[str, Tensor], **changes: Any) -> None:
    torch.save(network.state_dict() if isinstance(network, nn.Module) else network, "weights.pth")
    values: dict[str, Any] = {
        "builder": "tiny_models:tiny", "weights": "weights.pth", "out": "out.safetensors", "image_size": (24, 32),
    }  # fmt: skip
    import_weights(ImportSettings(**{**values, **changes}))


@pytest.mark.parametrize(
    ("last", "classes", "fault"),
    [("softmax", 4, "sum to 1"), ("sigmoid", 4, r"lie in \[0, 1\]"), ("sigmoid", 1, "lie in")],
)
def test_a_network_that_gives_probabilities_is_refused(last: str, classes: int, fault: str) -> None:
    network = tiny_models.ending_in(classes, last)
    with pytest.raises(ModelError, match=f"are probabilities and not logits: they .*{fault}.*; leave that last step"):
        imported(network, builder="tiny_models:ending_in", arguments={"last": last}, num_classes=classes)
    assert not Path("out.safetensors").exists()


def test_logits_are_told_from_probabilities() -> None:
    logits = torch.randn(2, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    for fine in (logits, logits.abs(), torch.zeros(1, 2, 3, 3), torch.full((1, 4, 3, 3), 0.25), logits.log_softmax(1)):
        check_not_probabilities(fine, origin="it", bounded=True)
    check_not_probabilities(logits.sigmoid(), origin="it")  # at one grey image, logits may lie there too
    with pytest.raises(ModelError, match="sum to 1"):
        check_not_probabilities(logits.softmax(dim=1), origin="it")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"builder": "tiny_models:nosuch"}, "nosuch"),
        ({"builder": "untrusted:build"}, "if you trust that code, set"),
        ({"builder": "Unet/resnet81"}, "did you mean"),
        ({"builder": "Unet/resnet18", "arguments": {"encoder_deth": 3}}, "encoder_deth"),
        ({"arguments": {"bogus": 1}}, "bogus"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_without_a_class_count_the_error_is_that_of_the_network(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        imported(tiny_model().network, **changes)


def test_without_a_class_count_weights_of_another_network_do_not_fit() -> None:
    weights = {name: tensor for name, tensor in tiny_model().network.state_dict().items() if name.startswith("stem")}
    with pytest.raises(ModelError, match=r"weights\.pth does not fit the network: missing"):
        imported(weights)


KINDS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "int8": (lambda tensor: tensor.to(torch.int8), "int8"),
    "complex": (lambda tensor: tensor.to(torch.complex64), "complex64"),
    "float8": (lambda tensor: tensor.to(torch.float8_e4m3fn), "float8_e4m3fn"),
    "sparse": (lambda tensor: tensor.to_sparse(), "sparse_coo"),
    "quantised": (lambda tensor: torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8), "quantised"),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_weights_of_another_kind_are_refused_by_their_name(kind: str) -> None:
    change, word = KINDS[kind]
    weights = dict(tiny_model().network.state_dict())
    weights["head.weight"] = change(weights["head.weight"])
    with pytest.raises(ModelError, match=f"head.weight is {word}, but weights are read as dense real numbers"):
        imported(weights, class_names=NAMES)
    assert not Path("out.safetensors").exists()


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_real_weights_of_any_precision_are_read(kind: torch.dtype) -> None:
    network = tiny_model().network
    imported({name: tensor.to(kind) for name, tensor in network.state_dict().items()}, class_names=NAMES)
    head = load_model("out.safetensors").network.state_dict()["head.weight"]
    torch.testing.assert_close(head, network.state_dict()["head.weight"], rtol=1e-2, atol=1e-3)


def test_a_lazy_network_is_refused_by_the_weight_that_has_no_shape() -> None:
    with pytest.raises(ModelError, match=r"0\.weight has no shape yet; let the factory run one image"):
        imported(tiny_model().network, builder="tiny_models:lazy", num_classes=4)


@pytest.mark.parametrize("without", [torch.no_grad, torch.inference_mode])
def test_a_network_is_the_same_when_gradients_are_off(without: Callable[[], Any]) -> None:
    arguments = {"encoder_depth": 3, "decoder_channels": [16, 8, 8]}
    expected = set(build_network("smp:Unet/resnet18", 3, arguments).state_dict())
    with without():
        assert set(build_network("smp:Unet/resnet18", 3, arguments).state_dict()) == expected
