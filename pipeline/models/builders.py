"""Networks by name: ``torchvision:NAME``, ``smp:ARCHITECTURE/ENCODER`` or ``package.module:factory``.

Each builder imports the heavy library that it needs. A model file may come from anywhere. So a library builds only
networks that it has itself, with arguments of an allow-list (:mod:`pipeline.models.arguments`). A factory of the user's
own is only called if the environment variable ``DFSS_TRUSTED_BUILDERS`` names its module, or ``module:factory``. Its
module may lie in the current folder.
"""

import copy
import difflib
import importlib
import importlib.util
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args, get_type_hints
from urllib.error import URLError

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from pipeline.models.arguments import RESERVED, SMP, TIMM, TORCHVISION, check_arguments
from storage.errors import ModelError
from storage.kinds import Kind, shown

TRUSTED_BUILDERS = "DFSS_TRUSTED_BUILDERS"


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
            f"unknown builder {shown(builder)}; use torchvision:NAME, smp:ARCHITECTURE/ENCODER or "
            "package.module:factory"
        )
    if reserved := sorted(RESERVED & arguments.keys()):
        raise ModelError(
            f"{builder}: argument {reserved[0]!r} is not allowed here; weights and classes come from the file"
        )
    if family not in FAMILIES and pretrained_backbone:
        raise ModelError(f"{builder} has no known pretrained backbone; leave out --pretrained-backbone")
    # The caller may have turned gradients off, but without_unused needs them.
    with torch.inference_mode(mode=False), torch.enable_grad(), _refusals(builder):
        if family in FAMILIES:
            network = FAMILIES[family](name, num_classes, arguments, pretrained_backbone)
        else:
            network = _from_factory(family, name, num_classes, arguments)
        _refuse_hidden_methods(network)
        _refuse_unmade(network)
        _replace(network, _is_frozen_norm, _thawed)
        return network


def outline(builder: str, num_classes: int, arguments: Mapping[str, Any]) -> nn.Module | None:
    """The network of a library's builder without memory: names and shapes alone, on torch's meta device.

    It still has the parts that no logit depends on. The result is None for a factory of the user's own, which is
    trusted, and for a network that needs values while it is built. Of such a one the allow-list bounds every width.

    Raises:
        ModelError: see :func:`build_network`.
    """
    if builder.partition(":")[0] not in FAMILIES:
        return None
    try:
        with torch.device("meta"), _Schedules():
            return build_network(builder, num_classes, arguments)
    except ModelError as error:
        if isinstance(error.__cause__, RuntimeError) and "meta" in str(error):
            return None
        raise


