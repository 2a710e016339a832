"""Which settings decide the model that a run ends with: all but a few, field by field."""

import dataclasses
import json
import threading
import typing
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_model
from stages import make_settings, make_train_settings, run_distill, score_folder, select_images

from distill.settings import DistillSettings, OptimisationSettings, TrainSettings
from distill.training.run_folder import RunFolder
from storage.errors import SettingsError
from storage.scores.store import ScoreStore
from storage.selection import write_selection

# Settings that a user may change before resuming a run: paths, device, and how often it is evaluated and saved.
FREE = {"resume", "overwrite", "out", "val", "eval_every", "checkpoint_every", "keep_checkpoint", "device", "root"}
FREE |= {"answers", "cache_gib"}
TOLD: dict[type, OptimisationSettings] = {
    DistillSettings: make_settings(),
    TrainSettings: make_train_settings(Path("data")),
}
ABOUT = {"held_out": 1, "student_of": "abc"}
OTHER: dict[str, Any] = {
    **{"image_size": (48, 64), "student_arguments": {"width": 5}, "arguments": {"width": 5}},
    **{"budget": 5, "class_names": ("a", "b"), "views": 3},
}


def other_value(kind: type, name: str, value: Any) -> Any:
    """Another value that the field may have."""
    if name in OTHER:
        return OTHER[name]
    hint = typing.get_type_hints(kind)[name]
    if typing.get_origin(hint) is typing.Literal:
        return next(choice for choice in typing.get_args(hint) if choice != value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value / 2 + 0.01
    return "5" if value != "5" else "6"


FIELDS = [(kind, field.name) for kind in TOLD for field in dataclasses.fields(kind)]


def started(settings: OptimisationSettings) -> RunFolder:
    folder = RunFolder(Path("claimed"), "model.safetensors")
    folder.claim(settings, ABOUT)
    optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)])
    folder.save_checkpoint(3, {"model": tiny_model()}, optimizer)
    return folder


@pytest.mark.parametrize(("kind", "name"), FIELDS, ids=lambda value: getattr(value, "__name__", value))
def test_a_run_continues_with_another_value_of_a_free_setting_only(kind: type, name: str) -> None:
    told = TOLD[kind]
    changed = dataclasses.replace(told, **{name: other_value(kind, name, getattr(told, name))})
    assert getattr(changed, name) != getattr(told, name)
    folder = started(told)
    again = changed if name in ("resume", "overwrite") else dataclasses.replace(changed, resume=True)
    if name == "overwrite":
        folder.claim(again, ABOUT)
        assert not folder.checkpoint.exists()  # replaced, as it was told
    elif name in FREE:
        folder.claim(again, ABOUT)
        assert folder.checkpoint.exists()
    else:
        with pytest.raises(
            SettingsError,
            match=rf"has a run with other settings: {name}.* is .* there and .* now; replace it with --overwrite",
        ):
            folder.claim(again, ABOUT)
        assert folder.checkpoint.exists()
        folder.claim(dataclasses.replace(again, overwrite=True), ABOUT)
        assert not folder.checkpoint.exists()


@pytest.mark.parametrize("about", [{**ABOUT, "student_of": "abd"}, {**ABOUT, "held_out": 2}])
def test_everything_that_decides_the_model_is_compared(about: dict[str, Any]) -> None:
    told = TOLD[DistillSettings]
    with pytest.raises(SettingsError, match="with other settings"):
        started(told).claim(dataclasses.replace(told, resume=True), about)


def test_a_run_is_not_resumed_on_another_selection_or_teacher(image_folder: Path, teacher_file: Path) -> None:
    store = score_folder(image_folder, teacher_file)
    write_selection(select_images(store, budget=9), Path("selection.parquet"))
    told = make_settings(budget=None, steps=2)
    run_distill(told)
    held = json.loads(Path("run/settings.json").read_text())
    assert held["teacher"] == store.attributes["teacher"]
    assert held["held_out"] == 0
    teacher_file.rename("moved.safetensors")  # the same teacher elsewhere is the same teacher
    run_distill(dataclasses.replace(told, teacher="moved.safetensors", resume=True))
    told = dataclasses.replace(told, teacher="moved.safetensors")
    write_selection(select_images(store, budget=9, strategy="nearest"), Path("selection.parquet"))
    with pytest.raises(SettingsError, match=r"selection strategy is ads there and nearest now"):
        run_distill(dataclasses.replace(told, resume=True))


@pytest.mark.parametrize("text", ['{"iou": 5}', '{"iou": {"sky": 1.0}}', '{"iou": [1]}'])
def test_damaged_figures_of_a_finished_run_are_an_error_that_names_the_file(text: str, scored_once: Path) -> None:
    settings = make_settings(shards=str(scored_once / "scores.zarr"), steps=1)
    run_distill(settings)
    (Path(settings.out) / "metrics.json").write_text(text)
    with pytest.raises(SettingsError, match=r"metrics.json is not what a run writes"):
        run_distill(dataclasses.replace(settings, resume=True))


def test_a_checkpoint_that_is_cut_off_anywhere_is_damaged() -> None:
    folder = started(TOLD[DistillSettings])
    whole = folder.checkpoint.read_bytes()
    model = tiny_model()
    optimizer = torch.optim.AdamW(model.parameters())
    for size in range(0, len(whole), 997):
        folder.checkpoint.write_bytes(whole[:size])
        with pytest.raises(SettingsError, match="is damaged"):
            folder.load_checkpoint({"model": model}, optimizer)


@pytest.mark.parametrize("damaged", ["settings.json", "metrics.json"])
@pytest.mark.parametrize("resume", [False, True])
def test_a_damaged_run_can_be_replaced(damaged: str, resume: bool, scored_store: ScoreStore) -> None:
    told = make_settings(shards=str(scored_store.path), steps=2)
    run_distill(told)
    before = Path("run/student.safetensors").read_bytes()
    Path("run", damaged).write_text("")
    run_distill(dataclasses.replace(told, resume=resume, overwrite=True))
    assert Path("run/student.safetensors").read_bytes() == before
    assert json.loads(Path("run", damaged).read_text())


def test_a_run_leaves_no_thread_behind(scored_store: ScoreStore) -> None:
    before = threading.active_count()
    run_distill(make_settings(shards=str(scored_store.path), steps=2))
    assert threading.active_count() == before
