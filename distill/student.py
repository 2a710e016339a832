"""The student: a new network, one cut out of the teacher, or a model file whose training continues."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

import torch

from distill.cutting import asked_width, cut_channels
from distill.settings import DistillSettings
from pipeline.models.builders import resolve_builder
from pipeline.models.class_names import order_of
from pipeline.models.files import IN_RUNS, load_model
from pipeline.models.hooks import adapt
from pipeline.models.narrowing import composed
from pipeline.models.segmenter import IMAGENET_MEAN, IMAGENET_STD, ModelSpec, Segmenter, build_model
from storage.errors import ModelError, SettingsError

logger = logging.getLogger(__name__)
MODEL_SUFFIX = ".safetensors"
OWN_INPUT: dict[str, Any] = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD, "factor": 1.0}
"""The normalisation of a network that begins anew."""
OWN_OUTPUT: dict[str, Any] = {"channels": "rgb", "output": "", "network_classes": 0, "members": ()}
"""What another network than the teacher's reads and returns."""


def goes_on(settings: DistillSettings) -> bool:
    """Tell whether the student is a model file or a run to continue from, and not a new network."""
    return settings.student.endswith(MODEL_SUFFIX) or any((Path(settings.student) / name).is_file() for name in IN_RUNS)


def make_student(settings: DistillSettings, teacher: Segmenter) -> Segmenter:
    """Build the student with random weights from the seed, or load it.

    A new student has ImageNet's normalisation, or that of its pretrained backbone. The teacher's may be of any scale
    (multiplied by 1/255 after it), at which a network that begins anew does not learn.
    :func:`distill.inheritance.inherit` replaces it where the student inherits what reads the image.

    Raises:
        ModelError: it cannot be built, cut out of the teacher or loaded, or has other classes than the teacher.
        SettingsError: it is cut out of the teacher, and a setting is for another network or out of range.
    """
    if not goes_on(settings):
        spec = _description(settings, teacher)
        torch.manual_seed(settings.seed)
        return _fitting(build_model(spec, pretrained_backbone=settings.pretrained_backbone), teacher)
    student = _fitting(load_model(settings.student), teacher)
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


def _fitting(student: Segmenter, teacher: Segmenter) -> Segmenter:
    """The student, with padding if its network does not take the teacher's size, and grey if it reads nothing else.

    Raises:
        ModelError: it takes the images in neither way.
    """
    size = teacher.spec.image_size
    adapt(student, size, grey=teacher.spec.channels == "grey")
    if student.padded(size) != size:
        padded = "{}x{}".format(*student.padded(size))
        logger.info("the student pads images to %s, because its network needs multiples", padded)
    return student


def _description(settings: DistillSettings, teacher: Segmenter) -> ModelSpec:
    width = asked_width(settings.student)
    if width is None:
        builder, arguments = resolve_builder(settings.student), dict(settings.student_arguments)
        spec = dataclasses.replace(teacher.spec, builder=builder, arguments=arguments, kept={}, **OWN_INPUT)
        # A network of the teacher's builder reads the channels and has the outputs that the teacher's has.
        return spec if builder == teacher.spec.builder else dataclasses.replace(spec, **OWN_OUTPUT)
    for field in ("student_arguments", "pretrained_backbone"):
        if getattr(settings, field):
            raise SettingsError(f"{field} is of no use for {settings.student}, which is like the teacher", field=field)
    kept = composed(teacher.spec.kept, cut_channels(teacher, width))
    return dataclasses.replace(teacher.spec, kept=kept, **OWN_INPUT)
