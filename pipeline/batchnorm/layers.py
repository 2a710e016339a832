"""The BatchNorm layers of a teacher, and which of them are monitored."""

import dataclasses
import fnmatch
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from torch import Tensor, nn

from pipeline.models.hooks import on_inputs, probe
from pipeline.models.segmenter import Segmenter
from storage.errors import ModelError

BatchNorm = nn.BatchNorm2d | nn.SyncBatchNorm
DEAD = 0.01
"""A channel is dead if its running variance is at most this share of the layer's mean (ours).

In five published teachers .3 to 5.5 % of all channels are below it, up to four fifths of a layer, most of them below
a ten-thousandth.
"""


@dataclasses.dataclass(frozen=True, slots=True)
class BatchNormLayer:
    """A BatchNorm layer that a forward pass runs through."""

    name: str
    """Path of the module in the network."""
    module: BatchNorm
    positions: int
    """H * W of its input at the teacher's image size."""

    @property
    def channels(self) -> int:
        """The number of channels, C."""
        return int(self.module.num_features)


def dead_channels(module: BatchNorm) -> Tensor:
    """The channels that were all but constant on the training images (ours), bool [C].

    Divided by so small a variance, a channel that moves at all would outweigh all others.
    """
    assert module.running_var is not None
    variance_C = module.running_var.float()
    return variance_C <= DEAD * variance_C.mean()


def find_layers(teacher: Segmenter) -> list[BatchNormLayer]:
    """List the BatchNorm layers that can be monitored, in the order in which a forward pass reaches them.

    A layer whose input is a single position (after global pooling) has no variance over (H, W) and is left out. A layer
    that a pass runs through twice is left out too, because its running statistics mix two inputs.

    Raises:
        ModelError: the teacher has no BatchNorm with running statistics (the message names its normalisation), or one
            of its layers uses batch statistics in eval mode.
    """
    named = {
        name: module
        for name, module in teacher.network.named_modules()
        if isinstance(module, BatchNorm) and module.running_mean is not None
    }
    if not named:
        raise ModelError(
            f"the teacher ({teacher.spec.builder}) has no BatchNorm layer with running statistics, which DFSS compares "
            f"images against; its normalisation is {_normalisation(teacher.network)}; use a BatchNorm teacher"
        )
    _refuse_batch_statistics(teacher)
    positions: dict[str, int] = {}
    calls: Counter[str] = Counter()

    def record(name: str, input_NCHW: Tensor) -> None:
        positions[name] = math.prod(input_NCHW.shape[2:])
        calls[name] += 1

    with on_inputs((module, partial(record, name)) for name, module in named.items()):
        probe(teacher)
    layers = [
        BatchNormLayer(name, named[name], count) for name, count in positions.items() if count > 1 and calls[name] == 1
    ]
    if not layers:
        raise ModelError(
            f"no BatchNorm layer of the teacher ({teacher.spec.builder}) can be monitored: each sees a single position "
            "or runs twice per pass; use another teacher or a larger image size"
        )
    return layers


def _refuse_batch_statistics(teacher: Segmenter) -> None:
    for name, module in teacher.network.named_modules():
        if isinstance(module, BatchNorm) and module.running_mean is None:
            raise ModelError(
                f"layer {name} of the teacher normalises by its batch even in eval mode (track_running_stats=False), "
                "so an image's statistics would depend on its batch; use a teacher with running statistics throughout"
            )


def _normalisation(network: nn.Module) -> str:
    kinds = Counter(type(module).__name__ for module in network.modules() if "norm" in type(module).__name__.lower())
    return ", ".join(f"{count} {kind}" for kind, count in kinds.most_common()) or "none at all"


def choose_layers(layers: Sequence[BatchNormLayer], wanted: Sequence[str]) -> list[BatchNormLayer]:
    """Choose layers by ``default``, ``all``, names and globs, in the order of the forward pass.

    Raises:
        ModelError: a name matches no layer; the message lists some that exist.
    """
    chosen: set[str] = set()
    for pattern in wanted:
        found = GROUPS[pattern](layers) if pattern in GROUPS else _matching(layers, pattern)
        if not found:
            shown = ", ".join(layer.name for layer in layers[:: max(1, len(layers) // 6)])
            raise ModelError(f"no BatchNorm layer is called {pattern!r}; choose for example from {shown}")
        chosen |= {layer.name for layer in found}
    return [layer for layer in layers if layer.name in chosen]


def _matching(layers: Sequence[BatchNormLayer], pattern: str) -> list[BatchNormLayer]:
    return [layer for layer in layers if fnmatch.fnmatchcase(layer.name, pattern)]


def default_layers(layers: Sequence[BatchNormLayer]) -> list[BatchNormLayer]:
    """The layers from 75 % to 80 % of the backbone's depth (ours; docs/method.md says why). Later layers need not run.

    The backbone is the top-level module of the first layer (``backbone.``, ``encoder.``). If that holds less than a
    third of the layers, the whole network counts as the backbone.
    """
    top = layers[0].name.partition(".")[0]
    backbone = [layer for layer in layers if layer.name.partition(".")[0] == top]
    if len(backbone) < len(layers) / 3:
        backbone = list(layers)
    last = round(0.8 * len(backbone))
    return backbone[min(int(0.75 * len(backbone)), last - 1) : last]


GROUPS: Mapping[str, Callable[[Sequence[BatchNormLayer]], list[BatchNormLayer]]] = {
    "default": default_layers,
    "all": list,
}
"""Names that stand for several layers."""
