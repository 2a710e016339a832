"""What ``dfss-train``, ``dfss-distill`` and ``dfss-eval`` can be told. Light: no torch."""

import dataclasses
from typing import Annotated, Any, Literal

from pipeline.settings import Normalization
from storage.errors import SettingsError

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
"""``--method`` of dfss-distill: what each stands for."""
Device = Annotated[str, "auto, cpu, cuda, cuda:1, ..."]


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimisationSettings:
    """What every training run can be told."""

    steps: Annotated[int, "Optimiser steps"] = 2000
    batch_size: Annotated[int, "Images per step"] = 8
    lr: Annotated[float, "Peak learning rate of AdamW"] = 1e-3
    weight_decay: Annotated[float, "Weight decay of AdamW"] = 1e-4
    warmup: Annotated[float, "Share of the steps in which the learning rate rises; a cosine takes it back to 0"] = 0.05
    min_scale: Annotated[float, "Smallest random crop, as a share of the largest one's side"] = 0.5
    jitter: Annotated[float, "Strength of random brightness, contrast and saturation; 0 for none"] = 0.3
    seed: Annotated[int, "Fixes initial weights, order and views"] = 0
    val: Annotated[str | None, "Folder with images/ and labels/ to report mIoU on; never trained or selected on"] = None
    eval_every: Annotated[int, "Steps between validations; 0 for five in the whole run"] = 0
    checkpoint_every: Annotated[int, "Steps between checkpoints"] = 200
    device: Device = "auto"
    precision: Annotated[Literal["float32", "bfloat16"], "Precision of the forward passes"] = "float32"
    resume: Annotated[bool, "Continue the run in --out from its checkpoint, if it has one"] = False
    overwrite: Annotated[bool, "Replace the run in --out (with --resume: only if its settings differ)"] = False

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise SettingsError(f"{name} is {getattr(self, name)}; give at least 1 (--{name.replace('_', '-')})")
        for name in ("eval_every", "seed", "jitter", "weight_decay"):
            if getattr(self, name) < 0:
                raise SettingsError(f"{name} is {getattr(self, name)}; it cannot be negative")
        if self.lr <= 0:
            raise SettingsError(f"lr is {self.lr}; give a number above 0")
        if not 0 <= self.warmup < 1:
            raise SettingsError(f"warmup is {self.warmup}; give a share from 0 to below 1")
        if not 0 < self.min_scale <= 1:
            raise SettingsError(f"min_scale is {self.min_scale}; give a share above 0, at most 1")
        if self.jitter >= 1:
            raise SettingsError(f"jitter is {self.jitter}; give a number below 1")

    @property
    def validate_every(self) -> int:
        """Steps between validations."""
        return self.eval_every or max(1, -(-self.steps // 5))


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainSettings(OptimisationSettings):
    """Supervised training on labelled images: a teacher, or a reference student."""

    data: Annotated[str, "Folder with images/ and labels/ (single-channel PNG of class ids, 255 = void)"]
    builder: Annotated[
        str, "Network: lraspp_mobilenet_v3_large, Unet/resnet18, torchvision:NAME, package.module:factory"
    ]
    class_names: Annotated[
        str | None, "Names, comma-separated or a file of 'id name' lines [default: DATA's classes.txt]"
    ] = None
    image_size: Annotated[str, "HEIGHTxWIDTH in pixels that the network is trained at"] = "192x256"
    arguments: Annotated[str, "Further arguments of the builder, as JSON"] = "{}"
    pretrained_backbone: Annotated[bool, "Start from the builder's ImageNet backbone"] = False
    out: Annotated[str, "Run folder; the model becomes OUT/model.safetensors"] = "runs/teacher"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistillSettings(OptimisationSettings):
    """Stage two: WDPD on the selected images."""

    shards: Annotated[str, "Score store that dfss-score made"] = "scores.zarr"
    selection: Annotated[
        str | None, "Selection of dfss-select [default: the one beside the store, else ADS of --budget]"
    ] = None
    budget: Annotated[str | None, "How many images: a count, or a fraction of the scored ones such as 0.1 or 10%"] = (
        None
    )
    teacher: Annotated[str | None, "Teacher's model file [default: the one that the store was scored with]"] = None
    root: Annotated[str | None, "Where the corpus lies now, if not where it was scored"] = None
    student: Annotated[
        str, "Network: lraspp_mobilenet_v3_large, Unet/mobilenet_v2, a builder, or a model file to go on from"
    ] = "lraspp_mobilenet_v3_large"
    student_arguments: Annotated[str, "Further arguments of the student's builder, as JSON"] = "{}"
    pretrained_backbone: Annotated[bool, "Start from the student builder's ImageNet backbone"] = False
    inherit: Annotated[
        bool, "Begin with the teacher's modules of the same name and shapes; keep what sees the same as they are"
    ] = True
    features: Annotated[
        float, "Weight of the distance between what inherited BatchNorm layers and the teacher's see; 0 for none"
    ] = 1.0
    weighting: Annotated[
        Weighting, "Weight of each image: WDPD, its start for good (static), none, or WDPD upside down"
    ] = "wdpd"
    normalization: Annotated[
        Normalization, "Distance to weight: over the 5 to 95 % quantiles, or the paper's min-max"
    ] = "robust"
    pacing: Annotated[Pacing, "How the weights go from distance to uniform over the run"] = "linear"
    by_sampling: Annotated[bool, "Draw images in proportion to their weight instead of weighting their loss"] = False
    loss: Annotated[Loss, "KL divergence by pixel (the paper's), by channel, or L1 of the logits"] = "kl"
    temperature: Annotated[float, "Temperature of the KL divergences"] = 1.0
    out: Annotated[str, "Run folder; the model becomes OUT/student.safetensors"] = "runs/student"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.temperature <= 0:
            raise SettingsError(f"temperature is {self.temperature}; give a number above 0")
        if self.features < 0:
            raise SettingsError(f"features is {self.features}; it cannot be negative")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalSettings:
    """Evaluation of one or more models on labelled images."""

    model: Annotated[list[str], "Model file, or NAME=FILE; give it again for a table of several"]
    data: Annotated[str, "Folder with images/ and labels/ (255 = void)"]
    json: Annotated[str | None, "Also write the figures to this file"] = None
    batch_size: Annotated[int, "Images per forward pass"] = 8
    device: Device = "auto"

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise SettingsError(f"batch_size is {self.batch_size}; give at least 1 (--batch-size)")
