"""Values of settings, as Python and params.yaml give them."""

import math
import re
from datetime import date
from typing import Any

import pytest

from distill.settings import DistillSettings, EvalSettings, TrainSettings
from pipeline.settings import ImportSettings, ScoreSettings, SelectSettings, SynthesisSettings
from storage.commandline.declaration import Field, fields_of
from storage.commandline.params import refuse_unknown
from storage.errors import SettingsError


def test_one_number_is_a_square_size() -> None:
    assert TrainSettings(data="d", builder="b", image_size=24).image_size == (24, 24)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [True, 2.5, None, (1, 2, 3), "24x32"])
def test_what_is_no_size_is_named(size: object) -> None:
    with pytest.raises(SettingsError, match="image_size .* must be height and width in pixels"):
        TrainSettings(data="d", builder="b", image_size=size)  # type: ignore[arg-type]


def test_arguments_that_a_model_file_cannot_keep_are_refused() -> None:
    with pytest.raises(SettingsError, match="arguments .* cannot be kept in a model file"):
        TrainSettings(data="d", builder="b", arguments={"since": date(2020, 1, 1)})


def test_unknown_settings_of_any_type_are_named() -> None:
    with pytest.raises(SettingsError, match=r"dfss.train.1 is not a setting of dfss-train"):
        refuse_unknown({1: 2, "a": 3}, {"data"}, section="train", command="dfss-train")  # type: ignore[dict-item]


def test_a_seed_that_torch_cannot_take_is_refused() -> None:
    assert TrainSettings(data="d", builder="b", seed=2**63 - 1).seed == 2**63 - 1
    with pytest.raises(SettingsError, match=r"seed is 9223372036854775808; give 9223372036854775807 or less"):
        TrainSettings(data="d", builder="b", seed=2**63)


def imported(**values: Any) -> ImportSettings:
    return ImportSettings(weights="w", out="o", **values)


@pytest.mark.parametrize(
    ("field", "text", "value", "expected"),
    [
        ("merge", ["vehicle=car, bus", "x=3"], {"vehicle": ["car", "bus"], "x": 3},
         {"vehicle": ("car", "bus"), "x": ("3",)}),
        ("drop_class", "void,4", ["void", 4], ("void", "4")),
        ("drop_class", "11", 11, ("11",)),
        ("factor", "1/255", 1 / 255, 1 / 255),
        ("factor", "0.5", "1/2", 0.5),
    ],
)  # fmt: skip
def test_classes_and_ratios_are_the_same_from_a_command_line_and_from_python(
    field: str, text: Any, value: Any, expected: Any
) -> None:
    declared = next(one for one in fields_of(ImportSettings) if one.name == field)
    assert declared.accept(declared.parse(text)) == expected
    assert getattr(imported(**{field: value}), field) == expected


@pytest.mark.parametrize(
    ("field", "text", "message"),
    [
        ("merge", ["car,bus"], "is not NAME=MEMBER,..., such as vehicle=car,bus"),
        ("merge", ["a=b", "a=c"], "names 'a' twice"),
        ("merge", ["a="], "must be names"),
        ("factor", "1/0", "must be a number or a ratio, such as 0.5 or 1/255"),
        ("factor", "nan", "must be a number or a ratio"),
        ("factor", "-1", "give a number above 0"),
    ],
)
def test_classes_and_ratios_that_are_written_otherwise_are_told_how(field: str, text: Any, message: str) -> None:
    declared = next(one for one in fields_of(ImportSettings) if one.name == field)
    with pytest.raises(SettingsError, match=re.escape(message)):
        declared.accept(declared.parse(text))


EVERY = (DistillSettings, EvalSettings, TrainSettings, ImportSettings, ScoreSettings, SelectSettings, SynthesisSettings)
NUMBERS = {
    f"{settings.__name__}.{field.name}": field
    for settings in EVERY
    for field in fields_of(settings)
    if field.kind in (int, float, int | float)
}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("field", NUMBERS.values(), ids=NUMBERS)
def test_no_number_of_any_command_may_be_nan_or_infinite(field: Field, value: float) -> None:
    with pytest.raises(SettingsError, match=f"^{field.name} "):
        field.accept(value)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_no_number_in_a_list_or_a_mapping_may_be_nan_or_infinite(value: float) -> None:
    with pytest.raises(SettingsError, match="mean .* must be a finite number"):
        ImportSettings(builder="b", weights="w", out="o", mean=(0.5, value, 0.5))
    for arguments in ({"width": value}, {"widths": [1.0, value]}):
        with pytest.raises(SettingsError, match="arguments .* cannot be kept in a model file"):
            TrainSettings(data="d", builder="b", arguments=arguments)


def test_a_dash_is_no_file_to_write() -> None:
    for make in (
        lambda: ScoreSettings(corpus="c", teacher="t", failures="-"),
        lambda: EvalSettings(model=["m.safetensors"], data="d", json="-"),
    ):
        with pytest.raises(SettingsError, match="nothing is written to standard output"):
            make()
