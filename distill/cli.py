"""``dfss-train``, ``dfss-distill`` and ``dfss-eval``. Each parses options, calls one function and shows the result."""

import storage.commandline.interrupts  # noqa: F401  (before the imports that take time)

# isort: split

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from distill.settings import DISTILL_METHODS, DistillSettings, EvalSettings, TrainSettings
from pipeline.settings import SelectSettings
from storage.commandline.command import Command, say
from storage.commandline.given import settings_in_params
from storage.commandline.progress import shown
from storage.commandline.terminal import one_line

KEPT = "the steps that were taken are kept; --resume goes on from there"


def _train(settings: TrainSettings) -> None:
    from distill.supervised import train
    from pipeline.process import own_process

    own_process()
    with shown("training", "steps") as progress:
        result = train(settings, progress)
    say(f"wrote {result.path}")


def _distill(settings: DistillSettings) -> None:
    from distill.distillation import distill
    from pipeline.process import own_process

    own_process()
    choosing = settings_in_params(SelectSettings, section="select", command="dfss-select", shards=settings.shards)
    with shown("distilling", "steps") as progress:
        result = distill(settings, progress, choosing=choosing)
    say(f"wrote {result.path}")


def _evaluate(settings: EvalSettings) -> None:
    from distill.evaluation import evaluate_models
    from pipeline.process import own_process

    own_process()
    results = evaluate_models(settings).evaluations
    table = Table(title=f"{settings.data}: {next(iter(results.values())).images} images")
    table.add_column("model", overflow="fold")
    for name in ("mIoU", "of labelled classes", "pixel accuracy"):
        table.add_column(name, justify="right")
    for name, result in results.items():
        table.add_row(escape(one_line(name)), *(f"{figure:.3f}" for figure in result.curves.values()))
    Console().print(table)
    classes = Table(title="IoU by class (-: the class is neither labelled nor predicted)")
    classes.add_column("class")
    for name in results:
        classes.add_column(escape(one_line(name)), justify="right", overflow="fold")
    for position, label in enumerate(next(iter(results.values())).iou):
        values = [_of_class(result.iou, label, position) for result in results.values()]
        classes.add_row(escape(one_line(label)), *("-" if value != value else f"{value:.3f}" for value in values))
    Console().print(classes)


def _of_class(iou: dict[str, float], label: str, position: int) -> float:
    """The IoU of a class by its name, or by its position, because models may name the same classes differently."""
    return iou[label] if label in iou else list(iou.values())[position]


train = Command(
    name="dfss-train",
    settings=TrainSettings,
    belongs={"arguments": "builder"},
    section="train",
    run=_train,
    help="Train a model on labelled images: a teacher to try DFSS with, or a reference student.",
    example="dfss-train --data camvid/train --val camvid/val --builder Unet/resnet18 --out runs/teacher",
    interrupted=KEPT,
)
distill = Command(
    name="dfss-distill",
    settings=DistillSettings,
    section="distill",
    run=_distill,
    help=(
        "Stage two: train a student on the selected images by WDPD. "
        "WDPD is Weighted Distribution Progressive Distillation."
    ),
    example="dfss-distill --shards scores.zarr --student lraspp_mobilenet_v3_large",
    methods=DISTILL_METHODS,
    belongs={"student_arguments": "student"},
    interrupted=KEPT,
)
evaluate = Command(
    name="dfss-eval",
    settings=EvalSettings,
    section="eval",
    run=_evaluate,
    help="Measure mIoU, IoU by class and pixel accuracy of models on labelled images.",
    example="dfss-eval --model runs/student/student.safetensors --data camvid/val",
)
