"""Classes of a model that are made of its network's: their names, members and logits."""

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import torch

from pipeline.models.merging import arrange, merge
from storage.errors import SettingsError

OWN = ("sky", "road", "car", "bus", "void")


def test_merged_logits_have_the_sum_of_the_probabilities_that_are_left() -> None:
    logits = torch.randn(2, 5, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    merged = merge(logits, ((4,), (0, 2), (1,)))  # class 3 is left out
    exp = np.exp(logits.numpy())
    sums = np.stack([exp[:, 4], exp[:, 0] + exp[:, 2], exp[:, 1]], axis=1)
    expected = sums / sums.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(merged.softmax(dim=1).numpy(), expected, rtol=1e-12)


def test_a_single_logit_becomes_two_whose_softmax_is_its_sigmoid() -> None:
    logit = torch.linspace(-9, 9, 12, dtype=torch.float64).view(1, 1, 3, 4)
    foreground = merge(logit, ()).softmax(dim=1)[:, 1].numpy()
    np.testing.assert_allclose(foreground, 1 / (1 + np.exp(-logit.numpy()[:, 0])), rtol=1e-12)


@pytest.mark.parametrize(
    ("names", "merged", "dropped", "expected"),
    [
        (OWN, {}, (), [("sky", [0]), ("road", [1]), ("car", [2]), ("bus", [3]), ("void", [4])]),
        (OWN, {}, ("void",), [("sky", [0]), ("road", [1]), ("car", [2]), ("bus", [3])]),
        (OWN, {}, ("0", "4"), [("road", [1]), ("car", [2]), ("bus", [3])]),
        (OWN, {"vehicle": ("bus", "car")}, (), [("sky", [0]), ("road", [1]), ("vehicle", [3, 2]), ("void", [4])]),
        (None, {"vehicle": ("2", "3")}, ("4",), [("class 0", [0]), ("class 1", [1]), ("vehicle", [2, 3])]),
        (("vehicle", "road", "sky"), {"vehicle": ("2", "3"), "sky": ("0",)}, ("4",),
         [("vehicle", [2, 3]), ("road", [1]), ("sky", [0])]),
        (("a", "b", "c", "d"), {}, ("1",), [("a", [0]), ("b", [2]), ("c", [3]), ("d", [4])]),
    ],
)  # fmt: skip
def test_names_are_those_of_the_networks_classes_or_of_the_ones_that_are_left(
    names: Sequence[str] | None,
    merged: Mapping[str, Sequence[str]],
    dropped: Sequence[str],
    expected: list[tuple[str, list[int]]],
) -> None:
    found, members = arrange(5, names, merged, dropped)
    groups = members or tuple((index,) for index in range(5))
    assert [(name, list(group)) for name, group in zip(found, groups, strict=True)] == expected


@pytest.mark.parametrize(
    ("names", "merged", "dropped", "message"),
    [
        (OWN, {}, ("lorry",), "drop_class: the network has no class 'lorry'; give one of sky, road, car, bus, void"),
        (None, {"x": ("7",)}, (), "merge: the network has no class '7'; .* or 0 to 4"),
        (OWN, {"x": ("sky", "car"), "y": ("car", "bus")}, (), "use class car twice"),
        (OWN, {"x": ("sky", "void")}, ("void",), "use class void twice"),
        (OWN[:3], {}, (), "class_names has 3 names, but there are 5 classes"),
        (("a", "b", "c", "d"), {"x": ("2", "3")}, (), "'x' is not among them"),
    ],
)
def test_classes_that_do_not_exist_or_fit_are_named(
    names: Sequence[str] | None, merged: Mapping[str, Sequence[str]], dropped: Sequence[str], message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        arrange(5, names, merged, dropped)
