"""What a student takes over from its teacher, where the two are built alike (ours).

A module of the student inherits from the teacher's module of the same name if all their tensors have the same shapes;
where the two have lists of modules of different lengths (the blocks of a U-Net's decoder), the lists are matched from
their ends, because decoders end alike. Of the inherited modules,

- those that see exactly what their counterpart sees (the first stages of a shared encoder) stay fixed: they compute
  what the teacher's compute, and training on other images than the teacher's could only spoil that;
- BatchNorm layers further on keep the teacher's running statistics, which are those of the private images, instead of
  learning those of the selected ones. What makes them fit is :func:`feature_distance`.

Shapes: N images, C channels, H x W positions.
"""

import dataclasses
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from pipeline.models import Segmenter
from pipeline.statistics import BatchNorm, on_inputs
from storage.errors import ModelError

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class Inheritance:
    """What a student has from its teacher."""

    resting: tuple[nn.Module, ...] = ()
    """The student's modules that stay in eval mode while it trains."""
    compared: tuple[tuple[BatchNorm, BatchNorm], ...] = ()
    """BatchNorm layers, the student's and the teacher's, whose inputs are to agree."""


def inherit(student: Segmenter, teacher: Segmenter) -> Inheritance:
    """Copy the teacher's modules into the student's, fix what sees the same; both on the CPU or on one device.

    Raises:
        ModelError: the student is the teacher over again, so that nothing is left to learn.
    """
    pairs = _matches(student.network, teacher.network)
    for own, theirs in pairs:
        own.load_state_dict(theirs.state_dict())
    seen = _inputs(student, [own for own, _ in pairs])
    wanted = _inputs(teacher, [theirs for _, theirs in pairs])
    fixed = [own for own, theirs in pairs if _equal(seen.get(own), wanted.get(theirs))]
    for module in fixed:
        module.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in student.parameters()):
        raise ModelError(
            f"the student ({student.spec.builder}) is the teacher over again and has nothing to learn; give a smaller "
            "--student, or --no-inherit to train one of the same kind from scratch"
        )
    compared = [
        (own, theirs)
        for own, theirs in pairs
        if own not in fixed and isinstance(own, BatchNorm) and isinstance(theirs, BatchNorm)
        if own in seen and theirs in wanted and seen[own].shape == wanted[theirs].shape
    ]
    logger.info("%d of the student's modules begin as the teacher's, %d of them stay so", len(pairs), len(fixed))
    return Inheritance(resting=(*fixed, *(own for own, _ in compared)), compared=tuple(compared))


def _matches(student: nn.Module, teacher: nn.Module) -> list[tuple[nn.Module, nn.Module]]:
    """Modules with tensors of their own that have the same kind, place and shapes."""
    theirs_by_name = dict(teacher.named_modules())
    shifts = {
        name: len(theirs) - len(own)
        for name, own in student.named_modules()
        if isinstance(own, nn.ModuleList) and isinstance(theirs := theirs_by_name.get(name), nn.ModuleList)
    }
    pairs = []
    for name, own in student.named_modules():
        theirs = theirs_by_name.get(_counterpart(name, shifts))
        if theirs is not None and type(own) is type(theirs) and (shapes := _shapes(own)) and shapes == _shapes(theirs):
            pairs.append((own, theirs))
    return pairs


def _counterpart(name: str, shifts: Mapping[str, int]) -> str:
    for listed, shift in shifts.items():
        if shift and (found := re.match(rf"{re.escape(listed)}\.(\d+)(?=\.|$)", name)):
            return f"{listed}.{int(found[1]) + shift}{name[found.end() :]}"
    return name


def _shapes(module: nn.Module) -> dict[str, torch.Size]:
    """Of the tensors that are the module's own; none where its parts hold them."""
    own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    return {name: tensor.shape for name, tensor in own} if len(list(module.children())) == 0 else {}


def _inputs(model: Segmenter, modules: Sequence[nn.Module]) -> dict[nn.Module, Tensor]:
    """What modules see of one noisy image."""
    height, width = model.spec.image_size
    image = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0)).to(model.mean_3HW.device)
    training = model.training
    with recorded(modules) as found, torch.inference_mode():
        model.eval()(image)
    model.train(training)
    return found


def _equal(one: Tensor | None, other: Tensor | None) -> bool:
    return one is not None and other is not None and one.shape == other.shape and torch.allclose(one, other)


@contextmanager
def recorded(modules: Sequence[nn.Module]) -> Iterator[dict[nn.Module, Tensor]]:
    """Collect what modules see during a forward pass inside the block."""
    found: dict[nn.Module, Tensor] = {}
    with on_inputs((module, partial(found.__setitem__, module)) for module in modules):
        yield found


def feature_distance(
    student: Mapping[nn.Module, Tensor],
    teacher: Mapping[nn.Module, Tensor],
    pairs: Sequence[tuple[BatchNorm, BatchNorm]],
) -> Tensor:
    """Mean over layers l, channels and positions of (a_l - b_l)^2 / (var^_l + eps), image by image, [N]: how far what
    the student's BatchNorm layers see (a) is from what the teacher's see (b), in the teacher's standard deviations.
    """
    return torch.stack([_squares(student[own], teacher[theirs], theirs) for own, theirs in pairs]).mean(dim=0)


def _squares(own_NCHW: Tensor, theirs_NCHW: Tensor, layer: BatchNorm) -> Tensor:
    assert layer.running_var is not None  # inherited with the rest
    scale_C = (layer.running_var + layer.eps).rsqrt()
    difference = (own_NCHW.float() - theirs_NCHW.float()) * scale_C.view(1, -1, 1, 1)
    return difference.square().mean(dim=(1, 2, 3))
