"""The weights that a student cut out of its teacher begins with: fitted to the teacher's features (ours).

A convolution that reads fewer channels than the teacher's no longer has its outputs, and the error grows from layer to
layer. So one forward pass over some images replaces the weights of each convolution before a compared BatchNorm layer,
in the order in which they run, by the solution of

    min_W ||X W - Y||^2 + lambda ||W - W_0||^2,    lambda = 0.1 ||X||^2 / F

X holds what the student's convolution reads at some positions, Y what the teacher's one gives there in the kept
channels, and W_0 the teacher's weights of these. This is the reconstruction of channel pruning (He et al., ICCV 2017,
arXiv 1707.06168), with the teacher's weights as prior.

Shapes: N images, R rows (positions of images), F numbers that an output is computed from, K kept channels.
"""

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distill.inheritance import Inheritance, Pass
from pipeline.batchnorm.layers import BatchNorm
from pipeline.models.hooks import on_inputs
from pipeline.models.segmenter import Segmenter

IMAGES = 32
"""Images that the weights are fitted to, as far as they are small."""
PIXELS = 1 << 22
"""Pixels of all images: they are in memory at once, with all that the networks make of them."""
ROWS = 4096
"""Positions of all images."""
RIDGE = 0.1
"""How much the teacher's weights count, as a share of the mean square of what is read."""


@torch.no_grad()
def reconstruct(student: Segmenter, teacher: Segmenter, inheritance: Inheritance, images_N3HW: Tensor) -> int:
    """Fit the student's convolutions to the teacher's features; return how many were fitted."""
    passed = Pass.of(student, teacher.spec.image_size)
    fitted: list[tuple[nn.Conv2d, BatchNorm]] = []
    for own, theirs in inheritance.compared:
        feeder = passed.before(own)
        if theirs not in inheritance.channels or type(feeder) is not nn.Conv2d or not passed.ran_once(feeder):
            continue
        if _plain(feeder) and passed.outputs[feeder] is passed.inputs[own]:  # nothing is added to it or joined with it
            fitted.append((feeder, theirs))
    wanted: dict[BatchNorm, Tensor] = {}
    with on_inputs((theirs, partial(_keep, wanted, theirs, inheritance.channels[theirs])) for _, theirs in fitted):
        teacher(images_N3HW)
    training = student.training
    with ExitStack() as hooks:
        for convolution, theirs in fitted:
            act: Callable[[nn.Module, tuple[Tensor, ...]], None] = partial(_fit, wanted[theirs])
            hooks.callback(convolution.register_forward_pre_hook(act).remove)
        student.eval()(images_N3HW)
    student.train(training)
    return len(fitted)


def _plain(convolution: nn.Conv2d) -> bool:
    return convolution.groups == 1 and convolution.padding_mode == "zeros" and isinstance(convolution.padding, tuple)


def image_count(size: tuple[int, int]) -> int:
    """How many images of ``size`` = (H, W) the weights are fitted to."""
    return max(2, min(IMAGES, PIXELS // (size[0] * size[1])))


def places(count: int, images: int) -> Tensor:
    """The positions that are looked at in each of some images' maps, of ``count`` in row-major order."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(0))[: ROWS // images]


def _keep(wanted: dict[BatchNorm, Tensor], layer: BatchNorm, channels: Tensor, input_NCHW: Tensor) -> None:
    flat_NKP = input_NCHW[:, channels].flatten(2)
    wanted[layer] = rows(flat_NKP[:, :, places(flat_NKP.shape[2], len(flat_NKP)).to(flat_NKP.device)])


def rows(values_NFP: Tensor) -> Tensor:
    """Positions of images as rows, [R, F], in float64."""
    return values_NFP.transpose(1, 2).flatten(0, 1).double()


def _fit(wanted_RK: Tensor, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    assert isinstance(module, nn.Conv2d)
    read_RF = torch.cat([rows(_read(module, image[None], len(inputs[0]))) for image in inputs[0]])
    prior_FK = module.weight.flatten(1).t().double()
    if module.bias is not None:
        read_RF = torch.cat([read_RF, torch.ones_like(read_RF[:, :1])], dim=1)
        prior_FK = torch.cat([prior_FK, module.bias[None].double()])
    found_FK = solve(read_RF, wanted_RK, prior_FK)
    if module.bias is not None:
        module.bias.copy_(found_FK[-1])
        found_FK = found_FK[:-1]
    module.weight.copy_(found_FK.t().reshape(module.weight.shape))


def _read(convolution: nn.Conv2d, image_1CHW: Tensor, images: int) -> Tensor:
    """What a convolution reads at its positions that are looked at, [1, F, P]."""
    padding, size = convolution.padding, convolution.kernel_size
    assert not isinstance(padding, str)
    read_1FP = F.unfold(image_1CHW.float(), size, convolution.dilation, padding, convolution.stride)
    return read_1FP[:, :, places(read_1FP.shape[2], images).to(read_1FP.device)]


def solve(read_RF: Tensor, wanted_RK: Tensor, prior_FK: Tensor) -> Tensor:
    """The weights of least squares with a prior, [F, K], through the smaller of the two systems of equations."""
    rest_RK = wanted_RK - read_RF @ prior_FK
    count, features = read_RF.shape
    ridge = (RIDGE * read_RF.square().sum() / features).clamp_min(1e-12) * torch.eye(
        min(count, features), dtype=read_RF.dtype, device=read_RF.device
    )
    change_FK: Tensor
    if count < features:
        change_FK = read_RF.t() @ torch.linalg.solve(read_RF @ read_RF.t() + ridge, rest_RK)
    else:
        change_FK = torch.linalg.solve(read_RF.t() @ read_RF + ridge, read_RF.t() @ rest_RK)
    return prior_FK + change_FK
