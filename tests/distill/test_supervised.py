"""A supervised step against numpy."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import oracles
import pytest
import torch
from conftest import tiny_model
from PIL import Image
from stages import batch_of, make_train_settings, prepare_train

from distill.evaluation import evaluate
from distill.labelled import open_labelled
from distill.supervised import train
from pipeline.models.segmenter import Segmenter
from storage.errors import DataError, SettingsError

VOID = 255


class Recorded(Segmenter):
    """A model that keeps its inputs and its outputs."""

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


def test_a_model_is_judged_by_the_validation_folder_alone(
    labelled_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = prepare_train(make_train_settings(labelled_folder), monkeypatch)
    assert plain.objective.evaluate(plain.model) is None
    shutil.copytree(labelled_folder, "judged")
    for part in ("images", "labels"):
        Path("judged", part, "3.png").unlink()
    told = make_train_settings(labelled_folder, val="judged", overwrite=True)
    prepared = prepare_train(told, monkeypatch)
    found = prepared.objective.evaluate(prepared.model)
    assert found == evaluate(prepared.model, open_labelled("judged"))
    assert found.images == 5


def test_the_names_that_are_given_count_and_not_those_of_the_folder(
    labelled_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = prepare_train(make_train_settings(labelled_folder), monkeypatch).model.spec
    assert (found.class_names, found.num_classes) == (("sky", "road", "car"), 3)
    told = make_train_settings(labelled_folder, class_names=("a", "b", "c"), overwrite=True)
    assert prepare_train(told, monkeypatch).model.spec.class_names == ("a", "b", "c")


def test_classes_without_any_name_are_an_error(labelled_folder: Path) -> None:
    (labelled_folder / "classes.txt").unlink()
    with pytest.raises(DataError, match=r"labelled and its parent have no classes\.txt"):
        train(make_train_settings(labelled_folder))
    assert not Path("taught").exists()


@pytest.mark.parametrize("wrong", ["data", "val"])
def test_a_label_without_a_class_is_found_before_the_first_step(wrong: str, labelled_folder: Path) -> None:
    shutil.copytree(labelled_folder, "val")
    folder = labelled_folder if wrong == "data" else Path("val")
    Image.fromarray(np.full((40, 56), 3, dtype=np.uint8)).save(folder / "labels" / "5.png")
    with pytest.raises(DataError, match=r"5\.png has class 3, but the model only 0 to 2"):
        train(make_train_settings(labelled_folder, val="val"))
    (folder / "classes.txt").write_text("sky\nroad\ncar\ntree\n")
    with pytest.raises(DataError, match="^the model has 3 classes, .* has 4"):
        train(make_train_settings(labelled_folder, val="val", class_names=("sky", "road", "car")))
    assert not Path("taught").exists()


def test_a_model_that_is_there_is_not_lost_by_mistake(labelled_folder: Path) -> None:
    train(make_train_settings(labelled_folder, steps=1))
    before = Path("taught/model.safetensors").read_bytes()
    with pytest.raises(SettingsError, match="already holds a run"):
        train(make_train_settings(labelled_folder, steps=1, seed=1))
    assert Path("taught/model.safetensors").read_bytes() == before
