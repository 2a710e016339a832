"""The diversity index: FAISS cells over the images' embeddings, serialised into the score store.

Embeddings have unit length, so inner products are cosine similarities. Cells come from hierarchical spherical k-means.
It splits the images, and then every part that is too large, into at most BRANCHES parts, which costs O(N log N). The
index is an inverted file with half-precision vectors. The scheme is ours.

Shapes: M scored images of N, D embedding numbers, K cells.
"""

import dataclasses
import math
from collections.abc import Iterator
from contextlib import contextmanager

import faiss
import numpy as np
from numpy.typing import NDArray

SEED = 20251213
ITERATIONS = 10
SAMPLE_PER_PART = 256
BRANCHES = 32
"""Largest number of parts of one split."""
MOST_LEVELS = 8
ALIKE = 0.99
"""Embeddings at least this similar to their centroid (cosine) count as copies of one image, which stay together."""
SMALL_CELL = 64
"""Smallest mean size of a cell; a small corpus gets fewer cells."""
BLOCK = 65536
COMPARED_AT_ONCE = 512
"""Approximate number of images that a search for near-duplicates compares with one another."""
CELLS_SEARCHED = 8

Embedding = NDArray[np.float16] | NDArray[np.float32]
"""[M, D]"""


@dataclasses.dataclass(frozen=True, slots=True)
class DiversityIndex:
    """The contents of the store's group ``diversity/``."""

    centroids: NDArray[np.float32]
    """[K, D], the mean direction of each cell."""
    cell: NDArray[np.int32]
    """[M], the cell of each image. About sqrt(M) images; more than twice as many only where most are copies."""
    serialised: NDArray[np.uint8]
    """Bytes for ``faiss.deserialize_index``. The ids are rows of the store."""


def build_index(embedding_MD: NDArray[np.float16], rows: NDArray[np.int64]) -> DiversityIndex:
    """Cluster M embeddings and index them under their store rows. The same input gives the same bytes.

    Without any image the index has no cells.
    """
    count, size = embedding_MD.shape
    if count == 0:
        empty = faiss.IndexFlatIP(size)
        return DiversityIndex(np.empty((0, size), np.float32), np.empty(0, np.int32), faiss.serialize_index(empty))
    cells = split(embedding_MD, max(SMALL_CELL, 2 * math.isqrt(count)))
    centroids = np.stack([_direction(_single(embedding_MD[members])) for members in cells])
    cell = np.empty(count, dtype=np.int32)
    for number, members in enumerate(cells):
        cell[members] = number
    return DiversityIndex(centroids, cell, _inverted_file(embedding_MD, rows, centroids, cell))


def split(embedding_MD: Embedding, most: int) -> list[NDArray[np.int64]]:
    """Split M embeddings into parts of similar ones, at most ``most`` in each; returns their positions.

    A part that holds mostly copies of one image may be larger.
    """
    parts = []
    undecided = [(np.arange(len(embedding_MD)), 0)]
    while undecided:
        members, level = undecided.pop()
        if len(members) <= most:
            parts.append(members)
            continue
        if level == MOST_LEVELS:  # k-means only peels off a few at a time
            parts += [members[start : start + most] for start in range(0, len(members), most)]
            continue
        found = _cluster(embedding_MD, members, min(BRANCHES, math.ceil(2 * len(members) / most)))
        children = [members[found == number] for number in np.unique(found)]
        if len(children) == 1:
            parts.append(members)
        else:
            undecided += [(child, level + 1) for child in reversed(children)]
    return parts


