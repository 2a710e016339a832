"""ESPNetv2 for segmentation, written from its paper and the names and shapes of the published tensors.

The encoder is that of Mehta et al., arXiv 1811.11431: EESP units, which convolve grouped projections by depth with
growing dilations. The decoder's pyramid pooling convolves at several scales by depth (arXiv 1906.03516, section 4.3).

The attributes have the names of the published tensors. Shapes: N images, C channels, K classes, H x W positions.
"""

import math
from collections.abc import Sequence

import torch
from layers import ConvNorm, ConvNormAct, NormAct, halve, shuffle
from torch import Tensor, nn
from torch.nn import functional as F

BRANCHES = 4
SCALES = (2.0, 1.5, 1.0, 0.5, 0.1)
LEAST = 5
"""The fewest rows and columns to which the pyramid shrinks a map."""
DECODER = 16
"""The decoder's maps have 4, 3 and 2 times as many channels."""


class DepthwiseDilated(nn.Module):
    """A 3x3 convolution by depth."""

    def __init__(self, channels: int, *, stride: int, dilation: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            channels, channels, 3, stride, padding=dilation, dilation=dilation, groups=channels, bias=False
        )

    def forward(self, features_NCHW: Tensor) -> Tensor:
        """Convolve."""
        convolved: Tensor = self.conv(features_NCHW)
        return convolved


class EESP(nn.Module):
    """An EESP unit (section 3.2): grouped projection, dilated convolutions, hierarchical sums, grouped expansion."""

    def __init__(self, inputs: int, outputs: int, *, dilations: Sequence[int], stride: int = 1) -> None:
        super().__init__()
        branch = outputs // BRANCHES
        self.strided = stride > 1
        self.residual = inputs == outputs
        self.proj_1x1 = ConvNormAct(inputs, branch, 1, groups=BRANCHES)
        self.spp_dw = nn.ModuleList(
            DepthwiseDilated(branch, stride=stride, dilation=dilation) for dilation in dilations
        )
        self.br_after_cat = NormAct(outputs)
        self.conv_1x1_exp = ConvNorm(outputs, outputs, 1, groups=BRANCHES)
        self.module_act = nn.PReLU(outputs)  # a unit with a stride has it too, and does not use it

    def forward(self, features_NCHW: Tensor) -> Tensor:
        """Features on the grid divided by the stride, not activated where there is one."""
        projected = self.proj_1x1(features_NCHW)
        sums = [self.spp_dw[0](projected)]
        for convolution in list(self.spp_dw)[1:]:
            sums.append(sums[-1] + convolution(projected))
        expanded: Tensor = self.conv_1x1_exp(self.br_after_cat(torch.cat(sums, dim=1)))
        if self.strided:
            return expanded
        activated: Tensor = self.module_act(expanded + features_NCHW if self.residual else expanded)
        return activated


class Down(nn.Module):
    """A strided EESP unit beside means of its input, joined by the image made smaller (section 3.2, figure 3)."""

    def __init__(self, inputs: int, outputs: int, *, dilations: Sequence[int]) -> None:
        super().__init__()
        self.eesp = EESP(inputs, outputs - inputs, dilations=dilations, stride=2)
        self.inp_reinf = nn.Sequential(ConvNormAct(3, 3, 3), ConvNorm(3, outputs, 1))
        self.act = nn.PReLU(outputs)

    def forward(self, features_NCHW: Tensor, image_N3HW: Tensor) -> Tensor:
        """Features on half the grid, which is the grid of ``image_N3HW``."""
        down = torch.cat([halve(features_NCHW), self.eesp(features_NCHW)], dim=1)
        activated: Tensor = self.act(down + self.inp_reinf(image_N3HW))
        return activated


