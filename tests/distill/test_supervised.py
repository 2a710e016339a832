"""A supervised step against numpy."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import oracles
import pytest
import torch
from conftest import tiny_model
from PIL import Image
from stages import Stopped, batch_of, make_train_settings, prepare_train, stop_at

from distill.supervised import train
from pipeline.models.segmenter import Segmenter
from storage.errors import SettingsError

VOID = 255


class Recorded(Segmenter):
    """A model that keeps what it was shown and what it answered."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.shown = images
        self.answer = super().forward(images)
        return self.answer


def recorded() -> Recorded:
    plain = tiny_model()
    return Recorded(plain.network, plain.spec)


def test_the_loss_is_numpys_cross_entropy_over_the_labelled_pixels_of_what_was_shown(
    labelled_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective: Any = prepare_train(make_train_settings(labelled_folder, min_scale=1.0), monkeypatch).objective
    batch, model = batch_of(objective, 1), recorded()
    loss = objective.loss(model, batch, 0.0).mean()
    lit = [
        oracles.light(image.permute(1, 2, 0).numpy() / 255.0, view.light)
        for image, view in zip(batch.images_N3HW, batch.views, strict=True)
    ]
    np.testing.assert_allclose(model.shown.permute(0, 2, 3, 1).numpy(), np.stack(lit), atol=1e-5)
    labels = batch.labels_NHW.numpy()
    assert (labels == VOID).any()
    log_probability = oracles.log_softmax(model.answer.detach().double().numpy(), axis=1)
    terms = [-log_probability[n, labels[n, y, x], y, x] for n, y, x in np.argwhere(labels != VOID)]
    assert float(loss.detach()) == pytest.approx(np.mean(terms), rel=1e-5)


def test_a_batch_of_nothing_but_void_has_the_loss_0(labelled_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    objective: Any = prepare_train(make_train_settings(labelled_folder), monkeypatch).objective
    batch = batch_of(objective, 0)
    void = dataclasses.replace(batch, labels_NHW=torch.full_like(batch.labels_NHW, VOID))
    assert objective.loss(recorded(), void, 0.0).mean().item() == 0


def test_images_and_labels_of_a_batch_are_cut_and_mirrored_alike(
    labelled_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The labels of the fixture follow from the brightness: below 60 sky, below 120 road."""
    prepared = prepare_train(make_train_settings(labelled_folder, min_scale=0.8, batch_size=6), monkeypatch)
    flips = set()
    for batch in prepared.batches:
        flips |= {view.flip for view in batch.views}
        grey = batch.images_N3HW.permute(0, 2, 3, 1).numpy() @ np.array([0.299, 0.587, 0.114])
        labels = batch.labels_NHW.numpy()
        known = labels != VOID
        assert (np.digitize(grey, [60, 120])[known] == labels[known]).mean() > 0.93
    assert flips == {False, True}


def test_an_interrupted_run_is_not_continued_on_other_images(labelled_folder: Path) -> None:
    settings = make_train_settings(labelled_folder, steps=4)
    with pytest.raises(Stopped):
        train(settings, stop_at(2))
    extra = Image.new("RGB", (56, 40))
    extra.save(labelled_folder / "images" / "7.png")
    extra.convert("L").save(labelled_folder / "labels" / "7.png")
    with pytest.raises(SettingsError, match="data_fingerprint is .* there and .* now"):
        train(dataclasses.replace(settings, resume=True))
