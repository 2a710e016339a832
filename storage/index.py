"""The diversity index: FAISS cells over the images' embeddings, serialised into the score store.

Embeddings have unit length, so inner products are cosine similarities. Cells come from spherical k-means with about
sqrt(N) centroids, trained on a bounded sample; the index is an inverted file with half-precision vectors.

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
MOST_CELLS = 16384


@dataclasses.dataclass(frozen=True, slots=True)
class DiversityIndex:
    """What the store keeps under ``diversity/``."""

    centroids: NDArray[np.float32]
    """[K, D]"""
    cell: NDArray[np.int32]
    """[M], the nearest centroid of each image."""
    serialised: NDArray[np.uint8]
    """Bytes for ``faiss.deserialize_index``; its ids are store rows."""


def cell_count(images: int) -> int:
    """K = sqrt(M), at least 1."""
    return max(1, min(MOST_CELLS, round(math.sqrt(images))))


def build_index(embedding_MD: NDArray[np.float16], rows: NDArray[np.int64]) -> DiversityIndex:
    """Cluster M embeddings and index them under their store rows. The same input gives the same bytes.

    No image at all gives an index without cells.
    """
    vectors = np.ascontiguousarray(embedding_MD, dtype=np.float32)
    count, size = vectors.shape
    if count == 0:
        empty = faiss.IndexFlatIP(size)
        return DiversityIndex(np.zeros((0, size), np.float32), np.zeros(0, np.int32), faiss.serialize_index(empty))
    cells = cell_count(count)
    kmeans = faiss.Kmeans(
        size,
        cells,
        niter=ITERATIONS,
        seed=SEED,
        spherical=True,
        min_points_per_centroid=1,
        max_points_per_centroid=SAMPLE_PER_CELL,
    )
    kmeans.train(vectors)
    centroids = np.ascontiguousarray(kmeans.centroids, dtype=np.float32)
    quantizer = faiss.IndexFlatIP(size)
    quantizer.add(centroids)
    _, cell = quantizer.search(vectors, 1)
    index = faiss.IndexIVFScalarQuantizer(
        quantizer, size, cells, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT, False
    )
    index.train(vectors[:1])  # fp16 learns nothing; FAISS wants to be told so
    index.add_with_ids(vectors, rows)
    return DiversityIndex(centroids, cell[:, 0].astype(np.int32), faiss.serialize_index(index))


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
