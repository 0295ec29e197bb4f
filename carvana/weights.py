"""A network's weights: their names and shapes, whether they are sound, loading them."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from carvana.errors import UserError, first_few, one_line
from carvana.model_config import unwrapped

Weights = Mapping[str, torch.Tensor]
WEIGHTS_KEYS = ("state_dict", "model_state_dict", "model", "net", "network", "weights")
LAST_WEIGHT = "final_conv.weight"  # of every UNET


def weights_in(checkpoint: Mapping[str, Any]) -> Weights:
    """Return the weights of a checkpoint dict, or of a bare state_dict, by plain names."""
    key = weights_key(checkpoint)
    return plain_names(checkpoint if key is None else checkpoint[key])


def weights_key(checkpoint: Mapping[str, Any]) -> str | None:
    """Return under which of WEIGHTS_KEYS a checkpoint has a UNET's weights; None if under none."""
    return next((key for key in WEIGHTS_KEYS if look_like_weights(checkpoint.get(key))), None)


def look_like_weights(weights: Any) -> bool:
    """Return whether something has the names of a UNET's weights."""
    if not isinstance(weights, Mapping) or not all(isinstance(name, str) for name in weights):
        return False
    return any(name.endswith(LAST_WEIGHT) for name in weights)


def plain_names(weights: Weights) -> dict[str, torch.Tensor]:
    """Return weights without the prefix of what the network was wrapped in.

    torch.compile, DistributedDataParallel and Lightning prefix every name. Without that prefix
    are weights of something else, such as a loss: they are left out.
    """
    last = next((name for name in weights if name.endswith(LAST_WEIGHT)), LAST_WEIGHT)
    prefix = last.removesuffix(LAST_WEIGHT)
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in weights.items()
        if name.startswith(prefix)
    }


def load_checkpoint(
    checkpoint: Mapping[str, Any],
    model: nn.Module,
    assign: bool = False,
    name: object = "the checkpoint",
) -> None:
    """Fill a model with the weights of a checkpoint dict, or of a bare state_dict.

    Args:
        assign: make the checkpoint's tensors the model's own instead of copying them, for a
            model on the device "meta".
        name: what messages call the checkpoint.

    Raises:
        UserError: they do not fit.
    """
    print("=> Loading checkpoint")
    weights = weights_in(checkpoint)
    network = unwrapped(model)
    expected = network.state_dict()
    faults = []
    for key in sorted(expected.keys() | weights.keys()):
        shape = describe_shape(weights.get(key))
        expected_shape = describe_shape(expected.get(key))
        if shape != expected_shape:
            faults.append(
                f"{one_line(key)}: {shape} in the checkpoint, {expected_shape} in the model"
            )
    if faults:
        raise UserError(
            f"{name} is of another network: {first_few(faults)}. "
            "Give the FEATURES, UNSHUFFLE, IN_CHANNELS and CLASSES it was trained with"
        )
    network.load_state_dict(weights, assign=assign)


def load_matching_weights(
    checkpoint: Mapping[str, Any], model: nn.Module, name: object = "the checkpoint"
) -> list[str]:
    """Fill a model with those weights of a checkpoint that have its names and shapes.

    Returns:
        What was not loaded, in words.

    Raises:
        UserError: no convolution fits.
    """
    weights = weights_in(checkpoint)
    expected = model.state_dict()
    matching = {
        key: tensor
        for key, tensor in weights.items()
        if key in expected and tensor.shape == expected[key].shape
    }
    if not any(tensor.dim() == 4 for tensor in matching.values()):
        raise UserError(
            f"none of the convolutions in {one_line(name)} fits this network; it has "
            f"{describe_levels(checkpoint) or 'other levels'}: set these"
        )
    model.load_state_dict(matching, strict=False)
    missing = []
    for key, tensor in expected.items():
        if key not in matching:
            text = f"{key} {tuple(tensor.shape)}"
            if key in weights:
                text += f", there {tuple(weights[key].shape)}"
            missing.append(text)
    return missing


def describe_levels(checkpoint: Mapping[str, Any]) -> str:
    """Return the constants that shape the levels of a checkpoint's network, in words.

    "" if its levels have other names or shapes than a UNET's.
    """
    try:
        features = " ".join(str(shape[0]) for shape in _level_shapes(weights_in(checkpoint)))
    except (ValueError, IndexError):
        return ""
    unshuffle = checkpoint.get("config", {}).get("UNSHUFFLE", 1)
    return f"FEATURES {features} and UNSHUFFLE {unshuffle}"


def network_shape(weights: Weights, unshuffle: int) -> dict[str, Any]:
    """Return the arguments of the UNET that has these weights.

    Raises:
        Exception: of nearly any kind, if they are not a UNET's.
    """
    levels = _level_shapes(weights)
    return {
        "in_channels": levels[0][1] // unshuffle**2,
        "out_channels": weights["final_conv.weight"].shape[0] // unshuffle**2,
        "features": [shape[0] for shape in levels],
        "unshuffle": unshuffle,
    }


def _level_shapes(weights: Weights) -> list[torch.Size]:
    """Return the shape of each level's first kernel, from the first level to the last."""
    shapes = {}
    for name, tensor in weights.items():
        if name.startswith("downs.") and name.endswith(".conv.0.weight"):
            shapes[int(name.split(".")[1])] = tensor.shape
    return [shapes[level] for level in sorted(shapes)]


def weight_fault(tensor: Any) -> str | None:
    """Return why something cannot be a network's weights, in words; None if it can."""
    if not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided or tensor.is_meta:
        return f"is no plain tensor but {kind_of(tensor)}"
    # int64 is BatchNorm's count of batches.
    if not tensor.is_floating_point() and tensor.dtype != torch.int64:
        return f"holds {kind_of(tensor)}, not floating-point numbers"
    stored = tensor.untyped_storage().nbytes()
    if stored < tensor.numel() * tensor.element_size():
        return f"claims the shape {tuple(tensor.shape)} for {stored} bytes"
    if not tensor.isfinite().all():
        return "holds values that are infinite or not numbers"
    return None


def kind_of(thing: Any) -> str:
    """Return a tensor's dtype (or its layout, if it is not a plain one), or a value's type."""
    if not isinstance(thing, torch.Tensor):
        return type(thing).__name__
    kind = thing.dtype if thing.layout == torch.strided else thing.layout
    return str(kind).removeprefix("torch.")


def describe_shape(tensor: Any) -> Any:
    """Return a tensor's shape, "missing" for None, else the type's name."""
    if tensor is None:
        return "missing"
    if hasattr(tensor, "shape"):
        return tuple(tensor.shape)
    return type(tensor).__name__
