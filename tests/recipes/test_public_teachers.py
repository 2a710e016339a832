"""Public teachers: the networks written from papers, what their logits mean, and that published weights fit them."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import load_recipe
from PIL import Image
from torch import Tensor, nn

from distill.evaluation import evaluate
from distill.inheritance import inherit
from distill.labelled import open_labelled
from pipeline.models.builders import TRUSTED_BUILDERS, build_network
from pipeline.models.checkpoints import read_checkpoint
from pipeline.models.files import load_model, load_weights
from pipeline.models.importing import import_weights
from pipeline.models.segmenter import ModelSpec, Segmenter, build_model
from pipeline.scoring.run import score
from pipeline.settings import DistanceKind, ImportSettings, ScoreSettings
from storage.commandline.declaration import fields_of
from storage.errors import ModelError
from storage.scores.store import open_complete

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"
espnet = load_recipe("public_teachers", "espnet")
espnetv2 = load_recipe("public_teachers", "espnetv2")
sinet = load_recipe("public_teachers", "sinet")
layers = load_recipe("public_teachers", "layers")

CAMVID = [
    *("Sky", "Building", "Pole", "Road", "Pavement", "Tree", "SignSymbol", "Fence", "Car", "Pedestrian", "Bicyclist")
]
CITYSCAPES = [
    *("road", "sidewalk", "building", "wall", "fence", "pole", "light", "sign", "vegetation", "terrain", "sky"),
    *("person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle", "background"),
]
PUBLISHED = {
    "espnet_p_2_q_8_camvid.pth": ("espnet:build", 12, {}),
    "espnetv2_s_1.0_city_512x256.pth": ("espnetv2:build", 20, {}),
    "espnetv2_s_2.0_city_1024x512.pth": ("espnetv2:build", 20, {"scale": 2.0}),
    "espnetv2_s_2.0_pascal_256x256.pth": ("espnetv2:build", 21, {"scale": 2.0}),
    "SINet.pth": ("sinet:build", 2, {}),
}


@pytest.fixture(autouse=True)
def _trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TRUSTED_BUILDERS, "espnet,espnetv2,sinet")


def noise(height: int, width: int, images: int = 1) -> Tensor:
    return torch.rand(images, 3, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("builder", "arguments", "grid"),
    [
        ("espnet:build", {"p": 1, "q": 1}, (32, 64)),
        ("espnetv2:build", {"repeats": [1, 1]}, (16, 32)),
        ("sinet:build", {"level2": [[[3, 1], [5, 1]]], "level3": [[[3, 1], [5, 2]]]}, (32, 64)),
    ],
)
def test_logits_lie_on_the_grid_that_the_factory_promises(
    builder: str, arguments: dict[str, Any], grid: tuple[int, int]
) -> None:
    network = build_network(builder, 5, arguments).eval()
    assert network(noise(32, 64, images=2)).shape == (2, 5, *grid)


def test_each_class_of_cityscapes_but_the_background_becomes_one_of_camvid() -> None:
    told = settings_of("espnetv2", weights="none", out="none")
    assert told.drop_class is not None
    assert [CITYSCAPES[int(at)] for at in told.drop_class] == ["background"]
    groups = {name: {CITYSCAPES[int(at)] for at in group} for name, group in told.merge.items()}
    assert groups == {
        "Sky": {"sky"},
        "Building": {"building", "wall"},
        "Pole": {"pole"},
        "Road": {"road"},
        "Pavement": {"sidewalk"},
        "Tree": {"vegetation", "terrain"},
        "SignSymbol": {"light", "sign"},
        "Fence": {"fence"},
        "Car": {"car", "truck", "bus", "train"},
        "Pedestrian": {"person"},
        "Bicyclist": {"rider", "motorcycle", "bicycle"},
    }
    assert sorted(at for group in told.merge.values() for at in map(int, group)) == list(range(19))


def test_too_few_classes_for_an_esp_block_are_an_error_that_says_how_many_it_needs() -> None:
    with pytest.raises(ModelError, match="4 classes; .* at least 5"):
        build_network("espnet:build", 4, {})


def test_shuffling_interleaves_the_groups() -> None:
    channels = torch.arange(6.0).view(1, 6, 1, 1)
    assert layers.shuffle(channels, 2).flatten().tolist() == [0, 3, 1, 4, 2, 5]


def test_an_esp_block_concatenates_the_sums_of_its_dilated_branches() -> None:
    torch.manual_seed(0)
    block = espnet.Pyramid(10, 12).double()  # branches of 2 channels, the first of 4
    features = torch.rand(1, 10, 9, 9, dtype=torch.float64)
    reduced = block.c1(features)
    branches = [dilated(reduced, getattr(block, f"d{dilation}").conv.weight, dilation) for dilation in (1, 2, 4, 8, 16)]
    expected = np.concatenate([branches[0], np.cumsum(branches[1:], axis=0).reshape(8, 9, 9)])
    np.testing.assert_allclose(block.pyramid(features)[0].detach().numpy(), expected, rtol=1e-9, atol=1e-12)


def dilated(features: Tensor, weight: Tensor, dilation: int) -> np.ndarray:
    """A 3x3 convolution by its definition, zeros beyond the border: [C, H, W]."""
    source, kernel = features[0].detach().numpy(), weight.detach().numpy()
    _, height, width = source.shape
    padded = np.pad(source, ((0, 0), (dilation, dilation), (dilation, dilation)))
    total = np.zeros((len(kernel), height, width))
    for row in range(3):
        for column in range(3):
            window = padded[:, row * dilation :, column * dilation :][:, :height, :width]
            total += np.einsum("oi,ihw->ohw", kernel[:, :, row, column], window)
    return total


def test_an_image_where_the_coarse_prediction_is_certain_is_decided_by_it_alone() -> None:
    torch.manual_seed(0)
    network = sinet.build(2).eval()
    with torch.no_grad():
        network.bn_3.bias[:] = torch.tensor([0.0, 500.0])
        certain = network(noise(32, 32))
        network.level2_C.bn.bias += 7
        torch.testing.assert_close(network(noise(32, 32)), certain, rtol=0, atol=0)
        network.bn_3.bias[:] = 0
        undecided = network(noise(32, 32))
        network.level2_C.bn.bias += 7
        assert not torch.allclose(network(noise(32, 32)), undecided)


@pytest.mark.parametrize(
    ("scale", "widths"), [(0.5, (16, 32, 64, 128)), (1.0, (32, 64, 128, 256)), (2.0, (32, 128, 256, 512))]
)
def test_a_wider_network_has_more_channels_but_in_the_first_layer_at_most_32(
    scale: float, widths: tuple[int, ...]
) -> None:
    assert espnetv2.widths_at(scale) == widths


def test_a_pyramid_never_shrinks_a_map_below_five_rows_and_columns() -> None:
    seen = []

    class Spy(nn.Module):
        def forward(self, features: Tensor) -> Tensor:
            seen.append(tuple(features.shape[-2:]))
            return features

    for scale in (2.0, 1.5, 1.0, 0.5, 0.1):
        assert espnetv2._at_scale(Spy(), torch.rand(1, 2, 12, 31), scale).shape == (1, 2, 12, 31)
    assert seen == [(24, 62), (18, 47), (12, 31), (6, 16), (5, 5)]


@pytest.mark.parametrize(
    ("builder", "long", "short", "lists"),
    [
        ("espnet:build", {"q": 4}, {"q": 2}, {"encoder.level3": 2}),
        ("espnetv2:build", {"repeats": [2, 4]}, {"repeats": [1, 2]}, {"base_net.level3": 1, "base_net.level4": 2}),
    ],
)
def test_a_student_of_fewer_blocks_inherits_the_teachers_last_ones(
    builder: str, long: dict[str, Any], short: dict[str, Any], lists: dict[str, int]
) -> None:
    teacher, student = segmenter(builder, long, seed=0), segmenter(builder, short, seed=1)
    found = inherit(student, teacher)
    for name, count in lists.items():
        theirs, own = teacher.network.get_submodule(name), student.network.get_submodule(name)
        assert isinstance(theirs, nn.ModuleList)
        assert isinstance(own, nn.ModuleList)
        assert len(own) == count
        for mine, counterpart in zip(own, theirs[-count:], strict=True):
            assert same(mine, counterpart)
    first = "encoder.level1" if builder.startswith("espnet:") else "base_net.level1"
    assert student.network.get_submodule(first).conv in found.frozen
    assert found.compared


def segmenter(builder: str, arguments: dict[str, Any], seed: int) -> Segmenter:
    torch.manual_seed(seed)
    spec = ModelSpec(
        builder=builder, num_classes=5, class_names=tuple("abcde"), image_size=(32, 64), arguments=arguments
    )
    model = build_model(spec).train()
    with torch.no_grad():
        model(noise(32, 64, images=4))
    return model.eval()


def same(one: nn.Module, other: nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def settings_of(name: str, *, weights: str, out: str) -> ImportSettings:
    """How params.yaml imports a teacher, read as the command line does."""
    params = yaml.safe_load((ROOT / "recipes" / "public_teachers" / "params.yaml").read_text())["teachers"][name]
    texts: dict[str, list[str]] = {"image_size": [params["image_size"]]}
    words = iter(params["options"].split())
    for word in words:
        texts.setdefault(word.removeprefix("--").replace("-", "_"), []).append(next(words))
    fields = {field.name: field for field in fields_of(ImportSettings)}
    several = {option for option in texts if (form := fields[option].form) is not None and form.several}
    values = {option: fields[option].parse(text if option in several else text[0]) for option, text in texts.items()}
    return ImportSettings(builder=params["builder"], weights=weights, out=out, class_names=tuple(CAMVID), **values)


def test_the_camvid_teacher_is_normalised_as_its_authors_do() -> None:
    told = settings_of("espnet", weights="none", out="none")
    spec = ModelSpec(
        builder="espnet:build", num_classes=11, class_names=tuple(CAMVID), image_size=(8, 8), mean=told.mean,
        std=told.std, channels=told.channels or "rgb", factor=told.factor,
    )  # fmt: skip
    model = Segmenter(nn.Identity(), spec)
    rgb = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    mean_bgr, std_bgr = np.array([110.131, 108.331, 104.896]), np.array([72.015, 72.562, 69.853])
    expected = (rgb[..., ::-1].astype(np.float64) - mean_bgr) / std_bgr / 255
    ours = model.normalise(torch.from_numpy(rgb.copy()).permute(2, 0, 1)[None])
    np.testing.assert_allclose(ours[0].permute(1, 2, 0).numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("file", PUBLISHED)
def test_published_weights_fit_without_a_missing_name(file: str) -> None:
    path = public(file)
    builder, classes, arguments = PUBLISHED[file]
    network = build_network(builder, classes, arguments)
    load_weights(network, read_checkpoint(path)[""], origin=file)
    assert network.eval()(noise(64, 64)).isfinite().all()


@pytest.mark.parametrize(("name", "least"), [("espnet", 0.5), ("espnetv2", 0.45)])
def test_a_published_teacher_segments_camvid(name: str, least: float, tmp_path: Path) -> None:
    path = public({"espnet": "espnet_p_2_q_8_camvid.pth", "espnetv2": "espnetv2_s_1.0_city_512x256.pth"}[name])
    import_weights(settings_of(name, weights=str(path), out=str(tmp_path / "teacher.safetensors")))
    for part in ("images", "labels"):
        (tmp_path / "val" / part).mkdir(parents=True)
        for path in sorted((DATA / "camvid" / "val" / part).iterdir())[::12]:
            (tmp_path / "val" / part / path.name).symlink_to(path)
    judged = evaluate(load_model(tmp_path / "teacher.safetensors"), open_labelled(str(tmp_path / "val")))
    assert judged.miou > least


BGR = {
    "espnet_p_2_q_8_camvid.pth": ((110.131, 108.331, 104.896), (72.015, 72.562, 69.853)),
    "SINet.pth": ((107.304566, 115.69884, 132.35703), (63.97182, 65.1337, 68.29726)),
}
"""Mean and std of blue, green, red up to 255, by the authors; they divide by 255 afterwards."""


def authors_input(file: str, rgb: np.ndarray) -> np.ndarray:
    """The input of a network by its authors' formula, from uint8 [H, W, 3]: float64 [3, H, W]."""
    pixels = rgb.astype(np.float64)
    if file not in BGR:
        return np.moveaxis((pixels / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225], 2, 0)
    mean, std = BGR[file]
    values = (pixels[..., ::-1] - mean) / std / 255
    return np.moveaxis(values, 2, 0)


