"""Networks small enough for tests, as factories that a model file can name."""

from torch import Tensor, nn


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
