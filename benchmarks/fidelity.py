"""Gain in speed and change of the distances by two shortcuts of scoring: JPEG at a reduced scale, and bfloat16.

``python benchmarks/fidelity.py --corpus "wild/wild-{000000..000009}.tar" --teacher teacher.safetensors --json FILE``

``reduced`` needs large photographs. So each image of the corpus is repeated 4 x 4 times, every second copy mirrored,
and saved as JPEG of 1,536 x 1,152 pixels, whose fine detail is that of a real image. These are decoded to the teacher's
size from full scale and from a reduced scale. ``bfloat16`` uses the images of the corpus themselves. For both:

- ``ratio``: rate with the shortcut / without, in turn, one thread of decoding, all threads of the forward pass
- ``change_median``, ``change_largest``: |d with - d without| / d without
- ``rank_correlation``: Spearman's, of the distances with and without
"""

import argparse
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from machine import machine, median_ratio, rank_correlation, side_by_side
from numpy.typing import NDArray
from PIL import Image

from pipeline.corpora.locate import resolve_corpus
from pipeline.corpora.reader import ImageReader, list_images
from pipeline.decoding.pillow import Decoder, decode_rgb
from pipeline.process import keep_freed_memory
from pipeline.scoring.scorer import Scorer, make_scorer
from pipeline.settings import ScoreSettings

REPEAT = 4
TILE = (384, 288)
BATCH = 16

Batches = list[NDArray[np.uint8]]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    keep_freed_memory()
    common: dict[str, Any] = {"corpus": options.corpus, "teacher": options.teacher}
    scorer = make_scorer(ScoreSettings(**common))
    half = make_scorer(ScoreSettings(**common, precision="bfloat16"))
    height, width = scorer.teacher.spec.image_size
    whole = Decoder(height=height, width=width, reduced=False)
    reduced = Decoder(height=height, width=width)
    photographs = read(options.corpus, options.images)
    large = [enlarge(data) for data in photographs]
    small = batches(whole, photographs)
    result = {
        "reduced": compare(
            distances(scorer, batches(whole, large)),
            distances(scorer, batches(reduced, large)),
            lambda: batches(whole, large),
            lambda: batches(reduced, large),
            options.rounds,
        ),
        "bfloat16": compare(
            distances(scorer, small),
            distances(half, small),
            lambda: distances(scorer, small),
            lambda: distances(half, small),
            options.rounds,
        ),
        "images": len(photographs),
        "teacher_size": [height, width],
        "machine": machine(),
    }
    print(json.dumps(result, indent=2))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


def compare(
    without: NDArray[np.float32],
    with_it: NDArray[np.float32],
    work_without: Callable[[], object],
    work_with: Callable[[], object],
    rounds: int,
) -> dict[str, float]:
    """Distances [N] and work, without and with a shortcut."""
    times = side_by_side({"without": work_without, "with": work_with}, rounds)
    change = np.abs(with_it - without) / without
    return {
        "ratio": median_ratio(times["without"], times["with"]),
        "images_per_second": len(without) / float(np.median(times["with"])),
        "change_median": float(np.median(change)),
        "change_largest": float(change.max()),
        "rank_correlation": rank_correlation(without, with_it),
    }


def read(name: str, count: int) -> list[bytes]:
    """The encoded images of random rows, with a fixed seed."""
    corpus = resolve_corpus(name)
    manifest = list_images(corpus)
    rows = np.random.default_rng(0).permutation(len(manifest))[:count]
    with ImageReader(corpus, manifest) as reader:
        return [reader.read(int(row)) for row in rows]


def enlarge(data: bytes) -> bytes:
    """One image, repeated 4 x 4 times, as JPEG."""
    tile = np.asarray(decode_rgb(data).resize(TILE, Image.Resampling.BICUBIC))
    pair = np.concatenate([tile, tile[:, ::-1]], axis=1)
    four = np.concatenate([pair, pair[::-1]])
    large = io.BytesIO()
    Image.fromarray(np.tile(four, (REPEAT // 2, REPEAT // 2, 1))).save(large, "JPEG", quality=90)
    return large.getvalue()


def batches(decoder: Decoder, images: Sequence[bytes]) -> Batches:
    """Decode images to batches, [N, H, W, 3] each."""
    return [
        np.stack([decoder(data) for data in images[start : start + BATCH]]) for start in range(0, len(images), BATCH)
    ]


def distances(scorer: Scorer, images: Batches) -> NDArray[np.float32]:
    """The distance of each image, [N]."""
    return np.concatenate([scorer(batch)["distance"] for batch in images])


if __name__ == "__main__":
    main()
