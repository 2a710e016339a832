"""Layers that the published networks share. Their attributes have the names of the published tensors.

Shapes: N images, C channels, H x W positions.
"""

from torch import Tensor, nn


class Conv(nn.Module):
    """A convolution without bias that keeps the grid, or divides it by ``stride``."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, *, stride: int = 1, dilation: int = 1, groups: int = 1
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            inputs,
            outputs,
            kernel,
            stride,
            padding=(kernel - 1) // 2 * dilation,
            dilation=dilation,
            groups=groups,
            bias=False,
        )

    def forward(self, features_NCHW: Tensor) -> Tensor:
        """Convolve."""
        convolved: Tensor = self.conv(features_NCHW)
        return convolved


class ConvNorm(Conv):
    """A convolution and BatchNorm."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, *, stride: int = 1, groups: int = 1, eps: float = 1e-5
    ) -> None:
        super().__init__(inputs, outputs, kernel, stride=stride, groups=groups)
        self.bn = nn.BatchNorm2d(outputs, eps=eps)

    def forward(self, features_NCHW: Tensor) -> Tensor:
        """Convolve and normalise."""
        normalised: Tensor = self.bn(self.conv(features_NCHW))
        return normalised


class ConvNormAct(ConvNorm):
    """A convolution, BatchNorm and PReLU."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, *, stride: int = 1, groups: int = 1, eps: float = 1e-5
    ) -> None:
        super().__init__(inputs, outputs, kernel, stride=stride, groups=groups, eps=eps)
        self.act = nn.PReLU(outputs)

    def forward(self, features_NCHW: Tensor) -> Tensor:
        """Convolve, normalise and activate."""
        activated: Tensor = self.act(self.bn(self.conv(features_NCHW)))
        return activated


class NormAct(nn.Module):
    """BatchNorm and PReLU."""

    def __init__(self, channels: int, *, eps: float = 1e-5) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(channels, eps=eps)
        self.act = nn.PReLU(channels)

    def forward(self, features_NCHW: Tensor) -> Tensor:
        """Normalise and activate."""
        activated: Tensor = self.act(self.bn(features_NCHW))
        return activated


def halve(features_NCHW: Tensor) -> Tensor:
    """Means over 3x3 positions, every second one; beyond the border there are zeros."""
    return nn.functional.avg_pool2d(features_NCHW, 3, stride=2, padding=1)


def shuffle(features_NCHW: Tensor, groups: int) -> Tensor:
    """Interleave groups of channels: the first of each, then the second of each, ... (arXiv 1707.01083)."""
    images, channels, height, width = features_NCHW.shape
    split = features_NCHW.reshape(images, groups, channels // groups, height, width)
    return split.transpose(1, 2).reshape(images, channels, height, width)
