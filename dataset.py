"""Photographs and masks on their way to the network: data set and loaders."""

import copy
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, default_collate
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from carvana import distributed, system
from carvana.cache import open_cache
from carvana.classes import SINGLE, Classes
from carvana.compositing import Compositor
from carvana.crops import Crops, find_places
from carvana.device import choose_workers, find_device, pinning_pays
from carvana.errors import raise_all, result_or_error, warn
from carvana.images import FULL_RANGE, Reading, Size, judge_levels, read_all, read_hard_mask
from carvana.interrupts import leave_signals_alone
from carvana.mask_values import MaskFacts, find_ignored_class, judge_set, measure_mask
from carvana.naming import NAMING, Naming
from carvana.pairs import find_pairs
from carvana.sampling import EpochSampler
from carvana.shared_memory import fit_workers

PREFETCH_FACTOR = 4  # batches that each worker reads ahead
JUDGED_MASKS = 64  # of a data set, before it is used


class CarvanaDataset(Dataset):
    """Photographs and masks of two folders, paired by name.

    An item is image, mask. Without a transform: uint8 (H, W, channels), and float32 (H, W) in
    [0, 1], the share of each pixel that is foreground; of several classes uint8 (H, W), class
    indices. The transform is called as transform(image=..., mask=...) with these and returns a
    dict of both; with A.Normalize and ToTensorV2 in it the item is a float tensor
    (channels, H, W) and a mask (H, W).

    dataset[epoch, index] asks for an item of an epoch: an Albumentations pipeline then draws from
    (seed, epoch, index) alone, so that neither workers nor interruptions change what an item is.
    dataset[index] draws anew each time. With crops an epoch has `epoch_length` items, of which
    those whose indices differ by len(dataset) are parts of one picture.

    Args:
        size: (H, W) to read at; None for each picture's own.
        mask_resize: see images.read_mask.
        levels: of 16-bit photographs, see images.read_image.
        value_range: of floating-point photographs, likewise.
        cache_dir: where what was read at `size` is kept for later epochs and runs; None: nowhere.
        naming: what stands before and after the name that a photograph and its mask share.
        compositor: puts objects before other photographs, also drawing from (seed, epoch, index).
        crops: draws the part of each picture that is the item, likewise; None: all of it.

    Raises:
        UserError: naming all files, if images and masks do not pair.
    """

    def __init__(  # noqa: PLR0913 (the tutorials' own signature, and keywords)
        self,
        image_dir: str | Path,
        mask_dir: str | Path,
        transform: Callable | None = None,
        *,
        size: Size | None = None,
        channels: int = 3,
        mask_resize: str = "area",
        classes: Classes = SINGLE,
        naming: Naming = NAMING,
        levels: int = FULL_RANGE,
        value_range: Sequence[float] = (),
        seed: int = 0,
        cache_dir: str | Path | None = None,
        compositor: Compositor | None = None,
        crops: Crops | None = None,
    ) -> None:
        self.pairs = find_pairs(image_dir, mask_dir, naming)
        self.transform = transform
        self.seed = seed
        self.compositor = compositor
        self.crops = crops
        self.places: dict[int, list[np.ndarray]] = {}  # crops.find_places of what was read
        self.reading = Reading(
            size and tuple(size), channels, mask_resize, classes, levels, tuple(value_range)
        )
        self.cache = None
        if cache_dir:
            self.cache = open_cache(cache_dir, self.pairs, self.reading)

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def epoch_length(self) -> int:
        """Return how many items an epoch of training has."""
        return len(self) * (self.crops.per_image if self.crops else 1)

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[Any, Any]:
        if not isinstance(key, tuple):
            key = (random.getrandbits(31), key)
        epoch, index = key
        if not -self.epoch_length <= index < self.epoch_length:
            raise IndexError(f"item {index} of {self.epoch_length}")
        sequence = np.random.SeedSequence([self.seed, epoch, index % self.epoch_length])
        image, mask = self._draw(index % len(self), sequence)
        if self.reading.classes.single:
            mask = mask.astype(np.float32) / 255
        if self.transform is None:
            return image, mask
        if hasattr(self.transform, "set_random_seed"):
            self.transform.set_random_seed(int(sequence.generate_state(1)[0]))
        item = self.transform(image=image, mask=mask)
        return item["image"], item["mask"]

    def _draw(self, index: int, sequence: np.random.SeedSequence) -> tuple[np.ndarray, np.ndarray]:
        """Return a picture and its mask before augmentation, composed and cropped if wanted."""
        if not self.compositor and not self.crops:
            return self.read(index)
        rng = np.random.default_rng(sequence)
        if self.crops and self.cache and not self.compositor:
            if index not in self.places:
                self.places[index] = find_places(self.read_target(index), self.reading.classes)
            window = self.crops.draw(rng, self.cache.size(index), self.places[index])
            image, mask = self.cache.read(index, window)
            return self.crops.fill(image), self.crops.fill(mask)
        image, mask = self.read(index)
        if self.compositor:
            image, mask = self.compositor(image, mask, rng, self)
        if self.crops:
            places = find_places(mask, self.reading.classes)
            window = self.crops.draw(rng, mask.shape, places)
            image, mask = (self.crops.fill(window.cut(levels)) for levels in (image, mask))
        return image, mask

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return a picture and its mask as the reader returns them, or the cache."""
        if self.cache:
            return self.cache[index]
        return self.reading.read_pair(self.pairs[index])

    def read_target(self, index: int) -> np.ndarray:
        """Return the mask of `read` alone."""
        if self.cache:
            return self.cache.read_target(index)
        return self.reading.read_target_of(self.pairs[index])

    def item_bytes(self) -> int:
        """Return the bytes of the largest item's levels; 0 if pictures' sizes are not known."""
        if self.crops:
            return self.reading.item_bytes((self.crops.height, self.crops.width))
        if self.cache:
            return self.cache.largest_pair()
        return self.reading.item_bytes()

    def mask(self, index: int, size: Size | None = None) -> np.ndarray:
        """Return an item's true mask, uint8 (H, W) of class indices; None: at the file's size."""
        return read_hard_mask(self.pairs[index][1], self.reading.classes, size)


# ---------------------------------------------------------------- loaders


def get_loaders(  # noqa: PLR0913 (the tutorials' own signature, and keywords)
    train_dir: str | Path,
    train_maskdir: str | Path,
    val_dir: str | Path,
    val_maskdir: str | Path,
    batch_size: int,
    train_transform: Callable,
    val_transform: Callable,
    num_workers: int = 4,
    pin_memory: bool = True,
    device: torch.device | None = None,
    compositor: Compositor | None = None,
    crops: Crops | None = None,
    **dataset_options: Any,
) -> tuple[DataLoader, DataLoader]:
    """Return train_loader, val_loader over the pairs of four folders.

    Batches are images (B, C, H, W) and masks (B, H, W), with this project's transforms uint8
    levels. The training order depends on (seed, epoch) alone. Of several processes each takes
    its shard.

    Args:
        batch_size: of all processes together.
        device: see make_loader.
        compositor, crops: of the training images, see CarvanaDataset.
        dataset_options: keyword arguments of CarvanaDataset.

    Raises:
        UserError: with what is wrong in any of the folders.
    """
    with distributed.local_rank_zero_first():
        train = result_or_error(
            CarvanaDataset, train_dir, train_maskdir, train_transform, **dataset_options
        )
        val = result_or_error(
            CarvanaDataset, val_dir, val_maskdir, val_transform, **dataset_options
        )
    raise_all([train, val])
    train.compositor = compositor
    train.crops = crops
    shard = (distributed.RANK, distributed.WORLD_SIZE)
    sampler = EpochSampler(train.epoch_length, train.seed, batch_size, *shard)
    local_batch_size = distributed.local_batch_size(batch_size)
    num_workers = _workers(train, local_batch_size, num_workers, device)
    shared = {"num_workers": num_workers, "pin_memory": pin_memory, "device": device}
    train_loader = make_loader(train, local_batch_size, sampler=sampler, **shared)
    if crops and val.reading.size is None:  # whole pictures of several sizes are no batch
        local_batch_size = 1
    val_shard = distributed.shard(len(val))
    return train_loader, make_loader(val, local_batch_size, sampler=val_shard, **shared)


def make_loader(
    dataset: CarvanaDataset,
    batch_size: int,
    num_workers: int = 0,
    pin_memory: bool = False,
    sampler: Iterable | None = None,
    device: torch.device | None = None,
) -> DataLoader:
    """Return a loader of a data set.

    Args:
        num_workers: -1: as many as this machine needs with the network on `device`.
        device: None: that of find_device().
    """
    num_workers = _workers(dataset, batch_size, num_workers, device)
    return Loader(
        dataset,
        batch_size,
        sampler=sampler,
        num_workers=num_workers,
        collate_fn=collate,
        worker_init_fn=leave_signals_alone,
        multiprocessing_context=system.start_method() if num_workers else None,
        pin_memory=pin_memory and pinning_pays(device or find_device()),
        persistent_workers=num_workers > 0,
        prefetch_factor=PREFETCH_FACTOR if num_workers else None,
        generator=torch.Generator(),  # its own: loading must not draw from torch's random state
    )


def collate(items: list[tuple[Any, Any]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return items, images (C, H, W) and masks (H, W), as a batch: (B, C, H, W) and (B, H, W).

    uint8 images keep the order in memory that they have as pictures, which is channels last: they
    are copied as they are, and no device has to turn them around.
    """
    image = items[0][0]
    if not isinstance(image, torch.Tensor) or image.dtype != torch.uint8 or image.dim() != 3:
        return default_collate(items)
    images, masks = default_collate([(image.permute(1, 2, 0), mask) for image, mask in items])
    return images.permute(0, 3, 1, 2), masks


