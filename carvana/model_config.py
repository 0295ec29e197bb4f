"""The constants that a model carries: what its input is, and what its output means."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from carvana.classes import NO_CLASS, Classes
from carvana.errors import UserError
from carvana.schema import (
    SHOWN_LENGTH,
    ByteValue,
    ChannelMeans,
    ChannelStds,
    ClassNames,
    ImageLevels,
    ImageRange,
    MaskResize,
    MaskThreshold,
    MaskValues,
    Palette,
    PixelBlock,
    Precision,
    Side,
    Threshold,
    TileOverlap,
    check,
    option_name,
    parse_annotation,
    short,
)

MAX_CLASSES = 255  # a mask's values are bytes, and one of them may be that of ignored pixels


class ModelConstant(NamedTuple):
    """A constant that a model carries."""

    type: Any  # its annotation
    tutorial_value: Any  # of a model that carries none, whatever config.py says today


MODEL_CONSTANTS = {
    "IMAGE_HEIGHT": ModelConstant(Side, 160),
    "IMAGE_WIDTH": ModelConstant(Side, 240),
    "IMAGE_LEVELS": ModelConstant(ImageLevels, 65535),
    "IMAGE_RANGE": ModelConstant(ImageRange, []),
    "MEAN": ModelConstant(ChannelMeans, [0.0]),
    "STD": ModelConstant(ChannelStds, [1.0]),
    "THRESHOLD": ModelConstant(Threshold, 0.5),
    "MASK_RESIZE": ModelConstant(MaskResize, "area"),
    "PRECISION": ModelConstant(Precision, "auto"),
    "UNSHUFFLE": ModelConstant(PixelBlock, 1),
    "TILE": ModelConstant(Side, 0),
    "TILE_OVERLAP": ModelConstant(TileOverlap, 0.25),
    "CLASSES": ModelConstant(ClassNames, ["car"]),
    "PALETTE": ModelConstant(Palette, []),
    "IGNORE_INDEX": ModelConstant(ByteValue, 255),
    "MASK_VALUES": ModelConstant(MaskValues, []),
    "MASK_THRESHOLD": ModelConstant(MaskThreshold, -1),
}
TUTORIAL_DEFAULTS = {name: constant.tutorial_value for name, constant in MODEL_CONSTANTS.items()}


def unwrapped(model: Any) -> Any:
    """Return the network inside of torch.compile, DistributedDataParallel or RecordedNetwork."""
    while True:
        inner = getattr(model, "_orig_mod", None) or getattr(model, "module", None)
        if inner is None:
            return model
        model = inner


def model_config(model: Any) -> dict[str, Any]:
    """Return the constants a model was trained with; the tutorials' if it carries none."""
    return TUTORIAL_DEFAULTS | getattr(unwrapped(model), "config", {})


def model_classes(model: Any) -> Classes:
    """Return the classes that a model tells apart."""
    return Classes.from_constants(model_config(model))


def mask_classes(config: Mapping, changes: Mapping) -> Classes:
    """Return a model's classes, for masks that hold other values than those it was trained on.

    Args:
        config: the model's constants.
        changes: MASK_VALUES or MASK_THRESHOLD, each of which replaces both of the model's.

    Raises:
        UserError: they are not valid, or not for as many classes.
    """
    defaults = {name: TUTORIAL_DEFAULTS[name] for name in ("MASK_VALUES", "MASK_THRESHOLD")}
    constants = TUTORIAL_DEFAULTS | dict(config)
    if changes:
        constants |= defaults | dict(changes)
    try:
        for name, value in changes.items():
            check(value, parse_annotation(MODEL_CONSTANTS[name].type))
    except ValueError as error:
        raise UserError(f"{name}: {error}") from error
    faults = class_faults(constants)
    if changes and faults:
        raise UserError("; ".join(faults))
    return Classes.from_constants(constants)


def check_image_levels(levels: int | None) -> None:
    """Raise UserError for a wrong --image-levels; None is for the model's own."""
    if levels is not None:
        _check_option("IMAGE_LEVELS", levels)


