"""Stage one from a folder of images to a complete store."""

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from conftest import HEIGHT, WIDTH, command_environment, command_line, tiny_model
from PIL import Image
from stages import score_folder, select_images

from pipeline.corpora.reader import ImageReader
from pipeline.models.files import save_model
from pipeline.scoring.run import prepare, run, score
from pipeline.settings import ScoreSettings
from storage.errors import CorpusError, ModelError, SettingsError, StoreError
from storage.files.claim import exclusive
from storage.progress import Progress, Step
from storage.scores.schema import REJECTED, SCORED, SCORING_VERSION, UNREADABLE
from storage.scores.store import open_complete, open_store


def settings(corpus: Path, teacher: Path, **changes: Any) -> ScoreSettings:
    fields: dict[str, Any] = {
        "corpus": str(corpus), "teacher": str(teacher), "out": str(teacher.parent / "scores.zarr"),
        "shard_size": 8, "batch_size": 3, "layers": ("all",), "device": "cpu",
    }  # fmt: skip
    return ScoreSettings(**{**fields, **changes})


class Stopped(Exception):
    """Ends a stage from its progress, as Ctrl-C would."""


def stop_after(reports: int) -> Progress:
    """End a stage after this many reports."""
    left = itertools.count(reports - 1, -1)

    def report(step: Step) -> None:
        if next(left) <= 0:
            raise Stopped

    return report


