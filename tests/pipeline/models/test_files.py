"""Model files: a saved model loads unchanged, and a file that cannot be loaded says why."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from conftest import HEIGHT, NAMES, WIDTH, tiny_model, tiny_spec
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torchvision.models import get_model
from torchvision.models.segmentation import lraspp_mobilenet_v3_large

from pipeline.models.builders import (
    TRUSTED_BUILDERS,
    backbone_normalisation,
    build_network,
    resolve_builder,
    without_unused,
)
from pipeline.models.files import load_model, load_weights, read_spec, save_model
from pipeline.models.hooks import probe
from pipeline.models.segmenter import IMAGENET_MEAN, IMAGENET_STD, ModelSpec, Segmenter, build_model, fingerprint
from storage.errors import ModelError


def test_a_saved_model_predicts_the_same_when_loaded(teacher: Segmenter, tmp_path: Path) -> None:
    save_model(teacher, tmp_path / "a.safetensors")
    loaded = load_model(tmp_path / "a.safetensors")
    images = torch.rand(2, 3, HEIGHT, WIDTH)
    torch.testing.assert_close(loaded(images), teacher(images), rtol=0, atol=0)
    assert loaded.spec == teacher.spec
    assert not loaded.training


def test_the_same_model_gives_the_same_bytes(teacher: Segmenter, tmp_path: Path) -> None:
    save_model(teacher, tmp_path / "a.safetensors")
    save_model(load_model(tmp_path / "a.safetensors"), tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_logits_have_the_size_of_the_images_whatever_the_network_returns(teacher: Segmenter) -> None:
    assert teacher(torch.rand(2, 3, 30, 50)).shape == (2, 3, 30, 50)


def test_another_normalisation_is_that_of_the_spec_too(teacher: Segmenter) -> None:
    mean, std = (0.1, 0.2, 0.3), (70.0, 60.0, 50.0)
    images = torch.rand(2, 3, 4, 5)
    teacher.describe(mean=mean, std=std)
    expected = (images.double().numpy() - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
    np.testing.assert_allclose(teacher.normalise(images), expected, rtol=1e-4, atol=1e-7)
    assert (teacher.spec.mean, teacher.spec.std) == (mean, std)
    with pytest.raises(ModelError, match="std above 0"):
        teacher.describe(std=(1.0, 0.0, 1.0))


PREPROCESSING = {"input_space": "RGB", "input_range": [0, 1], "mean": [0.5, 0.4, 0.3], "std": [0.5, 0.6, 0.7]}


@pytest.mark.parametrize(
    ("asked", "told", "values"),
    [
        ("resnet18", "resnet18", {}),
        ("resnet18", "resnet18", {"input_range": [0, 255], "mean": [127.5, 102.0, 76.5], "std": [127.5, 153.0, 178.5]}),
        ("timm-skresnet18", "timm-skresnet18", {}),
        ("timm-regnetx_002", "tu-regnetx_002", {}),
        ("timm-mobilenetv3_large_100", "tu-tf_mobilenetv3_large_100", {}),
    ],
)
def test_the_normalisation_of_smps_backbones_is_in_units_of_0_to_1(
    asked: str, told: str, values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    published = {(told, "imagenet"): PREPROCESSING | values}
    monkeypatch.setattr(smp.encoders, "get_preprocessing_params", lambda *names: published[names])
    mean, std = backbone_normalisation(f"smp:Unet/{asked}")
    assert mean == pytest.approx((0.5, 0.4, 0.3))
    assert std == pytest.approx((0.5, 0.6, 0.7))


@pytest.mark.parametrize("name", ["deeplabv3_resnet50", "lraspp_mobilenet_v3_large"])
def test_the_normalisation_of_torchvisions_backbones_is_that_of_their_weights(name: str) -> None:
    assert backbone_normalisation(f"torchvision:{name}") == (IMAGENET_MEAN, IMAGENET_STD)


def test_a_backbone_that_cannot_be_normalised_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smp.encoders, "get_preprocessing_params", lambda *_: PREPROCESSING | {"input_space": "BGR"})
    with pytest.raises(ModelError, match="reads BGR; choose one that reads RGB"):
        backbone_normalisation("smp:Unet/resnet18")
    with pytest.raises(ModelError, match="has no known pretrained backbone; leave out --pretrained-backbone"):
        backbone_normalisation("tiny_models:tiny")


def test_bytes_and_floats_are_the_same_image(teacher: Segmenter) -> None:
    images = torch.randint(0, 256, (1, 3, HEIGHT, WIDTH), dtype=torch.uint8)
    torch.testing.assert_close(teacher(images), teacher(images.float() / 255))


def test_torchvision_and_smp_builders_give_the_library_networks() -> None:
    for builder, expected in (
        ("torchvision:lraspp_mobilenet_v3_large", lraspp_mobilenet_v3_large(num_classes=3, weights_backbone=None)),
        ("smp:Unet/resnet18", smp.Unet("resnet18", encoder_weights=None, classes=3)),
    ):
        spec = ModelSpec(builder=builder, num_classes=3, class_names=NAMES, image_size=(64, 64))
        model = build_model(spec).eval()
        model.network.load_state_dict(expected.state_dict())
        images = torch.rand(1, 3, 64, 64)
        output = expected.eval()(model.normalise(images))
        logits = output["out"] if isinstance(output, dict) else output
        torch.testing.assert_close(model(images), logits)


@pytest.mark.parametrize(
    ("name", "builder"),
    [
        ("lraspp_mobilenet_v3_large", "torchvision:lraspp_mobilenet_v3_large"),
        ("Unet/mobilenet_v2", "smp:Unet/mobilenet_v2"),
        ("pkg.module:make", "pkg.module:make"),
    ],
)
def test_short_names_stand_for_builders(name: str, builder: str) -> None:
    assert resolve_builder(name) == builder


@pytest.mark.parametrize(
    ("builder", "message"),
    [
        ("resnet9000", "unknown builder 'resnet9000'"),
        ("torchvision:resnet50", "no segmentation model 'resnet50'"),
        ("smp:Unet", "names no encoder"),
        ("smp:Nothing/resnet18", "no architecture 'Nothing'; it has for example Unet"),
        ("tiny_models:absent", "cannot be built"),
        ("tiny_models:not_a_network", "returned int, not a torch module"),
    ],
)
def test_a_builder_that_cannot_be_used_says_why(builder: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        build_model(tiny_spec(builder))


def test_code_that_the_user_has_not_trusted_is_not_run(monkeypatch: pytest.MonkeyPatch, teacher_file: Path) -> None:
    monkeypatch.setenv(TRUSTED_BUILDERS, "somebody.else")
    with pytest.raises(ModelError, match=f"{TRUSTED_BUILDERS}=tiny_models"):
        load_model(teacher_file)


def test_a_file_without_description_points_to_the_import_command(tmp_path: Path) -> None:
    save_file({"weight": torch.ones(2)}, tmp_path / "bare.safetensors")
    with pytest.raises(ModelError, match="dfss-import"):
        read_spec(tmp_path / "bare.safetensors")


def test_a_missing_and_a_broken_file_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="model file .* does not exist"):
        load_model(tmp_path / "absent.safetensors")
    (tmp_path / "text.safetensors").write_text("not weights")
    with pytest.raises(ModelError, match="not a safetensors file"):
        load_model(tmp_path / "text.safetensors")


@pytest.mark.parametrize("name", ["student.safetensors", "model.safetensors"])
def test_a_run_folder_stands_for_its_model(name: str, teacher: Segmenter, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    save_model(teacher, tmp_path / "run" / name)
    assert fingerprint(load_model(tmp_path / "run")) == fingerprint(teacher)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ((), "holds neither student.safetensors nor model.safetensors"),
        (("config.json", "model.safetensors"), "is a folder of save_pretrained; import it with dfss-import --weights"),
    ],
)
def test_a_folder_without_a_model_file_of_ours_says_what_to_do(
    files: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    for name in files:
        (tmp_path / name).write_text("{}")
    with pytest.raises(ModelError, match=message):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lraspp_mobilenet_v3_large", "give torchvision:lraspp_mobilenet_v3_large@DEFAULT"),
        ("torchvision:deeplabv3_resnet50", "give torchvision:deeplabv3_resnet50@DEFAULT"),
        ("deeplabv3_resnet5", "give torchvision:deeplabv3_resnet50@DEFAULT"),
        ("teacher.safetensors", "make one with dfss-import or dfss-train"),
    ],
)
def test_a_network_that_is_given_as_a_model_file_is_told_how_its_weights_are_called(name: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load_model(name)


@pytest.mark.parametrize(
    ("builder", "arguments", "message"),
    [
        ("torchvision:lraspp_mobilenet_v3_large", {"encoder_depth": 3}, "no argument 'encoder_depth'; it takes none"),
        ("torchvision:deeplabv3_resnet50", {"output_stride": 8}, "no argument 'output_stride'; it takes aux_loss"),
        ("smp:Unet/resnet81", {}, "no encoder 'resnet81'; did you mean .*resnet18"),
        ("smp:unet_plus_plus/resnet18", {}, "no architecture .*did you mean UnetPlusPlus"),
        ("smp:Unet/xyz", {}, "no encoder 'xyz'; it has for example resnet18"),
        ("smp:Unet/resnet18", {"decoder_width": 3}, "decoder_width"),
    ],
)
def test_arguments_and_encoders_that_a_library_does_not_know_are_refused(
    builder: str, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        build_network(builder, 3, arguments)
    assert len(str(caught.value)) < 300


def test_a_trusted_module_of_the_current_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "homemade_network.py").write_text(
        "from torch import nn\nfrom homemade_part import head\n"
        "def build(num_classes):\n    return nn.Sequential(nn.BatchNorm2d(3), head(num_classes))\n"
    )
    (tmp_path / "homemade_part.py").write_text(
        "from torch import nn\ndef head(num_classes):\n    return nn.Conv2d(3, num_classes, 1)\n"
    )
    monkeypatch.setattr("sys.path", list(sys.path))
    with pytest.raises(ModelError, match=f"{TRUSTED_BUILDERS}=homemade_network"):
        build_network("homemade_network:build", 3, {})
    assert "homemade_network" not in sys.modules
    monkeypatch.setenv(TRUSTED_BUILDERS, "homemade_network")
    assert build_network("homemade_network:build", 4, {})(torch.rand(1, 3, 2, 2)).shape == (1, 4, 2, 2)


@pytest.mark.parametrize(
    ("builder", "arguments"),
    [
        ("torchvision:lraspp_mobilenet_v3_large", {}),
        ("smp:FPN/resnet18", {}),
        ("smp:Unet/resnet18", {"encoder_depth": 3, "decoder_channels": [16, 8, 8]}),
    ],
)
def test_the_library_that_a_header_names_loads_the_model_without_us(
    builder: str, arguments: dict[str, Any], tmp_path: Path
) -> None:
    spec = ModelSpec(builder=builder, num_classes=3, class_names=NAMES, image_size=(64, 64), arguments=arguments)
    model = build_model(spec).eval()
    save_model(model, tmp_path / "model.safetensors")
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        told = json.loads(file.metadata()["dfss"])
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
    family, _, name = told["builder"].partition(":")
    if family == "torchvision":
        network = get_model(
            name, weights=None, weights_backbone=None, num_classes=told["num_classes"], **told["arguments"]
        )
    else:
        network = smp.create_model(
            *name.split("/"), encoder_weights=None, classes=told["num_classes"], **told["arguments"]
        )
    lacking, unexpected = network.load_state_dict(weights, strict=False)
    assert not unexpected
    assert all(name.startswith(tuple(told.get("unused", ()))) for name in lacking)
    images = torch.rand(1, 3, 64, 64)
    mean, std = (torch.tensor(told[name]).view(3, 1, 1) for name in ("mean", "std"))
    output = network.eval()((images - mean) / std)
    torch.testing.assert_close(output["out"] if isinstance(output, dict) else output, model(images))


def test_weights_of_another_network_are_refused_by_name(teacher: Segmenter, tmp_path: Path) -> None:
    wider = ModelSpec(**{**_fields(teacher.spec), "arguments": {"width": 4}})
    save_model(Segmenter(teacher.network, wider), tmp_path / "wrong.safetensors")
    with pytest.raises(ModelError, match=r"body\.0\.weight is \(16, 8, 3, 3\), not \(8, 4, 3, 3\)"):
        load_model(tmp_path / "wrong.safetensors")


def test_a_network_with_other_classes_than_described_is_refused(teacher: Segmenter) -> None:
    spec = ModelSpec(**{**_fields(teacher.spec), "num_classes": 2, "class_names": ("a", "b")})
    with pytest.raises(ModelError, match="gives 3 classes, but its description 2"):
        probe(Segmenter(teacher.network, spec))


def _fields(spec: ModelSpec) -> dict[str, object]:
    return {name: getattr(spec, name) for name in ModelSpec.__slots__}


def test_fingerprints_tell_weights_apart_and_nothing_else(teacher: Segmenter, teacher_file: Path) -> None:
    assert fingerprint(load_model(teacher_file)) == fingerprint(teacher)
    assert fingerprint(tiny_model(seed=1)) != fingerprint(teacher)


def test_a_fingerprint_sees_what_the_builder_is_told(teacher: Segmenter) -> None:
    other = ModelSpec(**{**_fields(teacher.spec), "arguments": {"width": 8}})  # type: ignore[arg-type]
    assert fingerprint(Segmenter(teacher.network, other)) != fingerprint(teacher)


def test_a_network_that_wants_its_auxiliary_head_gets_it_back(tmp_path: Path) -> None:
    spec = ModelSpec(
        builder="torchvision:fcn_resnet50",
        arguments={"aux_loss": True},
        num_classes=3,
        class_names=NAMES,
        image_size=(64, 64),
    )
    save_model(build_model(spec), tmp_path / "aux.safetensors")
    assert any(
        name.startswith("aux_classifier") for name in load_model(tmp_path / "aux.safetensors").network.state_dict()
    )


def test_official_weights_load_from_the_cache_and_name_the_missing_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def no_network(*_: object, **__: object) -> None:
        from urllib.error import URLError

        raise URLError("no network")

    monkeypatch.setattr("torch.hub.download_url_to_file", no_network)
    name = "torchvision:lraspp_mobilenet_v3_large@DEFAULT"
    with pytest.raises(ModelError, match=r"checkpoints/lraspp_mobilenet_v3_large-d234d4ea\.pth.*no network"):
        load_model(name)
    network = lraspp_mobilenet_v3_large(num_classes=21, weights_backbone=None)
    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True, exist_ok=True)
    torch.save(network.state_dict(), cache / "lraspp_mobilenet_v3_large-d234d4ea.pth")
    model = load_model(name)
    assert (model.spec.num_classes, model.spec.class_names[1], model.spec.image_size) == (21, "aeroplane", (520, 520))
    torch.testing.assert_close(model.network.state_dict()["classifier.low_classifier.weight"],
                               network.state_dict()["classifier.low_classifier.weight"])  # fmt: skip


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("torchvision:fcn_resnet50@V9", "has no weights 'V9'"),
        ("smp:Unet/resnet18@DEFAULT", "official weights exist for"),
    ],
)
def test_unknown_official_weights_are_refused(name: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load_model(name)


@pytest.mark.parametrize("encoder", ["resnet18", "mobilenet_v2", "efficientnet-b0"])
def test_stages_beyond_the_encoders_depth_are_left_out(encoder: str) -> None:
    arguments = {"encoder_depth": 3, "decoder_channels": [16, 8, 8]}
    torch.manual_seed(0)
    whole = smp.Unet(encoder, encoder_weights=None, classes=3, **arguments).eval()
    torch.manual_seed(0)
    lean = build_network(f"smp:Unet/{encoder}", 3, arguments).eval()
    image = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        assert torch.equal(whole(image), lean(image))
    assert count(lean) < 0.25 * count(whole)


def test_weights_that_still_hold_those_stages_can_be_loaded() -> None:
    arguments = {"encoder_depth": 3, "decoder_channels": [16, 8, 8]}
    whole = smp.Unet("resnet18", encoder_weights=None, classes=3, **arguments)
    lean = build_network("smp:Unet/resnet18", 3, arguments)
    load_weights(lean, whole.state_dict(), origin="whole.pth")
    assert torch.equal(lean.encoder.conv1.weight, whole.encoder.conv1.weight)
    with pytest.raises(ModelError, match=r"unknown encoder.layer9.weight"):
        load_weights(lean, {**whole.state_dict(), "encoder.layer9.weight": torch.zeros(1)}, origin="whole.pth")


def test_a_lean_student_is_loaded_as_it_was_saved(tmp_path: Path) -> None:
    arguments = {"encoder_depth": 3, "decoder_channels": [16, 8, 8]}
    spec = ModelSpec(
        builder="smp:Unet/resnet18", num_classes=3, class_names=NAMES, image_size=(32, 32), arguments=arguments
    )
    model = build_model(spec)
    save_model(model, tmp_path / "lean.safetensors")
    assert fingerprint(load_model(tmp_path / "lean.safetensors")) == fingerprint(model)


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_a_network_that_takes_no_small_square_or_returns_several_things_stays_whole() -> None:
    assert count(without_unused(nn.Sequential(nn.Flatten(), nn.Linear(7, 2)))) == 16
    labelled = build_network(
        "smp:Unet/resnet18", 3, {"encoder_depth": 4, "decoder_channels": [8] * 4, "aux_params": {"classes": 2}}
    )
    assert count(labelled.encoder.layer4) > 0
