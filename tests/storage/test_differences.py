"""Differences between two sets of settings."""

from storage.differences import differences


def test_every_difference_is_named_with_both_values() -> None:
    held = {"distance": "paper", "transform": {"size": [1, 2], "fit": "cover"}, "lr": 0.1}
    assert differences(held, held, held) == []
    assert differences(held, held | {"distance": "standardized"}, held) == [
        "distance is paper there and standardized now"
    ]
    wanted = {"transform": {"size": [3, 4], "fit": "cover"}, "lr": 0.2}
    assert differences(held, wanted, wanted) == [
        "transform size is 1, 2 there and 3, 4 now",
        "lr is 0.1 there and 0.2 now",
    ]


def test_what_one_does_not_have_is_missing_and_long_values_are_cut() -> None:
    assert differences({}, {"scoring_version": 1}, ["scoring_version"]) == [
        "scoring_version is missing there and 1 now"
    ]
    (text,) = differences({"layers": ["layer"] * 40}, {"layers": []}, ["layers"])
    assert text == f"layers is {'layer, ' * 5}layer... (278 characters) there and  now"
