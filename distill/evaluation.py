"""Mean intersection over union (mIoU) of a model on labelled images, and the agreement of two models on others.

From the confusion matrix C (rows: label, columns: prediction), IoU_k = C_kk / (sum_j C_kj + sum_j C_jk - C_kk).
Pixels labelled 255 do not count. A class that is neither labelled nor predicted anywhere has no IoU (NaN), and the mean
leaves it out. A class that is predicted but never labelled has IoU 0, so the mean over the labelled classes stands
beside. Without labels, a student is compared with its teacher; that is called agreement.
"""

import csv
import dataclasses
import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.classification import MulticlassConfusionMatrix

from distill.labelled import LabelledFolder, check_counts, fit_classes, open_labelled
from distill.settings import EvalSettings
from pipeline.devices import pick_device
from pipeline.models.class_names import VOID
from pipeline.models.files import load_model
from pipeline.models.segmenter import Segmenter
from pipeline.models.soundness import check_logits
from storage.files.publish import publish, write_json
from storage.progress import Progress, Step, ignore

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """Figures of one model on one labelled folder."""

    miou: float
    """Mean IoU over the classes that are labelled or predicted. A class that is only predicted counts with 0."""
    miou_labelled: float = math.nan
    """Mean IoU over the classes that are labelled."""
    pixel_accuracy: float
    iou: dict[str, float]
    """IoU by class name; NaN for a class that is neither labelled nor predicted."""
    images: int
    only_predicted: tuple[str, ...] = ()
    """The classes that are predicted but not labelled."""

    @property
    def curves(self) -> dict[str, float]:
        """The figures that a run logs by step."""
        return {"miou": self.miou, "miou_labelled": self.miou_labelled, "pixel_accuracy": self.pixel_accuracy}

    @property
    def note(self) -> str:
        """The figure that is shown beside a run's progress."""
        return f"mIoU {self.miou:.3f}"

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Evaluation":
        """The figures that :meth:`to_json` wrote, without other values beside them."""
        iou = {name: _nan(value) for name, value in values["iou"].items()}
        figures = {name: _nan(values[name]) for name in ("miou", "pixel_accuracy")}
        figures["miou_labelled"] = _nan(values.get("miou_labelled"))  # older files lack it
        only_predicted = tuple(values.get("only_predicted", ()))
        return cls(**figures, iou=iou, images=values["images"], only_predicted=only_predicted)

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON; NaN becomes None."""
        figures = {name: _null(value) for name, value in self.curves.items()}
        iou = {name: _null(value) for name, value in self.iou.items()}
        others = {"images": self.images, "only_predicted": list(self.only_predicted)}
        return {"against": "labels", **figures, "iou": iou, **others}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Agreement:
    """How far a student predicts what its teacher predicts, on images without labels. It says nothing of the truth."""

    agreement: float
    """Mean over the classes of the pixels that both predict, divided by those that either predicts."""
    pixel_agreement: float
    """Share of the pixels where both predict the same class."""
    by_class: dict[str, float]
    """Agreement by class name; NaN for a class that neither predicts."""
    images: int

    @property
    def curves(self) -> dict[str, float]:
        """The figures that a run logs by step."""
        return {"agreement": self.agreement, "pixel_agreement": self.pixel_agreement}

    @property
    def note(self) -> str:
        """The figure that is shown beside a run's progress."""
        return f"agreement with the teacher {self.agreement:.3f}"

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Agreement":
        """The figures that :meth:`to_json` wrote, without other values beside them."""
        figures = {name: _nan(values[name]) for name in ("agreement", "pixel_agreement")}
        by_class = {name: _nan(value) for name, value in values["by_class"].items()}
        return cls(**figures, by_class=by_class, images=values["images"])

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON; NaN becomes None."""
        figures = {name: _null(value) for name, value in self.curves.items()}
        by_class = {name: _null(value) for name, value in self.by_class.items()}
        return {"against": "teacher", **figures, "by_class": by_class, "images": self.images}


Figures = Evaluation | Agreement
"""What a run is judged by."""


def read_figures(values: Mapping[str, Any]) -> Figures | None:
    """The figures in the JSON of a run; None if it was not judged."""
    if values.get("against") == "teacher":
        return Agreement.from_json(values)
    return Evaluation.from_json(values) if "iou" in values else None


def _nan(value: float | None) -> float:
    return math.nan if value is None else value


def _null(value: float) -> float | None:
    return None if math.isnan(value) else value


def summarise(confusion_KK: Tensor, class_names: tuple[str, ...], images: int) -> Evaluation:
    """Figures of a confusion matrix, [K, K] (rows: label, columns: prediction)."""
    iou_K, accuracy = _overlaps(confusion_KK)
    labelled_K, predicted_K = ((confusion_KK.sum(dim=dim) > 0).cpu() for dim in (1, 0))
    names = _distinct(class_names)
    return Evaluation(
        miou=float(iou_K.nanmean()),
        miou_labelled=float(iou_K[labelled_K].mean()),
        pixel_accuracy=accuracy,
        iou=dict(zip(names, iou_K.tolist(), strict=True)),
        images=images,
        only_predicted=tuple(names[k] for k in (predicted_K & ~labelled_K).nonzero().flatten().tolist()),
    )


def _overlaps(confusion_KK: Tensor) -> tuple[Tensor, float]:
    """IoU of each class, float64 [K], and the share of equal pixels."""
    confusion = confusion_KK.double().cpu()
    hits = confusion.diag()
    iou_K = hits / (confusion.sum(dim=0) + confusion.sum(dim=1) - hits)  # 0 / 0 = NaN: the class is absent
    return iou_K, float(hits.sum() / confusion.sum())


def _distinct(class_names: Sequence[str]) -> list[str]:
    """The class names, with its number behind one that is not the first of its name."""
    return [name if name not in class_names[:k] else f"{name} ({k})" for k, name in enumerate(class_names)]


@torch.inference_mode()
def evaluate(model: Segmenter, data: LabelledFolder, *, batch_size: int = 8) -> Evaluation:
    """Predict every image at the model's input size and compare at the size of the label.

    The labels' class ids are the model's (:func:`distill.labelled.fit_classes`).

    Raises:
        DataError: a file cannot be read, the model has no class for a label, or no sound figure comes of the labels.
        ModelError: a logit is not finite.
    """
    device, names = model.device, model.spec.class_names
    matrix = MulticlassConfusionMatrix(len(names), ignore_index=VOID, validate_args=False).to(device)
    training, void = model.training, 0
    model.eval()
    for indices, images_N3HW in _input_batches(data, model.spec.image_size, batch_size):
        logits_NKHW = model(images_N3HW.to(device))
        check_logits(logits_NKHW, origin="the model")
        for index, logits_KHW in zip(indices, logits_NKHW, strict=True):
            label_HW = data.checked_label(index, len(names))
            void += int((label_HW == VOID).sum())
            predicted_HW = predict(logits_KHW, label_HW.shape)
            matrix.update(predicted_HW, torch.from_numpy(label_HW.copy()).long().to(device))
    model.train(training)
    confusion_KK = matrix.compute()
    check_counts(data, confusion_KK.sum(dim=1).cpu().numpy(), names, void=void)
    return summarise(confusion_KK, names, len(data))


AT_ONCE = 2**25
"""The largest number of logits at the size of a label that are in memory together."""


def predict(logits_Khw: Tensor, size: Sequence[int]) -> Tensor:
    """The class of each pixel at another size, [H, W]: of the logits, enlarged bilinearly, the largest.

    The classes are enlarged a few at a time, so that memory does not grow with their number.
    """
    height, width = size
    best_HW, classes_HW = logits_Khw.new_full((height, width), -math.inf), None
    few = max(1, AT_ONCE // (height * width))
    for first in range(0, len(logits_Khw), few):
        part = logits_Khw[None, first : first + few]
        part = F.interpolate(part, size=(height, width), mode="bilinear", align_corners=False)
        values_HW, places_HW = part[0].max(dim=0)
        if classes_HW is None:
            best_HW, classes_HW = values_HW, places_HW
            continue
        better_HW = values_HW > best_HW
        classes_HW = torch.where(better_HW, places_HW + first, classes_HW)
        best_HW = torch.where(better_HW, values_HW, best_HW)
    assert classes_HW is not None
    return classes_HW


def _input_batches(
    data: LabelledFolder, image_size: tuple[int, int], batch_size: int
) -> Iterator[tuple[range, Tensor]]:
    height, width = image_size
    for start in range(0, len(data), batch_size):
        indices = range(start, min(start + batch_size, len(data)))
        images = [data.image(index).resize((width, height), Image.Resampling.BILINEAR) for index in indices]
        yield indices, to_tensor([np.asarray(image) for image in images])


@torch.inference_mode()
def agree(student: Segmenter, teacher: Segmenter, batches: Iterable[Tensor]) -> Agreement:
    """Compare a student's predictions with its teacher's, on batches of uint8 images [N, 3, H, W].

    Raises:
        ModelError: a logit is not finite.
    """
    device, names = student.device, student.spec.class_names
    matrix = MulticlassConfusionMatrix(len(names), validate_args=False).to(device)
    training, images = student.training, 0
    student.eval()
    for images_N3HW in batches:
        on_device = images_N3HW.to(device)
        own, theirs = student(on_device), teacher(on_device)
        check_logits(theirs, origin="the teacher")
        check_logits(own, origin="the student")
        matrix.update(own.argmax(dim=1), theirs.argmax(dim=1))
        images += len(images_N3HW)
    student.train(training)
    iou_K, share = _overlaps(matrix.compute())
    by_class = dict(zip(_distinct(names), iou_K.tolist(), strict=True))
    return Agreement(agreement=float(iou_K.nanmean()), pixel_agreement=share, by_class=by_class, images=images)


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
        fitted = fit_classes(data, model.spec.class_names, model=path)
        results[name] = evaluate(model, fitted, batch_size=settings.batch_size)
        _say_what_is_only_predicted(results[name], model=path, data=settings.data)
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


def _say_what_is_only_predicted(evaluation: Evaluation, *, model: str, data: str) -> None:
    """Warn where classes that no label has drag the mean down."""
    if names := evaluation.only_predicted:
        logger.warning(
            "%s predicts %s, which no pixel of %s is labelled; its IoU of 0 counts in mIoU, not in that of the "
            "labelled classes",
            *(model, names[0] + (f" and {len(names) - 1} more classes" if len(names) > 1 else ""), data),
        )
