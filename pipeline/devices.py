"""Choosing a device, and moving images and results to it and back without waiting."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from storage.errors import SettingsError


def pick_device(name: str) -> torch.device:
    """The device of a name; ``auto`` is CUDA if this machine has it, else the CPU.

    Raises:
        SettingsError: this machine has no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise SettingsError(f"unknown device {name!r}; use auto, cpu, cuda or cuda:1") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise SettingsError(
            f"device {name} does not exist: torch has {torch.cuda.device_count()} CUDA devices; use auto or cpu"
        )
    return device


def stack_pinned(images: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Stack images into page-locked memory, from which a GPU copies in the background; uint8 [N, H, W, 3]."""
    pinned = torch.empty((len(images), *images[0].shape), dtype=torch.uint8, pin_memory=True).numpy()
    return np.stack(images, out=pinned)


class Arriving:
    """Named tensors that are being copied to the CPU while the device continues to work."""

    def __init__(self, tensors: Mapping[str, Tensor], *, made_from: object) -> None:
        """Start copying. The device may still read ``made_from``, so it is kept until the copies are complete."""
        self._made_from = made_from
        self._tensors = {name: tensor.to("cpu", non_blocking=tensor.is_cuda) for name, tensor in tensors.items()}
        self._arrived: Any = None
        first = next(iter(tensors.values()))
        if first.is_cuda:
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record(torch.cuda.current_stream(first.device))

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Wait for the copies and return them."""
        if self._arrived is not None:
            self._arrived.synchronize()
        self._made_from = None
        return {name: tensor.numpy() for name, tensor in self._tensors.items()}
