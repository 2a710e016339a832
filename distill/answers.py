"""The teacher's answers to the student's pictures: asked in every step, or once for a fixed number of pictures.

Answers are the teacher's logits before the network enlarges them, and the inputs of those of its BatchNorm layers that
the feature loss compares, in the layers' own standard deviations; for a cut student, their kept channels. Asked once,
they are kept in half precision or 8 bits beside the runs (storage.answers). Runs with the same teacher, selection and
pictures share them, whatever their seed, student, loss and weights.

Shapes: N images of a batch, K classes, C channels, h x w positions, H x W pixels.
"""

import dataclasses
import hashlib
import json
import threading
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from distill.evaluation import to_tensor
from distill.inheritance import recorded, standardised
from distill.pictures import Pictures
from distill.training.loop import ahead
from pipeline.batchnorm.layers import BatchNorm
from pipeline.models.enlargement import Enlargement, find_enlargement
from pipeline.models.segmenter import Segmenter
from pipeline.settings import Precision
from storage.answers import ANSWERS_VERSION, AnswerStore, Bits, Kept, MapShape, open_answers, size_of
from storage.errors import ModelError, SettingsError
from storage.files.claim import exclusive, sweep
from storage.progress import Progress, Step

LOGITS = "logits"
BATCH = 16
"""Pictures in a forward pass of the teacher."""
UNIT_IMAGES = 16
"""Images whose fixed pictures make a work unit."""
CACHE_BYTES = 2 << 30
GIB = 1 << 30
MOST_HALF = 65504.0
"""The largest number in half precision."""
Answers = dict[str, Tensor]
"""Coarse logits and compared inputs by name, [N, C, h, w] each."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Guide:
    """A teacher that answers."""

    teacher: Segmenter
    compared: Mapping[str, BatchNorm]
    """The layers of the teacher whose inputs are compared, by name."""
    enlargement: Enlargement
    precision: Precision
    channels: Mapping[BatchNorm, Tensor] = dataclasses.field(default_factory=dict)
    """The only channels that are answered of a layer, where these are not all."""
    shapes: Mapping[str, MapShape] = dataclasses.field(default_factory=dict)
    """Channels, height and width of each map of an answer."""

    @classmethod
    def of(
        cls,
        teacher: Segmenter,
        compared: Sequence[nn.Module],
        precision: Precision,
        channels: Mapping[BatchNorm, Tensor] | None = None,
    ) -> "Guide":
        """Make the guide of a teacher whose inputs of these BatchNorm layers are compared, or some channels of them."""
        names = {module: name for name, module in teacher.network.named_modules()}
        layers = {names[layer]: layer for layer in compared if isinstance(layer, BatchNorm)}
        enlargement = find_enlargement(teacher, teacher.spec.image_size)
        guide = cls(
            teacher=teacher, compared=layers, enlargement=enlargement, precision=precision, channels=channels or {}
        )
        height, width = teacher.spec.image_size
        answers = guide(torch.full((1, 3, height, width), 0.5, device=teacher.device))
        shapes = {name: (values.shape[1], values.shape[2], values.shape[3]) for name, values in answers.items()}
        return dataclasses.replace(guide, shapes=shapes)

    @torch.no_grad()
    def __call__(self, images_N3HW: Tensor) -> Answers:
        """Answer to images, uint8 or float in [0, 1]."""
        with (
            recorded(self.compared.values()) as found,
            torch.autocast(self.teacher.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"),
        ):

            def enough() -> bool:
                return len(found) == len(self.compared)  # one may run after the logits, in an auxiliary head

            logits = self.enlargement.coarse(images_N3HW, enough=enough)
        inputs = {name: self._compared(found[layer], layer) for name, layer in self.compared.items()}
        return {LOGITS: logits.float(), **inputs}

    def _compared(self, input_NCHW: Tensor, layer: BatchNorm) -> Tensor:
        channels = self.channels.get(layer)
        return standardised(input_NCHW if channels is None else input_NCHW[:, channels], layer, channels)

    def answer(self, answers: Answers, layer: BatchNorm, channels: Tensor | None = None) -> Tensor:
        """The answered input of a layer, at some of its channels or at all that are answered."""
        name = next(name for name, compared in self.compared.items() if compared is layer)
        return answers[name] if channels is None or layer in self.channels else answers[name][:, channels]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """What is asked once, and where the answers are kept."""

    guide: Guide
    pictures: Pictures
    folder: Path
    bits: Bits
    about: Mapping[str, Any]
    """Everything that the pictures and the answers depend on."""

    @property
    def rows(self) -> int:
        """The number of pictures."""
        return len(self.pictures.training_places) * self.pictures.fixed

    def store(self) -> AnswerStore:
        """The store of the answers, which may be empty."""
        about, shapes = {**self.about, "pictures": self.pictures.fixed}, self.guide.shapes
        known = json.dumps([ANSWERS_VERSION, about, shapes, self.bits], sort_keys=True)
        path = self.folder / f"{hashlib.sha256(known.encode()).hexdigest()[:16]}.zarr"
        unit = min(self.rows, UNIT_IMAGES * self.pictures.fixed)
        with exclusive(path, wait=True):
            return open_answers(path, shapes, rows=self.rows, unit=unit, bits=self.bits, about=about)


def checked_size(question: Question, most_gib: float) -> int:
    """Bytes of the answers before compression.

    Raises:
        SettingsError: they are more than ``most_gib``.
    """
    size = size_of(question.guide.shapes, rows=question.rows, bits=question.bits)
    if size > most_gib * GIB:
        images, views = len(question.pictures.training_places), question.pictures.fixed
        raise SettingsError(
            f"the teacher's answers to {views} views of {images} images take {size / GIB:.1f} GiB, more than "
            f"{most_gib:g}; give fewer --views, --answer-bits 8, a smaller --budget, or more --cache-gib",
            field="cache_gib",
        )
    return size


def ask(question: Question, *, most_gib: float, progress: Progress) -> "KeptAnswers":
    """Ask the teacher what it has not answered yet; return all answers.

    Of several runs that need the same answers, one asks and the others wait.

    Raises:
        SettingsError: the answers are larger than ``most_gib``.
        ModelError: the teacher's answers are not finite.
    """
    size = checked_size(question, most_gib)
    store = question.store()
    with exclusive(store.path, wait=True):
        if pending := store.pending_units():
            sweep(store.path)
            _ask(question, store, pending, f"{size / GIB:.2f} GiB in {store.path}", progress)
    return KeptAnswers(store, question.pictures.fixed)


def _ask(question: Question, store: AnswerStore, pending: list[range], note: str, progress: Progress) -> None:
    guide, pictures = question.guide, question.pictures
    done = len(store) - sum(map(len, pending))
    batches = [
        (unit, range(start, min(start + BATCH, unit.stop)))
        for unit in pending
        for start in range(unit.start, unit.stop, BATCH)
    ]

    def report() -> None:
        progress(Step(done=done, total=len(store), note=note, task="asking the teacher", unit="views"))

    def make(index: int) -> Tensor:
        rows = batches[index][1]
        return to_tensor([pictures.pixels(pictures.draw_fixed(*divmod(row, pictures.fixed))) for row in rows])

    report()
    collected: list[Answers] = []
    with closing(ahead(make, 0, len(batches))) as made:
        for index, images in made:
            unit, rows = batches[index]
            answers = guide(images.to(guide.teacher.device))
            # A common offset of all logits means nothing to any loss, but half precision would round it.
            answers[LOGITS] = answers[LOGITS] - answers[LOGITS].mean(dim=(1, 2, 3), keepdim=True)
            for name, values in answers.items():
                if not values.isfinite().all():
                    raise ModelError(f"the teacher's {name} are not finite; check its weights, or use float32")
                if question.bits == 16 and values.abs().max() > MOST_HALF:
                    raise ModelError(
                        f"the teacher's {name} are up to {float(values.abs().max()):.3g}, but half precision ends at "
                        f"{MOST_HALF:.0f}; give --answer-bits 8, or --views 0"
                    )
            kept = torch.float16 if question.bits == 16 else torch.float32
            collected.append({name: values.to(kept).cpu() for name, values in answers.items()})
            done += len(rows)
            if rows.stop == unit.stop:
                names = collected[0].keys()
                store.write(unit, {name: torch.cat([part[name] for part in collected]).numpy() for name in names})
                collected = []
            report()


def to_device(answers: Answers, device: torch.device) -> Answers:
    """The answers on a device, in float32. They travel as they are kept."""
    return {name: values.to(device, non_blocking=True).float() for name, values in answers.items()}


class KeptAnswers:
    """Answers of a complete store, read as they are needed and kept in memory as far as there is room."""

    def __init__(self, store: AnswerStore, pictures: int) -> None:
        self._store, self._pictures = store, pictures
        self._cache: dict[int, Kept] = {}
        self._room = CACHE_BYTES
        self._lock = threading.Lock()

    def __call__(self, asked: Sequence[tuple[int, int]]) -> Answers:
        """The answers to fixed pictures, (place, number) each, for :func:`to_device`."""
        kept = [self._read(place * self._pictures + number) for place, number in asked]
        stacked = {name: np.stack([row[name] for row in kept]) for name in kept[0]}
        return {name: torch.from_numpy(values) for name, values in self._store.maps(stacked).items()}

    def _read(self, row: int) -> Kept:
        if (cached := self._cache.get(row)) is not None:
            return cached
        kept = self._store.read(row)
        size = sum(values.nbytes for values in kept.values())
        with self._lock:
            if size <= self._room and row not in self._cache:
                self._cache[row] = kept
                self._room -= size
        return kept