def distances_in_float64(network: nn.Module, values: np.ndarray) -> dict[str, np.ndarray]:
    """Mean and variance part of both distances, [2] each, at every BatchNorm layer whose input has positions.

    Nothing of DFSS is used: the whole pass is in float64, and so are the moments.
    """
    network = network.double().eval()
    found: dict[str, np.ndarray] = {}

    def measure(name: str, layer: nn.BatchNorm2d, inputs: tuple[Tensor, ...]) -> None:
        values_CP = inputs[0][0].flatten(1).numpy()
        mean, var = (tensor.numpy() for tensor in (layer.running_mean, layer.running_var) if tensor is not None)
        own_mean, own_var = values_CP.mean(axis=1), values_CP.var(axis=1)
        scale = np.sqrt(var + layer.eps)
        log_ratio = np.log((own_var + layer.eps) / (var + layer.eps))
        found[name] = np.array([
            [np.sqrt(np.mean(((own_mean - mean) / scale) ** 2)), np.sqrt(np.mean(log_ratio**2))],
            [np.linalg.norm(own_mean - mean), np.linalg.norm(own_var - var)],
        ])  # fmt: skip

    for name, module in network.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_pre_hook(partial(measure, name))
    with torch.no_grad():
        network(torch.from_numpy(values.copy())[None])
    return found


