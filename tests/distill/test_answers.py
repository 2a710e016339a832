"""The teacher is asked once: what is exact, what is shared, what is continued."""

import dataclasses
import json
import shutil
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import oracles
import pytest
import torch
from conftest import HEIGHT, WIDTH, draw_image, tiny_model, tiny_spec
from stages import Stopped, batch_of, loss_of, make_distillation, make_settings, run_distill, score_folder
from torch import Tensor, nn
from torch.nn import functional as F

import distill.answers
import distill.distillation
from distill.answers import LOGITS, Guide, KeptAnswers, Question, ask
from distill.inheritance import inherit
from distill.objective import Distillation
from distill.views import light_images
from pipeline.models.segmenter import Segmenter
from storage.errors import ModelError, SettingsError
from storage.progress import Step, ignore

IMAGES = [draw_image(index) for index in range(6)]
PLACES = (0, 2, 3, 5)


def stacked(seed: int = 3, blocks: int = 3) -> Segmenter:
    spec = dataclasses.replace(tiny_spec("tiny_models:stacked"), arguments={"blocks": blocks})
    return tiny_model(seed, spec)


def asked_once(**changes: Any) -> Distillation:
    """An objective whose teacher has answered to the fixed pictures of its four training images."""
    distillation = make_distillation(images=IMAGES, training_places=PLACES, **{"views": 3, "steps": 9, **changes})
    question = Question(
        guide=distillation.guide, pictures=distillation.pictures, folder=Path("answers"), bits=16, about={"test": 1}
    )
    return dataclasses.replace(distillation, answers=ask(question, most_gib=1, progress=ignore))


def truth(distillation: Distillation, pixels: Tensor) -> Tensor:
    """The teacher's logits of uint8 pixels [N, 3, H, W], by itself."""
    with torch.no_grad():
        logits: Tensor = distillation.guide.teacher(pixels)
    return logits


