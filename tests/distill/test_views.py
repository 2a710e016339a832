"""Random views."""

import dataclasses
import math
from typing import Any, cast

import numpy as np
import oracles
import pytest
import torch
from conftest import draw_image
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from distill.sampling import epoch_slice
from distill.views import View, ViewSettings, crop_image, crop_label, draw_view, light_images, whole_view

SETTINGS = ViewSettings(height=24, width=32, min_scale=0.5, jitter=0.3)


def test_a_view_is_a_function_of_its_generator_and_stays_inside_the_image() -> None:
    views = [draw_view(np.random.default_rng([1, i]), (50, 80), SETTINGS) for i in range(200)]
    assert views[3] == draw_view(np.random.default_rng([1, 3]), (50, 80), SETTINGS)
    boxes = np.array([view.box for view in views])
    assert boxes.min() >= 0
    assert (boxes[:, 2] <= 50 + 1e-9).all()
    assert (boxes[:, 3] <= 80 + 1e-9).all()
    assert 0.3 < np.mean([view.flip for view in views]) < 0.7
    aspect = (boxes[:, 2] - boxes[:, 0]) / (boxes[:, 3] - boxes[:, 1])
    assert (np.abs(np.log(aspect / (32 / 24))) < 0.11).all()


def test_image_and_label_are_cut_alike() -> None:
    image = draw_image(1)
    grey = np.asarray(image.convert("L"))
    view = dataclasses.replace(draw_view(np.random.default_rng(2), image.size, SETTINGS), flip=True)
    label = crop_label((grey > 100).astype(np.uint8), view, SETTINGS)
    cut = np.asarray(Image.fromarray(crop_image(image, view, SETTINGS)).convert("L"))
    assert label.shape == cut.shape == (24, 32)
    assert ((cut > 100) == label).mean() > 0.95


@pytest.mark.parametrize(
    ("size", "box"),
    [((100, 60), (10.0, 0.0, 90.0, 60.0)), ((60, 100), (0.0, 27.5, 60.0, 72.5)), ((80, 60), (0.0, 0.0, 80.0, 60.0))],
)
def test_the_whole_view_is_centred_and_of_the_right_shape(
    size: tuple[int, int], box: tuple[float, float, float, float]
) -> None:
    assert whole_view(size, SETTINGS) == View(box=box, flip=False, light=(1.0, 1.0, 1.0))


@pytest.mark.parametrize("size", [(50, 80), (90, 30)])
def test_a_view_is_made_of_the_numbers_of_its_generator_in_their_order(size: tuple[int, int]) -> None:
    """Aspect, scale, left, top, brightness, contrast, saturation, flip: a run begun before goes on with its views."""
    (width, height), flips = size, set()
    for seed in range(20):
        numbers = np.random.default_rng(seed).random(8)
        aspect = 32 / 24 * math.exp(-0.1 + 0.2 * numbers[0])
        scale = 0.5 + 0.5 * numbers[1]
        across = scale * (width if width / height < aspect else height * aspect)
        down = across / aspect
        left, top = (width - across) * numbers[2], (height - down) * numbers[3]
        view = draw_view(np.random.default_rng(seed), size, SETTINGS)
        assert view.box == pytest.approx((left, top, left + across, top + down))
        assert view.light == pytest.approx(tuple(1 - 0.3 + 0.6 * numbers[4:7]))
        assert view.flip == (numbers[7] < 0.5)
        flips.add(view.flip)
    assert flips == {False, True}


def test_exactly_half_of_the_numbers_mirror_a_view() -> None:
    class Fixed:
        """Draws one number as it is, and the middle of every range."""

        def __init__(self, number: float) -> None:
            self.number = number

        def uniform(self, low: float, high: float, size: int | None = None) -> Any:
            return np.full(size or (), (low + high) / 2)

        def random(self) -> float:
            return self.number

    drawn = {number: draw_view(cast(Any, Fixed(number)), (50, 80), SETTINGS) for number in (0.0, 0.5 - 2**-53, 0.5)}
    assert [view.flip for view in drawn.values()] == [True, True, False]


def test_flipping_mirrors() -> None:
    image = draw_image(2)
    view = draw_view(np.random.default_rng(0), image.size, SETTINGS)
    one = crop_image(image, dataclasses.replace(view, flip=False), SETTINGS)
    two = crop_image(image, dataclasses.replace(view, flip=True), SETTINGS)
    np.testing.assert_array_equal(one[:, ::-1], two)