def tree(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_a_run_says_which_teacher_it_asks_and_where(
    image_folder: Path, teacher_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    said = f"teacher: {teacher_file} (tiny_models:tiny), 3 BatchNorm layers, on cpu"
    for expected in ([said], []):  # the second run finds nothing to do
        score(settings(image_folder, teacher_file))
        assert [message for message in caplog.messages if message.startswith("teacher")] == expected
        caplog.clear()


def test_every_image_gets_a_row_and_the_summary_counts_them(image_folder: Path, teacher_file: Path) -> None:
    result = score(settings(image_folder, teacher_file))
    store = open_complete(result.path)
    assert len(store) == 23
    assert (store.status() == SCORED).all()
    assert list(store.column("key")) == [f"{index:03}.png" for index in range(23)]
    assert np.isfinite(store.column("distance")).all()
    norms = np.linalg.norm(store.column("embedding").astype(np.float64), axis=1)
    np.testing.assert_allclose(norms, 1, atol=2e-3)
    assert (result.scored, result.unreadable, result.rejected) == (23, 0, 0)
    assert result.quantiles[0.0] == pytest.approx(store.column("distance").min())


@pytest.mark.parametrize("changes", [{"batch_size": 1}, {"batch_size": 8}, {"workers": 5}])
def test_batch_size_and_threads_do_not_change_a_row(
    changes: dict[str, int], image_folder: Path, teacher_file: Path, tmp_path: Path
) -> None:
    one = open_store(score(settings(image_folder, teacher_file)).path)
    other = open_store(Path(score(settings(image_folder, teacher_file, out=str(tmp_path / "b"), **changes)).path))
    np.testing.assert_allclose(one.column("distance"), other.column("distance"), rtol=1e-5)
    np.testing.assert_allclose(one.column("layer_distance"), other.column("layer_distance"), rtol=1e-4, atol=1e-6)


def test_the_same_run_gives_the_same_bytes(image_folder: Path, teacher_file: Path, tmp_path: Path) -> None:
    for name in ("a.zarr", "b.zarr"):
        score(settings(image_folder, teacher_file, out=str(tmp_path / name)))
    assert tree(tmp_path / "a.zarr") == tree(tmp_path / "b.zarr")


def test_bad_images_are_accounted_for_and_stop_nothing(image_folder: Path, teacher_file: Path) -> None:
    whole = (image_folder / "000.png").read_bytes()
    (image_folder / "a-truncated.png").write_bytes(whole[: len(whole) // 2])
    (image_folder / "b-empty.jpg").write_bytes(b"")
    (image_folder / "c-text.jpg").write_text("I was a text file")
    Image.new("RGB", (1, 1)).save(image_folder / "d-tiny.png")
    Image.new("CMYK", (60, 40), (10, 200, 30, 0)).save(image_folder / "e-cmyk.jpg")
    Image.fromarray(np.arange(2400, dtype=np.uint16).reshape(40, 60) * 27).save(image_folder / "f-16bit.png")
    result = score(settings(image_folder, teacher_file))
    store = open_complete(result.path)
    fates = dict(zip(store.column("key").tolist(), store.status().tolist(), strict=True))
    assert fates["a-truncated.png"] == fates["b-empty.jpg"] == fates["c-text.jpg"] == UNREADABLE
    assert fates["d-tiny.png"] == REJECTED
    assert fates["e-cmyk.jpg"] == fates["f-16bit.png"] == SCORED
    assert len(store.errors()) == 4
    assert all(text and "0x" not in text for text in store.errors().values())
    assert np.isnan(store.column("distance")[store.status() != SCORED]).all()
    assert (result.scored, result.unreadable, result.rejected) == (25, 3, 1)


def test_a_corpus_of_nothing_but_bad_images_is_scored_to_the_end(teacher_file: Path, tmp_path: Path) -> None:
    (tmp_path / "bad").mkdir()
    for index in range(9):
        (tmp_path / "bad" / f"{index}.jpg").write_bytes(b"no")
    result = score(settings(tmp_path / "bad", teacher_file))
    assert (result.unreadable, result.quantiles) == (9, {})


def test_mended_images_are_scored_when_failed_ones_are_retried(image_folder: Path, teacher_file: Path) -> None:
    bad = image_folder / "010.png"
    good = bad.read_bytes()
    bad.write_bytes(b"x" * len(good))
    path = score(settings(image_folder, teacher_file)).path
    assert open_complete(path).errors().keys() == {10}
    bad.write_bytes(good)
    score(settings(image_folder, teacher_file, retry_failed=True))
    assert open_complete(path).errors() == {}
    undisturbed = teacher_file.parent / "u.zarr"
    score(settings(image_folder, teacher_file, out=str(undisturbed)))
    assert tree(path) == tree(undisturbed)


def test_a_run_that_was_stopped_half_way_continues_to_the_same_bytes(
    image_folder: Path, teacher_file: Path, tmp_path: Path
) -> None:
    score(settings(image_folder, teacher_file, out=str(tmp_path / "whole.zarr")))
    with pytest.raises(Stopped):
        score(settings(image_folder, teacher_file), stop_after(5))
    path = tmp_path / "scores.zarr"
    assert [next(iter(rows)) for rows in open_store(path).pending_units()] == [8, 16]
    (path / "status" / "c").mkdir(exist_ok=True)
    (path / "status" / "c" / "1.abc.partial").write_bytes(b"half")
    second = score(settings(image_folder, teacher_file))
    assert tree(path) == tree(tmp_path / "whole.zarr")
    third = score(settings(image_folder, teacher_file))
    assert (second.already_complete, third.already_complete) == (False, True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"distance": "paper"}, "distance is standardized there and paper now"),
        ({"layers": ("stem.1",)}, "layers is stem.1, body.1, neck.1 there and stem.1 now"),
        ({"limit": 5}, "limit is None there and 5 now"),
        ({"include": "00*"}, r"include is None there and 00\* now"),
        ({"min_side": 20}, "transform min_side is 16 there and 20 now"),
    ],
)
def test_other_settings_are_refused_by_name_and_replaced_when_told(
    changes: dict[str, Any], message: str, image_folder: Path, teacher_file: Path
) -> None:
    path = score(settings(image_folder, teacher_file)).path
    before = tree(path)
    with pytest.raises(StoreError, match=message):
        score(settings(image_folder, teacher_file, **changes))
    assert tree(path) == before
    score(settings(image_folder, teacher_file, overwrite=True, **changes))
    assert tree(path) != before


def test_another_teacher_is_noticed(image_folder: Path, teacher_file: Path, tmp_path: Path) -> None:
    score(settings(image_folder, teacher_file))
    save_model(tiny_model(seed=1), tmp_path / "other.safetensors")
    with pytest.raises(
        StoreError, match=r"teacher is .*teacher.safetensors \(weights \w{8}\) there and .* \(weights \w{8}\) now"
    ):
        score(settings(image_folder, tmp_path / "other.safetensors"))


def test_overwriting_the_same_settings_continues_rather_than_starting_again(
    image_folder: Path, teacher_file: Path
) -> None:
    score(settings(image_folder, teacher_file))
    again = score(settings(image_folder, teacher_file, overwrite=True))
    assert again.already_complete


def test_a_folder_that_is_not_a_store_is_never_replaced(image_folder: Path, teacher_file: Path, tmp_path: Path) -> None:
    precious = tmp_path / "photos"
    precious.mkdir()
    (precious / "a.jpg").write_text("mine")
    with pytest.raises(StoreError, match="not a score store"):
        score(settings(image_folder, teacher_file, out=str(precious), overwrite=True))
    assert tree(precious) == {"a.jpg": b"mine"}
    other = tmp_path / "other.zarr"
    zarr.create_group(other).create_array("mine", data=np.arange(3))
    before = tree(other)
    with pytest.raises(StoreError, match="not a score store"):
        score(settings(image_folder, teacher_file, out=str(other), overwrite=True))
    assert tree(other) == before


def test_a_store_of_an_older_schema_is_replaced_when_told(image_folder: Path, teacher_file: Path) -> None:
    path = score(settings(image_folder, teacher_file)).path
    before = tree(path)
    zarr.open_group(path, mode="r+").attrs["schema_version"] = 0
    with pytest.raises(StoreError, match="score schema 0"):
        score(settings(image_folder, teacher_file))
    score(settings(image_folder, teacher_file, overwrite=True))
    assert tree(path) == before


def test_two_runs_on_one_store_do_not_mix(image_folder: Path, teacher_file: Path) -> None:
    path = score(settings(image_folder, teacher_file)).path
    with exclusive(path), pytest.raises(StoreError, match="another run is writing"):
        score(settings(image_folder, teacher_file))


def test_an_image_whose_statistics_are_not_finite_is_rejected(image_folder: Path, teacher_file: Path) -> None:
    class Overflow(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.where(images.mean(dim=(1, 2, 3), keepdim=True) > -1.0, images * torch.inf, images)

    job = prepare(settings(image_folder, teacher_file))
    job.scorer.teacher.network.stem.insert(0, Overflow())  # type: ignore[operator, union-attr]
    store = open_complete(run(job).path)
    rejected = store.status() == REJECTED
    assert 0 < rejected.sum() < 23
    assert np.isfinite(store.column("distance")[~rejected]).all()
    assert set(store.errors().values()) == {"its statistics in the teacher are not finite"}


@pytest.mark.parametrize("moment", range(0, 60, 4))
def test_a_write_that_fails_at_any_moment_costs_nothing(
    moment: int, image_folder: Path, teacher_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store of another teacher is being replaced; the disk fills up at the n-th write; then there is room again."""
    import zarr.storage._local as local

    save_model(tiny_model(seed=1), tmp_path / "other.safetensors")
    score(settings(image_folder, tmp_path / "other.safetensors"))
    score(settings(image_folder, teacher_file, out=str(tmp_path / "whole.zarr")))
    plain, writes = local._atomic_write, iter(range(1000))

    def failing(*arguments: Any, **options: Any) -> Any:
        if next(writes) >= moment:
            raise OSError(28, "No space left on device")
        return plain(*arguments, **options)

    with monkeypatch.context() as full_disk:
        full_disk.setattr(local, "_atomic_write", failing)
        with contextlib.suppress(OSError):
            score(settings(image_folder, teacher_file, overwrite=True))
    score(settings(image_folder, teacher_file, overwrite=True))
    assert tree(tmp_path / "scores.zarr") == tree(tmp_path / "whole.zarr")


def test_a_store_of_another_scoring_version_is_not_continued_but_can_be_read_and_replaced(
    image_folder: Path, teacher_file: Path
) -> None:
    path = score(settings(image_folder, teacher_file)).path
    before = tree(path)
    zarr.open_group(path, mode="r+").attrs["scoring_version"] = SCORING_VERSION + 1
    with pytest.raises(StoreError, match=rf"scoring_version is {SCORING_VERSION + 1} there and {SCORING_VERSION} now"):
        score(settings(image_folder, teacher_file))
    assert len(open_complete(path)) == 23
    score(settings(image_folder, teacher_file, overwrite=True))
    assert tree(path) == before


def test_entropy_is_that_of_the_teachers_probabilities(image_folder: Path, teacher_file: Path) -> None:
    from pipeline.decoding.pillow import Decoder
    from pipeline.models.files import load_model

    path = Path(score(settings(image_folder, teacher_file, entropy=True)).path)
    image = Decoder(height=HEIGHT, width=WIDTH)((image_folder / "004.png").read_bytes())
    with torch.no_grad():
        logits = load_model(teacher_file)(torch.from_numpy(image).permute(2, 0, 1)[None])[0].double().numpy()
    p = np.exp(logits) / np.exp(logits).sum(axis=0)
    assert open_store(path).column("entropy")[4] == pytest.approx(-(p * np.log(p)).sum(axis=0).mean(), rel=1e-4)


def test_a_missing_corpus_or_teacher_leaves_nothing_behind(image_folder: Path, teacher_file: Path) -> None:
    with pytest.raises(CorpusError):
        score(settings(image_folder / "absent", teacher_file))
    with pytest.raises(ModelError):
        score(settings(image_folder, teacher_file.with_name("absent.safetensors")))
    assert not Path("scores.zarr").exists()


def test_a_removed_store_ends_the_run_and_the_next_run_starts_from_scratch(
    image_folder: Path, teacher_file: Path, tmp_path: Path
) -> None:
    score(settings(image_folder, teacher_file, out=str(tmp_path / "whole.zarr")))
    reports = iter(range(100))

    def remove_it(step: Step) -> None:
        if next(reports) == 1:  # the first unit, of three batches, is not yet written
            shutil.rmtree(tmp_path / "scores.zarr")

    with pytest.raises(StoreError, match="was removed while it was in use; run dfss-score again"):
        score(settings(image_folder, teacher_file), remove_it)
    assert not (tmp_path / "scores.zarr").exists()
    score(settings(image_folder, teacher_file))
    assert tree(tmp_path / "scores.zarr") == tree(tmp_path / "whole.zarr")


def test_seconds_are_told_apart(image_folder: Path, teacher_file: Path) -> None:
    read = ImageReader.read

    def slow(self: ImageReader, row: int) -> bytes:
        time.sleep(0.02)
        return read(self, row)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ImageReader, "read", slow)
        timing = score(settings(image_folder, teacher_file)).timing
    assert timing.reading >= 23 * 0.02
    assert 0 < timing.decoding < timing.reading
    assert timing.inferring > 0
    assert timing.writing > 0
    assert timing.waiting > 0


def test_nvjpeg_needs_a_gpu(image_folder: Path, teacher_file: Path) -> None:
    with pytest.raises(SettingsError, match="nvjpeg needs a CUDA device, but this run uses cpu; give --decoder cpu"):
        score(settings(image_folder, teacher_file, decoder="nvjpeg"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("changes", [{}, {"decoder": "nvjpeg"}, {"precision": "bfloat16"}])
def test_a_gpu_scores_like_the_cpu(
    changes: dict[str, Any], image_folder: Path, teacher_file: Path, tmp_path: Path
) -> None:
    whole = score(settings(image_folder, teacher_file, out=str(tmp_path / "cpu.zarr"))).path
    on_gpu = score(settings(image_folder, teacher_file, device="cuda", **changes)).path
    tolerance = 2e-3 if not changes else 0.1
    np.testing.assert_allclose(
        open_complete(Path(on_gpu)).column("distance"), open_complete(Path(whole)).column("distance"), rtol=tolerance
    )


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_run_ends_with_the_bytes_of_an_uninterrupted_one(
    image_folder: Path, teacher_file: Path, tmp_path: Path
) -> None:
    """SIGKILL at 20 random moments from the first write on: while the store is made, scored, indexed, committed."""
    options = [
        "--corpus",
        image_folder,
        "--teacher",
        teacher_file,
        "--shard-size",
        1,
        "--batch-size",
        1,
        "--layers",
        "all",
    ]
    folder = tmp_path / "killed"
    folder.mkdir()

    def start(out: Path) -> subprocess.Popen[bytes]:
        line = command_line("dfss-score", *options, "--out", out)
        return subprocess.Popen(line, env=command_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    assert start(tmp_path / "whole.zarr").wait() == 0
    rng, kills, completed = np.random.default_rng(0), 0, 0
    while kills < 20:
        before = newest(folder)
        process = start(folder / "scores.zarr")
        while newest(folder) == before and process.poll() is None:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.5))
        process.kill()
        kills += process.wait() == -signal.SIGKILL
        if process.returncode == 0:  # it ended before it was hit: begin again
            completed += 1
            assert tree(folder / "scores.zarr") == tree(tmp_path / "whole.zarr")
            shutil.rmtree(folder / "scores.zarr")
    assert start(folder / "scores.zarr").wait() == 0
    assert tree(folder / "scores.zarr") == tree(tmp_path / "whole.zarr")


def newest(folder: Path) -> int:
    """Time of the last change to anything that a run writes there; the lock file is no such thing."""
    times = [0]
    for parent, _, names in os.walk(folder):  # unlike rglob, it bears with folders that vanish meanwhile
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                times.append(0 if name.endswith(".lock") else Path(parent, name).stat().st_mtime_ns)
    return max(times)


KILLED_AT = """
import os, signal, sys
folder, left = sys.argv.pop(1), int(sys.argv.pop(1))
seen = 0

def watch(event, arguments):
    global seen
    if event == "open":
        changes = isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    else:
        changes = event in ("os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.truncate")
    if changes and str(arguments[0]).startswith(folder):
        seen += 1
        if seen > left:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(watch)
from pipeline.cli import score
try:
    score()
finally:
    print(seen)
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_killed_before_a_change_of_a_file_ends_with_the_bytes_of_an_uninterrupted_one(
    image_folder: Path, teacher_file: Path, tmp_path: Path
) -> None:
    """A store of another teacher is being replaced. Killed before the n-th change to a file: n evenly from the first to
    the last, and each of the last ten, which are the index and the final commit.
    """
    save_model(tiny_model(seed=1), tmp_path / "other.safetensors")
    whole, other, killed = (tmp_path / f"{name}.zarr" for name in ("whole", "other", "killed"))
    score(settings(image_folder, teacher_file, out=str(whole)))
    score(settings(image_folder, tmp_path / "other.safetensors", out=str(other)))
    options = ["--corpus", image_folder, "--teacher", teacher_file, "--shard-size", 8, "--batch-size", 3]
    options += ["--layers", "all", "--device", "cpu", "--out", killed, "--overwrite"]

    def run(moment: int) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-c", KILLED_AT, killed, moment, *options]
        return subprocess.run(list(map(str, line)), env=command_environment(), capture_output=True, text=True)

    shutil.copytree(other, killed)
    changes = int(run(10**6).stdout.splitlines()[-1])
    assert tree(killed) == tree(whole)
    moments = sorted({*np.linspace(0, changes - 1, 12).astype(int), *range(changes - 10, changes)})
    assert len(moments) >= 20
    for moment in moments:
        shutil.rmtree(killed)
        shutil.copytree(other, killed)
        assert run(moment).returncode == -signal.SIGKILL, moment
        assert tree(killed) != tree(whole), moment
        score(settings(image_folder, teacher_file, out=str(killed), overwrite=True))
        assert tree(killed) == tree(whole), moment


def test_equal_distances_are_said_by_scoring_and_by_selecting(
    teacher_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "same").mkdir()
    for index in range(3):
        Image.new("RGB", (40, 40), (90, 90, 90)).save(tmp_path / "same" / f"{index}.png")
    store = score_folder(tmp_path / "same", teacher_file)
    select_images(store, budget=2)
    assert len([message for message in caplog.messages if "distances of all 3 images" in message]) == 2
