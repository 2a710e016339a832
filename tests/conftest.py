"""A tiny teacher, tiny images, and a way to call the commands. Nothing is downloaded."""

import importlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.models.builders import TRUSTED_BUILDERS
from pipeline.models.files import save_model
from pipeline.models.segmenter import ModelSpec, Segmenter, build_model
from storage.scores.store import ScoreStore, open_complete

HEIGHT, WIDTH = 24, 32
NAMES = ("sky", "road", "car")


def load_recipe(recipe: str, module: str) -> ModuleType:
    """A module of a recipe, which nobody installs; it finds its neighbours while it loads."""
    folder = str(Path(__file__).parents[1] / "recipes" / recipe)
    sys.path.insert(0, folder)
    sys.modules.pop(module, None)  # another recipe may have one of this name
    try:
        return importlib.import_module(module)
    finally:
        sys.path.remove(folder)


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    monkeypatch.setenv(TRUSTED_BUILDERS, "tiny_models")
    monkeypatch.chdir(tmp_path)  # no params.yaml of the project, and nothing written into it


def tiny_spec(builder: str = "tiny_models:tiny", classes: tuple[str, ...] = NAMES) -> ModelSpec:
    return ModelSpec(builder=builder, num_classes=len(classes), class_names=classes, image_size=(HEIGHT, WIDTH))


def tiny_model(seed: int = 0, spec: ModelSpec | None = None) -> Segmenter:
    """A model whose BatchNorm layers have seen images, so that its running statistics mean something."""
    torch.manual_seed(seed)
    model = build_model(spec or tiny_spec())
    model.train()
    with torch.no_grad():
        for _ in range(20):
            model(torch.rand(4, 3, HEIGHT, WIDTH) * 0.5 + 0.2)
    return model.eval()


@pytest.fixture
def teacher() -> Segmenter:
    return tiny_model()


@pytest.fixture
def teacher_file(teacher: Segmenter, tmp_path: Path) -> Path:
    path = tmp_path / "teacher.safetensors"
    save_model(teacher, path)
    return path


def draw_image(index: int, height: int = 40, width: int = 56) -> Image.Image:
    """Smooth colours that differ from image to image in brightness, contrast and direction."""
    rng = np.random.default_rng([7, index])
    coarse = rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    dark = rng.uniform(0.2, 1.0)
    image = Image.fromarray((coarse * dark).astype(np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    return image


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """23 images: with a shard size of 8, three units of which the last is short."""
    folder = tmp_path / "images"
    folder.mkdir()
    for index in range(23):
        draw_image(index).save(folder / f"{index:03}.png")
    return folder


@pytest.fixture(scope="session")
def scored_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the 23 images, the teacher and its scores by all layers; nobody writes into it."""
    from stages import score_folder

    folder = tmp_path_factory.mktemp("scored")
    (folder / "images").mkdir()
    for index in range(23):
        draw_image(index).save(folder / "images" / f"{index:03}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(TRUSTED_BUILDERS, "tiny_models")
        save_model(tiny_model(), folder / "teacher.safetensors")
        score_folder(folder / "images", folder / "teacher.safetensors", out=str(folder / "scores.zarr"))
    return folder


@pytest.fixture
def scored_store(scored_once: Path, tmp_path: Path) -> ScoreStore:
    """A copy of those scores, ``scores.zarr`` in the working folder."""
    shutil.copytree(scored_once / "scores.zarr", tmp_path / "scores.zarr")
    return open_complete(tmp_path / "scores.zarr")


@pytest.fixture
def labelled_folder(tmp_path: Path) -> Path:
    """Six images whose label follows from their brightness, with some void."""
    root = tmp_path / "labelled"
    (root / "images").mkdir(parents=True)
    (root / "labels").mkdir()
    for index in range(6):
        image = draw_image(index)
        grey = np.asarray(image.convert("L"))
        label = np.digitize(grey, [60, 120]).astype(np.uint8)
        label[:2] = 255
        image.save(root / "images" / f"{index}.png")
        Image.fromarray(label).save(root / "labels" / f"{index}.png")
    (root / "classes.txt").write_text("0 sky\n1 road\n2 car\n255 void\n")
    return root


Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run_command(tmp_path: Path) -> Run:
    """Run a console script in its own process, as a user would: ``run_command("dfss-score", "--corpus", ...)``."""

    def run(name: str, *arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command_line(name, *arguments), capture_output=True, text=True, cwd=tmp_path, env=command_environment()
        )

    return run


def command_line(name: str, *arguments: object) -> list[str]:
    return [str(Path(sys.executable).with_name(name)), *map(str, arguments)]


def command_environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


Call = Callable[..., int]


@pytest.fixture
def call() -> Call:
    """Call a command in this process and return its exit code; what it printed is in ``capfd``."""

    def run(command: Callable[[list[str]], None], *arguments: object) -> int:
        with pytest.raises(SystemExit) as ended:
            command([str(argument) for argument in arguments])
        return int(ended.value.code or 0)

    return run
