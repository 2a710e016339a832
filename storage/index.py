"""The diversity index: FAISS cells over the images' embeddings, serialised into the score store.

Embeddings have unit length, so inner products are cosine similarities. Cells come from spherical k-means, split again
and again by the same small number until a cell holds few images: for N images that costs N log N, and so does whatever
compares the images of a cell with one another. The index is an inverted file with half-precision vectors.

Shapes: M scored images of N, D embedding numbers, K cells.
"""

import dataclasses
import math

import faiss
import numpy as np
from numpy.typing import NDArray

SEED = 20251213
ITERATIONS = 10
SAMPLE_PER_CELL = 256
CELL_SIZE = 64
"""Images in a cell, at most, unless they are all alike."""
BRANCHES = 32
"""Cells that one is split into at once, at most."""
MOST_LEVELS = 8


@dataclasses.dataclass(frozen=True, slots=True)
class DiversityIndex:
    """What the store keeps under ``diversity/``."""

    centroids: NDArray[np.float32]
    """[K, D], the mean direction of each cell."""
    cell: NDArray[np.int32]
    """[M]"""
    serialised: NDArray[np.uint8]
    """Bytes for ``faiss.deserialize_index``; its ids are store rows."""


def build_index(embedding_MD: NDArray[np.float16], rows: NDArray[np.int64]) -> DiversityIndex:
    """Cluster M embeddings and index them under their store rows. The same input gives the same bytes.

    No image at all gives an index without cells.
    """
    vectors = np.ascontiguousarray(embedding_MD, dtype=np.float32)
    count, size = vectors.shape
    if count == 0:
        empty = faiss.IndexFlatIP(size)
        return DiversityIndex(np.zeros((0, size), np.float32), np.zeros(0, np.int32), faiss.serialize_index(empty))
    cells = _split(vectors)
    centroids = np.stack([_direction(vectors[members]) for members in cells])
    cell = np.empty(count, dtype=np.int32)
    for number, members in enumerate(cells):
        cell[members] = number
    return DiversityIndex(centroids, cell, _inverted_file(vectors, rows, centroids, cell))


def _split(vectors: NDArray[np.float32]) -> list[NDArray[np.int64]]:
    """Places of the images of each cell."""
    cells = []
    undecided = [(np.arange(len(vectors)), 0)]
    while undecided:
        members, level = undecided.pop()
        parts = min(BRANCHES, math.ceil(len(members) / CELL_SIZE))
        found = _cluster(vectors[members], parts) if parts > 1 and level < MOST_LEVELS else np.zeros(len(members))
        children = [members[found == part] for part in np.unique(found)]
        if len(children) == 1:
            cells.append(members)
        else:
            undecided += [(child, level + 1) for child in reversed(children)]
    return cells


def _cluster(vectors: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    kmeans = faiss.Kmeans(
        vectors.shape[1],
        count,
        niter=ITERATIONS,
        seed=SEED,
        spherical=True,
        min_points_per_centroid=1,
        max_points_per_centroid=SAMPLE_PER_CELL,
    )
    kmeans.train(vectors)
    found: NDArray[np.int64] = kmeans.assign(vectors)[1]
    return found


def _direction(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    mean: NDArray[np.float32] = vectors.mean(axis=0)
    length = float(np.linalg.norm(mean))
    return mean / np.float32(length) if length > 0 else vectors[0]


def _inverted_file(
    vectors: NDArray[np.float32],
    rows: NDArray[np.int64],
    centroids: NDArray[np.float32],
    cell: NDArray[np.int32],
) -> NDArray[np.uint8]:
    size = vectors.shape[1]
    quantizer = faiss.IndexFlatIP(size)
    quantizer.add(centroids)
    index = faiss.IndexIVFScalarQuantizer(
        quantizer, size, len(centroids), faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT, False
    )
    index.train(vectors[:1])  # fp16 learns nothing; FAISS wants to be told so
    ids, cells = np.ascontiguousarray(rows, dtype=np.int64), cell.astype(np.int64)
    index.add_core(len(vectors), faiss.swig_ptr(vectors), faiss.swig_ptr(ids), faiss.swig_ptr(cells))
    serialised: NDArray[np.uint8] = faiss.serialize_index(index)
    return serialised


def near_duplicates(
    embedding_MD: NDArray[np.float16], cell: NDArray[np.int32], order: NDArray[np.int64], similarity: float
) -> NDArray[np.bool_]:
    """Mark each image that is at least so similar to an unmarked one of its cell that comes earlier in ``order``, [M].

    Only unmarked images are compared against, so a thousand copies of one image cost a thousand comparisons.
    """
    marked = np.zeros(len(order), dtype=bool)
    by_cell = order[np.argsort(cell[order], kind="stable")]
    edges = np.flatnonzero(np.diff(cell[by_cell])) + 1
    for members in np.split(by_cell, edges):
        marked[members] = _duplicates_in_cell(np.asarray(embedding_MD[members], dtype=np.float32), similarity)
    return marked


def _duplicates_in_cell(vectors: NDArray[np.float32], similarity: float, block: int = 1024) -> NDArray[np.bool_]:
    marked = np.zeros(len(vectors), dtype=bool)
    for start in range(0, len(vectors), block):
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
