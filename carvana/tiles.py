"""A window that slides over a picture: large pictures in little memory, at the scale of training.

Windows overlap, and what they say is blended where they do: each counts most at its center, as a
network sees least around a pixel at a window's edge.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

BATCH_PIXELS = 1 << 20  # that a network is given at once
Run = Callable[[torch.Tensor], torch.Tensor]  # (B, C, h, w) -> logits, float32 (B, K, h, w)


def tile_starts(length: int, side: int, overlap: float) -> list[int]:
    """Return where windows begin in one direction of a picture, evenly spread.

    Args:
        length: of the picture.
        side: of a window.
        overlap: share of a window that the next one covers again, at least.
    """
    if length <= side:
        return [0]
    stride = max(1, math.floor(side * (1 - overlap)))
    steps = math.ceil((length - side) / stride)
    return [round(step * (length - side) / steps) for step in range(steps + 1)]


def tile_weights(length: int, side: int, starts: list[int]) -> list[torch.Tensor]:
    """Return how much each window counts at each of its pixels, in one direction.

    A window's weight falls linearly from its center to its edges; the weights of all windows at a
    pixel are scaled to a sum of 1.
    """
    side = min(side, length)
    places = torch.arange(side)
    triangle = torch.minimum(places + 1, side - places).float()
    total = torch.zeros(length)
    for start in starts:
        total[start : start + side] += triangle
    return [triangle / total[start : start + side] for start in starts]


def tiled_bands(
    run: Run, images: torch.Tensor, tile: int, overlap: float
) -> Iterator[torch.Tensor]:
    """Yield the logits of pictures from the top to the bottom, as many rows as are complete.

    Memory holds the logits of one row of windows, whatever the pictures' height.

    Args:
        run: the network.
        images: (B, C, H, W), all that run takes.
        tile: side of the windows, in pixels.
        overlap: see tile_starts.

    Yields:
        float32 (B, K, rows, W).
    """
    height = images.shape[2]
    starts = tile_starts(height, tile, overlap)
    waiting = None  # sums of rows that the next windows add to
    for index, weights in enumerate(tile_weights(height, tile, starts)):
        start = starts[index]
        band = _blend_columns(run, images[:, :, start : start + tile], tile, overlap)
        band *= weights.to(band.device)[:, None]
        if waiting is not None:
            band[:, :, : waiting.shape[2]] += waiting
        complete = band.shape[2]
        if index + 1 < len(starts):
            complete = starts[index + 1] - start
        waiting = band[:, :, complete:]
        yield band[:, :, :complete]


def _blend_columns(run: Run, rows: torch.Tensor, tile: int, overlap: float) -> torch.Tensor:
    """Return the logits (B, K, h, W) of rows (B, C, h, W), from windows beside each other."""
    count, _, height, width = rows.shape
    starts = tile_starts(width, tile, overlap)
    weights = tile_weights(width, tile, starts)
    side = min(tile, width)
    at_once = max(1, BATCH_PIXELS // (count * height * side))
    band = torch.zeros(0)  # its classes are known with the first logits
    for first in range(0, len(starts), at_once):
        group = starts[first : first + at_once]
        windows = torch.cat([rows[..., start : start + side] for start in group])
        for number, logits in enumerate(run(windows).split(count), first):
            if number == 0:
                band = logits.new_zeros(count, logits.shape[1], height, width)
            columns = slice(starts[number], starts[number] + side)
            band[..., columns] += logits * weights[number].to(logits.device)
    return band


def logit_bands(
    run: Run, images: torch.Tensor, config: Mapping[str, Any]
) -> Iterator[torch.Tensor]:
    """Yield the logits of pictures (B, C, H, W) from the top to the bottom, (B, K, rows, W).

    Args:
        config: a model's constants; with TILE 0 the network sees whole pictures.
    """
    if config["TILE"]:
        yield from tiled_bands(run, images, config["TILE"], config["TILE_OVERLAP"])
    else:
        yield run(images)


def picture_logits(run: Run, images: torch.Tensor, config: Mapping[str, Any]) -> torch.Tensor:
    """Return the logits of whole pictures, (B, K, H, W); see logit_bands."""
    bands = list(logit_bands(run, images, config))
    return bands[0] if len(bands) == 1 else torch.cat(bands, dim=2)
