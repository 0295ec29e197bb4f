"""Cutouts: a car without its background, on its shadow and framed where that is asked for."""

from typing import NamedTuple

import numpy as np
from torch import nn

from carvana.framing import Framing, Placement, check_framing, place, plan
from carvana.images import Size, scale_image, shown_channels
from carvana.matting import matte, with_alpha
from carvana.model_config import logit_threshold, model_config, network_size
from carvana.predicting import foreground_logits, network_logits, upsample
from carvana.shadows import add_shadow, find_shadow

CAR_ALPHA = 128  # from which a pixel is the car's


class CutoutStyle(NamedTuple):
    """What a cutout is besides the car alone."""

    shadow: bool = False
    framing: Framing = Framing()


class Cutout(NamedTuple):
    """A cutout, and where its photograph lies on the canvas."""

    picture: np.ndarray  # uint8 (h, w, 4), as large as the photograph or the canvas
    placement: Placement | None  # None: it is not framed


def cut_out(photograph: np.ndarray, logits: np.ndarray, scale: float, style: CutoutStyle) -> Cutout:
    """Return the cutout of a photograph.

    Args:
        photograph: uint8 (H, W, 3).
        logits: float32 (H, W), of the car against everything else.
        scale: how many times larger than the network's picture the photograph is.
    """
    colors, alpha = matte(photograph, logits, scale)
    if not (style.shadow or style.framing.changes):
        return Cutout(with_alpha(colors, alpha), None)
    car = (alpha >= CAR_ALPHA).view(np.uint8)
    shadow = None
    if style.shadow:
        shadow = find_shadow(photograph, car)
        colors, alpha = add_shadow(colors, alpha, shadow)
    picture = with_alpha(colors, alpha)
    if not style.framing.changes:
        return Cutout(picture, None)
    placement = plan(style.framing, car, shadow)
    return Cutout(place(picture, placement), placement)


def cutout(
    model: nn.Module,
    photograph: np.ndarray,
    shadow: bool = False,
    fit: Size | None = None,
    trim: bool = False,
    margin: float | None = None,
) -> np.ndarray:
    """Return a photograph's car without its background.

    Args:
        model: of load_model.
        photograph: uint8 (H, W, 3), or (H, W, C) of a model of other channels; of any size.
        shadow: with its shadow on the ground, black and partly transparent.
        fit: (height, width) of a canvas on which the car is centered.
        trim: cut to the car and its shadow.
        margin: share of width and height left free at each side; None for 0.05 of a canvas, and
            none around what is trimmed.

    Returns:
        uint8 (h, w, 4), red, green, blue and alpha, as large as the photograph or the canvas.

    Raises:
        UserError: fit, trim and margin do not go together, or the channels are not the model's.
    """
    style = CutoutStyle(shadow, Framing(fit, trim, margin))
    check_framing(style.framing)
    config = model_config(model)
    size = network_size(config)
    image = scale_image(photograph, size, config["IN_CHANNELS"])
    shown = shown_channels(photograph)
    logits = upsample(network_logits(model, image[None])[0], photograph.shape[:2])
    foreground = foreground_logits(logits, logit_threshold(config))
    scale = photograph.shape[0] / image.shape[0]
    return cut_out(shown, foreground, scale, style).picture
