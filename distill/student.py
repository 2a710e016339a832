"""The student: a new network, one cut out of the teacher, or a model file whose training continues."""

import dataclasses

import torch

from distill.cutting import asked_width, cut_channels
from distill.settings import DistillSettings
from pipeline.models.builders import resolve_builder
from pipeline.models.class_names import order_of
from pipeline.models.files import load_model
from pipeline.models.narrowing import composed
from pipeline.models.segmenter import IMAGENET_MEAN, IMAGENET_STD, ModelSpec, Segmenter, build_model
from storage.errors import ModelError, SettingsError

MODEL_SUFFIX = ".safetensors"


def goes_on(settings: DistillSettings) -> bool:
    """Tell whether the student is a model file to continue from, and not a new network."""
    return settings.student.endswith(MODEL_SUFFIX)


def make_student(settings: DistillSettings, teacher: Segmenter) -> Segmenter:
    """Build the student with random weights from the seed, or load it.

    A new student has ImageNet's normalisation, or that of its pretrained backbone. The teacher's may be of any scale
    (a std of 70 if pixels were divided by 255 after it), at which a network that begins anew does not learn.
    :func:`distill.inheritance.inherit` replaces it where the student inherits what reads the image.

    Raises:
        ModelError: it cannot be built, cut out of the teacher or loaded, or has other classes than the teacher.
        SettingsError: it is cut out of the teacher, and a setting is for another network or out of range.
    """
    if not goes_on(settings):
        spec = _description(settings, teacher)
        torch.manual_seed(settings.seed)
        return build_model(spec, pretrained_backbone=settings.pretrained_backbone)
    student = load_model(settings.student)
    if student.spec.num_classes != teacher.spec.num_classes:
        raise ModelError(
            f"{settings.student} has {student.spec.num_classes} classes, but the teacher {teacher.spec.num_classes}; "
            "give a network name, or a student with the same classes"
        )
    if order_of(student.spec.class_names, teacher.spec.class_names, whose=settings.student, model="the teacher"):
        raise ModelError(
            f"{settings.student} has the teacher's classes in another order; give a network name, or a student of "
            "this teacher"
        )
    return student


def _description(settings: DistillSettings, teacher: Segmenter) -> ModelSpec:
    width = asked_width(settings.student)
    if width is None:
        builder, arguments = resolve_builder(settings.student), dict(settings.student_arguments)
        return dataclasses.replace(
            teacher.spec, builder=builder, arguments=arguments, kept={}, mean=IMAGENET_MEAN, std=IMAGENET_STD
        )
    for field in ("student_arguments", "pretrained_backbone"):
        if getattr(settings, field):
            raise SettingsError(f"{field} is of no use for {settings.student}, which is like the teacher", field=field)
    kept = composed(teacher.spec.kept, cut_channels(teacher, width))
    return dataclasses.replace(teacher.spec, kept=kept, mean=IMAGENET_MEAN, std=IMAGENET_STD)
