"""Augmentation of images of any number of channels, where Albumentations takes one or three."""

from typing import Any

import albumentations as A
import numpy as np


class _EachChannel:
    """Makes a step change each channel of an image as if it were a gray image."""

    def apply(self, img: np.ndarray, **params: Any) -> np.ndarray:
        """Return uint8 (H, W, C), its channels changed with the same parameters."""
        apply = super().apply  # type: ignore[misc]
        return np.dstack([apply(img[..., [channel]], **params) for channel in range(img.shape[2])])


class ColorJitter(_EachChannel, A.ColorJitter):
    """Varies brightness, and contrast around each channel's mean; there is no saturation."""


class Downscale(_EachChannel, A.Downscale):
    """Scales down and back; OpenCV averages over up to four channels only."""
