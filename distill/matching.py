"""Matching modules of a student and its teacher: the same place, kind, shapes and settings (ours).

The settings of a module are its public attributes that are no tensors (``stride``, ``groups``, ``eps``), whatever kind
it is, and those of its parts without tensors (the padding that some convolutions do by themselves). So a module of the
user's own is compared like one of torch. What changes nothing in eval mode does not count.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate

from torch import Tensor, nn

Pair = tuple[nn.Module, nn.Module]
"""A module of the student and its counterpart in the teacher."""
OF_TRAINING = {"training", "inplace", "momentum", "process_group", "p", "drop_prob"}
"""Settings that change nothing in eval mode: those of BatchNorm's running statistics, dropout and activations."""
PLACEMENT = re.compile(r"stride|pad|dilat|(^|\.)eps$")
"""Settings that leave the meaning of the weights as it is: the positions that a kernel reads, and eps."""
KINDS: Mapping[type, type] = {nn.SyncBatchNorm: nn.BatchNorm2d}
"""Kinds that compute the same as another in eval mode."""


def matches(student: nn.Module, teacher: nn.Module) -> list[Pair]:
    """Pairs of modules with tensors of their own whose weights mean the same.

    Their places, kinds and shapes agree, and so do their settings except perhaps for :data:`PLACEMENT`.
    """
    theirs_by_name = dict(teacher.named_modules())
    own_by_name = dict(student.named_modules())
    shifts = {
        name: len(theirs) - len(own)
        for name, own in own_by_name.items()
        if isinstance(own, nn.ModuleList) and isinstance(theirs := theirs_by_name.get(name), nn.ModuleList)
    }
    pairs = []
    for name, own in own_by_name.items():
        counterpart = _counterpart(name, shifts)
        theirs = theirs_by_name.get(counterpart)
        if theirs is None or not tensors(own):
            continue
        alike = _shapes(own) == _shapes(theirs) and _kinds(name, own_by_name) == _kinds(counterpart, theirs_by_name)
        if alike and all(PLACEMENT.search(setting) for setting in differing_settings(own, theirs)):
            pairs.append((own, theirs))
    return pairs


def differing_settings(own: nn.Module, theirs: nn.Module) -> list[str]:
    """The settings in which two modules differ, as ``NAME`` or ``PART.NAME``, sorted."""
    mine, other = dict(_settings(own)), dict(_settings(theirs))
    missing = object()
    return sorted(name for name in mine | other if mine.get(name, missing) != other.get(name, missing))


def tensors(module: nn.Module) -> dict[str, Tensor]:
    """The tensors of the module itself, without those of its parts."""
    return dict([*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)])


def _counterpart(name: str, shifts: Mapping[str, int]) -> str:
    for listed, shift in shifts.items():
        if shift and (found := re.match(rf"{re.escape(listed)}\.(\d+)(?=\.|$)", name)):
            return f"{listed}.{int(found[1]) + shift}{name[found.end() :]}"
    return name


def _shapes(module: nn.Module) -> dict[str, Sequence[int]]:
    return {name: tensor.shape for name, tensor in tensors(module).items()}


def _kinds(name: str, modules: Mapping[str, nn.Module]) -> list[type]:
    """The kinds of a module and of all modules around it, without the network itself."""
    return [_kind(modules[path]) for path in accumulate(name.split("."), "{}.{}".format)]


def _kind(module: nn.Module) -> type:
    return KINDS.get(type(module), type(module))


def _settings(module: nn.Module) -> Iterator[tuple[str, object]]:
    """The settings of a module and of those of its parts that hold no tensors, by their paths."""
    for path, part in module.named_modules():
        if path and any(tensors(inner) for inner in part.modules()):
            continue
        prefix = f"{path}." if path else ""
        yield f"{prefix}kind", _kind(part)
        for name, value in vars(part).items():
            if name.startswith("_") or name in OF_TRAINING or (name == "dilation" and _reads_one_position(part)):
                continue
            yield f"{prefix}{name}", _comparable(value)


def _reads_one_position(module: nn.Module) -> bool:
    """Tell whether it is a 1x1 convolution, to which dilation means nothing; dilated ResNets give it to all."""
    return _comparable(getattr(module, "kernel_size", None)) in (1, (1,), (1, 1))


def _comparable(value: object) -> object:
    """A plain value as it is, lists as tuples, and of anything else the kind."""
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, Mapping):
        return {key: _comparable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return tuple(_comparable(item) for item in value)
    return type(value)