@pytest.mark.parametrize("mixup", [0.0, 0.5])
def test_an_answer_is_what_the_teacher_says_of_the_picture_in_its_own_light(mixup: float) -> None:
    distillation = asked_once(mixup=mixup)
    assert distillation.answers is not None
    mixtures = 0
    for place in range(4):
        for number in range(3):
            picture = distillation.pictures.draw_fixed(place, number)
            pixels = torch.from_numpy(distillation.pictures.pixels(picture).copy()).permute(2, 0, 1)[None]
            answer = distillation.answers([(place, number)])[LOGITS].float()
            enlarged = distillation.guide.enlargement.enlarge(answer, (HEIGHT, WIDTH))
            assert float(answer.mean()) == pytest.approx(0, abs=1e-3)  # an offset of all logits means nothing
            wanted = truth(distillation, pixels)
            offset = (wanted - enlarged).mean()
            torch.testing.assert_close(enlarged + offset, wanted, rtol=2e-3, atol=2e-3)
            mixtures += picture.partner is not None
    assert (mixtures > 0) is (mixup > 0)
    assert distillation.answers([(0, 0)])[LOGITS].shape == (1, 3, HEIGHT // 2, WIDTH // 2)  # before it is enlarged


def test_a_step_shows_fixed_pictures_with_their_answers_and_lit_anew() -> None:
    distillation = asked_once()
    sources = {}
    for place in range(4):
        for number in range(3):
            picture = distillation.pictures.draw_fixed(place, number)
            sources[place, number] = distillation.pictures.pixels(picture)
    lights, seen = [], Counter[tuple[int, int]]()
    for step in range(9):
        batch = batch_of(distillation, step)
        assert batch.answers is not None
        for pixels, view, answer in zip(batch.images_N3HW, batch.views, batch.answers[LOGITS], strict=True):
            (found,) = [key for key, source in sources.items() if (source == pixels.permute(1, 2, 0).numpy()).all()]
            seen[found] += 1
            assert torch.equal(answer, distillation.answers([found])[LOGITS][0])  # type: ignore[misc]
            lights.append(view.light)
    assert len(set(lights)) == len(lights)
    assert len(seen) > 8  # of 12: every image with several of its pictures
    assert batch_of(distillation, 4).views == batch_of(distillation, 4).views


def test_the_loss_of_a_step_is_numpys_on_the_answers_and_the_teacher_is_not_asked_again() -> None:
    distillation, model = asked_once(), tiny_model(9, tiny_spec("tiny_models:small"))
    batch = batch_of(distillation, 2)
    calls: list[int] = []
    distillation.guide.teacher.network.register_forward_hook(lambda *_: calls.append(1))
    found = loss_of(distillation, model, batch)
    assert calls == []
    with torch.no_grad():
        logits = model(light_images(batch.images_N3HW, batch.views))
    assert batch.answers is not None
    target = F.interpolate(batch.answers[LOGITS], size=(HEIGHT, WIDTH), mode="bilinear", align_corners=False)
    kd = oracles.image_losses(logits.numpy(), target.numpy(), "kl", 1.0)
    weights = batch.weights_N.double().numpy()
    assert float(found.detach()) == pytest.approx((weights * kd).sum() / weights.sum(), rel=1e-4)


def test_compared_inputs_are_kept_in_the_teachers_standard_deviations() -> None:
    teacher, model = stacked(), stacked(4, blocks=2)
    inheritance = inherit(model, teacher)
    distillation = asked_once(teacher=teacher, inheritance=inheritance)
    assert distillation.answers is not None
    layers = [theirs for _, theirs in inheritance.compared]
    seen: dict[nn.Module, Tensor] = {}
    for layer in layers:
        layer.register_forward_hook(lambda module, inputs, _: seen.__setitem__(module, inputs[0]))
    picture = distillation.pictures.draw_fixed(1, 2)
    truth(distillation, torch.from_numpy(distillation.pictures.pixels(picture).copy()).permute(2, 0, 1)[None])
    names = {module: name for name, module in teacher.network.named_modules()}
    kept = distillation.answers([(1, 2)])
    assert set(kept) == {LOGITS, *(names[layer] for layer in layers)}
    for layer in layers:
        assert layer.running_mean is not None
        assert layer.running_var is not None
        mean, var = (values.double().view(1, -1, 1, 1) for values in (layer.running_mean, layer.running_var))
        expected = (seen[layer].double() - mean) / (var + layer.eps).sqrt()
        torch.testing.assert_close(kept[names[layer]].double(), expected, rtol=2e-3, atol=2e-3)


def test_with_equal_inputs_a_student_that_is_the_teacher_has_no_loss() -> None:
    distillation = asked_once(jitter=0.0)
    found = loss_of(distillation, distillation.guide.teacher, batch_of(distillation, 1))
    assert float(found.detach()) == pytest.approx(0, abs=1e-5)


class WithAuxiliaryHead(nn.Module):
    """Its second BatchNorm layer runs after the logits, as those of torchvision's auxiliary heads."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4)
        self.head, self.aux = nn.Conv2d(4, 3, 1), nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 3, 1))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features = self.norm(self.stem(images))
        logits = F.interpolate(self.head(features), size=images.shape[-2:], mode="bilinear")
        return {"out": logits, "aux": self.aux(features)}


def test_inputs_of_layers_that_run_after_the_logits_are_answered_too() -> None:
    teacher = Segmenter(WithAuxiliaryHead(), tiny_spec()).eval()
    late = teacher.network.get_submodule("aux.0")
    images = torch.rand(2, 3, HEIGHT, WIDTH)
    answers = Guide.of(teacher, [late], "float32")(images)
    assert answers[LOGITS].shape == (2, 3, HEIGHT // 2, WIDTH // 2)
    with torch.no_grad():
        features = teacher.network.norm(teacher.network.stem(teacher.normalise(images)))  # type: ignore[operator]
    torch.testing.assert_close(answers["aux.0"], features / (1 + 1e-5) ** 0.5)


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith(".lock")
    }


def small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distill.answers, "UNIT_IMAGES", 4)
    monkeypatch.setattr(distill.answers, "BATCH", 3)


def test_interrupted_answers_are_continued_to_the_same_bytes_and_the_same_student(
    image_folder: Path, teacher_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_units(monkeypatch)
    score_folder(image_folder, teacher_file)
    settings = make_settings(views=2, steps=6, mixup=0.3)
    run_distill(settings)
    whole, student = files_of(Path("answers")), Path("run/student.safetensors").read_bytes()
    shutil.rmtree("answers")
    shutil.rmtree("run")
    for done in (9, 24):
        with pytest.raises(Stopped):
            distill_until(settings, done)
    run_distill(dataclasses.replace(settings, resume=True))
    assert files_of(Path("answers")) == whole
    assert Path("run/student.safetensors").read_bytes() == student


def distill_until(settings: Any, done: int) -> None:
    def report(step: Step) -> None:
        if step.task == "asking the teacher" and step.done >= done:
            raise Stopped

    distill_with(dataclasses.replace(settings, resume=True), report)


def distill_with(settings: Any, report: Any) -> None:
    distill.distillation.distill(settings, report)


def test_runs_of_other_seeds_weights_and_losses_share_answers_and_others_do_not(
    image_folder: Path, teacher_file: Path
) -> None:
    score_folder(image_folder, teacher_file)
    asked: list[int] = []

    def run(name: str, **changes: Any) -> int:
        tasks: list[int] = []
        distill_with(make_settings(views=2, out=f"runs/{name}", **changes), lambda step: tasks.append(len(step.task)))
        asked.append(max(tasks))
        return len(list(Path("runs/answers").glob("*.zarr")))

    assert run("first") == 1
    assert run("seed", seed=7) == 1
    assert run("weights", weighting="reversed", loss="l1", steps=3, student="tiny_models:slow", inherit=False) == 1
    assert [bool(length) for length in asked] == [True, False, False]
    assert run("budget", budget=0.5) == 2
    assert run("views", min_scale=0.7) == 3
    assert run("mixed", mixup=0.5) == 4
    assert run("small", answer_bits="8") == 5


def test_two_runs_at_once_ask_once(image_folder: Path, teacher_file: Path) -> None:
    score_folder(image_folder, teacher_file)
    asked: list[str] = []

    def run(name: str) -> None:
        distill_with(
            make_settings(views=2, seed=len(name), out=f"runs/{name}", steps=2),
            lambda step: asked.append(name) if step.task and step.done == 0 else None,
        )

    threads = [threading.Thread(target=run, args=(name,)) for name in ("a", "bb")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(asked) == 1
    assert all(Path(f"runs/{name}/student.safetensors").exists() for name in ("a", "bb"))


def test_answers_that_would_be_too_large_are_refused_before_anything_is_written(
    image_folder: Path, teacher_file: Path
) -> None:
    score_folder(image_folder, teacher_file)
    with pytest.raises(SettingsError, match=r"answers to 50 views of 22 images take 0\.0 GiB, more than 1e-06; give"):
        run_distill(make_settings(views=50, cache_gib=1e-6))
    assert not list(Path().glob("**/answers/*.zarr"))
    assert not Path("run").exists()
    run_distill(make_settings(views=1))  # what the message advises
    student = Path("run/student.safetensors").read_bytes()
    with pytest.raises(SettingsError, match="more than 1e-06"):
        run_distill(make_settings(views=50, cache_gib=1e-6, overwrite=True))
    assert Path("run/student.safetensors").read_bytes() == student


def test_the_size_and_the_place_are_said_before_the_teacher_is_asked(image_folder: Path, teacher_file: Path) -> None:
    score_folder(image_folder, teacher_file)
    steps: list[Step] = []
    distill_with(make_settings(views=2), steps.append)
    first = next(step for step in steps if step.task)
    assert (first.done, first.total, first.unit) == (0, 44, "views")
    assert first.note.startswith("0.00 GiB in answers/")


def test_answers_that_are_not_finite_are_an_error(image_folder: Path, teacher_file: Path) -> None:
    score_folder(image_folder, teacher_file)
    distillation = make_distillation(images=IMAGES, training_places=PLACES, views=2)
    distillation.guide.teacher.network.head.bias.data[0] = float("inf")  # type: ignore[union-attr]
    question = Question(
        guide=distillation.guide, pictures=distillation.pictures, folder=Path("answers"), bits=16, about={}
    )
    with pytest.raises(ModelError, match="the teacher's logits are not finite"):
        ask(question, most_gib=1, progress=ignore)


def test_an_offset_of_all_logits_costs_no_precision_and_logits_beyond_half_precision_are_refused() -> None:
    plain, shifted = asked_once(), make_distillation(images=IMAGES, training_places=PLACES, views=3)
    shifted.guide.teacher.network.head.bias.data += 3000  # type: ignore[union-attr, operator]
    question = Question(guide=shifted.guide, pictures=shifted.pictures, folder=Path("other"), bits=16, about={})
    assert plain.answers is not None
    one, other = plain.answers([(1, 1)])[LOGITS], ask(question, most_gib=1, progress=ignore)([(1, 1)])[LOGITS]
    torch.testing.assert_close(one, other, rtol=1e-3, atol=2e-3)
    shifted.guide.teacher.network.head.bias.data[0] += 1e6  # type: ignore[union-attr, index]
    with pytest.raises(ModelError, match=r"logits are up to 6\.67e\+05, but half precision ends at 65504; give"):
        ask(dataclasses.replace(question, folder=Path("third")), most_gib=1, progress=ignore)


def test_a_run_without_views_asks_in_every_step_and_keeps_nothing(image_folder: Path, teacher_file: Path) -> None:
    score_folder(image_folder, teacher_file)
    run_distill(make_settings(views=0))
    assert not Path("answers").exists()


@pytest.mark.parametrize(
    ("changes", "views"),
    [
        ({"steps": 12}, 8),  # 3 images, 8 views each: half of 12 steps of 4 pictures
        ({"steps": 11}, 0),
        ({"steps": 12, "cache_gib": 1e-6}, 0),
        ({"steps": 11, "views": 2}, 2),
        ({"steps": 100, "views": 0}, 0),
    ],
)
def test_the_teacher_is_asked_once_where_that_halves_its_work_and_fits(
    changes: dict[str, Any], views: int, image_folder: Path, teacher_file: Path
) -> None:
    score_folder(image_folder, teacher_file)
    run_distill(make_settings(budget=3, **changes))
    assert json.loads(Path("run/settings.json").read_text())["views"] == views
    assert Path("answers").exists() is bool(views)
    forwards = json.loads(Path("run/metrics.json").read_text())["teacher_forwards"]
    assert forwards == (3 * views if views else changes["steps"] * 4)


def test_the_memory_that_answers_take_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    distillation = asked_once()
    assert distillation.answers is not None
    store = distillation.answers._store
    row = sum(values.nbytes for values in store.read(0).values())
    monkeypatch.setattr(distill.answers, "CACHE_BYTES", 5 * row)
    answers = KeptAnswers(store, 3)
    expected = [distillation.answers([(place, 1)])[LOGITS] for place in range(4)]
    for _ in range(2):
        for place in range(4):
            for number in range(3):
                answers([(place, number)])
    assert len(answers._cache) == 5
    assert all(torch.equal(answers([(place, 1)])[LOGITS], expected[place]) for place in range(4))