def check_windows(tile: int | None, overlap: float | None) -> dict[str, Any]:
    """Return the constants that --tile and --tile-overlap change; None leaves the model's own.

    Raises:
        UserError: a value is wrong.
    """
    given = {"TILE": tile, "TILE_OVERLAP": overlap}
    changes = {name: value for name, value in given.items() if value is not None}
    for name, value in changes.items():
        _check_option(name, value)
    return changes


def _check_option(name: str, value: Any) -> None:
    """Raise UserError for a wrong value of the option of a model's constant."""
    try:
        check(value, parse_annotation(MODEL_CONSTANTS[name].type))
    except ValueError as error:
        raise UserError(f"{option_name(name)}: {error}") from error


def set_windows(model: Any, changes: Mapping) -> None:
    """Have a model look through other windows than it carries.

    Args:
        changes: of check_windows.

    Raises:
        UserError: it is for pictures at their own size, which need windows; or an overlap of
            windows is given, and there are none.
    """
    if not changes:
        return
    config = model_config(model) | dict(changes)
    if not config["TILE"] and "TILE" not in changes:
        raise UserError(
            "--tile-overlap: expected a model with windows, but this one sees whole pictures; "
            "name their side, too, such as --tile 1024"
        )
    faults = size_faults(config)
    if faults:
        raise UserError(f"--tile: {'; '.join(faults)}")
    unwrapped(model).config = config


def network_size(config: Mapping) -> tuple[int, int] | None:
    """Return (height, width) that pictures are scaled to; None: each keeps its own."""
    if not config["IMAGE_HEIGHT"]:
        return None
    return config["IMAGE_HEIGHT"], config["IMAGE_WIDTH"]


def window_size(config: Mapping) -> tuple[int, int]:
    """Return (height, width) of what a network is fed at once."""
    size = config["TILE"], config["TILE"]
    return size if config["TILE"] else (config["IMAGE_HEIGHT"], config["IMAGE_WIDTH"])


def describe_size(config: Mapping) -> str:
    """Return the size of network_size in words."""
    size = network_size(config)
    return f"{size[0]}x{size[1]}" if size else "own size"


def logit_threshold(config: Mapping) -> float:
    """Return the logit above which a pixel is foreground."""
    return math.log(config["THRESHOLD"] / (1 - config["THRESHOLD"]))


def check_model_config(config: Mapping, channels: int) -> dict[str, Any]:
    """Return those constants of a file's configuration that a model carries.

    Args:
        config: the configuration that came with the file; anything may be in it.
        channels: of the network's input.

    Raises:
        ValueError: a constant is not one that config.py could hold; all of them are listed.
    """
    known = {name: config[name] for name in MODEL_CONSTANTS if name in config}
    faults = []
    for name, value in known.items():
        try:
            known[name] = check(value, parse_annotation(MODEL_CONSTANTS[name].type))
        except ValueError:
            faults.append(f"{name} is {short(value)}")
    if not faults:
        complete = TUTORIAL_DEFAULTS | known | {"IN_CHANNELS": channels}
        faults = size_faults(complete) + channel_faults(complete) + class_faults(complete)
    if faults:
        raise ValueError("; ".join(faults))
    return known


def size_faults(constants: Mapping) -> list[str]:
    """Return what is wrong with the constants of what a network sees, in words.

    Those of crops belong to training only: a model carries none.
    """
    height, width = constants["IMAGE_HEIGHT"], constants["IMAGE_WIDTH"]
    crop = constants.get("CROP_HEIGHT", 0), constants.get("CROP_WIDTH", 0)
    faults = []
    if constants.get("CROPS_PER_IMAGE", 1) > 1 and not any(crop):
        faults.append(
            "CROPS_PER_IMAGE: expected CROP_HEIGHT and CROP_WIDTH too, or 1, "
            f"found {constants['CROPS_PER_IMAGE']}"
        )
    if not height and not width:
        needed = [name for name in ("CROP_HEIGHT", "CROP_WIDTH", "TILE") if name in constants]
        missing = [name for name in needed if not constants[name]]
        if missing:
            faults.append(
                "IMAGE_HEIGHT: 0 keeps pictures at their own size, which needs "
                f"{', '.join(missing)} as well, such as 256"
            )
        return faults
    if not height or not width:
        faults.append(f"IMAGE_HEIGHT: expected IMAGE_WIDTH 0 too, or neither, found {width}")
    if bool(crop[0]) != bool(crop[1]):
        faults.append(
            f"CROP_HEIGHT: expected CROP_WIDTH too, or neither, found {crop[0]} and {crop[1]}"
        )
    elif crop[0] > height or crop[1] > width:
        faults.append(
            f"CROP_HEIGHT: expected crops of at most {height}x{width}, to which pictures are "
            f"scaled, found {crop[0]}x{crop[1]}; IMAGE_HEIGHT and IMAGE_WIDTH 0 leave them as they "
            "are"
        )
    return faults


