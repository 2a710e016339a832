"""Inheritance: a student with the teacher's architecture is initialised from matching modules of the teacher (ours).

A module of the student inherits from the teacher's module of the same name if their tensors have the same shapes, if
they and all modules around them are of the same kind, and if their weights mean the same (:mod:`distill.matching`).
Lists of modules may differ in length (the blocks of a U-Net's decoder). They are matched from their ends, because
decoders end alike. A BatchNorm layer inherits only together with the module that feeds it, because statistics of other
channels mean nothing. The normalisation of the input is inherited together with the modules that read it. Of the
inherited modules,

- those with exactly the inputs and outputs of their counterpart (the first stages of a shared encoder) are frozen.
  They compute what the teacher's modules compute, and training on other images could only make that worse;
- later BatchNorm layers keep the teacher's running statistics, which are those of the private images, instead of
  learning those of the selected images. :func:`feature_distance` trains their inputs to fit these statistics;
- those that differ from their counterpart in stride, padding, dilation or eps are initialised from it and no more. The
  kernels are a fair beginning on another grid, as dilated networks begin with those of strided ones. The features on
  such a grid need not be the teacher's.

A student that was cut out of the teacher (:mod:`distill.cutting`) inherits likewise from the teacher reduced to the
student's channels. What it computes is compared with the kept channels of what the whole teacher computes. So only what
reads the image alone can be frozen, and the statistics that BatchNorm layers keep are those of the whole teacher.

Shapes: N images, C channels, H x W positions.
"""

import copy as copying
import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn

from distill.matching import Pair, differing_settings, matches, tensors
from pipeline.batchnorm.layers import BatchNorm, dead_channels
from pipeline.models.hooks import on_inputs
from pipeline.models.narrowing import kept_of, narrow, relative
from pipeline.models.segmenter import Segmenter
from storage.errors import ModelError


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Inherited:
    """How much of a student comes from its teacher. Modules are those with tensors of their own."""

    modules: int = 0
    """Modules that were initialised from the teacher. Of a continued student, those that are frozen or compared."""
    all_modules: int = 0
    weights: int = 0
    """Numbers in the parameters of the inherited modules."""
    all_weights: int = 0
    frozen: int = 0
    """Modules that are not trained, because they compute what the teacher's modules compute."""
    compared: int = 0
    """BatchNorm layers that keep the teacher's running statistics. The feature loss compares their inputs."""

    @classmethod
    def of(cls, student: Segmenter, shared: Sequence[nn.Module] = (), *, frozen: int = 0, compared: int = 0) -> Self:
        """Count all modules of a student, and those that it shares with its teacher."""
        everything = [module for module in student.network.modules() if tensors(module)]
        return cls(
            modules=len(shared),
            all_modules=len(everything),
            weights=_weights(shared),
            all_weights=_weights(everything),
            frozen=frozen,
            compared=compared,
        )

    def __str__(self) -> str:
        """What follows the words "the student" in a line for the user."""
        if not self.modules:
            return "inherits nothing from the teacher"
        return (
            f"inherits {self.modules} of its {self.all_modules} modules ({self.weights:,} of {self.all_weights:,} "
            f"weights) from the teacher: {self.frozen} frozen, {self.compared} compared by their features"
        )


def _weights(modules: Sequence[nn.Module]) -> int:
    shared_once = {parameter for module in modules for parameter in module.parameters(recurse=False)}
    return sum(parameter.numel() for parameter in shared_once)


@dataclasses.dataclass(frozen=True, slots=True)
class Inheritance:
    """The parts of a student that it has from its teacher."""

    frozen: tuple[nn.Module, ...] = ()
    """Modules of the student that stay in eval mode during training."""
    compared: tuple[tuple[BatchNorm, BatchNorm], ...] = ()
    """BatchNorm layers of student and teacher whose inputs the feature loss compares."""
    channels: Mapping[BatchNorm, Tensor] = dataclasses.field(default_factory=dict)
    """Of a cut student: the channels of the teacher's compared layers that the student's have."""
    counts: Inherited = Inherited()


