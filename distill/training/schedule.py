"""The learning rate over a run, and BatchNorm's momentum."""

import math

from torch import nn

from distill.settings import OptimisationSettings

LEAST_MOMENTUM = 0.1


def raise_momentum(model: nn.Module) -> None:
    """Raise BatchNorm's momentum to at least 0.1, so that running statistics adapt within tens of steps.

    torchvision's MobileNetV3 has a momentum of 0.01, for schedules of 100,000s of steps. After a few hundred steps its
    running statistics are still the initial ones, and the model is useless in eval mode.
    """
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.SyncBatchNorm) and module.momentum is not None:
            module.momentum = max(module.momentum, LEAST_MOMENTUM)


def learning_rate(settings: OptimisationSettings, step: int) -> float:
    """The learning rate at ``step``, which counts from 0: a linear warm-up, then half a cosine down to 0."""
    warmup = math.ceil(settings.warmup * settings.steps)
    if step < warmup:
        return settings.lr * (step + 1) / warmup
    return settings.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (settings.steps - warmup)))
