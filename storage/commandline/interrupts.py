"""Ends a command in one line where Ctrl-C comes while its modules are still being imported.

The cli modules import this one before any other, so importing it installs the handler. Afterwards
:class:`~storage.commandline.command.Command` catches Ctrl-C itself and says what is kept.
"""

import sys
from types import TracebackType


def end(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Report what nobody caught: Ctrl-C in one line, anything else as Python does."""
    if issubclass(kind, KeyboardInterrupt):
        sys.stderr.write(f"{sys.argv[0].rpartition('/')[2]}: error: interrupted; nothing was done\n")
    else:
        sys.__excepthook__(kind, error, trace)


sys.excepthook = end
