"""Checkpoints: written whole or not at all, and files of others read without running code."""

import codecs
import contextlib
import itertools
import math
import os
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy._core.multiarray import scalar
from torch import nn

from carvana import __version__, system
from carvana.device import memory_format, random_states, set_random_states
from carvana.errors import UserError, error_summary, first_few, one_line
from carvana.files import random_token
from carvana.model_config import TUTORIAL_DEFAULTS, check_model_config, model_config
from carvana.naming import AFFIX_CONSTANTS
from carvana.options import option_words, shown
from carvana.schema import MOST_CHANNELS, short
from carvana.untrusted_tensors import load_tensors
from carvana.weights import (
    LAST_WEIGHT,
    WEIGHTS_KEYS,
    describe_shape,
    kind_of,
    load_checkpoint,
    look_like_weights,
    network_shape,
    plain_names,
    weight_fault,
    weights_in,
    weights_key,
)

# They decide which network it is and what it is fed; all others may change between runs.
NETWORK_CONSTANTS = (
    "IMAGE_HEIGHT",
    "IMAGE_WIDTH",
    "IN_CHANNELS",
    "IMAGE_LEVELS",
    "IMAGE_RANGE",
    "MEAN",
    "STD",
    "FEATURES",
    "UNSHUFFLE",
    "CLASSES",
    "PALETTE",
    "IGNORE_INDEX",
)
# Scores measured with other values of these do not compare.
SCORING_CONSTANTS = {
    "VAL_IMG_DIR",
    "VAL_MASK_DIR",
    *AFFIX_CONSTANTS,
    "MASK_VALUES",
    "MASK_THRESHOLD",
    "MASK_RESIZE",
    "THRESHOLD",
    "TILE",
    "TILE_OVERLAP",
}
OPTIMIZER_STATES = (  # what an optimizer keeps for a parameter
    {"step", "exp_avg", "exp_avg_sq"},
    {"momentum"},
    {"step", "mean", "square"},
)
UNREADABLE = {  # a phrase in torch's message -> what it means
    "Weights only": "it holds something other than tensors and plain values, which could be code "
    "and was not opened",
    "PytorchStreamReader": "it is cut off",
    "EOFError": "it is empty or cut off",
}
PART_KEYS = {"of", "images", "loss", "seconds"}  # of what is done of an epoch
MAX_EPOCHS = 10**6
# What a NumPy number in a pickle, such as a score, is made by: harmless, unlike all others.
NUMPY_SCALARS: list[Any] = [
    (scalar, "numpy.core.multiarray.scalar"),
    (scalar, "numpy._core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(name)) for name in "?bhilqBHILQefd"),
    (codecs.encode, "_codecs.encode"),
]
UNFINISHED = ".tmp"  # ending of a checkpoint that is being written


# ---------------------------------------------------------------- writing


def training_state(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    progress: Mapping[str, Any],
    ema_model: nn.Module | None = None,
) -> dict[str, Any]:
    """Return the one dict that resuming needs, of tensors and plain values only.

    torch.load with weights_only=True reads it.

    Args:
        progress: of Progress.state().
        ema_model: holds the weights' moving average, which is "state_dict" then; the weights
            that training continues with are "trained".
    """
    state = {"state_dict": plain_names((ema_model or model).state_dict())}
    if ema_model is not None:
        state["trained"] = plain_names(model.state_dict())
    return {
        **state,
        **progress,
        "version": __version__,
        "optimizer": optimizer.state_dict(),
        "scaler": scaler.state_dict(),
        "config": model_config(model),
        "random": random_states(),
    }


def save_checkpoint(
    state: Mapping[str, Any], filename: str | Path = "my_checkpoint.pth.tar"
) -> None:
    """Write a checkpoint so that at any moment the old or the new one is there, whole.

    If the file belongs to another "run" than the state, that file is renamed to NAME_1, NAME_2, ...
    before the new one takes its name. The tutorials' states belong to none.
    """
    print("=> Saving checkpoint")
    path = Path(filename)
    temporary = path.with_name(f"{path.name}.{random_token()}{UNFINISHED}")
    try:
        path.absolute().parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        if path.exists() and run_of(path) != state.get("run"):
            _keep_aside(path)
        system.replace(temporary, path)
        system.sync_folder(path.absolute().parent)
    except (OSError, RuntimeError) as error:  # torch's zip writer turns a full disk into the latter
        temporary.unlink(missing_ok=True)
        cause = error.__context__ if isinstance(error.__context__, OSError) else error
        raise UserError(
            f"{filename} could not be written ({error_summary(cause)}); what stood there before "
            "is untouched. Free some space, then continue with --load-model true"
        ) from error


def _keep_aside(path: Path) -> None:
    """Give another run's checkpoint the first free of the names NAME_1, NAME_2, ... too."""
    stem = path.name.removesuffix(".pth.tar")
    for number in itertools.count(1):
        aside = path.with_name(f"{stem}_{number}.pth.tar")
        with contextlib.suppress(FileExistsError):
            _link(path, aside)
            break
    print(f"{path} is of another run; it is now {aside}")


def _link(path: Path, other: Path) -> None:
    """Give a file a second name, or another one where the system knows no second names.

    Raises:
        FileExistsError: the name is taken.
    """
    try:
        os.link(path, other)
    except FileExistsError:
        raise
    except OSError:
        if other.exists():
            raise FileExistsError(other) from None
        path.rename(other)


def remove_unfinished(filename: str | Path) -> None:
    """Remove what killed runs left of checkpoints that they were writing to this file.

    No other run may be writing to it now.
    """
    path = Path(filename)
    pattern = re.compile(rf"{re.escape(path.name)}\.[0-9a-f]{{12}}{re.escape(UNFINISHED)}")
    for leftover in path.absolute().parent.iterdir():
        if pattern.fullmatch(leftover.name):
            with contextlib.suppress(OSError):
                leftover.unlink()


def weights_are_finite(*models: nn.Module | None) -> bool:
    """Return whether no weight of any of the models is nan or infinite. Waits for the device."""
    finite = []
    for model in models:
        tensors = model.state_dict().values() if model is not None else ()
        finite += [tensor.isfinite().all() for tensor in tensors if tensor.is_floating_point()]
    return bool(torch.stack(finite).all())


def run_of(path: str | Path) -> str | None:
    """Return the "run" of a checkpoint file; None if there is none to be read."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True).get("run")
    except Exception:  # a damaged file can raise nearly anything; it is of no run of ours
        return None


# ---------------------------------------------------------------- reading


def read_checkpoint(filename: str | Path) -> dict[str, Any]:
    """Return the dict in a checkpoint file, on the CPU. Code in it does not run.

    Raises:
        UserError: the file is none, or its content is not sound.
    """
    if not Path(filename).is_file():
        raise UserError(
            f"no checkpoint {str(filename)!r}; train one with python train.py, or name another"
        )
    try:
        state = _load(filename)
    except Exception as error:  # a damaged or hostile file can raise nearly anything
        raise UserError(_unreadable(Path(filename), error)) from error
    name = one_line(filename)
    if not isinstance(state, dict):
        raise UserError(
            f"{name} holds no weights of a UNET (it is a {kind_of(state)}); name another"
        )
    key = weights_key(state)
    if key is None and not look_like_weights(state):
        raise UserError(
            f"{name} holds no weights of a UNET ({_describe_entries(state)}); expected names "
            f"ending in {LAST_WEIGHT}, as they are or under {' or '.join(WEIGHTS_KEYS)}; name "
            "another"
        )
    faults = _weight_faults(weights_in(state))
    if "run" in state:
        faults += _state_faults(state)
    elif key:
        state = _foreign_state(state)
    if faults:
        raise UserError(f"{name} is not sound: {first_few(faults)}; name another checkpoint")
    return state


def _describe_entries(state: Mapping[Any, Any]) -> str:
    """Return the first names in a dict, and below them, in words."""
    entries = []
    for key, value in state.items():
        entry = short(key)
        if isinstance(value, dict):
            entry += f" with {first_few([short(name) for name in value], 2)}"
        entries.append(entry)
    return f"its entries: {first_few(entries)}" if entries else "it is empty"


def _foreign_state(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is used of a checkpoint that train.py did not write.

    Its epochs were others: training starts at epoch 0 with its weights and optimizer.
    """
    known = {"state_dict": weights_in(state)}
    optimizer = state.get("optimizer", state.get("optimizer_state_dict"))
    if isinstance(optimizer, dict):
        known["optimizer"] = optimizer
    if isinstance(state.get("config"), dict):  # weights that come with the project have one
        known["config"] = state["config"]
    return known


def _load(filename: str | Path) -> Any:
    """Return what torch.save wrote. Raises nearly anything if the file is not as written."""
    with warnings.catch_warnings(), torch.serialization.safe_globals(NUMPY_SCALARS):
        warnings.simplefilter("ignore")  # about what is odd in a file of others
        return load_tensors(filename)


def holds_dict(path: str | Path) -> bool:
    """Return whether a file holds a dict, such as a bare state_dict that others named .pth."""
    with contextlib.suppress(Exception):
        return isinstance(_load(path), dict)
    return False


def _unreadable(path: Path, error: Exception) -> str:
    """Return why a file cannot be read, and which good ones beside it can take its place."""
    good = [
        one_line(candidate.name)
        for candidate in sorted(path.parent.glob("*.pth.tar"))
        if candidate != path and _has_run(candidate)
    ]
    instead = "name another"
    if good:
        instead = f"name one: {first_few(good)}"
        if path.suffix == ".tar":  # else it may be anything, and is better kept
            instead = f"copy one of these over it, or {instead}"
    message = f"{type(error).__name__}: {error}"
    reasons = (reason for phrase, reason in UNREADABLE.items() if phrase in message)
    reason = next(reasons, error_summary(error))
    return f"{one_line(path)} is not a checkpoint that can be read ({reason}); {instead}"


def _has_run(path: Path) -> bool:
    with contextlib.suppress(Exception):  # any file may lie there
        return "run" in _load(path)
    return False


def _weight_faults(weights: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with weights, in words."""
    faults = ((name, weight_fault(tensor)) for name, tensor in weights.items())
    return [f"{one_line(name)} {fault}" for name, fault in faults if fault]


def _state_faults(state: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with a checkpoint's other entries, in words."""
    trained = state.get("trained", {})
    if not isinstance(trained, dict):
        return [f"'trained' is {kind_of(trained)} (expected weights)"]
    faults = _weight_faults(trained)
    for name, (is_sound, expected) in STATE_RULES.items():
        if name in state and not is_sound(state[name]):
            faults.append(f"{name!r} is {short(state[name])} (expected {expected})")
    return faults


def _is_epoch(value: Any) -> bool:
    return type(value) is int and 0 <= value <= MAX_EPOCHS


def _is_dice(value: Any) -> bool:
    return type(value) in (int, float) and value <= 1


def _is_history(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(row, dict) for row in value)


def _is_part(value: Any) -> bool:
    if value is None:
        return True
    if not isinstance(value, dict) or value.keys() - {"evaluated"} != PART_KEYS:
        return False
    numbers = all(type(item) in (int, float) and 0 <= item < math.inf for item in value.values())
    return numbers and all(type(value.get(key, 0)) is int for key in ("images", "evaluated"))


STATE_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "epoch": (_is_epoch, "a whole number of epochs"),
    "best": (_is_dice, "a Dice"),
    "history": (_is_history, "a list of epochs"),
    "part": (_is_part, "what is done of an epoch"),
    "config": (lambda value: isinstance(value, dict), "the constants"),
    "run": (lambda value: isinstance(value, str), "a name"),
}


# ---------------------------------------------------------------- into a network


def load_network(
    path: str | Path, network_class: type[nn.Module], device: torch.device
) -> nn.Module:
    """Return the network of a checkpoint, in eval mode on a device.

    Its shape is read off the tensors; .config holds the constants it was trained with.

    Args:
        network_class: UNET.

    Raises:
        UserError: the file holds no weights of such a network.
    """
    state = read_checkpoint(path)
    name = one_line(path)
    weights = weights_in(state)
    try:
        shape = network_shape(weights, state.get("config", {}).get("UNSHUFFLE", 1))
        with torch.device("meta"):  # allocates nothing before the shapes are seen to fit
            model = network_class(**shape)
        load_checkpoint(state, model, assign=True, name=name)
    except (
        LookupError,
        AttributeError,
        ArithmeticError,
        ValueError,
        TypeError,
        RuntimeError,
    ) as error:
        raise UserError(
            f"{name} holds no weights of a UNET ({error_summary(error)}); name another"
        ) from error
    model.config = _network_config(state, shape, name)  # type: ignore[assignment]
    model = model.float().to(device)
    return model.to(memory_format=memory_format(device)).eval()  # type: ignore[call-overload]


def _network_config(
    state: Mapping[str, Any], shape: Mapping[str, Any], name: str
) -> dict[str, Any]:
    """Return the constants of a checkpoint's network, checked."""
    if not 1 <= shape["in_channels"] <= MOST_CHANNELS:
        raise UserError(
            f"{name} is for images of {shape['in_channels']} channels (expected 1 to "
            f"{MOST_CHANNELS}); name another"
        )
    try:
        config = check_model_config(state.get("config", {}), shape["in_channels"])
    except ValueError as error:
        raise UserError(
            f"{name} was not written by train.py: {error}; name another checkpoint"
        ) from error
    outputs = shape["out_channels"]
    if "CLASSES" not in config:
        names = [f"class {index}" for index in range(outputs)]
        config["CLASSES"] = ["car"] if outputs == 1 else names
    if len(config["CLASSES"]) != outputs:
        raise UserError(
            f"{name} was not written by train.py: {len(config['CLASSES'])} CLASSES, but logits "
            f"of {outputs}; name another checkpoint"
        )
    return config | {"FEATURES": shape["features"], "IN_CHANNELS": shape["in_channels"]}


# ---------------------------------------------------------------- resuming


def restore(
    state: Mapping[str, Any],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    ema_model: nn.Module | None = None,
    name: object = "the checkpoint",
) -> None:
    """Load a training state into models, optimizer, scaler and the random generators.

    A checkpoint may hold only weights, or only weights and optimizer.

    Raises:
        UserError: something in it does not fit.
    """
    load_checkpoint(state.get("trained") or state, model, name=name)
    if ema_model is not None:
        load_checkpoint(state, ema_model, name=name)
    try:
        if state.get("optimizer"):
            _restore_optimizer(state["optimizer"], optimizer)
        scaler.load_state_dict(state.get("scaler") or scaler.state_dict())
        if "random" in state:
            set_random_states(state["random"])
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # of a foreign or hostile file, nearly anything
        raise UserError(
            f"the optimizer, scaler or random state in {name} is not valid for this run "
            f"({error_summary(error)}); continue from another checkpoint, or start over"
        ) from error


def _restore_optimizer(state: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> None:
    """Restore an optimizer's moments; hyperparameters come from config.py.

    Raises:
        Exception: of nearly any kind, if they do not fit its parameters.
    """
    groups = [
        group | {"lr": float(saved["lr"])}
        for group, saved in zip(
            optimizer.state_dict()["param_groups"], state["param_groups"], strict=True
        )
    ]
    optimizer.load_state_dict({"state": state["state"], "param_groups": groups})
    for parameter, moments in optimizer.state.items():
        shape = tuple(parameter.shape)
        shapes = {name: describe_shape(moment) for name, moment in moments.items()}
        known = any(names <= moments.keys() for names in OPTIMIZER_STATES)
        if not known or any(item not in ("float", "int", (), shape) for item in shapes.values()):
            state_shapes = ", ".join(f"{name} {item}" for name, item in shapes.items())
            raise ValueError(f"{state_shapes} for a parameter of shape {shape}")
        for name, moment in moments.items():
            # Fused optimizers expect the parameter's layout in memory; others need not write it.
            if shapes[name] == shape and moment.stride() != parameter.stride():
                moments[name] = torch.empty_like(parameter).copy_(moment)


def compare_constants(cfg: SimpleNamespace, saved: Mapping[str, Any]) -> set[str]:
    """Print which constants have changed since a checkpoint was written; return their names.

    Args:
        saved: the checkpoint's constants; a tutorial's has none.

    Raises:
        UserError: the changes make it another network, or another optimizer.
    """
    defaults = {"OPTIMIZER": "adam"}
    if saved:  # by a version that did not have all constants of today
        defaults |= TUTORIAL_DEFAULTS
    changed = {
        name: value
        for name, value in (defaults | dict(saved)).items()
        if name != "LOAD_MODEL" and name in vars(cfg) and getattr(cfg, name) != value
    }
    decisive = [name for name in changed if name in (*NETWORK_CONSTANTS, "OPTIMIZER")]
    if decisive:
        raise UserError(_how_to_resume(cfg.CHECKPOINT_FILE, changed, decisive))
    for name, value in changed.items():
        now = getattr(cfg, name)
        print(f"{name}: {shown(value)} in the checkpoint, {shown(now)} from now on")
    return set(changed)


def _how_to_resume(filename: str, changed: Mapping[str, Any], decisive: list[str]) -> str:
    """Return the message that gives the options a checkpoint was trained with."""
    options = {name: option_words(name, value) for name, value in changed.items()}
    message = (
        f"{filename} was trained with other {', '.join(decisive)}; to continue with it, add "
        + " ".join(options[name] for name in decisive)
    )
    rest = [options[name] for name in changed if name not in decisive]
    if rest:
        message += f" (and, for the rest as it was, {' '.join(rest)})"
    return f"{message}; omit --load-model to start over"
