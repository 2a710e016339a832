"""A run that is interrupted, ends in numbers that are none, or meets another run on its folder."""

import json
import math
import os
import pty
import re
import select
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Call, command_environment, command_line
from regression import STEPS, Regression, network, settings
from stages import make_settings, make_train_settings, run_distill, run_training
from torch import Tensor

import distill.cli
from distill.evaluation import Evaluation
from distill.supervised import Supervised, train
from distill.training.interruption import Interruptions
from distill.training.run_folder import RunFolder
from pipeline.models.segmenter import Segmenter
from storage.errors import DivergedError, SettingsError, StoreError, Terminated
from storage.progress import Step
from storage.scores.store import ScoreStore


class Numbered(Regression):
    """Its figures depend on the weights alone, as those of any model do."""

    def evaluate(self, model: Segmenter) -> Any:
        model.eval()
        value = float(model.network.last.bias.detach().sum())  # type: ignore[union-attr, operator]
        return Evaluation(miou=value, miou_labelled=value, pixel_accuracy=value, iou={"sky": value}, images=3)


class Signalled(Numbered):
    """A signal arrives in the middle of a step, or in an evaluation."""

    def __init__(self, number: int, *, step: int = -1, evaluation: int = -1) -> None:
        super().__init__()
        self.number, self.step, self.evaluation, self.evaluated = number, step, evaluation, 0

    def loss(self, model: Segmenter, batch: Any, progress: float) -> Any:
        if len(self.progress) == self.step:
            os.kill(os.getpid(), self.number)
        return super().loss(model, batch, progress)

    def evaluate(self, model: Segmenter) -> Any:
        self.evaluated += 1
        if self.evaluated == self.evaluation:
            os.kill(os.getpid(), self.number)
        return super().evaluate(model)


def steps_kept() -> int:
    return int(torch.load("trained/checkpoint.pt", weights_only=True)["step"])


def outcome() -> dict[str, bytes]:
    """The files of a run without the time that it took."""
    found = {str(path): path.read_bytes() for path in Path("trained").rglob("*") if path.is_file()}
    return {name: re.sub(rb'"seconds": [\d.]+', b"", content) for name, content in found.items()}


@pytest.mark.parametrize(("number", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)])
@pytest.mark.parametrize(("where", "kept"), [({"step": 4}, 5), ({"step": 5}, 6), ({"evaluation": 2}, 6)])
def test_a_signal_leaves_a_checkpoint_of_whole_steps_and_the_resumed_run_ends_as_any_other(
    number: int, raised: type[BaseException], where: dict[str, int], kept: int
) -> None:
    told = settings(eval_every=3, checkpoint_every=100)

    run_training(network(), Numbered(), told)
    whole = outcome()
    shutil.rmtree("trained")
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(raised):
        run_training(network(), Signalled(number, **where), told)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    assert steps_kept() == kept
    run_training(network(), Numbered(), settings(eval_every=3, checkpoint_every=100, resume=True))
    assert outcome() == whole


def test_an_interruption_before_the_first_step_leaves_no_checkpoint() -> None:
    class Impatient(Regression):
        def batch(self, step: int, slots: range) -> Any:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_training(network(), Impatient(), settings())
    assert not Path("trained/checkpoint.pt").exists()


def test_an_interruption_of_a_run_that_has_diverged_keeps_the_checkpoint_before() -> None:
    class Both(Signalled):
        def loss(self, model: Segmenter, batch: Any, progress: float) -> Any:
            summed = super().loss(model, batch, progress)
            return scaled(summed, math.nan) if len(self.progress) > 5 else summed

    with pytest.raises(DivergedError, match="the loss of step 6 of 9"):
        run_training(network(), Both(signal.SIGTERM, step=6), settings(checkpoint_every=4, eval_every=100))
    assert steps_kept() == 4


