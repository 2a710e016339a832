"""The pile with bursts: what is repeated, how near the copies are, and equal bytes."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from conftest import draw_image, load_recipe
from PIL import Image

bursts = load_recipe("camvid", "bursts")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "wild-000000.tar"
    with tarfile.open(path, "w") as tar:
        for index in range(40):
            buffer = io.BytesIO()
            draw_image(index).save(buffer, "JPEG")
            bursts.add(tar, f"source/{index:02}.jpg", buffer.getvalue())
    return path


def images_of(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]


def test_a_share_of_the_photographs_is_repeated_beside_all_of_them(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.tar"
    repeated = bursts.write_shard(source, out, np.random.default_rng(0), 0.2, 5)
    before, after = images_of(source), images_of(out)
    assert 3 <= repeated <= 14
    assert len(after) == 40 + 5 * repeated
    assert {name: after[name] for name in before} == before
    for name in after.keys() - before.keys():
        own = np.asarray(Image.open(io.BytesIO(after[name])).resize((28, 20)), dtype=np.float64)
        stem = f"{name.rpartition('-')[0]}.jpg"
        theirs = np.asarray(Image.open(io.BytesIO(before[stem])).resize((28, 20)), dtype=np.float64)
        assert np.corrcoef(own.ravel(), theirs.ravel())[0, 1] > 0.5
        assert after[name] != before[stem]


def test_the_same_seed_gives_the_same_bytes(source: Path, tmp_path: Path) -> None:
    for name in ("a.tar", "b.tar"):
        bursts.write_shard(source, tmp_path / name, np.random.default_rng([0, 3]), 0.2, 3)
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
