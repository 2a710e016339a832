"""Stage two from a store to a student, and runs that are interrupted."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import NAMES, tiny_model, tiny_spec
from PIL import Image
from stages import Stopped, score_folder, stop_at

from distill.answers import Guide
from distill.distillation import distill, find_selection
from distill.evaluation import Agreement
from distill.objective import Distillation
from distill.sampling import hold_out
from distill.settings import DistillSettings, TrainSettings
from distill.supervised import train
from pipeline.models.files import load_model, save_model
from pipeline.scoring.run import score
from pipeline.selection.images import Covering, SelectedImages
from pipeline.selection.select import make_selection, select
from pipeline.settings import ScoreSettings, SelectSettings
from storage.errors import CorpusError, DataError, ModelError, SelectionError, SettingsError, StoreError
from storage.scores.store import ScoreStore, open_complete


@pytest.fixture
def store(image_folder: Path, teacher_file: Path) -> ScoreStore:
    settings = ScoreSettings(corpus=str(image_folder), teacher=str(teacher_file), layers=("all",), device="cpu")
    return open_complete(score(settings).path)


def settings(**changes: Any) -> DistillSettings:
    fields: dict[str, Any] = {
        "student": "tiny_models:small", "steps": 12, "batch_size": 4,
        "checkpoint_every": 5, "eval_every": 6, "budget": 1.0, "device": "cpu", "out": "run",
    }  # fmt: skip
    return DistillSettings(**{**fields, **changes})


def test_a_student_comes_closer_to_the_teacher(store: ScoreStore) -> None:
    distill(settings(steps=150, lr=0.01, eval_every=50))
    curve = pd.read_csv("run/curves/plots/metrics/loss.tsv", sep="\t")
    assert curve["loss"].iloc[-3:].mean() < 0.5 * curve["loss"].iloc[:3].mean()
    metrics = json.loads(Path("run/metrics.json").read_text())
    assert metrics["steps"] == 150
    assert metrics["images"] == len(hold_out(23)) == 1
    student = load_model("run/student.safetensors")
    assert student.spec.class_names == NAMES
    assert not Path(".dvc").exists()


def test_labels_replace_agreement_where_they_are_given(store: ScoreStore, labelled_folder: Path) -> None:
    distill(settings(val=str(labelled_folder)))
    metrics = json.loads(Path("run/metrics.json").read_text())
    assert metrics["images"] == 6
    miou = pd.read_csv("run/curves/plots/metrics/miou.tsv", sep="\t")
    assert list(miou["step"]) == [6, 12]
    assert miou["miou"].iloc[-1] == pytest.approx(metrics["miou"], rel=1e-6)


def files(folder: Path) -> dict[str, bytes]:
    """The files of a run without its checkpoint and without the time that it took."""
    return {
        str(path.relative_to(folder)): re.sub(rb'"seconds": [\d.]+', b"", path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file() and path.name != "checkpoint.pt"
    }


def test_a_run_that_is_interrupted_and_resumed_ends_with_the_same_student_and_curves(store: ScoreStore) -> None:
    distill(settings(out="whole", by_sampling=True))
    with pytest.raises(Stopped):
        distill(settings(out="halved", by_sampling=True), stop_at(8))
    assert not Path("halved/student.safetensors").exists()
    distill(settings(out="halved", by_sampling=True, resume=True))
    assert files(Path("halved")) == files(Path("whole"))


def test_the_same_seed_gives_the_same_student_and_another_seed_another(store: ScoreStore) -> None:
    for out, seed in (("a", 0), ("b", 0), ("c", 1)):
        distill(settings(out=out, seed=seed, steps=3))
    a, b, c = (Path(out, "student.safetensors").read_bytes() for out in "abc")
    assert a == b != c


def test_a_run_is_not_lost_by_mistake(store: ScoreStore) -> None:
    distill(settings(steps=3))
    before = files(Path("run"))
    with pytest.raises(SettingsError, match="continue it with --resume, replace it with --overwrite"):
        distill(settings(steps=3))
    with pytest.raises(SettingsError, match=r"lr is 0.001 there and 0.1 now"):
        distill(settings(steps=3, lr=0.1, resume=True))
    assert files(Path("run")) == before
    Path("run/notes.txt").write_text("mine")
    distill(settings(steps=3, lr=0.1, resume=True, overwrite=True))
    assert files(Path("run"))["student.safetensors"] != before["student.safetensors"]
    assert Path("run/notes.txt").read_text() == "mine"


def test_the_selection_beside_the_store_is_used_and_never_silently_exchanged(store: ScoreStore) -> None:
    written = select(SelectSettings(strategy="random", budget=9, seed=5)).selection
    found = find_selection(settings(budget=None), store)
    assert list(found.table["row"]) == list(written.table["row"])
    assert list(find_selection(settings(budget=4), store).table["row"]) == list(written.table["row"][:4])
    assert list(find_selection(settings(budget=9), store).table["row"]) == list(written.table["row"])
    for budget in (10, 20):
        with pytest.raises(SelectionError, match=f"holds 9 images, but .* asks for {budget}.*--budget {budget}"):
            find_selection(settings(budget=budget), store)


def test_two_stores_in_one_folder_have_a_selection_each(
    store: ScoreStore, image_folder: Path, teacher_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    other = score_folder(image_folder, teacher_file, out="other.zarr", distance="paper")
    for shards, budget in (("scores.zarr", 9), ("other.zarr", 4)):
        select(SelectSettings(shards=shards, budget=budget))
    assert len(find_selection(settings(budget=None), store)) == 9
    assert "selection: 9 of 23 images of scores.zarr by ads, from scores.zarr.selection.parquet" in caplog.messages
    assert len(find_selection(settings(shards="other.zarr", budget=None), other)) == 4


def test_an_earlier_versions_selection_is_used_for_its_own_store_alone(
    store: ScoreStore, image_folder: Path, teacher_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = score_folder(image_folder, teacher_file, out="other.zarr", distance="paper")
    select(SelectSettings(budget=9, out="selection.parquet"))
    caplog.set_level("INFO")
    caplog.clear()
    assert len(find_selection(settings(budget=None), store)) == 9
    assert caplog.messages == ["selection: 9 of 23 images of scores.zarr by ads, from selection.parquet"]
    caplog.clear()
    assert len(find_selection(settings(shards="other.zarr", budget=None), other)) == 2
    passed_over, made = caplog.messages
    assert passed_over.startswith("selection.parquet is passed over: the selection was made from other scores")
    assert made == "selection: 2 of 23 images of other.zarr by ads, made now with budget 0.1"


def test_a_selection_that_is_made_now_follows_the_settings_for_it(store: ScoreStore) -> None:
    choosing = SelectSettings(strategy="random", budget=0.5, seed=3)
    found = find_selection(settings(budget=None), store, choosing)
    pd.testing.assert_frame_equal(found.table, make_selection(store, choosing).table)
    assert len(find_selection(settings(budget=5), store, choosing)) == 5


def test_a_run_says_what_it_works_with(store: ScoreStore, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    caplog.clear()
    distill(settings(steps=2))
    teacher, selection, student, *_ = caplog.messages
    assert teacher == f"teacher: {store.teacher_path} (tiny_models:tiny), on cpu"
    assert selection == "selection: 23 of 23 images of scores.zarr by ads, made now with budget 1.0"
    assert student.startswith("the student inherits")


def test_a_store_with_relative_paths_is_used_from_another_folder(
    image_folder: Path, teacher_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("deep").mkdir()
    score_folder(Path("images"), "teacher.safetensors", out="deep/scores.zarr")
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    distill(settings(shards="../deep/scores.zarr", steps=2))
    teacher_file.rename(teacher_file.with_name("moved.safetensors"))
    with pytest.raises(ModelError, match=r"scores.zarr was scored with this teacher: give its place now as --teacher"):
        distill(settings(shards="../deep/scores.zarr", steps=2, out="again"))
    distill(settings(shards="../deep/scores.zarr", steps=2, out="again", teacher="../moved.safetensors"))


def test_a_budget_of_a_share_is_one_of_the_images_that_were_scored(store: ScoreStore) -> None:
    written = select(SelectSettings(strategy="random", budget=0.9, seed=5)).selection
    assert len(written) == 21  # of 23
    assert list(find_selection(settings(budget=0.5), store).table["row"]) == list(written.table["row"][:12])


def test_without_any_selection_the_default_one_is_made(store: ScoreStore) -> None:
    found = find_selection(settings(budget=None), store)
    pd.testing.assert_frame_equal(found.table, make_selection(store, SelectSettings()).table)


def test_without_any_selection_the_budget_is_that_of_the_default_one(store: ScoreStore) -> None:
    found = find_selection(settings(budget=5), store)
    pd.testing.assert_frame_equal(found.table, make_selection(store, SelectSettings(budget=5)).table)


def test_labels_that_the_teacher_has_no_class_for_leave_no_run_behind(store: ScoreStore, labelled_folder: Path) -> None:
    label = np.full((40, 56), 3, dtype=np.uint8)
    Image.fromarray(label).save(labelled_folder / "labels" / "5.png")
    with pytest.raises(DataError, match=r"5\.png has class 3, but the model only 0 to 2"):
        distill(settings(val=str(labelled_folder)))
    (labelled_folder / "classes.txt").write_text("sky\nroad\ncar\ntree\n")
    with pytest.raises(DataError, match="^the teacher has 3 classes, .*labelled has 4"):
        distill(settings(val=str(labelled_folder)))
    assert not Path("run").exists()


def test_a_selection_of_other_scores_is_refused_by_name_and_passed_over_beside_the_store(
    store: ScoreStore, image_folder: Path, teacher_file: Path
) -> None:
    select(SelectSettings(budget=9))
    run_again = ScoreSettings(
        corpus=str(image_folder),
        teacher=str(teacher_file),
        distance="paper",
        layers=("all",),
        overwrite=True,
        device="cpu",
    )
    score(run_again)
    other = open_complete(store.path)
    with pytest.raises(SelectionError, match="made from other scores"):
        find_selection(settings(selection="scores.zarr.selection.parquet"), other)
    assert find_selection(settings(budget=None), other).about["strategy"] == "ads"


def test_another_teacher_than_the_scores_is_refused(store: ScoreStore) -> None:
    save_model(tiny_model(seed=3), Path("other.safetensors"))
    with pytest.raises(ModelError, match="not the teacher that"):
        distill(settings(teacher="other.safetensors"))


def test_a_student_continues_from_a_model_file_of_the_same_classes_only(store: ScoreStore) -> None:
    save_model(tiny_model(spec=tiny_spec(classes=("a", "b"))), Path("two.safetensors"))
    with pytest.raises(ModelError, match="2 classes, but the teacher 3"):
        distill(settings(student="two.safetensors"))
    distill(settings(student="teacher.safetensors", inherit=False, steps=2))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"shards": "absent.zarr"}, StoreError, "no scores in absent.zarr"),
        ({"selection": "absent.parquet"}, SelectionError, "selection absent.parquet does not exist"),
        ({"budget": 24}, SettingsError, "more than the 23 images"),
        ({"student": "nonsense"}, ModelError, "unknown network 'nonsense'"),
        ({"student": "tiny_models:picky"}, ModelError, "does not take 24x32 images"),
        ({"val": "absent"}, DataError, "folder absent/images does not exist"),
        ({"root": "absent"}, CorpusError, "absent"),
        ({"device": "cuda:9"}, SettingsError, "cuda:9 does not exist"),
    ],
)
def test_wrong_arguments_leave_no_run_behind(
    changes: dict[str, Any], error: type[Exception], message: str, store: ScoreStore
) -> None:
    with pytest.raises(error, match=message) as caught:
        distill(settings(**changes))
    assert "\n" not in str(caught.value)
    assert not Path("run").exists()


@pytest.mark.parametrize(
    "changes", [{"steps": 0}, {"lr": 0.0}, {"temperature": 0.0}, {"min_scale": 2.0}, {"warmup": 1.0}]
)
def test_settings_are_checked_when_they_are_made(changes: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match=next(iter(changes))):
        settings(**changes)


def test_an_image_that_went_bad_after_scoring_is_named(store: ScoreStore, image_folder: Path) -> None:
    selection = make_selection(store, SelectSettings(budget=1.0))
    second = str(selection.table["key"][1])
    path = image_folder / second
    path.write_bytes(b"x" * path.stat().st_size)
    images = SelectedImages(store, selection, decode=Covering(height=48, width=64))
    with images, pytest.raises(CorpusError, match=second):
        images[1]


def test_a_corpus_that_moved_is_found_at_its_new_root(store: ScoreStore, image_folder: Path) -> None:
    image_folder.rename(image_folder.with_name("moved"))
    with pytest.raises(CorpusError):
        distill(settings(steps=2))
    distill(settings(steps=2, root="moved"))


def test_held_out_images_are_spread_over_the_ranks() -> None:
    assert hold_out(10) == []
    assert hold_out(100) == [10, 30, 50, 70, 90]
    assert len(hold_out(100_000)) == 64
    assert np.diff(hold_out(100_000)).std() < 1


def test_a_run_of_another_version_of_the_program_is_not_continued(store: ScoreStore) -> None:
    distill(settings(steps=3))
    path = Path("run/settings.json")
    held = json.loads(path.read_text())
    del held["run_version"]
    path.write_text(json.dumps(held))
    with pytest.raises(SettingsError, match="run_version is 0 there and 2 now; replace it with --overwrite"):
        distill(settings(steps=3, resume=True))
    distill(settings(steps=3, resume=True, overwrite=True))


def test_a_finished_run_keeps_no_checkpoint_unless_asked_and_is_left_as_it_is(store: ScoreStore) -> None:
    first = distill(settings(steps=3))
    assert not Path("run/checkpoint.pt").exists()
    before = files(Path("run"))
    again = distill(settings(steps=3, resume=True))
    assert again.evaluation == first.evaluation
    assert files(Path("run")) == before
    distill(settings(steps=3, out="kept", keep_checkpoint=True))
    assert Path("kept/checkpoint.pt").exists()


def test_a_finished_run_is_made_again_when_asked_to_continue_or_replace(store: ScoreStore) -> None:
    """dvc.yaml relies on it: the inputs of a student may have changed, though its settings have not."""
    distill(settings(steps=3))
    before = files(Path("run"))
    Path("run/student.safetensors").write_bytes(b"made by other code")
    distill(settings(steps=3, resume=True, overwrite=True))
    assert files(Path("run")) == before


def test_supervised_training_learns_and_is_resumed_alike(labelled_folder: Path) -> None:
    common: dict[str, Any] = {
        "data": str(labelled_folder), "val": str(labelled_folder), "builder": "tiny_models:tiny",
        "image_size": (24, 32),
        "steps": 60, "batch_size": 4, "lr": 0.02, "checkpoint_every": 25, "eval_every": 30, "device": "cpu",
    }  # fmt: skip
    train(TrainSettings(**common, out="a"))
    metrics = json.loads(Path("a/metrics.json").read_text())
    assert metrics["pixel_accuracy"] > 0.7
    with pytest.raises(Stopped):
        train(TrainSettings(**common, out="b"), stop_at(40))
    train(TrainSettings(**common, out="b", resume=True))
    assert files(Path("b")) == files(Path("a"))


def test_the_student_changes_and_the_teacher_does_not(store: ScoreStore, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Distillation] = []
    plain = Distillation.__init__

    def remember(self: Distillation, **fields: Any) -> None:
        plain(self, **fields)
        made.append(self)

    monkeypatch.setattr(Distillation, "__init__", remember)
    before = load_model("teacher.safetensors").network.state_dict()
    distill(settings(steps=3, lr=0.1, student="teacher.safetensors", inherit=False))
    taught = load_model("run/student.safetensors").network.state_dict()
    assert all(torch.equal(before[name], tensor) for name, tensor in made[0].guide.teacher.network.state_dict().items())
    assert not torch.equal(before["stem.0.weight"], taught["stem.0.weight"])


def test_running_statistics_adapt_even_if_a_network_has_a_small_momentum(store: ScoreStore) -> None:
    """After a few dozen steps the student must predict nearly the same in eval mode and in training mode."""
    distill(settings(student="tiny_models:slow", inherit=False, steps=60, lr=0.01))
    student = load_model("run/student.safetensors")
    images = torch.rand(8, 3, 24, 32) * 0.5
    with torch.no_grad():
        gap = (student.train()(images) - student.eval()(images)).abs().mean()
    assert gap < 0.5 * student(images).std()


def test_what_is_held_out_cannot_change_in_the_middle_of_a_run(store: ScoreStore, labelled_folder: Path) -> None:
    with pytest.raises(Stopped):
        distill(settings(), stop_at(8))
    with pytest.raises(SettingsError, match=r"held_out is 1 there and 0 now"):
        distill(settings(resume=True, val=str(labelled_folder)))


@pytest.mark.parametrize("name", ["selection.parquet", "checkpoint.pt", "student.safetensors"])
def test_files_that_are_not_of_a_run_are_never_replaced(name: str, store: ScoreStore) -> None:
    Path("run").mkdir()
    Path("run", name).write_text("mine")
    with pytest.raises(SettingsError, match=f"holds {name} but no run"):
        distill(settings(steps=2, overwrite=True))
    assert Path("run", name).read_text() == "mine"


def test_a_curve_that_a_kill_cut_short_does_not_stop_a_resumed_run(store: ScoreStore) -> None:
    distill(settings(out="whole", steps=30))
    with pytest.raises(Stopped):
        distill(settings(out="halved", steps=30), stop_at(28))
    with Path("halved/curves/plots/metrics/loss.tsv").open("a") as table:
        table.write("3")  # of a line that was being written
    distill(settings(out="halved", steps=30, resume=True))
    assert files(Path("halved")) == files(Path("whole"))


def test_a_teacher_scored_by_catalogue_name_is_found_again_at_a_new_root(
    image_folder: Path, teacher_file: Path
) -> None:
    synset = Path("in/train/n01440764")
    synset.parent.mkdir(parents=True)
    image_folder.rename(synset)
    score(ScoreSettings(corpus="imagenet", root="in", teacher=str(teacher_file), device="cpu"))
    Path("in").rename("moved")
    distill(settings(steps=2, root="moved"))


def test_images_are_cached_no_larger_than_the_crops_need(store: ScoreStore) -> None:
    selection = make_selection(store, SelectSettings(budget=3))
    with SelectedImages(store, selection, decode=Covering(height=20, width=20)) as images:
        assert images[0].size == (28, 20)  # 56 x 40, halved: covers 20 x 20
    with SelectedImages(store, selection, decode=Covering(height=400, width=400)) as images:
        assert images[0].size == (56, 40)


def test_agreement_with_the_teacher_is_called_so_and_never_miou(store: ScoreStore) -> None:
    notes: list[str] = []
    found = distill(settings(), lambda step: notes.append(step.note)).evaluation
    assert isinstance(found, Agreement)
    metrics = json.loads(Path("run/metrics.json").read_text())
    assert metrics["against"] == "teacher"
    assert metrics["agreement"] == pytest.approx(found.agreement)
    agreement = pd.read_csv("run/curves/plots/metrics/agreement.tsv", sep="\t")
    assert list(agreement["step"]) == [6, 12]
    assert notes[-1].endswith(f"agreement with the teacher {found.agreement:.3f}")
    written = [path for path in Path("run").rglob("*") if path.suffix in (".json", ".tsv")]
    assert not [path for path in written if "miou" in (path.name + path.read_text()).lower()]
    assert distill(settings(resume=True)).evaluation == found


def test_a_teacher_whose_answers_are_not_finite_is_named_and_not_the_learning_rate(
    store: ScoreStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain: Callable[..., Any] = Guide.__call__

    def overflowing(self: Guide, images: torch.Tensor) -> Any:
        return {name: values * math.inf for name, values in plain(self, images).items()}

    monkeypatch.setattr(Guide, "__call__", overflowing)
    with pytest.raises(ModelError, match="the teacher's logits are not finite on the images of step 1"):
        distill(settings(views=0))
    assert not Path("run/student.safetensors").exists()
