"""A choice is a table: the names that settings accept are those that the tables serve."""

from collections.abc import Mapping
from typing import Any, get_args

import pytest

from distill.losses import LOSSES
from distill.settings import DISTILL_METHODS, DistillSettings, Loss, Pacing, Weighting
from distill.weighting import PACINGS, WEIGHTINGS
from pipeline.batchnorm.distances import DISTANCES
from pipeline.selection.strategies import STRATEGIES
from pipeline.selection.weights import NORMALIZATIONS
from pipeline.settings import SCORE_METHODS, DistanceKind, Normalization, ScoreSettings, Strategy
from storage.commandline.declaration import fields_of
from storage.scores.schema import COLUMNS


@pytest.mark.parametrize(
    ("names", "table"),
    [
        (DistanceKind, DISTANCES),
        (Strategy, STRATEGIES),
        (Normalization, NORMALIZATIONS),
        (Loss, LOSSES),
        (Weighting, WEIGHTINGS),
        (Pacing, PACINGS),
    ],
)
def test_a_table_serves_every_name_and_no_other(names: Any, table: Mapping[str, object]) -> None:
    assert set(table) == set(get_args(names))


@pytest.mark.parametrize(("methods", "settings"), [(SCORE_METHODS, ScoreSettings), (DISTILL_METHODS, DistillSettings)])
def test_a_method_stands_for_values_that_its_settings_accept(
    methods: Mapping[str, Mapping[str, Any]], settings: type[Any]
) -> None:
    fields = {field.name: field for field in fields_of(settings)}
    for values in methods.values():
        for name, value in values.items():
            assert fields[name].accept(value) == value


def test_an_optional_column_is_asked_for_by_a_setting_of_its_name() -> None:
    fields = {field.name: field.kind for field in fields_of(ScoreSettings)}
    assert all(fields[name] is bool for name, column in COLUMNS.items() if column.optional)
