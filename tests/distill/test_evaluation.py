"""mIoU against torchmetrics and against counting by hand."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import NAMES, Call, tiny_model, tiny_spec
from PIL import Image
from torch.nn import functional as F
from torchmetrics.classification import MulticlassJaccardIndex

from distill.evaluation import Agreement, Evaluation, agree, evaluate, evaluate_models, predict, read_figures, summarise
from distill.labelled import check_labels, fit_classes, open_labelled
from distill.settings import EvalSettings
from pipeline.models.files import load_model, save_model
from pipeline.models.segmenter import Segmenter
from storage.commandline.declaration import fields_of
from storage.errors import DataError, ModelError, SettingsError


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
    assert agree(teacher, teacher, images).pixel_agreement == 1
    assert agree(tiny_model(seed=5), teacher, images).pixel_agreement < 1


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
    assert set(json.loads((tmp_path / "e.json").read_text())) == {
        *("against", "miou", "miou_labelled", "pixel_accuracy", "iou", "images", "only_predicted"),
    }


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
        fit_classes(open_labelled(labelled_folder), model.spec.class_names, model="two")


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
        check_labels(open_labelled(labelled_folder), NAMES)
    assert str(labelled_folder) in str(caught.value)


@pytest.mark.parametrize("classes", [3, 7])
def test_the_predicted_class_does_not_depend_on_how_many_are_enlarged_at_once(
    classes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = torch.randn(classes, 5, 6, generator=torch.Generator().manual_seed(0)).round(decimals=1)
    whole = F.interpolate(logits[None], size=(11, 13), mode="bilinear", align_corners=False)[0]
    for at_once in (1, 11 * 13 * 2, 2**25):
        monkeypatch.setattr("distill.evaluation.AT_ONCE", at_once)
        predicted = predict(logits, (11, 13))
        assert predicted.shape == (11, 13)
        torch.testing.assert_close(whole.gather(0, predicted[None])[0], whole.max(dim=0).values, rtol=0, atol=1e-6)


def test_memory_of_a_prediction_does_not_grow_with_the_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    largest, plain = [], F.interpolate

    def watched(values: torch.Tensor, **named: Any) -> torch.Tensor:
        enlarged: torch.Tensor = plain(values, **named)
        largest.append(enlarged.numel())
        return enlarged

    monkeypatch.setattr("distill.evaluation.AT_ONCE", 64 * 64 * 4)
    monkeypatch.setattr(F, "interpolate", watched)
    predict(torch.randn(150, 8, 8), (64, 64))
    assert max(largest) == 64 * 64 * 4
    assert sum(largest) == 64 * 64 * 150


def test_logits_that_are_not_finite_give_no_figure(teacher: Segmenter, labelled_folder: Path) -> None:
    with torch.no_grad():
        teacher.network.head.bias[1] = np.nan  # type: ignore[union-attr, index, operator]
    with pytest.raises(ModelError, match="the logits of the model are not finite"):
        evaluate(teacher, open_labelled(labelled_folder))
    images = [torch.zeros(1, 3, 24, 32, dtype=torch.uint8)]
    with pytest.raises(ModelError, match="the logits of the teacher are not finite"):
        agree(tiny_model(), teacher, images)
    with pytest.raises(ModelError, match="the logits of the student are not finite"):
        agree(teacher, tiny_model(), images)


def test_the_figures_of_a_run_are_read_back_as_what_they_were() -> None:
    evaluation = summarise(torch.tensor([[3, 1, 0], [2, 4, 1], [0, 0, 0]]), NAMES, images=2)
    assert evaluation.only_predicted == ("car",)
    agreement = Agreement(agreement=0.5, pixel_agreement=0.75, by_class={"sky": 0.5, "car": math.nan}, images=3)
    for figures in (evaluation, agreement):
        assert read_figures({"steps": 3, **json.loads(json.dumps(figures.to_json()))}) == figures
    assert read_figures({"steps": 3}) is None
    older = {name: value for name, value in evaluation.to_json().items() if name in ("miou", "pixel_accuracy", "iou")}
    read = read_figures({**older, "images": 2})
    assert isinstance(read, Evaluation)
    assert (read.miou, math.isnan(read.miou_labelled)) == (evaluation.miou, True)
    assert not any("miou" in name for name in agreement.to_json())


def test_two_classes_of_one_name_keep_a_figure_each() -> None:
    found = summarise(torch.diag(torch.tensor([1, 2, 3])), ("door", "sky", "door"), images=1)
    assert found.iou == {"door": 1, "sky": 1, "door (2)": 1}
