"""Shows progress: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from storage.commandline.terminal import one_line
from storage.progress import Progress, Step


@contextmanager
def shown(title: str, unit: str, *, every: float = 10.0) -> Iterator[Progress]:
    """Show the progress of the block: a bar on a terminal, elsewhere a line every ``every`` seconds."""
    console = Console(stderr=True)
    with _bar(console, title, unit) if console.is_terminal else _lines(title, unit, every) as progress:
        yield progress


@contextmanager
def _bar(console: Console, title: str, unit: str) -> Iterator[Progress]:
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"), TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
    )  # fmt: skip
    meter = _Meter()
    with Bar(*columns, console=console) as bar:
        task = bar.add_task(title, total=None, rate="", note="")

        def show(step: Step) -> None:
            rate = meter.rate(step)
            text = f"{rate:.1f} {step.unit or unit}/s" if rate else ""
            bar.update(
                task, description=step.task or title, completed=step.done, total=step.total, rate=text, note=step.note
            )

        yield show


@contextmanager
def _lines(title: str, unit: str, every: float) -> Iterator[Progress]:
    meter, last = _Meter(), time.monotonic()

    def show(step: Step) -> None:
        nonlocal last
        rate, now = meter.rate(step), time.monotonic()
        if now - last < every and step.done != step.total:
            return
        counted = step.unit or unit
        words = [f"{step.task or title} {step.done}/{step.total} {counted}"]
        if rate:
            words += [f"{rate:.1f} {counted}/s", f"{(step.total - step.done) / rate:.0f} s left"]
        sys.stderr.write(one_line(", ".join([*words, step.note] if step.note else words)) + "\n")
        sys.stderr.flush()
        last = now

    yield show


class _Meter:
    """The rate of this process's own work. Units that an earlier run finished do not count."""

    def __init__(self) -> None:
        self.start: tuple[float, int] | None = None
        self.task = ""

    def rate(self, step: Step) -> float:
        """Units per second since the first report of the task; 0 as long as the rate is unknown."""
        now = time.monotonic()
        if self.start is None or step.task != self.task:
            self.start, self.task = (now, step.done), step.task
        seconds, done = now - self.start[0], step.done - self.start[1]
        return done / seconds if seconds > 0 else 0.0
