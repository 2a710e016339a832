"""What a checkpoint from elsewhere can do: be refused in one line, and change nothing."""

import copy
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from distill.training.run_folder import RunFolder
from storage.errors import SettingsError


class Evil:
    def __reduce__(self) -> Any:
        return os.system, ("touch PWNED",)


def trained() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.rand(2, 3, 4, 4)).square().sum().backward()
    optimizer.step()
    return model, optimizer


def put(path: str, value: Any) -> Callable[[dict[str, Any]], Any]:
    def change(state: dict[str, Any]) -> dict[str, Any]:
        *parents, last = path.split("/")
        place: Any = state
        for name in parents:
            place = place[int(name) if name.isdigit() else name]
        place[last] = value
        return state

    return change


NAN = torch.full((2, 3, 1, 1), float("nan"))
CHANGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    **{f"the whole is {value!r}": lambda _, value=value: value for value in (None, 5, [1], "x", {})},  # type: ignore[misc]
    "code": lambda _: Evil(),
    **{
        f"{path} is {str(value)[:20]}": put(path, value)
        for path, value in [
            *(("step", value) for value in (Evil(), "abc", None, -5, float("nan"), 4.7, 10**12, 11, torch.zeros(3))),
            *(("seconds", value) for value in (None, -1.0, float("nan"), "x")),
            *(("optimizer", value) for value in ("x", {}, None)),
            *(("optimizer/param_groups", value) for value in ([], [5], [{}], "x")),
            ("optimizer/param_groups/0/lr", "x"),
            ("optimizer/param_groups/0/lr", float("nan")),
            ("optimizer/param_groups/0/betas", (5.0, -1.0)),
            ("optimizer/param_groups/0/maximize", True),
            ("optimizer/param_groups/0/eps", None),
            ("optimizer/param_groups/0/weight_decay", 1e9),
            ("optimizer/state", {"a": 5}),
            ("optimizer/state", [1]),
            ("optimizer/state/0/exp_avg", NAN),
            ("optimizer/state/0/exp_avg", torch.zeros(1)),
            ("optimizer/state/0/step", torch.tensor(-1.0)),
            ("model", "x"),
            ("model", None),
            ("model", {}),
            ("model/0.weight", NAN),
            ("model/0.weight", "x"),
            ("model/0.weight", torch.zeros(2, 3, 1, 1, dtype=torch.int8)),
            ("model/z", torch.zeros(1)),
        ]
    },
    "no betas": lambda state: (state["optimizer"]["param_groups"][0].pop("betas"), state)[1],
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_checkpoint_that_no_run_wrote_is_one_line_and_changes_nothing(
    change: Callable[[dict[str, Any]], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model, optimizer = trained()
    folder = RunFolder(tmp_path, "student.safetensors")
    folder.save_checkpoint(5, {"model": model}, optimizer)
    state = torch.load(folder.checkpoint, weights_only=True)
    torch.save(change(state), folder.checkpoint)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(SettingsError, match="is damaged or does not fit the network") as raised:
        folder.load_checkpoint({"model": model}, optimizer, steps=10)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "PWNED").exists()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_sound_checkpoint_is_restored(tmp_path: Path) -> None:
    model, optimizer = trained()
    folder = RunFolder(tmp_path, "student.safetensors")
    folder.save_checkpoint(5, {"model": model}, optimizer, seconds=2.0)
    with torch.no_grad():
        fresh = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2))
    other = torch.optim.AdamW(fresh.parameters(), lr=0.1)
    assert folder.load_checkpoint({"model": fresh}, other, steps=10) == (5, 2.0)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in fresh.state_dict().items())
