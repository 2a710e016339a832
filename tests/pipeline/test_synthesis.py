"""Images made by optimisation to the teacher's statistics."""

import copy
import dataclasses
import itertools
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import HEIGHT, WIDTH, draw_image, tiny_model, tiny_spec
from PIL import Image
from stages import Stopped, prepare_synthesis, run_synthesis, score_folder, select_images, stop_at
from torch import nn

from pipeline.batchnorm.distances import distance, layer_distances
from pipeline.batchnorm.layers import find_layers
from pipeline.models.files import save_model
from pipeline.models.segmenter import Segmenter
from pipeline.scoring.run import score
from pipeline.selection.select import select
from pipeline.settings import ScoreSettings, SelectSettings, SynthesisSettings
from pipeline.synthesis import Synthesis, batch_statistics, prepared
from pipeline.synthesis import synthesize as stage
from storage.errors import DivergedError, SettingsError
from storage.progress import Step
from storage.selection import write_selection


def synthesize(teacher: Path, out: str, **changes: object) -> Path:
    settings = SynthesisSettings(
        **{"teacher": str(teacher), "out": out, "count": 5, "steps": 40, "batch_size": 4, **changes}
    )  # type: ignore[arg-type]
    return stage(settings).path


def pixels_of(folder: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    images = []
    for path in sorted(folder.glob("*.png")):
        with Image.open(path) as image:
            images.append(np.asarray(image))
    return np.stack(images)


def discrepancy(folder: Path) -> float:
    """Of the statistics of the first three images together: five in batches of at most four are three and two."""
    teacher = tiny_model()
    images = torch.from_numpy(pixels_of(folder)[:3]).permute(0, 3, 1, 2)
    layers = find_layers(teacher)
    with torch.no_grad(), batch_statistics(layers) as found:
        teacher(images)
    return float(distance(layer_distances(found, layers, "standardized"))[0])


def test_images_come_nearer_to_the_teachers_statistics_and_say_what_they_cost(teacher_file: Path) -> None:
    noise = synthesize(teacher_file, "noise", steps=1, lr=0.0)
    made = synthesize(teacher_file, "made")
    assert sorted(path.name for path in made.glob("*.png")) == [f"{index:06}.png" for index in range(5)]
    assert pixels_of(made).shape == (5, HEIGHT, WIDTH, 3)
    assert discrepancy(made) < 0.7 * discrepancy(noise)
    cost = json.loads((made / "cost.json").read_text())
    assert (cost["images"], cost["teacher_forwards"], cost["teacher_backwards"]) == (5, 210, 200)
    assert cost["seconds"] > 0


def test_the_same_seed_makes_the_same_images(teacher_file: Path) -> None:
    one, two = (synthesize(teacher_file, name, steps=3) for name in ("one", "two"))
    other = synthesize(teacher_file, "other", steps=3, seed=1)
    made = [pixels_of(folder) for folder in (one, two, other)]
    np.testing.assert_array_equal(made[0], made[1])
    for first, second in zip(made[0], made[2], strict=True):
        assert (first != second).any()


def test_smoothness_can_be_asked_for(teacher_file: Path) -> None:
    rough, smooth = (synthesize(teacher_file, f"tv{tv}", steps=40, tv=tv) for tv in (0.0, 4.0))
    steps = [np.abs(np.diff(pixels_of(folder).astype(int), axis=1)).mean() for folder in (rough, smooth)]
    assert json.loads((smooth / "cost.json").read_text())["unchanged"] == 0
    assert steps[1] < 0.8 * steps[0]


def test_only_what_an_earlier_run_made_is_replaced(teacher_file: Path) -> None:
    before = pixels_of(synthesize(teacher_file, "made", steps=1))
    after = pixels_of(synthesize(teacher_file, "made", steps=1, seed=1, overwrite=True))
    assert (before != after).any()
    Path("made/labels.txt").write_text("mine")
    with pytest.raises(SettingsError, match=r"holds labels.txt, so it cannot be replaced"):
        synthesize(teacher_file, "made", steps=1, overwrite=True)
    assert Path("made/labels.txt").read_text() == "mine"


def test_an_interrupted_run_leaves_nothing(teacher_file: Path) -> None:
    settings = SynthesisSettings(teacher=str(teacher_file), out="made", count=4, steps=5)
    with pytest.raises(Stopped):
        stage(settings, stop_at(1))
    assert not [path for path in Path().iterdir() if path.name.startswith("made")]


def test_they_may_begin_as_selected_photographs(image_folder: Path, teacher_file: Path) -> None:
    score(ScoreSettings(corpus=str(image_folder), teacher=str(teacher_file), device="cpu"))
    select(SelectSettings(budget=5, out="selection.parquet"))
    photographs = synthesize(teacher_file, "begin", selection="selection.parquet", steps=1, lr=0.0)
    made = synthesize(teacher_file, "made", selection="selection.parquet", steps=20, lr=0.005)
    moved = np.abs(pixels_of(photographs).astype(int) - pixels_of(made)).mean()
    assert 0 < moved < 40  # and still the photographs
    assert discrepancy(made) < discrepancy(photographs)
    settings = SynthesisSettings(teacher=str(teacher_file), out="more", count=6, selection="selection.parquet")
    with pytest.raises(SettingsError, match="more than the 5 images of selection.parquet"):
        stage(settings)
    with prepared(dataclasses.replace(settings, count=None)) as whole:
        assert whole.count == 5
    with prepared(dataclasses.replace(settings, count=None, selection=None)) as noise:
        assert noise.count == 256


def test_a_layers_statistics_are_of_the_batch_and_of_its_images_but_for_dead_channels() -> None:
    teacher = tiny_model()
    layers = find_layers(teacher)
    module = layers[1].module
    assert module.running_mean is not None
    assert module.running_var is not None
    module.running_var[3] = 1e-9
    kept: list[torch.Tensor] = []
    handle = module.register_forward_hook(lambda module, inputs, output: kept.append(inputs[0].double()))
    with torch.no_grad(), batch_statistics(layers) as found:
        teacher(torch.rand(3, 3, HEIGHT, WIDTH))
    handle.remove()
    measured = [kept[0], *kept[0].split(1)]
    mean = torch.stack([x.mean(dim=(0, 2, 3)) for x in measured])
    var = torch.stack([x.var(dim=(0, 2, 3), unbiased=False) for x in measured])
    mean[:, 3], var[:, 3] = module.running_mean[3], module.running_var[3]
    torch.testing.assert_close(found[layers[1].name].mean_NC.double(), mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found[layers[1].name].var_NC.double(), var, rtol=1e-4, atol=0)


@pytest.fixture
def white_teacher(tmp_path: Path) -> Path:
    """Its normalisation differs from channel to channel, and so does the range of a photograph."""
    path = tmp_path / "white.safetensors"
    save_model(tiny_model(spec=dataclasses.replace(tiny_spec(), mean=(0.2, 0.5, 0.7), std=(0.1, 0.3, 0.5))), path)
    return path


def watch(synthesis: Synthesis) -> list[torch.Tensor]:
    """What the teacher's network is given, step by step."""
    seen: list[torch.Tensor] = []
    synthesis.teacher.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().clone()))
    return seen


