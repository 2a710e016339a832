"""Where a store's corpus and teacher lie."""

from pathlib import Path

import pytest

from storage.scores.places import found, kept


@pytest.mark.parametrize("store", ["scores.zarr", "deep/er/scores.zarr", "../beside/scores.zarr"])
@pytest.mark.parametrize("path", ["images", "data/images", "../images", "."])
def test_a_relative_path_is_understood_from_any_folder(
    path: str, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    for folder in (here / path, (here / store).parent, here / "other"):
        folder.mkdir(parents=True, exist_ok=True)
    monkeypatch.chdir(here)
    written = kept(path, Path(store))
    assert Path(found(written, Path(store))).resolve() == (here / path).resolve()
    monkeypatch.chdir(here / "other")
    assert Path(found(written, Path("..", store))).resolve() == (here / path).resolve()


def test_a_store_that_moves_with_its_images_still_finds_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a/images").mkdir(parents=True)
    written = kept("a/images", Path("a/scores.zarr"))
    Path("a").rename("b")
    assert found(written, Path("b/scores.zarr")) == "b/images"


@pytest.mark.parametrize(
    "path",
    ["/data/images", "s3://bucket/images", "zip://::images.zip", "~/images", "torchvision:deeplabv3_resnet50@DEFAULT"],
)
def test_other_paths_are_kept_as_they_are(path: str) -> None:
    assert kept(path, Path("deep/scores.zarr")) == path
    assert found(path, Path("deep/scores.zarr")) == path


def test_the_relative_paths_of_older_stores_begin_at_the_working_folder() -> None:
    assert found("data/images", Path("deep/scores.zarr")) == "data/images"
