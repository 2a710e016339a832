"""Reads the values of settings from params.yaml in the current folder."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import yaml

from storage.errors import SettingsError

PARAMS_FILE = Path("params.yaml")
TOP_SECTION = "dfss"
"""Our part of params.yaml, which the user's own pipeline may share."""

LONGEST, MOST_VALUES = 2**20, 10**6
"""Bytes of params.yaml, and values in it if every alias is written out."""


def _count(value: Any, counted: dict[int, int]) -> int:
    """The number of values in a document with its aliases written out; each is counted once."""
    if not isinstance(value, dict | list):
        return 1
    if id(value) not in counted:
        counted[id(value)] = MOST_VALUES  # for a value that holds itself
        held = value.values() if isinstance(value, dict) else value
        counted[id(value)] = 1 + sum(_count(item, counted) for item in held)
    return counted[id(value)]


def read_section(path: Path, section: str) -> dict[str, Any]:
    """Read ``dfss.SECTION`` of a YAML file; {} where the file or the section does not exist.

    Raises:
        SettingsError: the file is not valid YAML, or the section is not a mapping.
    """
    if not path.is_file():
        return {}
    try:
        if path.stat().st_size > LONGEST:
            raise SettingsError(f"{path} has more than {LONGEST} bytes, which no settings need; correct it")
        document = yaml.safe_load(path.read_text())
        values_of = _count(document, {})
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        if isinstance(error, SettingsError):
            raise
        raise SettingsError(f"{path} is not valid YAML: {error}") from error
    if values_of > MOST_VALUES:
        raise SettingsError(f"{path} stands for {values_of} values by its aliases; write out what you need")
    values: Any = document if isinstance(document, dict) else {}
    for name in (TOP_SECTION, section):
        values = values.get(name) or {}
        if not isinstance(values, dict):
            raise SettingsError(f"{path}: {name} must map settings to values")
    return {name: value for name, value in values.items() if value is not None}


def refuse_unknown(values: Mapping[str, Any], known: Collection[str], *, section: str, command: str) -> None:
    """Raise SettingsError where a section names a setting that its command does not have."""
    if unknown := sorted(map(str, set(values) - set(known))):
        raise SettingsError(
            f"{PARAMS_FILE}: {TOP_SECTION}.{section}.{unknown[0]} is not a setting of {command}; "
            f"use one of {', '.join(sorted(known))}"
        )
