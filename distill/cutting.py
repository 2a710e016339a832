"""A student cut out of its teacher: the same network with a share of its channels (ours).

Channels that must go or stay together form a *set*: those of a convolution, its BatchNorm and all that reads them, and
through residual additions those of a whole stage. torch-pruning's dependency graph finds the sets (DepGraph, Fang et
al., CVPR 2023, arXiv 2301.12900). Of each set of C channels,

    max(8, 8 round(width C / 8))

stay, at most all. They are those of the largest importance. The importance of a channel is its |gamma| in a BatchNorm
layer over the layer's mean, averaged over the BatchNorm layers of the set (the criterion of Network Slimming, Liu et
al., ICCV 2017, arXiv 1708.06519). In a set without BatchNorm it is likewise made of the norms of the filters.

A set keeps all its channels if they are the classes' logits, or if something has them whose channels cannot be taken
apart (grouped convolutions, GroupNorm, modules of the user's own with tensors).

Shapes: C channels of a set.
"""

import copy
import re
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from distill.matching import tensors
from pipeline.models.narrowing import Kept, Side, layout_of, narrow, width_of
from pipeline.models.segmenter import Segmenter, as_logits
from storage.errors import ModelError, SettingsError

MULTIPLE = 8
"""Sets keep multiples of this many channels, for which processors have fast kernels, and at least as many."""
CLOSE = 1e-3
"""Largest difference of two computations of the same logits, as a share of the largest logit."""


ATTENTION = ("Bmm", "ScaledDot")
"""Operations between maps of features, as autograd names them."""


class Member(NamedTuple):
    """A side of a module that has channels of a set."""

    name: str
    module: nn.Module
    side: Side
    channels: Sequence[int]
    """The channels of the module."""
    places: Sequence[int]
    """Their places in the set."""


def asked_width(student: str) -> float | None:
    """The width in ``teacher:WIDTH``; None if the student is something else.

    Raises:
        SettingsError: the width is not above 0 and below 1.
    """
    family, _, text = student.partition(":")
    if family != "teacher" or text.isidentifier():  # an identifier is a factory in a module of this name
        return None
    width = float(text) if re.fullmatch(r"\d*\.?\d+|\d+\.", text) else 0.0
    if not 0 < width <= 1:
        raise SettingsError(
            f"student is {student!r}; give a width above 0 and below 1, for example teacher:0.5", field="student"
        )
    if width == 1:
        raise SettingsError(
            f"student is {student!r}, which equals the teacher and has nothing to learn; give a smaller width, for "
            "example teacher:0.5",
            field="student",
        )
    return width


def cut_channels(teacher: Segmenter, width: float) -> Kept:
    """The channels of a teacher's network that a student of this width keeps.

    Raises:
        ModelError: the network cannot be traced, its channels depend on each other in a way that is not understood, or
            no set of channels becomes smaller.
    """
    kept: dict[str, dict[Side, Sequence[int]]] = {}
    for members in channel_sets(teacher):
        importance_C = importance(members)
        stay = _largest(importance_C, kept_count(len(importance_C), width))
        for member in members:
            gone = {channel for channel, place in zip(member.channels, member.places, strict=True) if place not in stay}
            if gone:
                sides = kept.setdefault(member.name, {})
                before = sides.get(member.side, range(width_of(member.module, member.side)))
                sides[member.side] = [channel for channel in before if channel not in gone]
    if not kept:
        raise ModelError(
            f"{teacher.spec.builder} loses no channels at a width of {width:g}, because layers keep multiples of "
            f"{MULTIPLE}; give a smaller width"
        )
    _check(teacher, kept)
    return kept


def kept_count(channels: int, width: float) -> int:
    """The number of channels that a set keeps."""
    return min(channels, max(MULTIPLE, MULTIPLE * int(channels * width / MULTIPLE + 0.5)))