def _cluster(embedding_MD: Embedding, members: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """The cluster of each member, one of ``count``. Only a sample and one block at a time are in single precision."""
    sample = np.random.default_rng(SEED).permutation(len(members))[: SAMPLE_PER_PART * count]
    kmeans = faiss.Kmeans(
        embedding_MD.shape[1],
        count,
        niter=ITERATIONS,
        seed=SEED,
        spherical=True,
        min_points_per_centroid=1,
        max_points_per_centroid=SAMPLE_PER_PART,
    )
    kmeans.train(_single(embedding_MD[members[sample]]))
    assigned = [kmeans.assign(_single(embedding_MD[block])) for block in _blocks(members)]
    found: NDArray[np.int64] = np.concatenate([nearest for _, nearest in assigned])
    alike = np.concatenate([similarity for similarity, _ in assigned]) >= ALIKE
    sizes = np.bincount(found, minlength=count)
    copies = np.bincount(found[alike], minlength=count) > sizes / 2
    return _copies_together(np.asarray(kmeans.centroids), copies)[found]


def _copies_together(centroids_KD: NDArray[np.float32], copies_K: NDArray[np.bool_]) -> NDArray[np.int64]:
    """For each cluster the first one that it is merged with, [K].

    Copies of one image attract several nearly equal centroids, and ties between them would separate the copies. So
    similar clusters are merged if most of their embeddings nearly equal their centroid.
    """
    joined = copies_K[:, None] & copies_K & (centroids_KD @ centroids_KD.T >= ALIKE)
    np.fill_diagonal(joined, True)
    first: NDArray[np.int64] = np.arange(len(copies_K))
    while (reached := np.where(joined, first, len(first)).min(axis=1)).tolist() != first.tolist():
        first = reached
    return first


def _blocks(members: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    return [members[start : start + BLOCK] for start in range(0, len(members), BLOCK)]


def _single(vectors: Embedding) -> NDArray[np.float32]:
    return np.ascontiguousarray(vectors, dtype=np.float32)


def _direction(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    mean: NDArray[np.float32] = vectors.mean(axis=0)
    length = float(np.linalg.norm(mean))
    return mean / np.float32(length) if length > 0 else vectors[0]


def _inverted_file(
    embedding_MD: Embedding,
    rows: NDArray[np.int64],
    centroids: NDArray[np.float32],
    cell: NDArray[np.int32],
) -> NDArray[np.uint8]:
    size = embedding_MD.shape[1]
    quantizer = faiss.IndexFlatIP(size)
    quantizer.add(centroids)
    index = faiss.IndexIVFScalarQuantizer(
        quantizer, size, len(centroids), faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT, False
    )
    index.train(centroids)  # fp16 learns nothing; FAISS wants to be told so
    index.nprobe = CELLS_SEARCHED  # kept in the bytes: what a search that sets nothing looks at
    for block in _blocks(np.arange(len(rows))):
        vectors, ids, cells = _single(embedding_MD[block]), rows[block].astype(np.int64), cell[block].astype(np.int64)
        index.add_core(len(block), faiss.swig_ptr(vectors), faiss.swig_ptr(ids), faiss.swig_ptr(cells))
    serialised: NDArray[np.uint8] = faiss.serialize_index(index)
    return serialised


def near_duplicates(
    embedding_MD: NDArray[np.float16], cell: NDArray[np.int32], order: NDArray[np.int64], similarity: float
) -> NDArray[np.bool_]:
    """Mark near-duplicates, [M]: images that are too similar to an earlier unmarked one of their cell.

    Earlier means earlier in ``order``; ``similarity`` is the cosine from which two images count as near-duplicates. A
    large cell is first split into parts of similar images. Images are compared with unmarked ones only, so a thousand
    copies of one image cost a thousand comparisons.
    """
    marked = np.empty(len(order), dtype=bool)
    by_cell = order[np.argsort(cell[order], kind="stable")]
    edges = np.flatnonzero(np.diff(cell[by_cell])) + 1
    with _one_thread():
        for members in np.split(by_cell, edges):
            vectors = _single(embedding_MD[members])
            for part in split(vectors, COMPARED_AT_ONCE):
                marked[members[part]] = _duplicates_in_cell(vectors[part], similarity)
    return marked


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let FAISS use one thread. On thousands of small inputs its threads and numpy's wait for one another."""
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(threads)


def _duplicates_in_cell(vectors: NDArray[np.float32], similarity: float, block: int = 1024) -> NDArray[np.bool_]:
    marked = np.zeros(len(vectors), dtype=bool)
    for start in range(len(vectors))[::block]:
        part = slice(start, start + block)
        kept = vectors[:start][~marked[:start]]
        if len(kept):
            marked[part] = (vectors[part] @ kept.T).max(axis=1) >= similarity
        alike = np.triu(vectors[part] @ vectors[part].T >= similarity, k=1)
        inside = marked[part]  # a view
        for row in np.flatnonzero(alike.any(axis=1)):
            if not inside[row]:
                inside |= alike[row]
    return marked
