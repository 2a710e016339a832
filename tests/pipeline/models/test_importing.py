"""dfss-import: weights from elsewhere become a model file, and nothing is unpickled."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import HEIGHT, WIDTH
from safetensors.torch import save_file
from torchvision.models.segmentation import fcn_resnet50

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
        ({"class_names": None}, "num_classes is missing"),
        ({"num_classes": 5}, "3 class names for 5 classes"),
        ({"class_names": ("a", "b")}, r"head\.weight is \(3, 8, 1, 1\), not \(2, 8, 1, 1\)"),
        ({"image_size": "64x64"}, "image_size '64x64' must be height and width in pixels"),
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
