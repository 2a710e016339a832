"""dfss-import: weights from elsewhere become a model file, and no code of theirs is run."""

import argparse
import datetime
import logging
import os
import pickle
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from conftest import HEIGHT, WIDTH
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models.segmentation import fcn_resnet50

from pipeline.models.builders import build_network
from pipeline.models.files import load_model
from pipeline.models.importing import import_weights
from pipeline.models.segmenter import Segmenter
from pipeline.settings import ImportSettings
from storage.errors import ModelError, SettingsError


def settings(weights: Path, **changes: Any) -> ImportSettings:
    fields: dict[str, Any] = {
        "builder": "tiny_models:tiny", "weights": str(weights), "out": str(weights.parent / "out.safetensors"),
        "class_names": ("sky", "road", "car"), "image_size": (HEIGHT, WIDTH),
    }  # fmt: skip
    return ImportSettings(**{**fields, **changes})


@pytest.mark.parametrize("wrap", ["plain", "nested", "data-parallel", "safetensors"])
def test_weights_are_imported_however_they_were_saved(wrap: str, teacher: Segmenter, tmp_path: Path) -> None:
    state = teacher.network.state_dict()
    path = tmp_path / ("w.safetensors" if wrap == "safetensors" else "w.pth")
    if wrap == "safetensors":
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    elif wrap == "nested":
        torch.save({"epoch": 3, "state_dict": state}, path)
    else:
        prefix = "module." if wrap == "data-parallel" else ""
        torch.save({prefix + name: tensor for name, tensor in state.items()}, path)
    import_weights(settings(path))
    images = torch.rand(1, 3, HEIGHT, WIDTH)
    torch.testing.assert_close(load_model(tmp_path / "out.safetensors")(images), teacher(images))


def test_an_auxiliary_head_that_only_training_needs_is_left_out(tmp_path: Path) -> None:
    network = fcn_resnet50(num_classes=4, aux_loss=True, weights_backbone=None)
    torch.save(network.state_dict(), tmp_path / "w.pth")
    import_weights(
        settings(tmp_path / "w.pth", builder="fcn_resnet50", class_names=None, num_classes=4, image_size=(64, 64))
    )
    model = load_model(tmp_path / "out.safetensors")
    assert not any(name.startswith("aux") for name in model.network.state_dict())
    images = torch.rand(1, 3, 64, 64)
    expected = network.eval()(model.normalise(images))["out"]
    torch.testing.assert_close(model(images), expected)


