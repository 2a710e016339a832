"""Images made by optimisation to the teacher's BatchNorm statistics: the rival of choosing real ones.

After DeepInversion (Yin et al., arXiv 1912.08795), without its classification term, which has no counterpart here: the
pixels of a batch are moved by Adam to lower

    sum_l ||mu_l - mu^_l||_2 + ||var_l - var^_l||_2  +  tv * TV(x)  +  l2 * mean(x^2)

where mu_l, var_l are the mean and the biased variance of the layer's input over the whole *batch* and all positions, TV
the mean absolute difference of neighbouring pixels, x the normalised images, shifted by up to SHIFT pixels and
mirrored at random before each pass. They begin as noise, or as selected photographs.

Shapes: N images of a batch, H x W pixels.
"""

import dataclasses
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pipeline.corpora import Corpus, ImageReader
from pipeline.decoding import Decoder
from pipeline.devices import pick_device
from pipeline.models import Segmenter, load_model
from pipeline.settings import SynthesisSettings
from pipeline.statistics import BatchNormLayer, find_layers, on_input
from storage.errors import SettingsError
from storage.files import publish
from storage.progress import Step
from storage.scores import open_complete
from storage.selection import read_selection

SHIFT = 8
COST_FILE = "cost.json"


@dataclasses.dataclass(kw_only=True)
class Synthesis:
    """One run: iterate over :meth:`run`. It leaves a folder of PNG files and what they cost."""

    settings: SynthesisSettings
    teacher: Segmenter
    layers: list[BatchNormLayer]

    @classmethod
    def prepare(cls, settings: SynthesisSettings) -> "Synthesis":
        """Load the teacher.

        Raises:
            ModelError: it is missing, or has no BatchNorm.
            SettingsError: the folder is there already, or no such device.
        """
        out = Path(settings.out)
        if out.exists() and not settings.overwrite:
            raise SettingsError(f"{out} is there already; --overwrite replaces it, --out puts the images elsewhere")
        if out.exists() and not (out / COST_FILE).exists():
            raise SettingsError(f"{out} holds no synthesized images, so it is not replaced; give another --out")
        teacher = load_model(settings.teacher).to(pick_device(settings.device)).requires_grad_(False)
        return cls(settings=settings, teacher=teacher, layers=find_layers(teacher))

    def run(self) -> Iterator[Step]:
        """Make the images, batch by batch, and publish the folder whole."""
        settings = self.settings
        start = time.perf_counter()
        total = -(-settings.count // settings.batch_size) * settings.steps
        done = 0
        with publish(Path(settings.out)) as partial_folder:
            partial_folder.mkdir(parents=True)
            for first in range(0, settings.count, settings.batch_size):
                places = range(first, min(first + settings.batch_size, settings.count))
                images = self._begin(places)
                optimizer = torch.optim.Adam([images], lr=settings.lr)
                rng = np.random.default_rng([settings.seed, first])
                for _ in range(settings.steps):
                    loss = self._step(images, optimizer, rng)
                    done += 1
                    yield Step(done=done, total=total, note=f"loss {loss:.3f}")
                self._write(images.detach(), places, partial_folder)
            cost = {
                "images": settings.count,
                "teacher_forwards": settings.count * settings.steps,
                "teacher_backwards": settings.count * settings.steps,
                "seconds": round(time.perf_counter() - start, 1),
            }
            (partial_folder / COST_FILE).write_text(json.dumps(cost, indent=2) + "\n")

    def _begin(self, places: range) -> Tensor:
        """Normalised images to start from, [N, 3, H, W]."""
        height, width = self.teacher.spec.image_size
        if self.settings.selection is None:
            generator = torch.Generator().manual_seed(self.settings.seed * 1_000_003 + places.start)
            images = torch.randn((len(places), 3, height, width), generator=generator)
        else:
            images = torch.from_numpy(self._photographs(places)).permute(0, 3, 1, 2)
            images = self.teacher.normalise(images.to(self.teacher.mean_3HW.device))
        images = images.to(self.teacher.mean_3HW.device).contiguous(memory_format=torch.channels_last)
        return images.requires_grad_()

    def _photographs(self, places: range) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
        assert self.settings.selection is not None
        table = read_selection(Path(self.settings.selection)).table
        store = open_complete(Path(self.settings.shards))
        if len(table) < places.stop:
            raise SettingsError(f"{self.settings.selection} has {len(table)} images; give --count {len(table)} or less")
        height, width = self.teacher.spec.image_size
        decoder = Decoder(height=height, width=width)
        with ImageReader(Corpus(**store.attributes["corpus"]), store.manifest()) as reader:
            return np.stack([decoder(reader.read(int(table["row"].iloc[place]))) for place in places])

    def _step(self, images: Tensor, optimizer: torch.optim.Optimizer, rng: np.random.Generator) -> float:
        settings = self.settings
        shift = [int(pixels) for pixels in rng.integers(-SHIFT, SHIFT + 1, 2)]
        view = torch.roll(images, shift, dims=(2, 3))
        if rng.random() < 0.5:
            view = view.flip(3)
        with batch_statistics(self.layers) as found:
            self.teacher.network(view)
        rows, columns = (images.diff(dim=axis).abs().mean() for axis in (2, 3))
        loss = torch.stack(list(found.values())).sum()
        loss = loss + settings.tv * (rows + columns) + settings.l2 * images.square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        with torch.no_grad():  # what no photograph can be is no use to a student
            low = (0 - self.teacher.mean_3HW) / self.teacher.std_3HW
            high = (1 - self.teacher.mean_3HW) / self.teacher.std_3HW
            images.clamp_(low, high)
        return float(loss.detach())

    def _write(self, images: Tensor, places: range, folder: Path) -> None:
        pixels = (images * self.teacher.std_3HW + self.teacher.mean_3HW).mul(255).round().clamp(0, 255)
        for place, image in zip(places, pixels.to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy(), strict=True):
            Image.fromarray(image).save(folder / f"{place:06}.png")


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

    handles = [on_input(layer.module, partial(record, layer)) for layer in layers]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
