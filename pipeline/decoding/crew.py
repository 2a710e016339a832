"""Threads that work ahead, and of which one that never comes back is given up.

A read from a dead disk or server may never end, and no thread can be stopped from outside. So the threads do not keep
the process from ending, and another takes the place of one that is given up.
"""

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

Result = TypeVar("Result")
_LOOKS = 4
"""Times that a waiting thread looks, at least, before it gives up."""
_CLOSING = 10.0
"""Seconds that a crew waits for its threads when it is closed."""


class GivenUpError(Exception):
    """A piece of work took longer than it may."""


class Task(Generic[Result]):
    """A piece of work, which a thread of the crew does when it comes to it."""

    def __init__(self, work: Callable[..., Result], arguments: tuple[Any, ...]) -> None:
        self.future: Future[Result] = Future()
        self.given_up = False
        self._work, self._arguments = work, arguments

    def __call__(self) -> None:
        """Do the work."""
        if not self.future.set_running_or_notify_cancel():
            return
        try:
            result = self._work(*self._arguments)
        except BaseException as error:
            self.future.set_exception(error)
        else:
            self.future.set_result(result)


class Crew:
    """Does tasks in the order in which they were submitted, each for ``patience`` seconds at most."""

    def __init__(self, workers: int, *, patience: float, name: str) -> None:
        self._patience, self._name = patience, name
        self._tasks: queue.SimpleQueue[Task[Any] | None] = queue.SimpleQueue()
        self._threads = list[threading.Thread]()
        self._closed = False
        for _ in range(workers):
            self._hire()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed = True
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            thread.join(timeout=min(self._patience, _CLOSING))

    def submit(self, work: Callable[..., Result], *arguments: Any) -> Task[Result]:
        """Have some thread call ``work(*arguments)``."""
        task = Task(work, arguments)
        self._tasks.put(task)
        return task

    def result(self, task: Task[Result]) -> Result:
        """Wait for a task and return its result, or raise what it raised.

        Raises:
            GivenUpError: it has been worked on for longer than it may.
        """
        # Looks are counted and not a clock, so that a process that was stopped for an hour has not lost patience.
        look, looks = min(1.0, self._patience / _LOOKS), 0
        while not task.future.done():
            was_running = task.future.running()
            wait([task.future], timeout=look)
            looks += was_running
            if looks * look >= self._patience and not task.future.done():
                task.given_up = True
                self._hire()
                raise GivenUpError
        return task.future.result()

    def _hire(self) -> None:
        thread = threading.Thread(target=self._serve, name=self._name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _serve(self) -> None:
        while (task := self._tasks.get()) is not None and not self._closed:
            task()
            if task.given_up:  # another thread has taken this one's place
                return