def test_light_is_what_pillow_does_factor_by_factor() -> None:
    image = Image.fromarray((np.asarray(draw_image(3)) // 2 + 40).astype(np.uint8))  # nothing clips
    pixels = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None]
    for light, enhancer in (
        ((1.2, 1.0, 1.0), ImageEnhance.Brightness),
        ((1.0, 1.2, 1.0), ImageEnhance.Contrast),
        ((1.0, 1.0, 0.7), ImageEnhance.Color),
    ):
        view = View(box=(0, 0, 1, 1), flip=False, light=light)
        factor = next(value for value in light if value != 1.0)
        expected = np.asarray(enhancer(image).enhance(factor)) / 255
        found = light_images(pixels, [view])[0].permute(1, 2, 0).numpy()
        np.testing.assert_allclose(found, expected, atol=1.5 / 255)


def test_every_image_comes_once_an_epoch_and_epochs_join() -> None:
    indices = [index for step in range(15) for index in epoch_slice(10, step, 4, seed=1)]
    for epoch in range(6):
        assert sorted(indices[10 * epoch : 10 * epoch + 10]) == list(range(10))
    assert indices[:10] != indices[10:20]


def test_a_batch_may_be_larger_than_the_selection() -> None:
    assert sorted(epoch_slice(3, 0, 6, seed=0)) == [0, 0, 1, 1, 2, 2]


def views(size: tuple[int, int], **changes: float) -> tuple[ViewSettings, list[View]]:
    settings = dataclasses.replace(SETTINGS, **changes)
    return settings, [draw_view(np.random.default_rng([5, i]), size, settings) for i in range(4000)]


def is_uniform(values: NDArray[np.float64], low: float, high: float) -> bool:
    """Kolmogorov and Smirnov: of 4,000 uniform numbers one sample in a thousand is farther off."""
    expected = (np.sort(values) - low) / (high - low)
    steps = np.arange(len(values) + 1) / len(values)
    inside = expected[0] >= -1e-9 and expected[-1] <= 1 + 1e-9
    return bool(inside and max((steps[1:] - expected).max(), (expected - steps[:-1]).max()) < 1.95 / len(values) ** 0.5)


def test_the_kolmogorov_smirnov_bound_holds_for_uniform_numbers_alone() -> None:
    numbers = np.random.default_rng(0).random(4000)
    assert is_uniform(numbers, 0, 1)
    assert not is_uniform(numbers, -0.1, 1)
    assert not is_uniform(numbers, 0, 0.99)
    assert not is_uniform(numbers**1.1, 0, 1)


@pytest.mark.parametrize("min_scale", [0.2, 0.8])
def test_crops_are_log_uniform_in_their_aspect_and_uniform_in_scale_and_place(min_scale: float) -> None:
    width, height = 90, 70
    settings, drawn = views((width, height), min_scale=min_scale)
    left, top, right, bottom = np.array([view.box for view in drawn]).T
    aspect = (right - left) / (bottom - top)
    assert is_uniform(np.log(aspect / (settings.width / settings.height)), -0.1, 0.1)
    scale = np.maximum((right - left) / width, (bottom - top) / height)
    assert is_uniform(scale, min_scale, 1.0)
    assert abs(np.corrcoef(scale, aspect)[0, 1]) < 0.05
    inside = scale < 0.95  # or there is no room to be anywhere
    assert is_uniform((left / (width - (right - left)))[inside], 0, 1)
    assert is_uniform((top / (height - (bottom - top)))[inside], 0, 1)


@pytest.mark.parametrize("jitter", [0.0, 0.3, 0.9])
def test_brightness_contrast_and_saturation_are_uniform_each_for_itself(jitter: float) -> None:
    _, drawn = views((90, 70), jitter=jitter)
    light = np.array([view.light for view in drawn])
    if jitter == 0:
        assert (light == 1).all()
        return
    for factor in light.T:
        assert is_uniform(factor, 1 - jitter, 1 + jitter)
    assert np.abs(np.corrcoef(light.T) - np.eye(3)).max() < 0.06


def test_every_other_view_is_mirrored() -> None:
    _, drawn = views((90, 70))
    assert abs(np.mean([view.flip for view in drawn]) - 0.5) < 0.03


def test_light_is_numpys_for_all_factors_at_once_image_by_image() -> None:
    rng = np.random.default_rng(3)
    images = rng.integers(0, 256, (5, 6, 7, 3), dtype=np.uint8)
    images[1] //= 4
    factors = rng.uniform(0.2, 1.8, (5, 3))
    drawn = [View(box=(0, 0, 1, 1), flip=False, light=(a, b, c)) for a, b, c in factors]
    found = light_images(torch.from_numpy(images).permute(0, 3, 1, 2), drawn).permute(0, 2, 3, 1).numpy()
    expected = np.stack([oracles.light(image / 255.0, light) for image, light in zip(images, factors, strict=True)])
    assert ((expected == 0).any(), (expected == 1).any()) == (True, True)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("flip", [False, True])
def test_a_crop_is_numpys_triangle_filter_over_its_box(flip: bool) -> None:
    image = Image.fromarray(np.random.default_rng(4).integers(0, 256, (61, 83, 3), dtype=np.uint8))
    for seed in range(5):
        view = dataclasses.replace(draw_view(np.random.default_rng(seed), image.size, SETTINGS), flip=flip)
        expected = oracles.crop(np.asarray(image), view.box, SETTINGS.height, SETTINGS.width)
        found = crop_image(image, view, SETTINGS)
        assert np.abs((found[:, ::-1] if flip else found) - expected).max() < 1.6  # two roundings, one for each axis
