"""Mean intersection over union (mIoU) of a model on labelled images, and of two models on unlabelled images.

From the confusion matrix C (rows: label, columns: prediction), IoU_k = C_kk / (sum_j C_kj + sum_j C_jk - C_kk).
Pixels labelled 255 do not count. A class that is neither labelled nor predicted anywhere has no IoU (NaN), and the mean
leaves it out.
"""

import csv
import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.classification import MulticlassConfusionMatrix

from distill.labelled import LabelledFolder, check_classes, open_labelled
from distill.settings import EvalSettings
from pipeline.devices import pick_device
from pipeline.models.class_names import VOID
from pipeline.models.files import load_model
from pipeline.models.segmenter import Segmenter
from storage.files.publish import publish, write_json
from storage.progress import Progress, Step, ignore


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """Figures of one model on one folder."""

    miou: float
    pixel_accuracy: float
    iou: dict[str, float]
    """IoU by class name; NaN for a class that is neither labelled nor predicted."""
    images: int

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Evaluation | None":
        """The figures that :meth:`to_json` wrote, without other values beside them; None if there are none."""
        if "iou" not in values:
            return None
        iou = {name: math.nan if value is None else value for name, value in values["iou"].items()}
        miou, accuracy = (math.nan if values[name] is None else values[name] for name in ("miou", "pixel_accuracy"))
        return cls(miou=miou, pixel_accuracy=accuracy, iou=iou, images=values["images"])

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON; NaN becomes None."""
        iou = {name: None if math.isnan(value) else value for name, value in self.iou.items()}
        figures = {"miou": self.miou, "pixel_accuracy": self.pixel_accuracy}
        return {name: None if math.isnan(v) else v for name, v in figures.items()} | {"iou": iou, "images": self.images}


def summarise(confusion_KK: Tensor, class_names: tuple[str, ...], images: int) -> Evaluation:
    """Figures of a confusion matrix, [K, K] (rows: label, columns: prediction)."""
    confusion = confusion_KK.double().cpu()
    hits = confusion.diag()
    iou = hits / (confusion.sum(dim=0) + confusion.sum(dim=1) - hits)  # 0 / 0 = NaN: the class is absent
    return Evaluation(
        miou=float(iou.nanmean()),
        pixel_accuracy=float(hits.sum() / confusion.sum()),
        iou=dict(zip(class_names, iou.tolist(), strict=True)),
        images=images,
    )


@torch.inference_mode()
def evaluate(model: Segmenter, data: LabelledFolder, *, batch_size: int = 8) -> Evaluation:
    """Predict every image at the model's input size and compare at the size of the label.

    Raises:
        DataError: a file cannot be read, or the model has no class for a label.
    """
    device = model.device
    matrix = MulticlassConfusionMatrix(model.spec.num_classes, ignore_index=VOID, validate_args=False).to(device)
    training = model.training
    model.eval()
    for indices, images_N3HW in _input_batches(data, model.spec.image_size, batch_size):
        for index, logits_KHW in zip(indices, model(images_N3HW.to(device)), strict=True):
            label = torch.from_numpy(data.checked_label(index, model.spec.num_classes).copy()).long().to(device)
            logits = F.interpolate(logits_KHW[None], size=label.shape, mode="bilinear", align_corners=False)
            matrix.update(logits.argmax(dim=1), label[None])
    model.train(training)
    return summarise(matrix.compute(), model.spec.class_names, len(data))


def _input_batches(
    data: LabelledFolder, image_size: tuple[int, int], batch_size: int
) -> Iterator[tuple[range, Tensor]]:
    height, width = image_size
    for start in range(0, len(data), batch_size):
        indices = range(start, min(start + batch_size, len(data)))
        images = [data.image(index).resize((width, height), Image.Resampling.BILINEAR) for index in indices]
        yield indices, to_tensor([np.asarray(image) for image in images])


@torch.inference_mode()
def agreement(student: Segmenter, teacher: Segmenter, batches: Iterable[Tensor]) -> Evaluation:
    """Evaluate the student with the teacher's predictions as labels, on batches of uint8 images [N, 3, H, W]."""
    device = student.device
    matrix = MulticlassConfusionMatrix(student.spec.num_classes, validate_args=False).to(device)
    training, images = student.training, 0
    student.eval()
    for images_N3HW in batches:
        on_device = images_N3HW.to(device)
        matrix.update(student(on_device).argmax(dim=1), teacher(on_device).argmax(dim=1))
        images += len(images_N3HW)
    student.train(training)
    return summarise(matrix.compute(), student.spec.class_names, images)


def to_tensor(images: list[Any]) -> Tensor:
    """Stack uint8 images [H, W, 3] to [N, 3, H, W], with channels last in memory, as the networks expect."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class EvalResult:
    """Figures of one or more models on one folder."""

    evaluations: dict[str, Evaluation]
    """Figures by the name of the model, or by its file if it has no name."""

    @property
    def evaluation(self) -> Evaluation:
        """The figures of the only model.

        Raises:
            ValueError: there are several models.
        """
        if len(self.evaluations) != 1:
            raise ValueError(f"there are {len(self.evaluations)} models; take one of .evaluations by its name")
        return next(iter(self.evaluations.values()))

    def to_json(self) -> dict[str, Any]:
        """The figures of one model, or of several by name."""
        figures = {name: result.to_json() for name, result in self.evaluations.items()}
        return figures if len(figures) > 1 else next(iter(figures.values()))

    def metrics(self) -> dict[str, dict[str, float | None]]:
        """The figures for comparing runs: mIoU and pixel accuracy, by model."""
        names = {"miou": "miou", "pixel_accuracy": "accuracy"}
        figures = {model: result.to_json() for model, result in self.evaluations.items()}
        return {model: {short: found[name] for name, short in names.items()} for model, found in figures.items()}

    def classes(self) -> Iterator[tuple[str, str, float]]:
        """Yield (model, class, IoU) of every class that has an IoU."""
        for model, result in self.evaluations.items():
            yield from ((model, name, iou) for name, iou in result.iou.items() if not math.isnan(iou))


def evaluate_models(settings: EvalSettings, progress: Progress = ignore) -> EvalResult:
    """Evaluate each model in turn, and write the figures to the files that the settings name.

    Raises:
        DataError: the data is malformed, or has other classes than a model.
        ModelError: a model cannot be loaded.
    """
    data = open_labelled(settings.data)
    device = pick_device(settings.device)
    results = {}
    for done, (name, path) in enumerate(settings.model.items()):
        progress(Step(done=done, total=len(settings.model), note=name))
        model = load_model(path).to(device)
        check_classes(data, model.spec.num_classes, model=path)
        results[name] = evaluate(model, data, batch_size=settings.batch_size)
    result = EvalResult(evaluations=results)
    if settings.json:
        write_json(Path(settings.json), result.to_json())
    if settings.metrics:
        write_json(Path(settings.metrics), result.metrics())
    if settings.classes:
        with publish(Path(settings.classes)) as partial, partial.open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(("model", "class", "iou"))
            writer.writerows(result.classes())
    progress(Step(done=len(results), total=len(results)))
    return result
