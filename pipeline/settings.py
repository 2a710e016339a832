"""What the commands of stage one can be told. Light: no torch, no zarr, so that ``--help`` answers at once."""

import dataclasses
import json
import re
from typing import Annotated, Any, Literal

from storage.errors import SettingsError

DistanceKind = Literal["standardized", "paper"]
Normalization = Literal["robust", "minmax"]
SCORE_METHODS: dict[str, dict[str, Any]] = {"ours": {}, "paper": {"distance": "paper"}}
"""``--method`` of dfss-score: what each stands for."""
Strategy = Literal["ads", "nearest", "random", "confidence", "all"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreSettings:
    """Stage one: measure every image of a corpus against the teacher's BatchNorm statistics."""

    corpus: Annotated[
        str, "Catalogue name (see --list-corpora), folder, tars (shard-{000..127}.tar, a glob) or Parquet"
    ]
    teacher: Annotated[str, "Model file, or official weights such as torchvision:deeplabv3_resnet50@DEFAULT"]
    root: Annotated[str | None, "Where the corpus lies: a folder or an fsspec URL"] = None
    out: Annotated[str, "The score store to make or to continue"] = "scores.zarr"
    shard_size: Annotated[int, "Rows per work unit: what a crash can cost"] = 1024
    batch_size: Annotated[int, "Images per forward pass"] = 16
    layers: Annotated[str, "BatchNorm layers: default, all, or names and globs, comma-separated"] = "default"
    distance: Annotated[DistanceKind, "Free of channel scale (ours), or the paper's norm"] = "standardized"
    embedding_size: Annotated[int, "Numbers per image that the diversity index keeps"] = 128
    entropy: Annotated[
        bool, "Also keep the teacher's mean entropy, for --strategy confidence; needs the whole forward"
    ] = False
    min_side: Annotated[int, "Reject images with a side shorter than this, in pixels"] = 16
    limit: Annotated[int | None, "Only the first images of the corpus"] = None
    workers: Annotated[int, "Decoding threads; 0 for one per core"] = 0
    decoder: Annotated[Literal["cpu", "nvjpeg"], "Where JPEG files are decoded; nvjpeg needs a CUDA device"] = "cpu"
    device: Annotated[str, "auto, cpu, cuda, cuda:1, ..."] = "auto"
    precision: Annotated[Literal["float32", "bfloat16"], "Of the forward pass; statistics are always float32"] = (
        "float32"
    )
    overwrite: Annotated[
        bool, "Replace a store that was made with other settings (with the same ones it continues)"
    ] = False
    retry_failed: Annotated[bool, "Score again the shards that hold unreadable or rejected images"] = False

    def __post_init__(self) -> None:
        for name in ("shard_size", "batch_size", "embedding_size", "min_side"):
            _at_least_one(name, getattr(self, name))
        if self.workers < 0:
            raise SettingsError(
                f"workers is {self.workers}; give 0 for one per core, or a number of threads (--workers)"
            )
        if self.limit is not None:
            _at_least_one("limit", self.limit)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SelectSettings:
    """ADS: order the scored images and keep the first of them."""

    shards: Annotated[str, "Complete score store"] = "scores.zarr"
    budget: Annotated[str, "How many: a count, or a fraction of the scored images such as 0.1 or 10%"] = "0.1"
    strategy: Annotated[Strategy, "Close and diverse (ads), or a baseline"] = "ads"
    diversity: Annotated[
        float, "How much a crowded cell pushes its images back; 0 keeps only the near-duplicate rule"
    ] = 0.1
    duplicate: Annotated[float, "Cosine similarity of embeddings from which an image counts as a near-duplicate"] = (
        0.995
    )
    seed: Annotated[int, "Fixes the random strategy"] = 0
    out: Annotated[str | None, "Selection file [default: selection.parquet beside the store]"] = None

    def __post_init__(self) -> None:
        if self.diversity < 0:
            raise SettingsError(f"diversity is {self.diversity}; give 0 or more")
        if not 0 < self.duplicate <= 1:
            raise SettingsError(f"duplicate is {self.duplicate}; give a similarity above 0, at most 1")
        if self.seed < 0:
            raise SettingsError(f"seed is {self.seed}; give 0 or more")
        parse_budget(self.budget)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImportSettings:
    """Make a model file from weights that come from elsewhere."""

    builder: Annotated[str, "torchvision:NAME, smp:ARCHITECTURE/ENCODER, package.module:factory, or a short name"]
    weights: Annotated[str, "State dict: .pth or .pt (read without unpickling code) or .safetensors"]
    out: Annotated[str, "The model file to write"]
    num_classes: Annotated[int | None, "Number of classes [default: as many as --class-names has]"] = None
    class_names: Annotated[
        str | None, "Names, comma-separated or a file of 'id name' lines [default: class 0, 1, ...]"
    ] = None
    image_size: Annotated[str, "HEIGHTxWIDTH in pixels that the network was trained at"] = "512x512"
    mean: Annotated[str, "Per RGB channel, for values in [0, 1]"] = "0.485,0.456,0.406"
    std: Annotated[str, "Per RGB channel, for values in [0, 1]"] = "0.229,0.224,0.225"
    arguments: Annotated[str, "Further arguments of the builder, as JSON"] = "{}"
    overwrite: Annotated[bool, "Replace the file if it is there"] = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class SynthesisSettings:
    """The rival: images made by optimisation to the teacher's BatchNorm statistics, instead of chosen ones."""

    teacher: Annotated[str, "Model file, or official weights such as torchvision:deeplabv3_resnet50@DEFAULT"]
    out: Annotated[str, "Folder of images to make"] = "synthetic"
    count: Annotated[int | None, "How many images [default: all of --selection; 256 from noise]"] = None
    steps: Annotated[int, "Optimiser steps on each batch"] = 100
    batch_size: Annotated[int, "Images whose statistics are matched together"] = 32
    lr: Annotated[float, "Learning rate of Adam, in standard deviations of a pixel"] = 0.05
    tv: Annotated[float, "Weight of the total variation"] = 1.0
    l2: Annotated[float, "Weight of the mean square of the normalised pixels"] = 0.01
    selection: Annotated[str | None, "Begin from these selected photographs [default: from noise]"] = None
    shards: Annotated[str, "Score store of the selection"] = "scores.zarr"
    root: Annotated[str | None, "Where its corpus lies now, if not where it was scored"] = None
    seed: Annotated[int, "Fixes noise, shifts and mirroring"] = 0
    device: Annotated[str, "auto, cpu, cuda, cuda:1, ..."] = "auto"
    overwrite: Annotated[bool, "Replace the folder if it is there"] = False

    def __post_init__(self) -> None:
        for name in ("count", "steps", "batch_size"):
            if getattr(self, name) is not None:
                _at_least_one(name, getattr(self, name))
        for name in ("lr", "tv", "l2", "seed"):
            if getattr(self, name) < 0:
                raise SettingsError(f"{name} is {getattr(self, name)}; it cannot be negative")


def _at_least_one(name: str, value: int) -> None:
    if value < 1:
        raise SettingsError(f"{name} is {value}; give at least 1 (--{name.replace('_', '-')})")


def parse_size(text: str) -> tuple[int, int]:
    """``360x480`` (also ``360,480`` and ``360 480``) -> (height, width); ``512`` -> (512, 512)."""
    numbers = [int(number) for number in re.findall(r"\d+", text)]
    if not re.fullmatch(r"\s*\d+(\s*[x, ]\s*\d+)?\s*", text) or min(numbers) < 1:
        raise SettingsError(f"--image-size {text!r} is not HEIGHTxWIDTH in pixels, such as 360x480")
    return numbers[0], numbers[-1]


def parse_numbers(text: str, name: str) -> tuple[float, float, float]:
    """``0.5,0.5,0.5`` -> three floats."""
    try:
        red, green, blue = (float(number) for number in text.replace(",", " ").split())
    except ValueError:
        raise SettingsError(f"--{name} {text!r} is not three numbers, such as 0.485,0.456,0.406") from None
    return red, green, blue


def parse_arguments(text: str) -> dict[str, Any]:
    """A builder's further arguments: a JSON object."""
    try:
        arguments = json.loads(text)
    except json.JSONDecodeError as error:
        raise SettingsError(f'arguments {text!r} are not JSON ({error}); write for example {{"width": 64}}') from error
    if not isinstance(arguments, dict):
        raise SettingsError(f'arguments {text!r} must be a JSON object, such as {{"width": 64}}')
    return arguments


def parse_budget(text: str) -> int | float:
    """``20000`` -> a count; ``0.1``, ``1.0`` and ``10%`` -> a fraction of the scored images."""
    try:
        if text.endswith("%"):
            budget: int | float = float(text[:-1]) / 100
        else:
            budget = int(text) if re.fullmatch(r"[+-]?\d+", text.strip()) else float(text)
    except ValueError:
        raise SettingsError(f"--budget {text!r} is neither a count (20000) nor a fraction (0.1 or 10%)") from None
    if not (budget >= 1 if isinstance(budget, int) else 0 < budget <= 1):
        raise SettingsError(f"--budget {text} must be a count of at least 1, or a fraction above 0 and at most 1")
    return budget
