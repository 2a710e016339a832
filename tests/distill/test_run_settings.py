"""Every setting of a distillation reaches the weights, views and networks of its steps."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import oracles
import pandas as pd
import pytest
import torch
from conftest import HEIGHT, WIDTH, draw_image, tiny_model, tiny_spec
from numpy.typing import NDArray
from PIL import Image
from stages import make_settings, make_train_settings, prepare_distill, prepare_train, run_distill, score_folder

from distill.sampling import hold_out
from distill.views import View
from pipeline.models.files import save_model
from storage.scores.store import ScoreStore

IMAGES = 23
HELD = 1
STEPS = 4


def distances() -> NDArray[np.float32]:
    """Of the images that the run trained on, from the selection in its folder."""
    table = pd.read_parquet("run/selection.parquet").sort_values("rank")
    kept = np.delete(np.arange(len(table)), hold_out(len(table)))
    return table["distance"].to_numpy(np.float32)[kept]  # type: ignore[no-any-return]


@pytest.mark.parametrize("normalization", ["robust", "minmax"])
@pytest.mark.parametrize(
    ("weighting", "pacing"), [("wdpd", "linear"), ("wdpd", "cosine"), ("static", "linear"), ("reversed", "step")]
)
def test_a_run_weights_its_images_by_their_distances_as_its_settings_say(
    normalization: str, weighting: str, pacing: str, scored_store: ScoreStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = make_settings(
        normalization=normalization, weighting=weighting, pacing=pacing, steps=STEPS, batch_size=IMAGES - HELD
    )
    prepared = prepare_distill(told, monkeypatch)
    start = oracles.start_weights(distances(), normalization)
    assert len(start) == IMAGES - HELD
    for step, batch in enumerate(prepared.batches):  # each of them a whole epoch
        expected = oracles.image_weights(start, step / (STEPS - 1), weighting, pacing)
        np.testing.assert_allclose(np.sort(batch.weights_N), np.sort(expected), rtol=1e-4, atol=1e-6)


def test_uniform_weights_are_uniform(scored_store: ScoreStore, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = prepare_distill(make_settings(weighting="uniform"), monkeypatch)
    assert all(batch.weights_N.tolist() == [1] * 4 for batch in prepared.batches)


def test_every_image_of_a_run_has_the_weight_of_its_own_distance(
    teacher_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images of one colour each, which their crops tell."""
    folder = tmp_path / "colours"
    folder.mkdir()
    for index in range(IMAGES):
        Image.new("RGB", (40, 30), (11 * index, 255 - 11 * index, (70 * index) % 256)).save(folder / f"{index:02}.png")
    score_folder(folder, teacher_file)
    told = make_settings(weighting="static", normalization="minmax", steps=1, batch_size=IMAGES - HELD, jitter=0.0)
    batch = prepare_distill(told, monkeypatch).batches[0]
    table = pd.read_parquet("run/selection.parquet").sort_values("rank")
    keys = [f"{int(image[0, 0, 0]) // 11:02}.png" for image in batch.images_N3HW]
    assert set(keys) == set(table["key"]) - {table["key"].iloc[hold_out(IMAGES)[0]]}
    distance = table.set_index("key")["distance"].loc[keys].to_numpy(np.float32)
    np.testing.assert_allclose(batch.weights_N, oracles.start_weights(distance, "minmax"), rtol=1e-4, atol=1e-6)


