"""Errors that a user can act on. Each says what is wrong, where, and what to do next, in one line.

Every class also subclasses the builtin that a Python programmer would catch, so library users need not know ours.
Commands turn any :class:`DFSSError` into one line on stderr and its ``exit_code``. Any other exception is a bug in
DFSS.
"""


class DFSSError(Exception):
    """Base of all errors of this project."""

    exit_code = 1


class SettingsError(DFSSError, ValueError):
    """A setting has a value that cannot be used."""

    exit_code = 2

    def __init__(self, message: str, *, field: str | None = None) -> None:
        """Make the error. ``field`` names the setting that the message is about, if there is one."""
        super().__init__(message)
        self.field = field


class CorpusError(DFSSError, FileNotFoundError):
    """A corpus, or an image of its manifest, does not exist or cannot be listed."""


class ImageError(DFSSError, ValueError):
    """The bytes of one image cannot be decoded. The error is recorded in the image's row and never stops a run."""


class RejectedImageError(ImageError):
    """The image decodes but cannot be used, for instance because it is too small."""


class ModelError(DFSSError, ValueError):
    """A model file cannot be read, rebuilt, or used for what was asked."""


class StoreError(DFSSError, ValueError):
    """A score store is missing, incomplete, busy, or was made with other settings."""


class SelectionError(DFSSError, ValueError):
    """A selection file is missing, malformed, or belongs to other scores."""


class DivergedError(DFSSError, ArithmeticError):
    """A training run came to values that are not finite. Nothing of it is published."""

    def __init__(self, message: str, *, step: int) -> None:
        """Make the error. ``step`` is the first step with such a value, counted from 0."""
        super().__init__(message)
        self.step = step


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived, as a batch system sends it before it kills a job."""


class DataError(DFSSError, ValueError):
    """Labelled data for training or evaluation is missing or does not fit the model."""