def _workers(
    dataset: CarvanaDataset, batch_size: int, num_workers: int, device: torch.device | None
) -> int:
    """Return how many processes read for a loader, with a warning if memory allows fewer."""
    if num_workers < 0:
        num_workers = choose_workers(device or find_device(), cached=dataset.cache is not None)
    batch_bytes = batch_size * dataset.item_bytes()
    return fit_workers(num_workers, batch_bytes * PREFETCH_FACTOR)


class Loader(DataLoader):
    """A DataLoader that reports the death of a worker where it reads, and nowhere else.

    DataLoader itself raises it wherever the main process is at that moment: in the middle of an
    optimizer step, of a file, of a checkpoint.

    Raises:
        RuntimeError: a worker has ended; what it says is explained by errors.TORCH_ERRORS.
    """

    def __iter__(self) -> Iterator[Any]:
        try:
            yield from self._start()
        except (OSError, EOFError) as error:
            # It was just handing over a batch, or could not even start.
            if not self.num_workers or not system.is_broken_pipe(error):
                raise
            raise RuntimeError("a DataLoader worker exited unexpectedly") from error

    def _start(self) -> Iterator[Any]:
        """Return DataLoader's iterator, without the signal handler that the first one sets."""
        with system.child_handler_kept():
            return super().__iter__()


