"""A segmentation model: a network with the description of how to rebuild it and what input it expects.

Normalisation belongs to the model: a :class:`Segmenter` takes RGB in [0, 1] and returns logits at the size of its
input, whatever its network does inside. So teacher and student may differ in both.

Shapes: N images, K classes, H x W pixels.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.models.builders import backbone_normalisation, build_network
from pipeline.models.narrowing import Kept, narrow
from storage.errors import ModelError

METADATA_KEY = "dfss"


IMAGENET_MEAN = (0.485, 0.456, 0.406)


IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ModelSpec:
    """How to rebuild a network, and what input it expects.

    Raises:
        ModelError: a field is out of range or contradicts another.
    """

    builder: str
    """``torchvision:NAME``, ``smp:ARCHITECTURE/ENCODER`` or ``package.module:factory``."""
    num_classes: int
    class_names: tuple[str, ...]
    image_size: tuple[int, int]
    """Height and width, in pixels, of the images that the network was trained for."""
    arguments: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Further keyword arguments of the builder."""
    mean: tuple[float, ...] = IMAGENET_MEAN
    """Per RGB channel, for values in [0, 1]."""
    std: tuple[float, ...] = IMAGENET_STD
    kept: Kept = dataclasses.field(default_factory=dict)
    """The channels of the builder's network that a cut network keeps (:mod:`pipeline.models.narrowing`)."""

    def __post_init__(self) -> None:
        if self.num_classes < 2:
            raise ModelError(
                f"a segmentation model needs at least 2 classes, not {self.num_classes}; see --num-classes"
            )
        if len(self.class_names) != self.num_classes:
            raise ModelError(
                f"{len(self.class_names)} class names for {self.num_classes} classes; make --class-names and "
                "--num-classes agree"
            )
        if len(self.image_size) != 2 or min(self.image_size) < 1:
            raise ModelError(f"image size {self.image_size} is not height x width in pixels; see --image-size")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ModelError(f"mean {self.mean} and std {self.std} must be 3 numbers each, std above 0")
        if not all(map(math.isfinite, (*self.mean, *self.std))):
            raise ModelError(f"mean {self.mean} and std {self.std} must be finite; see --mean and --std")
        if not isinstance(self.kept, Mapping) or not all(isinstance(sides, Mapping) for sides in self.kept.values()):
            raise ModelError("kept channels must be lists by module and side: {MODULE: {in: [...], out: [...]}}")

    def to_json(self) -> str:
        """Serialise; the same spec gives the same text."""
        fields = dataclasses.asdict(self)
        if not self.kept:
            del fields["kept"]
        return json.dumps(fields, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "ModelSpec":
        """Parse the text that :meth:`to_json` wrote.

        Raises:
            ModelError: a field is missing, unknown or malformed.
        """
        try:
            fields: dict[str, Any] = {
                name: tuple(v) if isinstance(v, list) else v for name, v in json.loads(text).items()
            }
            return cls(**fields)
        except (json.JSONDecodeError, TypeError, AttributeError) as error:
            raise ModelError(f"its {METADATA_KEY!r} header is not a model description ({error})") from error


class Segmenter(nn.Module):
    """A segmentation network that normalises its input and resizes its logits to the size of the input."""

    mean_3HW: Tensor
    std_3HW: Tensor

    def __init__(self, network: nn.Module, spec: ModelSpec) -> None:
        super().__init__()
        self.network = network
        self.spec = spec
        self.register_buffer("mean_3HW", torch.tensor(spec.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std_3HW", torch.tensor(spec.std).view(3, 1, 1), persistent=False)

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.mean_3HW.device

    def set_normalisation(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        """Expect another input: ``mean`` and ``std`` per RGB channel, for values in [0, 1].

        Raises:
            ModelError: they are not three numbers each, or a std is not above 0.
        """
        self.spec = dataclasses.replace(self.spec, mean=mean, std=std)
        self.mean_3HW = self.mean_3HW.new_tensor(mean).view(3, 1, 1)
        self.std_3HW = self.std_3HW.new_tensor(std).view(3, 1, 1)

    def normalise(self, images_N3HW: Tensor) -> Tensor:
        """Normalise images, uint8 or float in [0, 1], to the network's input, float [N, 3, H, W] in channels_last."""
        if images_N3HW.dtype == torch.uint8:
            images_N3HW = images_N3HW.to(self.mean_3HW.dtype) / 255
        normalised = (images_N3HW - self.mean_3HW) / self.std_3HW
        return normalised.contiguous(memory_format=torch.channels_last)

    def forward(self, images_N3HW: Tensor) -> Tensor:
        """Compute logits [N, K, H, W] of RGB images [N, 3, H, W], uint8 or float in [0, 1]."""
        logits = as_logits(self.network(self.normalise(images_N3HW)))
        if logits.shape[1] != self.spec.num_classes:
            raise ModelError(
                f"{self.spec.builder} gives {logits.shape[1]} classes, but its description {self.spec.num_classes}; "
                "correct --num-classes"
            )
        if logits.shape[-2:] != images_N3HW.shape[-2:]:
            logits = F.interpolate(logits, size=images_N3HW.shape[-2:], mode="bilinear", align_corners=False)
        return logits


def as_logits(output: Any) -> Tensor:
    """The logits in a network's output, which may be a tensor, a dict, an object or a tuple."""
    if isinstance(output, Mapping):
        output = output.get("out", output.get("logits"))
    elif hasattr(output, "logits"):
        output = output.logits
    elif isinstance(output, tuple | list) and output:
        output = output[0]
    if not isinstance(output, Tensor) or output.ndim != 4:
        raise ModelError(
            "the network returns no [N, K, H, W] logits: neither a tensor nor a dict with 'out' or 'logits'"
        )
    return output


def build_model(spec: ModelSpec, *, pretrained_backbone: bool = False) -> Segmenter:
    """Build a network with random weights, or with a pretrained backbone if the builder has one.

    It is built whole, and then reduced to the channels that it keeps. A pretrained backbone comes with its own
    normalisation, which replaces that of ``spec``.

    Raises:
        ModelError: the builder is unknown, untrusted, or refuses its arguments, or lacks channels that are kept.
    """
    network = build_network(spec.builder, spec.num_classes, spec.arguments, pretrained_backbone=pretrained_backbone)
    narrow(network, spec.kept)
    if pretrained_backbone:
        mean, std = backbone_normalisation(spec.builder)
        spec = dataclasses.replace(spec, mean=mean, std=std)
    return Segmenter(network, spec).to(memory_format=torch.channels_last)


def fingerprint(model: Segmenter) -> str:
    """SHA-256 (hex) of weights, builder, arguments and normalisation, which determine a forward pass."""
    spec = model.spec
    about = json.dumps([spec.builder, spec.arguments, spec.mean, spec.std], sort_keys=True)
    digest = hashlib.sha256(about.encode())
    for name, tensor in sorted(model.network.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        # Bytes are hashed, so that dtypes which numpy lacks (bfloat16) work too.
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
