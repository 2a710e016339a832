"""Hard samples: which images are hard, how often they come, and that a resumed run draws the same."""

import dataclasses
import math
import shutil
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import oracles
import pytest
import torch
from conftest import draw_image, tiny_model, tiny_spec
from numpy.typing import NDArray
from PIL import Image
from stages import batch_of, loss_of, make_distillation, make_settings, run_distill, score_folder
from torch import Tensor

import distill.distillation
from distill.hardness import Hardness, hard_slots
from distill.inheritance import inherit
from distill.objective import Distillation
from distill.sampling import draw
from distill.training.loop import AHEAD
from distill.views import light_images
from pipeline.models.segmenter import ModelSpec
from storage.progress import Step
from storage.scores.store import ScoreStore

Log = list[tuple[int, tuple[int, ...], list[float]]]
"""Steps, the images of their slots and the losses of these."""


def known(log: Log, before: int) -> dict[int, float]:
    """The last loss of every image seen before a step."""
    return {
        place: loss for step, drawn, losses in log if step < before for place, loss in zip(drawn, losses, strict=True)
    }


def check_hardest(found: Sequence[int], losses: Mapping[int, float], images: int) -> None:
    """The hardest quarter: images without a loss first, then those of the largest losses in their order."""
    assert len(found) == len(set(found)) == -(-images // 4)
    assert set(found) <= set(range(images))
    unseen = set(range(images)) - set(losses)
    assert set(found[: len(unseen)]) <= unseen
    assert list(found[len(unseen) :]) == sorted(losses, key=lambda place: -losses[place])[: len(found[len(unseen) :])]


@pytest.mark.parametrize(("images", "batch_size", "block"), [(40, 4, 10), (41, 4, 11), (6, 4, 2), (3, 8, 2), (1, 4, 2)])
def test_the_hardest_images_of_a_block_follow_from_the_losses_before_the_block_before_it(
    images: int, batch_size: int, block: int
) -> None:
    hardness, log = Hardness(images, batch_size=batch_size, seed=3), Log()
    rng = np.random.default_rng(images)
    for step in range(7 * block):
        losses = known(log, before=(step // block - 1) * block)
        check_hardest(hardness.hardest(step).tolist(), losses, images)
        drawn = rng.integers(images, size=batch_size)
        values = rng.random(batch_size).astype(np.float32)
        hardness.record(step, drawn.tolist(), torch.from_numpy(values))
        log.append((step, tuple(drawn.tolist()), values.tolist()))


def test_images_that_are_equally_hard_come_in_another_order_in_every_block_and_with_every_seed() -> None:
    def quarters(seed: int) -> list[tuple[int, ...]]:
        hardness = Hardness(40, batch_size=4, seed=seed)
        for step in range(30):
            hardness.record(step, [0, 1], torch.zeros(2))
        return [tuple(hardness.hardest(step)) for step in (30, 40)]

    first = Hardness(40, batch_size=4, seed=1)
    found = [tuple(first.hardest(step)) for step in (0, 10)] + quarters(1) + quarters(2)
    assert len(set(found)) == 6
    assert quarters(1) == quarters(1)
    assert not {0, 1} & {place for quarter in quarters(1) for place in quarter}


def test_random_choices_follow_from_seeds_that_no_later_version_may_change() -> None:
    """A resumed run continues with the choices of the version that began it."""
    distillation = of_colours(40, hard=1.0, batch_size=8, steps=10, seed=6)
    for step in (0, 4, 5, 9):
        quarter = np.random.default_rng([6, step // 5, 0, 20260418]).permutation(40)[:10]
        chosen = draw(np.ones(10), 8, np.random.default_rng([6, step, 0, 20260419]))
        assert list(batch_of(distillation, step).drawn) == quarter[chosen].tolist()


def test_hardest_images_that_are_not_known_yet_or_no_longer_are_an_error() -> None:
    hardness = Hardness(40, batch_size=4, seed=0)
    hardness.hardest(19)
    with pytest.raises(RuntimeError, match="the hardest images of block 2 are not known when the batch of 20 is made"):
        hardness.hardest(20)
    hardness.record(9, [0], torch.ones(1))
    hardness.hardest(20)
    with pytest.raises(RuntimeError, match="of block 0 are not known when the batch of 9 is made"):
        hardness.hardest(9)


@pytest.mark.parametrize("images", [1, 2, 3, 4, 5, 9])
def test_batches_made_in_advance_never_need_images_that_are_not_known(images: int) -> None:
    hardness = Hardness(images, batch_size=4, seed=0)
    for step in range(20):
        for made in range(step, step + AHEAD + 1):
            hardness.hardest(made)
        hardness.record(step, [0], torch.ones(1))


def test_of_an_image_that_comes_twice_in_a_batch_the_last_loss_counts() -> None:
    hardness = Hardness(3, batch_size=4, seed=0)
    hardness.record(0, [2, 0, 2, 0], torch.tensor([9.0, 1.0, 2.0, 8.0]))
    assert hardness.losses_N.tolist() == [8.0, math.inf, 2.0]


@pytest.mark.parametrize(
    ("share", "batch_size", "slots"), [(0.0, 8, 0), (0.5, 8, 4), (0.5, 3, 2), (0.01, 8, 1), (0.3, 8, 2), (1.0, 8, 8)]
)
def test_the_share_of_a_batch_is_rounded_and_at_least_one_image(share: float, batch_size: int, slots: int) -> None:
    assert hard_slots(share, batch_size) == slots


def coloured(count: int) -> list[Image.Image]:
    """Images of one colour each, by which a crop says what it was cut from."""
    return [Image.new("RGB", (56, 40), (6 * place + 3, 0, 0)) for place in range(count)]


def of_colours(count: int, **changes: Any) -> Distillation:
    weights = changes.pop("weights", np.linspace(1, 0, count))
    return make_distillation(
        images=coloured(count), training_places=range(count), weights=weights, weighting="static", **changes
    )


def shown(batch: Any) -> list[int]:
    return [int(image[0, 0, 0]) // 6 for image in batch.images_N3HW]


@pytest.mark.parametrize(("share", "hard"), [(0.25, 2), (0.5, 4), (1.0, 8)])
def test_a_share_of_every_batch_shows_the_hardest_and_the_rest_every_image_once_an_epoch(
    share: float, hard: int
) -> None:
    distillation = of_colours(40, hard=share, batch_size=8, steps=200, seed=4)
    hardness, usual = distillation.hardness, []
    assert hardness is not None
    counts = np.zeros(40)
    for step in range(200):
        batch = batch_of(distillation, step)
        places = shown(batch)
        assert places == list(batch.drawn)
        np.testing.assert_allclose(batch.weights_N, np.linspace(1, 0, 40)[places], atol=1e-6)
        assert set(places[8 - hard :]) <= set(hardness.hardest(step))
        assert len(set(places[8 - hard :])) == hard
        usual += places[: 8 - hard]
        hardness.record(step, places, torch.tensor([float(place) for place in places]))
        if step >= 25:
            counts += np.bincount(places[8 - hard :], minlength=40)
    epochs = [usual[start : start + 40] for start in range(0, len(usual) // 40 * 40, 40)]
    assert all(sorted(epoch) == list(range(40)) for epoch in epochs)
    if hard < 8:
        np.testing.assert_allclose(counts[30:], 17.5 * hard, rtol=0.4)
        assert counts[:30].sum() == 0


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_by_sampling_the_hardest_are_drawn_in_proportion_to_their_weights_too(share: float) -> None:
    weights, steps = [0.3, 1.0] * 16, 400
    distillation = of_colours(32, weights=weights, hard=share, by_sampling=True, batch_size=8, steps=steps)
    hardness, hard = distillation.hardness, round(8 * share)
    assert hardness is not None
    usual, hardest = np.zeros(32), np.zeros(32)
    for step in range(steps):
        batch = batch_of(distillation, step)
        assert batch.weights_N.tolist() == [1.0] * 8
        places = shown(batch)
        usual += np.bincount(places[: 8 - hard], minlength=32)
        if step >= 8:
            hardest += np.bincount(places[8 - hard :], minlength=32)
        hardness.record(step, range(32), torch.arange(32.0))
    expected = np.array(weights) / np.sum(weights)
    np.testing.assert_allclose(usual / steps, (8 - hard) * expected, atol=0.05)
    assert hardest[:24].sum() == 0
    expected = np.array(weights[24:]) / np.sum(weights[24:])
    np.testing.assert_allclose(hardest[24:] / (steps - 8), hard * expected, atol=0.06)


def test_the_draw_of_the_hardest_depends_on_step_and_seed_alone() -> None:
    def orders(seed: int) -> list[tuple[int, ...]]:
        distillation = of_colours(40, hard=0.5, batch_size=8, steps=5, seed=seed)
        return [batch_of(distillation, step).drawn[4:] for step in (3, 0, 1, 2, 4)]

    assert orders(0) == orders(0)
    assert len({*orders(0), *orders(1)}) == 10


def test_without_a_share_batches_are_those_of_an_objective_that_knows_no_hardness() -> None:
    assert make_distillation().hardness is None
    usual = [batch_of(of_colours(8), step).drawn for step in range(4)]
    assert all(sorted(usual[step] + usual[step + 1]) == list(range(8)) for step in (0, 2))


@pytest.mark.parametrize("loss", ["kl", "l1"])
def test_what_is_noted_of_an_image_is_numpys_loss_without_weight_and_without_features(loss: str) -> None:
    spec = ModelSpec(
        builder="tiny_models:stacked", num_classes=3, class_names=("sky", "road", "car"),
        image_size=tiny_spec().image_size, arguments={},
    )  # fmt: skip
    teacher = tiny_model(3, spec)
    model = tiny_model(4, dataclasses.replace(spec, arguments={"blocks": 2}))
    inheritance = inherit(model, teacher)
    assert inheritance.compared
    distillation = make_distillation(
        teacher=teacher, inheritance=inheritance, features=2.0, hard=0.5, loss=loss, steps=5, temperature=2.0
    )
    assert distillation.hardness is not None
    batch = batch_of(distillation, 1)
    loss_of(distillation, model, batch)
    with torch.no_grad():
        pixels = light_images(batch.images_N3HW, batch.views)
        kd = oracles.image_losses(model(pixels).numpy(), teacher(pixels).numpy(), loss, 2.0)
    expected = {**dict.fromkeys(range(4), math.inf), **dict(zip(batch.drawn, kd, strict=True))}
    assert len(set(batch.drawn)) > 1
    np.testing.assert_allclose(distillation.hardness.losses_N, [expected[place] for place in range(4)], rtol=1e-4)


class Half:
    """One of two processes, each in a thread, that share every batch."""

    def __init__(self, number: int, meeting: threading.Barrier, left: dict[int, Tensor]) -> None:
        self.number, self.meeting, self.left = number, meeting, left

    def slots(self, batch_size: int) -> range:
        return range(self.number, batch_size, 2)

    def gathered(self, losses_N: Tensor) -> Tensor:
        self.left[self.number] = losses_N
        self.meeting.wait(timeout=60)
        together = torch.stack([self.left[0], self.left[1]], dim=1).flatten()
        self.meeting.wait(timeout=60)
        return together


def test_processes_that_share_a_batch_know_the_same_hardest_images_as_one() -> None:
    images = [draw_image(index) for index in range(10)]

    def objective() -> Distillation:
        return make_distillation(images=images, training_places=range(10), weights=[1.0] * 10, hard=0.5, steps=12)

    alike = [tiny_model(8, tiny_spec("tiny_models:without_batch_norm")) for _ in range(3)]
    alone = objective()
    for step in range(12):
        loss_of(alone, alike[2], batch_of(alone, step))
    meeting, left, halves = threading.Barrier(2), dict[int, Tensor](), [objective(), objective()]

    def run(number: int) -> None:
        processes: Any = Half(number, meeting, left)
        half = dataclasses.replace(halves[number], processes=processes)
        for step in range(12):
            loss_of(half, alike[number], half.batch(step, processes.slots(4)))

    threads = [threading.Thread(target=run, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one in (alone, *halves):
        assert one.hardness is not None
        torch.testing.assert_close(one.hardness.losses_N, alone.hardness.losses_N, rtol=1e-4, atol=1e-6)  # type: ignore[union-attr]
        assert torch.equal(one.hardness.blocks_2, torch.tensor([4, 5]))
        for step in (12, 15):
            assert one.hardness.hardest(step).tolist() == alone.hardness.hardest(step).tolist()  # type: ignore[union-attr]


def logged(monkeypatch: pytest.MonkeyPatch) -> Log:
    """What a run notes in each of its steps."""
    log, plain = Log(), Hardness.record

    def record(self: Hardness, step: int, places: Sequence[int], losses_S: Tensor) -> None:
        log.append((step, tuple(places), losses_S.tolist()))
        plain(self, step, places, losses_S)

    monkeypatch.setattr(Hardness, "record", record)
    return log


STEPS, BLOCK = 10, 3


def hard_settings(**changes: Any) -> Any:
    """Three blocks of three steps and one more: 22 training images of 23, in batches of 8."""
    return make_settings(**{"steps": STEPS, "batch_size": 8, "hard": 0.5, "lr": 0.01, **changes})


def test_a_run_draws_half_of_every_batch_from_the_quarter_that_was_hardest_a_block_before(
    scored_store: ScoreStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = logged(monkeypatch)
    run_distill(hard_settings())
    assert [step for step, _, _ in log] == list(range(STEPS))
    for step, drawn, _ in log:
        losses = known(log, before=(step // BLOCK - 1) * BLOCK)
        order: NDArray[Any] = np.array(sorted(range(22), key=lambda place: -losses.get(place, math.inf)))
        quarter = {place for place in range(22) if losses.get(place, math.inf) >= losses.get(int(order[5]), math.inf)}
        assert set(drawn[4:]) <= quarter, step
    assert len(known(log, STEPS)) == 22


@pytest.mark.parametrize("changes", [{"views": 2}, {"by_sampling": True, "views": 0, "mixup": 0.5}], ids=str)
def test_a_run_that_is_resumed_at_any_step_ends_with_the_bytes_of_one_that_was_not(
    changes: dict[str, Any], image_folder: Path, teacher_file: Path
) -> None:
    score_folder(image_folder, teacher_file)
    settings = hard_settings(**changes, checkpoint_every=1, keep_checkpoint=True)

    def keep(step: Step) -> None:
        if Path("run/checkpoint.pt").exists() and 0 < step.done < STEPS:
            shutil.copytree("run", f"at-{step.done}", dirs_exist_ok=True)

    distill.distillation.distill(settings, keep)
    whole = Path("run/student.safetensors").read_bytes()
    end = torch.load("run/checkpoint.pt", weights_only=True)["hardness"]
    assert set(end) == {"losses_N", "hardest_2K", "blocks_2"}
    assert end["blocks_2"].tolist() == [4, 3]
    for done in range(1, STEPS):
        out = f"at-{done}"
        assert torch.load(f"{out}/checkpoint.pt", weights_only=True)["step"] == done
        run_distill(dataclasses.replace(settings, out=out, answers="answers", eval_every=STEPS, resume=True))
        assert Path(out, "student.safetensors").read_bytes() == whole, done
        state = torch.load(f"{out}/checkpoint.pt", weights_only=True)["hardness"]
        assert all(torch.equal(state[name], end[name]) for name in end), done
    run_distill(dataclasses.replace(settings, out="without", hard=0.0))
    assert Path("without/student.safetensors").read_bytes() != whole
    assert "hardness" not in torch.load("without/checkpoint.pt", weights_only=True)
