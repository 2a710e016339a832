"""The scorer: images in, distances, embeddings and, where asked for, the teacher's entropy out, in one forward pass.

Shapes: N images of a batch, L monitored layers, D embedding numbers, K classes.
"""

import dataclasses
from collections.abc import Callable

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
from pipeline.settings import DistanceKind, ScoreSettings
from storage.errors import SettingsError


@dataclasses.dataclass(frozen=True, slots=True)
class BatchScores:
    """What one forward pass says of N images, on the CPU."""

    layer_distance_NL2: NDArray[np.float32]
    distance_N: NDArray[np.float32]
    embedding_ND: NDArray[np.float16]
    entropy_N: NDArray[np.float32] | None

    def take(self, chosen_N: NDArray[np.bool_]) -> "BatchScores":
        """The chosen images alone."""
        return BatchScores(
            self.layer_distance_NL2[chosen_N],
            self.distance_N[chosen_N],
            self.embedding_ND[chosen_N],
            None if self.entropy_N is None else self.entropy_N[chosen_N],
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scorer:
    """Images in, distances and embeddings out."""

    teacher: Segmenter
    layers: list[BatchNormLayer]
    kind: DistanceKind
    embedder: Embedder
    entropy: bool
    precision: str

    @property
    def device(self) -> torch.device:
        """Where the teacher is."""
        return self.teacher.mean_3HW.device

    def __call__(self, images_NHW3: NDArray[np.uint8] | Tensor) -> BatchScores:
        """Measure uint8 RGB images, [N, H, W, 3]. A row does not depend on the other rows."""
        return self.launch(images_NHW3)()

    @torch.inference_mode()
    def launch(self, images_NHW3: NDArray[np.uint8] | Tensor) -> Callable[[], BatchScores]:
        """Begin to measure images; call the result to wait for them. A GPU works while the caller does other things."""
        images = torch.as_tensor(images_NHW3).permute(0, 3, 1, 2).to(self.device, non_blocking=True)
        with (
            record_bn_statistics(self.layers, stop_after_last=not self.entropy) as found,
            torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"),
        ):
            logits = measure(self.teacher, images)
        parts = layer_distances(found, self.layers, self.kind)
        last = self.layers[-1]
        vectors = self.embedder(standard_scores(found[last.name], last))
        results = [parts, distance(parts), vectors.half()] + ([] if logits is None else [mean_entropy(logits)])
        arriving = Arriving(results, made_from=images_NHW3)

        def wait() -> BatchScores:
            layer_distance, total, embedded, *entropy = arriving.arrays()
            return BatchScores(layer_distance, total, embedded, entropy[0] if entropy else None)

        return wait


def make_scorer(settings: ScoreSettings) -> Scorer:
    """Load the teacher and choose its layers.

    Raises:
        ModelError: the teacher is missing, has no BatchNorm, or lacks a layer asked for.
        SettingsError: the device is not there.
    """
    device = pick_device(settings.device)
    if settings.decoder == "nvjpeg" and device.type != "cuda":
        raise SettingsError(f"--decoder nvjpeg needs a CUDA device, and this run is on {device}; use --decoder cpu")
    if settings.decoder == "nvjpeg" and not nvjpeg.AVAILABLE:
        raise SettingsError(
            "--decoder nvjpeg needs a torchvision that decodes images; use an older one, or --decoder cpu"
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
    layers: str,
    kind: DistanceKind,
    embedding_size: int,
    entropy: bool = False,
    precision: str = "float32",
) -> Scorer:
    """A scorer for a teacher that is loaded already. Raises ModelError where it lacks BatchNorm or a layer."""
    chosen = choose_layers(find_layers(teacher), layers)
    return Scorer(
        teacher=teacher,
        layers=chosen,
        kind=kind,
        embedder=Embedder.create(chosen[-1].channels, embedding_size, teacher.mean_3HW.device),
        entropy=entropy,
        precision=precision,
    )


def mean_entropy(logits_NKHW: Tensor) -> Tensor:
    """Entropy of the class probabilities, in nats, averaged over the pixels, [N] (the confidence rule of DFND)."""
    log_probability = logits_NKHW.float().log_softmax(dim=1)
    return -(log_probability.exp() * log_probability).sum(dim=1).mean(dim=(1, 2))