def test_a_signal_that_the_process_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Interruptions():
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    ("number", "word", "code"), [(signal.SIGINT, "interrupted", 130), (signal.SIGTERM, "terminated", 143)]
)
def test_the_command_says_in_one_line_that_its_steps_are_kept_and_how_to_go_on(
    number: int,
    word: str,
    code: int,
    labelled_folder: Path,
    call: Call,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    plain: Callable[..., Any] = Supervised.loss

    def loss(self: Supervised, model: Segmenter, batch: Any, progress: float) -> Any:
        if progress > 0.4:
            os.kill(os.getpid(), number)
        return plain(self, model, batch, progress)

    monkeypatch.setattr(Supervised, "loss", loss)
    options = "--builder tiny_models:tiny --image-size 24x32 --steps 5 --batch-size 2 --device cpu --out taught"
    assert call(distill.cli.train, "--data", labelled_folder, *options.split()) == code
    assert (
        capsys.readouterr().err
        == f"dfss-train: error: {word}; the steps that were taken are kept; --resume goes on from there\n"
    )
    assert torch.load("taught/checkpoint.pt", weights_only=True)["step"] == 3
    assert not Path("taught/model.safetensors").exists()


class Diverging(Regression):
    """The loss of one step is no number."""

    def __init__(self, step: int, value: float = math.nan) -> None:
        super().__init__()
        self.step, self.value = step, value

    def loss(self, model: Segmenter, batch: tuple[Tensor, Tensor], progress: float) -> Any:
        step = len(self.progress)
        summed = super().loss(model, batch, progress)
        return scaled(summed, self.value) if step == self.step else summed


def scaled(summed: Any, value: float) -> Any:
    return type(summed)(summed.total * value, summed.weight)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(("step", "kept"), [(0, None), (3, None), (4, 4), (8, 8)])
def test_a_diverged_run_names_its_step_publishes_nothing_and_keeps_the_last_good_checkpoint(
    step: int, kept: int | None, value: float
) -> None:
    told = settings(checkpoint_every=4, eval_every=100, lr=0.05, precision="bfloat16")
    with pytest.raises(DivergedError) as caught:
        run_training(network().float(), Diverging(step, value), told)
    says = str(caught.value)
    assert says.startswith(f"the loss of step {step + 1} of {STEPS} is not finite: the run diverged")
    assert "--overwrite and a lower --lr (it was 0.05) or --clip (0; try 1) or --precision float32" in says
    assert caught.value.step == step
    assert Path("trained/checkpoint.pt").exists() is (kept is not None)
    assert ("checkpoint.pt of an earlier step is kept" in says) is (kept is not None)
    if kept is not None:
        assert steps_kept() == kept
        state = torch.load("trained/checkpoint.pt", weights_only=True)["model"]
        assert all(tensor.isfinite().all() for tensor in state.values())
    assert not Path("trained/model.safetensors").exists()
    assert not Path("trained/metrics.json").exists()


def test_a_diverged_run_is_found_before_it_is_evaluated() -> None:
    objective = Diverging(2)
    objective.evaluate = lambda model: pytest.fail("a diverged model was evaluated")  # type: ignore[method-assign]
    with pytest.raises(DivergedError, match="step 3"):
        run_training(network(), objective, settings(eval_every=3))


class Overflowing(Regression):
    """The losses are finite, but a running statistic overflows in a step, by default the last."""

    def __init__(self, step: int = STEPS - 1) -> None:
        super().__init__()
        self.step = step

    def loss(self, model: Segmenter, batch: tuple[Tensor, Tensor], progress: float) -> Any:
        summed = super().loss(model, batch, progress)
        if len(self.progress) == self.step + 1:
            model.network.norm.running_var.data[2] = math.inf  # type: ignore[union-attr, index, operator]
        return summed


def test_weights_that_overflow_under_a_finite_loss_are_not_published() -> None:
    says = f"after step {STEPS} of {STEPS}: 1 of the 4 values of norm.running_var are not finite: the run diverged"
    with pytest.raises(DivergedError, match=says):
        run_training(network(), Overflowing(), settings(checkpoint_every=4))
    assert steps_kept() == 8
    assert not Path("trained/model.safetensors").exists()


def test_weights_that_overflow_are_found_before_an_evaluation_and_before_a_checkpoint_of_an_interruption() -> None:
    objective = Overflowing(step=2)
    objective.evaluate = lambda model: pytest.fail("a diverged model was evaluated")  # type: ignore[method-assign]
    with pytest.raises(DivergedError, match="after step 3 of 9") as caught:
        run_training(network(), objective, settings(eval_every=3))
    assert caught.value.step == 2

    def interrupt(step: Step) -> None:
        if step.done == 3:
            raise KeyboardInterrupt

    with pytest.raises(DivergedError, match="after step 3 of 9"):
        run_training(network(), Overflowing(step=2), settings(out="other", eval_every=100), progress=interrupt)
    assert not Path("other/checkpoint.pt").exists()


def test_a_student_that_diverges_ends_the_command_with_one_line(
    scored_store: ScoreStore, call: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    options = "--student tiny_models:small --steps 12 --batch-size 4 --budget 23 --lr 1e30 --device cpu --out run"
    assert call(distill.cli.distill, "--shards", scored_store.path, *options.split()) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert re.search(
        r"dfss-distill: error: .* of 12.* not finite.*the run diverged.*a lower --lr \(it was 1e\+30\)", last
    )
    assert not Path("run/student.safetensors").exists()
    assert not Path("run/metrics.json").exists()


def test_two_runs_on_one_folder_are_refused(scored_store: ScoreStore, labelled_folder: Path) -> None:
    says = "another run is writing (run|taught); wait for it to end, or give another --out"
    with RunFolder(Path("run"), "student.safetensors").alone(), pytest.raises(StoreError, match=says):
        run_distill(make_settings(overwrite=True))
    with RunFolder(Path("taught"), "model.safetensors").alone(), pytest.raises(StoreError, match=says):
        train(make_train_settings(labelled_folder, overwrite=True))
    assert not Path("run").exists()
    assert not Path("taught").exists()


def test_more_steps_for_a_run_that_is_there_are_refused_with_the_way_to_go_on(scored_store: ScoreStore) -> None:
    run_distill(make_settings(steps=2))
    says = (
        "steps is 2 there and 3 now; replace it with --overwrite, or train its student further: "
        r"--student (\S+) with another --out"
    )
    with pytest.raises(SettingsError, match=says) as caught:
        run_distill(make_settings(steps=3, resume=True))
    student = re.search(says, str(caught.value))
    assert student is not None
    run_distill(make_settings(steps=1, student=student[1], out="further"))  # the advice works
    assert json.loads(Path("further/metrics.json").read_text())["steps"] == 1


def test_a_run_on_a_terminal_leaves_no_control_characters_behind(labelled_folder: Path, tmp_path: Path) -> None:
    options = "--builder tiny_models:tiny --image-size 24x32 --steps 12 --batch-size 2 --device cpu --out taught"
    command = command_line("dfss-train", "--data", labelled_folder, "--val", labelled_folder, *options.split())
    ours, theirs = pty.openpty()
    environment = {**command_environment(), "TERM": "xterm-256color"}
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=tmp_path, env=environment)
    os.close(theirs)
    shown = b""
    while select.select([ours], [], [], 120)[0]:
        try:
            part = os.read(ours, 65536)
        except OSError:  # Linux says so when the other end is closed
            break
        if not part:
            break
        shown += part
    assert process.wait(60) == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    assert "wrote taught/model.safetensors" in text
    assert "mIoU" in text
    assert "[0m" not in text
    assert "\x1b" not in text
    assert "nan" not in text
