"""Images made by optimisation to the teacher's statistics."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import HEIGHT, WIDTH, tiny_model
from PIL import Image

from pipeline.scoring import Scoring
from pipeline.selecting import select
from pipeline.settings import ScoreSettings, SelectSettings, SynthesisSettings
from pipeline.statistics import find_layers
from pipeline.synthesis import Synthesis, batch_statistics
from storage.errors import SettingsError


def synthesize(teacher: Path, out: str, **changes: object) -> Path:
    settings = SynthesisSettings(
        **{"teacher": str(teacher), "out": out, "count": 5, "steps": 40, "batch_size": 4, **changes}
    )  # type: ignore[arg-type]
    for _ in Synthesis.prepare(settings).run():
        pass
    return Path(out)


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
    with torch.no_grad(), batch_statistics(find_layers(teacher)) as found:
        teacher(images)
    return float(torch.stack(list(found.values())).sum())


def test_images_come_nearer_to_the_teachers_statistics_and_say_what_they_cost(teacher_file: Path) -> None:
    noise = synthesize(teacher_file, "noise", steps=1, lr=0.0)
    made = synthesize(teacher_file, "made")
    assert sorted(path.name for path in made.glob("*.png")) == [f"{index:06}.png" for index in range(5)]
    assert pixels_of(made).shape == (5, HEIGHT, WIDTH, 3)
    assert discrepancy(made) < 0.7 * discrepancy(noise)
    cost = json.loads((made / "cost.json").read_text())
    assert (cost["images"], cost["teacher_forwards"], cost["teacher_backwards"]) == (5, 200, 200)
    assert cost["seconds"] > 0


def test_the_same_seed_makes_the_same_images(teacher_file: Path) -> None:
    one, two = (synthesize(teacher_file, name, steps=3) for name in ("one", "two"))
    other = synthesize(teacher_file, "other", steps=3, seed=1)
    made = [pixels_of(folder) for folder in (one, two, other)]
    np.testing.assert_array_equal(made[0], made[1])
    for first, second in zip(made[0], made[2], strict=True):
        assert (first != second).any()


def test_smoothness_can_be_asked_for(teacher_file: Path) -> None:
    rough, smooth = (synthesize(teacher_file, f"tv{tv}", steps=20, tv=tv) for tv in (0.0, 300.0))
    steps = [np.abs(np.diff(pixels_of(folder).astype(int), axis=1)).mean() for folder in (rough, smooth)]
    assert steps[1] < 0.8 * steps[0]


def test_only_what_an_earlier_run_made_is_replaced(teacher_file: Path) -> None:
    before = pixels_of(synthesize(teacher_file, "made", steps=1))
    after = pixels_of(synthesize(teacher_file, "made", steps=1, seed=1, overwrite=True))
    assert (before != after).any()
    Path("made/labels.txt").write_text("mine")
    with pytest.raises(SettingsError, match=r"holds labels.txt, so it is not replaced"):
        synthesize(teacher_file, "made", steps=1, overwrite=True)
    assert Path("made/labels.txt").read_text() == "mine"


def test_an_interrupted_run_leaves_nothing(teacher_file: Path) -> None:
    settings = SynthesisSettings(teacher=str(teacher_file), out="made", count=4, steps=5)
    steps = Synthesis.prepare(settings).run()
    next(steps)
    steps.close()  # type: ignore[attr-defined]
    assert not [path for path in Path().iterdir() if path.name.startswith("made")]


def test_they_may_begin_as_selected_photographs(image_folder: Path, teacher_file: Path) -> None:
    for _ in Scoring(ScoreSettings(corpus=str(image_folder), teacher=str(teacher_file), device="cpu")).run():
        pass
    select(SelectSettings(budget="5", out="selection.parquet"))
    photographs = synthesize(teacher_file, "begin", selection="selection.parquet", steps=1, lr=0.0)
    made = synthesize(teacher_file, "made", selection="selection.parquet", steps=20, lr=0.02)
    moved = np.abs(pixels_of(photographs).astype(int) - pixels_of(made)).mean()
    assert 0 < moved < 40  # and still the photographs
    assert discrepancy(made) < discrepancy(photographs)
    settings = SynthesisSettings(teacher=str(teacher_file), out="more", count=6, selection="selection.parquet")
    with pytest.raises(SettingsError, match="has 5 images; give --count 5 or less"):
        Synthesis.prepare(settings)
    whole = Synthesis.prepare(dataclasses.replace(settings, count=None))
    assert whole.count == 5
    assert Synthesis.prepare(dataclasses.replace(settings, count=None, selection=None)).count == 256


def test_a_layers_term_is_the_distance_of_its_batch_statistics() -> None:
    teacher = tiny_model()
    layers = find_layers(teacher)
    images = torch.rand(3, 3, HEIGHT, WIDTH)
    kept: list[torch.Tensor] = []
    handle = layers[1].module.register_forward_hook(lambda module, inputs, output: kept.append(inputs[0].double()))
    with torch.no_grad(), batch_statistics(layers) as found:
        teacher(images)
    handle.remove()
    mean, var = kept[0].mean(dim=(0, 2, 3)), kept[0].var(dim=(0, 2, 3), unbiased=False)
    module = layers[1].module
    assert module.running_mean is not None
    assert module.running_var is not None
    expected = (mean - module.running_mean).norm() + (var - module.running_var).norm()
    assert float(found[layers[1].name]) == pytest.approx(float(expected), rel=1e-4)