def channel_sets(teacher: Segmenter) -> Iterator[list[Member]]:
    """The sets of channels that can be cut, each by the modules that have them.

    Raises:
        ModelError: the network cannot be traced.
    """
    network = copy.deepcopy(teacher.network).eval().requires_grad_(True)
    names = {module: name for name, module in network.named_modules() if tensors(module)}
    graph = _traced(teacher, network)
    for group in graph.get_all_groups(root_module_types=(nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
        members = []
        for item in group.items:
            module = item.dep.target.module
            if isinstance(module, nn.Parameter):
                break  # of a module of the user's own
            if module not in names:
                continue  # an operation such as a concatenation
            layout = layout_of(module)
            if layout is None:
                break
            side: Side = "out" if layout.alone or graph.is_out_channel_pruning_fn(item.dep.handler) else "in"
            if max(item.idxs) >= width_of(module, side):  # the library took positions for channels, as in attention
                raise not_understood(teacher)
            members.append(Member(names[module], module, side, item.idxs, item.root_idxs))
        else:
            if any(member.side == "in" for member in members):  # else they are logits
                yield members


def _traced(teacher: Segmenter, network: nn.Module) -> Any:
    """The dependency graph of torch-pruning, which does not end for some networks with attention."""
    import torch_pruning

    try:
        with warnings.catch_warnings(), torch.enable_grad():
            warnings.simplefilter("ignore")
            logits_of = partial(as_logits, choice=teacher.spec.output)
            if any(name.startswith(ATTENTION) for name in _operations(logits_of(network(_noise(teacher))))):
                raise not_understood(teacher)
            return torch_pruning.DependencyGraph().build_dependency(
                network, [_noise(teacher)], output_transform=logits_of, verbose=False
            )
    except ModelError:
        raise
    except Exception as error:  # the library may raise anything for a network of an unknown kind
        raise ModelError(
            f"{teacher.spec.builder} cannot be cut ({' '.join(str(error).split())[:200]}); give another --student"
        ) from error


def _operations(output: Tensor) -> set[str]:
    """The names of the operations that a tensor was computed by, as autograd knows them."""
    seen, left = set(), [output.grad_fn]
    while left:
        step = left.pop()
        if step is not None and step not in seen:
            seen.add(step)
            left += [before for before, _ in step.next_functions]
    return {step.name() for step in seen}


def importance(members: Sequence[Member]) -> Tensor:
    """The importance of each channel of a set, [C]: above 1 is more than a layer's mean."""
    count = 1 + max(place for member in members for place in member.places)
    sizes = [(member, _sizes(member, nn.modules.batchnorm._BatchNorm)) for member in members]
    if not any(size is not None for _, size in sizes):
        sizes = [(member, _sizes(member, nn.Module)) for member in members]
    total_C, layers_C = torch.zeros(count, dtype=torch.float64), torch.zeros(count, dtype=torch.float64)
    for member, size in sizes:
        if size is None:
            continue
        places = torch.tensor(member.places)
        found = size[torch.tensor(member.channels)]
        total_C.index_add_(0, places, found / found.mean().clamp_min(1e-12))
        layers_C.index_add_(0, places, torch.ones_like(found))
    return total_C / layers_C.clamp_min(1)


def _sizes(member: Member, kind: type[nn.Module]) -> Tensor | None:
    """The norms of the weights of a module's output channels: of a BatchNorm layer, |gamma|."""
    weight = member.module.weight
    if member.side != "out" or not isinstance(member.module, kind) or not isinstance(weight, Tensor):
        return None
    if isinstance(member.module, nn.ConvTranspose2d) and member.module.groups == 1:
        weight = weight.transpose(0, 1)
    filters: Tensor = weight.detach().double().cpu().reshape(len(weight), -1)
    return filters.square().sum(dim=1).sqrt()


def _largest(importance_C: Tensor, count: int) -> set[int]:
    """The places of the largest values; of equal ones the first."""
    return set(importance_C.argsort(descending=True, stable=True)[:count].tolist())


def _noise(teacher: Segmenter) -> Tensor:
    image = torch.rand(1, 3, *teacher.spec.image_size, generator=torch.Generator().manual_seed(0))
    return teacher.normalise(image.to(teacher.device))


def _check(teacher: Segmenter, kept: Kept) -> None:
    """Check that a cut network computes what the whole one does if nothing reads the channels that are gone.

    Raises:
        ModelError: it does not, because channels depend on each other in another way than by layers of channels.
    """
    whole = copy.deepcopy(teacher.network).eval()
    cut = copy.deepcopy(whole)
    for name, sides in kept.items():
        if "in" in sides:
            module = whole.get_submodule(name)
            gone = sorted(set(range(width_of(module, "in"))) - set(sides["in"]))
            dimension = 0 if isinstance(module, nn.ConvTranspose2d) else 1
            module.weight.data.index_fill_(dimension, torch.tensor(gone, device=teacher.device), 0.0)  # type: ignore[operator]
    narrow(cut, kept)
    image = _noise(teacher)
    try:
        with torch.inference_mode():
            wanted, found = (as_logits(one(image), teacher.spec.output).float() for one in (whole, cut))
        same = wanted.shape == found.shape and (wanted - found).abs().max() <= CLOSE * wanted.abs().max()
    except RuntimeError:
        same = False
    if not same:
        raise not_understood(teacher)


def not_understood(teacher: Segmenter) -> ModelError:
    """The error for a network whose channels depend on each other in another way than by layers of channels."""
    return ModelError(
        f"{teacher.spec.builder} cannot be cut: its channels depend on each other in a way that is not understood; "
        "give another --student"
    )