def inherit(student: Segmenter, teacher: Segmenter, *, copy: bool = True) -> Inheritance:
    """Copy matching modules of the teacher to the student, and freeze those that compute the same.

    Both networks must be on one device. If a copied module reads the image as the teacher's does, the student gets the
    teacher's normalisation, else it keeps its own. Without ``copy`` the weights and the normalisation of the student
    stay, and only modules that it still shares count. That is for a student that was distilled before.

    Raises:
        ModelError: the student equals the teacher, so that nothing is left to learn.
    """
    reference = Reference.of(teacher, student)
    own_pass, their_pass = Pass.of(student, teacher.spec.image_size), reference.passed
    pairs = matches(student.network, reference.network)
    feeders = {(own, theirs): (own_pass.before(own), their_pass.before(theirs)) for own, theirs in pairs}
    pairs = [pair for pair in pairs if not isinstance(pair[0], BatchNorm) or feeders[pair] in pairs]
    if copy:
        own_pass = _initialise(student, teacher, pairs, their_pass)
    equal = [pair for pair in pairs if not differing_settings(*pair)]
    fixed = [own for own, theirs in equal if own_pass.agrees(own, their_pass, theirs)]
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
        for own, theirs in equal
        if own not in fixed and isinstance(own, BatchNorm) and isinstance(theirs, BatchNorm)
        if feeders[own, theirs] in equal
        if own_pass.ran_once(own) and their_pass.ran_once(theirs)
        if own_pass.inputs[own].shape == their_pass.inputs[theirs].shape and _same_statistics(own, theirs)
    ]
    kept = [own for own, _ in compared]
    shared = [own for own, _ in pairs] if copy else [*fixed, *kept]
    return Inheritance(
        frozen=(*_with_wholes(student.network, fixed), *kept),
        compared=tuple((own, reference.whole(theirs)) for own, theirs in compared),
        channels=reference.channels(theirs for _, theirs in compared),
        counts=Inherited.of(student, shared, frozen=len(fixed), compared=len(compared)),
    )


def _initialise(student: Segmenter, teacher: Segmenter, pairs: Sequence[Pair], their_pass: "Pass") -> "Pass":
    """Copy the teacher's modules, and its normalisation if one of them reads the image; return the student's pass."""
    for own, theirs in pairs:
        _copy(own, theirs)
    size, own_input, their_input = teacher.spec.image_size, student.spec.input, teacher.spec.input
    if (own_input["channels"] == "grey") == (their_input["channels"] == "grey"):
        student.describe(**their_input)
        own_pass = Pass.of(student, size)
        if any(own_pass.same_input(own, their_pass, theirs) for own, theirs in pairs):
            return own_pass
        student.describe(**own_input)
    return Pass.of(student, size)


def _with_wholes(network: nn.Module, fixed: Sequence[nn.Module]) -> list[nn.Module]:
    """The frozen modules, and those that consist of frozen ones alone: a block may drop parts of itself in training."""
    wholes = []
    for module in network.modules():
        parts = [part for part in module.modules() if tensors(part)]
        if parts and all(part in fixed for part in parts):
            wholes.append(module)
    return wholes


def _copy(own: nn.Module, theirs: nn.Module) -> None:
    source = tensors(theirs)
    with torch.no_grad():
        for name, tensor in tensors(own).items():
            tensor.copy_(source[name])


def _same_statistics(own: BatchNorm, theirs: BatchNorm) -> bool:
    """Whether both have the same running statistics, of something that varied at all."""
    if theirs.running_var is None or not theirs.running_var.any():
        return False
    return all(
        isinstance(a, Tensor) and isinstance(b, Tensor) and torch.equal(a, b)
        for a, b in ((own.running_mean, theirs.running_mean), (own.running_var, theirs.running_var))
    )


