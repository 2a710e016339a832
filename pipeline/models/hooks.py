"""Hooks on the inputs of a network's modules, and a test pass that shows whether a model works."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.models.builders import told
from pipeline.models.segmenter import Segmenter
from pipeline.models.soundness import check_logits, check_not_probabilities
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


@contextmanager
def on_outputs(module: nn.Module, act: Callable[[Any], None]) -> Iterator[None]:
    """Inside the block, call the function with each output of the module."""
    hook = module.register_forward_hook(lambda _, __, output: act(output))
    try:
        yield
    finally:
        hook.remove()


MULTIPLES = (2, 4, 8, 16, 32, 64)
"""What networks need the sides of their images to be multiples of."""


def adapt(model: Segmenter, size: tuple[int, int] | None = None, *, grey: bool = False) -> None:
    """Let a model pad its images if its network does not take those of ``size``, by default that of its description.

    With ``grey`` it may also read luma instead of colours.

    Raises:
        ModelError: the network takes the images in no such way, or its output does not match its description.
    """
    size, own = size or model.spec.image_size, model.spec
    refused: dict[tuple[str, tuple[int, int]], ModelError] = {}
    for channels in dict.fromkeys((own.channels, "grey") if grey else (own.channels,)):
        for multiple in (1, *MULTIPLES):
            model.describe(channels=channels, multiple=math.lcm(multiple, own.multiple))
            way = (channels, model.padded(size))
            if way in refused:
                continue
            try:
                return probe(model, size)
            except ModelError as error:
                refused[way] = error
    model.describe(channels=own.channels, multiple=own.multiple)
    raise next(iter(refused.values()))


def probe(teacher: Segmenter, size: tuple[int, int] | None = None) -> None:
    """Run one grey image through a model, to see whether it works at a size, by default that of its description.

    Raises:
        ModelError: the network refuses the size, or its output does not match its description or is not finite.
    """
    height, width = size or teacher.spec.image_size
    image = torch.full((1, 3, height, width), 0.5, device=teacher.device)
    training = teacher.training
    try:
        with torch.inference_mode():
            logits = teacher.eval()(image)
            check_logits(logits, origin=teacher.spec.builder)
            check_not_probabilities(logits, origin=teacher.spec.builder)
    except ModelError:
        raise
    except Exception as error:  # a foreign network may raise anything
        raise ModelError(f"{teacher.spec.builder} does not take {height}x{width} images: {told(error)}") from error
    finally:
        teacher.train(training)
