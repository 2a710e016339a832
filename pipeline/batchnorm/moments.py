"""Per-image statistics of the inputs of a teacher's BatchNorm layers (arXiv 2512.13175).

For image x and monitored layer l, mu_l(x) and var_l(x) are the per-channel mean and *biased* variance of the layer's
input over (H, W) of this one image, never over the batch, with the teacher in eval mode.

Shapes: N images, C channels, H x W positions.
"""

import dataclasses
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.batchnorm.layers import BatchNorm, BatchNormLayer
from pipeline.models.hooks import StopForwardError, on_inputs

logger = logging.getLogger(__name__)

WINDOW = 8
"""Height and width in positions of the windows that a CPU sums in float32."""
PIECE = 2**19
"""How many squared deviations a CPU holds at a time: 2 MiB, which stay in its caches."""


@dataclasses.dataclass(frozen=True, slots=True)
class LayerStatistics:
    """Statistics of one layer's input, float32 [N, C] each."""

    mean_NC: Tensor
    var_NC: Tensor


@contextmanager
def record_bn_statistics(
    layers: Sequence[BatchNormLayer], *, stop_after_last: bool
) -> Iterator[dict[str, LayerStatistics]]:
    """Collect the statistics of forward passes inside the block, by layer name. Each pass replaces those of the last.

    With ``stop_after_last`` a pass ends as soon as the last of ``layers`` is measured; run it by
    :func:`pipeline.models.hooks.forward_until_stopped`.
    """
    found: dict[str, LayerStatistics] = {}
    last = layers[-1].name

    def record(layer: BatchNormLayer, input_NCHW: Tensor) -> None:
        found[layer.name] = statistics_of(input_NCHW, layer.module)
        if stop_after_last and layer.name == last:
            raise StopForwardError

    with on_inputs((layer.module, partial(record, layer)) for layer in layers):
        yield found


def statistics_of(input_NCHW: Tensor, module: BatchNorm) -> LayerStatistics:
    """Mean and biased variance over (H, W), in float32 whatever the precision of the input."""
    if input_NCHW.device.type == "cpu":
        return LayerStatistics(*_moments_by_image(input_NCHW.float()))
    assert module.running_mean is not None  # find_layers saw to it
    return LayerStatistics(*_fused_moments()(input_NCHW, module.running_mean.float()))


def _moments_by_image(input_NCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance, float32 [N, C] each.

    At any size, the error of a variance is below 1e-6 of it, and that of a mean below 1e-6 of the root mean square.
    The two passes consist of elementwise operations and of pooling, in which one thread makes each output in a fixed
    order. So the bits depend neither on the number of threads, nor on the batch, nor on the memory layout. BatchNorm's
    own training reduction is two to three times as fast, but in channels_last it adds up a thread's whole share in
    float32.
    """
    images = max(1, PIECE // input_NCHW[0].numel())
    parts = [_two_pass(part_NCHW) for part_NCHW in torch.split(input_NCHW, images)]
    return torch.cat([mean_NC for mean_NC, _ in parts]), torch.cat([var_NC for _, var_NC in parts])


def _two_pass(input_NCHW: Tensor) -> tuple[Tensor, Tensor]:
    """The moments of one image of any size, or of several that are together no larger than a piece."""
    positions = input_NCHW.shape[2:].numel()
    mean_NC11 = (_sums(input_NCHW) / positions).float()
    rows = WINDOW * max(1, PIECE // input_NCHW[:, :, :WINDOW].numel())
    squares_NC11 = torch.zeros_like(mean_NC11, dtype=torch.float64)
    for stripe in torch.split(input_NCHW, rows, dim=2):
        # As a loss, (x - mu)^2 is one pass over memory; as a difference and its square it would be two.
        squares_NC11 += _sums(functional.mse_loss(stripe, mean_NC11.expand_as(stripe), reduction="none"))
    return mean_NC11.flatten(1), (squares_NC11 / positions).float().flatten(1)


def _sums(values_NCHW: Tensor) -> Tensor:
    """Sums over (H, W), float64 [N, C, 1, 1].

    They are made in float32 within windows, which end at the borders, and in float64 over the windows. A pooled average
    that is divided by 1 is a sum.
    """
    windows = functional.avg_pool2d(values_NCHW, WINDOW, ceil_mode=True, divisor_override=1).double()
    return functional.avg_pool2d(windows, windows.shape[2:], divisor_override=1)


class FusedMoments:
    """:func:`shifted_moments`, compiled by torch.compile into one kernel that reads its input once.

    On a machine without a working compiler it runs uncompiled, which reads and writes the input several times.
    """

    def __init__(self) -> None:
        self._moments = torch.compile(shifted_moments, dynamic=True)

    def __call__(self, input_NCHW: Tensor, running_mean_C: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance, [N, C] each."""
        try:
            return self._moments(input_NCHW, running_mean_C)
        except Exception as error:
            if self._moments is shifted_moments or isinstance(error, torch.OutOfMemoryError):
                raise
            why = (str(error).strip() or type(error).__name__).splitlines()[0]
            logger.warning("BatchNorm statistics run uncompiled and slower: torch.compile failed: %s", why)
            self._moments = shifted_moments
            return shifted_moments(input_NCHW, running_mean_C)


_fused_moments = cache(FusedMoments)  # at the first use: torch.compile takes seconds to import


def shifted_moments(input_NCHW: Tensor, running_mean_C: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance by two plain means around the running mean m, [N, C] each.

    E[(x - m)^2] - E[x - m]^2 avoids the cancellation of E[x^2] - E[x]^2, whose error grows with (mu / sigma)^2.
    """
    shifted = input_NCHW.float() - running_mean_C.view(1, -1, 1, 1)
    offset_NC = shifted.mean(dim=(2, 3))
    square_NC = shifted.square().mean(dim=(2, 3))
    return offset_NC + running_mean_C, (square_NC - offset_NC.square()).clamp(min=0)
