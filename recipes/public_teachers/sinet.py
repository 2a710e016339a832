"""SINet, written from its paper (Park et al., arXiv 1911.09099) and the names and shapes of the published tensors.

An S2 module splits its channels into two spatial squeeze blocks. Each convolves by depth, on means over windows where
its scale is above 1. The decoder lets finer features in only where the coarse prediction is not confident.

The attributes have the names of the published tensors. Shapes: N images, C channels, K classes, H x W positions.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from layers import Conv, ConvNormAct, NormAct, shuffle
from torch import Tensor, nn
from torch.nn import functional as F

EPS = 1e-3
Blocks = Sequence[Sequence[Sequence[int]]]
"""Modules, each of two blocks, each of a kernel size and a scale (table 2 of the paper)."""
LEVEL2: Blocks = (((3, 1), (5, 1)), ((3, 1), (3, 1)))
LEVEL3: Blocks = (
    ((3, 1), (5, 1)),
    ((3, 1), (3, 1)),
    ((5, 1), (3, 2)),
    ((5, 2), (3, 4)),
    ((3, 1), (3, 1)),
    ((5, 1), (5, 1)),
    ((3, 2), (3, 4)),
    ((3, 1), (5, 2)),
)


class SqueezeBlock(nn.Module):
    """A depth-wise and a 1x1 convolution, on a grid ``scale`` times as coarse (section 3.1)."""

    def __init__(self, channels: int, kernel: int, scale: int) -> None:
        super().__init__()
        self.scale = scale
        self.conv = nn.Sequential(
            nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels, bias=False),
            nn.BatchNorm2d(channels, eps=EPS),
        )
        self.act_conv1x1 = nn.Sequential(nn.PReLU(channels), nn.Conv2d(channels, channels, 1, bias=False))
        self.bn = nn.BatchNorm2d(channels, eps=EPS)

    def forward(self, features_NCHW: Tensor) -> Tensor:
        """Features on the same grid."""
        squeezed = F.avg_pool2d(features_NCHW, self.scale) if self.scale > 1 else features_NCHW
        convolved = self.act_conv1x1(self.conv(squeezed))
        if self.scale > 1:
            convolved = enlarge(convolved, self.scale)
        normalised: Tensor = self.bn(convolved)
        return normalised


class SqueezeModule(nn.Module):
    """Two squeeze blocks of a shared grouped projection; the input is added where the channels are as many."""

    def __init__(self, inputs: int, outputs: int, blocks: Sequence[Sequence[int]]) -> None:
        super().__init__()
        self.residual = inputs == outputs
        self.c1 = Conv(inputs, outputs // 2, 1, groups=2)
        self.d1, self.d2 = (SqueezeBlock(outputs // 2, kernel, scale) for kernel, scale in blocks)
        self.BR = NormAct(outputs, eps=EPS)

    def forward(self, features_NCHW: Tensor) -> Tensor:
        """Features on the same grid."""
        projected = shuffle(self.c1(features_NCHW), 2)
        joined = torch.cat([self.d1(projected), self.d2(projected)], dim=1)
        activated: Tensor = self.BR(features_NCHW + joined if self.residual else joined)
        return activated


class Excitation(nn.Module):
    """Multiplies each channel by a function of the means of all (squeeze and excitation, arXiv 1709.01507)."""

    def __init__(self, channels: int, hidden: int | None) -> None:
        super().__init__()
        widths = [channels, hidden, channels] if hidden else [channels, channels]
        layers = [(nn.Linear(before, after), nn.PReLU(after)) for before, after in pairwise(widths)]
        self.dense = nn.Sequential(*(layer for pair in layers for layer in pair))

    def forward(self, features_NCHW: Tensor) -> Tensor:
        """Features on the same grid."""
        factors_NC = self.dense(features_NCHW.mean(dim=(2, 3)))
        excited: Tensor = features_NCHW * factors_NC[:, :, None, None]
        return excited


class Down(nn.Module):
    """A separable convolution with an excitation in between, which halves the grid."""

    def __init__(self, inputs: int, outputs: int, *, hidden: int | None) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(inputs, inputs, 3, 2, padding=1, groups=inputs, bias=False),
            Excitation(inputs, hidden),
            nn.Conv2d(inputs, outputs, 1, bias=False),
        )
        self.bn = nn.BatchNorm2d(outputs, eps=EPS)
        self.act = nn.PReLU(outputs)

    def forward(self, features_NCHW: Tensor) -> Tensor:
        """Features on half the grid."""
        activated: Tensor = self.act(self.bn(self.conv(features_NCHW)))
        return activated


class Encoder(nn.Module):
    """Features at 1/4 of the image, and logits at 1/8."""

    def __init__(self, num_classes: int, level2: Blocks, level3: Blocks) -> None:
        super().__init__()
        self.level1 = ConvNormAct(3, 12, 3, stride=2, eps=EPS)
        self.level2_0 = Down(12, 16, hidden=None)
        self.level2 = nn.ModuleList(SqueezeModule(48 if at else 16, 48, blocks) for at, blocks in enumerate(level2))
        self.BR2 = NormAct(48 + 16, eps=EPS)
        self.level3_0 = Down(48 + 16, 48, hidden=32)
        self.level3 = nn.ModuleList(SqueezeModule(96 if at else 48, 96, blocks) for at, blocks in enumerate(level3))
        self.BR3 = NormAct(96 + 48, eps=EPS)
        self.classifier = Conv(96 + 48, num_classes, 1)

    def forward(self, images_N3HW: Tensor) -> tuple[Tensor, Tensor]:
        """Features at 1/4, and logits at 1/8."""
        fine = begun = self.level2_0(self.level1(images_N3HW))
        for module in self.level2:
            fine = module(fine)
        coarse = coarse_begun = self.level3_0(self.BR2(torch.cat([begun, fine], dim=1)))
        for module in self.level3:
            coarse = module(coarse)
        return fine, self.classifier(self.BR3(torch.cat([coarse_begun, coarse], dim=1)))


class SINet(nn.Module):
    """The encoder, and a decoder with information blocking (section 3.2)."""

    def __init__(self, num_classes: int, level2: Blocks, level3: Blocks) -> None:
        super().__init__()
        self.encoder = Encoder(num_classes, level2, level3)
        self.bn_3 = nn.BatchNorm2d(num_classes, eps=EPS)
        self.level2_C = ConvNormAct(48, num_classes, 1, eps=EPS)
        self.bn_2 = nn.BatchNorm2d(num_classes, eps=EPS)
        self.classifier = nn.Sequential(
            nn.UpsamplingBilinear2d(scale_factor=2), nn.Conv2d(num_classes, num_classes, 3, padding=1, bias=False)
        )

    def forward(self, images_N3HW: Tensor) -> Tensor:
        """Logits [N, K, H, W] of normalised images whose sides are multiples of 32."""
        fine, logits = self.encoder(images_N3HW)
        coarse = self.bn_3(enlarge(logits, 2))
        doubt = 1 - coarse.softmax(dim=1).amax(dim=1, keepdim=True)
        whole: Tensor = self.classifier(self.bn_2(enlarge(self.level2_C(fine) * doubt + coarse, 2)))
        return whole


def enlarge(features_NCHW: Tensor, factor: int) -> Tensor:
    """Interpolate to a grid ``factor`` times as fine; corners stay corners."""
    return F.interpolate(features_NCHW, scale_factor=float(factor), mode="bilinear", align_corners=True)


def build(num_classes: int, level2: Blocks = LEVEL2, level3: Blocks = LEVEL3) -> nn.Module:
    """SINet with the S2 modules ``level2`` and ``level3`` at 1/4 and 1/8 of the image; a smaller student has fewer.

    The published weights see blue, green, red.
    """
    return SINet(num_classes, level2, level3)
