"""From photographs to logits to masks."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from torch import nn

from carvana.classes import Classes
from carvana.device import autocast, forward_turn, to_input
from carvana.errors import UserError
from carvana.images import Size, describe_kind, scale_image
from carvana.model_config import model_classes, model_config, network_size
from carvana.tiles import Run, logit_bands, picture_logits


def predict(model: nn.Module, images: Sequence[np.ndarray], tta: bool = False) -> list[np.ndarray]:
    """Return the probabilities of each picture's pixels, at its own size.

    Args:
        model: of load_model.
        images: uint8 (H, W, 3) or (H, W), or (H, W, C) for a model of other channels; of any
            sizes.
        tta: average with the prediction for the mirror image.

    Returns:
        For each picture float32 (H, W) in [0, 1], the probability of foreground; for several
        classes (classes, H, W).

    Raises:
        UserError: something in the list is no such picture, or it is no list but one picture.
    """
    config = model_config(model)
    _check_list(images, config["IN_CHANNELS"])
    if not len(images):
        return []
    size = network_size(config)
    scaled = [scale_image(image, size, config["IN_CHANNELS"]) for image in images]
    batches = [np.stack(scaled)] if size else [image[None] for image in scaled]
    logits = [row for batch in batches for row in network_logits(model, batch, tta)]
    return [
        _probabilities(upsample(image_logits, image.shape[:2]), model_classes(model))
        for image_logits, image in zip(logits, images, strict=True)
    ]


def _check_list(images: object, channels: int) -> None:
    """Raise UserError unless it is a list of pictures, or an array of several."""
    if isinstance(images, np.ndarray):
        is_one = images.ndim == 2 or (images.ndim == 3 and images.shape[2] in (3, channels))
        found = f"one of {images.shape}"
    else:
        is_one = not isinstance(images, Sequence)
        found = describe_kind(images)
    if is_one:
        raise UserError(
            f"expected a list of pictures, found {found}; write predict(model, [picture])[0]"
        )


def _probabilities(logits: np.ndarray, classes: Classes) -> np.ndarray:
    if classes.single:
        with np.errstate(over="ignore"):  # of a logit under -88; its probability is 0
            return 1 / (1 + np.exp(-logits[0]))
    return torch.softmax(torch.from_numpy(logits), 0).numpy()


def network_logits(model: nn.Module, images: np.ndarray, tta: bool = False) -> np.ndarray:
    """Return a network's logits, float32 (B, classes, h, w); see network_bands."""
    return picture_logits(*_to_slide(model, images, tta)).numpy()


def network_bands(model: nn.Module, images: np.ndarray, tta: bool = False) -> Iterator[np.ndarray]:
    """Yield a network's logits from the top to the bottom, float32 (B, classes, rows, w).

    Args:
        images: uint8 (B, h, w, channels) at the network's size, as read_image returns them.
        tta: average with the prediction for the mirror image.
    """
    for band in logit_bands(*_to_slide(model, images, tta)):
        yield band.numpy()


def _to_slide(
    model: nn.Module, images: np.ndarray, tta: bool
) -> tuple[Run, torch.Tensor, dict[str, Any]]:
    """Return what tiles.logit_bands takes: a network, pictures, and the model's constants."""
    run = functools.partial(_run_network, model, tta)
    return run, torch.from_numpy(images).permute(0, 3, 1, 2), model_config(model)


@torch.inference_mode()
def _run_network(model: nn.Module, tta: bool, levels: torch.Tensor) -> torch.Tensor:
    """Return the logits (B, classes, h, w) of uint8 (B, C, h, w), both on the CPU."""
    with autocast(model), forward_turn(model):
        batch = to_input(levels, model)
        logits = model(batch).float()
        if tta:
            logits = (logits + model(batch.flip(3)).float().flip(3)) / 2
        return logits.cpu()


def upsample(logits: np.ndarray, size: Size) -> np.ndarray:
    """Return float32 (C, h, w) as (C, H, W): bilinear, pixel centers aligned, as in evaluation."""
    if logits.shape[1:] == tuple(size):
        return logits
    return np.stack(
        [cv2.resize(channel, size[::-1], interpolation=cv2.INTER_LINEAR) for channel in logits]
    )


def foreground_logits(logits: np.ndarray, threshold: float = 0.0) -> np.ndarray:
    """Return logits (C, H, W) as those of everything but the first class against it, (H, W).

    Args:
        threshold: of a single class; there they are 0.
    """
    if len(logits) == 1:
        return logits[0] - np.float32(threshold) if threshold else logits[0]
    return np.logaddexp.reduce(logits[1:], 0) - logits[0]


def predict_mask(logits: torch.Tensor, threshold: float = 0.0) -> torch.Tensor:
    """Return masks, uint8 (B, H, W) of class indices, for logits (B, C, H, W).

    Of a single class that is 1 above the threshold; of several the most probable class.
    """
    if logits.shape[1] == 1:
        return (logits[:, 0] > threshold).view(torch.uint8)
    return logits.argmax(1).to(torch.uint8)
