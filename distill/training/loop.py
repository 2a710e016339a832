"""The training loop of supervised training and of distillation.

All randomness in a step is a pure function of (seed, step). So a run resumed from a checkpoint ends with the same
weights as an uninterrupted one.
"""

import dataclasses
import math
import time
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from functools import partial
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from distill.evaluation import Figures, read_figures
from distill.settings import OptimisationSettings
from distill.training.curves import Log, curve_log
from distill.training.interruption import Interruptions
from distill.training.processes import Processes, WeightedSum, here
from distill.training.run_folder import RunFolder
from distill.training.schedule import learning_rate, raise_momentum
from pipeline.models.segmenter import Segmenter
from pipeline.models.soundness import check_tensors
from storage.errors import DivergedError, ModelError, SettingsError
from storage.progress import Progress, Step

LOG_EVERY = 10
AHEAD = 2
"""Batches that are made in advance."""
BatchT = TypeVar("BatchT")


class Objective(Protocol[BatchT]):
    """The objective of a run: its data, its loss and its evaluation."""

    def batch(self, step: int, slots: range) -> BatchT:
        """The data of some slots of a step's batch, on the CPU. Another thread calls it ahead of time."""
        ...

    def loss(self, model: Segmenter, batch: BatchT, progress: float) -> WeightedSum:
        """The weighted loss of a batch at ``progress`` in [0, 1], before the division by its weights."""
        ...

    def evaluate(self, model: Segmenter) -> Figures | None:
        """Figures on held-out data; None without such data."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training(Generic[BatchT]):
    """One training run, which :meth:`run` carries out."""

    model: Segmenter
    objective: Objective[BatchT]
    settings: OptimisationSettings
    folder: RunFolder
    frozen: Sequence[nn.Module] = ()
    """Modules that stay in eval mode during training."""
    companions: nn.Module = dataclasses.field(default_factory=nn.Module)
    """What is trained beside the model and dropped at the end."""
    kept: Mapping[str, nn.Module] = dataclasses.field(default_factory=dict)
    """State of the objective that a checkpoint keeps as well, by name."""
    figures: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Figures of the run that are known before it begins; its metrics.json holds them too."""
    processes: Processes = dataclasses.field(default_factory=here)

    def run(self, progress: Progress) -> Figures | None:
        """Train from the last checkpoint (or the start) to the end, publish the model, and return its figures.

        A finished run is not changed. Ctrl-C and SIGTERM leave a checkpoint of the last step.

        Raises:
            DivergedError: a loss or a weight is not finite; nothing is published, and the last checkpoint is kept.
            SettingsError: a batch of one image is too small for BatchNorm.
        """
        settings = self.settings
        if (metrics := self.folder.finished()) is not None:
            progress(Step(done=settings.steps, total=settings.steps))
            try:
                return read_figures(metrics)
            except (KeyError, TypeError, AttributeError) as error:
                raise SettingsError(
                    f"{self.folder.metrics} is not what a run writes; --overwrite starts afresh"
                ) from error
        raise_momentum(self.model)
        both = (*self.model.parameters(), *self.companions.parameters())
        learning = [parameter for parameter in both if parameter.requires_grad]
        optimizer = torch.optim.AdamW(learning, lr=settings.lr, weight_decay=settings.weight_decay)
        start, spent = self.folder.load_checkpoint(self._state, optimizer, steps=settings.steps)
        clock = Clock(spent)
        progress(Step(done=start, total=settings.steps))
        evaluation = self._train(optimizer, start, clock, progress)
        metrics = {
            "steps": settings.steps,
            "seed": settings.seed,
            "seconds": round(clock.seconds, 1),
            **self.figures,
            **(evaluation.to_json() if evaluation else {}),
        }
        self.folder.finish(self.model, metrics, keep_checkpoint=settings.keep_checkpoint)
        return evaluation

    @property
    def _state(self) -> dict[str, nn.Module]:
        """Everything that a checkpoint keeps beside the optimiser's state, by name."""
        return {"model": self.model.network, "companions": self.companions, **self.kept}

    def _train(
        self, optimizer: torch.optim.Optimizer, start: int, clock: "Clock", progress: Progress
    ) -> Figures | None:
        """Take the steps from ``start`` on; return the figures of the last step."""
        settings, folder = self.settings, self.folder
        make = partial(self.objective.batch, slots=self.processes.slots(settings.batch_size))
        losses = Losses(start)
        loss, evaluation = "", None
        with (
            curve_log(folder.curves, step=start) as log,
            closing(ahead(make, start, settings.steps)) as batches,
            Interruptions() as interruptions,
        ):
            try:
                if start and settings.validates(start):  # it may have been stopped before or in this evaluation
                    evaluation = self._evaluate(start, log)
                for step, batch in batches:
                    with interruptions.held():
                        losses.add(self._step(optimizer, batch, step))
                        done = losses.done
                        last = done == settings.steps
                        if done % LOG_EVERY == 0 or last:
                            self._check_losses(losses)
                            log(done, {"loss": losses.latest, "lr": optimizer.param_groups[0]["lr"]})
                            loss = f"loss {losses.latest:.3f}"
                    if done % settings.checkpoint_every == 0 or last:
                        self._check_all(losses)
                        folder.save_checkpoint(done, self._state, optimizer, seconds=clock.seconds)
                    if settings.validates(done):
                        self._check_all(losses)
                        evaluation = self._evaluate(done, log)
                    note = ", ".join(filter(None, (loss, evaluation.note if evaluation else "")))
                    progress(Step(done=done, total=settings.steps, note=note))
            except KeyboardInterrupt:
                if losses.done > start:
                    self._check_all(losses)
                    folder.save_checkpoint(losses.done, self._state, optimizer, seconds=clock.seconds)
                raise
        return evaluation

    def _evaluate(self, done: int, log: Log) -> Figures | None:
        evaluation = self.objective.evaluate(self.model)
        if evaluation is not None:
            log(done, evaluation.curves)
        return evaluation

    def _check_losses(self, losses: "Losses") -> None:
        """Raise DivergedError if a loss since the last check is not finite."""
        step = losses.first_unsound()
        if step is not None:
            raise self._diverged(f"the loss of step {step + 1} of {self.settings.steps} is not finite", step)

    def _check_all(self, losses: "Losses") -> None:
        """Raise DivergedError if a loss since the last check, or a weight, is not finite."""
        self._check_losses(losses)
        try:
            for module in (self.model.network, self.companions):
                check_tensors(module.state_dict(), origin=f"after step {losses.done} of {self.settings.steps}")
        except ModelError as error:
            what = str(error).partition(";")[0]
            raise self._diverged(what, losses.done - 1) from error

    def _diverged(self, what: str, step: int) -> DivergedError:
        settings = self.settings
        lower = [f"a lower --lr (it was {settings.lr:g})", f"--clip ({settings.clip:g}; try 1)"]
        lower += ["--precision float32"] if settings.precision != "float32" else []
        kept = f"; {self.folder.checkpoint} of an earlier step is kept" if self.folder.checkpoint.exists() else ""
        return DivergedError(
            f"{what}: the run diverged, and nothing is published; start again with --overwrite and "
            f"{' or '.join(lower)}{kept}",
            step=step,
        )

    def _step(self, optimizer: torch.optim.Optimizer, batch: BatchT, step: int) -> Tensor:
        settings = self.settings
        torch.manual_seed((settings.seed * 1_000_003 + step) % 2**63)  # dropout
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(settings, step)
        self.model.train()
        for module in self.frozen:
            module.eval()
        with torch.autocast(self.model.device.type, torch.bfloat16, enabled=settings.precision == "bfloat16"):
            try:
                summed = self.objective.loss(self.model, batch, step / max(1, settings.steps - 1))
            except ValueError as error:
                if "more than 1 value per channel" not in str(error):
                    raise
                raise SettingsError(
                    "batch_size 1 is too small: BatchNorm of this network cannot train on one image; give 2 or more",
                    field="batch_size",
                ) from error
        loss = self.processes.joined(summed).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if settings.clip:
            nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], settings.clip)
        optimizer.step()
        return loss.detach()


