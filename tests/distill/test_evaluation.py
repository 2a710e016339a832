"""mIoU against torchmetrics and against counting by hand."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import NAMES, Call, tiny_model, tiny_spec
from PIL import Image
from torch.nn import functional as F
from torchmetrics.classification import MulticlassJaccardIndex

from distill.evaluation import Evaluation, agreement, evaluate, evaluate_models, summarise
from distill.labelled import check_classes, check_labels, open_labelled
from distill.settings import EvalSettings
from pipeline.models.files import load_model, save_model
from pipeline.models.segmenter import Segmenter
from storage.commandline.declaration import fields_of
from storage.errors import DataError, SettingsError


def test_iou_is_counted_as_by_hand_and_an_absent_class_is_left_out() -> None:
    confusion = torch.tensor([[3, 1, 0], [2, 4, 0], [0, 0, 0]])
    result = summarise(confusion, NAMES, images=1)
    assert result.iou["sky"] == pytest.approx(3 / 6)
    assert result.iou["road"] == pytest.approx(4 / 7)
    assert np.isnan(result.iou["car"])
    assert result.miou == pytest.approx((3 / 6 + 4 / 7) / 2)
    assert result.pixel_accuracy == pytest.approx(0.7)


def test_a_model_is_evaluated_as_by_torchmetrics_without_void(teacher: Segmenter, labelled_folder: Path) -> None:
    data = open_labelled(labelled_folder)
    height, width = teacher.spec.image_size
    metric = MulticlassJaccardIndex(3, ignore_index=255)
    for index in range(len(data)):
        label = torch.from_numpy(data.label(index).copy()).long()
        pixels = np.array(data.image(index).resize((width, height), Image.Resampling.BILINEAR))
        with torch.no_grad():
            logits = teacher(torch.from_numpy(pixels).permute(2, 0, 1)[None])
        logits = F.interpolate(logits, size=label.shape, mode="bilinear", align_corners=False)
        metric.update(logits.argmax(1), label[None])
    for batch_size in (1, 4):
        assert evaluate(teacher, data, batch_size=batch_size).miou == pytest.approx(float(metric.compute()), rel=1e-5)


def test_evaluation_leaves_the_model_in_the_mode_it_had(teacher: Segmenter, labelled_folder: Path) -> None:
    teacher.train()
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    evaluate(teacher, open_labelled(labelled_folder))
    assert teacher.training
    for name, tensor in teacher.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)


def test_a_student_agrees_with_itself_wholly_and_with_another_less(teacher: Segmenter) -> None:
    images = [torch.randint(0, 256, (3, 3, 24, 32), dtype=torch.uint8)]
    assert agreement(teacher, teacher, images).pixel_accuracy == 1
    assert agreement(tiny_model(seed=5), teacher, images).pixel_accuracy < 1


def test_several_models_are_evaluated_by_name_and_written_as_json(
    teacher_file: Path, labelled_folder: Path, tmp_path: Path
) -> None:
    models = {"a b": str(teacher_file), "c": str(teacher_file)}
    settings = EvalSettings(model=models, data=str(labelled_folder), json=str(tmp_path / "e.json"))
    results = evaluate_models(settings).evaluations
    assert list(results) == ["a b", "c"]
    written = json.loads((tmp_path / "e.json").read_text())
    assert written["a b"]["miou"] == pytest.approx(results["a b"].miou)
    assert Evaluation.from_json(written["a b"]) == results["a b"]


def test_one_models_json_is_its_figures(teacher_file: Path, labelled_folder: Path, tmp_path: Path) -> None:
    result = evaluate_models(
        EvalSettings(model=[teacher_file], data=str(labelled_folder), json=str(tmp_path / "e.json"))  # type: ignore[arg-type]
    )
    assert result.evaluation.images == 6
    assert set(json.loads((tmp_path / "e.json").read_text())) == {"miou", "pixel_accuracy", "iou", "images"}


def test_models_that_name_their_classes_differently_share_a_table(
    teacher: Segmenter, teacher_file: Path, labelled_folder: Path, tmp_path: Path, call: Call, capsys: Any
) -> None:
    import distill.cli

    renamed = dataclasses.replace(teacher.spec, class_names=("class 0", "class 1", "class 2"))
    save_model(Segmenter(teacher.network, renamed), tmp_path / "b.safetensors")
    arguments = ["--model", f"[/a]={teacher_file}", "--model", "b.safetensors", "--data", labelled_folder]
    assert call(distill.cli.evaluate, *arguments) == 0
    printed = capsys.readouterr().out
    assert "[/a]" in printed
    assert "sky" in printed


def test_labels_of_nothing_but_void_give_valid_json(teacher: Segmenter) -> None:
    assert summarise(torch.zeros(3, 3), NAMES, images=1).to_json()["miou"] is None


def test_models_on_a_command_line_have_names_or_are_their_own(tmp_path: Path) -> None:
    (tmp_path / "a=b").touch()
    (field,) = (field for field in fields_of(EvalSettings) if field.name == "model")
    assert field.parse(["a=b", "x=y", "z"]) == {"a=b": "a=b", "x": "y", "z": "z"}
    with pytest.raises(SettingsError, match="names 'x' twice"):
        field.parse(["x=y", "x=z"])


def test_a_label_without_a_class_names_its_file(teacher: Segmenter, labelled_folder: Path) -> None:
    label = np.full((40, 56), 7, np.uint8)
    Image.fromarray(label).save(labelled_folder / "labels" / "3.png")
    with pytest.raises(DataError, match=r"labels/3\.png has class 7, but the model only 0 to 2"):
        evaluate(teacher, open_labelled(labelled_folder))


def test_another_class_count_than_the_datas_is_refused(labelled_folder: Path, tmp_path: Path) -> None:
    save_model(tiny_model(spec=tiny_spec(classes=("a", "b"))), tmp_path / "two.safetensors")
    model = load_model(tmp_path / "two.safetensors")
    with pytest.raises(DataError, match="two has 2 classes, but .* has 3"):
        check_classes(open_labelled(labelled_folder), model.spec.num_classes, model="two")


@pytest.mark.parametrize("harm", ["no labels", "no partner", "empty", "not an image", "colour label", "other size"])
def test_labelled_data_that_cannot_be_used_says_why(harm: str, teacher: Segmenter, labelled_folder: Path) -> None:
    if harm == "no labels":
        (labelled_folder / "labels").rename(labelled_folder / "masks")
    elif harm == "no partner":
        (labelled_folder / "labels" / "2.png").unlink()
    elif harm == "empty":
        for file in (labelled_folder / "images").iterdir():
            file.unlink()
    elif harm == "not an image":
        (labelled_folder / "images" / "1.png").write_text("text")
    else:
        wrong = Image.new("RGB", (56, 40)) if harm == "colour label" else Image.new("L", (40, 56))
        wrong.save(labelled_folder / "labels" / "1.png")
    with pytest.raises(DataError) as caught:
        evaluate(teacher, open_labelled(labelled_folder))
    with pytest.raises(DataError):
        check_labels(open_labelled(labelled_folder), 3, model="the teacher")
    assert str(labelled_folder) in str(caught.value)
