"""One distillation step: its images, its weights, its pixels and its loss, against numpy."""

import copy
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import oracles
import pytest
import torch
from conftest import HEIGHT, WIDTH, draw_image, tiny_model, tiny_spec
from numpy.typing import NDArray
from PIL import Image
from stages import batch_of, loss_of, make_distillation
from torch import nn
from torch.nn import functional as F

from distill.evaluation import Agreement, evaluate
from distill.inheritance import inherit
from distill.labelled import open_labelled
from distill.objective import Distillation, DistillBatch
from pipeline.models.segmenter import ModelSpec, Segmenter, build_model
from storage.errors import ModelError

WEIGHTS = np.array([1.0, 0.7, 0.2, 0.0])
STEPS = 5


def stacked(seed: int, **arguments: Any) -> Segmenter:
    spec = ModelSpec(
        builder="tiny_models:stacked",
        num_classes=3,
        class_names=("sky", "road", "car"),
        image_size=(HEIGHT, WIDTH),
        arguments=arguments,
    )
    return tiny_model(seed, spec)


def student_of(builder: str = "tiny_models:small", **changes: Any) -> Segmenter:
    """A student in train mode whose normalisation differs from the teacher's."""
    torch.manual_seed(5)
    spec = dataclasses.replace(tiny_spec(builder), mean=(0.3, 0.4, 0.5), std=(0.2, 0.3, 0.4), **changes)
    return build_model(spec).train()


def lit_pixels(batch: DistillBatch) -> torch.Tensor:
    """The expected input of both networks, by numpy, [N, 3, H, W] in [0, 1]."""
    images = [
        oracles.light(image.permute(1, 2, 0).numpy() / 255.0, view.light)
        for image, view in zip(batch.images_N3HW, batch.views, strict=True)
    ]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)


def logits_of(model: Segmenter, pixels: torch.Tensor) -> NDArray[np.float64]:
    """Logits by a copy of the network alone, in double precision: normalise, run, resize to the size of the pixels."""
    network = copy.deepcopy(model.network).double()
    mean, std = (torch.tensor(values).double().view(3, 1, 1) for values in (model.spec.mean, model.spec.std))
    with torch.no_grad():
        output = network((pixels - mean) / std)
        logits = output["out"] if isinstance(output, dict) else output
        return F.interpolate(logits, size=(HEIGHT, WIDTH), mode="bilinear", align_corners=False).numpy()


def inputs_of(network: nn.Module, modules: Sequence[nn.Module], pixels: torch.Tensor, spec: ModelSpec) -> list[Any]:
    """The inputs of modules of a network, by hooks of the test's own, float64."""
    seen: dict[nn.Module, Any] = {}
    copied = copy.deepcopy(network).double()
    names = {module: name for name, module in network.named_modules()}
    for module in modules:
        copied.get_submodule(names[module]).register_forward_hook(
            lambda _, inputs, __, module=module: seen.__setitem__(module, inputs[0].numpy())
        )
    mean, std = (torch.tensor(values).double().view(3, 1, 1) for values in (spec.mean, spec.std))
    with torch.no_grad():
        copied((pixels - mean) / std)
    return [seen[module] for module in modules]


@pytest.mark.parametrize("by_sampling", [False, True], ids=["by weight", "by sampling"])
@pytest.mark.parametrize(("loss", "temperature"), [("kl", 1.0), ("kl", 3.0), ("channel", 2.0), ("l1", 1.0)])
def test_the_loss_of_a_step_is_the_weighted_mean_of_numpys_losses(
    loss: str, temperature: float, by_sampling: bool
) -> None:
    distillation = make_distillation(loss=loss, temperature=temperature, by_sampling=by_sampling, steps=STEPS)
    batch, model = batch_of(distillation, 1), student_of()
    pixels = lit_pixels(batch)
    student, teacher = logits_of(model, pixels), logits_of(distillation.guide.teacher, pixels)
    kd = oracles.image_losses(student, teacher, loss, temperature)
    weights = batch.weights_N.double().numpy()
    assert (len(set(weights)) == 1) is by_sampling
    found = loss_of(distillation, model, batch)
    assert float(found.detach()) == pytest.approx((weights * kd).sum() / weights.sum(), rel=1e-4)


