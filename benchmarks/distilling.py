"""Cost of a step of ``dfss-distill`` relative to the network passes that it needs.

``python benchmarks/distilling.py --json benchmarks/results/distilling.json``

``ratio_step`` is the time of our step over the time of a bare step. Our step has reading, views, both networks,
weighted loss, optimiser and curves. The bare step has the teacher's forward, the student's forward and backward, and
the optimiser, always on the same batch. Both are timed in turn in one process, and the figure is the median of the
rounds' ratios. Lower is better, and 1 is the least.

``ratio_run`` is the same for a step with ``--views``, averaged over a run of RUN_STEPS steps on RUN_IMAGES images: the
time to ask the teacher once about every view is divided among the steps. Views are asked about, and steps with the
kept answers are taken, on the benchmark's images, in turn with bare steps.
"""

import argparse
import dataclasses
import json
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import machine, median_ratio, side_by_side
from scoring import photograph, teacher_of, write_tar
from torch.nn import functional as F

from distill.answers import BATCH
from distill.distillation import distill
from distill.settings import DistillSettings
from pipeline.models.builders import resolve_builder
from pipeline.models.files import load_model
from pipeline.models.segmenter import build_model
from pipeline.process import keep_freed_memory
from pipeline.scoring.run import score
from pipeline.settings import ScoreSettings
from storage.progress import Progress, Step

STEPS = 10  # in a round
RUN_STEPS, RUN_IMAGES = 2000, 466  # of the run that ratio_run is for


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="deeplabv3_resnet50")
    parser.add_argument("--student", default="lraspp_mobilenet_v3_large")
    parser.add_argument("--size", type=int, nargs=2, default=[192, 256], metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--views", type=int, default=8, help="views that the teacher is asked about once")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as temporary:
        times = measure(Path(temporary), options)
    names = ("teacher", "student", "size", "batch_size", "rounds", "images", "views")
    settings = {name: vars(options)[name] for name in names} | {"run_steps": RUN_STEPS, "run_images": RUN_IMAGES}
    batches = RUN_IMAGES * options.views / BATCH  # of the teacher, which one round asks STEPS of
    result: dict[str, Any] = {
        "ratio_step": median_ratio(times["ours"], times["bare"]),
        "ratio_run": median_ratio(times["kept"], times["bare beside kept"])
        + median_ratio(times["asked"], times["bare beside asked"]) * batches / RUN_STEPS,
        "ratio_kept_step": median_ratio(times["kept"], times["bare beside kept"]),
        "steps_per_second": STEPS / float(np.median(times["ours"])),
        "kept_steps_per_second": STEPS / float(np.median(times["kept"])),
        "settings": settings,
        "machine": machine(),
    }
    print(json.dumps(result, indent=2))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


def measure(folder: Path, options: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of STEPS steps for each round: bare, ours, and ours with kept answers; and of asking STEPS times."""
    teacher = teacher_of(options.teacher, options.size, folder)
    write_tar(folder / "images.tar", options.images, photograph)
    scores = folder / "scores.zarr"
    score(ScoreSettings(corpus=str(folder / "images.tar"), teacher=str(teacher), out=str(scores), batch_size=8))
    settings = DistillSettings(
        shards=str(scores),
        budget=1.0,
        student=options.student,
        batch_size=options.batch_size,
        steps=STEPS * (options.rounds + 1) + 1,
        eval_every=10**9,
        checkpoint_every=10**9,
        views=0,
        out=str(folder / "run"),
    )
    bare = bare_steps(teacher, options)
    with Paused(lambda progress: distill(settings, progress)) as run:
        times = side_by_side({"bare": bare, "ours": lambda: run.go_on(STEPS)}, options.rounds)
    # Asking reports each batch of the teacher, so that it can be paused too. It must not end within the rounds.
    asked = dataclasses.replace(settings, views=-(-BATCH * STEPS * (options.rounds + 2) // (options.images - 8)))
    asked = dataclasses.replace(asked, out=str(folder / "asked"), answers=str(folder / "asked answers"))
    with Paused(lambda progress: distill(asked, progress)) as run:
        times |= in_turn(bare, "asked", run, options.rounds)
    kept = dataclasses.replace(settings, views=options.views, out=str(folder / "kept"))
    with Paused(lambda progress: distill(kept, progress)) as run:
        while run.last.task:  # the teacher is being asked
            run.go_on(1)
        return times | in_turn(bare, "kept", run, options.rounds)


def in_turn(bare: Callable[[], None], name: str, run: "Paused", rounds: int) -> dict[str, list[float]]:
    """Seconds of STEPS reports of a run, and of bare steps in turn with them."""
    times = side_by_side({"bare": bare, name: lambda: run.go_on(STEPS)}, rounds)
    return {name: times[name], f"bare beside {name}": times["bare"]}


class Paused:
    """A stage in a thread of its own that pauses between its reports, so that another can be timed in turn with it."""

    def __init__(self, stage: Callable[[Progress], object]) -> None:
        self._may_go, self._reported = threading.Semaphore(0), threading.Semaphore(0)
        self._ended = False
        self.last = Step(done=0, total=0)
        """The last report."""
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, args=(stage,))

    def __enter__(self) -> "Paused":
        self._thread.start()
        self._wait()  # for the report of the start, before any step
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._ended = True
        self._may_go.release()
        self._thread.join()

    def go_on(self, steps: int) -> None:
        """Let the stage take some steps."""
        for _ in range(steps):
            self._may_go.release()
            self._wait()

    def _wait(self) -> None:
        self._reported.acquire()
        if self._error is not None:
            raise self._error

    def _run(self, stage: Callable[[Progress], object]) -> None:
        try:
            stage(self._report)
        except KeyboardInterrupt:
            pass
        except Exception as error:
            self._error = error
            self._reported.release()

    def _report(self, step: Step) -> None:
        self.last = step
        self._reported.release()
        self._may_go.acquire()
        if self._ended:
            raise KeyboardInterrupt


def bare_steps(path: Path, options: argparse.Namespace) -> Callable[[], None]:
    """A function that takes STEPS steps on one normalised batch, which is on the device already."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    teacher = load_model(path).to(device).requires_grad_(False)
    spec = dataclasses.replace(teacher.spec, builder=resolve_builder(options.student), arguments={})
    student = build_model(spec).to(device).train()
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3, weight_decay=1e-4)
    batch = torch.rand((options.batch_size, 3, *options.size), device=device)
    batch = batch.contiguous(memory_format=torch.channels_last)

    def run() -> None:
        for _ in range(STEPS):
            with torch.no_grad():
                target = teacher(batch).log_softmax(dim=1)
            loss = F.kl_div(student(batch).log_softmax(dim=1), target, reduction="batchmean", log_target=True)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    return run


if __name__ == "__main__":
    main()
