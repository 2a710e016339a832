"""Per-image statistics of what a teacher's BatchNorm layers see (DESIGN section 2; arXiv 2512.13175).

For image x and monitored layer l, mu_l(x) and var_l(x) are the per-channel mean and *biased* variance of the layer's
input over (H, W) of this one image, never over the batch, with the teacher in eval mode.

Shapes: N images, C channels, H x W positions.
"""

import dataclasses
import fnmatch
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cache, partial

import torch
from torch import Tensor, nn

from pipeline.models import Segmenter
from storage.errors import ModelError

logger = logging.getLogger(__name__)

BatchNorm = nn.BatchNorm2d | nn.SyncBatchNorm
DEFAULT_LAYERS = "default"
ALL_LAYERS = "all"


@dataclasses.dataclass(frozen=True, slots=True)
class BatchNormLayer:
    """A BatchNorm layer that a forward pass runs through."""

    name: str
    """Path of the module in the network."""
    module: BatchNorm
    positions: int
    """H * W of its input for the teacher's image size."""

    @property
    def channels(self) -> int:
        """C."""
        return int(self.module.num_features)


@dataclasses.dataclass(frozen=True, slots=True)
class LayerStatistics:
    """Statistics of one layer's input, float32 [N, C] each."""

    mean_NC: Tensor
    var_NC: Tensor


class _StopForwardError(Exception):
    """Raised inside a hook once everything that was asked for is known."""


def find_layers(teacher: Segmenter) -> list[BatchNormLayer]:
    """List the BatchNorm layers that can be monitored, in the order in which a forward pass reaches them.

    A layer whose input is a single position (after global pooling) has no variance over (H, W) and is left out; so is
    one that a pass runs through twice, whose running statistics mix two inputs.

    Raises:
        ModelError: the teacher has no BatchNorm with running statistics; the message names what it has instead. Or one
            of its layers uses batch statistics in eval mode.
    """
    named = {
        name: module
        for name, module in teacher.network.named_modules()
        if isinstance(module, BatchNorm) and module.running_mean is not None
    }
    if not named:
        raise ModelError(
            f"the teacher ({teacher.spec.builder}) has no BatchNorm layer with running statistics, which DFSS compares "
            f"images against; its normalisation is {_normalisation(teacher.network)}; use a BatchNorm teacher"
        )
    _refuse_batch_statistics(teacher)
    positions: dict[str, int] = {}
    calls: Counter[str] = Counter()

    def record(name: str, input_NCHW: Tensor) -> None:
        positions[name] = input_NCHW.shape[-2] * input_NCHW.shape[-1]
        calls[name] += 1

    with on_inputs((module, partial(record, name)) for name, module in named.items()):
        probe(teacher)
    layers = [
        BatchNormLayer(name, named[name], count) for name, count in positions.items() if count > 1 and calls[name] == 1
    ]
    if not layers:
        raise ModelError(
            f"no BatchNorm layer of the teacher ({teacher.spec.builder}) sees more than one position, once per pass"
        )
    return layers


def _refuse_batch_statistics(teacher: Segmenter) -> None:
    for name, module in teacher.network.named_modules():
        if isinstance(module, BatchNorm) and module.running_mean is None:
            raise ModelError(
                f"layer {name} of the teacher normalises by its batch even in eval mode (track_running_stats=False), "
                "so an image's statistics would depend on its neighbours; use one with running statistics throughout"
            )


@contextmanager
def on_inputs(acts: Iterable[tuple[nn.Module, Callable[[Tensor], None]]]) -> Iterator[None]:
    """Inside the block, call each module's function with its input before it runs, however the input is passed."""
    with ExitStack() as hooks:
        for module, act in acts:
            hooks.callback(module.register_forward_pre_hook(partial(_call, act), with_kwargs=True).remove)
        yield