@pytest.mark.parametrize("by_sampling", [False, True], ids=["by weight", "by sampling"])
@pytest.mark.parametrize("features", [0.0, 1.0, 2.5])
def test_the_feature_term_is_added_image_by_image_as_often_as_its_weight_says(
    features: float, by_sampling: bool
) -> None:
    teacher, model = stacked(seed=3), stacked(seed=4, blocks=2)
    for module in (*teacher.modules(), *model.modules()):
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 0.3  # as large as the variances, so that leaving it out shows
    inheritance = inherit(model, teacher)
    own, theirs = zip(*inheritance.compared, strict=True)
    assert len(own) == 2
    with torch.no_grad():
        for block in model.network.blocks:  # type: ignore[union-attr]
            block[0].weight.mul_(1.3)
    distillation = make_distillation(
        teacher=teacher, inheritance=inheritance, features=features, by_sampling=by_sampling, steps=STEPS
    )
    model.train()
    for module in inheritance.frozen:
        module.eval()
    batch = batch_of(distillation, 1)
    pixels = lit_pixels(batch)
    kd = oracles.image_losses(logits_of(model, pixels), logits_of(teacher, pixels), "kl", 1.0)
    term = oracles.feature_terms(
        inputs_of(model.network, own, pixels, model.spec),
        inputs_of(teacher.network, theirs, pixels, teacher.spec),
        [module.running_var.numpy() for module in theirs],  # type: ignore[union-attr]
        eps=0.3,
    )
    assert term.std() > 0.01 * term.mean()  # or adding its mean would do
    weights = batch.weights_N.double().numpy()
    expected = (weights * (kd + features * term)).sum() / weights.sum()
    assert float(loss_of(distillation, model, batch).detach()) == pytest.approx(expected, rel=1e-4)


def test_teacher_and_student_see_the_same_pixels_each_normalised_in_its_own_way() -> None:
    distillation, model = make_distillation(steps=STEPS), student_of()
    seen: dict[str, torch.Tensor] = {}
    for name, one in (("teacher", distillation.guide.teacher), ("student", model)):
        one.network.register_forward_pre_hook(lambda _, inputs, name=name: seen.update({name: inputs[0].clone()}))
    flips = set()
    for step in range(3):
        batch = batch_of(distillation, step)
        flips |= {view.flip for view in batch.views}
        assert len({view.light for view in batch.views}) == len(batch.views)
        loss_of(distillation, model, batch)
        pixels = lit_pixels(batch)
        for name, spec in (("teacher", distillation.guide.teacher.spec), ("student", model.spec)):
            mean, std = (torch.tensor(values).view(3, 1, 1) for values in (spec.mean, spec.std))
            torch.testing.assert_close(seen[name] * std + mean, pixels.float(), atol=1e-5, rtol=0)
    assert flips == {False, True}


def test_the_teacher_predicts_without_a_gradient_and_the_student_with_one() -> None:
    distillation, model = make_distillation(steps=STEPS), student_of()
    distillation.guide.teacher.requires_grad_(True)
    found: dict[str, tuple[bool, bool]] = {}
    for name, one in (("teacher", distillation.guide.teacher), ("student", model)):
        one.network.register_forward_pre_hook(
            lambda module, _, name=name: found.update({name: (module.training, torch.is_grad_enabled())})
        )
    loss_of(distillation, model, batch_of(distillation, 0)).backward()
    assert found == {"teacher": (False, False), "student": (True, True)}
    assert all(parameter.grad is None for parameter in distillation.guide.teacher.parameters())
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("flip", [False, True])
def test_the_crops_of_a_batch_are_those_of_its_views(flip: bool) -> None:
    distillation = make_distillation(steps=STEPS, min_scale=0.7)
    batches = [batch_of(distillation, step) for step in range(4)]
    crops = [pair for batch in batches for pair in zip(batch.images_N3HW, batch.views, strict=True)]
    chosen = [(image, view) for image, view in crops if view.flip is flip]
    assert len(chosen) > 3
    sources = [np.asarray(distillation.pictures.images[place]) for place in distillation.pictures.training_places]
    for image, view in chosen:
        shown = image.permute(1, 2, 0).numpy().astype(np.float64)
        if flip:
            shown = shown[:, ::-1]
        gaps = [np.abs(oracles.crop(source, view.box, HEIGHT, WIDTH) - shown).max() for source in sources]
        assert min(gaps) < 1.6  # two roundings, one for each axis


def coloured(count: int = 6) -> list[Image.Image]:
    """Images of one colour each, by which a crop says what it was cut from."""
    return [Image.new("RGB", (56, 40), (20 * place + 10, 0, 0)) for place in range(count)]