class _Schedules(TorchFunctionMode):
    """Inside, schedules of a few numbers (of stochastic depth) have values on the meta device too."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        options = dict(kwargs or {})
        if func is torch.linspace:
            options.setdefault("device", "cpu")
        return func(*args, **options)


@contextmanager
def _refusals(builder: str) -> Iterator[None]:
    """Turn what foreign code raises inside the block into a ModelError."""
    try:
        yield
    except (ModelError, MemoryError):
        raise
    except URLError as error:
        raise ModelError(f"{builder}: its pretrained backbone cannot be fetched ({error.reason})") from error
    except (Exception, SystemExit) as error:  # a module may even parse the command line, and end
        raise ModelError(f"{builder} cannot be built: {told(error)}") from error


def told(error: BaseException) -> str:
    """What an exception of foreign code says, in one line; its kind where that is all that there is to say."""
    text = " ".join(str(error.args[0] if isinstance(error, KeyError) and error.args else error).split())[:300]
    plain = isinstance(error, TypeError | ValueError | ImportError | RuntimeError) and text
    return text if plain else f"{type(error).__name__}: {text}" if text else type(error).__name__


def _from_torchvision(name: str, num_classes: int, arguments: Mapping[str, Any], pretrained: bool) -> nn.Module:
    from torchvision.models import get_model, get_model_builder, list_models, segmentation

    if name not in list_models(module=segmentation):
        raise ModelError(f"torchvision has no segmentation model {name!r}; it has {', '.join(segmentation_names())}")
    check_arguments(f"torchvision:{name}", arguments, _taken(get_model_builder(name), TORCHVISION))
    backbone = "DEFAULT" if pretrained else None
    network: nn.Module = get_model(name, weights=None, weights_backbone=backbone, num_classes=num_classes, **arguments)
    return network


def _taken(function: Callable[..., Any], kinds: Mapping[str, Kind]) -> dict[str, Kind]:
    """The arguments of an allow-list that a function names."""
    named = inspect.signature(function).parameters
    return {name: kind for name, kind in kinds.items() if name in named}


def _from_smp(name: str, num_classes: int, arguments: Mapping[str, Any], pretrained: bool) -> nn.Module:
    import segmentation_models_pytorch as smp

    architecture, _, encoder = name.partition("/")
    if not encoder:
        raise ModelError(f"smp:{name} names no encoder; write smp:ARCHITECTURE/ENCODER, for example smp:Unet/resnet18")
    _refuse_unknown(architecture, encoder)
    kinds = _taken(smp.MODEL_ARCHITECTURES_MAPPING[architecture.lower()].__init__, SMP)
    if "decoder_use_norm" in kinds:  # the name of earlier versions, which smp still takes
        kinds["decoder_use_batchnorm"] = SMP["decoder_use_batchnorm"]
    check_arguments(f"smp:{name}", arguments, {**kinds, **(TIMM if encoder.startswith("tu-") else {})})
    weights = "imagenet" if pretrained else None
    network: nn.Module = smp.create_model(
        architecture, encoder, encoder_weights=weights, classes=num_classes, **arguments
    )
    return without_unused(network) if "encoder_depth" in arguments else network


def _refuse_unknown(architecture: str, encoder: str) -> None:
    import segmentation_models_pytorch as smp
    from segmentation_models_pytorch.encoders import encoders, is_equivalent_to_timm_universal

    architectures = {kind.__name__: key for key, kind in smp.MODEL_ARCHITECTURES_MAPPING.items()}
    if architecture.lower() not in architectures.values():
        raise ModelError(
            f"smp has no architecture {shown(architecture)}; {_similar(architecture, list(architectures))}"
        )
    if encoder.startswith("tu-"):
        _refuse_unknown_to_timm(encoder.removeprefix("tu-"))
    elif encoder not in encoders and not is_equivalent_to_timm_universal(encoder):
        raise ModelError(f"smp has no encoder {shown(encoder)}; {_similar(encoder, list(encoders))}")


def _refuse_unknown_to_timm(name: str) -> None:
    """Refuse what timm would fetch from a hub or read from a folder, which it does for a name with a scheme."""
    import timm

    if not re.fullmatch(r"\w+(\.\w+)?", name, re.ASCII) or not timm.is_model(name):
        raise ModelError(f"timm has no network {shown(name)}; {_similar(name, timm.list_models())}")


def _similar(name: str, names: Sequence[str]) -> str:
    """Which of the names was probably meant."""
    spelled = {known.lower(): known for known in names}
    found = [spelled[key] for key in difflib.get_close_matches(name.lower(), spelled, n=3)]
    if found:
        return f"did you mean {' or '.join(found)}?"
    return f"it has for example {', '.join(names[:: max(1, len(names) // 6)])}"


METHODS = ("modules", "parameters", "buffers", "children", "state_dict", "forward", "train", "eval", "apply")


def _refuse_unmade(network: nn.Module) -> None:
    """Refuse lazy modules, whose weights have no shape before the first forward pass."""
    unmade = [name for name, weight in network.named_parameters() if is_lazy(weight)]
    if unmade:
        raise ModelError(f"{unmade[0]} has no shape yet; let the factory run one image through its lazy modules")


def _refuse_hidden_methods(network: nn.Module) -> None:
    """Refuse a network of which an attribute has the name of one of torch's methods, which torch and DFSS call."""
    for path, module in nn.Module.named_modules(network):
        hidden = [name for name in METHODS if name in vars(module) and not callable(vars(module)[name])]
        if hidden:
            raise ModelError(
                f"attribute {hidden[0]!r} of {path or 'the network'} ({type(module).__name__}) hides torch's method "
                "of this name; rename the attribute"
            )