def one_step(synthesis: Synthesis, images: torch.Tensor, lr: float, seed: int = 0) -> float:
    """One step on images of the test's own; they are changed in place."""
    return synthesis._step(images, torch.optim.Adam([images], lr=lr), np.random.default_rng(seed))


@pytest.mark.parametrize("kind", ["standardized", "paper"])
@pytest.mark.parametrize(
    ("tv", "l2", "alone"), [(0.0, 0.0, 0.0), (0.0, 0.0, 1.0), (3.0, 0.0, 0.0), (0.0, 2.0, 0.5), (0.7, 0.4, 0.3)]
)
def test_the_loss_of_a_step_is_numpys(tv: float, l2: float, alone: float, kind: str, white_teacher: Path) -> None:
    synthesis = prepare_synthesis(white_teacher, tv=tv, l2=l2, distance=kind, per_image=alone)
    names = [name for name, module in synthesis.teacher.network.named_modules() if isinstance(module, nn.BatchNorm2d)]
    inputs = dict[str, np.ndarray[Any, Any]]()
    for name in names:
        synthesis.teacher.network.get_submodule(name).register_forward_hook(
            lambda _, given, __, name=name: inputs.update({name: given[0].detach().double().numpy()})
        )
    images = torch.rand(3, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(1))
    x = images.double().numpy()
    found = one_step(synthesis, images.requires_grad_(), lr=0.1)
    expected = tv * (np.abs(x[:, :, 1:] - x[:, :, :-1]).mean() + np.abs(x[..., 1:] - x[..., :-1]).mean())
    expected += l2 * ((x - 0.5) ** 2).mean()
    for name in names:
        module = synthesis.teacher.network.get_submodule(name)
        for weight, x in [(1 - alone, inputs[name]), *((alone / 3, image[None]) for image in inputs[name])]:
            expected += weight * numpys_distance(module, x.mean((0, 2, 3)), x.var((0, 2, 3)), kind) / len(names)
    assert len(names) == len(inputs) == 3
    assert found == pytest.approx(expected, rel=1e-4)


