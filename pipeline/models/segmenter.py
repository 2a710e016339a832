"""A segmentation model: a network with the description of how to rebuild it, what it reads and what it returns.

A :class:`Segmenter` takes RGB in [0, 1] and returns logits of its classes at the size of its input. Normalisation, the
order of the channels, padding, the choice of an output and merged classes belong to the model, whatever its network
does inside. So teacher and student may differ in all of them.

Shapes: N images, K classes, H x W pixels; C channels that the network reads; h x w pixels after padding.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.models.builders import backbone_normalisation, build_network
from pipeline.models.merging import Members, merge
from pipeline.models.narrowing import Kept, narrow
from pipeline.settings import Channels
from storage.errors import ModelError
from storage.kinds import Kind, first_fault, named, number, plain, several, shown, text, whole, word

METADATA_KEY = "dfss"


IMAGENET_MEAN = (0.485, 0.456, 0.406)


IMAGENET_STD = (0.229, 0.224, 0.225)


MOST_MULTIPLE = 4096
LONGEST_HEADER = 2**25
"""Characters of a description; that of a cut network with a million channels has a third of it."""
CLASSES = whole(0, 2**16)
FACTOR = number(1e-6, 1e6)
SCHEMA: Mapping[str, Kind] = {
    "builder": text(200),
    "num_classes": CLASSES,
    "class_names": several(text(1000), 0, 2**16),
    "image_size": several(whole(1, 2**14), 2, 2),
    "arguments": named(plain(8), 100),
    "mean": dataclasses.replace(several(number(-1e6, 1e6), 3, 3), words="3 numbers, which must be finite"),
    "std": dataclasses.replace(several(FACTOR, 3, 3), words="3 numbers, which must be finite, and std above 0"),
    "kept": dataclasses.replace(
        named(named(several(whole(0, 2**20), 0, 2**20), 2), 2**16),
        words="the channels by module and side: {MODULE: {in: [...], out: [...]}}",
    ),
    "channels": word("rgb", "bgr", "grey"),
    "factor": FACTOR,
    "multiple": whole(1, MOST_MULTIPLE),
    "output": text(200),
    "network_classes": CLASSES,
    "members": several(several(CLASSES, 1, 2**16), 0, 2**16),
}
"""What each field of a description must be. A model file may come from anywhere."""
ALWAYS = ("builder", "num_classes", "class_names", "image_size", "arguments", "mean", "std")
"""Fields that every description has."""


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
    """Of red, green and blue, for values in [0, 1], whatever the order in which the network reads them."""
    std: tuple[float, ...] = IMAGENET_STD
    kept: Kept = dataclasses.field(default_factory=dict)
    """The channels of the builder's network that a cut network keeps (:mod:`pipeline.models.narrowing`)."""
    channels: Channels = "rgb"
    """What the network reads of the normalised image: its colours in this order, or their luma."""
    factor: float = 1.0
    """What the normalised image is multiplied by."""
    multiple: int = 1
    """The network takes images whose sides are multiples of this; others are padded and their logits cropped."""
    output: str = ""
    """Key or index of the logits among several outputs; empty: see :func:`as_logits`."""
    network_classes: int = 0
    """How many classes the network itself has, where these are others: 1 for a sigmoid, of which 2 are made."""
    members: Members = ()
    """For each class the network's classes that it consists of (:mod:`pipeline.models.merging`); empty: the same."""

    def __post_init__(self) -> None:
        if fault := first_fault({name: getattr(self, name) for name in SCHEMA}, SCHEMA):
            raise ModelError(f"the description of the model cannot be used: {fault}")
        if self.num_classes < 2:
            raise ModelError(
                f"a segmentation model needs at least 2 classes, not {self.num_classes}; see --num-classes"
            )
        if len(self.class_names) != self.num_classes:
            raise ModelError(
                f"{len(self.class_names)} class names for {self.num_classes} classes; make --class-names and "
                "--num-classes agree"
            )
        self._check_classes()

    def _check_classes(self) -> None:
        count, members = self.built_classes, self.members
        if members:
            valid = len(members) == self.num_classes and all(all(index < count for index in group) for group in members)
        else:
            valid = count == self.num_classes or (count, self.num_classes) == (1, 2)
        if not valid:
            raise ModelError(f"{self.num_classes} classes cannot be made of the network's {count} by members {members}")

    @property
    def built_classes(self) -> int:
        """The number of classes that the network is built with."""
        return self.network_classes or self.num_classes

    @property
    def input(self) -> dict[str, Any]:
        """The fields that say how the network's input is made of an image, but for its padding."""
        return {"mean": self.mean, "std": self.std, "channels": self.channels, "factor": self.factor}

    def differences(self) -> dict[str, Any]:
        """The fields after ``kept`` that are not the default; files and fingerprints of other models lack them."""
        later = dataclasses.fields(self)[[field.name for field in dataclasses.fields(self)].index("kept") + 1 :]
        return {field.name: getattr(self, field.name) for field in later if getattr(self, field.name) != field.default}

    def to_json(self, unused: Sequence[str] = ()) -> str:
        """Serialise; the same spec gives the same text.

        ``unused`` names the modules that the file holds no weights of, for whoever builds the network without us.
        """
        always = {name: getattr(self, name) for name in ALWAYS}
        kept = {"kept": self.kept} if self.kept else {}
        absent = {"unused": list(unused)} if unused else {}
        return json.dumps({**always, **kept, **self.differences(), **absent}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "ModelSpec":
        """Parse the text that :meth:`to_json` wrote.

        Raises:
            ModelError: a field is missing, unknown or malformed.
        """
        if len(text) > LONGEST_HEADER:
            raise ModelError(f"its {METADATA_KEY!r} header has {len(text)} characters, which no model needs")
        try:
            fields = json.loads(text, object_pairs_hook=_distinct)
        except (ValueError, RecursionError) as error:
            raise ModelError(f"its {METADATA_KEY!r} header is not a model description ({error})") from error
        if not isinstance(fields, dict):
            raise ModelError(f"its {METADATA_KEY!r} header is not a model description (it is no mapping)")
        fields.pop("unused", None)  # building finds them again
        if missing := [name for name in ALWAYS[:4] if name not in fields]:
            raise ModelError(f"its {METADATA_KEY!r} header is not a model description (it has no {missing[0]!r})")
        if unknown := sorted(fields.keys() - SCHEMA.keys()):
            raise ModelError(
                f"its {METADATA_KEY!r} header has a field {shown(unknown[0])} that this version of DFSS does not know; "
                "install a newer version"
            )
        if fault := first_fault(fields, SCHEMA):  # before anything walks through what may be huge or deep
            raise ModelError(f"its {METADATA_KEY!r} header is not a model description: {fault}")
        return cls(**{name: value if name == "arguments" else _as_tuple(value) for name, value in fields.items()})


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):  # others may read the first of them where Python reads the last
        raise ValueError("a name occurs twice")
    return found


