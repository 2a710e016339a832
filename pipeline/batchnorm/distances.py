"""How far an image's BatchNorm statistics lie from the teacher's running ones.

Per layer l with statistics mu, var of the image and running mu^, var^ (sigma^2 = var + eps of the layer):

``paper`` (arXiv 2512.13175):  ||mu - mu^||_2  and  ||var - var^||_2
``standardized`` (ours):       rms_c((mu - mu^) / sigma^)  and  rms_c(log(sigma^2 / sigma^^2)), free of channel scale

An image's distance is the sum of the two, averaged over the monitored layers. ``paper`` with one layer is the paper's
distance. To add a distance, write its formula, add a line to :data:`DISTANCES`, and add its name to
``pipeline.settings.DistanceKind``.

Shapes: N images, L layers, C channels.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from pipeline.batchnorm.layers import BatchNormLayer
from pipeline.batchnorm.moments import LayerStatistics
from pipeline.settings import DistanceKind

Formula = Callable[[LayerStatistics, BatchNormLayer], tuple[Tensor, Tensor]]
"""Mean part and variance part of one layer's distance, [N] each."""


def layer_distances(
    statistics: Mapping[str, LayerStatistics], layers: Sequence[BatchNormLayer], kind: DistanceKind
) -> Tensor:
    """Mean and variance part of each layer's distance, float32 [N, L, 2]."""
    formula = DISTANCES[kind]
    return torch.stack([torch.stack(formula(statistics[layer.name], layer), dim=1) for layer in layers], dim=1)


def distance(layer_distance_NL2: Tensor) -> Tensor:
    """The distance of each image, [N]: the sum of both parts, averaged over the layers."""
    return layer_distance_NL2.sum(dim=2).mean(dim=1)


def standard_scores(statistics: LayerStatistics, layer: BatchNormLayer) -> Tensor:
    """The standard scores (mu - mu^) / sigma^ of each channel, [N, C]."""
    mean_C, var_C = running_statistics(layer)
    return (statistics.mean_NC - mean_C) / var_C.add(layer.module.eps).sqrt()


def _paper(statistics: LayerStatistics, layer: BatchNormLayer) -> tuple[Tensor, Tensor]:
    mean_C, var_C = running_statistics(layer)
    return (statistics.mean_NC - mean_C).norm(dim=1), (statistics.var_NC - var_C).norm(dim=1)


def _standardized(statistics: LayerStatistics, layer: BatchNormLayer) -> tuple[Tensor, Tensor]:
    eps = layer.module.eps  # as the layer itself: a channel that is constant has log-variance too
    _, var_C = running_statistics(layer)
    log_ratio_NC = torch.log((statistics.var_NC + eps) / (var_C + eps))
    return _rms(standard_scores(statistics, layer)), _rms(log_ratio_NC)


DISTANCES: Mapping[DistanceKind, Formula] = {"standardized": _standardized, "paper": _paper}


def _rms(values_NC: Tensor) -> Tensor:
    # Where all values are 0, the root has no gradient, but the clamped one has: 0.
    return values_NC.square().mean(dim=1).clamp(min=torch.finfo(torch.float32).tiny).sqrt()


def running_statistics(layer: BatchNormLayer) -> tuple[Tensor, Tensor]:
    """The running mean and variance, float32 [C] each."""
    module = layer.module
    assert module.running_mean is not None  # find_layers saw to it
    assert module.running_var is not None
    return module.running_mean.float(), module.running_var.float()