def numpys_distance(module: nn.Module, mean: np.ndarray[Any, Any], var: np.ndarray[Any, Any], kind: str) -> float:
    """Of one layer, from the statistics [C] of its input."""
    assert isinstance(module, nn.BatchNorm2d)
    running_mean, running_var = (getattr(module, f"running_{what}").double().numpy() for what in ("mean", "var"))
    if kind == "paper":
        return float(np.linalg.norm(mean - running_mean) + np.linalg.norm(var - running_var))
    score = (mean - running_mean) / np.sqrt(running_var + module.eps)
    ratio = np.log((var + module.eps) / (running_var + module.eps))
    return float(np.sqrt((score**2).mean()) + np.sqrt((ratio**2).mean()))


def numpys_distances(teacher: Segmenter, images: np.ndarray[Any, Any], kind: str) -> np.ndarray[Any, Any]:
    """The distance of each uint8 image [H, W, 3] by itself, by all layers."""
    totals = []
    for image in images:
        inputs: list[tuple[nn.Module, torch.Tensor]] = []
        handles = [
            module.register_forward_pre_hook(lambda module, given, inputs=inputs: inputs.append((module, given[0])))  # type: ignore[misc]
            for module in teacher.network.modules() if isinstance(module, nn.BatchNorm2d)
        ]  # fmt: skip
        with torch.no_grad():
            teacher(torch.from_numpy(image[None]).permute(0, 3, 1, 2))
        for handle in handles:
            handle.remove()
        values = [(module, given.double().numpy()) for module, given in inputs]
        parts = [numpys_distance(module, x.mean((0, 2, 3)), x.var((0, 2, 3)), kind) for module, x in values]
        totals.append(np.mean(parts))
    return np.array(totals)


@pytest.mark.parametrize("kind", ["standardized", "paper"])
def test_the_distances_before_and_after_are_medians_of_numpys_over_the_images(kind: str, white_teacher: Path) -> None:
    changes = {"seed": 3, "steps": 6, "distance": kind}
    begun = run_synthesis(prepare_synthesis(white_teacher, **{**changes, "steps": 1}, lr=0.0, out="begun"))
    synthesis = prepare_synthesis(white_teacher, **changes, lr=0.02)
    result = synthesis.run(lambda step: None)
    before, after = (numpys_distances(synthesis.teacher, images, kind) for images in (begun, pixels_of(result.path)))
    assert result.distance_before == pytest.approx(np.median(before), rel=1e-3)
    assert result.distance_after == pytest.approx(np.median(after), rel=1e-3)
    assert result.distance_after < result.distance_before
    stored = json.loads(Path("made/cost.json").read_text())
    figures = (stored["distance_before"], stored["distance_after"], stored["unchanged"], stored["distance"])
    assert figures == (result.distance_before, result.distance_after, result.unchanged, kind)


