"""Published weights of torchvision's segmentation models."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from torch import Tensor

from pipeline.models.builders import segmentation_names
from storage.errors import ModelError


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class OfficialWeights:
    """Published weights of a torchvision segmentation model, and the input that it expects."""

    weights: Mapping[str, Tensor]
    class_names: tuple[str, ...]
    resize: int
    """Length, in pixels, to which its recipe resizes the shorter side."""
    mean: tuple[float, ...]
    std: tuple[float, ...]


def official_weights(builder: str, version: str, *, fetch: bool = True) -> OfficialWeights:
    """Published weights from torchvision's cache, into which they are fetched unless that is not wished.

    Raises:
        ModelError: the model or version does not exist, or its file is not in the cache and cannot be fetched.
    """
    from torchvision.models import get_model_weights

    family, _, name = builder.partition(":")
    if family != "torchvision" or name not in segmentation_names():
        raise ModelError(
            f"official weights exist for torchvision:{{{','.join(segmentation_names())}}}, not for {builder}"
        )
    versions = get_model_weights(name)
    if version not in versions.__members__:
        raise ModelError(f"{builder} has no weights {version!r}; it has {', '.join(versions.__members__)}")
    entry = versions[version]
    transform = entry.transforms()
    return OfficialWeights(
        weights=_fetch(entry, builder, fetch=fetch),
        class_names=tuple(entry.meta["categories"]),
        resize=transform.resize_size[0],
        mean=tuple(transform.mean),
        std=tuple(transform.std),
    )


def _fetch(entry: Any, builder: str, *, fetch: bool) -> Mapping[str, Tensor]:
    cached = Path(torch.hub.get_dir()) / "checkpoints" / Path(entry.url).name
    if not fetch and not cached.is_file():
        raise ModelError(f"weights of {builder} are not in {cached}, and nothing is fetched because a file says so")
    try:
        state: Mapping[str, Tensor] = entry.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (URLError, RuntimeError, OSError) as error:
        reason = getattr(error, "reason", error)
        raise ModelError(
            f"weights of {builder} are not in {cached} and cannot be fetched ({reason}); "
            f"download {entry.url} elsewhere and put it there"
        ) from error
    return state
