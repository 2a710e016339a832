"""Cells, the serialised index, and near-duplicates, against a brute-force search."""

import math
from collections.abc import Sequence
from typing import Any

import faiss
import numpy as np
import pytest
from numpy.typing import NDArray

import storage.index as module
from storage.index import build_index, near_duplicates, split


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
def test_similar_images_that_are_not_copies_are_split(similarity: float) -> None:
    scattered = unit_vectors(6000, size=64).astype(np.float64)
    vectors = np.sqrt(1 - similarity) * scattered + np.sqrt(similarity) * unit_vectors(1, size=64, seed=1)
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)
    assert np.bincount(build_index(vectors, np.arange(6000)).cell).max() <= 2 * 77


@pytest.mark.parametrize("vectors", [np.zeros((500, 16), np.float16), np.repeat(unit_vectors(2), 300, axis=0)])
def test_equal_images_share_a_cell(vectors: NDArray[np.float16]) -> None:
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


def test_blocks_do_not_show_in_the_result() -> None:
    vectors = np.repeat(unit_vectors(40), 5, axis=0)
    one = module._duplicates_in_cell(vectors.astype(np.float32), 0.99, block=7)
    two = module._duplicates_in_cell(vectors.astype(np.float32), 0.99, block=1024)
    np.testing.assert_array_equal(one, two)
    assert one.sum() == 160


def test_images_of_different_cells_are_not_compared() -> None:
    vectors = np.repeat(unit_vectors(1), 2, axis=0)
    assert not near_duplicates(vectors, np.array([0, 1], np.int32), np.array([0, 1]), 0.9).any()


def test_as_similar_as_asked_for_is_a_duplicate_whatever_the_block() -> None:
    vectors = np.array([[1, 0], [0.5, 0.75], [0, 1], [0.25, 1]], np.float32)
    for block in (1, 2, 3, 4):
        exact = module._duplicates_in_cell(vectors, 0.75, block=block)
        np.testing.assert_array_equal(exact, [False, False, True, True])  # 0.5, then 0.75, then 0.875
        more = module._duplicates_in_cell(vectors, np.nextafter(np.float32(0.75), np.float32(1)), block=block)
        np.testing.assert_array_equal(more, [False, False, False, True])


def parts_of(vectors: NDArray[np.float16], most: int) -> list[list[int]]:
    """The tree of spherical k-means as it is documented, with the nearest centroids by float64 numpy."""

    def grow(members: NDArray[np.int64]) -> list[list[int]]:
        if len(members) <= most:
            return [members.tolist()]
        count = min(32, math.ceil(2 * len(members) / most))
        sample = np.random.default_rng(20251213).permutation(len(members))[: 256 * count]
        kmeans = faiss.Kmeans(
            vectors.shape[1], count, niter=10, seed=20251213, spherical=True,
            min_points_per_centroid=1, max_points_per_centroid=256,
        )  # fmt: skip
        kmeans.train(vectors[members[sample]].astype(np.float32))
        nearest = (vectors[members].astype(np.float64) @ kmeans.centroids.astype(np.float64).T).argmax(axis=1)
        return [part for number in sorted(set(nearest)) for part in grow(members[nearest == number])]

    return grow(np.arange(len(vectors)))


@pytest.mark.parametrize(("count", "most"), [(3000, 64), (3000, 1500), (65, 64), (64, 64)])
def test_parts_are_those_of_a_tree_of_spherical_k_means(count: int, most: int) -> None:
    vectors = unit_vectors(count, seed=2)
    expected = parts_of(vectors, most)
    assert [part.tolist() for part in split(vectors, most)] == expected
    assert (len(expected) == 1) is (count == most)


@pytest.mark.parametrize(("count", "most"), [(64, 64), (65, 64), (1023, 64), (1100, 66), (5000, 140)])
def test_cells_hold_twice_the_root_of_the_images_at_most_or_64_and_centroids_are_their_mean_directions(
    count: int, most: int
) -> None:
    vectors = unit_vectors(count, seed=4)
    index = build_index(vectors, np.arange(count))
    parts = parts_of(vectors, most)
    assert [np.flatnonzero(index.cell == number).tolist() for number in range(len(parts))] == parts
    for part, centroid in zip(parts, index.centroids, strict=True):
        mean = vectors[part].astype(np.float64).mean(axis=0)
        np.testing.assert_allclose(centroid, mean / np.linalg.norm(mean), rtol=1e-4, atol=1e-6)
        mean32 = vectors[part].astype(np.float32).mean(axis=0)  # a store is made again to the bit
        np.testing.assert_array_equal(centroid, mean32 / np.float32(np.linalg.norm(mean32)))


def test_a_cell_without_a_mean_direction_has_that_of_its_first_image() -> None:
    vectors = np.array([[0, 1], [0, -1]], np.float16)
    np.testing.assert_array_equal(build_index(vectors, np.arange(2)).centroids, [[0, 1]])


def test_no_image_at_all_has_no_cells() -> None:
    index = build_index(unit_vectors(0), np.arange(0))
    assert (index.centroids.shape, index.cell.shape) == ((0, 16), (0,))


def test_after_eight_levels_of_k_means_parts_are_cut_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    def peel(_: object, members: NDArray[np.int64], count: int) -> NDArray[np.int64]:
        return np.minimum(np.arange(len(members)), 1)  # the first one, and the others

    monkeypatch.setattr(module, "_cluster", peel)
    parts = [part.tolist() for part in split(unit_vectors(100), 10)]
    assert parts == [[place] for place in range(8)] + [
        [*range(start, min(start + 10, 100))] for start in range(8, 100, 10)
    ]