def _call(act: Callable[[Tensor], None], _: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
    act(inputs[0] if inputs else next(iter(named.values())))


def _normalisation(network: nn.Module) -> str:
    kinds = Counter(type(module).__name__ for module in network.modules() if "norm" in type(module).__name__.lower())
    return ", ".join(f"{count} {kind}" for kind, count in kinds.most_common()) or "none at all"


def probe(teacher: Segmenter) -> None:
    """Run one grey image through a model, to see whether it works at the size that it says.

    Raises:
        ModelError: the network refuses the size, or its output is not what its description says.
    """
    height, width = teacher.spec.image_size
    image = torch.full((1, 3, height, width), 0.5, device=teacher.mean_3HW.device)
    training = teacher.training
    try:
        with torch.inference_mode():
            teacher.eval()(image)
    except (RuntimeError, ValueError) as error:
        if isinstance(error, ModelError):
            raise
        text = " ".join(str(error).split())
        raise ModelError(f"{teacher.spec.builder} does not take {height}x{width} images: {text}") from error
    finally:
        teacher.train(training)


def choose_layers(layers: Sequence[BatchNormLayer], wanted: str) -> list[BatchNormLayer]:
    """Pick layers by ``default``, ``all``, or names and globs separated by commas; order of the forward pass.

    Raises:
        ModelError: a name matches no layer; the message shows some that exist.
    """
    if wanted == ALL_LAYERS:
        return list(layers)
    if wanted == DEFAULT_LAYERS:
        return default_layers(layers)
    patterns = [pattern.strip() for pattern in wanted.split(",") if pattern.strip()]
    chosen = [layer for layer in layers if any(fnmatch.fnmatchcase(layer.name, pattern) for pattern in patterns)]
    unmatched = [p for p in patterns if not any(fnmatch.fnmatchcase(layer.name, p) for layer in layers)]
    if unmatched or not chosen:
        missing = ", ".join(map(repr, unmatched or [wanted]))
        shown = ", ".join(layer.name for layer in layers[:: max(1, len(layers) // 6)])
        raise ModelError(f"no BatchNorm layer is called {missing}; there are, among others, {shown}")
    return chosen


def default_layers(layers: Sequence[BatchNormLayer]) -> list[BatchNormLayer]:
    """The layers from 75 % to 80 % of the backbone's depth (docs/method.md says why); what follows need not run.

    The backbone is what shares the first layer's top-level module (``backbone.``, ``encoder.``), or the whole network
    where that is only a small part of it.
    """
    top = layers[0].name.partition(".")[0]
    backbone = [layer for layer in layers if layer.name.partition(".")[0] == top]
    if len(backbone) < len(layers) / 3:
        backbone = list(layers)
    last = max(1, round(0.8 * len(backbone)))
    return backbone[min(int(0.75 * len(backbone)), last - 1) : last]


@contextmanager
def record_bn_statistics(
    layers: Sequence[BatchNormLayer], *, stop_after_last: bool
) -> Iterator[dict[str, LayerStatistics]]:
    """Collect statistics of every forward pass inside the block, by layer name; each pass replaces the last one's.

    With ``stop_after_last`` a pass ends where the last of ``layers`` has been measured: run it by :func:`measure`.
    """
    found: dict[str, LayerStatistics] = {}
    last = layers[-1].name

    def record(layer: BatchNormLayer, input_NCHW: Tensor) -> None:
        found[layer.name] = statistics_of(input_NCHW, layer.module)
        if stop_after_last and layer.name == last:
            raise _StopForwardError

    with on_inputs((layer.module, partial(record, layer)) for layer in layers):
        yield found


def measure(teacher: Segmenter, images_N3HW: Tensor) -> Tensor | None:
    """Run a forward pass that a statistics recorder may stop. Returns logits, None where it was stopped."""
    with suppress(_StopForwardError):
        logits: Tensor = teacher(images_N3HW)
        return logits
    return None


def statistics_of(input_NCHW: Tensor, module: BatchNorm) -> LayerStatistics:
    """Mean and biased variance over (H, W), accumulated in float32 whatever the input's precision."""
    if input_NCHW.device.type == "cpu":
        return LayerStatistics(*_moments_by_image(input_NCHW.float()))
    assert module.running_mean is not None  # find_layers saw to it
    return LayerStatistics(*_fused_moments()(input_NCHW, module.running_mean.float()))


def _moments_by_image(input_NCHW: Tensor) -> tuple[Tensor, Tensor]:
    """One image at a time through the reduction of BatchNorm's own training kernel, which is two-pass and writes
    nothing: on a CPU a tenth of the time of plain means.
    """
    images = [torch.batch_norm_update_stats(image[None], None, None, 0.0) for image in input_NCHW]
    return torch.stack([mean_C for mean_C, _ in images]), torch.stack([var_C for _, var_C in images])


class FusedMoments:
    """:func:`shifted_moments` as torch.compile makes it, one kernel that reads its input once. Where that fails, on a
    machine without a working compiler, uncompiled from then on, which reads and writes it several times.
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
    """Mean and variance by two plain means. Around the running mean, E[(x - m)^2] - E[x - m]^2 does not suffer the
    cancellation of E[x^2] - E[x]^2, whose error grows with (mu / sigma)^2.
    """
    shifted = input_NCHW.float() - running_mean_C.view(1, -1, 1, 1)
    offset_NC = shifted.mean(dim=(2, 3))
    square_NC = shifted.square().mean(dim=(2, 3))
    return offset_NC + running_mean_C, (square_NC - offset_NC.square()).clamp(min=0)
