"""One process for each mutant: forked with the libraries loaded, it runs the tests on the changed source of one module.

Nothing is written into the working tree. The changed source is what the child's import of that module finds, and
whatever Python and pytest write goes to a temporary folder.
"""

import contextlib
import dataclasses
import gc
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import resource
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from types import CodeType, FrameType, ModuleType
from typing import Any

import pytest

from mutation.operators import Mutant

PATIENCE = 5.0
"""A run may take this many times as long as the tests without a mutant."""
MOST_BYTES = 8 << 30
"""Bytes that a mutant may allocate on top of the libraries, and write to one file."""
NOT_IMPORTED, BROKEN = 100, 101


@dataclasses.dataclass(frozen=True, kw_only=True)
class Baseline:
    """A run of the tests without a mutant."""

    seconds: dict[str, float]
    """Duration of each test, under the tracer."""
    tests: dict[str, dict[int, set[str]]]
    """For each file and line the tests that execute it; the empty name stands for its import."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict:
    """The verdict on a mutant."""

    mutant: Mutant
    status: str
    """``killed``, ``timeout``, ``survived``, or ``untried`` where the child broke before a test could tell."""
    killed_by: str
    covered: bool
    """Whether any test executes the changed statement."""
    seconds: float

    @property
    def killed(self) -> bool:
        """Whether the tests noticed it."""
        return self.status in {"killed", "timeout"}


def preload(names: Sequence[str]) -> None:
    """Import libraries for all children at once, without threads, which do not survive a fork."""
    for name in names:
        importlib.import_module(name)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    gc.freeze()  # the children's collections pass over what the libraries hold
    if threading.active_count() > 1:
        raise RuntimeError(f"a preloaded library started threads: {threading.enumerate()}")
    tasks = Path("/proc/self/task")  # threads that are not Python's
    if tasks.exists() and len(list(tasks.iterdir())) > 1:
        raise RuntimeError("a preloaded library started threads of its own; set OMP_NUM_THREADS=1, or preload less")


def module_name(file: str) -> str:
    """``pipeline.distances`` for pipeline/distances.py."""
    parts = Path(file).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


class MutantLoader(importlib.machinery.SourceFileLoader):
    """Gives a module the source of a mutant, and the name of its own file."""

    def __init__(self, name: str, path: str, source: str) -> None:
        super().__init__(name, path)
        self.source = source
        self.used = False

    def get_code(self, fullname: str) -> CodeType:
        """Compile the mutant; no compiled file is read or written."""
        self.used = True
        code: CodeType = compile(self.source, self.path, "exec", dont_inherit=True)
        return code


class MutantFinder(importlib.abc.MetaPathFinder):
    """Finds the mutant in place of its module."""

    def __init__(self, loader: MutantLoader) -> None:
        self.loader = loader

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """The mutated module's spec, None for every other module."""
        if fullname != self.loader.name:
            return None
        return importlib.util.spec_from_file_location(fullname, self.loader.path, loader=self.loader)


class Tracer:
    """A pytest plugin that notes which test executes which line of some files, and how long each test takes."""

    def __init__(self, root: Path, files: Sequence[str]) -> None:
        self.files = {str(root / file): file for file in files}
        self.lines: dict[str, dict[int, set[str]]] = {file: {} for file in files}
        self.seconds: dict[str, float] = {}
        self.test = ""

    def trace(self, frame: FrameType, event: str, _: object) -> Callable[..., Any] | None:
        file = self.files.get(frame.f_code.co_filename)
        if file is None:
            return None
        self.lines[file].setdefault(frame.f_lineno, set()).add(self.test)
        return self.trace

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        self.test, begin = item.nodeid, time.monotonic()
        try:
            return (yield)
        finally:
            self.seconds[item.nodeid], self.test = time.monotonic() - begin, ""


class Order:
    """A pytest plugin that runs first what executes the mutant, quick tests before slow ones, and notes what failed."""

    def __init__(self, covering: set[str], seconds: Mapping[str, float], report: Path) -> None:
        self.covering, self.seconds, self.report = covering, seconds, report

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items.sort(key=lambda item: (item.nodeid not in self.covering, self.seconds.get(item.nodeid, 0.0)))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            status = "timeout" if "from pytest-timeout" in report.longreprtext else "killed"
            self.report.write_text(f"{status} {report.nodeid}")


def run_pytest(files: Sequence[str], folder: Path, plugins: Sequence[object], *options: str) -> int:
    """Run tests in this process until the first failure; pytest's exit status."""
    arguments = [
        "-x",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "pytest_timeout",
        "-m",
        "not slow",
        f"--basetemp={folder / 'tests'}",
    ]
    arguments += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # of plugins that a preloaded library brings
    return int(pytest.main([*arguments, *options, *files], plugins=list(plugins)))


def start(work: Callable[[], int], root: Path, folder: Path) -> int:
    """Fork a child that does ``work`` with its output in ``folder``; its process id."""
    folder.mkdir()
    sys.stdout.flush()
    sys.stderr.flush()
    # An interruption waits until the fork is over: what Python runs around it would swallow the exception.
    held = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    pid = os.fork()
    if pid:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)
        return pid
    status = BROKEN
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, held)
        os.setsid()  # one group with its own children, to be killed together
        output = os.open(folder / "output", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.chdir(root)
        _limit_memory()
        status = work()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)  # no handler of the parent's runs, no thread is waited for


