"""The student: a new network, or one to go on from."""

import dataclasses

import torch

from distill.settings import DistillSettings
from pipeline.models.builders import resolve_builder
from pipeline.models.files import load_model
from pipeline.models.segmenter import Segmenter, build_model
from pipeline.settings import parse_arguments
from storage.errors import ModelError

MODEL_SUFFIX = ".safetensors"


def _student(settings: DistillSettings, teacher: Segmenter) -> Segmenter:
    if settings.student.endswith(MODEL_SUFFIX):
        student = load_model(settings.student)
        if student.spec.num_classes != teacher.spec.num_classes:
            raise ModelError(
                f"{settings.student} has {student.spec.num_classes} classes, the teacher {teacher.spec.num_classes}; "
                "begin from a network name or a student of the same classes"
            )
        return student
    torch.manual_seed(settings.seed)
    arguments = parse_arguments(settings.student_arguments)
    spec = dataclasses.replace(teacher.spec, builder=resolve_builder(settings.student), arguments=arguments)
    return build_model(spec, pretrained_backbone=settings.pretrained_backbone)