def options(file: str) -> dict[str, Any]:
    """The options of the import that say the same as the authors' formula."""
    if file not in BGR:
        return {}
    mean, std = (tuple(value / 255 for value in values[::-1]) for values in BGR[file])
    return {"channels": "bgr", "factor": 1 / 255, "mean": mean, "std": std}


@pytest.mark.parametrize("file", PUBLISHED)
@pytest.mark.parametrize("kind", ["standardized", "paper"])
def test_distances_of_a_published_teacher_are_those_of_float64(file: str, kind: DistanceKind, tmp_path: Path) -> None:
    path, size = public(file), (64, 96)
    (tmp_path / "corpus").mkdir()
    photographs = sorted((DATA / "camvid" / "val" / "images").iterdir())[::50]
    for photograph in photographs:
        Image.open(photograph).convert("RGB").resize(size[::-1]).save(tmp_path / "corpus" / f"{photograph.stem}.png")
    builder, classes, arguments = PUBLISHED[file]
    import_weights(
        ImportSettings(
            builder=builder, arguments=arguments, weights=str(path), image_size=size,
            out=str(tmp_path / "teacher.safetensors"), **options(file),
        )
    )  # fmt: skip
    score(
        ScoreSettings(
            corpus=str(tmp_path / "corpus"), teacher=str(tmp_path / "teacher.safetensors"), layers=("all",),
            distance=kind, out=str(tmp_path / "scores.zarr"), device="cpu",
        )
    )  # fmt: skip
    store = open_complete(tmp_path / "scores.zarr")
    network = build_network(builder, classes, arguments)
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True), strict=False)
    keys, distances, parts = (store.column(name) for name in ("key", "distance", "layer_distance"))
    assert len(keys) == len(photographs) > 1
    for key, distance, part in zip(keys, distances, parts, strict=True):
        values = authors_input(file, np.asarray(Image.open(tmp_path / "corpus" / str(key))))
        exact = distances_in_float64(network, values)
        expected = np.array([exact[name][0 if kind == "standardized" else 1] for name in store.attributes["layers"]])
        np.testing.assert_allclose(distance, expected.sum(axis=1).mean(), rtol=1e-6)
        np.testing.assert_allclose(part, expected, rtol=2e-5, atol=1e-7)


def public(file: str) -> Path:
    path = DATA / "teachers" / file
    if not path.exists():
        pytest.skip("the published weights are not here")
    return path
