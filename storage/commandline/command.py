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
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Annotated, Any, Generic, TypeVar, get_args, get_type_hints

import typer
from rich.console import Console

from storage.commandline.params import PARAMS_FILE, TOP_SECTION, read_section
from storage.errors import DFSSError, SettingsError

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
