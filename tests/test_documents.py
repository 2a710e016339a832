"""Whatever README and docs/python.md show is run, commands and Python, on small data at the paths that they name."""

import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Call, draw_image
from PIL import Image
from test_commands import ENTRY_POINTS

from pipeline.models.builders import TRUSTED_BUILDERS
from pipeline.models.segmenter import ModelSpec, build_model

ROOT = Path(__file__).parents[1]
NAMES = tuple(f"class {index}" for index in range(8))
SHORT = {"dfss-distill": "--steps 2 --batch-size 2", "dfss-synthesize": "--steps 1 --count 4"}
"""What a command is given instead of its own words on these options, so that it takes seconds."""
MYNET = """
from torch import nn

def build(num_classes, width=8):
    return nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.Conv2d(width, num_classes, 1))
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with what the documents name: wild images, a labelled folder, weights, a network of the user's own."""
    (tmp_path / "data/world/wild").mkdir(parents=True)
    for index in range(152):
        draw_image(index, 24, 32).save(tmp_path / f"data/world/wild/{index:03}.png")
    for part in ("images", "labels"):
        (tmp_path / "data/world/val" / part).mkdir(parents=True)
    for index in range(2):
        draw_image(index, 96, 128).save(tmp_path / f"data/world/val/images/{index}.png")
        label = np.random.default_rng(index).integers(0, 8, (96, 128), dtype=np.uint8)
        Image.fromarray(label).save(tmp_path / f"data/world/val/labels/{index}.png")
    (tmp_path / "classes.txt").write_text("".join(f"{index} {name}\n" for index, name in enumerate(NAMES)))
    torch.manual_seed(0)
    spec = ModelSpec(builder="smp:Unet/resnet18", num_classes=8, class_names=NAMES, image_size=(96, 128))
    model = build_model(spec).train()
    with torch.no_grad():
        for _ in range(3):
            model(torch.rand(2, 3, 96, 128))
    torch.save(model.network.state_dict(), tmp_path / "weights.pth")
    (tmp_path / "mynet.py").write_text(MYNET)
    monkeypatch.syspath_prepend(tmp_path)
    import mynet

    torch.save(mynet.build(8, width=32).state_dict(), tmp_path / "mine.pth")
    yield tmp_path
    sys.modules.pop("mynet")


def blocks(document: str, language: str) -> list[str]:
    """The code blocks of a document in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", (ROOT / document).read_text(), re.MULTILINE | re.DOTALL)


def lines_like(shown: str) -> re.Pattern[str]:
    """A line of output as a document shows it, with any numbers in place of its own."""
    number = r"\d[\d.,]*"
    return re.compile(number.join(map(re.escape, re.split(number, shown.strip()))))


def test_the_documents_commands_run_and_print_what_they_show(
    place: Path, call: Call, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commands = 0
    for block in blocks("README.md", "console"):
        for part in block.removeprefix("$ ").split("\n$ "):
            typed, *shown = part.strip("\n").split("\n")
            if typed.startswith("export "):
                for assignment in shlex.split(typed)[1:]:
                    name, _, value = assignment.partition("=")
                    monkeypatch.setenv(name, value if name != TRUSTED_BUILDERS else f"{value},tiny_models")
                continue
            name, *arguments = shlex.split(typed)
            assert call(ENTRY_POINTS[name], *shortened(name, arguments)) == 0, typed
            printed = capsys.readouterr()
            for line in shown:
                assert lines_like(line).search(printed.out + printed.err), (line, printed)
            commands += 1
    assert commands >= 10


def shortened(name: str, arguments: list[str]) -> list[str]:
    """The arguments with the options of SHORT in place of their own."""
    short = SHORT.get(name, "").split()
    starts = [place for place, word in enumerate(arguments) if word in short[::2]]
    return [word for place, word in enumerate(arguments) if not {place, place - 1} & set(starts)] + short


@pytest.mark.parametrize("document", ["README.md", "docs/python.md"])
def test_the_documents_python_runs(document: str, place: Path, call: Call) -> None:
    assert call(ENTRY_POINTS["dfss-import"], *shlex.split(import_line())) == 0
    found = blocks(document, "python")
    assert found
    for code in found:
        short = code.replace("steps=60", "steps=2, batch_size=2")
        exec(compile(short, document, "exec"), {})


def import_line() -> str:
    """README's arguments of dfss-import."""
    first = next(block for block in blocks("README.md", "console") if block.startswith("$ dfss-import"))
    return first.splitlines()[0].removeprefix("$ dfss-import ")


def test_readmes_two_commands_are_targets_of_make() -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    named = re.findall(r"^    make ([a-z-]+)", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert named == ["repro", "test"]
    assert set(named) <= set(targets)


def test_links_lead_somewhere() -> None:
    for document in [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "recipes").glob("*/README.md")]:
        for link in re.findall(r"\]\(([^)#:]+)(?:#[\w-]*)?\)", document.read_text()):
            assert (document.parent / link).exists(), (document.name, link)


def test_readme_can_be_read_in_a_diff() -> None:
    text = re.sub(r"^```.*?^```$", "", (ROOT / "README.md").read_text(), flags=re.MULTILINE | re.DOTALL)
    assert max(len(line) for line in text.splitlines() if not line.startswith("|")) <= 120
