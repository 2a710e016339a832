"""Seconds for the diversity index and the ADS order of up to four million images, and their growth with N.

ADS is Approximate Distribution Sampling.

``python benchmarks/diversity.py --json benchmarks/results/diversity.json``

Embeddings are drawn from 300 clusters with 1 % near-copies, and distances from a gamma distribution. The seed is fixed.
``seconds_1m`` is the total for a million images. ``exponent`` is the slope of log(seconds) against log(N) from a
million images (or the second largest size) to the largest; N log N would give 1.07 there.
"""

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
from machine import machine
from numpy.typing import NDArray

from pipeline.process import keep_freed_memory
from pipeline.selection.strategies import ads_order
from storage.index import build_index


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000, 4_000_000])
    parser.add_argument("--dimension", type=int, default=128)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    keep_freed_memory()
    rows = [measure(size, options.dimension) for size in options.sizes]
    print(f"{'images':>10} {'index, s':>9} {'order, s':>9} {'total, s':>9}")
    for row in rows:
        print(f"{row['images']:>10} {row['index']:>9.1f} {row['order']:>9.1f} {row['total']:>9.1f}")
    small, large = rows[-2:]
    result = {
        "seconds_1m": next((row["total"] for row in rows if row["images"] == 1_000_000), None),
        "exponent": math.log(large["total"] / small["total"]) / math.log(large["images"] / small["images"]),
        "rows": rows,
        "machine": machine(),
    }
    print(f"exponent {result['exponent']:.2f}")
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


def measure(count: int, dimension: int) -> dict[str, float]:
    """Seconds of each part for ``count`` images."""
    embedding, distance = corpus(count, dimension)
    start = time.perf_counter()
    index = build_index(embedding, np.arange(count))
    indexed = time.perf_counter()
    order = ads_order(distance, index.cell, embedding, diversity=0.1, duplicate=0.995)
    ordered = time.perf_counter()
    assert len(set(order[:1000])) == 1000
    return {"images": count, "index": indexed - start, "order": ordered - indexed, "total": ordered - start}


def corpus(count: int, dimension: int) -> tuple[NDArray[np.float16], NDArray[np.float32]]:
    """Unit embeddings [N, D] and distances [N]."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((300, dimension), dtype=np.float32)
    embedding = np.empty((count, dimension), dtype=np.float16)
    for start in range(0, count, 100_000):
        rows = min(100_000, count - start)
        vectors = centres[rng.integers(0, 300, rows)] + rng.standard_normal((rows, dimension), dtype=np.float32)
        embedding[start : start + rows] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    copies = rng.choice(count, count // 100, replace=False)
    embedding[copies] = embedding[rng.permutation(copies)]
    return embedding, rng.gamma(4, 0.25, count).astype(np.float32)


if __name__ == "__main__":
    main()