def test_by_sampling_a_run_weights_all_images_alike(scored_store: ScoreStore, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = prepare_distill(make_settings(by_sampling=True), monkeypatch)
    assert all(batch.weights_N.tolist() == [1] * 4 for batch in prepared.batches)
    plain = prepare_distill(make_settings(overwrite=True), monkeypatch)
    assert any(
        not torch.equal(one.images_N3HW, other.images_N3HW)
        for one, other in zip(prepared.batches, plain.batches, strict=True)
    )


def largest(size: tuple[int, int], view: View) -> float:
    """Side of a view as a share of the largest one of its shape."""
    width, height = view.box[2] - view.box[0], view.box[3] - view.box[1]
    return max(width / size[0], height / size[1])


def views_of(stage: str, folder: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> list[View]:
    changes = {"steps": 50, "batch_size": 8, "overwrite": True, **changes}
    if stage == "distill":
        prepared = prepare_distill(make_settings(**changes), monkeypatch)
    else:
        prepared = prepare_train(make_train_settings(folder, **changes), monkeypatch)
    return [view for batch in prepared.batches for view in batch.views]


@pytest.mark.parametrize("stage", ["distill", "train"])
@pytest.mark.parametrize("jitter", [0.0, 0.8])
def test_the_light_of_a_run_varies_as_much_as_its_jitter_says(
    stage: str, jitter: float, scored_store: ScoreStore, labelled_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    views = views_of(stage, labelled_folder, monkeypatch, jitter=jitter)
    away = np.abs(np.array([view.light for view in views]) - 1)
    assert away.max() <= jitter + 1e-12
    assert away.max() >= 0.97 * jitter
    assert away.mean() == pytest.approx(jitter / 2, rel=0.1)


@pytest.mark.parametrize("stage", ["distill", "train"])
@pytest.mark.parametrize("min_scale", [0.2, 0.7])
def test_the_crops_of_a_run_are_as_small_as_its_smallest_scale(
    stage: str, min_scale: float, scored_store: ScoreStore, labelled_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    views = views_of(stage, labelled_folder, monkeypatch, min_scale=min_scale)
    # Photographs are kept no larger than the smallest crop needs them.
    kept = max(math.ceil(HEIGHT / min_scale) / 40, math.ceil(WIDTH / min_scale) / 56)
    size = (56, 40) if stage == "train" or kept > 1 else (math.ceil(56 * kept), math.ceil(40 * kept))
    scales = [largest(size, view) for view in views]
    assert min_scale <= min(scales) < min_scale + 0.02
    assert 0.98 < max(scales) <= 1 + 1e-9


@pytest.mark.parametrize(("size", "kept"), [((112, 80), (49, 35)), ((80, 112), (46, 65)), ((40, 30), (40, 30))])
def test_photographs_are_kept_as_large_as_the_smallest_crop_needs_them(
    size: tuple[int, int], kept: tuple[int, int], teacher_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crop of 0.7 of the largest side is then no smaller than what the networks see: 24 x 32 / 0.7 = 34.3 x 45.7."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    for index in range(3):
        draw_image(index, size[1], size[0]).save(folder / f"{index}.png")
    score_folder(folder, teacher_file)
    prepared = prepare_distill(make_settings(steps=1, batch_size=3, min_scale=0.7), monkeypatch)
    images = prepared.objective.pictures.images
    assert [images[place].size for place in range(3)] == [kept] * 3  # decoded for the batch


def test_a_student_inherits_unless_it_is_told_not_to(image_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes: dict[str, Any] = {"student": "tiny_models:stacked", "student_arguments": {"blocks": 2}}
    save_model(tiny_model(spec=tiny_spec("tiny_models:stacked")), Path("stacked.safetensors"))
    score_folder(image_folder, "stacked.safetensors", out="stacked.zarr")
    told = make_settings(shards="stacked.zarr", seed=1, **changes)
    prepared = prepare_distill(told, monkeypatch)
    assert len(prepared.objective.inheritance.compared) == 2
    assert set(prepared.frozen) == set(prepared.objective.inheritance.frozen) != set()
    apart = prepare_distill(dataclasses.replace(told, inherit=False, overwrite=True), monkeypatch)
    assert apart.objective.inheritance.compared == ()
    assert not apart.frozen
    assert not torch.equal(apart.model.network.stem[0].weight, prepared.model.network.stem[0].weight)  # type: ignore[index, union-attr]


def test_the_loss_that_a_run_logs_is_that_of_its_settings(scored_store: ScoreStore) -> None:
    """Before the first step the same batch gives a different value for each loss, and T^2 KL(T) differs from KL."""
    logged = {}
    for loss, temperature in (("kl", 1.0), ("kl", 5.0), ("channel", 1.0), ("l1", 1.0)):
        run_distill(make_settings(loss=loss, temperature=temperature, steps=1, overwrite=True))
        curve = pd.read_csv("run/curves/plots/metrics/loss.tsv", sep="\t")
        logged[loss, temperature] = float(curve["loss"].iloc[0])
    assert len({round(value, 4) for value in logged.values()}) == 4
