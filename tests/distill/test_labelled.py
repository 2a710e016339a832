"""Labels that would give a figure that looks right: each is mapped, said or refused, as its kind deserves."""

import hashlib
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import NAMES, Call, tiny_model, tiny_spec
from numpy.typing import NDArray
from PIL import Image
from stages import make_settings, make_train_settings, prepare_train, run_distill

import distill.cli
from distill.evaluation import evaluate, evaluate_models
from distill.labelled import LabelledFolder, check_labels, fit_classes, open_labelled
from distill.settings import EvalSettings
from distill.supervised import train
from pipeline.models.class_names import read_class_names
from pipeline.models.files import save_model
from pipeline.models.segmenter import Segmenter
from storage.errors import DataError, ModelError, SettingsError
from storage.scores.store import ScoreStore


def relabel(folder: Path, change: Callable[[NDArray[np.uint8]], NDArray[Any]]) -> None:
    for path in (folder / "labels").iterdir():
        Image.fromarray(change(np.asarray(Image.open(path)))).save(path)


def shuffled(folder: Path) -> dict[str, int]:
    """Number the classes anew, in the labels and in classes.txt; the pixels mean what they meant."""
    order = {"car": 0, "sky": 1, "road": 2}
    relabel(folder, lambda label: np.choose(np.minimum(label, 3), [1, 2, 0, 255]).astype(np.uint8))
    (folder / "classes.txt").write_text("0 Car\n1 SKY\n2 road\n")
    return order


