"""What a checkpoint must hold before anything of it is taken: plain values of known kinds, and finite tensors that fit.

A checkpoint may be damaged, or be another's. An optimiser that takes over foreign options would train another student.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from storage.kinds import first_fault, number, whole

OPTIONS = {"params", "lr", "betas", "eps", "weight_decay"}
"""Options of AdamW without which no step can be taken."""


def checkpoint_fault(state: Any, modules: Mapping[str, nn.Module], optimizer: Optimizer, *, steps: int) -> str | None:
    """What is wrong with the content of a checkpoint of a run of ``steps`` steps; None if nothing is."""
    if not isinstance(state, dict) or {"step", "seconds", "optimizer", *modules} - state.keys():
        return "it is no checkpoint of this run"
    kinds = {"step": whole(0, steps), "seconds": number(0, 1e12)}
    if fault := first_fault({name: state[name] for name in kinds}, kinds):
        return fault
    for name, module in modules.items():
        if fault := _tensors_fault(state[name], module.state_dict()):
            return f"{name}: {fault}"
    return _optimizer_fault(state["optimizer"], optimizer)


def _tensors_fault(held: Any, wanted: Mapping[str, Any]) -> str | None:
    if not isinstance(held, Mapping) or held.keys() != wanted.keys():
        return "its tensors have other names"
    for name, tensor in held.items():
        there = wanted[name]
        if not isinstance(tensor, Tensor) or tensor.shape != there.shape or tensor.dtype != there.dtype:
            return f"{name} has another shape or type"
        # The loss of an image that no step has seen is infinite in a new run too.
        if tensor.isnan().any() or (tensor.isinf().any() and not there.isinf().any()):
            return f"{name} is not finite"
    return None


def _optimizer_fault(held: Any, optimizer: Optimizer) -> str | None:
    if not isinstance(held, dict) or held.keys() != {"state", "param_groups"}:
        return "its optimiser is none"
    groups = optimizer.state_dict()["param_groups"]
    if not isinstance(held["param_groups"], list) or len(held["param_groups"]) != len(groups):
        return "its optimiser has other parameters"
    for group, own in zip(held["param_groups"], groups, strict=True):
        # The learning rate follows the step and is set before each. Another version of torch may have further options.
        if not isinstance(group, dict) or not group.keys() >= OPTIONS or not _is_rate(group["lr"]):
            return "its optimiser has other options"
        if any(group[name] != own[name] for name in (group.keys() & own.keys()) - {"lr"}):
            return "its optimiser has other options"
    parameters = dict(enumerate(parameter for group in optimizer.param_groups for parameter in group["params"]))
    if not isinstance(held["state"], dict) or not held["state"].keys() <= parameters.keys():
        return "its optimiser has other parameters"
    for number_, values in held["state"].items():
        if not isinstance(values, dict) or not all(_fits(value, parameters[number_]) for value in values.values()):
            return f"its optimiser's state of parameter {number_} does not fit, or is not finite"
    return None


def _is_rate(value: Any) -> bool:
    return number(0, 1e6).holds(value)


def _fits(value: Any, parameter: Tensor) -> bool:
    """Whether a value is a finite tensor of a parameter's shape, a finite count from 0, or nothing."""
    if value is None:
        return True
    if not isinstance(value, Tensor):
        return number(0, 1e12).holds(value)
    if not torch.isfinite(value).all():
        return False
    return value.shape == parameter.shape or (value.numel() == 1 and value.ndim == 0 and bool(value >= 0))
