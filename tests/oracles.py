"""Formulas of the method in float64 numpy. They share no code with the project.

Shapes: N images, K classes, C channels, H x W pixels.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def log_softmax(logits: Array, axis: int) -> Array:
    shifted = logits - logits.max(axis=axis, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True)))


def image_losses(student_NKHW: Array, teacher_NKHW: Array, kind: str, temperature: float) -> Array:
    """KD_i of each image, [N]."""
    student, teacher = (np.asarray(logits, np.float64) for logits in (student_NKHW, teacher_NKHW))
    count, classes, height, width = teacher.shape
    if kind == "l1":
        gap = student - teacher
        for pixel in np.ndindex(height, width):
            gap[:, :, *pixel] -= gap[:, :, *pixel].mean(axis=1, keepdims=True)
        return np.asarray(np.abs(gap).reshape(count, -1).sum(axis=1) / (classes * height * width))
    student, teacher = student.reshape(count, classes, -1), teacher.reshape(count, classes, -1)
    axis, averaged = (1, height * width) if kind == "kl" else (2, classes)
    p, q = (log_softmax(logits / temperature, axis) for logits in (teacher, student))
    return np.asarray(temperature**2 * (np.exp(p) * (p - q)).sum(axis=(1, 2)) / averaged)


def feature_terms(student: Sequence[Array], teacher: Sequence[Array], var: Sequence[Array], eps: float) -> Array:
    """F_i of each image over layers (inputs [N, C, H, W]), [N]. Dead channels have their layer's mean variance."""
    terms = []
    for own, theirs, var_C in zip(student, teacher, var, strict=True):
        variances = [float(value) for value in var_C]
        mean = sum(variances) / len(variances)
        scale = np.array([mean if value < mean / 100 else value for value in variances]) + eps
        squares = (own.astype(np.float64) - theirs) ** 2 / scale[:, None, None]
        terms.append([image.mean() for image in squares])
    return np.mean(terms, axis=0)


def pace(progress: float, pacing: str) -> float:
    if pacing == "linear":
        return progress
    if pacing == "cosine":
        return float(np.sin(np.pi * progress / 2) ** 2)
    return float(np.searchsorted([1 / 3, 2 / 3], progress, side="right") / 2)


def image_weights(start: Array, progress: float, weighting: str, pacing: str) -> Array:
    """Weights of the images at a moment of the run, [N]."""
    p = pace(progress, pacing)
    by_weighting = {
        "wdpd": start + p * (1 - start),
        "static": start,
        "uniform": np.ones_like(start),
        "reversed": 1 - (1 - p) * start,
    }
    return np.asarray(by_weighting[weighting])


def start_weights(distance: NDArray[np.float32], normalization: str) -> Array:
    """w_i from the distances, [N]; the quantiles are interpolated by hand."""
    values = np.sort(distance.astype(np.float64))

    def quantile(share: float) -> float:
        return float(np.interp(share * (len(values) - 1), np.arange(len(values)), values))

    low, high = (quantile(0.05), quantile(0.95)) if normalization == "robust" else (values[0], values[-1])
    return np.asarray(1 - (np.minimum(np.maximum(distance.astype(np.float64), low), high) - low) / (high - low))


def crop(image: NDArray[np.uint8], box: Sequence[float], height: int, width: int) -> Array:
    """A box of an image [H, W, 3] by a triangle filter as wide as the reduction, before rounding."""

    def filters(begin: float, end: float, size: int, inputs: int) -> Array:
        scale = (end - begin) / size
        centres = begin + (np.arange(size) + 0.5) * scale
        distance = np.abs(np.arange(inputs) + 0.5 - centres[:, None]) / max(scale, 1.0)
        weights = np.maximum(0, 1 - distance)
        return np.asarray(weights / weights.sum(axis=1, keepdims=True))

    rows = filters(box[1], box[3], height, image.shape[0])
    columns = filters(box[0], box[2], width, image.shape[1])
    return np.einsum("ih,hwc,jw->ijc", rows, image.astype(np.float64), columns)


def light(image: Array, factors: Sequence[float]) -> Array:
    """Brightness, contrast, saturation of an image [H, W, 3] in [0, 1]."""
    brightness, contrast, saturation = factors
    luma = np.array([0.299, 0.587, 0.114])
    image = image * brightness
    image = (image @ luma).mean() * (1 - contrast) + image * contrast
    image = (image @ luma)[..., None] * (1 - saturation) + image * saturation
    return np.clip(image, 0, 1)


def learning_rate(step: int, steps: int, peak: float, warmup: float) -> float:
    """Of the step that comes after ``step`` others."""
    rising = int(np.ceil(warmup * steps))
    if step < rising:
        return peak * (1 + step) / rising
    return float(peak * np.cos(np.pi / 2 * (step - rising) / (steps - rising)) ** 2)
