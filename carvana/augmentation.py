"""Augmentation of training images: Albumentations pipelines."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any

import cv2
import numpy as np

from carvana.classes import SINGLE, Classes

# Albumentations would look on the internet for a newer version of itself.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
HALF = 0.5  # of the images are changed by each step of _light and _camera_and_web


@dataclass
class Augmentation:
    """What train_transform draws for each image; the defaults are the classic recipe's."""

    rotate: float = 35  # degrees either way
    rotate_fill: str = "reflect"  # the picture's own reflection, or "black" and background
    horizontal_flip: float = 0.5  # probability
    vertical_flip: float = 0.1  # probability
    scale_jitter: float = 0.0  # width and height larger or smaller by up to this share
    color_jitter: float = 0.0  # brightness, contrast and saturation by up to this share
    gamma: float = 0.0  # the exponent of levels larger or smaller by up to this share
    white_balance: float = 0.0  # each channel brighter or darker by up to this share
    gray: float = 0.0  # probability of losing the colors
    blur: float = 0.0  # pixels: standard deviation out of focus, or half the length of a motion
    noise: float = 0.0  # levels of 255: standard deviation of a sensor's noise
    downscale: float = (
        1.0  # smallest share of width and height, to which images are scaled and back
    )
    jpeg_quality: int = 100  # lowest quality at which images are compressed
    channels: int = 3  # of the images: saturation and losing the colors need 3, JPEG 1 or 3

    @classmethod
    def from_constants(cls, cfg: SimpleNamespace) -> "Augmentation":
        """Return what the constants of config.py say."""
        return cls(
            rotate=cfg.ROTATE,
            rotate_fill=cfg.ROTATE_FILL,
            horizontal_flip=cfg.HORIZONTAL_FLIP,
            vertical_flip=cfg.VERTICAL_FLIP,
            scale_jitter=cfg.SCALE_JITTER,
            color_jitter=cfg.COLOR_JITTER,
            gamma=cfg.GAMMA,
            white_balance=cfg.WHITE_BALANCE,
            gray=cfg.GRAY if cfg.IN_CHANNELS == 3 else 0.0,
            blur=cfg.BLUR,
            noise=cfg.NOISE,
            downscale=cfg.DOWNSCALE,
            jpeg_quality=cfg.JPEG_QUALITY if cfg.IN_CHANNELS in (1, 3) else 100,
            channels=cfg.IN_CHANNELS,
        )


def _albumentations() -> ModuleType:
    """Return the library, imported only where it is used: it takes seconds."""
    import albumentations

    return albumentations


def train_transform(
    augmentation: Augmentation | None = None, classes: Classes = SINGLE
) -> Callable:
    """Return an Albumentations pipeline that augments.

    It turns a uint8 (H, W, C) image and a float32 (H, W) mask in [0, 1] into uint8 tensors, (C, H,
    W) and (H, W), of levels. Masks of several classes stay uint8 indices; what "black" exposes is
    to be ignored then. Levels become floats on the device (device.to_device): a quarter of the
    bytes to move.
    """
    A = _albumentations()
    augmentation = augmentation or Augmentation()
    borders = {"reflect": cv2.BORDER_REFLECT_101, "black": cv2.BORDER_CONSTANT}
    fill = {
        "border_mode": borders[augmentation.rotate_fill],
        "fill": 0,
        "fill_mask": 0 if classes.single else classes.ignore,
        "mask_interpolation": cv2.INTER_LINEAR if classes.single else cv2.INTER_NEAREST,
    }
    steps = [A.Lambda(mask=_to_levels, p=1.0)]
    if augmentation.rotate:
        steps.append(A.Rotate(limit=augmentation.rotate, p=1.0, **fill))
    if augmentation.scale_jitter:
        factors = (1 - augmentation.scale_jitter, 1 + augmentation.scale_jitter)
        steps.append(A.Affine(scale=factors, p=1.0, **fill))
    if augmentation.color_jitter:
        factors = (1 - augmentation.color_jitter, 1 + augmentation.color_jitter)
        color_jitter = A.ColorJitter
        if augmentation.channels not in (1, 3):
            color_jitter = _channel_steps().ColorJitter
        steps.append(
            color_jitter(
                brightness=factors, contrast=factors, saturation=factors, hue=(0, 0), p=1.0
            )
        )
    steps.append(A.HorizontalFlip(p=augmentation.horizontal_flip))
    steps.append(A.VerticalFlip(p=augmentation.vertical_flip))
    steps += _light(augmentation)
    steps += _camera_and_web(augmentation)
    steps.append(A.ToTensorV2())
    return A.Compose(steps)


def _channel_steps() -> ModuleType:
    """Return the steps for other numbers of channels, imported only with Albumentations."""
    from carvana import channel_steps

    return channel_steps


def _light(augmentation: Augmentation) -> list[Any]:
    """Return the steps that vary how a scene is lit and rendered."""
    A = _albumentations()
    steps = []
    if augmentation.gamma:
        limits = (round(100 * (1 - augmentation.gamma)), round(100 * (1 + augmentation.gamma)))
        steps.append(A.RandomGamma(gamma_limit=limits, p=HALF))
    if augmentation.white_balance:
        factors = (1 - augmentation.white_balance, 1 + augmentation.white_balance)
        steps.append(A.MultiplicativeNoise(multiplier=factors, per_channel=True, p=HALF))
    if augmentation.gray:
        steps.append(A.ToGray(p=augmentation.gray))
    return steps


def _camera_and_web(augmentation: Augmentation) -> list[Any]:
    """Return the steps that spoil an image as cameras do, then as web sites do."""
    A = _albumentations()
    steps = []
    if augmentation.blur:
        deviations = (min(0.2, augmentation.blur), augmentation.blur)
        largest = 2 * round(augmentation.blur) + 1  # pixels across
        steps.append(
            A.OneOf(
                [
                    A.GaussianBlur(blur_limit=0, sigma_limit=deviations),
                    A.MotionBlur(blur_limit=(3, max(3, largest))),
                ],
                p=HALF,
            )
        )
    if augmentation.noise:
        steps.append(A.GaussNoise(std_range=(0, augmentation.noise / 255), p=HALF))
    if augmentation.downscale < 1:
        methods = {"downscale": cv2.INTER_AREA, "upscale": cv2.INTER_LINEAR}
        scales = (augmentation.downscale, 1.0)
        downscale = A.Downscale
        if augmentation.channels not in (1, 3):
            downscale = _channel_steps().Downscale
        steps.append(downscale(scale_range=scales, interpolation_pair=methods, p=HALF))
    if augmentation.jpeg_quality < 100:
        qualities = (augmentation.jpeg_quality, 100)
        steps.append(A.ImageCompression(quality_range=qualities, p=HALF))
    return steps


def val_transform() -> Callable:
    """Return the same pipeline without augmentation."""
    A = _albumentations()
    return A.Compose([A.Lambda(mask=_to_levels, p=1.0), A.ToTensorV2()])


def _to_levels(mask: np.ndarray, **_params: Any) -> np.ndarray:
    """Return a mask of shares in [0, 1] as levels of 255, and one of class indices as it is."""
    if mask.dtype == np.uint8:
        return mask
    return np.rint(255 * mask).astype(np.uint8)