@dataclasses.dataclass(frozen=True, slots=True)
class Reference:
    """The teacher as a student inherits from it: for a cut student, with the student's channels alone."""

    network: nn.Module
    passed: "Pass"
    """What the modules of the whole teacher computed, by the modules of ``network``; of it, the kept channels."""
    wholes: Mapping[nn.Module, nn.Module]
    """The modules of the whole teacher, by those of ``network``."""
    kept: Mapping[nn.Module, Sequence[int]]
    """The output channels that modules of ``network`` keep, where these are not all."""

    @classmethod
    def of(cls, teacher: Segmenter, student: Segmenter) -> Self:
        """Make the reference. A student that was not cut out of a network like the teacher sees the whole teacher."""
        own, theirs = student.spec, teacher.spec
        alike = (own.builder, own.arguments) == (theirs.builder, theirs.arguments)
        kept = relative(own.kept, theirs.kept) if alike else None
        passed = Pass.of(teacher, theirs.image_size)
        if not kept:
            modules = {module: module for module in teacher.network.modules()}
            return cls(teacher.network, passed, modules, {})
        network = copying.deepcopy(teacher.network)
        narrow(network, kept)
        part_of = dict(zip(teacher.network.modules(), network.modules(), strict=True))
        sides = {teacher.network.get_submodule(name): entry for name, entry in kept.items()}
        reduced = Pass(
            [part_of[module] for module in passed.order],
            {part_of[one]: kept_of(seen, one, sides.get(one, {}), "in") for one, seen in passed.inputs.items()},
            {part_of[one]: kept_of(seen, one, sides.get(one, {}), "out") for one, seen in passed.outputs.items()},
        )
        outputs = {part_of[module]: entry["out"] for module, entry in sides.items() if "out" in entry}
        return cls(network, reduced, {part: whole for whole, part in part_of.items()}, outputs)

    def whole(self, layer: BatchNorm) -> BatchNorm:
        """The layer of the whole teacher that a layer of the network is made of."""
        whole = self.wholes[layer]
        assert isinstance(whole, BatchNorm)
        return whole

    def channels(self, layers: Iterable[BatchNorm]) -> dict[BatchNorm, Tensor]:
        """The kept channels of those of some layers that do not keep all, by the layers of the whole teacher."""
        cut = [layer for layer in layers if layer in self.kept]
        return {
            self.whole(layer): torch.tensor(self.kept[layer]).to(self.passed.outputs[layer].device) for layer in cut
        }


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
        modules = [module for module in model.network.modules() if tensors(module)]
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

    def same_input(self, own: nn.Module, other: "Pass", theirs: nn.Module) -> bool:
        """Whether a module and its counterpart in another pass had the same input."""
        return _close(self.inputs.get(own), other.inputs.get(theirs))

    def agrees(self, own: nn.Module, other: "Pass", theirs: nn.Module) -> bool:
        """Whether a module and its counterpart in another pass had the same input and output."""
        return (
            self.ran_once(own)
            and other.ran_once(theirs)
            and self.same_input(own, other, theirs)
            and _close(self.outputs.get(own), other.outputs.get(theirs))
        )


def _close(one: Tensor | None, other: Tensor | None) -> bool:
    """Whether two maps are the same but for rounding, which is not that of a layer with more channels."""
    if one is None or other is None or one.shape != other.shape:
        return False
    return torch.allclose(one, other, atol=1e-5 * float(other.abs().max()))


@contextmanager
def recorded(modules: Iterable[nn.Module]) -> Iterator[dict[nn.Module, Tensor]]:
    """Collect the inputs of modules during a forward pass inside the block."""
    found: dict[nn.Module, Tensor] = {}
    with on_inputs((module, partial(found.__setitem__, module)) for module in modules):
        yield found


def standardised(input_NCHW: Tensor, layer: BatchNorm, channels: Tensor | None = None) -> Tensor:
    """The input of a BatchNorm layer in its running standard deviations from its running mean, [N, C, H, W].

    The deviations are those of :func:`live_variance`. If ``channels`` are given, the input has these of the layer's.
    """
    assert layer.running_mean is not None  # the layer is a teacher's, or inherited
    mean_C, scale_C = layer.running_mean.float(), (live_variance(layer) + layer.eps).rsqrt()
    if channels is not None:
        mean_C, scale_C = mean_C[channels], scale_C[channels]
    return (input_NCHW.float() - mean_C.view(1, -1, 1, 1)) * scale_C.view(1, -1, 1, 1)


def feature_distance(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """The feature loss F_i of each image, [N]: mean of (a_l - b_l)^2 over layers, channels and positions (ours).

    a_l and b_l are the inputs [N, C, H, W] of BatchNorm layer l in the student and in the teacher, both in the
    teacher's standard deviations (:func:`standardised`).
    """
    squares = [(own - theirs).square().mean(dim=(1, 2, 3)) for own, theirs in zip(student, teacher, strict=True)]
    return torch.stack(squares).mean(dim=0)


def live_variance(layer: BatchNorm) -> Tensor:
    """The running variance of each channel, [C]; of a dead channel the layer's mean (ours).

    Divided by a variance near 0, a dead channel's difference would be larger than that of all others together. A layer
    whose channels are all without variance has no scale. Its variances are infinite, so that it adds nothing.
    """
    assert layer.running_var is not None  # inherited with the other tensors
    variance_C = layer.running_var.float()
    mean = variance_C.mean()
    living_C = torch.where(dead_channels(layer), mean, variance_C)
    return torch.where(mean > 0, living_C, torch.inf)