class Losses:
    """The losses of the last steps. They stay on their device until somebody looks."""

    def __init__(self, start: int) -> None:
        self.done = start
        """The number of steps that are taken."""
        self._unseen: list[Tensor] = []
        self.latest = math.nan
        """The loss of the last step when it was looked at."""

    def add(self, loss: Tensor) -> None:
        """Note the loss of the next step, a scalar."""
        self._unseen.append(loss)
        self.done += 1

    def first_unsound(self) -> int | None:
        """The first step, counted from 0, whose loss is not finite; None if all are finite that were added since."""
        if not self._unseen:
            return None
        losses = torch.stack(self._unseen).tolist()
        first = self.done - len(losses)
        self._unseen.clear()
        self.latest = losses[-1]
        return next((first + place for place, loss in enumerate(losses) if not math.isfinite(loss)), None)


class Clock:
    """The seconds of a run, with those before it was interrupted."""

    def __init__(self, spent: float) -> None:
        self._start = time.monotonic() - spent

    @property
    def seconds(self) -> float:
        """Seconds since the start, without the interruptions."""
        return time.monotonic() - self._start


def ahead(
    make: Callable[[int], BatchT], start: int, end: int, depth: int = AHEAD
) -> Generator[tuple[int, BatchT], None, None]:
    """Yield (step, make(step)) for start <= step < end while threads make up to ``depth`` batches in advance."""
    with ThreadPoolExecutor(max_workers=depth, thread_name_prefix="batch") as pool:
        waiting: deque[tuple[int, Future[BatchT]]] = deque()
        for step in range(start, end):
            waiting.append((step, pool.submit(make, step)))
            if len(waiting) > depth:
                ready, future = waiting.popleft()
                yield ready, future.result()
        while waiting:
            ready, future = waiting.popleft()
            yield ready, future.result()
