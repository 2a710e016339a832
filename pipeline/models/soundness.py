"""Whether the tensors of a network can be used: finite throughout, and running statistics that are statistics."""

import logging
from collections.abc import Mapping

from torch import Tensor, nn

from storage.errors import ModelError

logger = logging.getLogger(__name__)


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
