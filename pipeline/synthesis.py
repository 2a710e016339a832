"""Images made by optimisation to the teacher's BatchNorm statistics: a baseline for the choice of real ones.

This follows DeepInversion (Yin et al., arXiv 1912.08795) without its classification term, which has no counterpart
here. Adam changes the pixels of a batch to minimise

    sum_l ||mu_l - mu^_l||_2 + ||var_l - var^_l||_2  +  tv * TV(x)  +  l2 * mean(x^2)

where mu_l, var_l are the mean and the biased variance of the layer's input over the whole *batch* and all positions.
TV is the mean absolute difference of neighbouring pixels, and x are the normalised images. They are shifted by up to
SHIFT pixels and mirrored at random before each pass. They begin as noise, or as selected photographs.

Shapes: N images of a batch, H x W pixels.
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

from pipeline.batchnorm.layers import BatchNormLayer, find_layers
from pipeline.decoding.pillow import Decoder
from pipeline.devices import pick_device
from pipeline.models.files import load_model
from pipeline.models.hooks import on_inputs
from pipeline.models.segmenter import Segmenter
from pipeline.selection.images import SelectedImages
from pipeline.selection.select import first
from pipeline.settings import SynthesisSettings
from storage.errors import SettingsError
from storage.files.publish import publish
from storage.progress import Progress, Step, ignore
from storage.scores.store import open_complete
from storage.selection import read_selection

SHIFT = 8
FROM_NOISE = 256
COST_FILE = "cost.json"
IMAGE_NAME = re.compile(r"\d{6,}\.png")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class SynthesisResult:
    """A folder of images, and their cost."""

    path: Path
    cost: dict[str, Any]
    """Numbers of images and of teacher forward and backward passes, seconds, and the store of the photographs."""

    @property
    def images(self) -> int:
        """The number of images."""
        return int(self.cost["images"])


def synthesize(settings: SynthesisSettings, progress: Progress = ignore) -> SynthesisResult:
    """Make a folder of PNG files and ``cost.json``, atomically.

    Raises:
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
        store, first(selection, count), decode=Decoder(height=height, width=width), root=settings.root
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
        progress(Step(done=0, total=total))
        with publish(out) as partial_folder:
            partial_folder.mkdir()
            for places in batches:
                rng = np.random.default_rng([settings.seed, int(places[0])])
                images = self._begin(places, rng)
                optimizer = torch.optim.Adam([images], lr=settings.lr)
                for _ in range(settings.steps):
                    loss = self._step(images, optimizer, rng)
                    done += 1
                    progress(Step(done=done, total=total, note=f"loss {loss:.3f}"))
                self._write(images.detach(), places, partial_folder)
            cost = {
                "begun_from": settings.shards if self.photographs is not None else None,
                "images": self.count,
                "teacher_forwards": self.count * settings.steps,
                "teacher_backwards": self.count * settings.steps,
                "seconds": round(time.perf_counter() - start, 1),
            }
            (partial_folder / COST_FILE).write_text(json.dumps(cost, indent=2) + "\n")
            check_place(out, overwrite=settings.overwrite)
        return SynthesisResult(path=Path(settings.out), cost=cost)

    def _begin(self, places: NDArray[np.int64], rng: np.random.Generator) -> Tensor:
        """The normalised images to begin with, [N, 3, H, W]."""
        height, width = self.teacher.spec.image_size
        device = self.teacher.device
        if self.photographs is None:
            images = torch.from_numpy(rng.standard_normal((len(places), 3, height, width), dtype=np.float32)).to(device)
        else:
            pixels = np.stack([self.photographs[int(place)] for place in places])
            images = self.teacher.normalise(torch.from_numpy(pixels).permute(0, 3, 1, 2).to(device))
        return images.contiguous(memory_format=torch.channels_last).requires_grad_()

    def _step(self, images: Tensor, optimizer: torch.optim.Optimizer, rng: np.random.Generator) -> float:
        settings = self.settings
        shift = [int(pixels) for pixels in rng.integers(-SHIFT, SHIFT + 1, 2)]
        view = torch.roll(images, shift, dims=(2, 3))
        if rng.random() < 0.5:
            view = view.flip(3)
        with batch_statistics(self.layers) as found:
            self.teacher.network(view)
        vertical, horizontal = (images.diff(dim=axis).abs().mean() for axis in (2, 3))
        loss = torch.stack(list(found.values())).sum()
        loss = loss + settings.tv * (vertical + horizontal) + settings.l2 * images.square().mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        with torch.no_grad():  # values that no photograph can have do not help a student
            low = (0 - self.teacher.mean_3HW) / self.teacher.std_3HW
            high = (1 - self.teacher.mean_3HW) / self.teacher.std_3HW
            images.clamp_(low, high)
        return float(loss.detach())

    def _write(self, images: Tensor, places: NDArray[np.int64], folder: Path) -> None:
        pixels = (images * self.teacher.std_3HW + self.teacher.mean_3HW).mul(255).round()
        pixels_NHW3 = pixels.to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        for index, place in enumerate(places):
            Image.fromarray(pixels_NHW3[index]).save(folder / f"{place:06}.png")


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
def batch_statistics(layers: list[BatchNormLayer]) -> Iterator[dict[str, Tensor]]:
    """Collect each layer's ||mu - mu^||_2 + ||var - var^||_2 over the batch, with gradients, during a forward pass."""
    found: dict[str, Tensor] = {}

    def record(layer: BatchNormLayer, input_NCHW: Tensor) -> None:
        module = layer.module
        assert module.running_mean is not None  # find_layers saw to it
        assert module.running_var is not None
        mean = input_NCHW.mean(dim=(0, 2, 3))
        square = (input_NCHW - module.running_mean.view(1, -1, 1, 1)).square().mean(dim=(0, 2, 3))
        var = square - (mean - module.running_mean).square()
        found[layer.name] = (mean - module.running_mean).norm() + (var - module.running_var).norm()

    with on_inputs((layer.module, partial(record, layer)) for layer in layers):
        yield found
