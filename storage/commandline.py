"""Turns a settings dataclass into a typer command. For the ``cli`` modules only.

A setting is declared once, as a field ``name: Annotated[type, "help"] = default`` of a frozen dataclass. From it come
the option ``--name``, its help and its type check; a value for it in the command's section of ``params.yaml`` in the
current folder stands in for the default. The command line wins over params.yaml, params.yaml over the default.
"""

import ctypes
import dataclasses
import inspect
import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar, get_args, get_type_hints

import typer
import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from storage.errors import DFSSError, SettingsError
from storage.progress import Step

PARAMS_FILE = Path("params.yaml")
TOP_SECTION = "dfss"
"""Our part of params.yaml, which the user's own pipeline may share."""

SettingsT = TypeVar("SettingsT")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command(Generic[SettingsT]):
    """One console script: ``Command(...)()`` parses ``sys.argv``, runs, and exits."""

    name: str
    settings: type[SettingsT]
    section: str
    """Section of params.yaml that holds this command's values."""
    run: Callable[[SettingsT], None]
    help: str
    example: str
    flags: Mapping[str, tuple[Callable[[], None], str]] = dataclasses.field(default_factory=dict)
    """Options that do one thing and end, like ``--list-corpora``: name -> (action, help)."""
    methods: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    """``--method NAME`` stands for these values of settings; other options on the same command line win over them."""
    interrupted: str = "what was finished is kept"
    """What the user is told after Ctrl-C."""

    def __call__(self, argv: list[str] | None = None) -> None:
        """Run with ``argv`` (default: the process's own). Raises SystemExit with the exit code."""
        logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
        keep_freed_memory()
        app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        try:
            given = self._defaults()
            app.command(help=f"{self.help}\n\nExample: {self.example}")(self._callback(given))
            app(args=argv, prog_name=self.name, default_map=given)
        except DFSSError as error:
            self._fail(str(error), error.exit_code)
        except OSError as error:  # a full disk, a read-only folder: the machine's trouble, not a bug
            self._fail(str(error), 1)
        except Exception as error:
            if type(error).__name__ != "OutOfMemoryError":  # torch's, which this module must not import
                raise
            self._fail("the device is out of memory; give a smaller --batch-size", 1)

    def _fail(self, message: str, code: int) -> None:
        sys.stderr.write(f"{self.name}: error: {' '.join(message.split())}\n")
        raise SystemExit(code)

    def _callback(self, given: Mapping[str, Any]) -> Callable[..., None]:
        known = {field.name for field, _ in _fields(self.settings)}

        def callback(**options: Any) -> None:
            try:
                self.run(self.settings(**{name: value for name, value in options.items() if name in known}))
            except KeyboardInterrupt:
                self._fail(f"interrupted; {self.interrupted}", 130)

        parameters = [_parameter(field, hint) for field, hint in _fields(self.settings)]
        parameters += [_flag(name, action, text) for name, (action, text) in self.flags.items()]
        if self.methods:
            parameters.append(_method(self.methods, given))
        callback.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        callback.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return callback

    def _defaults(self) -> dict[str, Any]:
        known = {field.name for field, _ in _fields(self.settings)}
        given = read_section(PARAMS_FILE, self.section)
        known |= {"method"} if self.methods else set()
        if unknown := sorted(set(given) - known):
            raise SettingsError(
                f"{PARAMS_FILE}: {TOP_SECTION}.{self.section}.{unknown[0]} is no setting of {self.name}; "
                f"it knows {', '.join(sorted(known))}"
            )
        return given


def keep_freed_memory() -> None:
    """Let the C library keep what large tensors free, for the next ones, instead of giving every one back to the
    system and having its pages zeroed again: on CPUs a quarter to a third of a network's forward (docs/speed.md).

    For the owner of a process; does nothing where there is no glibc.
    """
    m_trim_threshold, m_mmap_threshold = -1, -3  # malloc.h
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(m_trim_threshold, 2**31 - 1)
        # Older ones take no more than 32 MiB, and say 0 then.
        _ = mallopt(m_mmap_threshold, 1 << 30) or mallopt(m_mmap_threshold, 1 << 25)


def say(text: str) -> None:
    """Print a line to stdout as it is: no wrapping, no markup."""
    Console().print(text, highlight=False, soft_wrap=True, markup=False)


def read_section(path: Path, section: str) -> dict[str, Any]:
    """Read ``dfss.SECTION`` of a YAML file; {} where the file or the section is absent.

    Raises:
        SettingsError: the file is no YAML, or the section no mapping.
    """
    if not path.is_file():
        return {}
    try:
        document = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is not valid YAML: {error}") from error
    values: Any = document if isinstance(document, dict) else {}
    for name in (TOP_SECTION, section):
        values = values.get(name) or {}
        if not isinstance(values, dict):
            raise SettingsError(f"{path}: {name} must map settings to values")
    return {name: value for name, value in values.items() if value is not None}


def _fields(settings: type[Any]) -> Iterator[tuple[dataclasses.Field[Any], Any]]:
    hints = get_type_hints(settings, include_extras=True)
    for field in dataclasses.fields(settings):
        yield field, hints[field.name]


def _parameter(field: dataclasses.Field[Any], hint: Any) -> inspect.Parameter:
    kind: Any = get_args(hint)[0]
    text = get_args(hint)[1]
    default = inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default
    option = typer.Option(help=text, show_default=default is not None)
    return inspect.Parameter(
        field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option]
    )


def _flag(name: str, action: Callable[[], None], text: str) -> inspect.Parameter:
    def act(value: bool) -> None:
        if value:
            action()
            raise typer.Exit

    option = typer.Option(f"--{name.replace('_', '-')}", help=text, callback=act, is_eager=True)
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Annotated[bool, option])


def _method(methods: Mapping[str, Mapping[str, Any]], given: Mapping[str, Any]) -> inspect.Parameter:
    def apply(context: typer.Context, value: str) -> str:
        if value not in methods:
            raise typer.BadParameter(f"{value!r} is not one of {', '.join(methods)}")
        source = context.get_parameter_source("method")
        typed = source is not None and source.name == "COMMANDLINE"
        context.default_map = {**given, **methods[value]} if typed else {**methods[value], **given}
        return value

    meaning = "; ".join(
        f"{name}: {', '.join(f'{setting} {value}' for setting, value in values.items()) or 'the defaults'}"
        for name, values in methods.items()
    )
    option = typer.Option(help=f"Stands for several options ({meaning})", callback=apply, is_eager=True)
    default = next(iter(methods))
    return inspect.Parameter(
        "method", inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[str, option]
    )


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
