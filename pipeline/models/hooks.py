"""Hooks on the inputs of a network's modules, and a test pass that shows whether a model works."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial

import torch
from torch import Tensor, nn

from pipeline.models.segmenter import Segmenter
from pipeline.models.soundness import check_logits
from storage.errors import ModelError


@contextmanager
def on_inputs(acts: Iterable[tuple[nn.Module, Callable[[Tensor], None]]]) -> Iterator[None]:
    """Inside the block, call each module's function with its input before it runs.

    The input may be a positional or a keyword argument.
    """
    with ExitStack() as hooks:
        for module, act in acts:
            hooks.callback(module.register_forward_pre_hook(partial(_call, act), with_kwargs=True).remove)
        yield


def _call(act: Callable[[Tensor], None], _: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
    act(inputs[0] if inputs else next(iter(named.values())))


class StopForwardError(Exception):
    """Raised in a hook to end a forward pass whose rest is not needed; run it by :func:`forward_until_stopped`."""


def forward_until_stopped(model: Segmenter, images_N3HW: Tensor) -> Tensor | None:
    """Run a forward pass that a hook may end. Return the logits, or None if it was ended."""
    with suppress(StopForwardError):
        logits: Tensor = model(images_N3HW)
        return logits
    return None


def probe(teacher: Segmenter) -> None:
    """Run one grey image through a model, to see whether it works at the size in its description.

    Raises:
        ModelError: the network refuses the size, or its output does not match its description or is not finite.
    """
    height, width = teacher.spec.image_size
    image = torch.full((1, 3, height, width), 0.5, device=teacher.device)
    training = teacher.training
    try:
        with torch.inference_mode():
            check_logits(teacher.eval()(image), origin=teacher.spec.builder)
    except (RuntimeError, ValueError) as error:
        if isinstance(error, ModelError):
            raise
        text = " ".join(str(error).split())
        raise ModelError(f"{teacher.spec.builder} does not take {height}x{width} images: {text}") from error
    finally:
        teacher.train(training)