def test_classes_that_are_the_same_words_in_another_order_are_matched_by_name(
    teacher: Segmenter, labelled_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = evaluate(teacher, fit_classes(open_labelled(labelled_folder), NAMES, model="m"))
    shuffled(labelled_folder)
    assert evaluate(teacher, open_labelled(labelled_folder)) != before
    assert evaluate(teacher, fit_classes(open_labelled(labelled_folder), NAMES, model="m")) == before
    assert caplog.messages == [
        f"{labelled_folder} has the classes of m in another order; its labels are matched by name"
    ]


def test_training_and_validation_data_may_number_the_classes_differently(
    labelled_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(labelled_folder, "val")
    shuffled(Path("val"))
    objective = prepare_train(make_train_settings(labelled_folder, val="val"), monkeypatch).objective
    for index in range(6):
        np.testing.assert_array_equal(objective.val.label(index), objective.data.label(index))


def test_a_student_is_validated_by_the_names_of_its_classes(scored_store: ScoreStore, labelled_folder: Path) -> None:
    figures = []
    for out in ("a", "b"):
        run_distill(make_settings(out=out, val=str(labelled_folder), steps=1))
        figures.append(Path(out, "metrics.json").read_text().partition('"seconds"')[0])
        shuffled(labelled_folder)
    assert figures[0] == figures[1]


@pytest.mark.parametrize(
    ("names", "says"),
    [
        ("sky\ncar\ntree\n", "class 'car' is number 1 of .*labelled, but number 2 of m"),
        ("sky\nroad\ncar\nvoid\n", r"m has 3 classes, but .*labelled has 4 \(sky, road, car, void\);.*255 name"),
    ],
)
def test_class_names_that_contradict_the_models_are_refused(names: str, says: str, labelled_folder: Path) -> None:
    (labelled_folder / "classes.txt").write_text(names)
    with pytest.raises(DataError, match=says):
        fit_classes(open_labelled(labelled_folder), NAMES, model="m")


def test_other_names_at_the_same_numbers_are_said_unless_the_model_has_none(
    labelled_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = open_labelled(labelled_folder)
    assert fit_classes(data, ("class 0", "class 1", "class 2"), model="m") == data
    assert caplog.messages == []
    assert fit_classes(data, ("sky", "street", "car"), model="m") == data
    assert caplog.messages == [
        f"{labelled_folder} calls class 1 'road', and m calls it 'street'; classes are matched by their numbers"
    ]


def test_a_student_to_continue_may_not_have_the_teachers_classes_in_another_order(scored_store: ScoreStore) -> None:
    spec = tiny_spec("tiny_models:small", classes=("car", "sky", "road"))
    save_model(tiny_model(spec=spec), Path("other.safetensors"))
    with pytest.raises(ModelError, match="other.safetensors has the teacher's classes in another order"):
        run_distill(make_settings(student="other.safetensors"))


@pytest.mark.parametrize("names", ["sky,road,sky", "sky\nroad\nsky\n", "0 sky\n1 road\n2 sky\n"])
def test_a_name_that_two_classes_have_is_refused(names: str, tmp_path: Path) -> None:
    if "\n" in names:
        (tmp_path / "names.txt").write_text(names)
        names = "names.txt"
    with pytest.raises(SettingsError, match="has 'sky' twice"):
        read_class_names(names)
    with pytest.raises(SettingsError, match="has 'sky' twice"):
        make_train_settings(tmp_path, class_names=["sky", "road", "sky"])


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_bytes("\ufeff0 sky\n1 road\n".encode())
    assert read_class_names("names.txt") == ("sky", "road")


def as_mask(label: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.where(label == 1, 255, 0).astype(np.uint8)


def test_masks_of_0_and_255_are_refused_wherever_labels_are_read(
    teacher: Segmenter, labelled_folder: Path, scored_store: ScoreStore
) -> None:
    shutil.copytree(labelled_folder, "whole")
    relabel(labelled_folder, as_mask)
    says = r"the labels of .*labelled hold only 0 and 255, and 255 is void; save masks with 1 for the second class"
    with pytest.raises(DataError, match=says):
        evaluate(teacher, open_labelled(labelled_folder))
    with pytest.raises(DataError, match=says):
        train(make_train_settings(labelled_folder))
    with pytest.raises(DataError, match=says):
        train(make_train_settings(Path("whole"), val=str(labelled_folder)))
    with pytest.raises(DataError, match=says):
        run_distill(make_settings(val=str(labelled_folder)))
    assert not Path("taught").exists()
    assert not Path("run").exists()


@pytest.mark.parametrize("value", [0, 2])
def test_a_single_class_is_refused_for_training_and_said_elsewhere(
    value: int, labelled_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    relabel(labelled_folder, lambda label: np.full_like(label, value))
    data = open_labelled(labelled_folder)
    with pytest.raises(DataError, match=f"all labels of .*labelled are '{NAMES[value]}'"):
        check_labels(data, NAMES, training=True)
    check_labels(data, NAMES)
    lacking = ", ".join(name for name in NAMES if name != NAMES[value])
    assert caplog.messages[-1] == f"{labelled_folder} has no pixel of 2 of the 3 classes: {lacking}"


def test_labels_of_void_alone_give_no_figure(teacher: Segmenter, labelled_folder: Path) -> None:
    relabel(labelled_folder, lambda label: np.full_like(label, 255))
    with pytest.raises(DataError, match="no pixel of .*labelled is labelled"):
        evaluate(teacher, open_labelled(labelled_folder))
    with pytest.raises(DataError, match="no pixel of .*labelled is labelled"):
        check_labels(open_labelled(labelled_folder), NAMES)


def test_a_class_that_is_predicted_but_never_labelled_is_named_and_the_labelled_mean_stands_beside(
    teacher_file: Path, labelled_folder: Path, call: Call, caplog: pytest.LogCaptureFixture, capsys: Any
) -> None:
    whole = evaluate_models(EvalSettings(model=[teacher_file], data=str(labelled_folder))).evaluation  # type: ignore[arg-type]
    dropped = max(whole.iou, key=lambda name: whole.iou[name])  # a class that the teacher predicts
    relabel(labelled_folder, lambda label: np.where(label == NAMES.index(dropped), 255, label).astype(np.uint8))
    caplog.clear()
    found = evaluate_models(EvalSettings(model=[teacher_file], data=str(labelled_folder))).evaluation  # type: ignore[arg-type]
    kept = [found.iou[name] for name in NAMES if name != dropped]
    assert found.only_predicted == (dropped,)
    assert found.iou[dropped] == 0
    assert found.miou_labelled == pytest.approx(np.mean(kept))
    assert found.miou == pytest.approx(np.sum(kept) / 3)
    assert caplog.messages == [
        f"{labelled_folder} has no pixel of 1 of the 3 classes: {dropped}",
        f"{teacher_file} predicts {dropped}, which no pixel of {labelled_folder} is labelled; its IoU of 0 counts in "
        "mIoU, not in that of the labelled classes",
    ]
    capsys.readouterr()
    assert call(distill.cli.evaluate, "--model", f"t={teacher_file}", "--data", labelled_folder) == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("│ t "))
    shown = f"{found.miou:.3f} {found.miou_labelled:.3f} {found.pixel_accuracy:.3f}"
    assert re.findall(r"\d\.\d{3}", row) == shown.split()


def test_two_images_of_one_name_are_refused_and_not_silently_one(labelled_folder: Path) -> None:
    Image.new("RGB", (56, 40)).save(labelled_folder / "images" / "0.jpg")
    with pytest.raises(DataError, match=r"images/0\.jpg and .*images/0\.png have one name"):
        open_labelled(labelled_folder)


def test_files_that_are_no_images_are_left_out_and_named(
    labelled_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("Thumbs.db", "notes.txt", ".DS_Store"):
        (labelled_folder / "images" / name).write_text("x")
    assert len(open_labelled(labelled_folder)) == 6
    assert caplog.messages == [f"left out {labelled_folder}/images/Thumbs.db and 1 more: no image by its ending"]


def test_pairs_are_found_in_folders_of_the_same_names_and_flat_data_keep_their_fingerprint(
    labelled_folder: Path,
) -> None:
    flat = open_labelled(labelled_folder)
    digest = hashlib.sha256()
    for path in (*flat.images, *flat.labels):
        digest.update(f"{path.name}\n{path.stat().st_size}\n".encode())
    assert flat.fingerprint == digest.hexdigest()
    for part in ("images", "labels"):
        (labelled_folder / part / "ulm").mkdir()
        (labelled_folder / part / "3.png").rename(labelled_folder / part / "ulm" / "0.png")
    nested = open_labelled(labelled_folder)
    assert [path.relative_to(labelled_folder / "labels").as_posix() for path in nested.labels] == [
        *("0.png", "1.png", "2.png", "4.png", "5.png", "ulm/0.png"),
    ]
    assert nested.fingerprint != digest.hexdigest()


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        ("no label", r"images/9\.png has no partner .*labels/9\.\*; both must have the same name up to the ending"),
        (
            "suffix",
            r"images/0\.png has no partner .*labels/0\.\* \(6 of 6 images have none\); a file there is called 0_m\.png",
        ),
        ("jpeg", r"labels/2\.jpg is a JPEG, which changes class ids"),
        ("sixteen bits", r"labels/2\.png has shape \(40, 56\) of uint16"),
        ("turned", r"labels/2\.png is 56x40, but its image 40x56 when it is upright.*EXIF.*turn the label alike"),
        ("from 1", r"has class 3, but the model only 0 to 2; .*counted from 0, and write void as 255"),
    ],
)
def test_labels_in_another_form_are_refused_with_what_to_do(harm: str, says: str, labelled_folder: Path) -> None:
    images, labels = labelled_folder / "images", labelled_folder / "labels"
    label = Image.open(labels / "2.png")
    label.load()
    if harm == "no label":
        Image.new("RGB", (56, 40)).save(images / "9.png")
    elif harm == "suffix":
        for path in list(labels.iterdir()):
            path.rename(labels / f"{path.stem}_m.png")
    elif harm == "jpeg":
        (labels / "2.png").unlink()
        label.save(labels / "2.jpg")
    elif harm == "sixteen bits":
        Image.fromarray(np.asarray(label).astype(np.uint16)).save(labels / "2.png")
    elif harm == "turned":
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.open(images / "2.png").save(images / "2.png", exif=exif)
    else:
        relabel(labelled_folder, lambda label: np.where(label == 255, 0, label + 1).astype(np.uint8))
    with pytest.raises(DataError, match=says):
        check_labels(open_labelled(labelled_folder), NAMES)


def test_one_bit_labels_are_classes_0_and_1(labelled_folder: Path) -> None:
    before = open_labelled(labelled_folder).label(0) == 1
    relabel(labelled_folder, lambda label: label == 1)
    np.testing.assert_array_equal(open_labelled(labelled_folder).label(0), before.astype(np.uint8))


def test_void_stays_void_where_labels_are_mapped(labelled_folder: Path) -> None:
    data = open_labelled(labelled_folder)
    turned = LabelledFolder(root=data.root, images=data.images, labels=data.labels, classes=(2, 0, 1))
    expected = {0: 2, 1: 0, 2: 1, 255: 255}
    np.testing.assert_array_equal(turned.label(0), np.vectorize(expected.get)(data.label(0)))
    assert torch.from_numpy(turned.label(0).copy()).dtype == torch.uint8


@pytest.mark.parametrize("part", ["labels", "images"])
@pytest.mark.parametrize(
    "content",
    [
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(x) run\n",
        b"P5 60000 60000 255\n" + bytes(100),
        b"%PDF-1.4\n",
        b"",
    ],
    ids=["a program for Ghostscript", "a bomb", "a document", "nothing"],
)
def test_labels_and_images_are_opened_by_one_decoder_with_limits(
    part: str, content: bytes, labelled_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: pytest.fail("a program was started"))
    monkeypatch.setattr("subprocess.check_call", lambda *_, **__: pytest.fail("a program was started"))
    file = sorted((labelled_folder / part).iterdir())[0]
    file.write_bytes(content)
    data = open_labelled(labelled_folder)
    with pytest.raises(DataError, match=re.escape(str(file))):
        data.checked_label(0, 3) if part == "labels" else data.image(0)