def _limit_memory() -> None:
    statm = Path("/proc/self/statm")
    if statm.exists():  # elsewhere the limit means something else
        held = int(statm.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held + MOST_BYTES, held + MOST_BYTES))
        resource.setrlimit(resource.RLIMIT_FSIZE, (MOST_BYTES, MOST_BYTES))


def kill(pid: int) -> None:
    """End a child and whatever it started."""
    kill_group(pid)
    os.kill(pid, signal.SIGKILL)  # it may not have made its group yet
    os.waitpid(pid, 0)


def kill_group(pid: int) -> None:
    """End whatever a child started and left behind."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def measure_baseline(root: Path, tests: Mapping[str, Sequence[str]], scratch: Path) -> Baseline:
    """Run the tests of all files without a mutant.

    Raises:
        RuntimeError: they fail, or never import one of the files.
    """
    folder = scratch / "baseline"

    def work() -> int:
        tracer = Tracer(root, list(tests))
        threading.settrace(tracer.trace)
        sys.settrace(tracer.trace)
        status = run_pytest(sorted({file for files in tests.values() for file in files}), folder, [tracer])
        sys.settrace(None)
        found = {file: {str(line): sorted(by) for line, by in lines.items()} for file, lines in tracer.lines.items()}
        (folder / "found.json").write_text(json.dumps({"seconds": tracer.seconds, "lines": found}))
        return status

    pid = start(work, root, folder)
    try:
        _, status = os.waitpid(pid, 0)
    except KeyboardInterrupt:
        kill(pid)
        raise
    if status != 0:
        raise RuntimeError(f"the tests fail without any mutant:\n{(folder / 'output').read_text()[-4000:]}")
    found = json.loads((folder / "found.json").read_text())
    lines = {file: {int(line): set(by) for line, by in by_line.items()} for file, by_line in found["lines"].items()}
    shutil.rmtree(folder)
    if unseen := [file for file, by_line in lines.items() if not by_line]:
        raise RuntimeError(f"the tests named for {', '.join(unseen)} never import it from {root}")
    return Baseline(seconds=found["seconds"], tests=lines)


class Trial:
    """A mutant and the child that tries it."""

    def __init__(
        self, mutant: Mutant, files: Sequence[str], baseline: Baseline, root: Path, folder: Path, least: float
    ) -> None:
        own = {test: seconds for test, seconds in baseline.seconds.items() if test.split("::")[0] in files}
        by_line = baseline.tests[mutant.file]
        covering = set[str]().union(*(by_line.get(line, set()) for line in mutant.lines))
        self.mutant, self.folder, self.covered = mutant, folder, bool(covering)
        self.begin = time.monotonic()
        self.deadline = self.begin + least + PATIENCE * sum(own.values())
        loader = MutantLoader(module_name(mutant.file), str(root / mutant.file), mutant.source)
        order = Order(set(own) if "" in covering else covering, own, folder / "killer")
        per_test = max(least, PATIENCE * max(own.values(), default=0.0))

        def work() -> int:
            sys.meta_path.insert(0, MutantFinder(loader))
            status = run_pytest(files, folder, [order], f"--timeout={per_test:.1f}")
            return status if loader.used or status else NOT_IMPORTED

        self.pid = start(work, root, folder)

    def poll(self) -> Verdict | None:
        """The verdict once there is one; a child that takes too long is ended."""
        pid, wait_status = os.waitpid(self.pid, os.WNOHANG)
        late = not pid and time.monotonic() > self.deadline
        if late:
            kill(self.pid)
        elif not pid:
            return None
        kill_group(self.pid)
        status, killed_by = ("timeout", "") if late else self._outcome(os.waitstatus_to_exitcode(wait_status))
        verdict = Verdict(
            mutant=self.mutant,
            status=status,
            killed_by=killed_by,
            covered=self.covered,
            seconds=time.monotonic() - self.begin,
        )
        shutil.rmtree(self.folder, ignore_errors=True)
        return verdict

    def _outcome(self, exit_status: int) -> tuple[str, str]:
        killer = self.folder / "killer"
        if killer.exists():
            status, test = killer.read_text().split(" ", maxsplit=1)
            return status, test
        if exit_status in (NOT_IMPORTED, BROKEN):
            return "untried", ""
        return ("killed", f"exit status {exit_status}") if exit_status else ("survived", "")


def try_all(
    mutants: Sequence[Mutant],
    tests: Mapping[str, Sequence[str]],
    baseline: Baseline,
    root: Path,
    scratch: Path,
    jobs: int,
    least: float,
) -> Iterator[Verdict]:
    """Try mutants, ``jobs`` at a time, and yield each verdict as it comes; each is given ``least`` seconds or more."""
    waiting = list(enumerate(mutants))[::-1]
    running: list[Trial] = []
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                number, mutant = waiting.pop()
                running.append(Trial(mutant, tests[mutant.file], baseline, root, scratch / str(number), least))
            time.sleep(0.02)
            for trial in list(running):
                if verdict := trial.poll():
                    running.remove(trial)
                    yield verdict
    finally:
        for trial in running:
            kill(trial.pid)
