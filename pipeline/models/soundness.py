"""Whether the tensors of a network can be used: finite throughout, and running statistics that are statistics."""

import logging
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from storage.errors import ModelError

logger = logging.getLogger(__name__)


REAL = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""The types in which weights are read."""


def check_kinds(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor], *, origin: str) -> None:
    """Refuse weights whose values a network of these tensors would lose or misread.

    Raises:
        ModelError: a tensor has no memory, is sparse or quantised, or is not real where the network's is.
    """
    for name, tensor in tensors.items():
        plain = tensor.layout is torch.strided and not tensor.is_quantized and not tensor.is_meta
        if not plain or (wanted[name].is_floating_point() and tensor.dtype not in REAL):
            kind = "without memory" if tensor.is_meta else str(tensor.dtype if plain else tensor.layout).split(".")[-1]
            kind = "quantised" if tensor.is_quantized else kind
            raise ModelError(
                f"{origin}: {name} is {kind}, but weights are read as dense real numbers (float16 to float64); save "
                "the state_dict() of the network as it was trained"
            )


def check_tensors(tensors: Mapping[str, Tensor], *, origin: str) -> None:
    """Refuse weights and statistics with which no forward pass is sound.

    Raises:
        ModelError: a value is not finite, or a running variance is negative; the message names the first tensor.
    """
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            continue
        if bad := int((~tensor.isfinite()).sum()):
            raise ModelError(
                f"{origin}: {bad} of the {tensor.numel()} values of {name} are not finite; use weights from before "
                "the training diverged"
            )
        if name.endswith("running_var") and (bad := int((tensor < 0).sum())):
            raise ModelError(
                f"{origin}: {bad} of the {tensor.numel()} values of {name} are negative, which no variance is; "
                "the weights are damaged"
            )


def check_logits(logits: Tensor, *, origin: str) -> None:
    """Refuse predictions that are not finite, because their largest class would look like one.

    Raises:
        ModelError: a logit is not finite.
    """
    if not logits.isfinite().all():
        raise ModelError(f"the logits of {origin} are not finite; check its weights and its normalisation (mean, std)")


def check_not_probabilities(logits_NKHW: Tensor, *, origin: str, bounded: bool = False) -> None:
    """Refuse outputs that have been through a softmax. Every loss and every merged class would apply another one.

    With ``bounded`` those that all lie in [0, 1] are refused too, as after a sigmoid; the image should be noise.

    Raises:
        ModelError: the outputs are probabilities.
    """
    low, high = float(logits_NKHW.min()), float(logits_NKHW.max())
    if low < 0 or high > 1 + 1e-3:
        return
    sums = logits_NKHW.sum(dim=1)
    softmax = logits_NKHW.shape[1] > 1 and bool(((sums - 1).abs() < 1e-3).all()) and high > low
    if softmax or (bounded and high > low):
        found = "are at least 0 and sum to 1, as after a softmax" if softmax else "lie in [0, 1], as after a sigmoid"
        raise ModelError(
            f"the outputs of {origin} are probabilities and not logits: they {found}; leave that last step out of the "
            "network"
        )


def warn_of_statistics(network: nn.Module, *, origin: str) -> None:
    """Say where BatchNorm's running statistics cannot be those of training images.

    They never moved if all means are 0 and all variances 1, as in a network that was not trained. A variance of 0
    belongs to a channel that was constant.
    """
    buffers = dict(network.named_buffers())
    layers = [name.removesuffix(".running_mean") for name in buffers if name.endswith(".running_mean")]
    variances = {layer: buffers[f"{layer}.running_var"] for layer in layers}
    unmoved = [
        layer
        for layer, var_C in variances.items()
        if bool((var_C == 1).all()) and not buffers[f"{layer}.running_mean"].any()
    ]
    if layers and len(unmoved) == len(layers):
        logger.warning(
            "%s was not trained: all its BatchNorm layers have running mean 0 and variance 1, so that distances from "
            "them mean nothing",
            origin,
        )
    elif unmoved:
        logger.warning(
            "%s: %d of %d BatchNorm layers still have running mean 0 and variance 1, as before any training; "
            "the first is %s",
            *(origin, len(unmoved), len(layers), unmoved[0]),
        )
    constant = {layer: int((var_C == 0).sum()) for layer, var_C in variances.items() if bool((var_C == 0).any())}
    if constant:
        logger.warning(
            "%s: the running variance of %d channels is 0, in %d BatchNorm layers; the first is %s",
            *(origin, sum(constant.values()), len(constant), next(iter(constant))),
        )
