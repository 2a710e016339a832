"""``dfss-train``, ``dfss-distill`` and ``dfss-eval``: parse, call one function, show what it found."""

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from distill.settings import DISTILL_METHODS, DistillSettings, EvalSettings, TrainSettings
from storage.commandline.command import Command, say
from storage.commandline.progress import track


def _train(settings: TrainSettings) -> None:
    from distill.supervised import train as run

    for _ in track(run(settings), title="training", unit="steps"):
        pass
    say(f"wrote {settings.out}/model.safetensors")


def _distill(settings: DistillSettings) -> None:
    from distill.distillation import distill as run

    for _ in track(run(settings), title="distilling", unit="steps"):
        pass
    say(f"wrote {settings.out}/student.safetensors")


def _evaluate(settings: EvalSettings) -> None:
    from distill.evaluation import Evaluation, judge

    results: dict[str, Evaluation] = judge(settings)
    table = Table(title=f"{settings.data}: {next(iter(results.values())).images} images")
    table.add_column("model", overflow="fold")
    for name in ("mIoU", "pixel accuracy"):
        table.add_column(name, justify="right")
    for name, result in results.items():
        table.add_row(escape(name), f"{result.miou:.3f}", f"{result.pixel_accuracy:.3f}")
    Console().print(table)
    classes = Table(title="IoU by class (- : neither labelled nor predicted)")
    classes.add_column("class")
    for name in results:
        classes.add_column(escape(name), justify="right", overflow="fold")
    # By position: models may name the same classes differently.
    for position, label in enumerate(next(iter(results.values())).iou):
        values = [list(result.iou.values())[position] for result in results.values()]
        classes.add_row(escape(label), *("-" if value != value else f"{value:.3f}" for value in values))
    Console().print(classes)


train = Command(
    name="dfss-train",
    settings=TrainSettings,
    section="train",
    run=_train,
    help="Train a model on labelled images: a teacher to try DFSS with, or a reference student.",
    example="dfss-train --data camvid/train --val camvid/val --builder Unet/resnet18 --out runs/teacher",
)
distill = Command(
    name="dfss-distill",
    settings=DistillSettings,
    section="distill",
    run=_distill,
    help="Stage two: train a student on the selected images by WDPD.",
    example="dfss-distill --shards scores.zarr --student lraspp_mobilenet_v3_large",
    methods=DISTILL_METHODS,
)
evaluate = Command(
    name="dfss-eval",
    settings=EvalSettings,
    section="eval",
    run=_evaluate,
    help="Measure mIoU, IoU by class and pixel accuracy of models on labelled images.",
    example="dfss-eval --model runs/student/student.safetensors --data camvid/val",
)
