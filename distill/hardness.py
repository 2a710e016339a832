"""Hard samples: a part of every batch comes from the quarter of the images that the student predicts worst.

Ours, after KD3 (arXiv 2307.11469) and SSD-KD, which prefer samples by what teacher and student say of them. An image is
as hard as its last loss KD_i, which its training step gives for nothing. An image without a loss is harder than any
other.

The run is divided into blocks of about one epoch. The hardest quarter in block b follows from the losses before block
b - 1, so it is known a block before it is needed. Batches that are made in advance, and those after a resumption, are
therefore drawn from the same images as all others.

Shapes: N training images, K = ceil(N / 4) hardest ones, S slots of a batch.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from distill.training.loop import AHEAD

HARDEST = 4
"""One image in so many belongs to the hardest."""
TIES = 20260418
"""Ends the seed of a block's order of images that are equally hard."""


class Hardness(nn.Module):
    """The last losses of the training images and the hardest of them. It is a module so that checkpoints keep it."""

    losses_N: Tensor
    hardest_2K: Tensor
    blocks_2: Tensor

    def __init__(self, images: int, *, batch_size: int, seed: int, device: torch.device | None = None) -> None:
        """Begin without losses. They are kept on ``device``, and the hardest images in the CPU's memory."""
        super().__init__()
        self.seed = seed
        self.block = max(AHEAD, math.ceil(images / batch_size))
        """Steps of a block. No batch is made so early that its hardest images are not known."""
        self.register_buffer("losses_N", torch.full((images,), torch.inf, device=device))
        self.register_buffer("hardest_2K", torch.stack([self._rank(block) for block in (0, 1)]))
        self.register_buffer("blocks_2", torch.arange(2))

    def hardest(self, step: int) -> NDArray[np.int64]:
        """Places of the hardest images for the batch of a step, [K], hardest first."""
        block = step // self.block
        if int(self.blocks_2[block % 2]) != block:
            raise RuntimeError(f"the hardest images of block {block} are not known when the batch of {step} is made")
        return self.hardest_2K[block % 2].numpy().copy()

    def record(self, step: int, places: Sequence[int], losses_S: Tensor) -> None:
        """Note the losses of a step's slots. Of an image that comes twice, the last slot counts."""
        last = {place: slot for slot, place in enumerate(places)}  # no place twice: a GPU would write in any order
        own, slots = (torch.tensor(list(values), device=self.losses_N.device) for values in (last, last.values()))
        self.losses_N[own] = losses_S.detach()[slots].to(self.losses_N)
        if (step + 1) % self.block == 0:
            following = step // self.block + 2
            self.hardest_2K[following % 2] = self._rank(following)
            self.blocks_2[following % 2] = following

    def _rank(self, block: int) -> Tensor:
        """Places of the hardest images by the losses so far, [K]; equally hard ones in an order of the block's own."""
        losses = self.losses_N.cpu().numpy()
        order = np.random.default_rng([self.seed, block, 0, TIES]).permutation(len(losses))
        order = order[np.argsort(-losses[order], kind="stable")]
        return torch.from_numpy(order[: math.ceil(len(losses) / HARDEST)])


def hard_slots(share: float, batch_size: int) -> int:
    """The number of slots of a batch for the hardest images: the share, rounded, and at least one unless it is 0."""
    return max(1, round(share * batch_size)) if share else 0
