"""A run's folder: model, metrics, settings, curves, and the checkpoint from which an interrupted run continues.

Checkpoints hold tensors and plain values and are read with ``weights_only``, so that a foreign one can do no harm.
"""

import dataclasses
import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from distill.settings import OptimisationSettings
from distill.training.checkpoint import checkpoint_fault
from pipeline.models.builders import told
from pipeline.models.files import save_model
from pipeline.models.segmenter import Segmenter
from storage.differences import differences
from storage.errors import SettingsError
from storage.files.claim import exclusive
from storage.files.publish import publish, remove, write_json

FREE_SETTINGS = {
    *("resume", "overwrite", "out", "val", "eval_every", "checkpoint_every", "keep_checkpoint", "device", "root"),
    *("answers", "cache_gib"),
}
"""Settings that may change when a run is resumed, because the final model does not depend on them."""
UNSOUND = (
    RuntimeError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    IndexError,
    EOFError,
    OSError,
    UnpicklingError,
)
"""What torch raises for a file that is no checkpoint, or for one of other networks."""
MADE_BY_A_RUN = ("checkpoint.pt", "metrics.json", "curves", "selection.parquet", "settings.json")
RUN_VERSION = 2
"""Version of the meaning of a run's settings and of its checkpoint. A run of another version is not continued."""


@dataclasses.dataclass(frozen=True, slots=True)
class RunFolder:
    """The folder in which one training run keeps its files."""

    path: Path
    model_name: str

    @property
    def model(self) -> Path:
        """The file of the final model."""
        return self.path / self.model_name

    @property
    def checkpoint(self) -> Path:
        """The file of weights, optimiser state and step."""
        return self.path / "checkpoint.pt"

    @property
    def settings(self) -> Path:
        """The file of the run's settings, which are compared when it is resumed."""
        return self.path / "settings.json"

    @property
    def metrics(self) -> Path:
        """The file of the last step's figures."""
        return self.path / "metrics.json"

    @property
    def curves(self) -> Path:
        """The folder of figures by step, which dvclive writes and DVC plots."""
        return self.path / "curves"

    @property
    def selection(self) -> Path:
        """The file of the images that a student was distilled on."""
        return self.path / "selection.parquet"

    def alone(self) -> AbstractContextManager[None]:
        """Hold the folder, so that no second run writes into it.

        Raises:
            StoreError: another process holds it.
        """
        return exclusive(self.path if self.path.name else self.path.absolute())

    def claim(self, settings: OptimisationSettings, about: Mapping[str, Any]) -> None:
        """Prepare the folder for a run with these settings. ``about`` holds everything else that the model depends on.

        An interrupted run is kept, to be continued. A finished one is kept too, or replaced with ``overwrite``.

        Raises:
            SettingsError: the folder holds a run and neither flag was given, or its run has other settings.
        """
        resume, overwrite = settings.resume, settings.overwrite
        wanted = _deciding({**dataclasses.asdict(settings), **about, "run_version": RUN_VERSION})
        if self.settings.exists() and not resume and not overwrite:
            raise SettingsError(
                f"{self.path} already holds a run; continue it with --resume, replace it with --overwrite, "
                "or give another --out"
            )
        if self.settings.exists():
            differing = self._differences(wanted)
            if differing and not overwrite:
                raise SettingsError(
                    f"{self.path} has a run with other settings: {'; '.join(differing)}; replace it with --overwrite"
                    + (self._on_more_steps() if any(one.startswith("steps is ") for one in differing) else "")
                )
            if differing or not resume or (overwrite and self.metrics.exists()):
                self._clear()
        elif others := [name for name in self._names() if (self.path / name).exists()]:
            raise SettingsError(f"{self.path} holds {others[0]} but no run; give another --out")
        write_json(self.settings, wanted)

    def _on_more_steps(self) -> str:
        """The way to train further, where the number of steps may not change: the learning rate follows it."""
        if self.model_name != "student.safetensors":
            return ""
        after = "" if self.model.exists() else " once it is finished"
        return f", or train its student further{after}: --student {self.model} with another --out"

    def _differences(self, wanted: Mapping[str, Any]) -> list[str]:
        try:
            held = read_json(self.settings)
        except SettingsError:  # whatever it was, it is not this run
            held = {}
        if held.get("run_version") != RUN_VERSION:
            return [f"run_version is {held.get('run_version', 0)} there and {RUN_VERSION} now"]
        return differences(held, wanted, sorted(held.keys() | wanted.keys()))

    def finished(self) -> dict[str, Any] | None:
        """The figures of a finished run; None for any other."""
        return read_json(self.metrics) if self.metrics.exists() and self.model.exists() else None

    def _clear(self) -> None:
        # Only the files of a run are removed: the user may keep other things in the folder. The settings go last, so
        # that the rest of an interrupted removal is still known as a run.
        for name in self._names():
            remove(self.path / name)

    def _names(self) -> tuple[str, ...]:
        return (self.model_name, *MADE_BY_A_RUN)

    def save_checkpoint(
        self, step: int, modules: Mapping[str, nn.Module], optimizer: Optimizer, *, seconds: float = 0.0
    ) -> None:
        """Publish the state after ``step`` steps that took so many seconds."""
        weights = {name: module.state_dict() for name, module in modules.items()}
        state = {"step": step, "seconds": seconds, "optimizer": optimizer.state_dict(), **weights}
        with publish(self.checkpoint) as partial:
            torch.save(state, partial)

    def load_checkpoint(
        self, modules: Mapping[str, nn.Module], optimizer: Optimizer, *, steps: int = 2**31 - 1
    ) -> tuple[int, float]:
        """Restore the checkpoint; return its number of steps and of seconds, or zeros if there is no checkpoint.

        ``steps`` is the number of the whole run.

        Raises:
            SettingsError: it is damaged, or fits only a network of an earlier version of DFSS.
        """
        if not self.checkpoint.exists():
            return 0, 0.0
        try:
            state = torch.load(self.checkpoint, map_location=_device(optimizer), weights_only=True)
            if fault := checkpoint_fault(state, modules, optimizer, steps=steps):
                raise ValueError(fault)
            for name, module in modules.items():
                module.load_state_dict(state[name])
            optimizer.load_state_dict(state["optimizer"])
        except UNSOUND as error:
            raise SettingsError(
                f"{self.checkpoint} is damaged or does not fit the network ({told(error)}); replace the run with "
                "--overwrite"
            ) from error
        return int(state["step"]), float(state["seconds"])

    def finish(self, model: Segmenter, metrics: Mapping[str, Any], *, keep_checkpoint: bool) -> None:
        """Publish the model and its figures. Remove the checkpoint, several times their size, unless it is kept."""
        save_model(model, self.model)
        write_json(self.metrics, metrics)
        if not keep_checkpoint:
            remove(self.checkpoint)


def _device(optimizer: Optimizer) -> torch.device:
    device: torch.device = optimizer.param_groups[0]["params"][0].device
    return device


def _deciding(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings as JSON keeps them, without those that may change."""
    values: dict[str, Any] = json.loads(json.dumps({k: v for k, v in settings.items() if k not in FREE_SETTINGS}))
    return values


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        SettingsError: the file holds something else.
    """
    try:
        values = json.loads(path.read_text())
    except ValueError:
        values = None
    if not isinstance(values, dict):
        raise SettingsError(f"{path} is not a file of a run; give another --out")
    return values