def channel_faults(constants: Mapping) -> list[str]:
    """Return what is wrong with the constants that channels' values depend on, in words."""
    channels = constants["IN_CHANNELS"]
    faults = [
        f"{name}: expected one value, or one for each of {channels} channels, "
        f"found {len(constants[name])}"
        for name in ("MEAN", "STD")
        if len(constants[name]) not in (1, channels)
    ]
    limits = constants["IMAGE_RANGE"]
    if limits and (len(limits) != 2 or not limits[0] < limits[1]):
        shown = " ".join(map(str, limits))[:SHOWN_LENGTH]
        faults.append(f"IMAGE_RANGE: expected two values, the smaller one first, found {shown}")
    return faults


def class_faults(constants: Mapping) -> list[str]:
    """Return what is wrong with CLASSES and the constants that say what masks hold, in words."""
    names = constants["CLASSES"]
    faults = []
    if len(set(names)) < len(names) or len(names) > MAX_CLASSES or not all(names):
        shown = " ".join(names)[:SHOWN_LENGTH]
        faults.append(f"CLASSES: expected 1 to {MAX_CLASSES} different names, found {shown}")
    if len(names) == 1 and names[0].isdigit():
        faults.append(
            f"CLASSES: expected the classes' names, such as background road sky, found {names[0]}"
        )
    faults += _palette_faults(constants["PALETTE"], len(names))
    faults += _value_faults(constants, len(names))
    ignore = constants["IGNORE_INDEX"]
    places_are_values = bool(constants["PALETTE"]) or (ignore > 0 and not constants["MASK_VALUES"])
    if len(names) > 1 and ignore < len(names) and places_are_values:
        faults.append(
            f"IGNORE_INDEX: {ignore} is the class {names[ignore]}; expected {len(names)}..255, or "
            "0 where the classes count from 1, or MASK_VALUES set to the classes' values"
        )
    return faults


def _value_faults(constants: Mapping, class_count: int) -> list[str]:
    """Return what is wrong with MASK_VALUES and MASK_THRESHOLD, in words."""
    values = constants["MASK_VALUES"]
    faults = []
    if constants["MASK_THRESHOLD"] >= 0 and (class_count > 1 or values):
        faults.append(
            "MASK_THRESHOLD: expected -1 with several CLASSES or with MASK_VALUES, which say "
            f"what each value is, found {constants['MASK_THRESHOLD']}"
        )
    if not values:
        return faults
    expected = max(2, class_count)
    if len(values) != expected or len(set(values)) < expected:
        subject = "background and foreground" if class_count == 1 else f"{class_count} classes"
        shown = " ".join(map(str, values))[:SHOWN_LENGTH]
        faults.append(f"MASK_VALUES: expected {expected} values, of {subject}, found {shown}")
    if constants["PALETTE"]:
        faults.append("MASK_VALUES: expected none with PALETTE, which says what each color is")
    ignore = constants["IGNORE_INDEX"]
    if class_count > 1 and ignore in values and ignore != NO_CLASS:
        faults.append(f"MASK_VALUES: {ignore} is IGNORE_INDEX; leave it out, or set that to 255")
    return faults


def _palette_faults(palette: list[str], class_count: int) -> list[str]:
    if len({color.lower() for color in palette}) < len(palette):
        shown = " ".join(palette)[:SHOWN_LENGTH]
        return [f"PALETTE: expected different colors, each as #rrggbb, found {shown}"]
    if not palette:
        return []
    if class_count == 1:
        return [
            "PALETTE: expected none with one class; name them all, such as --classes background car"
        ]
    if len(palette) not in (class_count, class_count + 1):
        return [
            f"PALETTE: expected a color for each of {class_count} classes (and one for what is "
            f"to be ignored), found {len(palette)}"
        ]
    return []
