"""Networks with fewer channels than their builder gives them (ours).

A description of kept channels names modules of the builder's network, and for each the input and output channels that
it keeps: ``{"conv1": {"out": [0, 2]}, "conv2": {"in": [0, 2]}}``. BatchNorm, PReLU and depthwise convolutions treat
every channel by itself. Of them only ``out`` is described, and their inputs are the same channels.

Shapes: C channels.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from storage.errors import ModelError

Side = Literal["in", "out"]
Kept = Mapping[str, Mapping[Side, Sequence[int]]]
"""The channels that a network keeps, in ascending order, by module and side. What is not named is kept whole."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """Where a module's channels lie."""

    tensors: Mapping[str, tuple[Side, ...]]
    """The sides that the first dimensions of a tensor are for."""
    counts: Mapping[str, Side]
    """The attributes that count channels."""
    alone: bool = False
    """Whether an output channel depends on the same input channel alone."""

    def side(self, wanted: Side) -> Side:
        """The side by which channels are described."""
        return "out" if self.alone else wanted


DENSE: Mapping[str, tuple[Side, ...]] = {"weight": ("out", "in"), "bias": ("out",)}
TRANSPOSED: Mapping[str, tuple[Side, ...]] = {"weight": ("in", "out"), "bias": ("out",)}
CONVOLUTION: Mapping[str, Side] = {"in_channels": "in", "out_channels": "out"}
DEPTHWISE: Mapping[str, Side] = {"groups": "out", "in_channels": "out", "out_channels": "out"}
ALONE: dict[str, tuple[Side, ...]] = {"weight": ("out",), "bias": ("out",)}


def layout_of(module: nn.Module) -> Layout | None:
    """Where the channels of a module lie; None if its channels cannot be taken apart."""
    match module:
        case nn.Conv2d(groups=1):
            return Layout(tensors=DENSE, counts=CONVOLUTION)
        case nn.ConvTranspose2d(groups=1):
            return Layout(tensors=TRANSPOSED, counts=CONVOLUTION)
        case nn.Conv2d() | nn.ConvTranspose2d() if module.groups == module.in_channels == module.out_channels:
            return Layout(tensors=ALONE, counts=DEPTHWISE, alone=True)
        case nn.Linear():
            return Layout(tensors=DENSE, counts={"in_features": "in", "out_features": "out"})
        case _BatchNorm():
            statistics: dict[str, tuple[Side, ...]] = {"running_mean": ("out",), "running_var": ("out",)}
            return Layout(tensors=ALONE | statistics, counts={"num_features": "out"}, alone=True)
        case nn.PReLU() if module.num_parameters > 1:
            return Layout(tensors={"weight": ("out",)}, counts={"num_parameters": "out"}, alone=True)
    return None


def width_of(module: nn.Module, side: Side) -> int:
    """The number of channels on a side of a module that has a layout."""
    layout = layout_of(module)
    assert layout is not None
    return int(getattr(module, next(name for name, counted in layout.counts.items() if counted == layout.side(side))))


def narrow(network: nn.Module, kept: Kept) -> None:
    """Reduce a network in place to the channels that it keeps, with their weights and statistics.

    Raises:
        ModelError: a module does not exist, has no such channels, or keeps none.
    """
    modules = dict(network.named_modules())
    for name, sides in kept.items():
        module = modules.get(name, network)
        layout = layout_of(module) if name in modules else None
        if layout is None or not sides or not sides.keys() <= set(layout.counts.values()):
            raise ModelError(
                f"the description keeps channels of {name!r}, but the network has no such layer of channels"
            )
        for side, channels in sides.items():
            _check(name, channels, width_of(module, side))
        _narrow(module, layout, sides)


def _check(name: str, channels: Sequence[int], width: int) -> None:
    channels = channels if isinstance(channels, list | tuple) else []
    whole = [channel for channel in channels if type(channel) is int and 0 <= channel < width]
    if not whole or len(whole) < len(channels) or any(one >= other for one, other in pairwise(whole)):
        raise ModelError(f"the description keeps channels of {name!r} that are not in ascending order below {width}")


def _narrow(module: nn.Module, layout: Layout, sides: Mapping[Side, Sequence[int]]) -> None:
    for name, dimensions in layout.tensors.items():
        tensor = getattr(module, name)
        if tensor is None:
            continue
        values = tensor.detach()
        for dimension, side in enumerate(dimensions):
            if side in sides:
                values = values.index_select(dimension, torch.tensor(sides[side], device=values.device))
        if isinstance(tensor, nn.Parameter):
            values = nn.Parameter(values, requires_grad=tensor.requires_grad)
        setattr(module, name, values)
    for attribute, side in layout.counts.items():
        if side in sides:
            setattr(module, attribute, len(sides[side]))


def kept_of(map_NC: Tensor, module: nn.Module, sides: Mapping[Side, Sequence[int]], side: Side) -> Tensor:
    """The kept channels of an input or output of a module, [N, C, H, W] or [..., C]."""
    layout = layout_of(module)
    channels = sides.get(layout.side(side)) if layout else None
    if channels is None:
        return map_NC
    return map_NC.index_select(1 if map_NC.ndim == 4 else -1, torch.tensor(channels, device=map_NC.device))


def composed(first: Kept, then: Kept) -> Kept:
    """The channels of the builder's network that are left if it keeps ``first``, and of what is left, ``then``."""
    kept = {name: {side: list(channels) for side, channels in sides.items()} for name, sides in first.items()}
    for name, sides in then.items():
        for side, channels in sides.items():
            before = first.get(name, {}).get(side)
            kept.setdefault(name, {})[side] = (
                [before[index] for index in channels] if before is not None else list(channels)
            )
    return kept


def relative(kept: Kept, within: Kept) -> Kept | None:
    """The channels ``kept`` by their places in a network that keeps ``within``; None if it lacks some of them."""
    found: dict[str, dict[Side, Sequence[int]]] = {}
    for name in {**within, **kept}:
        own, theirs = kept.get(name, {}), within.get(name, {})
        if not theirs.keys() <= own.keys():
            return None
        for side, channels in own.items():
            places = {channel: place for place, channel in enumerate(theirs[side])} if side in theirs else None
            if places is not None and not places.keys() >= set(channels):
                return None
            inside = [places[channel] for channel in channels] if places is not None else channels
            if places is None or len(inside) < len(places):
                found.setdefault(name, {})[side] = inside
    return found
