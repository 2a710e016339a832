"""DFSS: data-free distillation for semantic segmentation, from Python.

Each stage is one function. Its keyword arguments are the fields of its settings, which are also the options of its
command; ``progress`` is called with every :class:`~storage.progress.Step`. Importing this module imports nothing
heavy::

    >>> import dfss
    >>> scores = dfss.score(corpus="images", teacher="teacher.safetensors", layers=["all"])
    >>> scores.scored
    23
    >>> chosen = dfss.select(shards="scores.zarr", budget=12)
    >>> student = dfss.distill(shards="scores.zarr", student="tiny_models:small", steps=4)
    >>> student.path.name
    'student.safetensors'
    >>> result = dfss.evaluate(model=student.path, data="labelled")
    >>> 0 <= result.evaluation.miou <= 1
    True

Errors are subclasses of :class:`~storage.errors.DFSSError` and of the builtin that fits: SettingsError is a ValueError.
"""

import inspect
import sys
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from os import PathLike
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeVar


def _check_rooms() -> None:
    """End in one line where a folder of the user's, on PYTHONPATH, has the name of one of our packages.

    Raises:
        ImportError: there is one, and this module is imported and not a command.
    """
    name = Path(sys.argv[0]).stem
    for room in ("storage", "pipeline", "distill"):
        spec = find_spec(room)
        places = list(spec.submodule_search_locations or [spec.origin or ""]) if spec else []
        if any(Path(place).resolve() == Path(__file__).resolve().parent / room for place in places):
            continue
        found = f"is {places[0]}" if places else "is missing"
        message = f"package {room!r} {found}, not the one of DFSS; rename it, or take its folder off PYTHONPATH"
        if name.startswith("dfss"):
            sys.exit(f"{name}: error: {message}")
        raise ImportError(message)
    if name.startswith("dfss"):  # a command: Ctrl-C during the imports below ends it in one line
        import storage.commandline.interrupts  # noqa: F401


_check_rooms()

# isort: split

from distill.settings import DistillSettings, EvalSettings, TrainSettings
from pipeline.settings import ImportSettings, ScoreSettings, SelectSettings, SynthesisSettings
from storage.commandline.declaration import fields_of
from storage.commandline.values import one_of
from storage.errors import DFSSError, SettingsError
from storage.progress import Progress, Step, ignore

if TYPE_CHECKING:
    from distill.distillation import DistillResult
    from distill.evaluation import EvalResult
    from distill.supervised import TrainResult
    from pipeline.models.segmenter import ModelSpec, Segmenter
    from pipeline.scoring.run import ScoreResult
    from pipeline.selection.select import SelectResult
    from pipeline.synthesis import SynthesisResult
    from storage.scores.store import ScoreStore

__all__ = [
    "DFSSError",
    "Step",
    "distill",
    "evaluate",
    "import_model",
    "load_model",
    "open_scores",
    "score",
    "select",
    "synthesize",
    "train",
]
__version__ = version("dfss")

COMMANDS = {
    "score": "pipeline.cli:score",
    "select": "pipeline.cli:select",
    "synthesize": "pipeline.cli:synthesize",
    "distill": "distill.cli:distill",
    "eval": "distill.cli:evaluate",
    "import": "pipeline.cli:import_model",
    "train": "distill.cli:train",
}
"""The subcommands of ``dfss`` in their usual order, and where they are defined."""

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])


def _takes(settings: type[Any]) -> Callable[[FunctionT], FunctionT]:
    """Give a stage the signature that its settings declare, for help(), editors and notebooks."""

    def declare(stage: FunctionT) -> FunctionT:
        kind = inspect.Parameter.KEYWORD_ONLY
        parameters = [
            inspect.Parameter(field.name, kind, default=inspect.Parameter.empty if field.required else field.default)
            for field in fields_of(settings)
        ]
        parameters.append(inspect.Parameter("progress", kind, default=ignore))
        stage.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        described = "\n".join(f"        {field.name}: {field.help}." for field in fields_of(settings))
        stage.__doc__ = f"{(stage.__doc__ or '').rstrip()}\n\n    Settings:\n{described}\n    "
        return stage

    return declare


def _settings(kind: type[Any], values: dict[str, Any]) -> Any:
    """Make settings.

    Raises:
        SettingsError: a name is not one of their fields, or a required one is missing.
    """
    fields = fields_of(kind)
    for name in values:
        try:
            one_of(name, [field.name for field in fields])
        except ValueError as error:
            raise SettingsError(f"setting {name!r} {error}") from None
    if missing := [field.name for field in fields if field.required and field.name not in values]:
        raise SettingsError(f"{missing[0]} is missing; give {missing[0]}=...", field=missing[0])
    return kind(**values)


@_takes(ScoreSettings)
def score(*, progress: Progress = ignore, **settings: Any) -> "ScoreResult":
    """Stage one: measure every image of a corpus against the teacher's BatchNorm statistics.

    An interrupted run is continued by the same call.

        >>> dfss.score(corpus="images", teacher="teacher.safetensors", out="fast.zarr").unreadable
        0

    Raises:
        CorpusError: the corpus is missing or empty.
        ModelError: the teacher is missing, has no BatchNorm, or lacks a layer in ``layers``.
        StoreError: the store was made with other settings, or another run is writing it.
    """
    from pipeline.scoring.run import score as run

    return run(_settings(ScoreSettings, settings), progress)


