"""The scorer: images in, the measured columns of the store out, in one forward pass.

Shapes: N images of a batch, L monitored layers, D embedding numbers, K classes.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.batchnorm.distances import distance, layer_distances, standard_scores
from pipeline.batchnorm.embedding import Embedder
from pipeline.batchnorm.layers import BatchNormLayer, choose_layers, find_layers
from pipeline.batchnorm.moments import measure, record_bn_statistics
from pipeline.decoding import nvjpeg
from pipeline.devices import Arriving, pick_device
from pipeline.models.files import load_model
from pipeline.models.segmenter import Segmenter
from pipeline.settings import DistanceKind, Precision, ScoreSettings
from storage.errors import SettingsError

Measured = dict[str, NDArray[Any]]
"""What one forward pass says of N images: the measured columns of the store, [N, ...] each, on the CPU."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scorer:
    """Images in, distances and embeddings out."""

    teacher: Segmenter
    layers: list[BatchNormLayer]
    kind: DistanceKind
    embedder: Embedder
    entropy: bool
    precision: Precision

    @property
    def device(self) -> torch.device:
        """Where the teacher is."""
        return self.teacher.device

    def __call__(self, images_NHW3: NDArray[np.uint8] | Tensor) -> Measured:
        """Measure uint8 RGB images, [N, H, W, 3]. A row does not depend on the other rows."""
        return self.launch(images_NHW3)()

    @torch.inference_mode()
    def launch(self, images_NHW3: NDArray[np.uint8] | Tensor) -> Callable[[], Measured]:
        """Begin to measure images; call the result to wait for them. A GPU works while the caller does other things."""
        images = torch.as_tensor(images_NHW3).permute(0, 3, 1, 2).to(self.device, non_blocking=True)
        with (
            record_bn_statistics(self.layers, stop_after_last=not self.entropy) as found,
            torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"),
        ):
            logits = measure(self.teacher, images)
        last = self.layers[-1]
        parts = layer_distances(found, self.layers, self.kind)
        columns = {
            "layer_distance": parts,
            "distance": distance(parts),
            "embedding": self.embedder(standard_scores(found[last.name], last)).half(),
        }
        if logits is not None:
            columns["entropy"] = mean_entropy(logits)
        return Arriving(columns, made_from=images_NHW3).arrays


def make_scorer(settings: ScoreSettings) -> Scorer:
    """Load the teacher and choose its layers.

    Raises:
        ModelError: the teacher is missing, has no BatchNorm, or lacks a layer asked for.
        SettingsError: no such device exists.
    """
    device = pick_device(settings.device)
    if settings.decoder == "nvjpeg" and device.type != "cuda":
        raise SettingsError(
            f"decoder nvjpeg needs a CUDA device, and this run is on {device}; use --decoder cpu", field="decoder"
        )
    if settings.decoder == "nvjpeg" and not nvjpeg.AVAILABLE:
        raise SettingsError(
            "decoder nvjpeg needs a torchvision that decodes images; use an older one, or --decoder cpu",
            field="decoder",
        )
    return scorer_for(
        load_model(settings.teacher).to(device),
        layers=settings.layers,
        kind=settings.distance,
        embedding_size=settings.embedding_size,
        entropy=settings.entropy,
        precision=settings.precision,
    )


def scorer_for(
    teacher: Segmenter,
    *,
    layers: Sequence[str],
    kind: DistanceKind,
    embedding_size: int,
    entropy: bool = False,
    precision: Precision = "float32",
) -> Scorer:
    """Return a scorer for a teacher that is loaded already. Raises ModelError where it lacks BatchNorm or a layer."""
    chosen = choose_layers(find_layers(teacher), layers)
    return Scorer(
        teacher=teacher,
        layers=chosen,
        kind=kind,
        embedder=Embedder.create(chosen[-1].channels, embedding_size, teacher.device),
        entropy=entropy,
        precision=precision,
    )


def mean_entropy(logits_NKHW: Tensor) -> Tensor:
    """Entropy of the class probabilities, in nats, averaged over the pixels, [N] (the confidence rule of DFND)."""
    log_probability = logits_NKHW.float().log_softmax(dim=1)
    return -(log_probability.exp() * log_probability).sum(dim=1).mean(dim=(1, 2))