def _is_frozen_norm(module: nn.Module) -> bool:
    """Whether it is a BatchNorm whose tensors are all buffers, as torchvision.ops and detectron2 have it."""
    names = {"weight", "bias", "running_mean", "running_var"}
    return type(module).__name__ == "FrozenBatchNorm2d" and names <= dict(module.named_buffers(recurse=False)).keys()


def _thawed(frozen: nn.Module) -> nn.Module:
    """A BatchNorm2d that computes the same in eval mode. It can be monitored, inherited and cut like any other."""
    eps = float(getattr(frozen, "eps", 1e-5))
    norm = nn.BatchNorm2d(len(frozen.get_buffer("weight")), eps=eps)
    norm.load_state_dict(frozen.state_dict(), strict=False)
    return norm


class Unused(nn.Identity):
    """Replaces a part of a network that no logit depends on."""

    def forward(self, input: Tensor, *_: Any) -> Tensor:
        """Return the first input."""
        return input


def without_unused(network: nn.Module) -> nn.Module:
    """The network without the parts that its logits do not depend on.

    smp keeps the encoder's stages beyond ``encoder_depth``, runs one of them with some encoders, and would save them
    all. A network that does not take 64x64 images is returned unchanged, and so is one without memory.
    """
    if any(parameter.is_meta for parameter in network.parameters()):
        return network
    lean, training = copy.deepcopy(network).eval(), network.training
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    try:
        lean(image).sum().backward()
        with torch.inference_mode():
            logits = lean(image)
            _replace(lean, _has_no_gradient, lambda _: Unused())
            same = torch.allclose(lean(image), logits)
    except Exception:  # a foreign network may raise anything at another size, or without one of its parts
        same = False
    lean.zero_grad(set_to_none=True)
    return lean.train(training) if same else network


def _has_no_gradient(module: nn.Module) -> bool:
    parameters = list(module.parameters())
    return bool(parameters) and all(parameter.grad is None for parameter in parameters)


def _replace(network: nn.Module, chosen: Callable[[nn.Module], bool], other: Callable[[nn.Module], nn.Module]) -> None:
    """Replace the chosen parts of a network."""
    for name, child in network.named_children():
        if chosen(child):
            setattr(network, name, other(child))
        else:
            _replace(child, chosen, other)


FAMILIES = {"torchvision": _from_torchvision, "smp": _from_smp}


def _from_factory(module: str, factory: str, num_classes: int, arguments: Mapping[str, Any]) -> nn.Module:
    trusted = {name.strip() for name in os.environ.get(TRUSTED_BUILDERS, "").split(",")} - {""}
    builder = f"{module}:{factory}"
    if not trusted & {module, builder}:
        raise ModelError(
            f"the model runs {shown(builder)} to build its network; if you trust that code, set "
            f"{TRUSTED_BUILDERS}={module}"
        )
    _find(module)
    build = getattr(importlib.import_module(module), factory if factory.isidentifier() else "", None)
    if not callable(build) or factory.startswith("_"):
        raise ModelError(f"{shown(builder)} cannot be built: {module} has no such function; correct the builder")
    if builder not in trusted and _is_of_a_library(build, module):
        raise ModelError(
            f"{shown(builder)} belongs to a library that {module} only imports; if it builds the network, set "
            f"{TRUSTED_BUILDERS}={builder}"
        )
    network = build(num_classes=num_classes, **arguments)
    if not isinstance(network, nn.Module):
        raise ModelError(f"{builder} returned {type(network).__name__}, not a torch module")
    return network


def _is_of_a_library(function: object, module: str) -> bool:
    """Whether a function that is found in a module is of Python's own or another installed library."""
    home = str(getattr(function, "__module__", ""))
    library = home.partition(".")[0]
    if library == module.partition(".")[0]:
        return False
    file = Path(getattr(sys.modules.get(library), "__file__", None) or "")
    return library in sys.stdlib_module_names or not {"site-packages", "dist-packages"}.isdisjoint(file.parts)


def _find(module: str) -> None:
    """Let a trusted module that is not installed be found in the current folder, as ``python`` itself would find it.

    The folder comes last, so that its files hide no library.
    """
    if importlib.util.find_spec(module.partition(".")[0]) is None and os.getcwd() not in sys.path:  # noqa: PTH109
        sys.path.append(os.getcwd())  # noqa: PTH109
        importlib.invalidate_caches()


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
