"""The commands of stage one. Each parses its options, calls one function and shows the result."""

import storage.commandline.interrupts  # noqa: F401  (before the imports that take time)

# isort: split

import shutil
import textwrap

from pipeline.settings import SCORE_METHODS, ImportSettings, ScoreSettings, SelectSettings, SynthesisSettings
from storage.commandline.command import Command, say
from storage.commandline.progress import shown
from storage.commandline.terminal import one_line


def _score(settings: ScoreSettings) -> None:
    from pipeline.process import own_process
    from pipeline.scoring.run import score

    own_process()
    with shown("scoring", "images") as progress:
        result = score(settings, progress)
    done = " (already complete, nothing to do)" if result.already_complete else ""
    total = result.scored + result.unreadable + result.rejected
    say(
        f"{result.path}: {total} images{done}: {result.scored} scored, {result.unreadable} unreadable, "
        f"{result.rejected} rejected"
    )
    for key, error in result.first_errors:
        say(f"  {one_line(key)}: {one_line(error)}")
    if settings.failures:
        say(f"  {settings.failures} lists all images that have no score")
    elif (more := result.unreadable + result.rejected - len(result.first_errors)) > 0:
        say(f"  and {more} more; --failures FILE lists all")
    if total and not result.scored:
        say("  no image could be scored, so none can be selected")
    if result.quantiles:
        say("distance: " + ", ".join(f"{100 * q:g} % {value:.3f}" for q, value in result.quantiles.items()))
    timing = result.timing
    if not result.already_complete:
        say(
            f"seconds: {timing.reading:.1f} reading, {timing.decoding:.1f} decoding, {timing.inferring:.1f} inferring, "
            f"{timing.writing:.1f} writing; the teacher waited {timing.waiting:.1f} for images"
        )


def _list_corpora() -> None:
    from pipeline.corpora.catalogue import catalogue

    width = shutil.get_terminal_size().columns
    for entry in catalogue():
        say(f"{entry.name}: {entry.title}, {entry.images:,} images")
        for label, text in (("root", f"--root or ${entry.variables[0]}"), ("layouts", " or ".join(entry.layouts))):
            lines = textwrap.wrap(f"{label}: {text}", width - 2, subsequent_indent="  ", break_on_hyphens=False)
            say(textwrap.indent("\n".join(lines), "  "))


def _select(settings: SelectSettings) -> None:
    from pipeline.selection.select import select

    result = select(settings)
    table = result.selection.table
    distances = table["distance"]
    say(
        f"{result.path}: {len(table)} images by {settings.strategy}, distance {distances.min():.3f} to "
        f"{distances.max():.3f} (median {distances.median():.3f}), from {table['cell'].nunique()} cells"
    )


def _import(settings: ImportSettings) -> None:
    from pipeline.models.importing import import_weights

    spec = import_weights(settings)
    height, width = spec.image_size
    say(f"{settings.out}: {spec.builder}, {spec.num_classes} classes, {height}x{width} pixels")


def _synthesize(settings: SynthesisSettings) -> None:
    from pipeline.process import own_process
    from pipeline.synthesis import COST_FILE, synthesize

    own_process()
    with shown("synthesizing", "steps") as progress:
        result = synthesize(settings, progress)
    say(f"{result.path}: {result.images} images; {result.path}/{COST_FILE} gives their cost")
    say(
        f"median distance by all layers: {result.distance_before:.3f} before, {result.distance_after:.3f} after; "
        f"{result.unchanged} images came no nearer and are as they were"
    )


score = Command(
    name="dfss-score",
    settings=ScoreSettings,
    section="score",
    run=_score,
    help="Stage one: measure how far every image of a corpus lies from the teacher's BatchNorm statistics.",
    example="dfss-score --corpus imagenet --teacher teacher.safetensors --out scores.zarr",
    flags={"list_corpora": (_list_corpora, "Show the catalogue of corpora and exit")},
    methods=SCORE_METHODS,
)
select = Command(
    name="dfss-select",
    settings=SelectSettings,
    section="select",
    run=_select,
    help=(
        "ADS (Approximate Distribution Sampling): choose close and diverse images. "
        "The first k rows are the selection for budget k."
    ),
    example="dfss-select --shards scores.zarr --budget 20000",
)
import_model = Command(
    name="dfss-import",
    settings=ImportSettings,
    belongs={"arguments": "builder"},
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
    help="A baseline of stage one: make images by optimisation to the teacher's BatchNorm statistics.",
    example="dfss-synthesize --teacher teacher.safetensors --count 256 --out synthetic",
    interrupted="nothing was written",
)
