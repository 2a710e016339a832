"""Where a network enlarges its logits: what comes before is smaller and says the same (ours).

Most segmentation networks compute logits on a coarse grid and enlarge them bilinearly in the end. To keep a teacher's
answers, the coarse ones are enough.

Shapes: N images, K classes, h x w positions of the coarse grid, H x W pixels.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.models.hooks import StopForwardError, forward_until_stopped
from pipeline.models.segmenter import Segmenter, as_logits


@dataclasses.dataclass(frozen=True, slots=True)
class Enlargement:
    """The module whose output the network enlarges to its logits."""

    module: nn.Module
    align_corners: bool
    """The convention of the enlargement, as in ``torch.nn.functional.interpolate``."""

    def coarse(self, model: Segmenter, images_N3HW: Tensor, *, enough: Callable[[], bool] = lambda: True) -> Tensor:
        """The logits before they are enlarged, [N, K, h, w]. The forward pass ends there if that is ``enough``."""
        found: list[Tensor] = []

        def stop(module: nn.Module, inputs: Any, output: Any) -> None:
            found.append(as_logits(output))
            if enough():
                raise StopForwardError

        hook = self.module.register_forward_hook(stop)
        try:
            forward_until_stopped(model, images_N3HW)
        finally:
            hook.remove()
        return found[0]

    def enlarge(self, coarse_NKhw: Tensor, size: tuple[int, int]) -> Tensor:
        """Logits of ``size`` = (H, W) from coarse ones, [N, K, H, W]."""
        if coarse_NKhw.shape[-2:] == size:
            return coarse_NKhw
        return F.interpolate(coarse_NKhw, size=size, mode="bilinear", align_corners=self.align_corners)


@torch.inference_mode()
def find_enlargement(model: Segmenter, size: tuple[int, int]) -> Enlargement:
    """Find the smallest output of a module that, enlarged bilinearly, gives the model's logits at ``size`` = (H, W).

    It is found by a trial with one image of noise. The network itself is the answer if no other module is.
    """
    height, width = size
    image = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0)).to(model.device)
    outputs: list[tuple[nn.Module, Tensor]] = []

    def record(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim == 4 and output.shape[1] == model.spec.num_classes:
            outputs.append((module, output))

    training = model.training
    hooks = [module.register_forward_hook(record) for module in model.network.modules()]
    try:
        logits = model.eval()(image)
    finally:
        for hook in hooks:
            hook.remove()
        model.train(training)
    calls = [module for module, _ in outputs]
    found = Enlargement(model.network, align_corners=False)
    tolerance = 1e-5 * float(logits.abs().max())
    least = logits.shape[-2] * logits.shape[-1]
    for module, output in outputs:
        positions = output.shape[-2] * output.shape[-1]
        if positions >= least or calls.count(module) > 1:
            continue
        for align_corners in (False, True):
            candidate = Enlargement(module, align_corners)
            if torch.allclose(candidate.enlarge(output, size), logits, rtol=1e-4, atol=tolerance):
                found, least = candidate, positions
                break
    return found