@pytest.mark.parametrize("begin", ["noise", "photographs"])
def test_no_image_ends_farther_away_than_it_began(begin: str, image_folder: Path, teacher_file: Path) -> None:
    changes: dict[str, Any] = {"count": 12, "batch_size": 6, "steps": 2}
    if begin == "photographs":
        write_selection(select_images(score_folder(image_folder, teacher_file), budget=12), Path("selection.parquet"))
        changes["selection"] = "selection.parquet"
    begun = run_synthesis(prepare_synthesis(teacher_file, **changes, lr=0.0, out="begun"))
    synthesis = prepare_synthesis(teacher_file, **changes, lr=0.4)  # so wild that photographs get worse
    result = synthesis.run(lambda step: None)
    made = pixels_of(result.path)
    before, after = (numpys_distances(synthesis.teacher, images, "standardized") for images in (begun, made))
    same = (made == begun).all(axis=(1, 2, 3))
    assert (after[~same] < before[~same]).all()
    assert result.unchanged == same.sum()
    assert (0 if begin == "noise" else 1) <= same.sum() <= 12


def test_an_image_that_came_no_nearer_is_put_back_and_one_that_is_not_finite_too(
    white_teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = iter([[1.0, 3.0, 5.0, 2.0], [0.5, 4.0, np.nan, 2.0]])  # before and after
    synthesis = prepare_synthesis(white_teacher, count=4, lr=0.05)
    with monkeypatch.context() as patch:
        patch.setattr(Synthesis, "distances", lambda self, pixels: np.float32(next(figures)))
        result = synthesis.run(lambda step: None)
    begun = run_synthesis(prepare_synthesis(white_teacher, count=4, lr=0.0, out="begun"))
    same = (pixels_of(result.path) == begun).all(axis=(1, 2, 3))
    assert same.tolist() == [False, True, True, False]
    assert (result.distance_before, result.distance_after, result.unchanged) == (2.5, 2.5, 2)


def test_one_function_written_with_any_normalisation_makes_the_same_images(image_folder: Path, tmp_path: Path) -> None:
    teacher = tiny_model(spec=dataclasses.replace(tiny_spec(), std=(0.27,) * 3))
    made = {}
    for std in (0.27, 1.0, 70.0, 0.004):
        path = tmp_path / f"{std}.safetensors"
        same = copy.deepcopy(teacher)
        with torch.no_grad():  # the first convolution takes the scale up
            same.network.stem[0].weight *= std / 0.27  # type: ignore[index, operator, union-attr]
        save_model(Segmenter(same.network, dataclasses.replace(teacher.spec, std=(std,) * 3)), path)
        if std == 0.27:
            write_selection(select_images(score_folder(image_folder, path), budget=6), Path("selection.parquet"))
            score_folder(image_folder, path)
        for begin, changes in {"noise": {}, "photographs": {"selection": "selection.parquet"}}.items():
            result = prepare_synthesis(path, steps=8, out=f"{begin}-{std}", **changes)
            made[begin, std] = run_synthesis(result).astype(int)
    for (begin, _), images in made.items():
        first = made[begin, 0.27]
        assert np.abs(images - first).max() <= 1
        assert (images == first).mean() > 0.99  # rounding decides the others


def test_a_dead_channel_that_wakes_up_does_not_rule_the_images(teacher_file: Path, tmp_path: Path) -> None:
    awake = tiny_model()
    module = find_layers(awake)[1].module
    assert module.running_var is not None
    assert module.running_mean is not None
    module.running_var[5], module.running_mean[5] = 1e-12, 100.0
    save_model(awake, tmp_path / "awake.safetensors")
    one, other = (prepare_synthesis(path) for path in (teacher_file, tmp_path / "awake.safetensors"))
    images = torch.rand(3, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(1))
    losses = [one_step(synthesis, images.clone().requires_grad_(), lr=0.0) for synthesis in (one, other)]
    assert losses[1] == pytest.approx(losses[0], rel=0.1)  # by the score it would be thousands


def test_images_whose_statistics_are_the_running_ones_have_a_gradient_of_0(teacher_file: Path) -> None:
    synthesis = prepare_synthesis(teacher_file, tv=0.0, l2=0.0)
    for layer in synthesis.layers:
        assert layer.module.running_var is not None
        layer.module.running_var.zero_()  # all channels are dead: nothing is left to follow
    images = torch.rand(2, 3, HEIGHT, WIDTH).requires_grad_()
    assert one_step(synthesis, images, lr=0.1) == pytest.approx(0, abs=1e-12)
    assert images.grad is not None
    assert (images.grad == 0).all()


def test_pixels_stay_in_the_range_of_a_photograph(white_teacher: Path) -> None:
    synthesis = prepare_synthesis(white_teacher)
    images = torch.full((2, 3, HEIGHT, WIDTH), 0.5).requires_grad_()
    one_step(synthesis, images, lr=50.0)  # every pixel goes as far as it may
    for channel in images.detach().numpy().transpose(1, 0, 2, 3):
        assert (channel.min(), channel.max()) == (0, 1)


def test_each_pass_sees_the_images_shifted_by_up_to_8_pixels_each_way_and_mirrored_or_not(white_teacher: Path) -> None:
    synthesis = prepare_synthesis(white_teacher, count=2, steps=250, lr=0.0)
    seen = watch(synthesis)
    images = run_synthesis(synthesis)[..., 0]  # red is enough
    variants = {}
    for down, right, mirrored in itertools.product(range(-10, 11), range(-10, 11), (False, True)):
        rolled = np.roll(images, (down, right), axis=(1, 2))
        variants[(rolled[..., ::-1] if mirrored else rolled).tobytes()] = (down, right, mirrored)
    assert len(variants) == 21 * 21 * 2
    red = [np.round((view[:, 0].double().numpy() * 0.1 + 0.2) * 255).clip(0, 255).astype(np.uint8) for view in seen]
    assert len(red) == 252  # the last two are the measurements
    found = [variants[view.tobytes()] for view in red[:-2]]
    down, right, mirrored = map(np.array, zip(*found, strict=True))
    assert set(down) == set(right) == set(range(-8, 9))
    assert abs(np.corrcoef(down, right)[0, 1]) < 0.2
    assert 0.4 < mirrored.mean() < 0.6


def test_a_step_moves_a_pixel_by_the_learning_rate_whatever_the_teachers_units(white_teacher: Path) -> None:
    synthesis = prepare_synthesis(white_teacher)
    for lr in (0.005, 0.05):
        images = (0.3 + 0.4 * torch.rand(2, 3, HEIGHT, WIDTH)).requires_grad_()
        begin = images.detach().clone()
        one_step(synthesis, images, lr=lr)
        # Adam's first step is lr times a sign, whatever the gradient.
        moved = (images.detach() - begin).abs().numpy().transpose(1, 0, 2, 3)
        for channel in moved:
            assert np.median(channel) == pytest.approx(lr, rel=1e-3)
            assert channel.max() <= lr * 1.001


def test_the_learning_rate_is_adams(white_teacher: Path) -> None:
    images = run_synthesis(prepare_synthesis(white_teacher, lr=0.1, count=2)).astype(int)
    begin = run_synthesis(prepare_synthesis(white_teacher, lr=0.0, count=2, out="begin"))
    moved = np.abs(images - begin)[(begin > 60) & (begin < 195)]
    assert np.median(moved) == pytest.approx(25.5, abs=0.51)


def test_refined_images_begin_as_the_very_pixels_of_the_selected_photographs(
    white_teacher: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "photographs"
    folder.mkdir()
    for index in range(9):
        draw_image(index, HEIGHT, WIDTH).save(folder / f"{index}.png")
    store = score_folder(folder, white_teacher)
    selection = select_images(store, budget=5)
    write_selection(selection, Path("selection.parquet"))
    synthesis = prepare_synthesis(white_teacher, lr=0.0, selection="selection.parquet", count=None)
    seen = watch(synthesis)
    images = run_synthesis(synthesis)
    assert [len(batch) for batch in seen] == [3] * 3 + [2] * 3  # five in batches of at most four; two measurements
    for image, key in zip(images, selection.table["key"], strict=True):
        np.testing.assert_array_equal(image, np.asarray(Image.open(folder / key)))


def test_progress_counts_the_steps_of_all_batches(white_teacher: Path) -> None:
    steps: list[Step] = []
    prepare_synthesis(white_teacher, count=5, batch_size=2, steps=3).run(steps.append)
    assert [(step.done, step.total) for step in steps] == [(done, 9) for done in range(10)]
    assert steps[0].note == ""
    assert all(float(step.note.removeprefix("loss ")) > 0 for step in steps[1:])


def test_the_cost_file_says_what_the_images_began_as_and_what_they_cost(
    white_teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([1000.0, 1012.3456])
    synthesis = prepare_synthesis(white_teacher, count=3, steps=2, lr=0.0)
    figures = [0.123449, 0.5, 0.2]
    monkeypatch.setattr(Synthesis, "distances", lambda self, pixels: np.float32(figures))
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    result = synthesis.run(lambda step: None)
    cost = {
        "begun_from": None, "images": 3, "unchanged": 0, "distance": "standardized", "distance_before": 0.2,
        "distance_after": 0.2, "teacher_forwards": 12, "teacher_backwards": 6, "seconds": 12.3,
    }  # fmt: skip
    assert (result.cost, result.images) == (cost, 3)
    lines = ",".join(f'\n  "{name}": {json.dumps(value)}' for name, value in cost.items())
    assert Path("made/cost.json").read_text() == "{" + lines + "\n}\n"


def test_a_place_that_is_taken_is_refused_before_anything_is_computed(white_teacher: Path) -> None:
    Path("made").mkdir()
    with pytest.raises(SettingsError, match="made already exists; replace it with --overwrite"):
        prepare_synthesis(white_teacher)
    prepare_synthesis(white_teacher, overwrite=True)  # an empty folder holds nothing to lose
    Path("file.png").write_bytes(b"mine")
    with pytest.raises(SettingsError, match=r"file.png holds file.png, so it cannot be replaced; give another --out"):
        prepare_synthesis(white_teacher, out="file.png", overwrite=True)


def test_a_place_that_is_taken_while_images_are_made_is_left_as_it_is(white_teacher: Path) -> None:
    def take(step: Step) -> None:
        Path("made").mkdir(exist_ok=True)

    with pytest.raises(SettingsError, match="made already exists"):
        prepare_synthesis(white_teacher).run(take)
    assert [path.name for path in Path().iterdir() if path.name.startswith("made")] == ["made"]
    assert list(Path("made").iterdir()) == []


def test_images_are_made_in_a_folder_whose_parents_are_missing(white_teacher: Path) -> None:
    synthesis = prepare_synthesis(white_teacher, out="runs/of/today", count=1)
    assert run_synthesis(synthesis).shape == (1, HEIGHT, WIDTH, 3)


def test_noise_is_fixed_by_the_seed_and_the_batchs_first_image(white_teacher: Path) -> None:
    images = run_synthesis(prepare_synthesis(white_teacher, count=3, batch_size=2, seed=6, lr=0.0))
    noise = [
        np.random.default_rng([6, first]).standard_normal((n, HEIGHT, WIDTH, 3), np.float32)
        for first, n in ((0, 2), (2, 1))
    ]
    pixels = np.clip(np.concatenate(noise).astype(np.float64) * 0.225 + 0.5, 0, 1) * 255
    np.testing.assert_allclose(images, pixels, atol=0.501)


def test_the_teacher_itself_is_not_trained(white_teacher: Path) -> None:
    synthesis = prepare_synthesis(white_teacher)
    assert not any(parameter.requires_grad for parameter in synthesis.teacher.parameters())
    one_step(synthesis, torch.rand(2, 3, HEIGHT, WIDTH).requires_grad_(), lr=0.1)
    assert all(parameter.grad is None for parameter in synthesis.teacher.parameters())


def test_fewer_photographs_than_were_selected_are_the_first_of_them(image_folder: Path, teacher_file: Path) -> None:
    selection = select_images(score_folder(image_folder, teacher_file), budget=5)
    write_selection(selection, Path("selection.parquet"))
    synthesis = prepare_synthesis(teacher_file, selection="selection.parquet", count=3, lr=0.0)
    assert synthesis.photographs is not None
    assert synthesis.photographs.rows == [int(row) for row in selection.table["row"].head(3)]
    assert synthesis.run(lambda step: None).cost["begun_from"] == "scores.zarr"
    assert len(list(Path("made").glob("*.png"))) == 3


class Draws:
    """A random generator that says what it is told to."""

    def __init__(self, *, down: int, right: int, mirror: float) -> None:
        self.shift, self.mirror = (down, right), mirror

    def integers(self, low: int, high: int, count: int) -> tuple[int, ...]:
        assert (low, high, count) == (-8, 9, 2)
        return self.shift

    def random(self) -> float:
        return self.mirror


@pytest.mark.parametrize(
    ("draws", "mirrored"),
    [
        (Draws(down=0, right=0, mirror=0.0), True),
        (Draws(down=-8, right=3, mirror=0.499), True),
        (Draws(down=2, right=-7, mirror=0.5), False),
        (Draws(down=8, right=8, mirror=0.99), False),
    ],
)
def test_a_view_is_the_images_as_they_are_drawn(draws: Any, mirrored: bool, white_teacher: Path) -> None:
    synthesis = prepare_synthesis(white_teacher)
    seen = watch(synthesis)
    images = torch.rand(2, 3, HEIGHT, WIDTH)
    expected = np.roll(synthesis.teacher.normalise(images).numpy(), draws.shift, axis=(2, 3))
    moved = images.clone().requires_grad_()
    synthesis._step(moved, torch.optim.Adam([moved], lr=0.1), draws)
    np.testing.assert_array_equal(seen[0].numpy(), expected[..., ::-1] if mirrored else expected)


def test_a_step_follows_its_own_gradient_alone(white_teacher: Path) -> None:
    synthesis = prepare_synthesis(white_teacher)
    images = torch.rand(2, 3, HEIGHT, WIDTH).requires_grad_()
    gradients = []
    optimizer = torch.optim.Adam([images], lr=0.0)
    for _ in range(2):
        synthesis._step(images, optimizer, np.random.default_rng(0))
        assert images.grad is not None
        gradients.append(images.grad.clone())
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-5, atol=1e-9)


def test_a_loss_that_is_not_finite_ends_the_run_and_writes_nothing(
    teacher_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([1.0, math.inf])
    monkeypatch.setattr(Synthesis, "_step", lambda *_: next(losses))
    with pytest.raises(DivergedError, match=r"the loss of step 2 of 5 is not finite; give a lower --lr"):
        synthesize(teacher_file, "made", count=2, steps=5)
    assert not Path("made").exists()