@_takes(SelectSettings)
def select(*, progress: Progress = ignore, **settings: Any) -> "SelectResult":
    """ADS, Approximate Distribution Sampling: order the scored images and keep the first of them.

        >>> dfss.select(shards="scores.zarr", budget=3).selection.table["rank"].tolist()
        [0, 1, 2]

    Raises:
        StoreError: the scores are missing or not complete.
        SettingsError: the budget is larger than the number of scored images.
    """
    from pipeline.selection.select import select as run

    return run(_settings(SelectSettings, settings), progress)


@_takes(SynthesisSettings)
def synthesize(*, progress: Progress = ignore, **settings: Any) -> "SynthesisResult":
    """Make images by optimisation to the teacher's BatchNorm statistics, from noise or from selected photographs.

        >>> dfss.synthesize(teacher="teacher.safetensors", count=2, steps=1, out="made").images
        2

    Raises:
        ModelError: the teacher is missing, or has no BatchNorm.
        SettingsError: the folder already exists, or the selection is too small.
        DivergedError: the loss is not finite; nothing is written.
    """
    from pipeline.synthesis import synthesize as run

    return run(_settings(SynthesisSettings, settings), progress)


@_takes(DistillSettings)
def distill(*, progress: Progress = ignore, **settings: Any) -> "DistillResult":
    """Stage two: train a student on the selected images by WDPD, Weighted Distribution Progressive Distillation.

        >>> result = dfss.distill(shards="scores.zarr", student="tiny_models:small", steps=2, out="runs/small")
        >>> len(result.selection)
        3

    Raises:
        StoreError: the scores are missing or not complete.
        SelectionError: the selection cannot be used.
        ModelError: teacher or student cannot be built, or differ in their classes.
        DivergedError: a loss or a weight is no longer finite; nothing is published.
    """
    from distill.distillation import distill as run

    return run(_settings(DistillSettings, settings), progress)


@_takes(TrainSettings)
def train(*, progress: Progress = ignore, **settings: Any) -> "TrainResult":
    """Train a model on labelled images: a teacher to try DFSS with, or a reference student.

        >>> teacher = dfss.train(data="labelled", builder="tiny_models:tiny", image_size=(24, 32), steps=2)
        >>> teacher.path.name
        'model.safetensors'

    Raises:
        DataError: the data is malformed, or has no class names.
        ModelError: the network cannot be built.
        DivergedError: a loss or a weight is no longer finite; nothing is published.
    """
    from distill.supervised import train as run

    return run(_settings(TrainSettings, settings), progress)


@_takes(EvalSettings)
def evaluate(*, progress: Progress = ignore, **settings: Any) -> "EvalResult":
    """Measure mIoU, IoU by class and pixel accuracy of one or more models on labelled images.

        >>> results = dfss.evaluate(model={"teacher": "teacher.safetensors"}, data="labelled")
        >>> list(results.evaluations)
        ['teacher']

    Raises:
        DataError: the data is malformed, or has other classes than a model.
        ModelError: a model cannot be loaded.
    """
    from distill.evaluation import evaluate_models as run

    return run(_settings(EvalSettings, settings), progress)


@_takes(ImportSettings)
def import_model(*, progress: Progress = ignore, **settings: Any) -> "ModelSpec":
    """Make a model file from weights that come from elsewhere, and return its description.

    Raises:
        ModelError: the weights cannot be read safely, or do not fit the builder.
        SettingsError: the settings contradict each other, or the file already exists.
    """
    from pipeline.models.importing import import_weights as run

    return run(_settings(ImportSettings, settings), progress)


def load_model(source: "str | PathLike[str]") -> "Segmenter":
    """Load a model file, or official weights by name, in eval mode. It takes RGB in [0, 1], [N, 3, H, W].

        >>> dfss.load_model("teacher.safetensors").spec.class_names
        ('sky', 'road', 'car')

    Raises:
        ModelError: it is missing, damaged, or would run code that is not trusted.
    """
    from os import fspath

    from pipeline.models.files import load_model as run

    return run(fspath(source))


def open_scores(path: "str | PathLike[str]") -> "ScoreStore":
    """Open a complete score store for reading.

        >>> dfss.open_scores("scores.zarr").to_pandas().columns.tolist()
        ['key', 'distance', 'status', 'error', 'content', 'cell']

    Raises:
        StoreError: it is missing, incomplete, or of another schema.
    """
    from pathlib import Path

    from storage.scores.store import open_complete

    return open_complete(Path(path))


def main(argv: list[str] | None = None) -> None:
    """Run ``dfss COMMAND ...``.

    Raises:
        SystemExit: always, with the exit code.
    """
    from storage.commandline.command import run_one_of

    run_one_of(COMMANDS, name="dfss", version=__version__, argv=argv)


def _run(place: str, argv: list[str] | None = None) -> None:
    from storage.commandline.command import found

    found(place)(argv)


scripts = SimpleNamespace(**{place.partition(":")[2]: partial(_run, place) for place in COMMANDS.values()})
"""The console scripts, such as ``scripts.score`` for ``dfss-score``; each takes a list of words, by default its own.

They begin here, where foreign packages are noticed before they are imported."""


if __name__ == "__main__":
    main()
