"""The batches of an epoch, or of a part of one, as train_fn takes them."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

from carvana import distributed
from carvana.errors import UserError, one_line
from carvana.sampling import EpochSampler

Batch = tuple[torch.Tensor, torch.Tensor]  # images, masks


class BatchShare(NamedTuple):
    """How much of a batch is this process's."""

    own: int  # images
    total: int  # images of all processes together
    weight: float  # of this process's mean loss in the mean of all


class PlainEpoch:
    """The batches of any loader, for train_fn."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader
        self.length = len(loader.dataset)
        self.first = 0  # images done before
        self.batches_before = 0
        self.share = BatchShare(0, 0, 1.0)  # of the current batch

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        for images, masks in self.loader:
            self.share = BatchShare(len(images), len(images), 1.0)
            yield images, masks

    def image_names(self, batch: int) -> list[str]:
        """Return the file names of a batch's images, as far as they are known."""
        sampler = self.loader.sampler
        if not isinstance(sampler, EpochSampler):
            return []
        batch_size = self.loader.batch_size
        return _image_names(self.loader, sampler.epoch - 1, batch * batch_size, batch_size)


class PartialEpoch:
    """The batches of an epoch after its first `done` images, for train_fn.

    They end when pause(done) is true after an optimizer step, or when reading fails.

    Attributes:
        done: images whose step is complete.
        error: what reading failed with, in any of the processes, kept so that what was learned
            can be saved first.
        share: this process's part of the current batch.
    """

    def __init__(
        self,
        loader: Any,
        epoch: int,
        done: int,
        pause: Callable[[int], bool] = lambda done: False,
        accumulate: int = 1,
    ) -> None:
        self.loader = loader
        self.length = loader.sampler.length  # images, of all processes together
        self.batch_size = loader.batch_size * distributed.WORLD_SIZE
        self.epoch = epoch
        self.first = done
        self.batches_before = done // self.batch_size
        self.done = done
        self.pause = pause
        self.accumulate = accumulate  # batches per optimizer step
        self.error: Exception | None = None
        self.share = BatchShare(0, 0, 1.0)

    def __len__(self) -> int:
        return -(-(self.length - self.first) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        self.loader.sampler.epoch = self.epoch
        self.loader.sampler.start = self.first
        batches = self._batches()
        read = self.first
        for number in range(1, len(self) + 1):
            batch = self._read(batches)
            if batch is None:
                return
            images = min(self.batch_size, self.length - read)
            own = len(distributed.shard(images))
            self.share = BatchShare(own, images, own * distributed.WORLD_SIZE / images)
            yield batch
            read += images
            if number % self.accumulate == 0 or number == len(self):
                self.done = read
                if self.pause(self.done):
                    return

    def _batches(self) -> Iterator[Batch]:
        yield from self.loader  # not iter(): to start or wake its workers is part of reading

    def _read(self, batches: Iterator[Batch]) -> Batch | None:
        """Return the next batch, or None if reading it fails in any of the processes."""
        batch = None
        try:
            batch = next(batches)
        except Exception as error:  # nearly anything: a file, a worker, the memory
            self.error = error
        (failed,) = distributed.all_reduce_max(int(self.error is not None))
        if failed and self.error is None:
            self.error = UserError("another process could not read its images, and says why")
        return None if failed else batch

    def image_names(self, batch: int) -> list[str]:
        """Return the file names of a batch's images."""
        first = self.first + batch * self.batch_size
        return _image_names(self.loader, self.epoch, first, self.batch_size)


def _image_names(loader: Any, epoch: int, first: int, count: int) -> list[str]:
    """Return the file names of an epoch's images from place `first` on."""
    indices = loader.sampler.order(epoch)[first : first + count]
    pairs = loader.dataset.pairs
    return [one_line(pairs[index % len(pairs)][0].name) for index in indices]
