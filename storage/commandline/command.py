"""Turns a settings dataclass into a command, and several commands into one. Only the ``cli`` modules import it.

Each field gives an option ``--name`` with its help and its check. A value in the command's section of ``params.yaml``
in the current folder replaces the default. The command line takes precedence over params.yaml.
"""

import dataclasses
import importlib
import inspect
import logging
import re
import sys
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Generic, NoReturn, TypeVar

import typer
from rich.console import Console
from typer.core import TyperCommand

from storage.commandline.declaration import Field, fields_of
from storage.commandline.params import PARAMS_FILE, read_section, refuse_unknown
from storage.commandline.values import METHOD, PANELS, one_of
from storage.errors import DFSSError, SettingsError, Terminated

SettingsT = TypeVar("SettingsT")
HELP_NAMES = ["-h", "--help"]


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
    """``--method NAME`` stands for these values of settings; other options on the same command line override them."""
    interrupted: str = "what was finished is kept"
    """The message after Ctrl-C."""

    def __call__(self, argv: list[str] | None = None, *, name: str | None = None) -> None:
        """Run with ``argv`` (default: the process's own).

        Raises:
            SystemExit: always, with the exit code.
        """
        show_logs()
        with OneLine(name or self.name):
            values = self._params()
            fields = {field.name: field for field in fields_of(self.settings)}
            # What is written as a list or a mapping never becomes text: a name may hold a comma.
            accepted, spelled = dict[str, Any](), dict[str, Any]()
            for name, value in values.items():
                form = fields[name].form if name in fields else None
                if form is not None and not isinstance(value, str):
                    accepted[name] = fields[name].accept(value)
                    spelled[name] = form.spell(accepted[name])
            given = values | spelled
            app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
            text = f"{self.help}\n\nExample: {self.example}"
            settings: dict[str, Any] = {"help_option_names": HELP_NAMES}
            app.command(help=text, cls=Grouped, context_settings=settings)(self._callback(given, accepted))
            app(args=argv, prog_name=name or self.name, default_map=given, standalone_mode=False)
        raise SystemExit(0)

    def _callback(self, given: Mapping[str, Any], accepted: Mapping[str, Any]) -> Callable[..., None]:
        """Make the function that typer calls. ``given`` is params.yaml as text, ``accepted`` its lists and mappings."""
        fields = fields_of(self.settings)

        def callback(context: typer.Context, **options: Any) -> None:
            values = {
                field.name: accepted[field.name]
                if field.name in accepted and _source(context, field.name) == "DEFAULT_MAP"
                else field.parse(options[field.name])
                for field in fields
            }
            try:
                self.run(self.settings(**values))
            except Terminated:
                raise Interrupted(self.interrupted, by="terminated", exit_code=143) from None
            except KeyboardInterrupt:
                raise Interrupted(self.interrupted) from None

        parameters = [_parameter(field) for field in sorted(fields, key=_place)]
        parameters += [_flag(name, action, text) for name, (action, text) in self.flags.items()]
        if self.methods:
            parameters.append(_method(self.methods, given))
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        parameters.insert(0, inspect.Parameter("context", kind, annotation=typer.Context))
        callback.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        callback.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return callback

    def _params(self) -> dict[str, Any]:
        """The values in params.yaml, as YAML gives them."""
        values = read_section(PARAMS_FILE, self.section)
        names = {field.name for field in fields_of(self.settings)}
        refuse_unknown(values, names | ({"method"} if self.methods else set()), section=self.section, command=self.name)
        return values


class Interrupted(DFSSError):
    """The user pressed Ctrl-C, or SIGTERM arrived; the message says what is kept."""

    def __init__(self, kept: str, *, by: str = "interrupted", exit_code: int = 130) -> None:
        super().__init__(f"{by}; {kept}")
        self.exit_code = exit_code


@dataclasses.dataclass(frozen=True, slots=True)
class OneLine:
    """Ends a command with one line on stderr and an exit code when its input is wrong."""

    name: str

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, SettingsError) and error.field:
            self._fail(_with_flag(str(error), error.field), error.exit_code)
        if isinstance(error, DFSSError):
            self._fail(str(error), error.exit_code)
        if isinstance(error, OSError):  # a full disk or a read-only folder is no bug of ours
            self._fail(str(error), 1)
        if wrong_words := getattr(error, "format_message", None):  # typer's message about the command line
            self._fail(f"{wrong_words().rstrip('.')}; see {self.name} --help", 2)
        if type(error).__name__ == "OutOfMemoryError":  # torch's, which this module must not import
            self._fail("the device ran out of memory; give a smaller --batch-size", 1)
        if isinstance(error, MemoryError) or "can't allocate memory" in str(error):  # torch's RuntimeError on a CPU
            self._fail("the memory is full; give a smaller --batch-size", 1)
        if isinstance(error, KeyboardInterrupt) or type(error).__name__ == "Abort":
            self._fail("interrupted", 130)

    def _fail(self, message: str, code: int) -> NoReturn:
        sys.stderr.write(f"{self.name}: error: {' '.join(message.split())}\n")
        raise SystemExit(code) from None


