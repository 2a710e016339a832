"""Cells, the serialised index, and near-duplicates, against a brute-force search."""

import faiss
import numpy as np
import pytest
from numpy.typing import NDArray

from storage.index import build_index, near_duplicates


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


def test_a_search_that_sets_nothing_finds_an_image_itself() -> None:
    vectors = unit_vectors(3000)
    index = faiss.deserialize_index(build_index(vectors, np.arange(3000)).serialised)
    _, found = index.search(vectors.astype(np.float32), 5)
    assert (found[:, 0] == np.arange(3000)).mean() > 0.99
    assert (found >= 0).all()


def test_every_image_is_in_one_cell_of_images_that_are_like_it() -> None:
    vectors = unit_vectors(5000)
    index = build_index(vectors, np.arange(5000))
    sizes = np.bincount(index.cell)
    assert sizes.sum() == 5000
    assert 1 <= sizes.min() <= sizes.max() <= 140  # 2 sqrt(5000)
    assert 50 < len(sizes) < 200
    assert index.centroids.shape == (len(sizes), 16)
    similarity = vectors.astype(np.float64) @ index.centroids.astype(np.float64).T
    own = similarity[np.arange(5000), index.cell]
    assert own.mean() > np.quantile(similarity, 0.97)
    assert (similarity > own[:, None]).sum(axis=1).mean() < 2  # the greedy tree seldom misses the nearest by much


@pytest.mark.parametrize("strangers", [0, 300])
@pytest.mark.parametrize("noise", [0.0, 0.002])
def test_copies_of_an_image_are_one_cell_and_all_but_the_first_are_marked(strangers: int, noise: float) -> None:
    rng = np.random.default_rng(0)
    copies = unit_vectors(1, size=128).astype(np.float64) + rng.normal(0, noise, (20_000, 128))
    vectors = np.concatenate([copies, unit_vectors(strangers, size=128, seed=1)])[rng.permutation(20_000 + strangers)]
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)
    cell = build_index(vectors, np.arange(len(vectors))).cell
    unmarked = (~near_duplicates(vectors, cell, np.arange(len(vectors)), 0.99)).sum()
    assert unmarked == 1 + strangers


@pytest.mark.parametrize("similarity", [0.0, 0.5, 0.9, 0.97])
def test_images_that_are_similar_but_no_copies_are_split_all_the_same(similarity: float) -> None:
    scattered = unit_vectors(6000, size=64).astype(np.float64)
    vectors = np.sqrt(1 - similarity) * scattered + np.sqrt(similarity) * unit_vectors(1, size=64, seed=1)
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)
    assert np.bincount(build_index(vectors, np.arange(6000)).cell).max() <= 2 * 77


@pytest.mark.parametrize("vectors", [np.zeros((500, 16), np.float16), np.repeat(unit_vectors(2), 300, axis=0)])
def test_images_that_are_all_alike_share_a_cell(vectors: NDArray[np.float16]) -> None:
    cell = build_index(vectors, np.arange(len(vectors))).cell
    assert len(np.unique(cell)) == len(np.unique(vectors, axis=0))


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
