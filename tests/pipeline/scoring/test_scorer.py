"""The scorer: which columns it measures, on which device, and what it refuses."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import HEIGHT, WIDTH, tiny_model
from torch.overrides import TorchFunctionMode

from pipeline.decoding import nvjpeg
from pipeline.models.segmenter import Segmenter
from pipeline.scoring import scorer as module
from pipeline.scoring.scorer import Scorer, make_scorer, mean_entropy, scorer_for
from pipeline.settings import ScoreSettings
from storage.errors import SettingsError


def tiny_scorer(**changes: Any) -> Scorer:
    return scorer_for(tiny_model(), layers=("all",), kind="standardized", embedding_size=5, **changes)


def images(count: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(0).integers(0, 256, (count, HEIGHT, WIDTH, 3), dtype=np.uint8)


def test_entropy_is_measured_only_where_it_is_asked_for() -> None:
    always = {"layer_distance", "distance", "embedding"}
    assert set(tiny_scorer()(images(2))) == always
    assert set(tiny_scorer(entropy=True)(images(2))) == always | {"entropy"}


def test_entropy_is_numpys_for_each_image() -> None:
    logits = np.random.default_rng(0).normal(0, 3, (4, 3, 5, 7))
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    expected = [-(image * np.log(image)).sum() / 35 for image in p]
    np.testing.assert_allclose(mean_entropy(torch.from_numpy(logits)).numpy(), expected, rtol=1e-4)


def test_images_are_sent_to_the_device_without_waiting_for_them() -> None:
    sent: list[dict[str, Any]] = []

    class Watch(TorchFunctionMode):
        def __torch_function__(
            self, function: Callable[..., Any], types: Any, given: tuple[Any, ...] = (), named: Any = None
        ) -> Any:
            if function is torch.Tensor.to and given[0].dtype == torch.uint8:
                sent.append(named)
            return function(*given, **(named or {}))

    scorer = tiny_scorer()
    with Watch():
        scorer(images(2))
    assert {"non_blocking": True} in sent


class OnAGpu(Segmenter):
    """A teacher that says that it has been sent to a GPU."""

    def to(self, device: Any) -> "OnAGpu":  # type: ignore[override]
        assert device == torch.device("cuda")
        return self


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = tiny_model()
    monkeypatch.setattr(module, "pick_device", lambda name: torch.device("cuda"))
    monkeypatch.setattr(module, "load_model", lambda path: OnAGpu(teacher.network, teacher.spec).eval())


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(("decoder", "available"), [("cpu", True), ("cpu", False), ("nvjpeg", True)])
def test_a_gpu_scores_with_either_decoder_that_there_is(
    decoder: Any, available: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nvjpeg, "AVAILABLE", available)
    settings = ScoreSettings(corpus="none", teacher="none", layers=("all",), decoder=decoder)
    assert isinstance(make_scorer(settings).teacher, OnAGpu)


@pytest.mark.usefixtures("gpu")
def test_a_torchvision_without_decoders_is_told_to_use_the_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvjpeg, "AVAILABLE", False)
    with pytest.raises(SettingsError, match="needs a torchvision that decodes images; .* --decoder cpu"):
        make_scorer(ScoreSettings(corpus="none", teacher="none", decoder="nvjpeg"))


def test_a_run_on_a_cpu_needs_no_decoder_of_a_gpu(teacher_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvjpeg, "AVAILABLE", False)
    told = ScoreSettings(corpus="none", teacher=str(teacher_file), layers=("all",), device="cpu")
    assert make_scorer(told).device.type == "cpu"
    monkeypatch.setattr(nvjpeg, "AVAILABLE", True)
    with pytest.raises(SettingsError, match="nvjpeg needs a CUDA device.* --decoder cpu"):
        make_scorer(ScoreSettings(corpus="none", teacher=str(teacher_file), device="cpu", decoder="nvjpeg"))
