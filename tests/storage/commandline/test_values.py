"""Values of settings, as Python and params.yaml give them."""

from datetime import date

import pytest

from distill.settings import TrainSettings
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
