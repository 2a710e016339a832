"""Networks small enough for tests, as factories that a model file can name."""

from itertools import pairwise

from torch import Tensor, cat, nn


class TinyNetwork(nn.Module):
    """Three convolutions with BatchNorm, half the input's resolution, logits in a dict."""

    def __init__(self, num_classes: int, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, stride=2, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(width, 2 * width, 3, padding=1), nn.BatchNorm2d(2 * width), nn.ReLU())
        self.neck = nn.Sequential(nn.Conv2d(2 * width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.head = nn.Conv2d(width, num_classes, 1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"out": self.head(self.neck(self.body(self.stem(images))))}


def tiny(num_classes: int, width: int = 8) -> nn.Module:
    return TinyNetwork(num_classes, width)


def small(num_classes: int) -> nn.Module:
    """No module of it has the shapes of one of ``tiny``."""
    return TinyNetwork(num_classes, width=6)


class StackedNetwork(nn.Module):
    """A stem and equal blocks at its resolution, the last of which are alike in stacks of any height."""

    def __init__(self, num_classes: int, blocks: int = 3, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        widths = [8] + [width] * (blocks - 1) + [8]
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU())
            for before, after in pairwise(widths)
        )
        self.head = nn.Conv2d(8, num_classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        features = self.stem(images)
        for block in self.blocks:
            features = block(features)
        logits: Tensor = self.head(features)
        return nn.functional.interpolate(logits, scale_factor=2.0)


def stacked(num_classes: int, blocks: int = 3, width: int = 8) -> nn.Module:
    return StackedNetwork(num_classes, blocks, width)


class BraidedNetwork(nn.Module):
    """A residual addition, a concatenation, and convolutions that are depthwise, transposed or in ``groups``."""

    def __init__(self, num_classes: int, groups: int = 1) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.block = nn.Sequential(
            nn.Conv2d(16, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU(),
            nn.Conv2d(24, 16, 3, padding=1), nn.BatchNorm2d(16),
        )  # fmt: skip
        self.down = nn.Sequential(nn.Conv2d(16, 32, 3, 2, 1, groups=groups), nn.BatchNorm2d(32), nn.ReLU())
        self.deep = nn.Sequential(nn.Conv2d(32, 32, 3, padding=1, groups=32), nn.BatchNorm2d(32), nn.ReLU())
        self.up = nn.ConvTranspose2d(32, 16, 2, 2)
        self.mix = nn.Sequential(nn.Conv2d(32, 16, 3, padding=1), nn.BatchNorm2d(16), nn.PReLU(16))
        self.head = nn.Conv2d(16, num_classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        skip = self.stem(images)
        skip = skip + self.block(skip)
        logits: Tensor = self.head(self.mix(cat([self.up(self.deep(self.down(skip))).relu(), skip], dim=1)))
        return logits


def braided(num_classes: int, groups: int = 1) -> nn.Module:
    return BraidedNetwork(num_classes, groups)


class PreactivatedNetwork(nn.Module):
    """BatchNorm layers that read a sum and a concatenation, as those of pre-activated ResNets and DenseNets."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.first, self.second = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.of_sum, self.of_both = nn.BatchNorm2d(16), nn.BatchNorm2d(32)
        self.head = nn.Conv2d(32, num_classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        features = self.stem(images)
        summed = self.of_sum(features + self.first(features)).relu()
        logits: Tensor = self.head(self.of_both(cat([summed, self.second(summed)], dim=1)).relu())
        return logits


def preactivated(num_classes: int) -> nn.Module:
    return PreactivatedNetwork(num_classes)


class MixedNetwork(nn.Module):
    """Every channel depends on all others by a softmax over channels, or over positions as in attention."""

    def __init__(self, num_classes: int, attention: bool) -> None:
        super().__init__()
        self.first, self.head = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, num_classes, 1)
        self.attention = attention

    def forward(self, images: Tensor) -> Tensor:
        features = self.first(images)
        if self.attention:
            flat = features.flatten(2)
            mixed = (flat @ flat.transpose(1, 2)).softmax(2) @ flat
            features = mixed.unflatten(2, features.shape[2:])
        logits: Tensor = self.head(features.softmax(1))
        return logits


def mixed(num_classes: int, attention: bool = False) -> nn.Module:
    return MixedNetwork(num_classes, attention)


def slow(num_classes: int) -> nn.Module:
    network = TinyNetwork(num_classes)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.001
    return network


def without_batch_norm(num_classes: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.Conv2d(4, num_classes, 1))


class _Picky(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        raise RuntimeError(f"Wrong input shape {tuple(images.shape)}.\nUse a multiple of 32")


def picky(num_classes: int) -> nn.Module:
    return _Picky()


def not_a_network(num_classes: int) -> int:
    return num_classes


def ending_in(num_classes: int, last: str) -> nn.Module:
    """A network whose outputs are probabilities; not logits."""
    ends = {"softmax": nn.Softmax(dim=1), "sigmoid": nn.Sigmoid()}
    body = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()
    return nn.Sequential(*body, nn.Conv2d(8, num_classes, 1), ends[last])


def lazy(num_classes: int) -> nn.Module:
    """A network of which a weight has no shape before the first image."""
    return nn.Sequential(nn.LazyConv2d(8, 3, padding=1), nn.BatchNorm2d(8), nn.Conv2d(8, num_classes, 1))
