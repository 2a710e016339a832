"""What a generated world holds."""

from dataclasses import dataclass
from typing import Annotated, Literal

from storage.errors import SettingsError

SMALLEST_SIDE = 32


@dataclass(frozen=True, kw_only=True)
class WorldSettings:
    """Size and shares of a world; the same settings always give the same bytes.

    Raises:
        SettingsError: If a value cannot be used.
    """

    out: Annotated[str, "Folder of the world; parts that are there are replaced"] = "data/world"
    part: Annotated[Literal["all", "private", "val", "wild"], "Draw only this part"] = "all"
    seed: Annotated[int, "Chooses the world"] = 0
    height: Annotated[int, "Height of every image in pixels"] = 96
    width: Annotated[int, "Width of every image in pixels"] = 128
    private: Annotated[int, "Labelled street scenes for the teacher"] = 160
    validation: Annotated[int, "Labelled street scenes of the same kind, for judging"] = 60
    wild: Annotated[int, "Unlabelled images of all kinds"] = 1500
    like_fraction: Annotated[float, "Share of the unlabelled images that are street scenes, of another style"] = 0.15

    def __post_init__(self) -> None:
        """Checks each value."""
        _check_at_least("seed", self.seed, 0)
        for name, side in (("height", self.height), ("width", self.width)):
            _check_at_least(name, side, SMALLEST_SIDE)
        for name, count in (("private", self.private), ("validation", self.validation), ("wild", self.wild)):
            _check_at_least(name, count, 1)
        if not 0.0 <= self.like_fraction <= 1.0:
            raise SettingsError(f"world like_fraction is {self.like_fraction}; set it to a share from 0 to 1")


def _check_at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise SettingsError(f"world {name} is {value!r}; set it to a whole number of at least {least}")
