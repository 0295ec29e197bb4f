"""The weights of classes in the loss: as they are given, or by how much each class covers."""

from collections.abc import Sequence
from contextlib import closing
from typing import Any, NamedTuple

import numpy as np
import torch

from carvana import distributed
from carvana.classes import Classes
from carvana.errors import one_line, warn
from carvana.threads import map_in_threads

# Of median_frequency: the bound of Paszke et al., ENet, 2016, arXiv:1606.02147. Without one a class
# of a few pixels decides each step that it occurs in.
MAX_WEIGHT = 50.0


class ClassCounts(NamedTuple):
    """What masks hold of each class, float64 (C,): whole numbers, exact up to 2**53.

    Of a single class the soft masks' levels are counted, of background and foreground.
    """

    pixels: np.ndarray  # of the class
    around: np.ndarray  # known pixels of the masks in which the class is

    def shares(self) -> np.ndarray:
        """Return the share of all known pixels that is of each class; 0 where none is known."""
        return self.pixels / max(self.pixels.sum(), 1)


# ---------------------------------------------------------------- counting


def count_classes(dataset: Any, indices: Sequence[int]) -> ClassCounts:
    """Count the training targets of a data set, from its cache if it has one.

    Args:
        dataset: a CarvanaDataset.
        indices: of the masks to count.
    """
    count = dataset.reading.classes.count
    pixels = np.zeros(count)
    around = np.zeros(count)
    masks = map_in_threads(dataset.read_target, indices, "counting classes", " masks")
    with closing(masks):
        for mask in masks:
            counts = _count_mask(mask, dataset.reading.classes)
            pixels += counts
            around[counts > 0] += counts.sum()
    return ClassCounts(pixels, around)


def count_training_set(dataset: Any) -> ClassCounts:
    """Count all masks of a data set; each of several processes counts a shard."""
    shard = count_classes(dataset, distributed.shard(len(dataset)))
    sums = distributed.all_reduce_sum(torch.from_numpy(np.stack(shard)))
    return ClassCounts(*sums.numpy())


def _count_mask(mask: np.ndarray, classes: Classes) -> np.ndarray:
    """Return the pixels of each class in a training target, uint8 (H, W)."""
    if classes.single:
        foreground = mask.sum()
        return np.array([255 * mask.size - foreground, foreground])
    return np.bincount(mask.ravel(), minlength=256)[: classes.count]


# ---------------------------------------------------------------- weights


def median_frequency(counts: ClassCounts) -> np.ndarray:
    """Return the median of the classes' frequencies over each one's, at most MAX_WEIGHT, (C,).

    A class's frequency is its share of the known pixels of the masks in which it occurs. Classes
    that never occur are not among the frequencies, and have weight 1. Eigen and Fergus, 2015,
    arXiv:1411.4734.
    """
    occurs = counts.pixels > 0
    weights = np.ones(len(occurs))
    frequencies = counts.pixels[occurs] / counts.around[occurs]
    if len(frequencies):
        weights[occurs] = np.minimum(np.median(frequencies) / frequencies, MAX_WEIGHT)
    return weights


def inverse_sqrt(counts: ClassCounts) -> np.ndarray:
    """Return 1 / sqrt(share of all known pixels), (C,), scaled so that the mean pixel has weight 1.

    Classes that never occur have weight 1.
    """
    shares = counts.shares()
    occurs = shares > 0
    weights = np.ones(len(occurs))
    roots = np.sqrt(shares[occurs])
    weights[occurs] = 1 / (roots * roots.sum())
    return weights


METHODS = {"median_frequency": median_frequency, "inverse_sqrt": inverse_sqrt}


def class_weights(setting: str | Sequence[float], dataset: Any) -> tuple[float, ...] | None:
    """Return the weight of each class in the loss, None for no weights; print them in a line.

    They depend on the masks alone, so that a run that is resumed has them again.

    Args:
        setting: CLASS_WEIGHTS.
        dataset: the training set, a CarvanaDataset of several classes.
    """
    if setting == "none":
        return None
    names = [one_line(name) for name in dataset.reading.classes.names]
    if not isinstance(setting, str):
        print("class weights: " + ", ".join(map("{} {:g}".format, names, setting)))
        return tuple(setting)
    counts = count_training_set(dataset)
    weights = METHODS[setting](counts).tolist()
    rows = zip(names, weights, 100 * counts.shares(), strict=True)
    texts = [f"{name} {weight:.3g} ({share:.3g} %)" for name, weight, share in rows]
    print(f"class weights, {setting} (share of the pixels): {', '.join(texts)}")
    missing = [name for name, pixels in zip(names, counts.pixels, strict=True) if not pixels]
    if missing and distributed.FIRST:
        warn(f"warning: in no training mask, so that its weight is 1: {', '.join(missing)}")
    return tuple(weights)
