"""Cost of scoring relative to the teacher's bare forward pass, and overhead of `dfss-score` from end to end.

``python benchmarks/scoring.py --json benchmarks/results/scoring.json``

Rates are measured in turn in one process with the same batch, size and precision. Each figure is the median of the
rounds' ratios:

- ``ratio_default``: bare full forward / scoring with the default layers (the pass ends with them); above 1 is faster
- ``ratio_all_layers``: bare full forward / scoring with every BatchNorm layer
- ``ratio_end_to_end``: (decoding alone + scoring alone) / a run of stage one on tars, store and index too, same cores
- ``memory_ratio``: peak memory of scoring ``--rows`` rows / that of 10,000 rows, each in its own process, without the
  diversity index, which grows with N by design

The bare forward is written well: inference mode, channels_last, eval and the same normalised input. Its process keeps
freed memory in the C library, like that of ``dfss-score``.
"""

import argparse
import dataclasses
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import machine, median_ratio, side_by_side
from PIL import Image

from pipeline.corpora.locate import resolve_corpus
from pipeline.corpora.reader import ImageReader, list_images
from pipeline.decoding.batches import load_batches
from pipeline.decoding.pillow import Decoder
from pipeline.models.files import save_model
from pipeline.models.segmenter import ModelSpec, Segmenter, build_model
from pipeline.process import keep_freed_memory
from pipeline.scoring.run import prepare, run, score
from pipeline.scoring.scorer import make_scorer
from pipeline.settings import ScoreSettings
from storage.progress import Step