def places(batch: DistillBatch) -> list[int]:
    return [int(image[0, 0, 0]) // 20 for image in batch.images_N3HW]


@pytest.mark.parametrize("pacing", ["linear", "cosine", "step"])
@pytest.mark.parametrize("weighting", ["wdpd", "static", "uniform", "reversed"])
def test_every_image_of_a_batch_has_the_weight_of_the_step(weighting: str, pacing: str) -> None:
    distillation = make_distillation(images=coloured(), weighting=weighting, pacing=pacing, steps=STEPS)
    start = dict(zip(distillation.pictures.training_places, WEIGHTS, strict=True))
    for step in range(STEPS):
        batch = batch_of(distillation, step)
        weights = oracles.image_weights(
            np.array([start[place] for place in places(batch)]), step / (STEPS - 1), weighting, pacing
        )
        np.testing.assert_allclose(batch.weights_N.numpy(), weights, rtol=1e-6)


def test_a_run_of_two_steps_begins_with_the_distance_weights_and_ends_with_equal_ones() -> None:
    distillation = make_distillation(images=coloured(), steps=2)
    assert sorted(batch_of(distillation, 0).weights_N.tolist()) == pytest.approx(sorted(WEIGHTS))
    assert batch_of(distillation, 1).weights_N.tolist() == [1] * 4


def test_a_run_of_one_step_has_the_weights_of_the_start() -> None:
    distillation = make_distillation(images=coloured(), steps=1)
    assert sorted(batch_of(distillation, 0).weights_N.tolist()) == pytest.approx(sorted(WEIGHTS))


def test_every_training_image_comes_once_an_epoch_and_what_is_held_out_never() -> None:
    orders = {}
    for seed in (0, 1):
        distillation = make_distillation(images=coloured(), seed=seed, batch_size=2, steps=12)
        shown = [place for step in range(12) for place in places(batch_of(distillation, step))]
        epochs = [tuple(shown[start : start + 4]) for start in range(0, 24, 4)]
        assert all(sorted(epoch) == [0, 2, 3, 5] for epoch in epochs)
        assert len(set(epochs)) > 1
        orders[seed] = epochs
    assert orders[0] != orders[1]


def test_by_sampling_images_come_as_often_as_their_weights_say_and_count_the_same() -> None:
    steps, size = 400, 6
    distillation = make_distillation(
        images=coloured(), weighting="static", by_sampling=True, steps=steps, batch_size=size
    )
    expected = size * WEIGHTS / WEIGHTS.sum()
    counts = []
    for step in range(steps):
        batch = batch_of(distillation, step)
        assert batch.weights_N.tolist() == [1] * size
        counts.append([places(batch).count(place) for place in distillation.pictures.training_places])
    assert (np.abs(np.array(counts) - expected) < 1).all()
    np.testing.assert_allclose(np.mean(counts, axis=0), expected, atol=0.07)
    assert len(set(map(tuple, counts))) > 1


def test_by_sampling_the_draw_follows_the_weights_of_the_step_and_the_seed() -> None:
    changes: dict[str, Any] = {"images": coloured(), "by_sampling": True, "steps": STEPS, "batch_size": 4}
    distillation = make_distillation(**changes)
    assert 5 not in places(batch_of(distillation, 0))  # its weight is 0
    assert sorted(places(batch_of(distillation, STEPS - 1))) == [0, 2, 3, 5]  # all weigh the same
    orders = {
        seed: [places(batch_of(make_distillation(**changes, seed=seed), step)) for step in range(STEPS)]
        for seed in (0, 1)
    }
    assert orders[0] != orders[1]


def test_every_slot_of_every_step_has_a_view_of_its_own_that_the_seed_fixes() -> None:
    def views(seed: int) -> list[Any]:
        distillation = make_distillation(seed=seed, steps=STEPS)
        return [view for step in range(STEPS) for view in batch_of(distillation, step).views]

    first, again, other = views(0), views(0), views(1)
    assert first == again
    assert len({view.box for view in [*first, *other]}) == 2 * STEPS * 4


def without_batch_statistics() -> Segmenter:
    """A student whose prediction for an image does not depend on the rest of the batch."""
    return student_of("tiny_models:without_batch_norm")


def gradient(distillation: Distillation, batch: DistillBatch) -> torch.Tensor:
    model = without_batch_statistics()
    loss_of(distillation, model, batch).backward()
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])  # type: ignore[union-attr]