class Harmful:
    """Runs code when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.target,)


def in_encoder(names: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """As torch.compile of one part of the network leaves the names."""
    return {re.sub(r"^(stem|body)\.", r"\1._orig_mod.", name): tensor for name, tensor in names.items()}


def prefixed(prefix: str, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in weights.items()}


SAVED: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "any prefix": lambda weights: prefixed("net.inner.", weights),
    "compiled and parallel": lambda weights: prefixed("_orig_mod.module.", weights),
    "a compiled part": in_encoder,
    "parallel parts": lambda weights: {name.replace(".", ".module.", 1): one for name, one in weights.items()},
    "with a criterion": lambda weights: {**prefixed("model.", weights), "criterion.weight": torch.ones(3)},
    "with a criterion beside it": lambda weights: {**weights, "criterion.weight": torch.ones(3)},
    "profiled": lambda weights: {**weights, "total_ops": torch.zeros(1), "stem.0.total_ops": torch.zeros(1)},
    "a list": lambda weights: [3, weights],
    "beside an optimiser": lambda weights: {
        "model": weights, "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]},
    },
    "with arguments": lambda weights: {"args": argparse.Namespace(lr=0.1, out=Path("x")), "model": weights},
    "with numbers of numpy": lambda weights: {
        "best": np.float64(0.6), "epoch": np.int64(3), "history": np.arange(3.0), "net": weights,
    },
    "with a date": lambda weights: {
        "date": datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC), "hparams": SimpleNamespace(a=1), "w": weights,
    },
}  # fmt: skip


@pytest.mark.parametrize("how", SAVED)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_what_trainers_store_is_read_for_its_weights(
    how: str, zipped: bool, teacher: Segmenter, tmp_path: Path
) -> None:
    content = SAVED[how](dict(teacher.network.state_dict()))
    torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    import_weights(settings(tmp_path / "w.pth", class_names=None))
    found = load_model(tmp_path / "out.safetensors").network.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in teacher.network.state_dict().items())


@pytest.mark.parametrize(
    ("save", "raw", "averaged"),
    [
        (lambda raw, ema: {"state_dict_ema": ema, "state_dict": raw}, "state_dict", "state_dict_ema"),
        (lambda raw, ema: {"model": raw, "model_ema": {"n_averaged": torch.tensor(5), **prefixed("module.", ema)}},
         "model", "model_ema"),
        (lambda raw, ema: {"state_dict": {**prefixed("ema_net.", ema), **prefixed("net.", raw)}}, "net", "ema_net"),
    ],
)  # fmt: skip
def test_raw_weights_are_taken_and_averaged_ones_if_they_are_named(
    save: Any, raw: str, averaged: str, teacher: Segmenter, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    weights = dict(teacher.network.state_dict())
    torch.save(save(weights, {name: tensor + 1 for name, tensor in weights.items()}), tmp_path / "w.pth")
    for key, shift, other in ((None, 0, averaged), (raw, 0, averaged), (averaged, 1, raw)):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            import_weights(settings(tmp_path / "w.pth", key=key, overwrite=True))
        found = load_model(tmp_path / "out.safetensors").network.state_dict()["head.bias"]
        assert torch.equal(found, weights["head.bias"] + shift)
        assert re.search(rf"took the weights \S+; --key \S*{other}\S* takes others", caplog.text)
        assert "left out stem" not in caplog.text
        assert "left out net." not in caplog.text


def test_weights_that_the_network_has_no_part_for_are_named(
    teacher: Segmenter, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    weights = prefixed("model.", teacher.network.state_dict())
    torch.save({"state_dict": {**weights, "criterion.weight": torch.ones(3)}}, tmp_path / "w.pth")
    with caplog.at_level(logging.INFO):
        import_weights(settings(tmp_path / "w.pth"))
    assert "left out criterion.weight, which the network does not have" in caplog.text


def test_weights_of_a_part_that_is_deeper_than_the_networks_are_refused(tmp_path: Path) -> None:
    deep = build_network("tiny_models:stacked", 3, {"blocks": 5})
    torch.save(deep.state_dict(), tmp_path / "w.pth")
    with pytest.raises(ModelError, match=r"does not fit the network: unknown blocks\.3\.0\.bias"):
        import_weights(settings(tmp_path / "w.pth", builder="tiny_models:stacked", arguments={"blocks": 3}))


@pytest.mark.parametrize("classes", [2, 3, 21])
def test_the_number_of_classes_is_that_of_the_weights(classes: int, tmp_path: Path) -> None:
    torch.save({"net": build_network("tiny_models:tiny", classes, {}).state_dict()}, tmp_path / "w.pth")
    spec = import_weights(settings(tmp_path / "w.pth", class_names=None))
    assert (spec.num_classes, spec.class_names[-1]) == (classes, f"class {classes - 1}")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("w.onnx", b"\x08\x07", "w.onnx is an ONNX model, which DFSS does not read"),
        ("w.h5", b"\x89HDF", "w.h5 is a Keras model, which DFSS does not read"),
        ("w.pth", b"version https://git-lfs.github.com/spec/v1\noid", "is a Git LFS pointer and not the weights"),
        ("w.pth", b"\n<!DOCTYPE html><html>", "is a web page and not the weights"),
        ("w.pth", b"", "cannot be read as weights"),
        ("w.pth", b"PK\x03\x04cut", "cannot be read as weights"),
        ("w.safetensors", b"cut", "cannot be read as weights"),
    ],
)
def test_a_file_of_another_kind_is_refused_in_one_true_line(
    name: str, content: bytes, message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match=message) as caught:
        import_weights(settings(tmp_path / name))
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_a_torchscript_archive_is_refused_with_the_line_that_converts_it(teacher: Segmenter, tmp_path: Path) -> None:
    stem = teacher.network.stem
    assert isinstance(stem, nn.Module)
    torch.jit.trace(stem, torch.rand(1, 3, 8, 8)).save(tmp_path / "w.pt")  # type: ignore[no-untyped-call]
    with warnings.catch_warnings(), pytest.raises(ModelError, match="is a TorchScript archive") as caught:
        warnings.simplefilter("error")
        import_weights(settings(tmp_path / "w.pt"))
    converted = run_line(str(caught.value), tmp_path)
    assert torch.equal(converted["0.weight"], stem.state_dict()["0.weight"])


def test_a_whole_model_is_refused_by_the_name_of_its_code_with_the_line_that_converts_it(
    teacher: Segmenter, tmp_path: Path
) -> None:
    torch.save(teacher.network, tmp_path / "w.pth")
    with pytest.raises(ModelError, match=r"holds a whole model, not its weights: tiny_models\.TinyNetwork") as caught:
        import_weights(settings(tmp_path / "w.pth"))
    converted = run_line(str(caught.value), tmp_path)
    assert torch.equal(converted["head.bias"], teacher.network.state_dict()["head.bias"])


def run_line(message: str, folder: Path) -> dict[str, Tensor]:
    """Run the line of Python in a message, in a folder; what it wrote."""
    code = re.search(r'python -c "(.*)"', message)
    assert code is not None
    here = Path.cwd()
    os.chdir(folder)
    try:
        exec(code[1], {})
        found: dict[str, Tensor] = torch.load("weights.pth")
        return found
    finally:
        os.chdir(here)


@pytest.mark.parametrize("activation", [None, "softmax2d"])
def test_a_folder_of_smp_is_imported_without_naming_its_network(activation: str | None, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = smp.Unet(
        "resnet18", encoder_weights=None, classes=4, encoder_depth=3, decoder_channels=(16, 8, 8), activation=activation
    ).eval()
    network.save_pretrained(tmp_path / "unet")
    spec = import_weights(
        settings(tmp_path / "unet", builder=None, class_names=None, image_size=(32, 32), out=str(tmp_path / "o"))
    )
    assert (spec.builder, spec.num_classes) == ("smp:Unet/resnet18", 4)
    model = load_model(tmp_path / "o")
    image = torch.rand(1, 3, 32, 32)
    logits = model(image)
    expected = network(model.normalise(image))
    torch.testing.assert_close(logits.softmax(dim=1) if activation else logits, expected)


def test_a_pickle_that_runs_code_is_refused_and_does_not_run(tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(pickle.dumps({"state_dict": Harmful(tmp_path / "owned")}, protocol=2))
    with pytest.raises(ModelError, match=r"would run code|cannot be read as weights"):
        import_weights(settings(tmp_path / "w.pth"))
    torch.save({"state_dict": Harmful(tmp_path / "owned")}, tmp_path / "w2.pth")
    with pytest.raises(ModelError, match="reading it would run code"):
        import_weights(settings(tmp_path / "w2.pth"))
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_classes": 5}, "class_names has 3 names, but there are 5 classes"),
        ({"num_classes": 5, "class_names": None}, "num_classes is 5, but the weights have 3; leave it out"),
        ({"class_names": ("a", "b")}, "class_names has 2 names, but there are 3 classes"),
        ({"builder": None}, "builder is missing; name the network"),
        ({"arguments": {"width": 4}}, r"body\.0\.weight is \(16, 8, 3, 3\), not \(8, 4, 3, 3\)"),
        ({"key": "ema"}, "key 'ema' names no weights of the network"),
        ({"output": "aux"}, r"no output 'aux' \[N, K, H, W\], but out \[1, 3, 12, 16\]; see --output"),
        ({"factor": 0}, "factor is 0.0; give a number above 0"),
        ({"drop_class": ("lorry",)}, "no class 'lorry'; give one of sky, road, car or 0 to 2"),
        ({"image_size": "64x64"}, "image_size '64x64' must be height and width in pixels"),
        ({"mean": (123.7, 116.3, 103.5)}, "pixels are in .0, 1.; divide mean and std by 255"),
        ({"mean": (1, 2)}, "mean .* must be three numbers"),
        ({"arguments": "{}"}, "must be a mapping"),
        ({"builder": "nonsense"}, "unknown network"),
    ],
)
def test_wrong_options_give_one_line_and_no_file(
    changes: dict[str, Any], message: str, teacher: Segmenter, tmp_path: Path
) -> None:
    torch.save(teacher.network.state_dict(), tmp_path / "w.pth")
    with pytest.raises((ModelError, SettingsError), match=message) as caught:
        import_weights(settings(tmp_path / "w.pth", **changes))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out.safetensors").exists()


def test_an_existing_file_is_kept_unless_told_otherwise(teacher: Segmenter, tmp_path: Path) -> None:
    torch.save(teacher.network.state_dict(), tmp_path / "w.pth")
    (tmp_path / "out.safetensors").write_text("mine")
    with pytest.raises(SettingsError, match="--overwrite"):
        import_weights(settings(tmp_path / "w.pth"))
    assert (tmp_path / "out.safetensors").read_text() == "mine"
    import_weights(settings(tmp_path / "w.pth", overwrite=True))
    load_model(tmp_path / "out.safetensors")
