"""The order in which a data set's images are trained on."""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler


class EpochSampler(Sampler):
    """Every (epoch, index) once, in an order that depends on (seed, epoch) alone.

    Each pass is the next epoch. Set .epoch to go on at another, and .start to leave out the first
    indices of the next pass. Of several processes each gets its shard of every batch; where the
    last batch has none for it, that batch's first index as a filler.
    """

    def __init__(
        self, length: int, seed: int = 0, batch_size: int = 1, rank: int = 0, world_size: int = 1
    ) -> None:
        self.length = length
        self.seed = seed
        self.batch_size = batch_size  # of all processes together
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self.start = 0

    def __len__(self) -> int:
        if self.world_size == 1:
            return self.length
        batches = -(-self.length // self.batch_size)
        return batches * self.batch_size // self.world_size

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch = self.epoch
        start = self.start
        self.epoch += 1
        self.start = 0
        order = self.order(epoch)
        keys = []
        for first in range(start, self.length, self.batch_size):
            batch = order[first : first + self.batch_size]
            own = batch[self.rank :: self.world_size] or batch[:1]
            keys += [(epoch, index) for index in own]
        return iter(keys)

    def order(self, epoch: int) -> list[int]:
        """Return the indices of an epoch, in order."""
        return np.random.default_rng([self.seed, epoch]).permutation(self.length).tolist()