def test_far_images_of_weight_0_give_no_gradient_at_all() -> None:
    distillation = make_distillation(weights=(1.0, 0.5, 0.0, 0.0), weighting="static", steps=STEPS)
    batch = batch_of(distillation, 2)
    near = batch.weights_N > 0
    assert near.sum() == 2
    kept = dataclasses.replace(
        batch,
        images_N3HW=batch.images_N3HW[near],
        views=tuple(view for view, keep in zip(batch.views, near, strict=True) if keep),
        weights_N=batch.weights_N[near],
    )
    with_all, without_far = gradient(distillation, batch), gradient(distillation, kept)
    torch.testing.assert_close(with_all, without_far, rtol=1e-4, atol=1e-7)
    equal = dataclasses.replace(batch, weights_N=torch.ones(4))
    assert (gradient(distillation, equal) - with_all).norm() > 0.05 * with_all.norm()


def test_twice_the_weight_is_as_good_as_the_image_twice() -> None:
    distillation = make_distillation(steps=STEPS)
    batch = batch_of(distillation, 0)
    weighted = dataclasses.replace(batch, weights_N=torch.tensor([2.0, 1.0, 1.0, 0.0]))
    order = [0, 0, 1, 2]
    views = tuple(batch.views[i] for i in order)
    repeated = dataclasses.replace(batch, images_N3HW=batch.images_N3HW[order], views=views, weights_N=torch.ones(4))
    torch.testing.assert_close(gradient(distillation, weighted), gradient(distillation, repeated), rtol=1e-4, atol=1e-7)


def test_without_labels_a_student_is_judged_by_its_agreement_with_the_teacher_on_what_is_held_out() -> None:
    images = [draw_image(index, HEIGHT, WIDTH) for index in range(6)]
    distillation = make_distillation(images=images, training_places=(4,), weights=(1.0,), batch_size=2)
    model = copy.deepcopy(distillation.guide.teacher)
    with torch.no_grad():
        model.network.head.weight.add_(0.5 * torch.randn(3, 8, 1, 1, generator=torch.Generator().manual_seed(1)))  # type: ignore[union-attr, operator]
    pixels = torch.from_numpy(np.stack([np.asarray(images[place]) for place in (0, 1, 2, 3, 5)]))
    pixels = pixels.permute(0, 3, 1, 2).double() / 255
    answers, labels = (logits_of(one, pixels).argmax(axis=1) for one in (model, distillation.guide.teacher))
    ious = [
        ((answers == k) & (labels == k)).sum() / ((answers == k) | (labels == k)).sum()
        for k in np.union1d(answers, labels)
    ]
    found = distillation.evaluate(model)
    assert isinstance(found, Agreement)
    assert found.images == 5
    assert found.pixel_agreement == pytest.approx((answers == labels).mean())
    assert found.agreement == pytest.approx(np.mean(ious))
    assert 0.1 < found.agreement < found.pixel_agreement < 0.95


def test_held_out_images_are_shown_whole_and_as_they_are() -> None:
    distillation = make_distillation(batch_size=2)
    seen: list[torch.Tensor] = []
    distillation.guide.teacher.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    distillation.evaluate(student_of())
    spec = distillation.guide.teacher.spec
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (spec.mean, spec.std))
    shown = (torch.cat(seen) * std + mean).permute(0, 2, 3, 1).numpy() * 255
    assert len(shown) == 2
    width = 40 * WIDTH / HEIGHT  # of the 56 that an image of height 40 has
    box = ((56 - width) / 2, 0, (56 + width) / 2, 40)
    for pixels, place in zip(shown, (1, 4), strict=True):
        expected = oracles.crop(np.asarray(distillation.pictures.images[place]), box, HEIGHT, WIDTH)
        assert np.abs(pixels - expected).max() < 1.6  # two roundings, one for each axis


def test_labels_are_what_a_student_is_judged_by_where_there_are_some(labelled_folder: Path) -> None:
    data, model = open_labelled(labelled_folder), student_of()
    found = dataclasses.replace(make_distillation(), val=data).evaluate(model)
    assert found == evaluate(model, data)
    assert found.images == 6


def test_a_student_is_not_judged_where_nothing_is_held_out() -> None:
    assert dataclasses.replace(make_distillation(), held_out=[]).evaluate(student_of()) is None


def test_a_step_whose_loss_is_not_finite_is_the_teachers_fault_if_its_answers_are_not() -> None:
    make_distillation(batch_size=2).check_teacher(0)
    broken = make_distillation(batch_size=2)
    with torch.no_grad():
        broken.guide.teacher.network.head.bias[0] = float("nan")  # type: ignore[union-attr, index, operator]
    with pytest.raises(ModelError, match="the teacher's logits are not finite on the images of step 4"):
        broken.check_teacher(3)
