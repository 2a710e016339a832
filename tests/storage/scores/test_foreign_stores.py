"""What a store from a stranger can say: values of known kinds, and addresses that are not asked."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from storage.errors import StoreError
from storage.manifest import Manifest
from storage.scores.places import TRUSTED_PLACES, check_place
from storage.scores.store import create_store, open_store

STORE = Path("scores.zarr")


@pytest.mark.parametrize(
    "root",
    [
        "/data",
        "images",
        "./images",
        "",
        "~/x",
        "file:///data",
        "local:///data",
        "zip://::/data/x.zip",
        "zip://a::x.zip",
    ],
)
def test_local_places_of_a_store_are_read(root: str) -> None:
    check_place(root, STORE)


@pytest.mark.parametrize(
    "root",
    [
        *("http://127.0.0.1/x", "https://h/x", "s3://bucket/x", "memory://x", "reference://::scores.zarr/refs.json"),
        *(
            "simplecache::http://h/x",
            "zip://::http://h/x.zip",
            "zip://a::zip://b::http://h/x",
            "zip://::reference://::x",
        ),
        *("file://http://h", "local://x::http://h", "s3://", "nosuch://x", "dask://x", "github://a:b@/x", "a::b"),
    ],
)
def test_an_address_that_a_store_names_is_not_asked(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for trusted in ("", ",", "s3://", "http", "https://other", "s3://buck", "s3://bucket/x/y"):
        monkeypatch.setenv(TRUSTED_PLACES, trusted)
        with pytest.raises(StoreError, match="give their place with --root"):
            check_place(root, STORE)


def test_an_address_below_a_trusted_one_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TRUSTED_PLACES, "https://h, s3://bucket/a/")
    for root in ("https://h", "https://h/x/y", "s3://bucket/a", "s3://bucket/a/b", "zip://::s3://bucket/a/x.zip"):
        check_place(root, STORE)
    for root in ("https://h.evil/x", "https://h@evil", "s3://bucket/ab", "s3://bucket/a/../b", "http://h"):
        with pytest.raises(StoreError):
            check_place(root, STORE)


def test_the_line_about_an_address_says_how_to_trust_it() -> None:
    with pytest.raises(StoreError, match=f"{TRUSTED_PLACES}=s3://bucket if you trust it"):
        check_place("s3://bucket/deep/x", STORE)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    manifest = Manifest(
        keys=["a", "b", "c"], source=np.full(3, -1, np.int32), offset=np.zeros(3, np.int64), size=np.ones(3, np.int64)
    )
    create_store(
        tmp_path / "s.zarr",
        manifest,
        {
            "schema_version": 1, "shard_size": 2, "layers": ["l"], "embedding": {"size": 4, "layer": "l"},
            "sources": [], "teacher_path": "t", "corpus": {"name": "x", "root": "x", "kind": "folder"},
        },
    )  # fmt: skip
    return tmp_path / "s.zarr"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("corpus", None), ("corpus", {}), ("corpus", {"name": "x", "root": 5, "kind": "folder"}),
        ("corpus", {"name": "x", "root": "x", "kind": "folder", "more": 1}), ("sources", "abc"), ("sources", 5),
        ("shard_size", 0), ("shard_size", -8), ("shard_size", "x"), ("layers", None), ("embedding", 5),
        ("embedding", {}), ("complete", "no"), ("teacher_path", None), ("images", -1),
    ],
)  # fmt: skip
def test_an_attribute_of_another_kind_is_one_line(name: str, value: Any, store: Path) -> None:
    described = json.loads((store / "zarr.json").read_text())
    described["attributes"][name] = value
    (store / "zarr.json").write_text(json.dumps(described))
    with pytest.raises(StoreError, match="is not a sound score store: its attribute"):
        open_store(store)


def change(store: Path, array: str, **values: Any) -> None:
    described = json.loads((store / array / "zarr.json").read_text()) | values
    (store / array / "zarr.json").write_text(json.dumps(described))


@pytest.mark.parametrize(
    "codecs",
    [
        [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "gzip", "configuration": {"level": 1}}],
        [{"name": "numcodecs.pickle", "configuration": {}}],
        [{"name": "no-such", "configuration": {}}],
    ],
)
def test_an_array_with_a_codec_that_is_not_ours_is_not_read(codecs: list[Any], store: Path) -> None:
    change(store, "distance", codecs=codecs)
    with pytest.raises(StoreError, match="array 'distance' of"):
        open_store(store).column("distance")


def test_an_array_of_another_type_or_shape_is_not_read(store: Path) -> None:
    change(store, "distance", data_type="float64", fill_value=0.0)
    with pytest.raises(StoreError, match="is of type float64, not float32"):
        open_store(store).column("distance")
    group = zarr.open_group(store, mode="r+")
    del group["embedding"]
    group.create_array("embedding", shape=(3, 5), dtype="float16")
    with pytest.raises(StoreError, match=r"has the shape \(3, 5\), not \(images, 4\)"):
        open_store(store).column("embedding")


def test_a_group_in_place_of_an_array_is_one_line(store: Path) -> None:
    group = zarr.open_group(store, mode="r+")
    del group["status"]
    group.create_group("status")
    with pytest.raises(StoreError, match="'status' of .* is no array"):
        open_store(store).status()
