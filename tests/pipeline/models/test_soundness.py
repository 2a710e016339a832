"""Weights and statistics that no forward pass can use are refused wherever a model enters or leaves."""

import json
import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import HEIGHT, NAMES, WIDTH, tiny_model, tiny_spec
from safetensors import safe_open
from safetensors.torch import save_file

from pipeline.models.files import load_model, save_model
from pipeline.models.hooks import probe
from pipeline.models.importing import import_weights
from pipeline.models.segmenter import ModelSpec, Segmenter, build_model
from pipeline.models.soundness import warn_of_statistics
from pipeline.scoring.scorer import make_scorer
from pipeline.settings import ImportSettings, ScoreSettings
from storage.errors import ModelError

HARMS = [
    ("head.weight", math.nan, "not finite"),
    ("body.0.weight", math.inf, "not finite"),
    ("stem.1.running_mean", -math.inf, "not finite"),
    ("neck.1.running_var", math.nan, "not finite"),
    ("body.1.running_var", -1e-3, "negative"),
]


def harmed(name: str, value: float) -> Segmenter:
    model = tiny_model()
    tensor = model.network.state_dict()[name]
    tensor[(1, *[0] * (tensor.ndim - 1))] = value
    return model


@pytest.mark.parametrize(("name", "value", "fault"), HARMS, ids=lambda value: str(value))
def test_a_model_that_is_not_sound_is_neither_written_nor_imported_nor_loaded(
    name: str, value: float, fault: str, teacher_file: Path
) -> None:
    model = harmed(name, value)
    says = rf"1 of the \d+ values of {name} are {fault}"
    with pytest.raises(ModelError, match=f"bad.safetensors is not written: {says}"):
        save_model(model, Path("bad.safetensors"))
    with safe_open(teacher_file, framework="pt") as file:
        header = file.metadata()
    weights = {key: tensor.contiguous() for key, tensor in model.network.state_dict().items()}
    save_file(weights, "harmed.safetensors", metadata=header)
    with pytest.raises(ModelError, match=f"^harmed.safetensors: {says}"):
        load_model("harmed.safetensors")
    torch.save(weights, "harmed.pth")
    settings = ImportSettings(
        builder="tiny_models:tiny", weights="harmed.pth", out="bad.safetensors", class_names=NAMES, image_size=(24, 32)
    )
    with pytest.raises(ModelError, match=f"^harmed.pth: {says}"):
        import_weights(settings)
    assert not list(Path().glob("bad*"))


def test_a_model_of_finite_weights_whose_logits_overflow_is_refused(teacher: Segmenter) -> None:
    with torch.no_grad():
        teacher.network.head.weight.fill_(3e38)  # type: ignore[union-attr, operator]
        teacher.network.head.bias.fill_(3e38)  # type: ignore[union-attr, operator]
    with pytest.raises(ModelError, match="the logits of tiny_models:tiny are not finite"):
        probe(teacher)


@pytest.mark.parametrize("field", ["mean", "std"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_normalisation_that_is_not_finite_is_refused(field: str, value: float) -> None:
    with pytest.raises(ModelError, match="must be finite"):
        ModelSpec(
            builder="a", num_classes=3, class_names=NAMES, image_size=(HEIGHT, WIDTH), **{field: (value, 0.5, 0.5)}
        )  # type: ignore[arg-type]
    text = json.dumps({**json.loads(tiny_spec().to_json()), field: [0.5, value, 0.5]})
    with pytest.raises(ModelError, match="must be finite"):
        ModelSpec.from_json(text)


def warnings_of(network: Any, caplog: pytest.LogCaptureFixture) -> list[str]:
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        warn_of_statistics(network, origin="t")
    return caplog.messages


def test_running_statistics_that_never_moved_or_are_constant_are_said(caplog: pytest.LogCaptureFixture) -> None:
    assert warnings_of(tiny_model().network, caplog) == []
    assert warnings_of(build_model(tiny_spec("tiny_models:without_batch_norm")).network, caplog) == []
    (untrained,) = warnings_of(build_model(tiny_spec()).network, caplog)
    assert untrained.startswith("t was not trained: all its BatchNorm layers have running mean 0 and variance 1")
    some = tiny_model()
    some.network.body[1].reset_running_stats()  # type: ignore[union-attr, index, operator]
    some.network.neck[1].running_var[2:4] = 0  # type: ignore[union-attr, index, operator]
    partly, constant = warnings_of(some.network, caplog)
    assert "1 of 3 BatchNorm layers still have running mean 0 and variance 1" in partly
    assert partly.endswith("the first is body.1")
    assert constant == "t: the running variance of 2 channels is 0, in 1 BatchNorm layers; the first is neck.1"
    centred = tiny_model()  # a mean of 0 alone, or a variance of 1 alone, is no sign
    centred.network.body[1].running_mean.zero_()  # type: ignore[union-attr, index, operator]
    centred.network.stem[1].running_var.fill_(1)  # type: ignore[union-attr, index, operator]
    assert warnings_of(centred.network, caplog) == []


def test_scoring_with_a_teacher_that_was_not_trained_says_so(caplog: pytest.LogCaptureFixture) -> None:
    save_model(build_model(tiny_spec()).eval(), Path("raw.safetensors"))
    make_scorer(ScoreSettings(corpus="c", teacher="raw.safetensors", device="cpu"))
    assert "raw.safetensors was not trained" in caplog.text
