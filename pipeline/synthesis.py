"""Images made by optimisation to the teacher's BatchNorm statistics: a baseline for the choice of real ones.

This follows DeepInversion (Yin et al., arXiv 1912.08795) without its classification term, which has no counterpart
here, and with our distance. Adam changes the pixels x of a batch, in [0, 1], to minimise

    (1 - v) * d(x)  +  v * mean_n d(x_n)  +  tv * TV(x)  +  l2 * mean((x - 1/2)^2)

d is the distance of :mod:`pipeline.batchnorm.distances` to the running statistics. In d(x) it is that of the whole
*batch*, as in DeepInversion: of the mean and the biased variance of a layer's input over all images and positions. In
d(x_n) it is that of image n by itself (ours), with weight v = ``per_image``. A channel that was constant on the
training images has no term in either (:func:`dead_channels`). TV is the mean absolute difference of neighbouring
pixels. No term depends on the units in which the teacher takes its pixels.

The images are shifted by up to SHIFT pixels and mirrored at random before each pass. They begin as noise, or as
selected photographs. At the end each is measured by itself, as dfss-score would with all layers. One that is farther
from the teacher's statistics than it began is put back.

Shapes: N images of a batch, C channels, H x W pixels.
"""

import dataclasses
import json
import math
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pipeline.batchnorm.distances import distance, layer_distances, running_statistics
from pipeline.batchnorm.layers import BatchNormLayer, dead_channels, find_layers
from pipeline.batchnorm.moments import LayerStatistics, record_bn_statistics
from pipeline.decoding.pillow import Decoder
from pipeline.devices import pick_device
from pipeline.models.files import load_model
from pipeline.models.hooks import forward_until_stopped, on_inputs
from pipeline.models.segmenter import Segmenter
from pipeline.selection.images import SelectedImages
from pipeline.selection.select import first
from pipeline.settings import SynthesisSettings
from storage.errors import DivergedError, SettingsError
from storage.files.publish import publish
from storage.progress import Progress, Step, ignore
from storage.scores.store import open_complete
from storage.selection import read_selection

SHIFT = 8
FROM_NOISE = 256
GREY, NOISE_STD = 0.5, 0.225
TINY = 1e-12
"""Adam's epsilon: the gradient of a pixel falls with the number of pixels, and the default would shorten the steps."""
COST_FILE = "cost.json"
IMAGE_NAME = re.compile(r"\d{6,}\.png")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class SynthesisResult:
    """A folder of images, and their cost."""

    path: Path
    cost: dict[str, Any]
    """What ``cost.json`` says: the fields below, and of what, how many passes and how many seconds they were made."""

    @property
    def images(self) -> int:
        """The number of images."""
        return int(self.cost["images"])

    @property
    def distance_before(self) -> float:
        """The median distance of the images that they began as, by all layers."""
        return float(self.cost["distance_before"])

    @property
    def distance_after(self) -> float:
        """The median distance of the images in the folder, by all layers."""
        return float(self.cost["distance_after"])

    @property
    def unchanged(self) -> int:
        """The number of images that came no nearer and were put back."""
        return int(self.cost["unchanged"])


def synthesize(settings: SynthesisSettings, progress: Progress = ignore) -> SynthesisResult:
    """Make a folder of PNG files and ``cost.json``, atomically.

    Raises:
        DivergedError: the loss is not finite; nothing is written.
        ModelError: the teacher is missing, or has no BatchNorm.
        SettingsError: the folder already exists, the selection is too small, or no such device exists.
        SelectionError, StoreError, CorpusError: the photographs to begin with cannot be found.
    """
    with prepared(settings) as synthesis:
        return synthesis.run(progress)


@contextmanager
def prepared(settings: SynthesisSettings) -> "Iterator[Synthesis]":
    """Check and open everything before anything is computed; the photographs stay open in the block.

    Raises:
        DFSSError: the same errors as :func:`synthesize`.
    """
    check_place(Path(settings.out), overwrite=settings.overwrite)
    teacher = load_model(settings.teacher).to(pick_device(settings.device)).requires_grad_(False)
    layers = find_layers(teacher)
    with _photographs(settings, teacher) if settings.selection else nullcontext() as photographs:
        yield Synthesis(settings=settings, teacher=teacher, layers=layers, photographs=photographs)


