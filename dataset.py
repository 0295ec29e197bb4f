"""Pairs of photographs and masks as a data set, and what is done to them on the way to the network."""

import os
import random

import cv2
import numpy as np
from torch.utils.data import Dataset, Sampler

from cache import open_cache
from pictures import MASK_SUFFIX, find_pairs, read_pair, read_target

os.environ.setdefault(
    "NO_ALBUMENTATIONS_UPDATE", "1"
)  # it would ask the network for a newer version of itself


class CarvanaDataset(Dataset):
    """Photographs and masks of two folders, paired by name.

    Item -> image, mask. Without a transform: uint8 (H, W, channels) and float32 (H, W), the share of
    each pixel that is foreground, in [0, 1]; with labels (pictures.Labels) uint8 (H, W), indices of classes. transform is called as transform(image=..., mask=...) with
    these and returns a dict of both; with A.Normalize and ToTensorV2 in it the item is a float tensor
    (channels, H, W) and a mask (H, W).

    size: (H, W) to read at, None for each picture's own. mask_resize: see pictures.read_mask. suffix: between the names of the two.
    An item is asked for as dataset[epoch, index]: an Albumentations pipeline draws from (seed, epoch, index)
    alone, so neither workers nor interruptions change what an item is. dataset[index] draws anew each time.
    cache_dir: where what was read at `size` is kept for later epochs and runs (see cache.py); None: nowhere.
    Raises UserError, naming all files, where images and masks do not pair."""

    def __init__(
        self,
        image_dir,
        mask_dir,
        transform=None,
        *,
        size=None,
        channels=3,
        mask_resize="area",
        seed=0,
        cache_dir=None,
        labels=None,
        suffix=MASK_SUFFIX,
    ):
        self.pairs = find_pairs(image_dir, mask_dir, suffix)
        self.transform = transform
        self.seed = seed
        self.reading = {
            "size": size and tuple(size),
            "channels": channels,
            "mask_resize": mask_resize,
            "labels": labels,
        }
        self.cache = (
            open_cache(cache_dir, self.pairs, **self.reading) if cache_dir and size else None
        )

    def __len__(self):
        return len(self.pairs)

    def __getitem__(self, key):
        epoch, index = key if isinstance(key, tuple) else (random.getrandbits(31), key)
        image, mask = self.read(index)
        mask = mask if self.reading["labels"] else mask.astype(np.float32) / 255
        if self.transform is None:
            return image, mask
        if hasattr(self.transform, "set_random_seed"):
            state = np.random.SeedSequence([self.seed, epoch, index % len(self)]).generate_state(1)
            self.transform.set_random_seed(int(state[0]))
        item = self.transform(image=image, mask=mask)
        return item["image"], item["mask"]

    def read(self, index):
        """What pictures.read_pair returns of an item, from the cache where there is one."""
        return self.cache[index] if self.cache else read_pair(self.pairs[index], **self.reading)

    def small_mask(self, index):
        """The mask of `read` alone."""
        return (
            self.cache[index][1]
            if self.cache
            else read_target(
                self.pairs[index][1],
                self.reading["labels"],
                self.reading["size"],
                self.reading["mask_resize"],
            )
        )

    def mask(self, index, size=None):
        """The true mask of an item, hard: bool (H, W) or, with labels, uint8 (H, W). size: (H, W), None for the file's own."""
        mask = read_target(self.pairs[index][1], self.reading["labels"], size)
        return mask if self.reading["labels"] else mask > 127


class EpochSampler(Sampler):
    """Every (epoch, index) once, in an order that follows from (seed, epoch) alone.

    Each pass is the next epoch; set .epoch to go on at another, and .start to leave out its first indices in the next pass.
    Of several processes (ranks) each gets its part of every batch; where the last batch has none for it, that batch's first index as a filler."""

    def __init__(self, length, seed=0, batch_size=1, rank=0, ranks=1):
        self.length, self.seed, self.batch_size, self.rank, self.ranks = (
            length,
            seed,
            batch_size,
            rank,
            ranks,
        )
        self.epoch, self.start = 0, 0

    def __len__(self):
        return (
            -(-self.length // self.batch_size) * self.batch_size // self.ranks
            if self.ranks > 1
            else self.length
        )

    def __iter__(self):
        (epoch, start), self.epoch, self.start = (self.epoch, self.start), self.epoch + 1, 0
        order = self.order(epoch)
        batches = [
            order[at : at + self.batch_size] for at in range(start, self.length, self.batch_size)
        ]
        return iter(
            [
                (epoch, index)
                for batch in batches
                for index in batch[self.rank :: self.ranks] or batch[:1]
            ]
        )

    def order(self, epoch):
        """The indices of an epoch, in order."""
        return np.random.default_rng([self.seed, epoch]).permutation(self.length).tolist()


def train_transform(
    rotate=35,
    horizontal_flip=0.5,
    vertical_flip=0.1,
    rotate_fill="reflect",
    scale=0.0,
    colour=0.0,
    labels=None,
):
    """uint8 (H, W, C) image and float (H, W) mask -> uint8 tensor (C, H, W) and float tensor (H, W), augmented.

    rotate: degrees either way, flips: probabilities. rotate_fill: what a rotation or shrinking brings into view is
    the picture's own reflection ("reflect", the mask's likewise) or "black" and background. scale: larger or smaller
    by up to this share; colour: brightness, contrast and saturation likewise. labels: masks are uint8 indices of classes
    and stay so; what "black" brings into view is to be ignored.
    Levels become floats on the device (utils.to_device): a quarter of the bytes to move."""
    import albumentations as A  # takes seconds, which a script that augments nothing need not wait
    from albumentations.pytorch import ToTensorV2

    border = {"reflect": cv2.BORDER_REFLECT_101, "black": cv2.BORDER_CONSTANT}[rotate_fill]
    edges = {
        "border_mode": border,
        "fill": 0,
        "fill_mask": labels.ignore if labels else 0,
        "mask_interpolation": cv2.INTER_NEAREST if labels else cv2.INTER_LINEAR,
    }
    turn = [A.Rotate(limit=rotate, p=1.0, **edges)]
    resize = [A.Affine(scale=(1 - scale, 1 + scale), p=1.0, **edges)]
    paint = [
        A.ColorJitter(
            brightness=(1 - colour, 1 + colour),
            contrast=(1 - colour, 1 + colour),
            saturation=(1 - colour, 1 + colour),
            hue=(0, 0),
            p=1.0,
        )
    ]
    return A.Compose(
        [
            *(turn if rotate else []),
            *(resize if scale else []),
            *(paint if colour else []),
            A.HorizontalFlip(p=horizontal_flip),
            A.VerticalFlip(p=vertical_flip),
            ToTensorV2(),
        ]
    )


def val_transform():
    """The same without augmentation."""
    import albumentations as A
    from albumentations.pytorch import ToTensorV2

    return A.Compose([ToTensorV2()])
