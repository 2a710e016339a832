"""Inheritance: a student with the teacher's architecture is initialised from matching modules of the teacher (ours).

A module of the student inherits from the teacher's module of the same name if their tensors have the same shapes, and
if they and all modules around them are of the same kind. Lists of modules may differ in length (the blocks of a U-Net's
decoder). They are matched from their ends, because decoders end alike. A BatchNorm layer inherits only together with
the module that feeds it, because statistics of other channels mean nothing. Of the inherited modules,

- those with exactly the inputs and outputs of their counterpart (the first stages of a shared encoder) are frozen.
  They compute what the teacher's modules compute, and training on other images could only make that worse;
- later BatchNorm layers keep the teacher's running statistics, which are those of the private images, instead of
  learning those of the selected images. :func:`feature_distance` trains their inputs to fit these statistics.

Shapes: N images, C channels, H x W positions.
"""

import dataclasses
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.batchnorm.layers import BatchNorm
from pipeline.models.hooks import on_inputs
from pipeline.models.segmenter import Segmenter
from storage.errors import ModelError

logger = logging.getLogger(__name__)
Pair = tuple[nn.Module, nn.Module]
"""A module of the student and its counterpart in the teacher."""


@dataclasses.dataclass(frozen=True, slots=True)
class Inheritance:
    """The parts of a student that it has from its teacher."""

    frozen: tuple[nn.Module, ...] = ()
    """Modules of the student that stay in eval mode during training."""
    compared: tuple[tuple[BatchNorm, BatchNorm], ...] = ()
    """BatchNorm layers of student and teacher whose inputs the feature loss compares."""


def inherit(student: Segmenter, teacher: Segmenter, *, copy: bool = True) -> Inheritance:
    """Copy matching modules of the teacher to the student, and freeze those that compute the same.

    Both networks must be on one device. Without ``copy`` the weights of the student stay, and only modules that it
    still shares count. That is for a student that was distilled before.

    Raises:
        ModelError: the student equals the teacher, so that nothing is left to learn.
    """
    pairs = _matches(student.network, teacher.network)
    size = teacher.spec.image_size
    own_pass, their_pass = Pass.of(student, size), Pass.of(teacher, size)
    pairs = [
        (own, theirs)
        for own, theirs in pairs
        if not isinstance(own, BatchNorm) or (own_pass.before(own), their_pass.before(theirs)) in pairs
    ]
    if copy:
        for own, theirs in pairs:
            _copy(own, theirs)
        own_pass = Pass.of(student, size)
    fixed = [own for own, theirs in pairs if own_pass.agrees(own, their_pass, theirs)]
    for module in fixed:
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for module in own_pass.order for parameter in module.parameters(recurse=False)):
        raise ModelError(
            f"the student ({student.spec.builder}) equals the teacher and has nothing to learn; give a smaller "
            "--student, or --no-inherit to train one of the same kind from scratch"
        )
    compared = [
        (own, theirs)
        for own, theirs in pairs
        if own not in fixed and isinstance(own, BatchNorm) and isinstance(theirs, BatchNorm)
        if own_pass.ran_once(own) and their_pass.ran_once(theirs)
        if own_pass.inputs[own].shape == their_pass.inputs[theirs].shape and _same_statistics(own, theirs)
    ]
    logger.info("%d of the student's modules are initialised from the teacher, %d are frozen", len(pairs), len(fixed))
    frozen = [*_with_wholes(student.network, fixed), *(own for own, _ in compared)]
    return Inheritance(frozen=tuple(frozen), compared=tuple(compared))


def _with_wholes(network: nn.Module, fixed: Sequence[nn.Module]) -> list[nn.Module]:
    """The frozen modules, and those that consist of frozen ones alone: a block may drop parts of itself in training."""
    wholes = []
    for module in network.modules():
        parts = [part for part in module.modules() if _tensors(part)]
        if parts and all(part in fixed for part in parts):
            wholes.append(module)
    return wholes


def _matches(student: nn.Module, teacher: nn.Module) -> list[Pair]:
    """Pairs of modules with tensors of their own whose places, kinds and shapes match."""
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
        if theirs is None or not (tensors := _tensors(own)):
            continue
        shapes = {key: tensor.shape for key, tensor in tensors.items()}
        if shapes == {key: tensor.shape for key, tensor in _tensors(theirs).items()} and _kinds(
            name, own_by_name
        ) == _kinds(counterpart, theirs_by_name):
            pairs.append((own, theirs))
    return pairs


