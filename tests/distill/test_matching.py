"""Which modules of a student and a teacher mean the same, by their settings."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from distill.matching import differing_settings, matches


class Scaled(nn.Module):
    """A module of the user's own, with settings of its own."""

    def __init__(self, slope: float = 0.1, sizes: list[int] | None = None, act: nn.Module | None = None) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))
        self.slope, self.sizes, self.rule, self._calls = slope, sizes or [1, 2], torch.relu, object()
        self.act = act or nn.LeakyReLU(0.1)
        self.inner = nn.Conv2d(3, 3, 1)


Made = Callable[[], nn.Module]


@pytest.mark.parametrize(
    ("own", "theirs", "differing"),
    [
        (lambda: nn.Conv2d(4, 4, 3), lambda: nn.Conv2d(4, 4, 3), []),
        (lambda: nn.Conv2d(4, 4, 3, stride=2), lambda: nn.Conv2d(4, 4, 3), ["stride"]),
        (lambda: nn.Conv2d(4, 4, 3, padding=2, dilation=2), lambda: nn.Conv2d(4, 4, 3), ["dilation", "padding"]),
        (lambda: nn.Conv2d(4, 4, 1, dilation=2), lambda: nn.Conv2d(4, 4, 1), []),
        (lambda: nn.Conv2d(4, 4, (1, 3), dilation=2), lambda: nn.Conv2d(4, 4, (1, 3)), ["dilation"]),
        (lambda: nn.Conv2d(4, 4, 3, groups=2), lambda: nn.Conv2d(2, 4, 3), ["groups", "in_channels"]),
        (lambda: nn.GroupNorm(2, 4), lambda: nn.GroupNorm(4, 4), ["num_groups"]),
        (lambda: nn.BatchNorm2d(4, eps=1e-3), lambda: nn.BatchNorm2d(4), ["eps"]),
        (lambda: nn.BatchNorm2d(4, momentum=0.01).eval(), lambda: nn.BatchNorm2d(4), []),
        (lambda: nn.SyncBatchNorm(4), lambda: nn.BatchNorm2d(4), []),
        (Scaled, Scaled, []),
        (lambda: Scaled(slope=0.2), Scaled, ["slope"]),
        (lambda: Scaled(sizes=[1, 3]), Scaled, ["sizes"]),
        (lambda: Scaled(act=nn.LeakyReLU(0.2)), Scaled, ["act.negative_slope"]),
        (lambda: Scaled(act=nn.LeakyReLU(0.1, inplace=True)), Scaled, []),
        (lambda: Scaled(act=nn.Dropout(0.2)), lambda: Scaled(act=nn.Dropout(0.3)), []),
        (lambda: Scaled(act=nn.Upsample(scale_factor=2)), lambda: Scaled(act=nn.Upsample(scale_factor=4)),
         ["act.scale_factor"]),
        (lambda: Scaled(act=nn.ReLU()), lambda: Scaled(act=nn.Sigmoid()), ["act.kind"]),
    ],
)  # fmt: skip
def test_settings_are_those_of_the_module_and_of_its_parts_without_tensors(
    own: Made, theirs: Made, differing: list[str]
) -> None:
    assert differing_settings(own(), theirs()) == differing
    assert differing_settings(theirs(), own()) == differing


def test_settings_of_parts_with_tensors_are_their_own_affair() -> None:
    own, theirs = Scaled(), Scaled()
    own.inner.stride = (2, 2)
    assert differing_settings(own, theirs) == []
    assert differing_settings(own.inner, theirs.inner) == ["stride"]


@pytest.mark.parametrize(
    ("own", "theirs", "matched"),
    [
        (nn.Conv2d(4, 4, 3, stride=2), nn.Conv2d(4, 4, 3, padding=1, dilation=2, padding_mode="reflect"), True),
        (nn.ConvTranspose2d(4, 4, 3, 2, output_padding=1), nn.ConvTranspose2d(4, 4, 3, 2), True),
        (nn.BatchNorm2d(4, eps=1e-3), nn.SyncBatchNorm(4), True),
        (nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(2, 4, 3), False),
        (nn.GroupNorm(2, 4), nn.GroupNorm(4, 4), False),
        (Scaled(slope=0.2), Scaled(), False),
        (nn.Conv2d(4, 4, 3), nn.ConvTranspose2d(4, 4, 3), False),
        (nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3, bias=False), False),
    ],
)
def test_weights_mean_the_same_if_modules_differ_at_most_in_where_they_are_applied(
    own: nn.Module, theirs: nn.Module, matched: bool
) -> None:
    student, teacher = nn.ModuleDict({"layer": own}), nn.ModuleDict({"layer": theirs})
    assert ((own, theirs) in matches(student, teacher)) is matched
