"""A corpus that changes while it is scored, or after it was."""

import io
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr
import zarr.storage._local as local
from conftest import draw_image

from pipeline.decoding.batches import content_hash
from pipeline.scoring.run import score
from pipeline.selection.images import SelectedImages
from pipeline.selection.select import make_selection
from pipeline.settings import ScoreSettings, SelectSettings
from storage.errors import CorpusError, StoreError
from storage.manifest import GONE
from storage.progress import Step
from storage.scores.schema import SCORED, UNREADABLE
from storage.scores.store import ScoreStore, open_complete, open_store


def settings(corpus: Path, teacher: Path, **changes: Any) -> ScoreSettings:
    fields: dict[str, Any] = {
        "corpus": str(corpus), "teacher": str(teacher), "out": str(teacher.parent / "scores.zarr"),
        "shard_size": 8, "batch_size": 3, "layers": ("all",), "device": "cpu",
    }  # fmt: skip
    return ScoreSettings(**{**fields, **changes})


def tree(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


class Stopped(Exception):
    """Ends a run from its progress, as Ctrl-C would."""


def encoded(index: int) -> bytes:
    buffer = io.BytesIO()
    draw_image(index).save(buffer, "PNG")
    return buffer.getvalue()


def interrupted(corpus: Path, teacher: Path) -> Path:
    """A store of three units, of which the first is scored."""
    reports = iter(range(100))

    def stop(step: Step) -> None:
        if next(reports) == 4:
            raise Stopped

    with pytest.raises(Stopped):
        score(settings(corpus, teacher), stop)
    path = teacher.parent / "scores.zarr"
    assert (open_store(path).status() == SCORED).sum() == 8
    return path


def fates(store: ScoreStore) -> dict[str, int]:
    return dict(zip(store.column("key").tolist(), store.status().tolist(), strict=True))


@pytest.mark.parametrize("gone", ["003.png", "012.png"])  # of the unit that is scored, and of one that is not
def test_an_image_deleted_while_a_run_is_interrupted_is_an_unreadable_row(
    gone: str, image_folder: Path, teacher_file: Path, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    score(settings(image_folder, teacher_file, out=str(tmp_path / "whole.zarr")))
    whole = open_complete(tmp_path / "whole.zarr")
    path = interrupted(image_folder, teacher_file)
    (image_folder / gone).unlink()
    result = score(settings(image_folder, teacher_file))
    store, row = open_complete(path), int(gone[:3])
    assert "1 of 23 no longer exist (such as " + gone in caplog.text
    assert (result.scored, result.unreadable) == (22, 1)
    assert store.errors() == {row: "no longer exists"}
    assert np.isnan(store.column("distance")[row])
    assert store.column("content")[row] == 0
    assert store.column("diversity/cell")[row] == -1
    others = np.arange(23) != row
    for name in ("distance", "layer_distance", "embedding", "content"):
        np.testing.assert_array_equal(store.column(name)[others], whole.column(name)[others])
    assert (store.column("manifest/offset") == GONE).sum() == 1
    caplog.clear()
    assert score(settings(image_folder, teacher_file)).already_complete
    assert "no longer exist" not in caplog.text


def test_an_image_deleted_from_a_complete_store_cannot_be_selected_and_comes_back_scored(
    image_folder: Path, teacher_file: Path
) -> None:
    path = score(settings(image_folder, teacher_file)).path
    before, data = tree(path), (image_folder / "010.png").read_bytes()
    (image_folder / "010.png").unlink()
    assert not score(settings(image_folder, teacher_file)).already_complete
    store = open_complete(path)
    assert fates(store)["010.png"] == UNREADABLE
    selection = make_selection(store, SelectSettings(shards=str(path), budget=22))
    assert "010.png" not in set(selection.table["key"])
    (image_folder / "010.png").write_bytes(data)
    score(settings(image_folder, teacher_file))
    assert tree(path) == before


def test_new_images_are_said_and_left_out_and_change_nothing(
    image_folder: Path, teacher_file: Path, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    score(settings(image_folder, teacher_file, out=str(tmp_path / "whole.zarr")))
    path = interrupted(image_folder, teacher_file)
    (image_folder / "000a.png").write_bytes(encoded(77))
    result = score(settings(image_folder, teacher_file))
    assert "left out 1 of 24 images, which are new since it was made (such as 000a.png)" in caplog.text
    assert tree(Path(result.path)) == tree(tmp_path / "whole.zarr")
    score(settings(image_folder, teacher_file, overwrite=True))
    assert len(open_complete(path)) == 24


def test_a_replaced_image_is_scored_again(
    image_folder: Path, teacher_file: Path, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    path = score(settings(image_folder, teacher_file)).path
    (image_folder / "009.png").write_bytes(encoded(99))
    score(settings(image_folder, teacher_file))
    assert "1 of 23 were replaced since it was made (such as 009.png)" in caplog.text
    score(settings(image_folder, teacher_file, out=str(tmp_path / "whole.zarr")))
    assert tree(path) == tree(tmp_path / "whole.zarr")


def test_a_corpus_of_other_images_is_refused(image_folder: Path, teacher_file: Path) -> None:
    path = score(settings(image_folder, teacher_file)).path
    before = tree(path)
    for index in range(12):
        (image_folder / f"{index:03}.png").unlink()
    with pytest.raises(StoreError, match="made of other images: 12 of its 23 are not in the corpus"):
        score(settings(image_folder, teacher_file))
    assert tree(path) == before


def test_a_limited_store_does_not_take_what_lies_beyond_for_new_nor_what_is_pushed_out_for_gone(
    image_folder: Path, teacher_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("WARNING")
    path = score(settings(image_folder, teacher_file, limit=10)).path
    before = tree(path)
    (image_folder / "000a.png").write_bytes(encoded(77))
    assert score(settings(image_folder, teacher_file, limit=10)).already_complete
    assert (tree(path), caplog.text) == (before, "")


def test_a_store_of_an_older_version_is_continued(
    image_folder: Path, teacher_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = interrupted(image_folder, teacher_file)
    group = zarr.open_group(path, mode="r+")
    del group["content"]
    for name in ("content", "limit", "include", "column"):
        del group.attrs[name]
    (image_folder / "012.png").unlink()
    result = score(settings(image_folder, teacher_file))
    assert (result.scored, result.unreadable) == (22, 1)
    assert not open_complete(path).has("content")


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def padded(data: bytes, size: int) -> bytes:
    """Bytes of a given size that decode to the same picture."""
    return data + bytes(size - len(data))


def pack(kind: str, folder: Path, images: list[tuple[str, bytes]]) -> None:
    if kind == "tars":
        write_tar(folder / "x.tar", images)
    else:
        table = pa.table({"key": [name for name, _ in images], "image": [data for _, data in images]})
        pq.write_table(table, folder / "x.parquet", row_group_size=4)


def test_the_rows_of_a_parquet_file_of_another_size_are_scored_again(
    teacher_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = [(f"{index:02}.png", encoded(index)) for index in range(20)]
    (tmp_path / "packed").mkdir()
    pack("parquet", tmp_path / "packed", images)
    path = Path(score(settings(tmp_path / "packed", teacher_file)).path)
    score(settings(tmp_path / "packed", teacher_file))
    assert "replaced" not in caplog.text
    changed = [*images[:3], ("03.png", encoded(20) + bytes(1000)), *images[4:]]
    pack("parquet", tmp_path / "packed", changed)
    score(settings(tmp_path / "packed", teacher_file))
    assert "20 of 20 were replaced since it was made" in caplog.text
    fresh = score(settings(tmp_path / "packed", teacher_file, out=str(tmp_path / "fresh.zarr")))
    expected = open_complete(fresh.path).column("distance")
    np.testing.assert_array_equal(open_complete(path).column("distance"), expected)


def test_a_corpus_that_was_packed_anew_is_followed_and_a_replaced_image_told_by_its_content(
    teacher_file: Path, tmp_path: Path
) -> None:
    kind = "tars"
    size = max(len(encoded(index)) for index in range(21))
    images = [(f"{index:02}.png", padded(encoded(index), size)) for index in range(20)]
    (tmp_path / "packed").mkdir()
    pack(kind, tmp_path / "packed", images)
    path = Path(score(settings(tmp_path / "packed", teacher_file)).path)
    distance = open_complete(path).column("distance")
    now = [("00.png", padded(encoded(20), size)), *images[1:]]  # another image of the same size
    pack(kind, tmp_path / "packed", now[::-1])
    score(settings(tmp_path / "packed", teacher_file))
    store = open_complete(path)
    np.testing.assert_array_equal(store.column("distance"), distance)
    selection = make_selection(store, SelectSettings(shards=str(path), budget=20))
    places = {key: place for place, key in enumerate(selection.table["key"])}
    # The first image of the selection is read when it is opened, so it must be one that has not changed.
    assert places["00.png"] != 0
    with SelectedImages(store, selection, decode=lambda data: np.frombuffer(data, np.uint8)) as selected:
        for name, data in images[1:]:
            assert selected[places[name]].tobytes() == data
        with pytest.raises(CorpusError, match=r"00\.png is another image than the one that was scored"):
            selected[places["00.png"]]


def test_the_content_of_each_image_is_kept_also_where_it_cannot_be_decoded(
    image_folder: Path, teacher_file: Path
) -> None:
    (image_folder / "003.png").write_bytes(b"no image")
    store = open_complete(score(settings(image_folder, teacher_file)).path)
    expected = [content_hash((image_folder / key).read_bytes()) for key in store.column("key")]
    np.testing.assert_array_equal(store.column("content"), np.array(expected, np.uint64))


def test_all_failures_are_listed_in_a_file(image_folder: Path, teacher_file: Path, tmp_path: Path) -> None:
    for index in range(5):
        (image_folder / f"00{index}.png").write_bytes(b"no\timage")
    out = tmp_path / "failures.tsv"
    for _ in range(2):  # also of a store that is complete
        score(settings(image_folder, teacher_file, failures=str(out)))
        lines = [line.split("\t") for line in out.read_text().splitlines()]
        assert lines[0] == ["key", "status", "error"]
        assert [line[:2] for line in lines[1:]] == [[f"00{index}.png", "unreadable"] for index in range(5)]
        assert all("no known image format" in line[2] for line in lines[1:])
        out.unlink()


def test_a_limit_of_pixels_can_be_raised_for_those_that_it_cost(image_folder: Path, teacher_file: Path) -> None:
    fields: dict[str, Any] = {"max_pixels": 40 * 56 - 1}
    assert score(settings(image_folder, teacher_file, **fields)).unreadable == 23
    again = score(settings(image_folder, teacher_file, retry_failed=True))
    assert (again.scored, again.unreadable) == (23, 0)


def test_masks_among_photographs_are_noticed_and_left_out_by_a_glob(
    image_folder: Path, teacher_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for index in range(23):
        draw_image(index).convert("L").save(image_folder / f"{index:03}.seg.png")
    score(settings(image_folder, teacher_file))
    assert "23 of 46 images that were looked at have a single channel" in caplog.text
    caplog.clear()
    store = open_complete(score(settings(image_folder, teacher_file, include="???.png", overwrite=True)).path)
    assert list(store.column("key")) == [f"{index:03}.png" for index in range(23)]
    assert "single channel" not in caplog.text


@pytest.mark.parametrize("moment", range(0, 30, 5))
def test_a_disk_that_is_full_while_a_store_follows_its_corpus_costs_nothing(
    moment: int, image_folder: Path, teacher_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = score(settings(image_folder, teacher_file)).path
    shutil.copytree(path, tmp_path / "undisturbed.zarr")
    (image_folder / "002.png").unlink()
    (image_folder / "013.png").write_bytes(encoded(99))
    score(settings(image_folder, teacher_file, out=str(tmp_path / "undisturbed.zarr")))
    plain, writes = local._atomic_write, iter(range(1000))

    def failing(*arguments: Any, **options: Any) -> Any:
        if next(writes) >= moment:
            raise OSError(28, "No space left on device")
        return plain(*arguments, **options)

    with monkeypatch.context() as full_disk, pytest.raises(OSError, match="No space left"):
        full_disk.setattr(local, "_atomic_write", failing)
        score(settings(image_folder, teacher_file))
    score(settings(image_folder, teacher_file))
    assert tree(path) == tree(tmp_path / "undisturbed.zarr")
