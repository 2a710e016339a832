"""Students of teachers of everyday kinds: grey or BGR input, merged, dropped or sigmoid classes, sizes to pad."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import HEIGHT, WIDTH
from stages import score_folder
from torch.nn import functional as F

from distill.answers import LOGITS, Guide
from distill.distillation import distill
from distill.evaluation import evaluate
from distill.inheritance import inherit
from distill.labelled import open_labelled
from distill.settings import DistillSettings
from distill.student import make_student
from pipeline.models.files import load_model, save_model
from pipeline.models.hooks import adapt
from pipeline.models.segmenter import ModelSpec, Segmenter, build_model
from pipeline.settings import SynthesisSettings
from pipeline.synthesis import synthesize

SMALL = {"encoder_depth": 3, "decoder_channels": [16, 8, 8]}
KINDS: dict[str, dict[str, Any]] = {
    "bgr": {"channels": "bgr", "factor": 1 / 255, "std": (0.27, 0.28, 0.29)},
    "grey": {"arguments": {**SMALL, "in_channels": 1}, "channels": "grey"},
    "merged": {"network_classes": 6, "members": ((0,), (2, 3), (5,))},
    "sigmoid": {"network_classes": 1, "num_classes": 2, "class_names": ("sky", "road")},
    "padded": {"image_size": (HEIGHT + 2, WIDTH + 1)},
}


def teacher_of(kind: str, seed: int = 0) -> Segmenter:
    torch.manual_seed(seed)
    fields: dict[str, Any] = {
        "builder": "smp:Unet/resnet18", "num_classes": 3, "class_names": ("sky", "road", "car"),
        "image_size": (HEIGHT, WIDTH), "arguments": SMALL,
    }  # fmt: skip
    model = build_model(ModelSpec(**{**fields, **KINDS[kind]}))
    adapt(model)
    model.train()
    with torch.no_grad():
        for _ in range(5):
            model(torch.rand(4, 3, *model.spec.image_size))
    return model.eval()


def settings(student: str, **changes: Any) -> DistillSettings:
    return DistillSettings(student=student, steps=2, batch_size=4, eval_every=2, **changes)


@pytest.mark.parametrize("kind", KINDS)
def test_a_student_of_the_teachers_builder_reads_and_answers_as_the_teacher_does(kind: str) -> None:
    teacher = teacher_of(kind)
    deeper = {**teacher.spec.arguments, "decoder_channels": [24, 8, 8]}
    student = make_student(settings("Unet/resnet18", student_arguments=deeper), teacher)
    assert student.spec.std != (0.27, 0.28, 0.29)
    inheritance = inherit(student, teacher)
    assert inheritance.counts.frozen > 10  # the encoder, whose input is the teacher's
    fields = ("mean", "std", "factor", "channels", "network_classes", "members", "multiple")
    assert all(getattr(student.spec, name) == getattr(teacher.spec, name) for name in fields)
    images = torch.rand(2, 3, *teacher.spec.image_size)
    assert student(images).shape == teacher(images).shape
    torch.testing.assert_close(student.normalise(images), teacher.normalise(images))


@pytest.mark.parametrize("kind", KINDS)
def test_any_other_student_has_one_logit_a_class_and_sees_colours(kind: str) -> None:
    teacher = teacher_of(kind)
    student = make_student(settings("tiny_models:tiny"), teacher)
    assert (student.spec.channels, student.spec.members, student.spec.network_classes) == ("rgb", (), 0)
    assert student.spec.factor == 1
    inherit(student, teacher)
    images = torch.rand(2, 3, *teacher.spec.image_size)
    assert student(images).shape == teacher(images).shape


def test_a_student_that_takes_one_channel_alone_sees_what_its_grey_teacher_sees() -> None:
    teacher = teacher_of("grey")
    teacher.describe(image_size=(32, 32))
    student = make_student(settings("FPN/resnet18", student_arguments={"in_channels": 1}), teacher)
    assert student.spec.channels == "grey"
    assert inherit(student, teacher).counts.frozen > 0


def test_a_student_pads_where_its_network_needs_multiples_and_the_user_is_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    teacher = teacher_of("bgr")
    teacher.describe(image_size=(30, 44))
    with caplog.at_level(logging.INFO):
        student = make_student(settings("FPN/resnet18"), teacher)
    assert "pads images to 32x64" in caplog.text
    images = torch.rand(1, 3, 30, 44)
    student.eval()
    expected = student.network(F.pad(student.normalise(images), (0, 0, 0, 0)))[:, :, :30, :44]
    torch.testing.assert_close(student(images), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_coarse_answers_are_enlarged_to_the_teachers_logits(kind: str) -> None:
    teacher = teacher_of(kind)
    guide = Guide.of(teacher, [], "float32")
    images = torch.rand(2, 3, *teacher.spec.image_size)
    answers = guide(images)
    found = guide.enlargement.enlarge(answers[LOGITS], teacher.spec.image_size)
    torch.testing.assert_close(found, teacher(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "student"),
    [
        ("grey", "Unet/resnet18"),
        ("merged", "teacher:0.5"),
        ("sigmoid", "tiny_models:tiny"),
        ("padded", "tiny_models:tiny"),
    ],
)
def test_a_teacher_of_every_kind_is_scored_distilled_and_evaluated(
    kind: str, student: str, image_folder: Path, labelled_folder: Path
) -> None:
    teacher = teacher_of(kind)
    save_model(teacher, Path("teacher.safetensors"))
    score_folder(image_folder, "teacher.safetensors", limit=8)
    arguments = {**teacher.spec.arguments, "decoder_channels": [8, 8, 8]} if student == "Unet/resnet18" else {}
    result = distill(settings(student, student_arguments=arguments, budget=6, out="runs/one"))
    images = torch.rand(2, 3, *teacher.spec.image_size)
    logits = load_model(result.path)(images)
    assert logits.shape == teacher(images).shape
    assert logits.isfinite().all()
    if kind != "sigmoid":  # the labels have three classes
        evaluated = evaluate(load_model("runs/one"), open_labelled(str(labelled_folder)))
        assert evaluated.images == 6


def test_a_run_folder_is_a_student_to_continue(image_folder: Path) -> None:
    save_model(teacher_of("bgr"), Path("teacher.safetensors"))
    score_folder(image_folder, "teacher.safetensors", limit=8)
    first = distill(settings("tiny_models:tiny", budget=6, out="runs/one"))
    again = distill(settings("runs/one", budget=6, out="runs/two"))
    assert load_model(again.path).spec == load_model(first.path).spec


@pytest.mark.parametrize("kind", ["grey", "bgr", "padded"])
def test_images_are_made_by_optimisation_for_a_teacher_of_every_input(kind: str) -> None:
    save_model(teacher_of(kind), Path("teacher.safetensors"))
    made = synthesize(
        SynthesisSettings(teacher="teacher.safetensors", count=2, steps=8, batch_size=2, lr=0.05, tv=0, l2=0)
    )
    assert made.distance_after < made.distance_before


def test_a_student_cut_out_of_a_merged_teacher_keeps_its_merged_classes() -> None:
    teacher = teacher_of("merged")
    student = make_student(settings("teacher:0.5"), teacher)
    assert student.spec.members == teacher.spec.members
    assert student(torch.rand(1, 3, HEIGHT, WIDTH)).shape[1] == 3


def test_another_normalisation_is_not_carried_over_to_another_network() -> None:
    teacher = teacher_of("bgr")
    other = dataclasses.replace(teacher.spec, builder="tiny_models:tiny", arguments={})
    student = make_student(settings("tiny_models:tiny"), Segmenter(teacher.network, other))
    assert student.spec.channels == "bgr"  # the builder is the teacher's
    assert student.spec.std == (0.229, 0.224, 0.225)
