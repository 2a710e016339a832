"""The weights of a cut student are fitted to the teacher's features before it is trained."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import HEIGHT, WIDTH, draw_image, tiny_model, tiny_spec
from stages import make_settings, prepare_distill
from torch import nn

from distill.evaluation import to_tensor
from distill.inheritance import Inheritance, feature_distance, inherit, recorded, standardised
from distill.reconstruction import PIXELS, ROWS, image_count, places, reconstruct, solve
from distill.settings import DistillSettings
from distill.student import make_student
from pipeline.models.files import load_model, save_model
from pipeline.models.segmenter import Segmenter
from pipeline.scoring.run import score
from pipeline.settings import ScoreSettings


@pytest.fixture
def braided() -> Segmenter:
    return tiny_model(seed=5, spec=tiny_spec("tiny_models:braided"))


@pytest.fixture
def images() -> torch.Tensor:
    return to_tensor([draw_image(index, HEIGHT, WIDTH) for index in range(6)])


def cut(teacher: Segmenter) -> Segmenter:
    return make_student(DistillSettings(student="teacher:0.5"), teacher)


@torch.no_grad()
def distance(student: Segmenter, teacher: Segmenter, inheritance: Inheritance, images: torch.Tensor) -> float:
    layers = inheritance.compared
    with recorded(own for own, _ in layers) as seen, recorded(theirs for _, theirs in layers) as wanted:
        student.eval()(images)
        teacher(images)
    channels = inheritance.channels
    own = [standardised(seen[layer], theirs, channels[theirs]) for layer, theirs in layers]
    teachers = [standardised(wanted[b][:, channels[b]], b, channels[b]) for _, b in layers]
    return float(feature_distance(own, teachers).mean())


@pytest.mark.parametrize(("count", "features"), [(40, 7), (7, 40), (9, 9)])
def test_weights_minimise_the_squares_and_the_distance_from_the_prior(count: int, features: int) -> None:
    rng = np.random.default_rng(0)
    read, wanted, prior = (rng.normal(size=shape) for shape in ((count, features), (count, 3), (features, 3)))
    ridge = 0.1 * np.square(read).sum() / features
    stacked = np.concatenate([read, np.sqrt(ridge) * np.eye(features)])  # one ordinary least-squares problem
    target = np.concatenate([wanted, np.sqrt(ridge) * prior])
    expected = np.linalg.lstsq(stacked, target, rcond=None)[0]
    np.testing.assert_allclose(solve(*map(torch.from_numpy, (read, wanted, prior))), expected, rtol=1e-8, atol=1e-10)


def test_the_prior_stays_where_nothing_is_read() -> None:
    prior = torch.rand(4, 2).double()
    assert torch.equal(solve(torch.zeros(9, 4).double(), torch.rand(9, 2).double(), prior), prior)


def test_all_positions_of_a_small_map_are_looked_at_and_some_of_a_large_one() -> None:
    assert sorted(places(20, 32).tolist()) == list(range(20))
    found = places(5000, 32)
    assert len(set(found.tolist())) == ROWS // 32
    assert torch.equal(found, places(5000, 32))
    assert found.max() > 4000
    assert len(places(5000, 2)) == ROWS // 2


@pytest.mark.parametrize(("size", "count"), [((96, 128), 32), ((520, 520), 15), ((1024, 2048), 2), ((4096, 4096), 2)])
def test_large_images_are_fewer_because_all_are_in_memory_at_once(size: tuple[int, int], count: int) -> None:
    assert image_count(size) == count
    assert count == 2 or count * size[0] * size[1] <= PIXELS


def test_the_first_fitted_convolution_has_the_weights_of_numpys_least_squares(
    braided: Segmenter, images: torch.Tensor
) -> None:
    own = cut(braided)
    inheritance = inherit(own, braided)
    kept, block = own.spec.kept, own.network.block[0]  # type: ignore[index, union-attr]
    prior = np.concatenate([block.weight.detach().flatten(1).T.double(), block.bias.detach()[None].double()])  # type: ignore[operator, union-attr]
    with torch.no_grad():
        read = own.eval().network.stem(own.normalise(images)).double().numpy()  # type: ignore[operator]
        wanted = braided.network.block[0](braided.network.stem(braided.normalise(images)))  # type: ignore[index, operator, union-attr]
        wanted = wanted[:, kept["block.0"]["out"]].double().numpy()
    padded = np.pad(read, ((0, 0), (0, 0), (1, 1), (1, 1)))
    looked_at = [divmod(place, WIDTH) for place in places(HEIGHT * WIDTH, len(images)).tolist()]
    rows = [[*padded[n, :, y : y + 3, x : x + 3].ravel(), 1.0] for n in range(len(images)) for y, x in looked_at]
    targets = [wanted[n, :, y, x] for n in range(len(images)) for y, x in looked_at]
    ridge = np.sqrt(0.1 * np.square(rows).sum() / len(rows[0]))
    expected = np.linalg.lstsq(
        np.concatenate([rows, ridge * np.eye(len(rows[0]))]), np.concatenate([targets, ridge * prior]), rcond=None
    )[0]
    assert reconstruct(own, braided, inheritance, images) == 4  # not the stem, nor the depthwise convolution
    np.testing.assert_allclose(block.weight.detach().flatten(1).T, expected[:-1], atol=1e-4)  # type: ignore[operator, union-attr]
    np.testing.assert_allclose(block.bias.detach(), expected[-1], atol=1e-4)  # type: ignore[operator, union-attr]


def test_fitted_features_are_nearer_the_teachers_on_other_images_too(braided: Segmenter, images: torch.Tensor) -> None:
    own = cut(braided).train()
    inheritance = inherit(own, braided)
    others = to_tensor([draw_image(index, HEIGHT, WIDTH) for index in range(20, 30)])
    frozen = {name: p.clone() for name, p in own.network.named_parameters() if not p.requires_grad}
    before = distance(own, braided, inheritance, others)
    own.train()
    reconstruct(own, braided, inheritance, images)
    assert own.training
    assert distance(own, braided, inheritance, others) < 0.5 * before
    parameters = dict(own.network.named_parameters())
    assert frozen
    assert all(torch.equal(parameters[name], values) for name, values in frozen.items())
    assert all(parameters[name].grad is None for name in parameters)
    statistics = [(own_layer.running_var, theirs.running_var) for own_layer, theirs in inheritance.compared]
    channels = [inheritance.channels[theirs] for _, theirs in inheritance.compared]
    assert all(torch.equal(a, b[kept]) for (a, b), kept in zip(statistics, channels, strict=True))  # type: ignore[arg-type, index]


def test_convolutions_whose_outputs_are_added_or_joined_before_batch_norm_keep_the_teachers_weights(
    images: torch.Tensor,
) -> None:
    teacher = tiny_model(seed=5, spec=tiny_spec("tiny_models:preactivated"))
    own = cut(teacher)
    inheritance = inherit(own, teacher)
    layers = [name for name, module in own.network.named_modules() if module in dict(inheritance.compared)]
    assert layers == ["of_sum", "of_both"]
    before = {name: values.clone() for name, values in own.network.state_dict().items()}
    assert reconstruct(own, teacher, inheritance, images) == 0
    assert all(torch.equal(values, before[name]) for name, values in own.network.state_dict().items())


def test_convolutions_that_pad_otherwise_keep_the_teachers_weights(braided: Segmenter, images: torch.Tensor) -> None:
    for convolution in braided.modules():
        if isinstance(convolution, nn.Conv2d) and convolution.groups == 1:
            convolution.padding_mode = "reflect"
            convolution._reversed_padding_repeated_twice = [1, 1, 1, 1]
    own = cut(braided)
    inheritance = inherit(own, braided)
    for convolution in own.modules():
        if isinstance(convolution, nn.Conv2d) and convolution.groups == 1:
            convolution.padding_mode = "reflect"
    assert reconstruct(own, braided, inheritance, images) == 0


def test_a_run_begins_with_fitted_weights_once(
    braided: Segmenter, image_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    save_model(braided, Path("braided.safetensors"))
    score(ScoreSettings(corpus=str(image_folder), teacher="braided.safetensors", layers=("all",)))
    caplog.set_level("INFO", logger="distill")
    start = prepare_distill(make_settings(student="teacher:0.5"), monkeypatch)
    assert "4 convolutions of the student were fitted to the teacher's features on" in caplog.text
    objective, teacher = start.objective, load_model("braided.safetensors")
    expected = make_student(start.settings, teacher)  # type: ignore[arg-type]
    images = objective.whole_images(objective.pictures.training_places[: image_count((HEIGHT, WIDTH))])
    reconstruct(expected, teacher, inherit(expected, teacher), images)
    assert all(torch.equal(p, q) for p, q in zip(expected.parameters(), start.model.parameters(), strict=True))
    caplog.clear()
    save_model(start.model, Path("on.safetensors"))
    prepare_distill(make_settings(student="on.safetensors", out="on"), monkeypatch)
    prepare_distill(make_settings(student="teacher:0.5", inherit=False, out="scratch"), monkeypatch)
    assert "fitted" not in caplog.text
