"""Networks by name: ``torchvision:NAME``, ``smp:ARCHITECTURE/ENCODER`` or ``package.module:factory``.

Each builder imports the heavy library that it needs. A model file may come from anywhere. So a factory of the user's
own is only called if the environment variable ``DFSS_TRUSTED_BUILDERS`` names its module.
"""

import copy
import importlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, get_args, get_type_hints
from urllib.error import URLError

import torch
from torch import Tensor, nn

from storage.errors import ModelError

TRUSTED_BUILDERS = "DFSS_TRUSTED_BUILDERS"


# Arguments that would download weights, or that the model's description already gives.
RESERVED = {"weights", "weights_backbone", "encoder_weights", "num_classes", "classes"}


def build_network(
    builder: str, num_classes: int, arguments: Mapping[str, Any], *, pretrained_backbone: bool = False
) -> nn.Module:
    """Build a network that returns logits of ``num_classes`` classes.

    Raises:
        ModelError: the builder is unknown, untrusted, or refuses its arguments.
    """
    family, _, name = builder.partition(":")
    if not name:
        raise ModelError(
            f"unknown builder {builder!r}; use torchvision:NAME, smp:ARCHITECTURE/ENCODER or package.module:factory"
        )
    if reserved := sorted(RESERVED & arguments.keys()):
        raise ModelError(
            f"{builder}: argument {reserved[0]!r} is not allowed here; weights and classes come from the file"
        )
    if family not in FAMILIES and pretrained_backbone:
        raise ModelError(f"{builder} has no known pretrained backbone; leave out --pretrained-backbone")
    with _refusals(builder):
        if family in FAMILIES:
            return FAMILIES[family](name, num_classes, arguments, pretrained_backbone)
        return _from_factory(family, name, num_classes, arguments)


@contextmanager
def _refusals(builder: str) -> Iterator[None]:
    """Turn what a library raises inside the block into a ModelError."""
    try:
        yield
    except URLError as error:
        raise ModelError(f"{builder}: its pretrained backbone cannot be fetched ({error.reason})") from error
    except (TypeError, ValueError, KeyError, ImportError, AttributeError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"{builder} cannot be built: {error}") from error


def _from_torchvision(name: str, num_classes: int, arguments: Mapping[str, Any], pretrained: bool) -> nn.Module:
    from torchvision.models import get_model, list_models, segmentation

    if name not in list_models(module=segmentation):
        raise ModelError(f"torchvision has no segmentation model {name!r}; it has {', '.join(segmentation_names())}")
    backbone = "DEFAULT" if pretrained else None
    network: nn.Module = get_model(name, weights=None, weights_backbone=backbone, num_classes=num_classes, **arguments)
    return network


def _from_smp(name: str, num_classes: int, arguments: Mapping[str, Any], pretrained: bool) -> nn.Module:
    import segmentation_models_pytorch as smp

    architecture, _, encoder = name.partition("/")
    if not encoder:
        raise ModelError(f"smp:{name} names no encoder; write smp:ARCHITECTURE/ENCODER, for example smp:Unet/resnet18")
    weights = "imagenet" if pretrained else None
    network: nn.Module = smp.create_model(
        architecture, encoder, encoder_weights=weights, classes=num_classes, **arguments
    )
    return without_unused(network) if "encoder_depth" in arguments else network


class Unused(nn.Identity):
    """Replaces a part of a network that no logit depends on."""

    def forward(self, input: Tensor, *_: Any) -> Tensor:
        """Return the first input."""
        return input


def without_unused(network: nn.Module) -> nn.Module:
    """The network without the parts that its logits do not depend on.

    smp keeps the encoder's stages beyond ``encoder_depth``, runs one of them with some encoders, and would save them
    all. A network that does not take 64x64 images is returned unchanged.
    """
    lean, training = copy.deepcopy(network).eval(), network.training
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    try:
        lean(image).sum().backward()
        with torch.inference_mode():
            logits = lean(image)
            _replace(lean, lambda module: all(parameter.grad is None for parameter in module.parameters()))
            same = torch.allclose(lean(image), logits)
    except Exception:  # a foreign network may raise anything at another size, or without one of its parts
        same = False
    lean.zero_grad(set_to_none=True)
    return lean.train(training) if same else network


