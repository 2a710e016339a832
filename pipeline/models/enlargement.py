"""Where a network enlarges its logits: what comes before is smaller and says the same (ours).

Most segmentation networks compute logits on a coarse grid and enlarge them bilinearly in the end. To keep a teacher's
answers, the coarse ones are enough.

Shapes: N images, K classes, h x w positions of the coarse grid, H x W pixels.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.models.hooks import StopForwardError, forward_until_stopped
from pipeline.models.merging import merge
from pipeline.models.segmenter import Segmenter, as_logits


@dataclasses.dataclass(frozen=True, slots=True)
class Enlargement:
    """The module whose output the network enlarges to its logits."""

    model: Segmenter
    module: nn.Module
    align_corners: bool = False
    """The convention of the enlargement, as in ``torch.nn.functional.interpolate``."""
    merged_after: bool = False
    """Whether classes are merged after the enlargement, so that the coarse logits are the network's classes."""

    def coarse(self, images_N3HW: Tensor, *, enough: Callable[[], bool] = lambda: True) -> Tensor:
        """The logits before they are enlarged, [N, K, h, w]. The forward pass ends there if that is ``enough``."""
        found: list[Tensor] = []

        def stop(module: nn.Module, inputs: Any, output: Any) -> None:
            found.append(self.before(output))
            if enough():
                raise StopForwardError

        hook = self.module.register_forward_hook(stop)
        try:
            forward_until_stopped(self.model, images_N3HW)
        finally:
            hook.remove()
        return found[0]

    def before(self, output: Any) -> Tensor:
        """The logits in the output of the module, before they are enlarged."""
        return as_logits(output, self.model.spec.output) if self.merged_after else self.model.classes(output)

    def enlarge(self, coarse_NKhw: Tensor, size: tuple[int, int]) -> Tensor:
        """Logits of ``size`` = (H, W) from coarse ones, [N, K, H, W]."""
        logits = self.model.enlarge(coarse_NKhw, size, align_corners=self.align_corners)
        return merge(logits, self.model.spec.members) if self.merged_after else logits


@torch.inference_mode()
def find_enlargement(model: Segmenter, size: tuple[int, int]) -> Enlargement:
    """Find the smallest output of a module that, enlarged bilinearly, gives the model's logits at ``size`` = (H, W).

    It is found by a trial with one image of noise. The network itself is the answer if no other module is. Classes are
    merged before the enlargement if that is the same, because there are fewer then.
    """
    height, width = size
    image = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0)).to(model.device)
    outputs: list[tuple[nn.Module, Tensor]] = []

    def record(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim == 4 and output.shape[1] == model.spec.built_classes:
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
    tolerance = 1e-5 * float(logits.abs().max())
    found, least = Enlargement(model, model.network), logits.shape[-2] * logits.shape[-1]
    for module, output in outputs:
        positions = output.shape[-2] * output.shape[-1]
        if positions >= least or calls.count(module) > 1:
            continue
        for candidate in _candidates(model, module):
            if torch.allclose(candidate.enlarge(candidate.before(output), size), logits, rtol=1e-4, atol=tolerance):
                found, least = candidate, positions
                break
    return found


def _candidates(model: Segmenter, module: nn.Module) -> Iterator[Enlargement]:
    orders = (False, True) if any(len(group) > 1 for group in model.spec.members) else (False,)
    for merged_after in orders:
        for align_corners in (False, True):
            yield Enlargement(model, module, align_corners, merged_after)
