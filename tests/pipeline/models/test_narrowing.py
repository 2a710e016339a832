"""Networks with fewer channels than their builder's: they are rebuilt from their file alone."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import HEIGHT, WIDTH, tiny_model, tiny_spec
from torch import nn

from pipeline.models.files import load_model, read_spec, save_model
from pipeline.models.narrowing import Kept, composed, kept_of, narrow, relative
from pipeline.models.segmenter import ModelSpec, Segmenter, build_model
from storage.errors import ModelError

KEPT: Kept = {
    "stem.0": {"out": [1, 4, 6]}, "stem.1": {"out": [1, 4, 6]}, "body.0": {"in": [1, 4, 6], "out": [0, 2, 3, 15]},
    "body.1": {"out": [0, 2, 3, 15]}, "neck.0": {"in": [0, 2, 3, 15]},
}  # fmt: skip


def test_a_narrow_network_computes_what_the_whole_one_does_without_the_other_channels(teacher: Segmenter) -> None:
    images = torch.rand(2, 3, HEIGHT, WIDTH)
    whole = teacher.network
    wanted = whole.body[0].weight.detach().clone()  # type: ignore[index, union-attr]
    narrowed = build_model(dataclasses.replace(teacher.spec, kept=KEPT)).eval()
    small, large = narrowed.network.state_dict(), whole.state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in small.items()}["body.0.weight"] == (4, 3, 3, 3)
    narrow(whole, KEPT)
    np.testing.assert_array_equal(whole.body[0].weight.detach(), wanted[[0, 2, 3, 15]][:, [1, 4, 6]])  # type: ignore[index, union-attr]
    narrowed.network.load_state_dict(whole.state_dict())
    other = tiny_model()  # the teacher again, whose other channels nothing reads
    other.network.load_state_dict(large)
    unread = {"body": set(range(8)) - {1, 4, 6}, "neck": set(range(16)) - {0, 2, 3, 15}}
    for name, channels in unread.items():
        other.network.get_submodule(name)[0].weight.data[:, sorted(channels)] = 0  # type: ignore[index]
    torch.testing.assert_close(narrowed(images), other(images))


LAYERS = {
    "convolution": (nn.Conv2d(6, 4, 3), {"in": [0, 5], "out": [1, 2, 3]}, (2, 6, 5, 5)),
    "without bias": (nn.Conv2d(6, 4, 3, bias=False), {"in": [0, 5], "out": [1]}, (2, 6, 5, 5)),
    "depthwise": (nn.Conv2d(6, 6, 3, groups=6), {"out": [0, 2, 5]}, (2, 6, 5, 5)),
    "transposed": (nn.ConvTranspose2d(6, 4, 3), {"in": [1, 2, 4], "out": [0, 3]}, (2, 6, 5, 5)),
    "depthwise transposed": (nn.ConvTranspose2d(6, 6, 3, groups=6), {"out": [0, 2, 5]}, (2, 6, 5, 5)),
    "linear": (nn.Linear(6, 4), {"in": [1, 2, 4], "out": [0, 3]}, (2, 6)),
    "normalised": (nn.BatchNorm2d(6), {"out": [3, 5]}, (2, 6, 5, 5)),
    "without statistics": (nn.BatchNorm2d(6, track_running_stats=False), {"out": [3, 5]}, (2, 6, 5, 5)),
    "activation": (nn.PReLU(6), {"out": [3, 5]}, (2, 6, 5, 5)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_of_each_kind_computes_its_kept_outputs_from_its_kept_inputs(name: str) -> None:
    whole, sides, shape = LAYERS[name]
    torch.manual_seed(0)
    for tensor in [*whole.parameters(), *whole.buffers()]:
        if tensor.is_floating_point():
            tensor.data.uniform_(0.2, 1)
    narrowed = nn.Sequential(whole.eval())
    seen = torch.rand(shape)
    unread = torch.zeros(shape)
    kept_in = sides.get("in", sides["out"])
    unread[:, kept_in] = seen[:, kept_in]
    with torch.no_grad():
        wanted = whole(unread)[:, sides["out"]]
        torch.testing.assert_close(kept_of(seen, whole, sides, "in"), seen[:, kept_in])  # type: ignore[arg-type]
        torch.testing.assert_close(kept_of(whole(unread), whole, sides, "out"), wanted)  # type: ignore[arg-type]
        narrow(narrowed, {"0": sides})  # type: ignore[dict-item]
        torch.testing.assert_close(narrowed(seen[:, kept_in]), wanted)
    assert "(6" not in repr(narrowed[0])  # the attributes tell the new numbers
    assert "=6" not in repr(narrowed[0])


def test_a_layer_goes_on_as_it_was_frozen_or_not() -> None:
    network = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1).requires_grad_(False))
    narrow(network, {"0": {"out": [0]}, "1": {"in": [0]}})
    assert [parameter.requires_grad for parameter in network.parameters()] == [True, True, False, False]


def test_a_narrow_model_loads_from_its_file_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_model(dataclasses.replace(tiny_spec(), kept=KEPT)).eval()
    save_model(model, tmp_path / "narrow.safetensors")
    monkeypatch.setitem(sys.modules, "torch_pruning", None)  # cannot be imported
    loaded = load_model(tmp_path / "narrow.safetensors")
    for size in ((HEIGHT, WIDTH), (40, 56)):
        images = torch.rand(1, 3, *size)
        torch.testing.assert_close(loaded(images), model(images), rtol=0, atol=0)
    save_model(loaded, tmp_path / "again.safetensors")
    assert (tmp_path / "narrow.safetensors").read_bytes() == (tmp_path / "again.safetensors").read_bytes()
    assert read_spec(tmp_path / "narrow.safetensors").kept == KEPT


def test_the_description_of_a_whole_network_says_nothing_of_channels(teacher: Segmenter) -> None:
    assert "kept" not in json.loads(teacher.spec.to_json())
    assert ModelSpec.from_json(teacher.spec.to_json()).kept == {}


@pytest.mark.parametrize(
    "kept",
    [
        {"nowhere": {"out": [0]}},
        {"stem": {"out": [0]}},
        {"stem.2": {"out": [0]}},
        {"stem.0": {}},
        {"stem.0": {"side": [0]}},
        {"stem.1": {"in": [0]}},
        {"stem.0": {"out": []}},
        {"stem.0": {"out": [0, 8]}},
        {"stem.0": {"out": [-1, 2]}},
        {"stem.0": {"out": [2, 1]}},
        {"stem.0": {"out": [1, 1]}},
        {"stem.0": {"out": [True, 2]}},
        {"stem.0": {"out": [0.5]}},
        {"stem.0": {"out": "01"}},
        {"stem.0": {"out": 3}},
        {"stem.0": [0]},
        [["stem.0"]],
        3,
    ],
)
def test_channels_that_a_network_does_not_have_are_refused_in_one_line(kept: Any, tmp_path: Path) -> None:
    text = tiny_spec().to_json()[:-1] + f', "kept": {json.dumps(kept)}}}'
    with pytest.raises(ModelError, match="channels") as raised:
        build_model(ModelSpec.from_json(text))
    assert "\n" not in str(raised.value)


def test_channels_kept_of_kept_channels_are_those_of_the_whole_network() -> None:
    first: Kept = {"a": {"out": [1, 3, 5, 7]}, "b": {"in": [1, 3, 5, 7]}, "c": {"out": [0, 9]}}
    then: Kept = {"a": {"out": [0, 3]}, "b": {"in": [0, 3], "out": [2, 4]}, "d": {"out": [6]}}
    both: Kept = {"a": {"out": [1, 7]}, "b": {"in": [1, 7], "out": [2, 4]}, "c": {"out": [0, 9]}, "d": {"out": [6]}}
    assert composed(first, then) == both
    assert composed({}, then) == then
    assert relative(both, first) == then
    assert relative(first, first) == {}
    assert relative(then, {}) == then


@pytest.mark.parametrize(
    "within", [{"a": {"out": [1, 2]}}, {"a": {"out": [1, 3]}, "b": {"in": [0]}}, {"a": {"in": [0], "out": [1, 3]}}]
)
def test_channels_have_no_places_in_a_network_that_lacks_one_or_is_narrower_elsewhere(within: Kept) -> None:
    assert relative({"a": {"out": [1, 3]}}, within) is None
