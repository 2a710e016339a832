"""Reads the values of settings from params.yaml in the current folder."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import yaml

from storage.errors import SettingsError

PARAMS_FILE = Path("params.yaml")
TOP_SECTION = "dfss"
"""Our part of params.yaml, which the user's own pipeline may share."""


def read_section(path: Path, section: str) -> dict[str, Any]:
    """Read ``dfss.SECTION`` of a YAML file; {} where the file or the section does not exist.

    Raises:
        SettingsError: the file is not valid YAML, or the section is not a mapping.
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


def refuse_unknown(values: Mapping[str, Any], known: Collection[str], *, section: str, command: str) -> None:
    """Raise SettingsError where a section names a setting that its command does not have."""
    if unknown := sorted(map(str, set(values) - set(known))):
        raise SettingsError(
            f"{PARAMS_FILE}: {TOP_SECTION}.{section}.{unknown[0]} is not a setting of {command}; "
            f"use one of {', '.join(sorted(known))}"
        )