LIKE = np.float32(0.99)
LESS_LIKE = np.nextafter(LIKE, np.float32(0))


@pytest.mark.parametrize(
    ("similarity", "found"),
    [
        ((LIKE, LIKE, LIKE, LIKE), [0, 0, 0, 0]),
        ((LESS_LIKE, LESS_LIKE, LESS_LIKE, LESS_LIKE), [0, 0, 1, 1]),
        ((LIKE, LESS_LIKE, LIKE, LIKE), [0, 0, 1, 1]),  # half of the first cluster are copies, which is not most
    ],
)
def test_equal_clusters_are_joined_where_most_of_their_images_are_copies(
    similarity: Sequence[np.float32], found: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Kmeans:
        centroids = np.array([[1, 0], [1, 0]], np.float32)

        def __init__(self, *_: object, **__: object) -> None: ...

        def train(self, vectors: NDArray[np.float32]) -> None: ...

        def assign(self, vectors: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
            return np.array(similarity), np.array([0, 0, 1, 1])

    monkeypatch.setattr(faiss, "Kmeans", Kmeans)
    assert module._cluster(unit_vectors(4, size=2), np.arange(4), 2).tolist() == found


@pytest.mark.parametrize(("gap", "joined"), [(LIKE, [0, 0, 2, 3, 0]), (LESS_LIKE, [0, 1, 2, 3, 4])])
def test_clusters_of_copies_are_joined_from_a_similarity_of_99_percent_on_and_through_one_another(
    gap: np.float32, joined: list[int]
) -> None:
    side = np.sqrt(1 - np.float64(gap) ** 2)
    centroids = np.array([[1, 0, 0], [gap, side, 0], [0, 0, 1], [1, 0, 0], [0, 0, 0]], np.float32)
    centroids[4] = [2 * gap**2 - 1, 2 * gap * side, 0]  # as far beyond the second one as that is from the first
    centroids[4] *= np.float32(gap) / (centroids[4] @ centroids[1])
    copies = np.array([True, True, True, False, True])
    assert centroids[0] @ centroids[4] < 0.97
    assert module._copies_together(centroids, copies).tolist() == joined


def test_at_most_65536_embeddings_are_in_single_precision_at_a_time() -> None:
    blocks = module._blocks(np.arange(131_073))
    assert [len(block) for block in blocks] == [65_536, 65_536, 1]
    np.testing.assert_array_equal(np.concatenate(blocks), np.arange(131_073))


@pytest.mark.parametrize("count", [512, 513])
def test_a_cell_of_more_than_512_images_is_split_before_its_images_are_compared(count: int) -> None:
    vectors, order = unit_vectors(count, seed=5), np.random.default_rng(6).permutation(count)
    expected = np.zeros(count, dtype=bool)
    for part in parts_of(vectors[order], 512):
        expected[order[part]] = brute_force(vectors[order[part]], np.arange(len(part)), 0.6)
    assert (expected == brute_force(vectors, order, 0.6)).all() is np.bool_(count == 512)
    np.testing.assert_array_equal(near_duplicates(vectors, np.zeros(count, np.int32), order, 0.6), expected)


def test_the_index_searches_eight_cells_and_measures_embeddings_as_they_are() -> None:
    vectors = unit_vectors(3000)
    index = faiss.deserialize_index(build_index(vectors, np.arange(3000)).serialised)
    assert (index.nprobe, index.is_trained) == (8, True)
    similarity, found = index.search(vectors[:50].astype(np.float32), 10)
    own = vectors.astype(np.float64)
    np.testing.assert_allclose(similarity, (own[:50, None] * own[found]).sum(axis=2), rtol=0, atol=1e-6)


def test_neither_few_images_in_many_parts_nor_many_cells_are_anything_to_warn_of(
    capfd: pytest.CaptureFixture[str],
) -> None:
    module._cluster(unit_vectors(5), np.arange(5), 4)
    build_index(unit_vectors(300), np.arange(300))
    written = capfd.readouterr()
    assert (written.out, written.err) == ("", "")


def test_the_memory_of_a_search_among_copies_is_bounded_by_1024_rows_at_a_time() -> None:
    rows: list[int] = []

    class Watched(np.ndarray[Any, np.dtype[np.float32]]):
        def __matmul__(self, other: Any) -> NDArray[np.float32]:
            rows.append(len(self))
            return np.asarray(self) @ np.asarray(other)

    vectors = np.tile(np.array([0.6, 0.8], np.float32), (2050, 1))
    marked = module._duplicates_in_cell(vectors.view(Watched), 0.99)
    assert (marked[0], marked[1:].all()) == (False, True)
    assert rows == [1024, 1024, 1024, 2, 2]  # each block with those kept so far, and with itself


def test_near_duplicates_are_searched_for_on_one_thread_and_faiss_has_its_threads_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    threads, used = faiss.omp_get_max_threads(), []
    monkeypatch.setattr(module, "split", lambda vectors, most: used.append(faiss.omp_get_max_threads()) or 1 / 0)
    try:
        faiss.omp_set_num_threads(3)
        with pytest.raises(ZeroDivisionError):
            near_duplicates(unit_vectors(4), np.zeros(4, np.int32), np.arange(4), 0.9)
        assert (used, faiss.omp_get_max_threads()) == ([1], 3)
    finally:
        faiss.omp_set_num_threads(threads)
