"""Random views."""

import dataclasses

import numpy as np
import torch
from conftest import draw_image
from PIL import Image, ImageEnhance

from distill.ordering import epoch_slice
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


def test_the_whole_view_is_centred_and_of_the_right_shape() -> None:
    view = whole_view((100, 60), SETTINGS)
    assert view == View(box=(10.0, 0.0, 90.0, 60.0), flip=False, light=(1.0, 1.0, 1.0))


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
