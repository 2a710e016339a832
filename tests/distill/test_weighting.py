"""WDPD's schedule and the draw in proportion to it."""

import itertools
from typing import Any

import numpy as np
import oracles
import pytest

from distill.sampling import draw
from distill.weighting import WeightSchedule, pace

WEIGHTS = np.array([1.0, 0.75, 0.25, 0.0])


def schedule(weighting: Any, pacing: Any = "linear") -> WeightSchedule:
    return WeightSchedule(weights_N=WEIGHTS, weighting=weighting, pacing=pacing)


def test_wdpd_goes_from_the_distance_weights_to_uniform() -> None:
    wdpd = schedule("wdpd")
    np.testing.assert_allclose(wdpd.at(0), WEIGHTS)
    np.testing.assert_allclose(wdpd.at(0.25), 0.75 * WEIGHTS + 0.25)
    np.testing.assert_allclose(wdpd.at(1), 1)


@pytest.mark.parametrize("pacing", ["linear", "cosine", "step"])
def test_every_pacing_rises_from_0_to_1(pacing: Any) -> None:
    values = [pace(t, pacing) for t in np.linspace(0, 1, 50)]
    assert (values[0], values[-1]) == (0, 1)
    assert all(a <= b for a, b in itertools.pairwise(values))
    assert pace(0.5, pacing) == pytest.approx(0.5)
    moments = [0.0, 0.1, 0.3, 0.34, 0.6, 0.66, 0.67, 0.8, 1.0]
    assert [pace(t, pacing) for t in moments] == pytest.approx([oracles.pace(t, pacing) for t in moments])


@pytest.mark.parametrize("pacing", ["linear", "cosine", "step"])
@pytest.mark.parametrize("weighting", ["wdpd", "static", "uniform", "reversed"])
def test_weights_are_numpys_at_every_moment(weighting: Any, pacing: Any) -> None:
    for progress in (0.0, 0.2, 0.4, 0.9, 1.0):
        expected = oracles.image_weights(WEIGHTS, progress, weighting, pacing)
        np.testing.assert_allclose(schedule(weighting, pacing).at(progress), expected, atol=1e-12)


def test_the_baselines_are_uniform_static_and_reversed() -> None:
    np.testing.assert_allclose(schedule("uniform").at(0.3), 1)
    np.testing.assert_allclose(schedule("static").at(0.9), WEIGHTS)
    np.testing.assert_allclose(schedule("reversed").at(0), 1 - WEIGHTS)
    np.testing.assert_allclose(schedule("reversed").at(1), 1)


def test_draws_follow_the_weights() -> None:
    rng = np.random.default_rng(0)
    counts = np.bincount([draw(WEIGHTS, 1, rng)[0] for _ in range(8000)], minlength=4)
    np.testing.assert_allclose(counts / 8000, WEIGHTS / 2, atol=0.02)


@pytest.mark.parametrize("count", [1, 4, 8])
def test_the_expected_number_of_draws_is_proportional_whatever_the_batch(count: int) -> None:
    weights = np.random.default_rng(1).random(20)
    rng, rounds = np.random.default_rng(0), 6000
    drawn = np.concatenate([draw(weights, count, rng) for _ in range(rounds)])
    expected = count * weights / weights.sum()
    np.testing.assert_allclose(np.bincount(drawn, minlength=20) / rounds, expected, atol=0.03)


def test_no_image_comes_twice_unless_more_than_one_is_due() -> None:
    rng = np.random.default_rng(0)
    weights = rng.uniform(0.5, 1.0, 40)
    assert all(len(set(draw(weights, 8, rng))) == 8 for _ in range(200))
    assert set(draw(WEIGHTS, 8, rng)) <= {0, 1, 2}
    assert sorted(draw(np.zeros(4), 4, rng)) == [0, 1, 2, 3]


class Unshuffled:
    """A generator that leaves every order as it is and draws one number."""

    def __init__(self, number: float) -> None:
        self.number = number

    def permutation(self, order: Any) -> Any:
        return np.arange(order) if isinstance(order, int) else order

    def random(self) -> float:
        return self.number


@pytest.mark.parametrize(
    ("weights", "number", "expected"),
    [
        ([0.0, 1.0, 1.0], 0.0, [1, 2]),
        ([0.0, 1.0, 0.0, 1.0, 0.0], 0.0, [1, 3]),
        ([1.0, 1.0, 0.0], 1 - 2**-53, [0, 1]),
        ([0.25, 0.25, 0.0], 1 - 2**-53, [0, 1]),
        ([1.0, 0.0, 1.0, 0.0, 1.0], 1 - 2**-53, [0, 2, 4, 4]),
    ],
)
def test_no_image_of_weight_0_is_drawn_though_the_number_lies_on_its_edge(
    weights: list[float], number: float, expected: list[int]
) -> None:
    """Image i holds the numbers from the sum of the weights before it up to, but not at, that with its own."""
    generator: Any = Unshuffled(number)
    assert draw(np.array(weights), len(expected), generator) == expected