def _counterpart(name: str, shifts: Mapping[str, int]) -> str:
    for listed, shift in shifts.items():
        if shift and (found := re.match(rf"{re.escape(listed)}\.(\d+)(?=\.|$)", name)):
            return f"{listed}.{int(found[1]) + shift}{name[found.end() :]}"
    return name


def _kinds(name: str, modules: Mapping[str, nn.Module]) -> list[type]:
    """The types of a module and of all modules around it, without the network itself."""
    return [type(modules[path]) for path in accumulate(name.split("."), "{}.{}".format)]


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """The tensors of the module itself, without those of its parts."""
    return dict([*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)])


def _copy(own: nn.Module, theirs: nn.Module) -> None:
    source = _tensors(theirs)
    with torch.no_grad():
        for name, tensor in _tensors(own).items():
            tensor.copy_(source[name])


def _same_statistics(own: BatchNorm, theirs: BatchNorm) -> bool:
    return all(
        isinstance(a, Tensor) and isinstance(b, Tensor) and torch.equal(a, b)
        for a, b in ((own.running_mean, theirs.running_mean), (own.running_var, theirs.running_var))
    )


@dataclasses.dataclass(frozen=True, slots=True)
class Pass:
    """The inputs and outputs of every module with tensors, for one image of noise."""

    order: list[nn.Module]
    """The modules in the order in which they ran; one that ran twice occurs twice."""
    inputs: dict[nn.Module, Tensor]
    outputs: dict[nn.Module, Tensor]

    @classmethod
    def of(cls, model: Segmenter, size: tuple[int, int]) -> "Pass":
        """Run an image of ``size`` = (height, width) through a model."""
        found = cls([], {}, {})
        height, width = size
        image = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0)).to(model.device)
        modules = [module for module in model.network.modules() if _tensors(module)]
        training = model.training
        with ExitStack() as hooks, torch.inference_mode():
            for module in modules:
                hooks.callback(module.register_forward_hook(found._record, with_kwargs=True).remove)
            model.eval()(image)
        model.train(training)
        return found

    def _record(self, module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        self.order.append(module)
        for kept, value in ((self.inputs, next(iter([*inputs, *named.values()]), None)), (self.outputs, output)):
            if isinstance(value, Tensor):
                kept[module] = value

    def ran_once(self, module: nn.Module) -> bool:
        """Whether the module ran exactly once."""
        return self.order.count(module) == 1

    def before(self, module: nn.Module) -> nn.Module | None:
        """The module that ran before it, or None."""
        place = self.order.index(module) if module in self.order else 0
        return self.order[place - 1] if place else None

    def agrees(self, own: nn.Module, other: "Pass", theirs: nn.Module) -> bool:
        """Whether a module and its counterpart in another pass had the same input and output."""
        return (
            self.ran_once(own)
            and other.ran_once(theirs)
            and _close(self.inputs.get(own), other.inputs.get(theirs))
            and _close(self.outputs.get(own), other.outputs.get(theirs))
        )


def _close(one: Tensor | None, other: Tensor | None) -> bool:
    return one is not None and other is not None and one.shape == other.shape and torch.allclose(one, other)


@contextmanager
def recorded(modules: Iterable[nn.Module]) -> Iterator[dict[nn.Module, Tensor]]:
    """Collect the inputs of modules during a forward pass inside the block."""
    found: dict[nn.Module, Tensor] = {}
    with on_inputs((module, partial(found.__setitem__, module)) for module in modules):
        yield found


def standardised(input_NCHW: Tensor, layer: BatchNorm) -> Tensor:
    """The input of a BatchNorm layer in its running standard deviations from its running mean, [N, C, H, W]."""
    assert layer.running_mean is not None  # the layer is one of a teacher, or inherited
    assert layer.running_var is not None
    scale_C = (layer.running_var + layer.eps).rsqrt()
    return (input_NCHW.float() - layer.running_mean.view(1, -1, 1, 1)) * scale_C.view(1, -1, 1, 1)


def feature_distance(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """The feature loss F_i of each image, [N]: mean of (a_l - b_l)^2 over layers, channels and positions (ours).

    a_l and b_l are the inputs [N, C, H, W] of BatchNorm layer l in the student and in the teacher, both in the running
    standard deviations of the teacher's layer (:func:`standardised`).
    """
    squares = [(own - theirs).square().mean(dim=(1, 2, 3)) for own, theirs in zip(student, teacher, strict=True)]
    return torch.stack(squares).mean(dim=0)
