"""Ctrl-C and SIGTERM during training: a step is never broken off, so that a checkpoint can be kept."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from storage.errors import Terminated


class Interruptions:
    """Turns SIGINT and SIGTERM into exceptions, but not inside :meth:`held`.

    As a context manager it replaces the handlers of the process and puts them back. Only the main thread can; in any
    other it does nothing, and neither signal reaches that thread. A signal that the process ignores stays ignored.
    """

    def __init__(self) -> None:
        self._held = False
        self._waiting: int | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> "Interruptions":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) != signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._held:
            self._waiting = number
        else:
            _raise(number)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Let the block end before a signal that arrives meanwhile raises its exception.

        Raises:
            KeyboardInterrupt: SIGINT arrived in the block.
            Terminated: SIGTERM arrived in the block.
        """
        self._held = True
        try:
            yield
        finally:
            self._held = False
        if self._waiting is not None:
            _raise(self._waiting)


def _raise(number: int) -> None:
    raise Terminated if number == signal.SIGTERM else KeyboardInterrupt
