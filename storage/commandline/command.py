"""Turns a settings dataclass into a command, and several commands into one. Only the ``cli`` modules import it.

Each field gives an option ``--name`` with its help and its check. A value in the command's section of ``params.yaml``
in the current folder replaces the default. The command line takes precedence over params.yaml. Values stay text until
the settings convert them, so that a wrong one is described in our own words.
"""

import dataclasses
import errno
import importlib
import inspect
import logging
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import Annotated, Any, Generic, NoReturn, TypeVar

import typer
from rich.console import Console
from typer.core import TyperCommand

from storage.commandline.declaration import Field, fields_of
from storage.commandline.given import Given
from storage.commandline.params import PARAMS_FILE
from storage.commandline.terminal import one_line, printable
from storage.commandline.values import METHOD, PANELS, one_of, refuse
from storage.errors import DFSSError, SettingsError, Terminated

logger = logging.getLogger(__name__)
SettingsT = TypeVar("SettingsT")
DISTRIBUTION = "dfss"
"""The name under which pip knows us."""
CTRL_C = 130
"""The exit code after Ctrl-C."""
SIGTERM = 143
"""The exit code after SIGTERM."""
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
    belongs: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Settings for the value of another one: if the command line replaces that, those of params.yaml do not apply."""
    interrupted: str = "what was finished is kept"
    """The message after Ctrl-C."""

    def __call__(self, argv: list[str] | None = None, *, name: str | None = None) -> None:
        """Run with ``argv`` (default: the process's own).

        Raises:
            SystemExit: always, with the exit code.
        """
        show_logs()
        name = name or self.name
        with OneLine(name):
            others = {"method"} if self.methods else set[str]()
            given = Given.read(self.settings, section=self.section, command=self.name, others=others)
            app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
            text = f"{self.help}\n\nExample: {self.example}"
            settings: dict[str, Any] = {"help_option_names": HELP_NAMES}
            app.command(help=text, cls=Grouped, context_settings=settings)(self._callback(given, name))
            code = app(args=argv, prog_name=name, default_map=given.spelled, standalone_mode=False)
            if code == CTRL_C:  # typer's answer to Ctrl-C while it reads the command line
                raise Interrupted("nothing was done")
        raise SystemExit(0)

    def _callback(self, given: Given, name: str) -> Callable[..., None]:
        """Make the function that typer calls."""
        fields = fields_of(self.settings)

        def callback(context: typer.Context, **options: Any) -> None:
            used = [field for field in fields if not self._is_anothers(context, field.name)]
            taken = _taken(context, given, used)
            with given.blamed([field.name for field in taken]):
                values = {
                    field.name: given.value(field) if field in taken else field.parse(options[field.name])
                    for field in used
                }
                settings = self.settings(**values)
            if taken:
                spelled = ", ".join(f"{field.name} {given.spelled[field.name]}" for field in taken)
                logger.info("from %s: %s", PARAMS_FILE, spelled)
            if sys.stderr.isatty():  # the imports of run take seconds; whatever is shown next replaces this line
                sys.stderr.write("starting\r")
                sys.stderr.flush()
            try:
                self.run(settings)
            except Terminated:
                raise Interrupted(self.interrupted, by="terminated", exit_code=SIGTERM) from None
            except KeyboardInterrupt:
                raise Interrupted(self.interrupted) from None

        parameters = [_parameter(field, given) for field in sorted(fields, key=_place)]
        flags = {**self.flags, "version": (lambda: say(f"{name} {version(DISTRIBUTION)}"), "Show the version and exit")}
        parameters += [_flag(name, action, text) for name, (action, text) in flags.items()]
        if self.methods:
            parameters.append(_method(self.methods, given.spelled))
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        parameters.insert(0, inspect.Parameter("context", kind, annotation=typer.Context))
        callback.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        callback.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return callback

    def _is_anothers(self, context: typer.Context, name: str) -> bool:
        """Whether params.yaml has the setting for a value of another one that the command line replaces."""
        owner, given = self.belongs.get(name, ""), context.default_map or {}
        replaced = owner in given and str(context.params[owner]) != str(given[owner])
        return replaced and _source(context, name) == "DEFAULT_MAP"


class Interrupted(DFSSError):
    """The user pressed Ctrl-C, or SIGTERM arrived; the message says what is kept."""

    def __init__(self, kept: str, *, by: str = "interrupted", exit_code: int = CTRL_C) -> None:
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
            self._fail(f"{error}{_remedy(error)}", 1)
        if wrong_words := getattr(error, "format_message", None):  # typer's message about the command line
            self._fail(f"{wrong_words().rstrip('.')}; see {self.name} --help", 2)
        if _is_memory(error):
            self._fail("the memory does not suffice; give a smaller --batch-size, or smaller sizes", 1)
        if isinstance(error, KeyboardInterrupt) or type(error).__name__ == "Abort":
            self._fail("interrupted", 130)

    def _fail(self, message: str, code: int) -> NoReturn:
        sys.stderr.write(f"{self.name}: error: {printable(' '.join(message.split()))}\n")
        raise SystemExit(code) from None


REMEDIES: dict[type[OSError], str] = {
    FileExistsError: "a file is where a folder should be; give another path",
    NotADirectoryError: "a file is where a folder should be; give another path",
    IsADirectoryError: "a folder is where a file should be; give the name of a file",
    PermissionError: "check who may write there, or give another path",
}


def _remedy(error: OSError) -> str:
    """What to do about an error of the system."""
    if error.errno == errno.ENOSPC:
        return "; free some space, and run the same command again"
    return next((f"; {text}" for kind, text in REMEDIES.items() if isinstance(error, kind)), "")


def _is_memory(error: BaseException | None) -> bool:
    # The last two are torch's, for a GPU and for the processor; this module must not import torch.
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error))
    )


def _with_flag(message: str, field: str) -> str:
    return re.sub(rf"\b{field}\b", f"--{field.replace('_', '-')}", message, count=1)


class Grouped(TyperCommand):
    """A command whose help shows its options panel by panel and never cuts them off. It takes each option once."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the command line; refuse an option that is given twice and holds one value."""
        _, _, given = self.make_parser(ctx).parse_args(args=list(args))
        once = [parameter for parameter in given if not getattr(parameter, "multiple", False)]
        if repeated := [parameter for parameter in once if once.count(parameter) > 1]:
            ctx.fail(f"{repeated[0].opts[0]} is given twice, but takes one value")
        rest: list[str] = super().parse_args(ctx, args)
        return rest

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
        # Ours are lines; those of libraries may have several.
        written = one_line if record.name.partition(".")[0] in ROOMS else printable
        sys.stderr.write(f"{level}{written(self.format(record))}\n")
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
    Console().print(printable(text), highlight=False, soft_wrap=True, markup=False)


def _place(field: Field) -> tuple[int, bool]:
    """A sort key: the panels in their order, and required options first in each."""
    return PANELS.index(field.panel), not field.required


def _source(context: typer.Context, name: str) -> str:
    """Where an option's value comes from: COMMANDLINE, DEFAULT_MAP (params.yaml) or DEFAULT."""
    source = context.get_parameter_source(name)
    return source.name if source is not None else "DEFAULT"


def _taken(context: typer.Context, given: Given, fields: Sequence[Field]) -> list[Field]:
    """The fields whose value is that of params.yaml: neither the command line nor a method gives another."""
    defaults, by_name = context.default_map or {}, {field.name: field for field in fields}
    return [
        by_name[name]
        for name, value in given.spelled.items()
        if name in by_name and _source(context, name) == "DEFAULT_MAP" and defaults.get(name) is value
    ]


def _parameter(field: Field, given: Given) -> inspect.Parameter:
    """An option of text, or a switch. It is required where neither the settings nor params.yaml have a value."""
    default = field.default
    if field.name in given.spelled:
        default = None
    elif field.required:
        default = inspect.Parameter.empty
    elif field.form is not None and default is not None:
        default = field.form.spell(default)
    elif default is not None and field.kind is not bool:
        default = str(default)
    kind: Any = field.kind
    if kind is not bool:
        kind = list[str] if field.form is not None and field.form.several else str
    option = typer.Option(
        help=field.help,
        show_default=f"{given.spelled[field.name]} from {PARAMS_FILE}"
        if field.name in given.spelled
        else default is not None,
        metavar=field.metavar,
        rich_help_panel=field.panel.title,
    )
    if field.optional or default is None:
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
        try:
            one_of(value, list(methods))
        except ValueError as error:
            raise refuse("method", value, str(error)) from None
        typed = _source(context, "method") == "COMMANDLINE"
        context.default_map = {**given, **methods[value]} if typed else {**methods[value], **given}
        return value

    meaning = "; ".join(
        f"{name}: {', '.join(f'{setting} {value}' for setting, value in values.items()) or 'the defaults'}"
        for name, values in methods.items()
    )
    option = typer.Option(
        help=f"Stands for several options ({meaning})",
        metavar=f"<{'|'.join(methods)}>",
        callback=apply,
        is_eager=True,
        rich_help_panel=METHOD.title,
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
            say(f"  {word:<12}{found(place).help.partition('. ')[0].rstrip('.')}")
        say(f"\n{name} COMMAND --help explains the options of a command; {name} --version prints the version.")
        raise SystemExit(0)
    with OneLine(name):
        try:
            one_of(first, list(commands))
        except ValueError as error:
            raise SettingsError(f"command {first!r} {error}") from None
    found(commands[first])(words[1:], name=f"{name} {first}")


def found(place: str) -> Command[Any]:
    """The command at ``module:name``."""
    module, _, attribute = place.partition(":")
    command: Command[Any] = getattr(importlib.import_module(module), attribute)
    return command
