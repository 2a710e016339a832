"""The commands of stage one: parse, call one function, show what it found."""

from rich.console import Console
from rich.table import Table

from pipeline.settings import SCORE_METHODS, ImportSettings, ScoreSettings, SelectSettings, SynthesisSettings
from pipeline.world.settings import WorldSettings
from storage.commandline.command import Command, say
from storage.commandline.progress import track


def _score(settings: ScoreSettings) -> None:
    from pipeline.scoring.run import Scoring

    scoring = Scoring(settings)
    for _ in track(scoring.run(), title="scoring", unit="images"):
        pass
    summary = scoring.summary
    assert summary is not None  # run() has ended
    done = " (complete already, nothing to do)" if summary.already_complete else ""
    total = summary.scored + summary.unreadable + summary.rejected
    say(
        f"{summary.path}: {total} images{done}: {summary.scored} scored, {summary.unreadable} unreadable, "
        f"{summary.rejected} rejected"
    )
    for key, error in summary.first_errors:
        say(f"  {key}: {error}")
    if summary.quantiles:
        say("distance: " + ", ".join(f"{100 * q:g} % {value:.3f}" for q, value in summary.quantiles.items()))
    timing = summary.timing
    if not summary.already_complete:
        say(
            f"seconds: {timing.reading:.1f} reading, {timing.decoding:.1f} decoding, {timing.inferring:.1f} inferring, "
            f"{timing.writing:.1f} writing; the teacher waited {timing.waiting:.1f} for images"
        )


def _list_corpora() -> None:
    from pipeline.corpora.catalogue import catalogue

    table = Table("name", "what", "images", "expected below its root", "root from")
    for entry in catalogue():
        table.add_row(entry.name, entry.title, f"{entry.images:,}", " or ".join(entry.layouts), entry.variables[0])
    Console().print(table)


def _select(settings: SelectSettings) -> None:
    from pipeline.selection.select import select

    path, selection = select(settings)
    distances = selection.table["distance"]
    say(
        f"{path}: {len(selection)} images by {settings.strategy}, distance {distances.min():.3f} to "
        f"{distances.max():.3f} (median {distances.median():.3f}), from {selection.table['cell'].nunique()} cells"
    )


def _import(settings: ImportSettings) -> None:
    from pipeline.models.importing import import_weights

    spec = import_weights(settings)
    height, width = spec.image_size
    say(f"{settings.out}: {spec.builder}, {spec.num_classes} classes, {height}x{width} pixels")


def _synthesize(settings: SynthesisSettings) -> None:
    from pipeline.synthesis import COST_FILE, Synthesis

    synthesis = Synthesis.prepare(settings)
    for _ in track(synthesis.run(), title="synthesizing", unit="steps"):
        pass
    say(f"{settings.out}: {synthesis.count} images; what they cost is in {settings.out}/{COST_FILE}")


def _make_world(settings: WorldSettings) -> None:
    from pathlib import Path

    from pipeline.world.writing import make_world as run

    run(Path(settings.out), settings=settings)
    counts = {"private": settings.private, "val": settings.validation, "wild": settings.wild}
    drawn = {part: count for part, count in counts.items() if settings.part in ("all", part)}
    say(f"{settings.out}: " + ", ".join(f"{count} {part} images" for part, count in drawn.items()))


score = Command(
    name="dfss-score",
    settings=ScoreSettings,
    section="score",
    run=_score,
    help="Stage one: measure how far every image of a corpus lies from the teacher's BatchNorm statistics.",
    example="dfss-score --corpus imagenet --teacher teacher.safetensors --out scores.zarr",
    flags={"list_corpora": (_list_corpora, "Show the catalogue and end")},
    methods=SCORE_METHODS,
)
select_images = Command(
    name="dfss-select",
    settings=SelectSettings,
    section="select",
    run=_select,
    help="ADS: choose close and diverse images. The first k rows are the selection for budget k.",
    example="dfss-select --shards scores.zarr --budget 20000",
)
import_model = Command(
    name="dfss-import",
    settings=ImportSettings,
    section="import",
    run=_import,
    help="Make a model file from weights that come from elsewhere.",
    example=(
        "dfss-import --builder torchvision:deeplabv3_resnet50 --weights voc.pth --num-classes 21 "
        "--image-size 520x520 --out teacher.safetensors"
    ),
)
synthesize = Command(
    name="dfss-synthesize",
    settings=SynthesisSettings,
    section="synthesize",
    run=_synthesize,
    help="The rival of stage one: make images by optimisation to the teacher's BatchNorm statistics.",
    example="dfss-synthesize --teacher teacher.safetensors --count 256 --out synthetic",
    interrupted="nothing was written",
)
make_world = Command(
    name="dfss-world",
    settings=WorldSettings,
    section="world",
    run=_make_world,
    help="Draw a small world of scenes to try DFSS with: private labelled scenes, a validation split, wild images.",
    example="dfss-world --out data/world",
)