def _replace(network: nn.Module, unused: Callable[[nn.Module], bool]) -> None:
    for name, child in network.named_children():
        if next(child.parameters(), None) is None:
            continue
        if unused(child):
            setattr(network, name, Unused())
        else:
            _replace(child, unused)


FAMILIES = {"torchvision": _from_torchvision, "smp": _from_smp}


def _from_factory(module: str, factory: str, num_classes: int, arguments: Mapping[str, Any]) -> nn.Module:
    trusted = [name.strip() for name in os.environ.get(TRUSTED_BUILDERS, "").split(",")]
    if module not in trusted:
        raise ModelError(
            f"the model runs {module}:{factory} to build its network; if you trust that code, "
            f"set {TRUSTED_BUILDERS}={module}"
        )
    network = getattr(importlib.import_module(module), factory)(num_classes=num_classes, **arguments)
    if not isinstance(network, nn.Module):
        raise ModelError(f"{module}:{factory} returned {type(network).__name__}, not a torch module")
    return network


Normalisation = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation per RGB channel, for values in [0, 1]."""


def backbone_normalisation(builder: str) -> Normalisation:
    """The normalisation that the pretrained backbone of a builder was trained with.

    Raises:
        ModelError: the builder has no pretrained backbone, or one that does not read RGB.
    """
    family, _, name = builder.partition(":")
    if family not in NORMALISATIONS:
        raise ModelError(f"{builder} has no known pretrained backbone; leave out --pretrained-backbone")
    with _refusals(builder):
        return NORMALISATIONS[family](name)


def _torchvision_normalisation(name: str) -> Normalisation:
    from torchvision.models import WeightsEnum, get_model_builder

    # The annotation of the builder's argument names the weights that "DEFAULT" stands for.
    wanted = get_args(get_type_hints(get_model_builder(name))["weights_backbone"])
    weights: Any = next(kind for kind in wanted if isinstance(kind, type) and issubclass(kind, WeightsEnum))
    transforms = weights["DEFAULT"].transforms()
    return tuple(transforms.mean), tuple(transforms.std)


def _smp_normalisation(name: str) -> Normalisation:
    from segmentation_models_pytorch.encoders import encoders, get_preprocessing_params

    encoder = name.partition("/")[2]
    if encoder not in encoders:  # an old name of one of timm's, which smp translates too
        encoder = encoder.replace("timm-mobilenetv3", "tu-tf_mobilenetv3").replace("timm-", "tu-")
    told = get_preprocessing_params(encoder, "imagenet")
    if told["input_space"] != "RGB":
        raise ModelError(f"smp:{name}: its pretrained backbone reads {told['input_space']}; choose one that reads RGB")
    largest = float(told["input_range"][1])
    return tuple(value / largest for value in told["mean"]), tuple(value / largest for value in told["std"])


NORMALISATIONS: Mapping[str, Callable[[str], Normalisation]] = {
    "torchvision": _torchvision_normalisation,
    "smp": _smp_normalisation,
}


def segmentation_names() -> list[str]:
    """The names of torchvision's segmentation models."""
    from torchvision.models import list_models, segmentation

    return sorted(list_models(module=segmentation))


def resolve_builder(name: str) -> str:
    """The builder of a short name such as ``lraspp_mobilenet_v3_large`` or ``Unet/mobilenet_v2``, or a full builder.

    Raises:
        ModelError: no network has this name.
    """
    if ":" in name:
        return name
    if "/" in name:
        return f"smp:{name}"
    if name in segmentation_names():
        return f"torchvision:{name}"
    raise ModelError(
        f"unknown network {name!r}; use one of {', '.join(segmentation_names())}, ARCHITECTURE/ENCODER of "
        "segmentation-models-pytorch (Unet/mobilenet_v2), or package.module:factory"
    )
