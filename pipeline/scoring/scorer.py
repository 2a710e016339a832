"""The scorer, which measures columns of the store from images, in one forward pass.

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
from pipeline.batchnorm.moments import record_bn_statistics
from pipeline.decoding import nvjpeg
from pipeline.devices import Arriving, pick_device
from pipeline.models.files import load_model
from pipeline.models.hooks import forward_until_stopped
from pipeline.models.segmenter import Segmenter
from pipeline.models.soundness import warn_of_statistics
from pipeline.settings import DistanceKind, Precision, ScoreSettings
from storage.errors import SettingsError

Measured = dict[str, NDArray[Any]]
"""Results of one forward pass of N images: the measured columns of the store, [N, ...] each, on the CPU."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scorer:
    """Measures the distances and embeddings of images."""

    teacher: Segmenter
    layers: list[BatchNormLayer]
    kind: DistanceKind
    embedder: Embedder
    entropy: bool
    precision: Precision

    @property
    def device(self) -> torch.device:
        """The device of the teacher."""
        return self.teacher.device

    def __call__(self, images_NHW3: NDArray[np.uint8] | Tensor) -> Measured:
        """Measure uint8 RGB images, [N, H, W, 3]. A row does not depend on the other rows."""
        return self.launch(images_NHW3)()

    @torch.inference_mode()
    def launch(self, images_NHW3: NDArray[np.uint8] | Tensor) -> Callable[[], Measured]:
        """Begin to measure images, uint8 [N, H, W, 3]. The returned function waits for a GPU and gives the results."""
        images = torch.as_tensor(images_NHW3).permute(0, 3, 1, 2).to(self.device, non_blocking=True)
        with (
            record_bn_statistics(self.layers, stop_after_last=not self.entropy) as found,
            torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"),
        ):
            logits = forward_until_stopped(self.teacher, images)
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
        ModelError: the teacher is missing, has no BatchNorm, or lacks a layer in ``layers``.
        SettingsError: no such device exists.
    """
    device = pick_device(settings.device)
    if settings.decoder == "nvjpeg" and device.type != "cuda":
        raise SettingsError(
            f"decoder nvjpeg needs a CUDA device, but this run uses {device}; give --decoder cpu", field="decoder"
        )
    if settings.decoder == "nvjpeg" and not nvjpeg.AVAILABLE:
        raise SettingsError(
            "decoder nvjpeg needs a torchvision that decodes images; install an older one, or give --decoder cpu",
            field="decoder",
        )
    teacher = load_model(settings.teacher).to(device)
    warn_of_statistics(teacher.network, origin=settings.teacher)
    return scorer_for(
        teacher,
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
    """Make a scorer for a loaded teacher.

    Raises:
        ModelError: the teacher has no BatchNorm, or lacks a layer in ``layers``.
    """
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
    """Entropy of the class probabilities in nats, averaged over the pixels, [N]: the confidence rule of DFND."""
    log_probability = logits_NKHW.float().log_softmax(dim=1)
    return -(log_probability.exp() * log_probability).sum(dim=1).mean(dim=(1, 2))