def _photographs(settings: SynthesisSettings, teacher: Segmenter) -> "SelectedImages[NDArray[np.uint8]]":
    """The first images of the selection, decoded as for scoring, [H, W, 3] each."""
    selection = read_selection(Path(settings.selection or ""))
    store = open_complete(Path(settings.shards))
    count = settings.count or len(selection)
    if len(selection) < count:
        raise SettingsError(
            f"count {count} is more than the {len(selection)} images of {settings.selection}; "
            f"give --count {len(selection)} or less",
            field="count",
        )
    height, width = teacher.spec.image_size
    return SelectedImages(
        store, first(selection, count), decode=Decoder(height=height, width=width, max_pixels=None), root=settings.root
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Synthesis:
    """The inputs of one run."""

    settings: SynthesisSettings
    teacher: Segmenter
    layers: list[BatchNormLayer]
    photographs: "SelectedImages[NDArray[np.uint8]] | None"
    """The images to begin with; None for noise."""

    @property
    def count(self) -> int:
        """The number of images to make."""
        return len(self.photographs) if self.photographs is not None else self.settings.count or FROM_NOISE

    def run(self, progress: Progress) -> SynthesisResult:
        """Make the images, batch by batch, and publish the folder atomically."""
        settings, out = self.settings, Path(self.settings.out).resolve()
        start, done = time.perf_counter(), 0
        # The batches have equal sizes: a few images cannot match the statistics of a data set.
        batches = np.array_split(np.arange(self.count), math.ceil(self.count / settings.batch_size))
        total = len(batches) * settings.steps
        measured: list[NDArray[np.float32]] = []
        progress(Step(done=0, total=total))
        with publish(out) as partial_folder:
            partial_folder.mkdir()
            for places in batches:
                rng = np.random.default_rng([settings.seed, int(places[0])])
                begun = self._begin(places, rng)
                images = self._optimised(begun)
                optimizer = torch.optim.Adam([images], lr=settings.lr, eps=TINY)
                for _ in range(settings.steps):
                    loss = self._step(images, optimizer, rng)
                    done += 1
                    if not math.isfinite(loss):
                        raise DivergedError(
                            f"the loss of step {done} of {total} is not finite; give a lower --lr (it was "
                            f"{settings.lr:g}), or check the teacher; nothing is written",
                            step=done - 1,
                        )
                    progress(Step(done=done, total=total, note=f"loss {loss:.3f}"))
                nearest, distances = self._keep_nearer(begun, _pixels(images.detach()))
                measured.append(distances)
                _write(nearest, places, partial_folder)
            cost = self._cost(np.concatenate(measured), seconds=time.perf_counter() - start)
            (partial_folder / COST_FILE).write_text(json.dumps(cost, indent=2) + "\n")
            check_place(out, overwrite=settings.overwrite)
        return SynthesisResult(path=Path(settings.out), cost=cost)

    def _begin(self, places: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.uint8]:
        """The images to begin with, uint8 [N, H, W, 3]."""
        if self.photographs is not None:
            return np.stack([self.photographs[int(place)] for place in places])
        noise_NHW3 = rng.standard_normal((len(places), *self.teacher.spec.image_size, 3), dtype=np.float32)
        pixels_NHW3: NDArray[np.uint8] = np.rint((GREY + NOISE_STD * noise_NHW3).clip(0, 1) * 255).astype(np.uint8)
        return pixels_NHW3

    def _optimised(self, pixels_NHW3: NDArray[np.uint8]) -> Tensor:
        """The tensor that Adam changes: pixels in [0, 1], [N, 3, H, W]."""
        pixels = torch.from_numpy(pixels_NHW3).permute(0, 3, 1, 2).to(self.teacher.device)
        return (pixels.float() / 255).contiguous(memory_format=torch.channels_last).requires_grad_()

    def _step(self, images: Tensor, optimizer: torch.optim.Optimizer, rng: np.random.Generator) -> float:
        settings = self.settings
        shift = [int(pixels) for pixels in rng.integers(-SHIFT, SHIFT + 1, 2)]
        view = torch.roll(images, shift, dims=(2, 3))
        if rng.random() < 0.5:
            view = view.flip(3)
        with batch_statistics(self.layers) as found:
            self.teacher.network(self.teacher.normalise(view))
        vertical, horizontal = (images.diff(dim=axis).abs().mean() for axis in (2, 3))
        distances = distance(layer_distances(found, self.layers, settings.distance))
        loss = (1 - settings.per_image) * distances[0] + settings.per_image * distances[1:].mean()
        loss = loss + settings.tv * (vertical + horizontal) + settings.l2 * (images - GREY).square().mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        with torch.no_grad():  # values that no photograph can have do not help a student
            images.clamp_(0, 1)
        return float(loss.detach())

    def _keep_nearer(
        self, begun_NHW3: NDArray[np.uint8], made_NHW3: NDArray[np.uint8]
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """The nearer one of each pair of images, and the distances of both, [N, 2]."""
        distances_N2 = np.stack([self.distances(begun_NHW3), self.distances(made_NHW3)], axis=1)
        return np.where(_nearer(distances_N2)[:, None, None, None], made_NHW3, begun_NHW3), distances_N2

    @torch.inference_mode()
    def distances(self, pixels_NHW3: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The distance of each image by itself, [N]: that of dfss-score with the layers of the synthesis."""
        images = torch.from_numpy(pixels_NHW3).permute(0, 3, 1, 2).to(self.teacher.device)
        with record_bn_statistics(self.layers, stop_after_last=True) as found:
            forward_until_stopped(self.teacher, images)
        distances_N: NDArray[np.float32] = (
            distance(layer_distances(found, self.layers, self.settings.distance)).cpu().numpy()
        )
        return distances_N

    def _cost(self, distances_N2: NDArray[np.float32], *, seconds: float) -> dict[str, Any]:
        nearer_N = _nearer(distances_N2)
        before_N, after_N = distances_N2[:, 0], np.where(nearer_N, distances_N2[:, 1], distances_N2[:, 0])
        return {
            "begun_from": self.settings.shards if self.photographs is not None else None,
            "images": self.count,
            "unchanged": int(np.sum(~nearer_N)),
            "distance": self.settings.distance,
            "distance_before": round(float(np.median(before_N)), 4),
            "distance_after": round(float(np.median(after_N)), 4),
            "teacher_forwards": self.count * (self.settings.steps + 2),
            "teacher_backwards": self.count * self.settings.steps,
            "seconds": round(seconds, 1),
        }


def _nearer(distances_N2: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which images are at most as far as they began, [N], of the distances before and after; NaN is far."""
    nearer_N: NDArray[np.bool_] = distances_N2[:, 1] <= distances_N2[:, 0]
    return nearer_N


def _pixels(images_N3HW: Tensor) -> NDArray[np.uint8]:
    """Images in [0, 1], rounded to uint8 [N, H, W, 3]."""
    pixels_NHW3: NDArray[np.uint8] = images_N3HW.mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return pixels_NHW3


def _write(pixels_NHW3: NDArray[np.uint8], places: NDArray[np.int64], folder: Path) -> None:
    for pixels_HW3, place in zip(pixels_NHW3, places, strict=True):
        Image.fromarray(pixels_HW3).save(folder / f"{place:06}.png")


def check_place(folder: Path, *, overwrite: bool) -> None:
    """Raise SettingsError if a folder already exists that must not be replaced.

    With ``overwrite`` that is a folder with other files than the images of an earlier run.
    """
    if not folder.exists():
        return
    if not overwrite:
        raise SettingsError(f"{folder} already exists; replace it with --overwrite, or give another --out")
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else [folder.name]
    foreign = [name for name in sorted(names) if name != COST_FILE and not IMAGE_NAME.fullmatch(name)]
    if foreign:
        raise SettingsError(f"{folder} holds {foreign[0]}, so it cannot be replaced; give another --out")


@contextmanager
def batch_statistics(layers: list[BatchNormLayer]) -> Iterator[dict[str, LayerStatistics]]:
    """Collect the statistics of each layer, [1 + N, C] with gradients, during a forward pass.

    The first row is that of the whole batch, the others are those of its images. Dead channels get the running
    statistics, which have no distance.
    """
    found: dict[str, LayerStatistics] = {}

    def record(layer: BatchNormLayer, input_NCHW: Tensor) -> None:
        mean_C, var_C = running_statistics(layer)
        shifted = input_NCHW.float() - mean_C.view(1, -1, 1, 1)  # no cancellation where the mean is large
        offset_NC, square_NC = (_batch_first(values.mean(dim=(2, 3))) for values in (shifted, shifted.square()))
        dead_C = dead_channels(layer.module)
        found[layer.name] = LayerStatistics(
            mean_NC=torch.where(dead_C, mean_C, offset_NC + mean_C),
            var_NC=torch.where(dead_C, var_C, (square_NC - offset_NC.square()).clamp(min=0)),
        )

    with on_inputs((layer.module, partial(record, layer)) for layer in layers):
        yield found


def _batch_first(means_NC: Tensor) -> Tensor:
    """The mean over the images, and below it the means of the images, [1 + N, C]."""
    return torch.cat([means_NC.mean(dim=0, keepdim=True), means_NC])
