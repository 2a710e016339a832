"""The settings of ``dfss-train``, ``dfss-distill`` and ``dfss-eval``. This module does not import torch."""

import dataclasses
from typing import Annotated, Any, Literal

from pipeline.models.class_names import ClassNames
from pipeline.settings import Device, Normalization, Precision
from storage.commandline.declaration import Checked
from storage.commandline.values import (
    DATA,
    METHOD,
    MODEL,
    OPTIMISATION,
    RUN,
    Amount,
    Arguments,
    BatchSize,
    Budget,
    Count,
    Local,
    NamedFiles,
    Names,
    Seed,
    Size,
    Whole,
    above,
    at_least,
    at_most,
    below,
)

Weighting = Literal["wdpd", "static", "uniform", "reversed"]
Pacing = Literal["linear", "cosine", "step"]
Loss = Literal["kl", "channel", "l1"]
DISTILL_METHODS: dict[str, dict[str, Any]] = {
    "ours": {},
    "paper": {
        "weighting": "wdpd",
        "normalization": "minmax",
        "pacing": "linear",
        "by_sampling": False,
        "loss": "kl",
        "inherit": False,
        "features": 0.0,
    },
}
"""The settings that each ``--method`` of dfss-distill stands for."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimisationSettings(Checked):
    """The settings of every training run."""

    steps: Annotated[Count, "Number of optimiser steps", OPTIMISATION] = 2000
    batch_size: Annotated[BatchSize, "Images per step", OPTIMISATION] = 8
    lr: Annotated[float, above(0), "Peak learning rate of AdamW", OPTIMISATION] = 1e-3
    weight_decay: Annotated[Amount, "Weight decay of AdamW", OPTIMISATION] = 1e-4
    warmup: Annotated[
        float,
        at_least(0),
        below(1),
        "Share of the steps in which the learning rate rises; then it falls to 0 along a cosine",
        OPTIMISATION,
    ] = 0.05
    clip: Annotated[Amount, "Largest norm of the gradient; 0 for any", OPTIMISATION] = 0.0
    min_scale: Annotated[
        float, above(0), at_most(1), "Smallest side of a random crop, as a share of the largest", OPTIMISATION
    ] = 0.5
    jitter: Annotated[
        float, at_least(0), below(1), "Strength of random brightness, contrast and saturation; 0 for none", OPTIMISATION
    ] = 0.3
    seed: Annotated[Seed, "Seed of initial weights, order and views", OPTIMISATION] = 0
    val: Annotated[
        Local | None, "Folder with images/ and labels/ to report mIoU on; not used in training or selection", DATA
    ] = None
    eval_every: Annotated[Whole, "Steps between validations; 0: five; one more is after 1 % of all", RUN] = 0
    checkpoint_every: Annotated[Count, "Steps between checkpoints", RUN] = 200
    keep_checkpoint: Annotated[bool, "Keep the checkpoint of a finished run", RUN] = False
    device: Device = "auto"
    precision: Annotated[Precision, "Precision of the forward passes", RUN] = "float32"
    resume: Annotated[bool, "Continue the run in --out where it was interrupted", RUN] = False
    overwrite: Annotated[
        bool, "Replace the run in --out; with --resume only if it is finished or has other settings", RUN
    ] = False

    def validates(self, done: int) -> bool:
        """Whether the model is validated after ``done`` steps: at intervals, at the end, and after exactly 1 %."""
        interval = self.eval_every or max(1, -(-self.steps // 5))
        return done % interval == 0 or done == self.steps or 100 * done == self.steps


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainSettings(OptimisationSettings):
    """Supervised training on labelled images: a teacher, or a reference student."""

    data: Annotated[Local, "Folder with images/ and labels/ (single-channel PNG of class ids, 255 = void)", DATA]
    builder: Annotated[
        str, "Network: lraspp_mobilenet_v3_large, Unet/resnet18, torchvision:NAME, package.module:factory", MODEL
    ]
    class_names: Annotated[
        ClassNames | None, "Class names, or a file of 'id name' lines [default: classes.txt of DATA]", DATA
    ] = None
    image_size: Annotated[Size, "Image size in pixels that the network is trained for", MODEL] = (192, 256)
    arguments: Annotated[Arguments, "Further arguments of the builder", MODEL] = dataclasses.field(default_factory=dict)
    pretrained_backbone: Annotated[bool, "Initialise the backbone from the builder's ImageNet weights", MODEL] = False
    out: Annotated[Local, "Run folder; the model is OUT/model.safetensors", DATA] = "runs/teacher"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistillSettings(OptimisationSettings):
    """Stage two: WDPD (Weighted Distribution Progressive Distillation) on the selected images."""

    shards: Annotated[Local, "Score store that dfss-score made", DATA] = "scores.zarr"
    selection: Annotated[
        Local | None, "Selection of dfss-select [default: the one beside the store, else ADS of --budget]", DATA
    ] = None
    budget: Annotated[Budget | None, "Number of images, or fraction of the scored ones such as 0.1 or 10%", METHOD] = (
        None
    )
    teacher: Annotated[
        Local | None, "Teacher's model file [default: the one that the store was scored with]", MODEL
    ] = None
    root: Annotated[str | None, "Where the corpus lies now, if it has moved since it was scored", DATA] = None
    student: Annotated[
        str,
        "Network: lraspp_mobilenet_v3_large, Unet/mobilenet_v2, a builder, teacher:WIDTH, or a model file to continue",
        MODEL,
    ] = "lraspp_mobilenet_v3_large"
    student_arguments: Annotated[Arguments, "Further arguments of the student's builder", MODEL] = dataclasses.field(
        default_factory=dict
    )
    pretrained_backbone: Annotated[bool, "Initialise the backbone from the builder's ImageNet weights", MODEL] = False
    inherit: Annotated[
        bool, "Initialise matching modules from the teacher; freeze those with the teacher's inputs", METHOD
    ] = True
    features: Annotated[
        Amount,
        "Weight of the feature loss at the inputs of inherited BatchNorm layers; 0 means no such loss",
        METHOD,
    ] = 1.0
    adapters: Annotated[
        Amount, "Weight of the feature loss through 1x1 convolutions, for a student of another architecture", METHOD
    ] = 0.0
    adapter_pairs: Annotated[
        Names, "BatchNorm layers that adapters compare: auto, or STUDENT.LAYER=TEACHER.LAYER", METHOD
    ] = ("auto",)
    weighting: Annotated[
        Weighting, "Weights of the images: by WDPD, by distance throughout (static), equal, or WDPD reversed", METHOD
    ] = "wdpd"
    normalization: Annotated[
        Normalization, "Weights from distances: by the 5 and 95 % quantiles, or by the paper's min-max", METHOD
    ] = "robust"
    pacing: Annotated[Pacing, "How the weights change from distances to uniform during the run", METHOD] = "linear"
    by_sampling: Annotated[
        bool, "Draw images in proportion to their weights instead of weighting their losses", METHOD
    ] = False
    hard: Annotated[
        float, at_least(0), at_most(1), "Share of each batch that comes from the hardest quarter of the images", METHOD
    ] = 0.0
    loss: Annotated[Loss, "Loss: KL divergence by pixel (the paper's) or by channel, or L1 of logits", METHOD] = "kl"
    temperature: Annotated[float, above(0), "Temperature of the KL divergences", METHOD] = 1.0
    views: Annotated[
        Whole | None,
        "Views of each image that the teacher is asked about once; 0: new views in every step [default: 8 if that "
        "halves the teacher's work and fits, else 0]",
        METHOD,
    ] = None
    mixup: Annotated[
        float, at_least(0), at_most(1), "Share of the views that are mixed with a view of another image", METHOD
    ] = 0.0
    answers: Annotated[
        Local | None, "Folder of the teacher's answers, shared by runs [default: answers beside the run]", DATA
    ] = None
    answer_bits: Annotated[Literal["16", "8"], "Bits of a value in the teacher's answers", RUN] = "16"
    cache_gib: Annotated[Amount, "Largest size of the teacher's answers, in GiB", RUN] = 16.0
    out: Annotated[Local, "Run folder; the model is OUT/student.safetensors", DATA] = "runs/student"


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalSettings(Checked):
    """Evaluation of one or more models on labelled images."""

    model: Annotated[NamedFiles, "Model file, or NAME=FILE; repeat the option to compare several", MODEL]
    data: Annotated[Local, "Folder with images/ and labels/ (255 = void)", DATA]
    json: Annotated[Local | None, "Also write all figures to this JSON file", DATA] = None
    metrics: Annotated[Local | None, "Also write only mIoU and accuracy, by model, to this JSON file for DVC", DATA] = (
        None
    )
    classes: Annotated[
        Local | None, "Also write the IoU of each class to this CSV file (model, class, iou), for a plot", DATA
    ] = None
    batch_size: Annotated[BatchSize, "Images per forward pass", RUN] = 8
    device: Device = "auto"