def check_readable(*datasets: CarvanaDataset) -> None:
    """Read the pairs that no cache has read yet; of several processes, each its shard.

    Print what is odd about the masks.

    Args:
        datasets: that to train on and that to validate on, or one to score on.

    Raises:
        UserError: naming all that cannot be read, or what the masks cannot mean.
    """
    uncached = [dataset for dataset in datasets if dataset.cache is None]
    raise_all([result_or_error(_read_shard, dataset) for dataset in uncached])
    for number, dataset in enumerate(datasets):
        _judge_masks(dataset, training=number == 0 and len(datasets) > 1)
        if distributed.FIRST:
            _judge_photographs(dataset)


def _judge_photographs(dataset: CarvanaDataset) -> None:
    oddity = judge_levels([image for image, _ in dataset.pairs], dataset.reading.levels)
    if oddity:
        warn(f"warning: {dataset.pairs[0][0].parent}: {oddity}")


def _judge_masks(dataset: CarvanaDataset, training: bool) -> None:
    """Judge a sample of the masks; if a class seems to be missing, all of them."""
    classes = dataset.reading.classes
    step = -(-len(dataset) // JUDGED_MASKS)
    sample = [_measure_target(dataset, index) for index in range(0, len(dataset), step)]
    facts = sample
    if not classes.single and find_ignored_class([row.pixels for row in sample], classes, training):
        facts = [_measure_target(dataset, index) for index in range(len(dataset))]
    for warning in judge_set(facts, classes, training):
        if distributed.FIRST:
            warn(f"warning: {dataset.pairs[0][1].parent}: {warning}")


def _measure_target(dataset: CarvanaDataset, index: int) -> MaskFacts:
    mask = dataset.read_target(index)
    classes = dataset.reading.classes
    if classes.single:
        mask = (mask > 127).view(np.uint8)
    return measure_mask(mask, classes)


def _read_shard(dataset: CarvanaDataset) -> None:
    pairs = [dataset.pairs[index] for index in distributed.shard(len(dataset))]
    if pairs:
        for _ in read_all(pairs, "checking", dataset.reading):
            pass


def first_batches(
    loader: DataLoader, epoch: int, images: int, crops: Crops | None = None
) -> DataLoader:
    """Return a loader of the first images of a training epoch, or of other crops of them."""
    dataset = copy.copy(loader.dataset)
    dataset.crops = crops
    order = loader.sampler.order(epoch)[:images]
    keys: Sequence = [(epoch, index % dataset.epoch_length) for index in order]
    return make_loader(dataset, loader.batch_size, sampler=keys)


def end_workers(*loaders: DataLoader) -> None:
    """End the processes that read for these loaders.

    Left to the garbage collector, each takes five seconds if it finds them in a cycle.
    """
    for loader in loaders:
        iterator = loader._iterator
        if isinstance(iterator, _MultiProcessingDataLoaderIter):
            iterator._shutdown_workers()
            for worker in iterator._workers:
                worker.kill()  # one that hangs, since another one died
            loader._iterator = None
