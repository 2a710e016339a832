"""The pictures that a student sees: fixed ones, mixtures, and their weights."""

import numpy as np
import oracles
import pytest
from conftest import HEIGHT, WIDTH, draw_image

from distill.pictures import Picture, Pictures
from distill.views import View, ViewSettings

IMAGES = [draw_image(index) for index in range(8)]
PLACES = [1, 4, 5, 7]
VIEWS = ViewSettings(height=HEIGHT, width=WIDTH, min_scale=0.5, jitter=0.3)


def pictures(mixup: float = 0.0, fixed: int = 6) -> Pictures:
    return Pictures(images=IMAGES, training_places=PLACES, views=VIEWS, mixup=mixup, fixed=fixed)


def test_fixed_pictures_are_the_same_in_every_run_and_differ_from_each_other() -> None:
    drawn = [pictures().draw_fixed(place, number) for place in range(4) for number in range(6)]
    assert drawn == [pictures().draw_fixed(place, number) for place in range(4) for number in range(6)]
    assert len({picture.view.box for picture in drawn}) == 24


def test_more_fixed_pictures_begin_with_the_same() -> None:
    assert pictures(fixed=2).draw_fixed(3, 1) == pictures(fixed=9).draw_fixed(3, 1)


@pytest.mark.parametrize("mixup", [0.0, 0.3, 1.0])
def test_as_many_pictures_are_mixtures_as_asked_for_with_the_first_image_ahead(mixup: float) -> None:
    rng = np.random.default_rng(0)
    drawn = [pictures(mixup).draw(rng, place % 4) for place in range(1000)]
    mixtures = [picture for picture in drawn if picture.partner is not None]
    assert len(mixtures) == pytest.approx(1000 * mixup, abs=45)
    assert all(0.5 <= picture.share <= 1 for picture in mixtures)
    if mixtures:
        assert {picture.partner.place for picture in mixtures if picture.partner} == {0, 1, 2, 3}
        assert np.mean([picture.share for picture in mixtures]) == pytest.approx(0.75, abs=0.02)
    assert all(picture.share == 1 for picture in drawn if picture.partner is None)


def test_a_mixture_is_the_weighted_mean_of_both_views_and_of_both_weights() -> None:
    own, other = View(box=(3.0, 2.0, 43.0, 32.0)), View(box=(0.0, 0.0, 56.0, 40.0), flip=True)
    mixture = Picture(place=0, view=own, partner=Picture(place=2, view=other), share=0.7)
    first = oracles.crop(np.asarray(IMAGES[PLACES[0]]), own.box, HEIGHT, WIDTH)
    second = oracles.crop(np.asarray(IMAGES[PLACES[2]]), other.box, HEIGHT, WIDTH)[:, ::-1]
    expected = 0.7 * first + 0.3 * second
    assert np.abs(pictures().pixels(mixture) - expected).max() <= 1.5  # both views and the mixture are rounded
    assert mixture.weight(np.array([0.2, 0.4, 1.0, 0.0])) == pytest.approx(0.7 * 0.2 + 0.3 * 1.0)
    assert Picture(place=1, view=own).weight(np.array([0.2, 0.4, 1.0, 0.0])) == 0.4


@pytest.mark.parametrize("mixup", [0.0, 1.0])
def test_a_step_shows_a_fixed_picture_in_another_light_and_otherwise_as_it_is(mixup: float) -> None:
    made, flips = pictures(mixup), set()
    for number in range(6):
        fixed = made.draw_fixed(2, number)
        lit = made.lit(fixed, np.random.default_rng(number))
        np.testing.assert_array_equal(made.pixels(lit), made.pixels(fixed))
        assert (lit.view.box, lit.view.flip, lit.partner) == (fixed.view.box, fixed.view.flip, fixed.partner)
        assert fixed.view.light == (1.0, 1.0, 1.0)
        assert all(0.7 <= factor <= 1.3 for factor in lit.view.light)
        assert len(set(lit.view.light)) == 3
        flips.add(fixed.view.flip)
    assert flips == {False, True}
