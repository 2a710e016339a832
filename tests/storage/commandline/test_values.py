"""Values of settings, as Python and params.yaml give them."""

import math
from datetime import date

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
