"""Masks of one class in two colors, or of two values none of which is white: which is which."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from carvana.classes import Classes
from carvana.errors import UserError, warn
from carvana.images import read_hard_mask, sample_masks, sample_stored_values, stored_values
from carvana.mask_values import WrongValues, find_two_values


def settle_values(masks: Sequence[Path], classes: Classes, announce: bool = True) -> Classes:
    """Return the classes with the two values that a set's masks hold, where these are unusual.

    Usually the first mask tells that they are not. What a look at some masks cannot settle is left
    to the reader, which refuses it.

    Args:
        masks: of the whole set.
        announce: print which of two unusual values is taken for background.
    """
    if not classes.single or classes.values or classes.threshold >= 0:
        return classes
    if not _are_unusual(sample_masks(masks), classes):
        return classes
    found = find_two_values(sample_stored_values(masks))
    if found is None:
        return classes
    if announce:
        warn(found.announcement())
    return classes._replace(values=(found.background, found.foreground))


def _are_unusual(masks: Sequence[Path], classes: Classes) -> bool:
    """Return whether masks are colored or hold unusual values.

    The first one that shows both background and foreground stands for the others.
    """
    for mask in masks:
        try:
            if np.ptp(read_hard_mask(mask, classes)):
                return stored_values(mask).needs_choice
        except UserError as error:
            if isinstance(error.__cause__, WrongValues):
                return True
    return False
