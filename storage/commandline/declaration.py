"""How a settings dataclass declares its fields, and how it checks itself.

A settings class is a frozen, keyword-only dataclass. Its annotations are ``Annotated[type, "help", ...]`` with parts of
:mod:`storage.commandline.values`. It inherits :class:`Checked`, which checks it when it is made, from Python and from
the command line alike.
"""

import dataclasses
import types
from collections.abc import Iterator
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from storage.commandline.values import PLAIN, RUN, WRITTEN, Form, Panel, Rule, one_of, refuse
from storage.errors import SettingsError


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Field:
    """One setting, as its annotation declares it."""

    name: str
    help: str
    kind: Any
    """int, float, bool, str, a Literal, or the type that ``form`` gives."""
    optional: bool
    """Whether the setting may be None."""
    default: Any
    """``dataclasses.MISSING`` where the setting is required."""
    form: Form | None
    rules: tuple[Rule, ...]
    panel: Panel

    @property
    def required(self) -> bool:
        """Whether it has no default."""
        return self.default is dataclasses.MISSING

    @property
    def choices(self) -> tuple[str, ...]:
        """The allowed values of a choice; empty for any other setting."""
        return get_args(self.kind) if get_origin(self.kind) is Literal else ()

    @property
    def metavar(self) -> str | None:
        """What the help shows in place of a value; None for a switch."""
        if self.form is not None:
            return self.form.metavar
        if self.choices:
            return f"<{'|'.join(self.choices)}>"
        return WRITTEN[self.kind][0] if self.kind is not bool else None

    def accept(self, value: Any) -> Any:
        """Convert a value from Python or YAML to the setting's own type.

        Raises:
            SettingsError: the value is of another type, not one of the choices, not finite, or breaks a rule.
        """
        if value is None and self.optional:
            return None
        try:
            if self.form is not None:
                value = self.form.accept(value)
            elif self.choices:
                value = one_of(value, self.choices)
            else:
                value = PLAIN[self.kind](value)
        except SettingsError:
            raise
        except (ValueError, TypeError) as error:
            raise refuse(self.name, value, str(error)) from error
        for rule in self.rules:
            if not rule.holds(value):
                raise SettingsError(f"{self.name} is {value}; {rule.demand}", field=self.name)
        return value

    def parse(self, text: Any) -> Any:
        """Convert a command line's text to the setting's own type.

        Raises:
            SettingsError: the text is malformed.
        """
        if text is None or self.choices or self.kind is bool:
            return text
        parse = self.form.parse if self.form is not None else WRITTEN[self.kind][1]
        try:
            return parse(text)
        except SettingsError:
            raise
        except (ValueError, TypeError) as error:
            raise refuse(self.name, text if isinstance(text, str) else " ".join(text), str(error)) from error


class Checked:
    """The base of all settings. It checks every field by its annotation."""

    def __post_init__(self) -> None:
        """Convert each value to its type.

        Raises:
            SettingsError: a value cannot be used; the error names the first.
        """
        for field in fields_of(type(self)):
            object.__setattr__(self, field.name, field.accept(getattr(self, field.name)))


def fields_of(settings: type[Any]) -> tuple[Field, ...]:
    """The fields of a settings class, in their order."""
    return _fields_of(settings)  # type: ignore[arg-type]  # mypy takes a class for one of its instances


@cache
def _fields_of(settings: type[Any]) -> tuple[Field, ...]:
    hints = get_type_hints(settings, include_extras=True)
    return tuple(_field(field, hints[field.name]) for field in dataclasses.fields(settings))


def _field(field: dataclasses.Field[Any], hint: Any) -> Field:
    kind, optional, details = _unwrap(hint)
    helps = [detail for detail in details if isinstance(detail, str)]
    forms = [detail for detail in details if isinstance(detail, Form)]
    panels = [detail for detail in details if isinstance(detail, Panel)]
    return Field(
        name=field.name,
        help=helps[0],
        kind=kind,
        optional=optional,
        default=field.default if field.default_factory is dataclasses.MISSING else field.default_factory(),
        form=forms[0] if forms else None,
        rules=tuple(detail for detail in details if isinstance(detail, Rule)),
        panel=panels[0] if panels else RUN,
    )


def _unwrap(hint: Any) -> tuple[Any, bool, list[Any]]:
    """``Annotated[Annotated[int, rule] | None, "help"]`` -> (int, True, [rule, "help"])."""
    details = list(_details(hint))
    optional = False
    while True:
        if get_origin(hint) is Annotated:
            hint = get_args(hint)[0]
        elif get_origin(hint) in (Union, types.UnionType) and type(None) in get_args(hint):
            optional = True
            rest = tuple(part for part in get_args(hint) if part is not type(None))
            hint = rest[0] if len(rest) == 1 else Union[rest]  # noqa: UP007  (built from a tuple)
        else:
            return hint, optional, details


def _details(hint: Any) -> Iterator[Any]:
    if get_origin(hint) is Annotated:
        inner, *own = get_args(hint)
        yield from _details(inner)
        yield from own
    elif get_origin(hint) in (Union, types.UnionType):
        for part in get_args(hint):
            yield from _details(part)
