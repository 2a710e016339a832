"""What a score store keeps.

Shapes: N images, L monitored layers, D embedding numbers, S rows per shard.
"""

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

SCHEMA_VERSION = 1


SCORING_VERSION = 1
"""What a score means: decoding, layers, distances, embedding, cells. Raise it when the golden test of the scores moves
(tests/pipeline/scoring/test_golden.py): stores of another version are then not continued."""


PENDING, SCORED, UNREADABLE, REJECTED = range(4)


INNER_CHUNK = 256


Attributes = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ShardScores:
    """Everything about the rows of one work unit."""

    status: NDArray[np.uint8]
    """[S]"""
    error: list[str]
    """[S], empty for scored rows."""
    distance: NDArray[np.float32]
    """[S], NaN where not scored."""
    layer_distance: NDArray[np.float32]
    """[S, L, 2]: mean part and variance part."""
    embedding: NDArray[np.float16]
    """[S, D]"""
    entropy: NDArray[np.float32] | None
    """[S] nats per pixel, where asked for."""
