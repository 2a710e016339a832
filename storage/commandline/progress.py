"""Progress on the terminal: a bar, or plain lines where there is no terminal."""

import sys
import time
from collections.abc import Iterable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from storage.progress import Step


def track(steps: Iterable[Step], *, title: str, unit: str, every: float = 10.0) -> Iterator[Step]:
    """Pass ``steps`` on while showing a progress bar, or plain lines ``every`` seconds where there is no terminal."""
    console = Console(stderr=True)
    yield from _bar(steps, console, title, unit) if console.is_terminal else _lines(steps, title, unit, every)


def _bar(steps: Iterable[Step], console: Console, title: str, unit: str) -> Iterator[Step]:
    columns = (
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"), TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
    )  # fmt: skip
    meter = _Meter()
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(title, total=None, rate="", note="")
        for step in steps:
            rate = f"{meter.rate(step):.1f} {unit}/s"
            progress.update(task, completed=step.done, total=step.total, rate=rate, note=step.note)
            yield step


def _lines(steps: Iterable[Step], title: str, unit: str, every: float) -> Iterator[Step]:
    meter, last = _Meter(), time.monotonic()
    for step in steps:
        rate, now = meter.rate(step), time.monotonic()
        if now - last >= every or step.done == step.total:
            left = (step.total - step.done) / rate if rate > 0 else float("nan")
            text = f"{title} {step.done}/{step.total} {unit}, {rate:.1f} {unit}/s, {left:.0f} s left"
            sys.stderr.write(f"{text}{', ' if step.note else ''}{step.note}\n")
            sys.stderr.flush()
            last = now
        yield step


class _Meter:
    """Rate of what this process did: what an earlier run had done already does not count."""

    def __init__(self) -> None:
        self.start: tuple[float, int] | None = None

    def rate(self, step: Step) -> float:
        """Units a second since the first report."""
        now = time.monotonic()
        if self.start is None:
            self.start = (now, step.done)
        seconds, done = now - self.start[0], step.done - self.start[1]
        return done / seconds if seconds > 0 else 0.0
