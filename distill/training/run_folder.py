"""A run's folder: model, metrics, settings, curves, and the checkpoint that an interrupted run continues from.

Checkpoints are read with ``weights_only`` and hold tensors and plain values, so a foreign one can do no harm.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch.optim import Optimizer

from distill.settings import OptimisationSettings
from pipeline.models.files import save_model
from pipeline.models.segmenter import Segmenter
from storage.differences import differences
from storage.errors import SettingsError
from storage.files.publish import publish, remove, write_json

FREE_SETTINGS = {
    *("resume", "overwrite", "out", "val", "eval_every", "checkpoint_every", "keep_checkpoint", "device", "root")
}
"""What may change between the two halves of a run without changing the model that it ends with."""
MADE_BY_A_RUN = ("checkpoint.pt", "metrics.json", "curves", "selection.parquet", "settings.json")
RUN_VERSION = 1
"""What the settings of a run mean, and what its checkpoint holds. A run of another version is not continued."""


@dataclasses.dataclass(frozen=True, slots=True)
class RunFolder:
    """Where one training run keeps what it makes."""

    path: Path
    model_name: str

    @property
    def model(self) -> Path:
        """The model file that the run ends with."""
        return self.path / self.model_name

    @property
    def checkpoint(self) -> Path:
        """Weights, optimiser state and step."""
        return self.path / "checkpoint.pt"

    @property
    def settings(self) -> Path:
        """What the run was told, to compare when it is resumed."""
        return self.path / "settings.json"

    @property
    def metrics(self) -> Path:
        """The last step's figures."""
        return self.path / "metrics.json"

    @property
    def curves(self) -> Path:
        """Figures by step, as dvclive writes and DVC plots them."""
        return self.path / "curves"

    @property
    def selection(self) -> Path:
        """The images that a student was distilled on."""
        return self.path / "selection.parquet"

    def claim(self, settings: OptimisationSettings, about: Mapping[str, Any]) -> None:
        """Make the folder ready for a run with these settings; ``about`` is what else decides the model that it ends
        with. An interrupted run is kept to be continued; a finished one is kept, or replaced with ``overwrite``.

        Raises:
            SettingsError: it holds a run and neither flag was given, or a run with other settings is to be resumed.
        """
        resume, overwrite = settings.resume, settings.overwrite
        wanted = _deciding({**dataclasses.asdict(settings), **about, "run_version": RUN_VERSION})
        if self.settings.exists() and not resume and not overwrite:
            raise SettingsError(
                f"{self.path} already holds a run; --resume continues it, --overwrite replaces it, "
                "--out puts this one elsewhere"
            )
        if self.settings.exists():
            differing = self._differences(wanted)
            if differing and not overwrite:
                raise SettingsError(
                    f"{self.path} was begun with other settings: {'; '.join(differing)}; --overwrite starts afresh"
                )
            if differing or not resume or (overwrite and self.finished() is not None):
                self._clear()
        elif others := [name for name in self._names() if (self.path / name).exists()]:
            raise SettingsError(f"{self.path} holds {others[0]} but no run; give another --out")
        write_json(self.settings, wanted)

    def _differences(self, wanted: Mapping[str, Any]) -> list[str]:
        held = read_json(self.settings)
        if held.get("run_version") != RUN_VERSION:
            return [f"a run of version {held.get('run_version', 0)} of the program's runs, now {RUN_VERSION}"]
        return differences(held, wanted, sorted(held.keys() | wanted.keys()))

    def finished(self) -> dict[str, Any] | None:
        """The figures of a run that has ended, None for one that has not."""
        return read_json(self.metrics) if self.metrics.exists() and self.model.exists() else None

    def _clear(self) -> None:
        # Only what a run makes: the folder may be one where the user keeps other things. The settings go last, so that
        # what an interruption leaves is still known as a run.
        for name in self._names():
            remove(self.path / name)

    def _names(self) -> tuple[str, ...]:
        return (self.model_name, *MADE_BY_A_RUN)

    def save_checkpoint(self, step: int, model: Segmenter, optimizer: Optimizer) -> None:
        """Publish the state after ``step`` steps."""
        state = {"step": step, "model": model.network.state_dict(), "optimizer": optimizer.state_dict()}
        with publish(self.checkpoint) as partial:
            torch.save(state, partial)

    def load_checkpoint(self, model: Segmenter, optimizer: Optimizer) -> int:
        """Restore the newest checkpoint; returns the number of steps done, 0 where there is none.

        Raises:
            SettingsError: it is damaged, or of a network as an earlier version of the program built it.
        """
        if not self.checkpoint.exists():
            return 0
        try:
            state = torch.load(self.checkpoint, map_location=model.device, weights_only=True)
            model.network.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError, KeyError, TypeError, EOFError, UnpicklingError) as error:
            raise SettingsError(
                f"{self.checkpoint} is damaged, or of a network that is built otherwise now; --overwrite starts afresh"
            ) from error
        return int(state["step"])

    def finish(self, model: Segmenter, metrics: Mapping[str, Any], *, keep_checkpoint: bool) -> None:
        """Publish the model and its figures. The checkpoint, several times the model's size, is then of no more use."""
        save_model(model, self.model)
        write_json(self.metrics, metrics)
        if not keep_checkpoint:
            remove(self.checkpoint)


def _deciding(settings: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON keeps them, without those that may change."""
    values: dict[str, Any] = json.loads(json.dumps({k: v for k, v in settings.items() if k not in FREE_SETTINGS}))
    return values


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises SettingsError where the file holds something else."""
    try:
        values = json.loads(path.read_text())
    except ValueError:
        values = None
    if not isinstance(values, dict):
        raise SettingsError(f"{path} is not what a run writes; give another --out")
    return values