SMALL_ROWS = 10_000


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["deeplabv3_resnet50", "lraspp_mobilenet_v3_large"])
    parser.add_argument("--size", type=int, nargs=2, default=[256, 256], metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--images", type=int, default=512, help="images of the end-to-end run")
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of the memory run; 0 skips it")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--memory-of", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    keep_freed_memory()
    if options.memory_of:
        print(json.dumps(peak_memory(options.memory_of)))
        return
    models = {name: measure(name, options) for name in options.models}
    result: dict[str, Any] = dict(models[options.models[0]])
    if options.rows:
        result |= memory(options.rows)
    settings = {name: vars(options)[name] for name in ("size", "batch_size", "precision", "rounds", "images")}
    result |= {"models": models, "settings": settings, "machine": machine()}
    show(result)
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


def teacher_of(name: str, size: list[int], folder: Path) -> Path:
    """A model file with random weights, because speed does not depend on them."""
    torch.manual_seed(0)
    names = tuple(f"class {index}" for index in range(21))
    height, width = size
    spec = ModelSpec(builder=f"torchvision:{name}", num_classes=21, class_names=names, image_size=(height, width))
    path = folder / f"{name}.safetensors"
    save_model(build_model(spec), path)
    return path


def measure(name: str, options: argparse.Namespace) -> dict[str, float]:
    """All ratios of one network."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        teacher = teacher_of(name, options.size, folder)
        write_tar(folder / "images.tar", options.images, photograph)
        common: dict[str, Any] = {
            "corpus": str(folder / "images.tar"), "teacher": str(teacher), "out": str(folder / "scores.zarr"),
            "batch_size": options.batch_size, "precision": options.precision, "overwrite": True,
        }  # fmt: skip
        return forward_ratios(ScoreSettings(**common), options) | end_to_end(ScoreSettings(**common), options)


def forward_ratios(settings: ScoreSettings, options: argparse.Namespace) -> dict[str, float]:
    """Ratios of the bare forward to scoring with default layers and with all layers, timed in turn."""
    default = make_scorer(settings)
    every = make_scorer(dataclasses.replace(settings, layers=("all",)))
    height, width = options.size
    images = np.random.default_rng(0).integers(0, 256, (options.batch_size, height, width, 3), dtype=np.uint8)
    times = side_by_side(
        {
            "bare": bare_forward(default.teacher, images, options.precision),
            "default": lambda: default(images),
            "all": lambda: every(images),
        },
        options.rounds,
    )
    rate = options.batch_size / float(np.median(times["bare"]))
    return {
        "ratio_default": median_ratio(times["bare"], times["default"]),
        "ratio_all_layers": median_ratio(times["bare"], times["all"]),
        "bare_images_per_second": rate,
    }


def bare_forward(teacher: Segmenter, images: np.ndarray[Any, Any], precision: str) -> Callable[[], object]:
    """A function that runs the network alone, on input that is normalised and on the device already."""
    device = teacher.device
    batch = teacher.normalise(torch.from_numpy(images).permute(0, 3, 1, 2).to(device))

    @torch.inference_mode()
    def forward() -> object:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            return teacher.network(batch)

    return forward


def end_to_end(settings: ScoreSettings, options: argparse.Namespace) -> dict[str, float]:
    """Time a complete run and its two parts alone, in turn."""
    scorer = make_scorer(settings)
    corpus = resolve_corpus(settings.corpus)
    manifest = list_images(corpus)
    height, width = options.size
    decoder = Decoder(height=height, width=width, min_side=settings.min_side)

    def decode() -> None:
        with ImageReader(corpus, manifest) as reader:
            for _ in load_batches(
                reader, decoder, [range(len(manifest))], batch_size=settings.batch_size, workers=os.cpu_count() or 1
            ):
                pass

    images = np.random.default_rng(0).integers(0, 256, (settings.batch_size, height, width, 3), dtype=np.uint8)

    def measure_all() -> None:
        for _ in range(len(manifest) // settings.batch_size):
            scorer(images)

    rounds = max(2, options.rounds // 3)
    # Loading the teacher and listing the corpus happen once per run, whatever the number of images.
    runs = iter(
        [prepare(dataclasses.replace(settings, out=f"{settings.out}.{number}")) for number in range(rounds + 1)]
    )

    def whole() -> None:
        run(next(runs))

    times = side_by_side({"decode": decode, "score": measure_all, "whole": whole}, rounds)
    together = [a + b for a, b in zip(times["decode"], times["score"], strict=True)]
    return {
        "ratio_end_to_end": median_ratio(together, times["whole"]),
        "decode_images_per_second": len(manifest) / float(np.median(times["decode"])),
        "end_to_end_images_per_second": len(manifest) / float(np.median(times["whole"])),
    }


def photograph(index: int) -> bytes:
    """A JPEG of 500 x 375 pixels with structure at several scales, like a web photograph."""
    rng = np.random.default_rng(index)
    image = np.zeros((375, 500, 3))
    for cells in (4, 16, 64):
        coarse = rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
        image += np.asarray(Image.fromarray(coarse).resize((500, 375), Image.Resampling.BICUBIC)) / 3
    data = io.BytesIO()
    Image.fromarray(image.astype(np.uint8)).save(data, "JPEG", quality=85)
    return data.getvalue()


def write_tar(path: Path, count: int, image: Callable[[int], bytes]) -> None:
    """Write a tar of ``count`` images."""
    with tarfile.open(path, "w") as tar:
        for index in range(count):
            data = image(index)
            entry = tarfile.TarInfo(f"{index:08}.jpg")
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))


def memory(rows: int) -> dict[str, Any]:
    """Peak memory of a large and a small run, of tiny images and a tiny teacher, each in a process of its own."""
    peaks = {}
    for count in (SMALL_ROWS, rows):
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            spec = ModelSpec(
                builder="torchvision:lraspp_mobilenet_v3_large",
                num_classes=2,
                class_names=("a", "b"),
                image_size=(32, 32),
            )
            save_model(build_model(spec), folder / "teacher.safetensors")
            data = io.BytesIO()
            Image.new("RGB", (32, 32), (90, 120, 30)).save(data, "JPEG")
            encoded = data.getvalue()
            write_tar(folder / "images.tar", count, lambda _, encoded=encoded: encoded)  # type: ignore[misc]
            command = [sys.executable, __file__, "--memory-of", temporary]
            peaks[count] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return {
        "memory_ratio": peaks[rows] / peaks[SMALL_ROWS],
        "memory_mib": {str(count): round(peak, 1) for count, peak in peaks.items()},
    }


def peak_memory(folder: Path) -> float:
    """Peak memory in MiB of listing and scoring the folder's images, before the index is built."""
    settings = ScoreSettings(
        corpus=str(folder / "images.tar"), teacher=str(folder / "teacher.safetensors"),
        out=str(folder / "scores.zarr"), batch_size=64, shard_size=8192, layers=("backbone.0.1",),
    )  # fmt: skip

    def end(step: Step) -> None:
        if step.done == step.total:
            raise KeyboardInterrupt

    with suppress(KeyboardInterrupt):
        score(settings, end)
    # getrusage's maximum is not used, because a process inherits it from its parent.
    status = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))) / 1024


def show(result: dict[str, Any]) -> None:
    """Print the figures as a table."""
    for name, ratios in result["models"].items():
        print(name)
        for key, value in ratios.items():
            print(f"  {key:32} {value:9.3f}")
    if "memory_ratio" in result:
        peaks = ", ".join(f"{peak:.0f} MiB for {rows} rows" for rows, peak in result["memory_mib"].items())
        print(f"memory_ratio {result['memory_ratio']:.3f} ({peaks})")


if __name__ == "__main__":
    main()
