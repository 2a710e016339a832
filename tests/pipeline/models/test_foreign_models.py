"""What a model file from a stranger can do: describe a network, and nothing else."""

import inspect
import json
import os
import struct
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from pipeline.models.arguments import RESERVED, SMP
from pipeline.models.builders import TRUSTED_BUILDERS, build_network, outline
from pipeline.models.files import load_model, read_spec, save_model
from pipeline.models.segmenter import METADATA_KEY, ModelSpec, build_model
from storage.errors import ModelError

UNET = {"encoder_depth": 3, "decoder_channels": [16, 8, 8]}


@pytest.fixture(autouse=True)
def nothing_leaves_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections, unpickling and downloads fail the test."""

    def refuse(*_: Any, **__: Any) -> Any:
        pytest.fail("a model file reached out")

    for name in ("socket.socket.connect", "socket.getaddrinfo", "torch.load", "pickle.load", "pickle.loads"):
        monkeypatch.setattr(name, refuse)


@pytest.fixture(scope="module")
def unet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    spec = ModelSpec(
        builder="smp:Unet/resnet18", num_classes=2, class_names=("a", "b"), image_size=(32, 32), arguments=UNET
    )
    path = tmp_path_factory.mktemp("unet") / "model.safetensors"
    save_model(build_model(spec), path)
    return path


def described(path: Path, out: Path, **changes: Any) -> Path:
    """The weights of a model file with another description."""
    spec = json.loads(read_spec(path).to_json()) | changes
    save_file(load_file(path), out, metadata={METADATA_KEY: json.dumps(spec)})
    return out


@pytest.mark.parametrize("encoder", ["tu-hf-hub:attacker/model", "tu-hf_hub:a/b", "tu-local-dir:/etc", "tu-nosuchnet"])
def test_an_encoder_that_timm_would_fetch_or_read_from_a_folder_is_refused(
    encoder: str, unet: Path, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match="timm has no network"):
        load_model(described(unet, tmp_path / "m.safetensors", builder=f"smp:Unet/{encoder}"))


@pytest.mark.parametrize(
    "name",
    [
        *("checkpoint_path", "cache_dir", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "features_only"),
        *("scriptable", "exportable", "repo_id", "encoder_name", "arch", "kwargs", "self", "__class__", "", "a\x1b[2J"),
        *RESERVED,
    ],
)
@pytest.mark.parametrize("builder", ["smp:Unet/tu-resnet10t", "smp:Unet/resnet18", "torchvision:fcn_resnet50"])
def test_an_argument_that_describes_no_network_is_refused(builder: str, name: str) -> None:
    with pytest.raises(ModelError, match=r"no argument|is not allowed"):
        build_network(builder, 2, {name: "evil.pth"})


@pytest.mark.parametrize(
    ("builder", "arguments"),
    [
        ("smp:Unet/resnet18", {"decoder_channels": [10**6, 16, 8]}),
        ("smp:Unet/resnet18", {"decoder_channels": [-1, 2, 3]}),
        ("smp:Unet/resnet18", {"encoder_depth": "3"}),
        ("smp:Unet/resnet18", {"encoder_depth": True}),
        ("smp:Unet/resnet18", {"in_channels": 10**7}),
        ("smp:Unet/resnet18", {"activation": "eval"}),
        ("smp:Unet/resnet18", {"aux_params": {"classes": 10**8}}),
        ("smp:Unet/resnet18", {"aux_params": {"classes": 2, "x": 1}}),
        ("smp:Unet/resnet18", {"decoder_use_norm": {"type": "batchnorm", "momentum": float("nan")}}),
        ("smp:Unet/resnet18", {"decoder_attention_type": ["scse"]}),
        ("torchvision:fcn_resnet50", {"aux_loss": "yes"}),
    ],
)
def test_an_argument_of_another_kind_is_refused_by_name(builder: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match=f"argument '{next(iter(arguments))}' is .*; give "):
        build_network(builder, 2, arguments)


def test_the_allow_list_knows_every_argument_of_every_architecture() -> None:
    taken = {
        name
        for kind in smp.MODEL_ARCHITECTURES_MAPPING.values()
        for name, parameter in inspect.signature(kind.__init__).parameters.items()
        if parameter.kind is not parameter.VAR_KEYWORD
    }
    assert taken - {"self", "encoder_name"} - RESERVED <= SMP.keys()


def test_the_allow_list_admits_every_default_of_every_architecture() -> None:
    for kind in smp.MODEL_ARCHITECTURES_MAPPING.values():
        for name, parameter in inspect.signature(kind.__init__).parameters.items():
            if name in SMP:
                assert SMP[name].holds(parameter.default), name


WRONG = [None, 5, "ab", [1, 2], {"a": 1}, 2.5, True, -1, [float("nan")] * 3, [[1], [2]], 1e308 * 10]


@pytest.mark.parametrize("field", ["builder", "num_classes", "class_names", "image_size", "arguments", "mean", "std"])
@pytest.mark.parametrize("value", WRONG, ids=repr)
def test_a_field_of_another_kind_is_one_line(field: str, value: Any) -> None:
    text = {
        "builder": "torchvision:fcn_resnet50",
        "num_classes": 2,
        "class_names": ["a", "b"],
        "image_size": [8, 8],
        "arguments": {},
    }
    if (field, str(value)) in {("image_size", "[1, 2]"), ("builder", "ab"), ("arguments", "{'a': 1}")}:
        pytest.skip("it is of the kind")
    with pytest.raises(ModelError) as raised:
        ModelSpec.from_json(json.dumps({**text, field: value}))
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 400


@pytest.mark.parametrize(
    "text",
    [
        *("", "null", "[]", "5", '"x"', "{", "{}", "[" * 100_000, '{"a":' * 100_000, '{"a": ' + "9" * 5000 + "}"),
        *('{"builder": "a", "builder": "b"}', '{"builder": "\\ud800"}', '{"std": [NaN, NaN, NaN]}', '{"x": 1}'),
        json.dumps({"builder": "a:b", "num_classes": 2, "class_names": ["a", "b"], "image_size": [8, 8], "x": 1}),
        json.dumps({"builder": "a:b", "num_classes": 2, "class_names": ["a", "b"], "image_size": [8, 8]})[:-1]
        + ', "arguments": {"x": '
        + "[" * 500
        + "]" * 500
        + "}}",
    ],
    ids=lambda text: text[:30],
)
def test_a_header_that_is_no_description_is_one_line(text: str) -> None:
    with pytest.raises(ModelError, match="header") as raised:
        ModelSpec.from_json(text)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"arguments": {"encoder_depth": 3, "decoder_channels": [8192, 8192, 8192]}},
        {"builder": "smp:Unet/vgg19", "arguments": {}},
        {"num_classes": 60_000, "class_names": ["c"] * 60_000},
    ],
)
def test_shapes_are_compared_before_the_network_takes_memory(
    changes: dict[str, Any], unet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = described(unet, tmp_path / "m.safetensors", **changes)
    monkeypatch.setattr("pipeline.models.files.build_model", lambda spec: pytest.fail("memory was taken"))
    with pytest.raises(ModelError, match="does not fit the network"):
        load_model(path)


def test_a_network_much_larger_than_its_file_is_not_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = {
        "builder": "smp:Unet/resnet18", "num_classes": 2, "class_names": ["a", "b"], "image_size": [8, 8],
        "arguments": {"encoder_depth": 3, "decoder_channels": [8192, 8192, 8192]},
    }  # fmt: skip
    path = tmp_path / "m.safetensors"
    save_file({"x": torch.zeros(1)}, path, metadata={METADATA_KEY: json.dumps(spec)})
    monkeypatch.setattr("pipeline.models.files.build_model", lambda spec: pytest.fail("memory was taken"))
    with pytest.raises(ModelError, match="holds 1 numbers, but describes a network of"):
        load_model(path)


@pytest.mark.parametrize("builder", ["smp:Segformer/mit_b0", "smp:FPN/tu-convnext_atto", "torchvision:fcn_resnet50"])
def test_an_outline_has_the_names_and_shapes_of_the_network(builder: str) -> None:
    found = outline(builder, 3, {})
    assert found is not None
    assert all(tensor.is_meta for tensor in found.state_dict().values())
    network = build_network(builder, 3, {})
    assert {name: tensor.shape for name, tensor in found.state_dict().items()} == {
        name: tensor.shape for name, tensor in network.state_dict().items()
    }


def import_as_mine(monkeypatch: pytest.MonkeyPatch, **content: Any) -> None:
    module = ModuleType("mine")
    module.__spec__ = ModuleSpec("mine", None)
    vars(module).update(content)
    monkeypatch.setitem(sys.modules, "mine", module)


@pytest.mark.parametrize(
    ("trusted", "builder"),
    [
        ("", ":evil"), (",", ":evil"), ("*", "mine:evil"), ("", "os:system"), ("mine", "os:system"),
        ("mine", "mine:system"), ("mine", "mine:load"), ("mine", "mine:os"), ("mine", "mine:Net.run"),
        ("mine", "mine:_hidden"), ("mine", "mine:__loader__"), ("mine", "mine.sub:evil"), ("mine", "MINE:evil"),
        ("mine", " mine:evil"), ("mine", "mine\n:evil"), ("mine:other", "mine:evil"),
    ],
)  # fmt: skip
def test_only_a_function_of_a_trusted_module_is_called(
    trusted: str, builder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def evil(**_: Any) -> Any:
        pytest.fail("foreign code ran")

    class Net(nn.Module):
        run = staticmethod(evil)

    import_as_mine(monkeypatch, os=os, system=os.system, load=torch.hub.load, evil=evil, Net=Net, _hidden=evil)
    monkeypatch.setenv(TRUSTED_BUILDERS, trusted)
    with pytest.raises(ModelError):
        build_network(builder, 2, {})


def test_a_function_that_a_module_imports_from_a_library_is_trusted_by_its_own_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import_as_mine(monkeypatch, build=nn.Conv2d)
    monkeypatch.setenv(TRUSTED_BUILDERS, "mine")
    with pytest.raises(ModelError, match=f"{TRUSTED_BUILDERS}=mine:build"):
        build_network("mine:build", 2, {})
    monkeypatch.setenv(TRUSTED_BUILDERS, "mine:build")
    # The call is made, and the library refuses the argument that our own factories take.
    with pytest.raises(ModelError, match=r"mine:build cannot be built: .*num_classes"):
        build_network("mine:build", 2, {})


def test_a_pipe_is_no_model_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.safetensors")
    with pytest.raises(ModelError, match="not a regular file"):
        load_model(tmp_path / "pipe.safetensors")


def test_a_container_that_lies_about_its_tensors_is_one_line(unet: Path, tmp_path: Path) -> None:
    data = unet.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    for number, damaged in enumerate(
        (b"", data[:8], data[:-1], struct.pack("<Q", 2**63) + data[8:], data[: length // 2])
    ):
        path = tmp_path / f"{number}.safetensors"
        path.write_bytes(damaged)
        with pytest.raises(ModelError, match="is not a safetensors file"):
            load_model(path)
