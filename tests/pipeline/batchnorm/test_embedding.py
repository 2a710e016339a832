"""Embeddings, and the scores of a whole pass, against float64 numpy."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import HEIGHT, WIDTH, draw_image, tiny_model
from numpy.typing import NDArray
from stages import score_folder
from torch import nn

from pipeline.batchnorm.distances import layer_distances, standard_scores
from pipeline.batchnorm.embedding import Embedder
from pipeline.batchnorm.layers import BatchNormLayer
from pipeline.batchnorm.moments import LayerStatistics
from pipeline.models.files import save_model
from pipeline.models.segmenter import Segmenter
from pipeline.scoring.scorer import make_scorer
from pipeline.settings import ScoreSettings

Array = NDArray[np.float64]
SEED = 20251213  # part of what an embedding is: another one makes stores that do not compare
LAYERS = ["stem.1", "body.1", "neck.1"]


def embedded(scores: Array, size: int) -> Array:
    channels = scores.shape[1]
    vectors = np.minimum(np.maximum(scores, -10), 10)
    if channels > size:
        vectors = vectors @ np.random.default_rng([SEED, channels, size]).standard_normal((channels, size))
    return np.asarray(vectors / np.sqrt((vectors**2).sum(axis=1, keepdims=True)))


@pytest.mark.parametrize(("channels", "size"), [(40, 16), (16, 16), (5, 16)])
def test_an_embedding_is_clipped_projected_and_of_unit_length(channels: int, size: int) -> None:
    scores = np.random.default_rng(0).normal(0, 8, (30, channels))
    assert (scores < -10).any()
    assert (scores > 10).any()
    found = Embedder.create(channels, size, torch.device("cpu"))(torch.from_numpy(scores).float()).numpy()
    np.testing.assert_allclose(found, embedded(scores, size), atol=2e-6)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)


def layer(running_mean: list[float], running_var: list[float], eps: float) -> BatchNormLayer:
    module = nn.BatchNorm2d(len(running_mean), eps=eps)
    module.running_mean, module.running_var = torch.tensor(running_mean), torch.tensor(running_var)
    return BatchNormLayer("layer", module, positions=6)


def test_channels_that_hardly_vary_are_measured_with_the_layers_eps() -> None:
    one = layer([1.0, -2.0], [0.0, 1e-4], eps=1e-3)
    mean, var = np.array([[1.1, -2.0], [0.9, 3.0]]), np.array([[0.0, 1e-3], [2.0, 0.0]])
    statistics = LayerStatistics(torch.from_numpy(mean).float(), torch.from_numpy(var).float())
    sigma2 = np.array([0.0, 1e-4]) + 1e-3
    scores, ratio = (mean - [1, -2]) / np.sqrt(sigma2), np.log((var + 1e-3) / sigma2)
    np.testing.assert_allclose(standard_scores(statistics, one), scores, rtol=1e-4)
    found = layer_distances({"layer": statistics}, [one], "standardized")
    np.testing.assert_allclose(found[:, 0, 0], np.sqrt((scores**2).mean(axis=1)), rtol=1e-4)
    np.testing.assert_allclose(found[:, 0, 1], np.sqrt((ratio**2).mean(axis=1)), rtol=1e-4)
    plain = layer_distances({"layer": statistics}, [one], "paper")
    np.testing.assert_allclose(plain[:, 0, 0], np.sqrt(((mean - [1, -2]) ** 2).sum(axis=1)), rtol=1e-4)


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Eleven images of the very size that the teacher takes: nothing is scaled."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    for index in range(11):
        draw_image(index, HEIGHT, WIDTH).save(folder / f"{index:02}.png")
    return folder


def statistics_of(teacher: Segmenter) -> dict[str, tuple[Array, Array]]:
    """Mean and variance of the input of each layer for each photograph, by hooks of the test's own."""
    seen: dict[str, list[Array]] = {name: [] for name in LAYERS}
    network, spec = tiny_model().network.double(), teacher.spec
    network.load_state_dict(teacher.network.state_dict())
    for name in LAYERS:
        network.get_submodule(name).register_forward_hook(
            lambda _, inputs, __, name=name: seen[name].append(inputs[0][0].numpy())
        )
    for index in range(11):
        pixels = np.asarray(draw_image(index, HEIGHT, WIDTH)) / 255.0
        normalised = (pixels - np.array(spec.mean)) / np.array(spec.std)
        with torch.no_grad():
            network(torch.from_numpy(normalised).permute(2, 0, 1)[None])
    return {
        name: (np.stack([x.mean((1, 2)) for x in inputs]), np.stack([x.var((1, 2)) for x in inputs]))
        for name, inputs in seen.items()
    }


