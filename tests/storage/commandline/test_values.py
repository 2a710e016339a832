"""Values of settings, as Python and params.yaml give them."""

from datetime import date

import pytest

from distill.settings import TrainSettings
from storage.errors import SettingsError


def test_one_number_is_a_square_size() -> None:
    assert TrainSettings(data="d", builder="b", image_size=24).image_size == (24, 24)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [True, 2.5, None, (1, 2, 3), "24x32"])
def test_what_is_no_size_is_named(size: object) -> None:
    with pytest.raises(SettingsError, match="image_size .* must be height and width in pixels"):
        TrainSettings(data="d", builder="b", image_size=size)  # type: ignore[arg-type]
