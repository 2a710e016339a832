"""The values that params.yaml in the current folder gives to a command's settings.

A list or a mapping of YAML never becomes text, because a name may hold a comma. Any other value is converted as if it
were typed on the command line.
"""

import dataclasses
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeVar

from storage.commandline.declaration import Field, fields_of
from storage.commandline.params import PARAMS_FILE, TOP_SECTION, read_section, refuse_unknown
from storage.errors import SettingsError

SettingsT = TypeVar("SettingsT")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Given:
    """What one section of params.yaml says."""

    section: str
    spelled: Mapping[str, Any]
    """Every value as an option would spell it."""
    accepted: Mapping[str, Any]
    """The lists, sizes and mappings among them, in the type of the setting."""

    @classmethod
    def read(cls, settings: type[Any], *, section: str, command: str, others: Collection[str] = ()) -> "Given":
        """Read a section. ``others`` are names that it may hold besides the fields of the settings.

        Raises:
            SettingsError: a name is unknown, or a value cannot be used.
        """
        values = read_section(PARAMS_FILE, section)
        fields = {field.name: field for field in fields_of(settings)}
        refuse_unknown(values, {*fields, *others}, section=section, command=command)
        accepted, spelled = dict[str, Any](), dict(values)
        for name, value in values.items():
            form = fields[name].form if name in fields else None
            if form is not None and not isinstance(value, str):
                with _blamed(section, {name}):
                    accepted[name] = fields[name].accept(value)
                spelled[name] = form.spell(accepted[name])
            elif form is not None and form.several:
                spelled[name] = [value]
        return cls(section=section, spelled=spelled, accepted=accepted)

    def value(self, field: Field) -> Any:
        """The value of a field that the section gives, in the type of the setting.

        Raises:
            SettingsError: it is malformed.
        """
        if field.name in self.accepted:
            return self.accepted[field.name]
        value = self.spelled[field.name]
        return field.parse(value if field.kind is bool or isinstance(value, list) else str(value))

    def blamed(self, names: Collection[str]) -> AbstractContextManager[None]:
        """A block whose errors about one of the named settings say that its value comes from params.yaml."""
        return _blamed(self.section, names)


@contextmanager
def _blamed(section: str, names: Collection[str]) -> Iterator[None]:
    try:
        yield
    except SettingsError as error:
        if error.field not in names:
            raise
        place = f"{TOP_SECTION}.{section}.{error.field} of {PARAMS_FILE}"
        raise SettingsError(f"{error} (from {place})", field=error.field) from error


def settings_in_params(settings: type[SettingsT], *, section: str, command: str, **values: Any) -> SettingsT:
    """Settings of another command, as it would find them here, with some values given.

    Raises:
        SettingsError: params.yaml holds a value that cannot be used.
    """
    given = Given.read(settings, section=section, command=command)
    names = given.spelled.keys() - values.keys()
    with given.blamed(names):
        found = {field.name: given.value(field) for field in fields_of(settings) if field.name in names}
        return settings(**found, **values)
