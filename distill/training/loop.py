"""The training loop that a supervised teacher and a distilled student share.

Learning rate: linear warm-up over the first share of the steps, then half a cosine to 0. Everything random in a step
is a pure function of (seed, step), so that a run resumed from a checkpoint ends with the weights of an undisturbed
one.
"""

import dataclasses
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from distill.evaluation import Evaluation
from distill.settings import OptimisationSettings
from distill.training.curves import curve_log
from distill.training.run_folder import RunFolder
from distill.training.schedule import learning_rate, raise_momentum
from pipeline.models.segmenter import Segmenter
from storage.errors import SettingsError
from storage.progress import Step

LOG_EVERY = 10


BatchT = TypeVar("BatchT")


class Objective(Protocol[BatchT]):
    """What a run trains towards."""

    def batch(self, step: int) -> BatchT:
        """The data of a step, on the CPU; called ahead of time from another thread."""
        ...

    def loss(self, model: Segmenter, batch: BatchT, progress: float) -> Tensor:
        """Scalar loss of a batch at ``progress`` in [0, 1]."""
        ...

    def evaluate(self, model: Segmenter) -> Evaluation | None:
        """Figures on held-back data, None where there is none."""
        ...


@dataclasses.dataclass(kw_only=True)
class Training(Generic[BatchT]):
    """One run; iterate over :meth:`run` to carry it out."""

    model: Segmenter
    objective: Objective[BatchT]
    settings: OptimisationSettings
    folder: RunFolder
    resting: Sequence[nn.Module] = ()
    """Modules that stay in eval mode."""
    evaluation: Evaluation | None = None
    """The last step's, once the run has ended."""

    def run(self) -> Iterator[Step]:
        """Train from the last checkpoint (or the start) to the end, then publish the model."""
        settings = self.settings
        raise_momentum(self.model)
        learning = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(learning, lr=settings.lr, weight_decay=settings.weight_decay)
        start = self.folder.load_checkpoint(self.model, optimizer)
        yield Step(done=start, total=settings.steps)
        note, loss = "", math.nan
        with curve_log(self.folder.curves, step=start) as live:
            for step, batch in ahead(self.objective.batch, start, settings.steps):
                loss_tensor = self._step(optimizer, batch, step)
                done = step + 1
                last = done == settings.steps
                if done % LOG_EVERY == 0 or last:
                    loss = float(loss_tensor)
                    live.step = done
                    live.log_metric("loss", loss)
                    live.log_metric("lr", optimizer.param_groups[0]["lr"])
                if done % settings.checkpoint_every == 0 or last:
                    self.folder.save_checkpoint(done, self.model, optimizer)
                if done % settings.validate_every == 0 or last:
                    self.evaluation = self.objective.evaluate(self.model)
                    live.step = done
                    _log_evaluation(live, self.evaluation)
                note = f"loss {loss:.3f}" + (f", mIoU {self.evaluation.miou:.3f}" if self.evaluation else "")
                yield Step(done=done, total=settings.steps, note=note)
            if start == settings.steps:
                self.evaluation = self.objective.evaluate(self.model)
        self.folder.finish(self.model, self._metrics())

    def _step(self, optimizer: torch.optim.Optimizer, batch: BatchT, step: int) -> Tensor:
        settings = self.settings
        torch.manual_seed((settings.seed * 1_000_003 + step) % 2**63)  # dropout
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(settings, step)
        self.model.train()
        for module in self.resting:
            module.eval()
        device = self.model.mean_3HW.device
        with torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bfloat16"):
            try:
                loss = self.objective.loss(self.model, batch, step / max(1, settings.steps - 1))
            except ValueError as error:
                if "more than 1 value per channel" not in str(error):
                    raise
                raise SettingsError(
                    "BatchNorm cannot train on one image at a time here; give --batch-size 2"
                ) from error
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return loss.detach()

    def _metrics(self) -> dict[str, Any]:
        figures = self.evaluation.to_json() if self.evaluation else {}
        return {"steps": self.settings.steps, "seed": self.settings.seed} | figures


def _log_evaluation(live: Any, evaluation: Evaluation | None) -> None:
    if evaluation is not None:
        live.log_metric("miou", evaluation.miou)
        live.log_metric("pixel_accuracy", evaluation.pixel_accuracy)


def ahead(make: Callable[[int], BatchT], start: int, end: int, depth: int = 2) -> Iterator[tuple[int, BatchT]]:
    """Yield (step, make(step)) for start <= step < end while threads make up to ``depth`` batches in advance."""
    with ThreadPoolExecutor(max_workers=depth, thread_name_prefix="batch") as pool:
        waiting: deque[tuple[int, Future[BatchT]]] = deque()
        try:
            for step in range(start, end):
                waiting.append((step, pool.submit(make, step)))
                if len(waiting) > depth:
                    ready, future = waiting.popleft()
                    yield ready, future.result()
            while waiting:
                ready, future = waiting.popleft()
                yield ready, future.result()
        finally:
            pool.shutdown(cancel_futures=True)
