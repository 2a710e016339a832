"""Choosing where to compute."""

import torch

from storage.errors import SettingsError


def pick_device(name: str) -> torch.device:
    """``auto`` is CUDA where there is one, else the CPU. Raises SettingsError for a device that this machine lacks."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise SettingsError(f"unknown device {name!r}; use auto, cpu, cuda or cuda:1") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise SettingsError(f"device {name} is not there: torch sees {torch.cuda.device_count()} CUDA devices; use cpu")
    return device
