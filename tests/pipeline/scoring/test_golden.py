"""The golden test of scores: distances, embeddings and cells of a few images, kept in golden_scores.json.

Scores of two versions must never be mixed in one store. If this test fails, the meaning of a score has changed. Then
raise SCORING_VERSION and write the figures again with ``python tests/pipeline/scoring/test_golden.py``.
"""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from pipeline.decoding.pillow import Decoder
from pipeline.models.segmenter import ModelSpec, Segmenter, build_model
from pipeline.scoring.scorer import Scorer, scorer_for
from storage.index import build_index
from storage.scores.schema import SCORING_VERSION

GOLDEN = Path(__file__).with_name("golden_scores.json")
MOVED = "the meaning of a score has moved: raise SCORING_VERSION, then write {} anew (its test says how)"


def fixed_teacher() -> Segmenter:
    """U-Net/ResNet-18 with weights from numpy, whose generator never changes; torch's may."""
    spec = ModelSpec(builder="smp:Unet/resnet18", num_classes=3, class_names=("a", "b", "c"), image_size=(64, 96))
    model = build_model(spec).eval()
    rng = np.random.default_rng(11)
    with torch.no_grad():
        for name, tensor in sorted(model.network.state_dict().items()):
            if name.endswith("num_batches_tracked"):
                continue
            fan_in = max(1, tensor[0].numel()) if tensor.ndim == 4 else 1
            values = rng.standard_normal(tuple(tensor.shape)) * (2 / fan_in) ** 0.5
            if name.endswith("running_var"):
                values = np.exp(0.3 * values)
            elif tensor.ndim == 1 and name.endswith("weight"):
                values = 1 + 0.1 * values
            elif tensor.ndim == 1:
                values = 0.1 * values
            tensor.copy_(torch.from_numpy(values.astype(np.float32)))
    return model


def fixed_images() -> list[bytes]:
    """Six files: PNG and JPEG of several sizes and modes, one of them so large that it is decoded at a reduced size."""
    rng = np.random.default_rng(5)
    files = []
    for index, (size, mode, kind) in enumerate(
        [((96, 64), "RGB", "PNG"), ((150, 90), "RGB", "PNG"), ((64, 120), "L", "PNG"), ((130, 130), "RGBA", "PNG"),
         ((200, 150), "RGB", "JPEG"), ((1200, 800), "RGB", "JPEG")]
    ):  # fmt: skip
        coarse = Image.fromarray((rng.integers(0, 256, (5, 7, 3)) * (0.3 + 0.12 * index)).clip(0, 255).astype(np.uint8))
        image = coarse.resize(size, Image.Resampling.BICUBIC).convert(mode)
        buffer = io.BytesIO()
        image.save(buffer, kind)
        files.append(buffer.getvalue())
    return files


def fixed_clusters() -> NDArray[np.float16]:
    """400 embeddings in eleven directions."""
    rng = np.random.default_rng(3)
    centres = rng.standard_normal((11, 16))
    vectors = centres[rng.integers(0, 11, 400)] + 0.1 * rng.standard_normal((400, 16))
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), dtype=np.float16)


def figures() -> dict[str, Any]:
    """The contents of the golden file."""
    teacher = fixed_teacher()
    decoder = Decoder(height=64, width=96)
    pixels = np.stack([decoder(data) for data in fixed_images()])
    found: dict[str, Any] = {"scoring_version": SCORING_VERSION}
    for kind, layers in (("standardized", "default"), ("paper", "default"), ("standardized", "all")):
        scorer: Scorer = scorer_for(teacher, layers=[layers], kind=kind, embedding_size=24)
        scores = scorer(pixels)
        found[f"{kind}, {layers}"] = {
            "layers": [layer.name for layer in scorer.layers],
            "distance": scores["distance"].tolist(),
            "embedding": scores["embedding"].astype(float).tolist(),
        }
    found["cell"] = build_index(fixed_clusters(), np.arange(400)).cell.tolist()
    return found


def rounded(value: Any) -> Any:
    """Numbers with six digits, which is more than the tolerances below."""
    if isinstance(value, dict):
        return {name: rounded(part) for name, part in value.items()}
    if isinstance(value, list):
        return [rounded(part) for part in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


@pytest.fixture(scope="module")
def now() -> dict[str, Any]:
    torch.set_num_threads(1)
    return figures()


def golden() -> dict[str, Any]:
    held: dict[str, Any] = json.loads(GOLDEN.read_text())
    return held


def test_the_golden_figures_are_those_of_this_scoring_version() -> None:
    assert golden()["scoring_version"] == SCORING_VERSION, f"write {GOLDEN.name} anew for version {SCORING_VERSION}"


@pytest.mark.parametrize("name", ["standardized, default", "paper, default", "standardized, all"])
def test_distances_and_embeddings_mean_what_they_meant(name: str, now: dict[str, Any]) -> None:
    held, found = golden()[name], now[name]
    assert found["layers"] == held["layers"], MOVED.format(GOLDEN.name)
    np.testing.assert_allclose(found["distance"], held["distance"], rtol=5e-4, err_msg=MOVED.format(GOLDEN.name))
    np.testing.assert_allclose(found["embedding"], held["embedding"], atol=3e-3, err_msg=MOVED.format(GOLDEN.name))


def test_the_same_images_share_a_cell(now: dict[str, Any]) -> None:
    held, found = np.array(golden()["cell"]), np.array(now["cell"])
    together = found[:, None] == found
    assert 4 < len(np.unique(found)) < 40
    np.testing.assert_array_equal(together, held[:, None] == held, err_msg=MOVED.format(GOLDEN.name))


if __name__ == "__main__":
    torch.set_num_threads(1)
    GOLDEN.write_text(json.dumps(rounded(figures()), indent=1) + "\n")
