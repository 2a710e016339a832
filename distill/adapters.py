"""Adapters: the feature loss for a student of any other architecture, through 1x1 convolutions (ours).

FitNets (Romero et al., arXiv 1412.6550) train a student's hidden maps towards the teacher's through a layer that is
dropped at the end. Here the maps are inputs of BatchNorm layers on the same grid: the last such layer of every grid on
the way down to the coarsest one (the encoder), and on the way up (the decoder), in either network. The student's maps
go through a 1x1 convolution and are compared with the teacher's in the teacher's standard deviations.

Shapes: N images, C channels, h x w positions of a grid.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from pipeline.batchnorm.layers import BatchNorm
from pipeline.models.hooks import on_inputs
from pipeline.models.segmenter import Segmenter
from storage.errors import SettingsError

AUTO = "auto"
Grid = tuple[int, int]
"""Height and width of a map."""


@dataclasses.dataclass(frozen=True, slots=True)
class Map:
    """The input of a BatchNorm layer that runs once in a forward pass."""

    name: str
    layer: BatchNorm
    grid: Grid
    phase: str
    """``encoder`` up to the first map of the coarsest grid with more than one position, then ``decoder``."""


@dataclasses.dataclass(frozen=True, slots=True)
class Adapter:
    """A student's map, the teacher's that it is compared with, and the convolution between them."""

    own: Map
    theirs: Map
    convolution: nn.Conv2d

    def __str__(self) -> str:
        """What is said of it: the layers and their grid."""
        height, width = self.own.grid
        return f"{self.own.name}={self.theirs.name} ({height}x{width})"


def make_adapters(student: Segmenter, teacher: Segmenter, pairs: Sequence[str]) -> list[Adapter]:
    """Make adapters with random weights for ``pairs``: ``auto``, or layers as ``STUDENT.LAYER=TEACHER.LAYER``.

    Raises:
        SettingsError: a layer does not exist or does not run once, or the maps of a pair have different grids.
    """
    own, theirs = (maps_of(model, teacher.spec.image_size) for model in (student, teacher))
    chosen = matching(own, theirs) if list(pairs) == [AUTO] else [_named(pair, own, theirs) for pair in pairs]
    if not chosen:
        raise SettingsError(
            "no map of the student lies on the grid of a map of the teacher; leave out --adapters", field="adapters"
        )
    return [
        Adapter(one, other, nn.Conv2d(one.layer.num_features, other.layer.num_features, 1).to(student.device))
        for one, other in chosen
    ]


def matching(own: Sequence[Map], theirs: Sequence[Map]) -> list[tuple[Map, Map]]:
    """Pair the last maps of each phase and grid that both networks have, in the student's order."""
    last_own, last_theirs = _last(own), _last(theirs)
    return [(found, last_theirs[place]) for place, found in last_own.items() if place in last_theirs]


def _last(maps: Sequence[Map]) -> Mapping[tuple[str, Grid], Map]:
    return {(found.phase, found.grid): found for found in maps}


def _named(pair: str, own: Sequence[Map], theirs: Sequence[Map]) -> tuple[Map, Map]:
    names = pair.split("=")
    if len(names) != 2:
        raise SettingsError(f"{pair!r} is not STUDENT.LAYER=TEACHER.LAYER; or give auto", field="adapter_pairs")
    found = []
    for whose, name, maps in (("student", names[0], own), ("teacher", names[1], theirs)):
        known = {one.name: one for one in maps}
        if name not in known:
            some = ", ".join(list(known)[:: max(1, len(known) // 4)])
            raise SettingsError(
                f"the {whose} has no BatchNorm layer {name!r} that runs once; give for example one of {some}",
                field="adapter_pairs",
            )
        found.append(known[name])
    if found[0].grid != found[1].grid:
        grids = " and ".join("{}x{}".format(*one.grid) for one in found)
        raise SettingsError(f"the maps of {pair} have grids of {grids}; give two of one grid", field="adapter_pairs")
    return found[0], found[1]


@torch.inference_mode()
def maps_of(model: Segmenter, size: tuple[int, int]) -> list[Map]:
    """The maps of a model for images of ``size`` = (height, width), in the order of its forward pass."""
    named = {name: module for name, module in model.network.named_modules() if isinstance(module, BatchNorm)}
    runs: list[tuple[str, Grid]] = []

    def record(name: str, input_NCHW: Tensor) -> None:
        runs.append((name, (input_NCHW.shape[2], input_NCHW.shape[3])))

    training = model.training
    with on_inputs((module, partial(record, name)) for name, module in named.items()):
        model.eval()(torch.full((1, 3, *size), 0.5, device=model.device))
    model.train(training)
    calls = [name for name, _ in runs]
    once = [(name, grid) for name, grid in runs if calls.count(name) == 1 and grid != (1, 1)]
    coarsest = min((grid for _, grid in once), key=lambda grid: grid[0] * grid[1], default=(0, 0))
    turn = max((place for place, (_, grid) in enumerate(once) if grid == coarsest), default=0)
    return [
        Map(name, named[name], grid, "encoder" if place <= turn else "decoder")
        for place, (name, grid) in enumerate(once)
    ]
