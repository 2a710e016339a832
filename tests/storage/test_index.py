"""Cells, the serialised index, and near-duplicates, against a brute-force search."""

import faiss
import numpy as np
import pytest
from numpy.typing import NDArray

from storage.index import CELL_SIZE, build_index, near_duplicates


def unit_vectors(count: int, size: int = 16, seed: int = 0) -> NDArray[np.float16]:
    vectors = np.random.default_rng(seed).standard_normal((count, size))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)


def test_the_serialised_index_finds_the_brute_force_neighbours_under_their_rows() -> None:
    vectors, rows = unit_vectors(300), np.arange(300, dtype=np.int64) * 3 + 1
    index = faiss.deserialize_index(build_index(vectors, rows).serialised)
    index.nprobe = index.nlist
    _, found = index.search(vectors[:20].astype(np.float32), 5)
    similarity = vectors[:20].astype(np.float64) @ vectors.astype(np.float64).T
    expected = rows[np.argsort(-similarity, axis=1)[:, :5]]
    assert (found == expected).mean() > 0.95  # half precision may swap near-ties


def test_every_image_is_in_one_small_cell_of_images_that_are_like_it() -> None:
    vectors = unit_vectors(5000)
    index = build_index(vectors, np.arange(5000))
    sizes = np.bincount(index.cell)
    assert sizes.sum() == 5000
    assert 1 <= sizes.min() <= sizes.max() <= CELL_SIZE
    assert index.centroids.shape == (len(sizes), 16)
    similarity = vectors.astype(np.float64) @ index.centroids.astype(np.float64).T
    own = similarity[np.arange(5000), index.cell]
    assert own.mean() > np.quantile(similarity, 0.97)
    assert (similarity > own[:, None]).sum(axis=1).mean() < 2  # the greedy tree seldom misses the nearest by much


def test_images_that_are_all_alike_share_a_cell() -> None:
    vectors = np.repeat(unit_vectors(1), 1000, axis=0)
    assert build_index(vectors, np.arange(1000)).centroids.shape == (1, 16)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("count", [0, 1, 2, 5, 1000])
def test_the_same_images_give_the_same_bytes_whatever_their_number(count: int) -> None:
    vectors = unit_vectors(count)
    one, two = (build_index(vectors, np.arange(count)) for _ in range(2))
    assert one.serialised.tobytes() == two.serialised.tobytes()
    assert faiss.deserialize_index(one.serialised).ntotal == count


def brute_force(vectors: NDArray[np.float16], order: NDArray[np.int64], similarity: float) -> NDArray[np.bool_]:
    marked, kept = np.zeros(len(order), dtype=bool), []
    for place in order:
        if any(vectors[place].astype(np.float32) @ vectors[other].astype(np.float32) >= similarity for other in kept):
            marked[place] = True
        else:
            kept.append(place)
    return marked


def test_near_duplicates_are_those_of_a_greedy_brute_force_search() -> None:
    rng = np.random.default_rng(3)
    base = unit_vectors(60).astype(np.float64)
    copies = base[rng.integers(0, 60, 140)] + rng.normal(0, 0.02, (140, 16))
    vectors = np.concatenate([base, copies])
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)
    order = rng.permutation(200)
    found = near_duplicates(vectors, np.zeros(200, np.int32), order, 0.98)
    np.testing.assert_array_equal(found, brute_force(vectors, order, 0.98))
    assert 100 < found.sum() < 145


def test_blocks_do_not_show_in_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    import storage.index as module

    vectors = np.repeat(unit_vectors(40), 5, axis=0)
    one = module._duplicates_in_cell(vectors.astype(np.float32), 0.99, block=7)
    two = module._duplicates_in_cell(vectors.astype(np.float32), 0.99, block=1024)
    np.testing.assert_array_equal(one, two)
    assert one.sum() == 160


def test_images_of_different_cells_are_not_compared() -> None:
    vectors = np.repeat(unit_vectors(1), 2, axis=0)
    assert not near_duplicates(vectors, np.array([0, 1], np.int32), np.array([0, 1]), 0.9).any()