class Encoder(nn.Module):
    """Features at 1/2, 1/4, 1/8 and 1/16 of the image."""

    def __init__(self, widths: Sequence[int], repeats: Sequence[int]) -> None:
        super().__init__()
        wide, narrow = (1, 2, 3, 4), (1, 1, 2, 3)  # on the coarsest grid the receptive field is limited to 7
        self.level1 = ConvNormAct(3, widths[0], 3, stride=2)
        self.level2_0 = Down(widths[0], widths[1], dilations=wide)
        self.level3_0 = Down(widths[1], widths[2], dilations=wide)
        self.level3 = nn.ModuleList(EESP(widths[2], widths[2], dilations=wide) for _ in range(repeats[0]))
        self.level4_0 = Down(widths[2], widths[3], dilations=wide)
        self.level4 = nn.ModuleList(EESP(widths[3], widths[3], dilations=narrow) for _ in range(repeats[1]))

    def forward(self, images_N3HW: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Features at the four scales, finest first."""
        first = self.level1(images_N3HW)
        quarter = halve(halve(images_N3HW))
        second = self.level2_0(first, quarter)
        third = self.level3_0(second, halve(quarter))
        for unit in self.level3:
            third = unit(third)
        fourth = self.level4_0(third, halve(halve(quarter)))
        for unit in self.level4:
            fourth = unit(fourth)
        return first, second, third, fourth


class Named(nn.Module):
    """Layers in a row, as attribute ``cbr`` or ``br``, whose names the published tensors have."""

    def __init__(self, name: str, *layers: nn.Module) -> None:
        super().__init__()
        self.name = name
        self.add_module(name, nn.Sequential(*layers))

    def forward(self, features_NCHW: Tensor) -> Tensor:
        """Apply the layers."""
        result: Tensor = self.get_submodule(self.name)(features_NCHW)
        return result


def _norm_act(channels: int) -> Named:
    return Named("br", nn.BatchNorm2d(channels), nn.PReLU(channels))


def _conv_norm_act(inputs: int, outputs: int, kernel: int, groups: int = 1) -> Named:
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=False)
    return Named("cbr", conv, nn.BatchNorm2d(outputs), nn.PReLU(outputs))


class Shuffle(nn.Module):
    """Interleaves the pyramid's scales, so that a grouped convolution sees all scales of a channel."""

    def forward(self, features_NCHW: Tensor) -> Tensor:
        """Interleave."""
        return shuffle(features_NCHW, len(SCALES))


class PyramidPooling(nn.Module):
    """Depth-wise convolutions at five scales of a projection, merged by channel (arXiv 1906.03516, section 4.3)."""

    def __init__(self, inputs: int, outputs: int, *, projection: int, last: bool = False) -> None:
        super().__init__()
        joined = projection * len(SCALES)
        self.projection_layer = _conv_norm_act(inputs, projection, 1)
        self.stages = nn.ModuleList(
            nn.Conv2d(projection, projection, 3, padding=1, groups=projection, bias=False) for _ in SCALES
        )
        self.merge_layer = nn.Sequential(
            _norm_act(joined),
            Shuffle(),
            _conv_norm_act(joined, projection, 3, groups=projection),
            nn.Conv2d(projection, outputs, 1, bias=last),
        )
        if not last:
            self.br = _norm_act(outputs)
        self.last = last

    def forward(self, features_NCHW: Tensor) -> Tensor:
        """Features on the same grid; of the last one, logits."""
        projected = self.projection_layer(features_NCHW)
        maps = [_at_scale(stage, projected, scale) for stage, scale in zip(self.stages, SCALES, strict=True)]
        merged: Tensor = self.merge_layer(torch.cat(maps, dim=1))
        return merged if self.last else self.br(merged)


def _at_scale(stage: nn.Module, features_NCHW: Tensor, scale: float) -> Tensor:
    """Convolve on a grid ``scale`` times as fine, and return to the grid: enlarge by interpolation, shrink by means."""
    height, width = features_NCHW.shape[-2:]
    grid = max(LEAST, math.ceil(height * scale)), max(LEAST, math.ceil(width * scale))
    if scale < 1:
        return enlarge(stage(F.adaptive_avg_pool2d(features_NCHW, grid)), (height, width))
    if scale > 1:
        return F.adaptive_avg_pool2d(stage(enlarge(features_NCHW, grid)), (height, width))
    convolved: Tensor = stage(features_NCHW)
    return convolved


def enlarge(features_NCHW: Tensor, size: tuple[int, int]) -> Tensor:
    """Interpolate to ``size`` = (height, width); corners stay corners."""
    return F.interpolate(features_NCHW, size=size, mode="bilinear", align_corners=True)


class Gate(nn.Module):
    """A grouped convolution, multiplied by a sigmoid of the means over the whole map."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.wt_layer = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(inputs, outputs, 1, bias=False), nn.Sigmoid())
        self.expansion_layer = _conv_norm_act(inputs, outputs, 3, groups=math.gcd(inputs, outputs))

    def forward(self, features_NCHW: Tensor) -> Tensor:
        """Features on the same grid."""
        gated: Tensor = self.expansion_layer(features_NCHW) * self.wt_layer(features_NCHW)
        return gated


class ESPNetv2(nn.Module):
    """The encoder, and a decoder that adds its finer maps to coarser ones, made larger, from 1/16 to 1/2."""

    def __init__(self, outputs: int, widths: Sequence[int], repeats: Sequence[int]) -> None:
        super().__init__()
        projection = min(outputs // 2, DECODER)
        planes = (4 * DECODER, 3 * DECODER, 2 * DECODER)
        self.base_net = Encoder(widths, repeats)
        self.bu_dec_l1 = PyramidPooling(widths[3], planes[0], projection=projection)
        self.merge_enc_dec_l2 = Gate(widths[2], planes[0])
        self.bu_br_l2 = nn.Sequential(nn.BatchNorm2d(planes[0]), nn.PReLU(planes[0]))
        self.bu_dec_l2 = PyramidPooling(planes[0], planes[1], projection=projection)
        self.merge_enc_dec_l3 = Gate(widths[1], planes[1])
        self.bu_br_l3 = nn.Sequential(nn.BatchNorm2d(planes[1]), nn.PReLU(planes[1]))
        self.bu_dec_l3 = PyramidPooling(planes[1], planes[2], projection=projection)
        self.merge_enc_dec_l4 = Gate(widths[0], planes[2])
        self.bu_br_l4 = nn.Sequential(nn.BatchNorm2d(planes[2]), nn.PReLU(planes[2]))
        self.bu_dec_l4 = PyramidPooling(planes[2], outputs, projection=projection, last=True)

    def forward(self, images_N3HW: Tensor) -> Tensor:
        """Logits [N, K, H/2, W/2] of normalised images whose sides are multiples of 16."""
        first, second, third, fourth = self.base_net(images_N3HW)
        decoded = self.bu_dec_l1(fourth)
        decoded = self.bu_dec_l2(self.bu_br_l2(_add(self.merge_enc_dec_l2(third), decoded)))
        decoded = self.bu_dec_l3(self.bu_br_l3(_add(self.merge_enc_dec_l3(second), decoded)))
        logits: Tensor = self.bu_dec_l4(self.bu_br_l4(_add(self.merge_enc_dec_l4(first), decoded)))
        return logits


def _add(fine_NCHW: Tensor, coarse_NCHW: Tensor) -> Tensor:
    height, width = fine_NCHW.shape[-2:]
    return fine_NCHW + enlarge(coarse_NCHW, (height, width))


def widths_at(scale: float) -> tuple[int, int, int, int]:
    """The encoder's channels at the four scales: 32, 64, 128 and 256 times ``scale``, the first at most 32."""
    base = BRANCHES * math.ceil(32 * scale / BRANCHES)
    return min(32, base), 2 * base, 4 * base, 8 * base


def build(num_classes: int, scale: float = 1.0, repeats: Sequence[int] = (3, 7)) -> nn.Module:
    """ESPNetv2 at a ``scale`` of its width, with ``repeats`` more units at 1/8 and 1/16; a smaller student has fewer.

    The weights published for Cityscapes have its 19 classes and one more, background, which is the last.
    """
    return ESPNetv2(num_classes, widths_at(scale), repeats)
