"""The settings of stage one. This module imports neither torch nor zarr, so that ``--help`` answers at once."""

import dataclasses
from typing import Annotated, Any, Literal

from pipeline.models.class_names import ClassNames
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
    Groups,
    Labels,
    Local,
    Names,
    Ratio,
    Seed,
    Size,
    Triple,
    Whole,
    above,
    at_most,
)

DistanceKind = Literal["standardized", "paper"]
Normalization = Literal["robust", "minmax"]
Strategy = Literal["ads", "nearest", "random", "confidence", "all"]
Precision = Literal["float32", "bfloat16"]
Channels = Literal["rgb", "bgr", "grey"]
"""What a network reads of an image: its colours in this order, or their luma."""
SCORE_METHODS: dict[str, dict[str, Any]] = {"ours": {}, "paper": {"distance": "paper"}}
"""The settings that each ``--method`` of dfss-score stands for."""

Device = Annotated[str, "Device: auto, cpu, cuda, cuda:1, ...", RUN]
Teacher = Annotated[Local, "Model file, or official weights such as torchvision:deeplabv3_resnet50@DEFAULT", MODEL]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreSettings(Checked):
    """Stage one: measure every image of a corpus against the teacher's BatchNorm statistics."""

    corpus: Annotated[
        str,
        "Catalogue name (see --list-corpora), folder, glob, text file of paths, tars (shard-{000..127}.tar) or Parquet",
        DATA,
    ]
    teacher: Teacher
    root: Annotated[str | None, "Where the corpus lies: a folder or an fsspec URL", DATA] = None
    out: Annotated[Local, "The score store to make or to continue", DATA] = "scores.zarr"
    shard_size: Annotated[Count, at_most(2**20), "Rows per work unit; a continued run skips finished units", RUN] = 1024
    batch_size: Annotated[BatchSize, "Images per forward pass", RUN] = 16
    layers: Annotated[Names, "BatchNorm layers: default, all, or names and globs", METHOD] = ("default",)
    distance: Annotated[DistanceKind, "Distance: free of channel scale (ours), or the paper's", METHOD] = "standardized"
    embedding_size: Annotated[Count, "Largest size of an embedding in the diversity index", METHOD] = 128
    entropy: Annotated[
        bool, "Also keep the teacher's mean entropy, for --strategy confidence; takes a full forward pass", METHOD
    ] = False
    include: Annotated[str | None, "Glob of the image files or tar members that count, such as '*.jpg'", DATA] = None
    column: Annotated[str | None, "Column of Parquet files that holds the images", DATA] = None
    max_pixels: Annotated[
        Count, "Do not decode images of more pixels; a JPEG counts at the fraction that it is decoded at", DATA
    ] = 89_478_485
    failures: Annotated[Local | None, "File to list all unreadable and rejected images in (tab-separated)", DATA] = None
    min_side: Annotated[Count, "Reject images with a side shorter than this, in pixels", DATA] = 16
    limit: Annotated[Count | None, "Score only this many images, the first of the corpus", DATA] = None
    workers: Annotated[Whole, "Number of decoding threads; 0 means one per core", RUN] = 0
    patience: Annotated[Count, "Seconds after which an image that is being read or decoded is given up", RUN] = 120
    decoder: Annotated[Literal["cpu", "nvjpeg"], "Where JPEG files are decoded; nvjpeg needs a CUDA device", RUN] = (
        "cpu"
    )
    device: Device = "auto"
    precision: Annotated[Precision, "Precision of the forward pass; statistics are always float32", RUN] = "float32"
    overwrite: Annotated[
        bool, "Replace a store of other settings or of a corpus that has changed since; any other is continued", RUN
    ] = False
    retry_failed: Annotated[bool, "Score again the shards that hold unreadable or rejected images", RUN] = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class SelectSettings(Checked):
    """ADS (Approximate Distribution Sampling): order the scored images and keep the first of them."""

    shards: Annotated[Local, "Complete score store", DATA] = "scores.zarr"
    budget: Annotated[Budget, "Number of images, or fraction of the scored ones such as 0.1 or 10%", METHOD] = 0.1
    strategy: Annotated[Strategy, "Strategy: close and diverse images (ads), or a baseline", METHOD] = "ads"
    diversity: Annotated[
        Amount, "Strength of the penalty on crowded cells; 0 keeps only the near-duplicate rule", METHOD
    ] = 0.1
    duplicate: Annotated[
        float,
        above(0),
        at_most(1),
        "Cosine similarity of embeddings from which images count as near-duplicates",
        METHOD,
    ] = 0.995
    seed: Annotated[Seed, "Seed of the random strategy", METHOD] = 0
    out: Annotated[Local | None, "Selection file [default: SHARDS.selection.parquet]", DATA] = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImportSettings(Checked):
    """Make a model file from weights that come from elsewhere."""

    builder: Annotated[
        str | None,
        "torchvision:NAME, smp:ARCHITECTURE/ENCODER, package.module:factory, or a short name [default: as config.json "
        "of smp says]",
        MODEL,
    ] = None
    weights: Annotated[
        Local, "State dict or checkpoint (.pth, .pt, .ckpt, .safetensors), or a folder of smp's save_pretrained", DATA
    ]
    out: Annotated[Local, "The model file to write", DATA]
    key: Annotated[
        str | None, "Which weights of the file, such as state_dict_ema [default: the first that are not averaged]", DATA
    ] = None
    num_classes: Annotated[
        Annotated[Count, at_most(2**16)] | None,
        "Number of classes of the network [default: that of the weights]",
        MODEL,
    ] = None
    class_names: Annotated[
        ClassNames | None,
        "Names of the network's classes, or of those after --merge and --drop-class, or a file of 'id name' lines "
        "[default: class 0, 1, ...]",
        MODEL,
    ] = None
    merge: Annotated[Groups, "A class that consists of several of the network's; may be given several times", MODEL] = (
        dataclasses.field(default_factory=dict)
    )
    drop_class: Annotated[Labels | None, "Classes to leave out, such as void, by name or number", MODEL] = None
    output: Annotated[str | None, "Which of the network's outputs are the logits: a key, or an index from 0", MODEL] = (
        None
    )
    image_size: Annotated[Size, "Image size in pixels that the network was trained for", MODEL] = (512, 512)
    mean: Annotated[Triple, "Mean of red, green and blue, in this order, for values in [0, 1]", MODEL] = (
        0.485, 0.456, 0.406,
    )  # fmt: skip
    std: Annotated[Triple, "Standard deviation of red, green and blue, in the same range", MODEL] = (
        0.229, 0.224, 0.225,
    )  # fmt: skip
    channels: Annotated[
        Channels | None, "What the network reads, after normalisation: its colours in this order, or luma", MODEL
    ] = None
    factor: Annotated[Ratio, above(0), "Factor after the normalisation, such as 1/255", MODEL] = 1.0
    arguments: Annotated[Arguments, "Further arguments of the builder", MODEL] = dataclasses.field(default_factory=dict)
    overwrite: Annotated[bool, "Replace the file if it already exists", RUN] = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class SynthesisSettings(Checked):
    """A baseline: make images by optimisation to the teacher's BatchNorm statistics, instead of choosing them."""

    teacher: Teacher
    out: Annotated[Local, "Folder of images to make", DATA] = "synthetic"
    count: Annotated[Count | None, "Number of images [default: all of --selection; 256 from noise]", METHOD] = None
    steps: Annotated[Count, "Optimiser steps on each batch", OPTIMISATION] = 100
    batch_size: Annotated[BatchSize, "Number of images whose statistics are matched together", OPTIMISATION] = 32
    distance: Annotated[DistanceKind, "Distance: free of channel scale (ours), or the paper's", METHOD] = "standardized"
    per_image: Annotated[
        Amount, at_most(1), "Weight of each image's own distance; that of the whole batch has the rest", OPTIMISATION
    ] = 0.5
    lr: Annotated[Amount, "Learning rate of Adam, for pixels in [0, 1]", OPTIMISATION] = 0.01
    tv: Annotated[Amount, "Weight of the total variation of pixels in [0, 1]", OPTIMISATION] = 1.0
    l2: Annotated[Amount, "Weight of the mean square difference from grey, for pixels in [0, 1]", OPTIMISATION] = 0.01
    selection: Annotated[Local | None, "Begin with the photographs of this selection [default: with noise]", DATA] = (
        None
    )
    shards: Annotated[Local, "Score store of the selection", DATA] = "scores.zarr"
    root: Annotated[str | None, "Where the corpus lies now, if it has moved since it was scored", DATA] = None
    seed: Annotated[Seed, "Seed of noise, shifts and mirroring", OPTIMISATION] = 0
    device: Device = "auto"
    overwrite: Annotated[bool, "Replace the folder if it already exists", RUN] = False