@pytest.fixture
def odd_teacher(tmp_path: Path) -> Segmenter:
    """Some of its channels are all but dead, so that their standard scores are beyond the clip."""
    teacher = tiny_model()
    for name in LAYERS:
        module = teacher.network.get_submodule(name)
        module.running_var[1] *= 1e-4  # type: ignore[index, operator]
        module.running_mean[2] += 5 * module.running_var[2].sqrt()  # type: ignore[index, operator, union-attr]
    save_model(teacher, tmp_path / "odd.safetensors")
    return teacher


@pytest.mark.parametrize("distance", ["standardized", "paper"])
@pytest.mark.parametrize(
    ("layers", "size", "monitored"),
    [("all", 128, LAYERS), ("all", 3, LAYERS), ("stem.1,body.1", 5, LAYERS[:2]), ("body.1", 16, ["body.1"])],
)
def test_a_store_holds_numpys_distances_and_embeddings_of_the_last_monitored_layer(
    layers: str, size: int, monitored: list[str], distance: str, photographs: Path, odd_teacher: Segmenter
) -> None:
    store = score_folder(
        photographs, "odd.safetensors", layers=layers.split(","), embedding_size=size, distance=distance, batch_size=4
    )
    found, parts = statistics_of(odd_teacher), []
    for name in monitored:
        module = odd_teacher.network.get_submodule(name)
        mean, var = (getattr(module, f"running_{what}").double().numpy() for what in ("mean", "var"))
        scores = (found[name][0] - mean) / np.sqrt(var + module.eps)
        if distance == "paper":
            both = [np.linalg.norm(found[name][0] - mean, axis=1), np.linalg.norm(found[name][1] - var, axis=1)]
        else:
            ratio = np.log((found[name][1] + module.eps) / (var + module.eps))
            both = [np.sqrt((values**2).mean(axis=1)) for values in (scores, ratio)]
        parts.append(np.stack(both, axis=1))
    assert np.abs(scores).max() > 10
    np.testing.assert_allclose(store.column("layer_distance"), np.stack(parts, axis=1), rtol=1e-3)
    np.testing.assert_allclose(store.column("distance"), np.mean([part.sum(axis=1) for part in parts], axis=0), 1e-3)
    kept = store.column("embedding")
    assert kept.dtype == np.float16
    assert kept.shape == (11, min(size, scores.shape[1]))
    np.testing.assert_allclose(kept.astype(np.float64), embedded(scores, size), atol=1e-3)


@pytest.mark.parametrize(("precision", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_scores_are_made_in_the_precision_asked_for(precision: Any, dtype: torch.dtype, teacher_file: Path) -> None:
    told = ScoreSettings(corpus="none", teacher=str(teacher_file), layers=("all",), device="cpu", precision=precision)
    scorer, seen = make_scorer(told), []
    scorer.teacher.network.get_submodule("body.0").register_forward_hook(lambda *given: seen.append(given[2].dtype))
    scores = scorer(np.zeros((2, HEIGHT, WIDTH, 3), np.uint8))
    assert seen == [dtype]
    assert (scores["distance"].dtype, scores["embedding"].dtype) == (np.float32, np.float16)