def _with_flag(message: str, field: str) -> str:
    return re.sub(rf"\b{field}\b", f"--{field.replace('_', '-')}", message, count=1)


class Grouped(TyperCommand):
    """A command whose help shows its options panel by panel and never cuts them off."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write a section for each panel."""
        titles = [panel.title for panel in PANELS]
        sections: dict[str, list[tuple[str, str]]] = {title: [] for title in titles}
        for parameter in self.get_params(ctx):
            if record := parameter.get_help_record(ctx):
                title = getattr(parameter, "rich_help_panel", None) or titles[-1]
                sections[title].append(record)
        for title, records in sections.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)


ROOMS = ("storage", "pipeline", "distill")
"""Our own packages."""


class ErrorLines(logging.Handler):
    """Writes records as lines to what is stderr at that moment, so that a progress bar stays below them."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line. A warning begins with its level, a piece of information does not."""
        level = "" if record.levelno <= logging.INFO else f"{record.levelname}: "
        sys.stderr.write(f"{level}{self.format(record)}\n")
        sys.stderr.flush()


LINES = ErrorLines()


def show_logs() -> None:
    """Show warnings on stderr, and of our own packages also what is for the user's information."""
    others = ErrorLines()
    others.addFilter(lambda record: record.name.partition(".")[0] not in ROOMS)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[others])
    for room in ROOMS:
        logger = logging.getLogger(room)
        logger.setLevel(logging.INFO)
        logger.addHandler(LINES)


def say(text: str) -> None:
    """Print a line to stdout without wrapping and without markup."""
    Console().print(text, highlight=False, soft_wrap=True, markup=False)


def _place(field: Field) -> tuple[int, bool]:
    """A sort key: the panels in their order, and required options first in each."""
    return PANELS.index(field.panel), not field.required


def _source(context: typer.Context, name: str) -> str:
    """Where an option's value comes from: COMMANDLINE, DEFAULT_MAP (params.yaml) or DEFAULT."""
    source = context.get_parameter_source(name)
    return source.name if source is not None else "DEFAULT"


def _parameter(field: Field) -> inspect.Parameter:
    default = inspect.Parameter.empty if field.required else field.default
    kind = field.kind
    if field.form is not None:
        kind = list[str] if field.form.several else str
        default = default if field.required or default is None else field.form.spell(default)
    option = typer.Option(
        help=field.help,
        show_default=default is not None,
        metavar=field.form.metavar if field.form else None,
        rich_help_panel=field.panel.title,
    )
    if field.optional:
        kind = kind | None
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
        typed = _source(context, "method") == "COMMANDLINE"
        context.default_map = {**given, **methods[value]} if typed else {**methods[value], **given}
        return value

    meaning = "; ".join(
        f"{name}: {', '.join(f'{setting} {value}' for setting, value in values.items()) or 'the defaults'}"
        for name, values in methods.items()
    )
    option = typer.Option(
        help=f"Stands for several options ({meaning})", callback=apply, is_eager=True, rich_help_panel=METHOD.title
    )
    default = next(iter(methods))
    return inspect.Parameter(
        "method", inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[str, option]
    )


def run_one_of(commands: Mapping[str, str], *, name: str, version: str, argv: list[str] | None = None) -> None:
    """Run the subcommand that the first word names. ``commands`` maps words to ``module:command``.

    Raises:
        SystemExit: always, with the exit code.
    """
    words = sys.argv[1:] if argv is None else argv
    first = words[0] if words else "--help"
    if first in ("--version", "-V"):
        say(f"{name} {version}")
        raise SystemExit(0)
    if first in HELP_NAMES:
        say(f"Usage: {name} COMMAND [OPTIONS]\n")
        for word, place in commands.items():
            say(f"  {word:<12}{_found(place).help.partition('. ')[0].rstrip('.')}")
        say(f"\n{name} COMMAND --help explains the options of a command; {name} --version prints the version.")
        raise SystemExit(0)
    with OneLine(name):
        try:
            one_of(first, list(commands))
        except ValueError as error:
            raise SettingsError(f"command {first!r} {error}") from None
    _found(commands[first])(words[1:], name=f"{name} {first}")


def _found(place: str) -> Command[Any]:
    module, _, attribute = place.partition(":")
    command: Command[Any] = getattr(importlib.import_module(module), attribute)
    return command