def _as_tuple(value: Any) -> Any:
    return tuple(_as_tuple(item) for item in value) if isinstance(value, list) else value


LUMA = (0.299, 0.587, 0.114)


def _luma(images_N3HW: Tensor) -> Tensor:
    """Luma of red, green and blue (ITU-R BT.601, as OpenCV and Pillow convert to grey), [N, 1, H, W]."""
    return (images_N3HW * images_N3HW.new_tensor(LUMA).view(3, 1, 1)).sum(dim=1, keepdim=True)


CHANNELS: Mapping[Channels, Callable[[Tensor], Tensor]] = {
    "rgb": lambda images_N3HW: images_N3HW,
    "bgr": lambda images_N3HW: images_N3HW.flip(1),
    "grey": _luma,
}
"""What a network reads of a normalised image in red, green, blue."""


class Segmenter(nn.Module):
    """A segmentation network that normalises its input and resizes its logits to the size of the input."""

    mean_3HW: Tensor
    std_3HW: Tensor

    def __init__(self, network: nn.Module, spec: ModelSpec) -> None:
        super().__init__()
        self.network = network
        self.spec = spec
        self.register_buffer("mean_3HW", torch.tensor(spec.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std_3HW", _divisor(spec).view(3, 1, 1), persistent=False)

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.mean_3HW.device

    def describe(self, **changes: Any) -> None:
        """Change fields of the description that the network does not depend on, such as ``mean`` or ``multiple``.

        Raises:
            ModelError: the description is then not valid.
        """
        self.spec = dataclasses.replace(self.spec, **changes)
        self.mean_3HW = self.mean_3HW.new_tensor(self.spec.mean).view(3, 1, 1)
        self.std_3HW = _divisor(self.spec).to(self.mean_3HW).view(3, 1, 1)

    def padded(self, size: tuple[int, int]) -> tuple[int, int]:
        """The height and width that images of ``size`` = (H, W) have in the network."""
        height, width = (side + -side % self.spec.multiple for side in size)
        return height, width

    def normalise(self, images_N3HW: Tensor) -> Tensor:
        """Make the network's input of images, uint8 or float in [0, 1]: float [N, C, h, w] in channels_last.

        Padding repeats the last row and column.
        """
        if images_N3HW.dtype == torch.uint8:
            images_N3HW = images_N3HW.to(self.mean_3HW.dtype) / 255
        input_NCHW = CHANNELS[self.spec.channels]((images_N3HW - self.mean_3HW) / self.std_3HW)
        height, width = input_NCHW.shape[-2:]
        lower, right = self.padded((height, width))
        if (lower, right) != (height, width):
            input_NCHW = F.pad(input_NCHW, (0, right - width, 0, lower - height), mode="replicate")
        return input_NCHW.contiguous(memory_format=torch.channels_last)

    def classes(self, output: Any) -> Tensor:
        """The logits of the model's classes in an output of its network, on the grid of that output."""
        logits = as_logits(output, self.spec.output)
        if logits.shape[1] != self.spec.built_classes:
            raise ModelError(
                f"{self.spec.builder} gives {logits.shape[1]} classes, but its description {self.spec.built_classes}; "
                "correct --num-classes, or take another output by --output in dfss-import"
            )
        return merge(logits, self.spec.members)

    def enlarge(self, logits_NKHW: Tensor, size: tuple[int, int], *, align_corners: bool = False) -> Tensor:
        """Logits [N, K, H, W] of images of ``size`` = (H, W), from those on any grid over the padded images."""
        if logits_NKHW.shape[-2:] != self.padded(size):
            logits_NKHW = F.interpolate(
                logits_NKHW, size=self.padded(size), mode="bilinear", align_corners=align_corners
            )
        return logits_NKHW[:, :, : size[0], : size[1]]

    def forward(self, images_N3HW: Tensor) -> Tensor:
        """Compute logits [N, K, H, W] of RGB images [N, 3, H, W], uint8 or float in [0, 1]."""
        height, width = images_N3HW.shape[-2:]
        return self.enlarge(self.classes(self.network(self.normalise(images_N3HW))), (height, width))


def _divisor(spec: ModelSpec) -> Tensor:
    """What the difference from the mean is divided by, so that the result is multiplied by the factor, [3]."""
    return torch.tensor([std / spec.factor for std in spec.std])


KEYS = ("out", "logits")
"""The names under which libraries return logits, in a dict or an object."""


def as_logits(output: Any, choice: str = "") -> Tensor:
    """The logits in a network's output: a tensor, or one of those in a dict, an object, a list or a tuple.

    Without a ``choice``, which is a key or an index, they are those under :data:`KEYS`, the only map, or the first. A
    tensor leaves no choice.

    Raises:
        ModelError: the output holds no such map [N, K, H, W].
    """
    found, choice = maps_in(output), "" if isinstance(output, Tensor) else choice
    chosen = found.get(choice or default_output(output))
    if choice and chosen is None:
        raise ModelError(f"the network returns no output {choice!r} [N, K, H, W], but {_listed(output)}; see --output")
    if chosen is None:
        raise ModelError(
            "the network returns no [N, K, H, W] logits: neither a tensor nor a dict with 'out' or 'logits', but "
            f"{_listed(output)}; see --output"
        )
    return chosen


def default_output(output: Any) -> str:
    """The name of the map that is taken if none is chosen; empty for a tensor, or where there is none."""
    found = maps_in(output)
    return next((name for name in KEYS if name in found), next(iter(found), ""))


def maps_in(output: Any) -> dict[str, Tensor]:
    """The maps [N, K, H, W] in a network's output, by key or index; a tensor has the empty name."""
    return {name: value for name, value in _items(output) if isinstance(value, Tensor) and value.ndim == 4}


def _items(output: Any) -> list[tuple[str, Any]]:
    if isinstance(output, Mapping):
        return [(str(name), value) for name, value in output.items()]
    if isinstance(output, tuple) and hasattr(output, "_fields"):
        return list(zip(output._fields, output, strict=True))
    if isinstance(output, tuple | list):
        return [(str(index), value) for index, value in enumerate(output)]
    if isinstance(output, Tensor):
        return [("", output)]
    known = {name: getattr(output, name) for name in KEYS if hasattr(output, name)}  # it may be a property
    others = {name: value for name, value in getattr(output, "__dict__", {}).items() if not name.startswith("_")}
    return list({**known, **others}.items())


def _listed(output: Any) -> str:
    shown = [
        f"{name or 'a tensor'} {list(value.shape)}" if isinstance(value, Tensor) else f"{name} ({type(value).__name__})"
        for name, value in _items(output)
    ]
    return ", ".join(shown[:8]) or f"a {type(output).__name__}"


def build_model(spec: ModelSpec, *, pretrained_backbone: bool = False) -> Segmenter:
    """Build a network with random weights, or with a pretrained backbone if the builder has one.

    It is built whole, and then reduced to the channels that it keeps. A pretrained backbone comes with its own
    normalisation, which replaces that of ``spec``.

    Raises:
        ModelError: the builder is unknown, untrusted, or refuses its arguments, or lacks channels that are kept.
    """
    network = build_network(spec.builder, spec.built_classes, spec.arguments, pretrained_backbone=pretrained_backbone)
    narrow(network, spec.kept)
    if pretrained_backbone:
        mean, std = backbone_normalisation(spec.builder)
        spec = dataclasses.replace(spec, mean=mean, std=std, factor=1.0)
    return Segmenter(network, spec).to(memory_format=torch.channels_last)


def fingerprint(model: Segmenter) -> str:
    """SHA-256 (hex) of weights, builder, arguments, normalisation and all else that determines a forward pass."""
    spec = model.spec
    about: list[Any] = [spec.builder, spec.arguments, spec.mean, spec.std]
    if differences := spec.differences():
        about.append(differences)
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name, tensor in sorted(model.network.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        # Bytes are hashed, so that dtypes which numpy lacks (bfloat16) work too.
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
