"""ESPNet, written from its paper (Mehta et al., arXiv 1803.06815) and the names and shapes of the published tensors.

An ESP block projects its input to a fifth of its channels. It convolves that with dilations 1, 2, 4, 8 and 16, sums the
dilated maps hierarchically, and concatenates them. The image, made smaller, joins the features at both scales.

The attributes have the names of the published tensors. The published BatchNorm layers have an eps of 1e-3.
Shapes: N images, C channels, H x W positions.
"""

import torch
from layers import Conv, ConvNormAct, NormAct, halve
from torch import Tensor, nn

DILATIONS = (1, 2, 4, 8, 16)
EPS = 1e-3


class Pyramid(nn.Module):
    """An ESP block without its normalisation: reduce, split, transform, merge (section 3.1 of the paper)."""

    def __init__(self, inputs: int, outputs: int, *, stride: int = 1) -> None:
        super().__init__()
        branch = outputs // len(DILATIONS)
        rest = outputs - branch * (len(DILATIONS) - 1)
        self.c1 = Conv(inputs, branch, 3, stride=stride) if stride > 1 else Conv(inputs, branch, 1)
        for dilation in DILATIONS:
            self.add_module(f"d{dilation}", Conv(branch, rest if dilation == 1 else branch, 3, dilation=dilation))

    def pyramid(self, features_NCHW: Tensor) -> Tensor:
        """The concatenated sums of dilated convolutions."""
        reduced = self.c1(features_NCHW)
        first, *others = (self.get_submodule(f"d{dilation}")(reduced) for dilation in DILATIONS)
        sums = [others[0]]
        for other in others[1:]:
            sums.append(sums[-1] + other)
        return torch.cat([first, *sums], dim=1)


class Down(Pyramid):
    """An ESP block that halves the grid."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, stride=2)
        self.bn = nn.BatchNorm2d(outputs, eps=EPS)
        self.act = nn.PReLU(outputs)

    def forward(self, features_NCHW: Tensor) -> Tensor:
        """Features on half the grid."""
        activated: Tensor = self.act(self.bn(self.pyramid(features_NCHW)))
        return activated


class Block(Pyramid):
    """An ESP block on the grid of its input, which is added to it where the channels are as many."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.residual = inputs == outputs
        self.bn = NormAct(outputs, eps=EPS)

    def forward(self, features_NCHW: Tensor) -> Tensor:
        """Features on the same grid."""
        merged = self.pyramid(features_NCHW)
        activated: Tensor = self.bn(features_NCHW + merged if self.residual else merged)
        return activated


class Encoder(nn.Module):
    """ESPNet-C: features at 1/2, 1/4 and 1/8 of the image, and logits at 1/8."""

    def __init__(self, outputs: int, p: int, q: int) -> None:
        super().__init__()
        self.level1 = ConvNormAct(3, 16, 3, stride=2, eps=EPS)
        self.b1 = NormAct(16 + 3, eps=EPS)
        self.level2_0 = Down(16 + 3, 64)
        self.level2 = nn.ModuleList(Block(64, 64) for _ in range(p))
        self.b2 = NormAct(128 + 3, eps=EPS)
        self.level3_0 = Down(128 + 3, 128)
        self.level3 = nn.ModuleList(Block(128, 128) for _ in range(q))
        self.b3 = NormAct(256, eps=EPS)
        self.classifier = Conv(256, outputs, 1)

    def forward(self, images_N3HW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features at 1/2 and 1/4, and logits at 1/8."""
        half = halve(images_N3HW)
        first = self.b1(torch.cat([self.level1(images_N3HW), half], dim=1))
        deeper = begun = self.level2_0(first)
        for block in self.level2:
            deeper = block(deeper)
        second = self.b2(torch.cat([deeper, begun, halve(half)], dim=1))
        deeper = begun = self.level3_0(second)
        for block in self.level3:
            deeper = block(deeper)
        logits = self.classifier(self.b3(torch.cat([begun, deeper], dim=1)))
        return first, second, logits


class ESPNet(nn.Module):
    """The encoder, and a decoder that doubles the grid of the logits three times."""

    def __init__(self, outputs: int, p: int, q: int) -> None:
        super().__init__()
        self.encoder = Encoder(outputs, p, q)
        self.br = nn.BatchNorm2d(outputs, eps=EPS)
        self.up_l3 = nn.Sequential(_double(outputs))
        self.level3_C = Conv(128 + 3, outputs, 1)
        self.combine_l2_l3 = nn.Sequential(NormAct(2 * outputs, eps=EPS), Block(2 * outputs, outputs))
        self.up_l2 = nn.Sequential(_double(outputs), NormAct(outputs, eps=EPS))
        self.conv = ConvNormAct(16 + 3 + outputs, outputs, 3, eps=EPS)
        self.classifier = _double(outputs)

    def forward(self, images_N3HW: Tensor) -> Tensor:
        """Logits [N, outputs, H, W] of normalised images whose sides are multiples of 8."""
        first, second, logits = self.encoder(images_N3HW)
        quarter = self.combine_l2_l3(torch.cat([self.level3_C(second), self.up_l3(self.br(logits))], dim=1))
        half = self.conv(torch.cat([self.up_l2(quarter), first], dim=1))
        whole: Tensor = self.classifier(half)
        return whole


def _double(channels: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(channels, channels, 2, stride=2, bias=False)


def build(num_classes: int, p: int = 2, q: int = 8) -> nn.Module:
    """ESPNet with ``p`` and ``q`` blocks at 1/4 and 1/8 of the image; a smaller student has fewer.

    The published weights see blue, green, red and have one more class, void, which is the last.

    Raises:
        ValueError: there are fewer classes than an ESP block has branches.
    """
    if num_classes < len(DILATIONS):
        raise ValueError(f"{num_classes} classes; an ESP block of the decoder needs at least {len(DILATIONS)}")
    return ESPNet(num_classes, p, q)
