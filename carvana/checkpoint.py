"""Checkpoints: written whole or not at all, read as what they are, files that others made."""

import contextlib
import math
import os
import warnings
import zipfile
from pathlib import Path

import torch

from device import config_of, find_device, sound_input, unwrapped
from exported import SUFFIXES, load_exported
from model import UNET
from pictures import UserError, brief, few, printable

# What decides which network it is and what it is fed; the rest of the configuration may change between runs.
NETWORK_CONSTANTS = (
    "IMAGE_HEIGHT",
    "IMAGE_WIDTH",
    "IN_CHANNELS",
    "MEAN",
    "STD",
    "FEATURES",
    "UNSHUFFLE",
    "CLASSES",
    "PALETTE",
    "IGNORE_INDEX",
)
GATHERED = (
    {"step", "exp_avg", "exp_avg_sq"},
    {"momentum"},
    {"step", "mean", "square"},
)  # what an optimizer keeps for a parameter
UNREADABLE = {  # what torch says at length -> what it means
    "Weights only": "it holds something else than tensors and plain values, which could be code and was not opened",
    "PytorchStreamReader": "it is cut off",
    "EOFError": "it is empty or cut off",
}
STATE_RULES = {  # what else a checkpoint may hold, and what it must be then
    "epoch": (lambda value: type(value) is int and 0 <= value <= 10**6, "a whole number of epochs"),
    "best": (lambda value: type(value) in (int, float) and value <= 1, "a Dice"),
    "history": (
        lambda value: isinstance(value, list) and all(isinstance(row, dict) for row in value),
        "a list of epochs",
    ),
    "part": (
        lambda value: (
            value is None
            or isinstance(value, dict)
            and value.keys() == {"of", "images", "loss", "seconds"}
            and all(type(one) in (int, float) and 0 <= one < math.inf for one in value.values())
            and type(value["images"]) is int
        ),
        "what is done of an epoch",
    ),
    "config": (lambda value: isinstance(value, dict), "the constants"),
    "run": (lambda value: isinstance(value, str), "a name"),
}


def checkpoint_state(model, optimizer, scaler, run, epoch, best, history, part=None, average=None):
    """The one dict that resuming needs, of tensors and plain values only (torch.load's weights_only=True reads it).

    run: what tells this training from others; epoch: how many are done; best: highest validation Dice so far;
    history: a dict per epoch; part: what is done of the next one. average: a model with the weights' running average, which is what
    "state_dict" holds then; those that training goes on with are "trained"."""
    weights = {"state_dict": _plain_names((average or model).state_dict())} | (
        {"trained": _plain_names(model.state_dict())} if average else {}
    )
    return weights | {
        "run": run,
        "optimizer": optimizer.state_dict(),
        "scaler": scaler.state_dict(),
        "epoch": epoch,
        "best": best,
        "history": history,
        "part": part,
        "config": config_of(model),
        "random": {
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        },
    }


def restore(state, model, optimizer, scaler, name="the checkpoint", average=None):
    """The reverse of checkpoint_state: fills the three in -> (epochs done, best, history, part of the next epoch or None).

    A checkpoint of only weights, or of weights and optimizer, counts as epoch 0. Raises UserError where something does not fit."""
    load_checkpoint(state.get("trained") or state, model, name=name)
    if average is not None:
        load_checkpoint(state, average, name=name)
    try:
        if state.get("optimizer"):  # what it has gathered; how it is set is the constants' to say
            groups, theirs = (
                optimizer.state_dict()["param_groups"],
                state["optimizer"]["param_groups"],
            )
            optimizer.load_state_dict(
                {
                    "state": state["optimizer"]["state"],
                    "param_groups": [
                        group | {"lr": float(their["lr"])}
                        for group, their in zip(groups, theirs, strict=True)
                    ],
                }
            )
            for parameter, gathered in optimizer.state.items():
                if not any(names <= gathered.keys() for names in GATHERED) or any(
                    _shape(one) not in ("float", "int", (), tuple(parameter.shape))
                    for one in gathered.values()
                ):
                    raise ValueError(
                        f"{', '.join(f'{name} {_shape(one)}' for name, one in gathered.items())} for a parameter of shape {tuple(parameter.shape)}"
                    )
                for (
                    name,
                    one,
                ) in gathered.items():  # fused optimizers take it for laid out in memory as the parameter is; others' need not be
                    if _shape(one) == tuple(parameter.shape) and one.stride() != parameter.stride():
                        gathered[name] = torch.empty_like(parameter).copy_(one)
        scaler.load_state_dict(state.get("scaler") or scaler.state_dict())
        if "random" in state:
            torch.set_rng_state(state["random"]["torch"].cpu())
            if len(state["random"]["cuda"]) == torch.cuda.device_count():
                torch.cuda.set_rng_state_all(state["random"]["cuda"])
    except Exception as error:  # of a foreign or hostile file, nearly anything
        raise UserError(
            f"the optimizer, scaler or random state in {name} is none of ours ({brief(error)}); go on from another checkpoint, or train anew"
        ) from error
    return (
        state.get("epoch", 0),
        state.get("best", -1.0),
        state.get("history", []),
        state.get("part"),
    )


def save_checkpoint(state, filename="my_checkpoint.pth.tar"):
    """Write a checkpoint so that at any moment `filename` is the old one or the new one, whole.

    Where the state has a "run" and the file is of another, the file is renamed to NAME_1, NAME_2, ... first."""
    print("=> Saving checkpoint")
    path, temporary = Path(filename), Path(f"{filename}.tmp")
    try:
        path.absolute().parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        if "run" in state and path.exists() and run_of(path) != state["run"]:
            stem = path.name.removesuffix(".pth.tar")
            aside = next(
                name
                for n in range(1, 10**6)
                if not (name := path.with_name(f"{stem}_{n}.pth.tar")).exists()
            )
            path.rename(aside)
            print(f"{path} is of another run; it is now {aside}")
        os.replace(temporary, path)
        sync_folder(path.absolute().parent)
    except (
        OSError,
        RuntimeError,
    ) as error:  # torch's zip writer turns a full disk into a RuntimeError
        temporary.unlink(missing_ok=True)
        cause = error.__context__ if isinstance(error.__context__, OSError) else error
        raise UserError(
            f"{filename} could not be written ({brief(cause)}); what stood there before is untouched. "
            "Free some space, then go on with --load-model true"
        ) from error


def sync_folder(folder):
    """Have a rename in it survive a loss of power, where the system can be told so."""
    with contextlib.suppress(OSError):  # Windows opens no folders
        number = os.open(folder, os.O_RDONLY)
        os.fsync(number)
        os.close(number)


def run_of(path):
    """The "run" of a checkpoint file, None where there is none to be read."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True).get("run")
    except Exception:  # a damaged file can raise nearly anything; it is of no run of ours
        return None


def load_checkpoint(checkpoint, model, assign=False, name="the checkpoint"):
    """Fill a model with the weights of a checkpoint dict (or a bare state_dict). Raises UserError where they do not fit.

    assign: make the checkpoint's tensors the model's own instead of copying them, for a model on the device "meta". name: what messages call it."""
    print("=> Loading checkpoint")
    weights = _plain_names(checkpoint.get("state_dict", checkpoint))
    target = unwrapped(model)
    ours = target.state_dict()
    faults = [
        f"{printable(name)}: {_shape(weights.get(name))} in the checkpoint, {_shape(ours.get(name))} in the model"
        for name in sorted(ours.keys() | weights.keys())
        if _shape(weights.get(name)) != _shape(ours.get(name))
    ]
    if faults:
        raise UserError(
            f"{name} is of another network: {few(faults)}. "
            "Give the FEATURES, UNSHUFFLE, IN_CHANNELS and CLASSES it was trained with"
        )
    target.load_state_dict(weights, assign=assign)


def _plain_names(weights):
    """Parameter names without the prefixes that torch.compile and DistributedDataParallel put before them."""
    return {
        name.removeprefix("_orig_mod.").removeprefix("module.").removeprefix("_orig_mod."): tensor
        for name, tensor in weights.items()
    }


def _shape(tensor):
    return (
        "missing"
        if tensor is None
        else tuple(tensor.shape)
        if hasattr(tensor, "shape")
        else type(tensor).__name__
    )


def read_checkpoint(filename, device="cpu"):
    """The dict in a checkpoint file. Code in it does not run. Raises UserError where the file is none."""
    if not Path(filename).is_file():
        raise UserError(
            f"no checkpoint {str(filename)!r}; train one with python train.py, or name another"
        )
    try:
        state = _content(filename, device)
    except Exception as error:  # a damaged or hostile file can raise nearly anything
        good = [
            printable(path.name)
            for path in sorted(Path(filename).parent.glob("*.pth.tar"))
            if path != Path(filename) and _good(path)
        ]
        instead = (
            f"copy one of these over it, or name one: {', '.join(good)}" if good else "name another"
        )
        reason = next(
            (
                reason
                for said, reason in UNREADABLE.items()
                if said in f"{type(error).__name__}: {error}"
            ),
            brief(error),
        )
        raise UserError(
            f"{printable(filename)} is not a checkpoint that can be read ({reason}); {instead}"
        ) from error
    weights = state.get("state_dict", state) if isinstance(state, dict) else None
    if (
        not isinstance(weights, dict)
        or not all(isinstance(name, str) for name in weights)
        or not any(name.endswith("final_conv.weight") for name in weights)
    ):
        raise UserError(
            f"{printable(filename)} holds no weights of a UNET (a state_dict with final_conv.weight); name another"
        )
    trained = state.get("trained", {}) if weights is not state else {}
    if not isinstance(trained, dict):
        raise UserError(
            f"{printable(filename)} is not sound: 'trained' is {_kind(trained)} (expected weights); name another checkpoint"
        )
    faults = [
        f"{printable(name)} {fault}"
        for name, tensor in (*weights.items(), *trained.items())
        if (fault := _weight_fault(tensor))
    ]
    faults += [
        f"{name!r} is {printable(repr(state[name])):.60} (expected {expected})"
        for name, (good, expected) in STATE_RULES.items()
        if weights is not state and name in state and not good(state[name])
    ]
    if faults:
        raise UserError(
            f"{printable(filename)} is not sound: {few(faults)}; name another checkpoint"
        )
    return state


def _content(filename, device="cpu"):
    """What is in a file of torch.save's. Raises nearly anything where it is none, or not as it was written."""
    if zipfile.is_zipfile(filename):
        with zipfile.ZipFile(filename) as archive:
            if damaged := archive.testzip():  # torch itself does not look at the checksums
                raise ValueError(f"the disk has spoilt {damaged} in it")
    with warnings.catch_warnings(action="ignore"):  # about what is odd in a file that others made
        return torch.load(filename, map_location=device, weights_only=True)


def _is_dict(path):
    """Whether a file holds a dict, such as a bare state_dict that others named .pth."""
    with contextlib.suppress(Exception):
        return isinstance(_content(path), dict)
    return False


def _good(path):
    try:
        return "run" in _content(path)
    except Exception:
        return False


def _weight_fault(tensor):
    """Why something cannot be a network's weights, in words; None where it can."""
    if not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided:
        return f"is no plain tensor but {_kind(tensor)}"
    if (
        not tensor.is_floating_point() and tensor.dtype != torch.int64
    ):  # int64: BatchNorm's count of batches
        return f"holds {_kind(tensor)}, not floating-point numbers"
    if tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size():
        return (
            f"claims the shape {tuple(tensor.shape)} for {tensor.untyped_storage().nbytes()} bytes"
        )
    if not tensor.isfinite().all():
        return "holds values that are infinite or not numbers"
    return None


def _kind(thing):
    return str(
        thing.dtype
        if getattr(thing, "layout", None) == torch.strided
        else getattr(thing, "layout", type(thing).__name__)
    ).removeprefix("torch.")


def take_what_fits(checkpoint, model, name="the checkpoint"):
    """Fill a model with those weights of a checkpoint that have its names and shapes -> what was not taken, in words. Raises UserError where no convolution fits."""
    theirs, ours = _plain_names(checkpoint.get("state_dict", checkpoint)), model.state_dict()
    fitting = {
        name: tensor
        for name, tensor in theirs.items()
        if name in ours and tensor.shape == ours[name].shape
    }
    if not any(tensor.dim() == 4 for tensor in fitting.values()):
        features = [
            tensor.shape[0]
            for key, tensor in sorted(theirs.items())
            if key.startswith("downs.") and key.endswith(".conv.0.weight")
        ]
        raise UserError(
            f"none of the convolutions in {printable(name)} fits this network; it has FEATURES {' '.join(map(str, features))} and UNSHUFFLE {checkpoint.get('config', {}).get('UNSHUFFLE', 1)}: set these"
        )
    model.load_state_dict(fitting, strict=False)
    return [
        f"{name} {tuple(ours[name].shape)}"
        + (f", there {tuple(theirs[name].shape)}" if name in theirs else "")
        for name in ours
        if name not in fitting
    ]


def load_model(path, device="auto"):
    """A checkpoint of ours or of the lineage ({'state_dict', ...} or a bare state_dict) -> UNET in eval mode on a device.

    The network is read off the tensors' shapes; model.config holds the constants it was trained with.
    A file of export.py's (.onnx, .pt2, .pth) becomes a module that is called likewise."""
    device = find_device(str(device))
    if (
        Path(path).suffix in SUFFIXES
        and Path(path).is_file()
        and not (Path(path).suffix == ".pth" and _is_dict(path))
    ):
        return load_exported(path, device)
    state = read_checkpoint(path, device)
    weights = _plain_names(state.get("state_dict", state))
    try:
        firsts = sorted(
            (int(name.split(".")[1]), tensor.shape)
            for name, tensor in weights.items()
            if name.startswith("downs.") and name.endswith(".conv.0.weight")
        )
        unshuffle = state.get("config", {}).get("UNSHUFFLE", 1)
        shape = {
            "in_channels": firsts[0][1][1] // unshuffle**2,
            "features": [shape[0] for _, shape in firsts],
            "out_channels": weights["final_conv.weight"].shape[0] // unshuffle**2,
            "unshuffle": unshuffle,
        }
        with torch.device("meta"):  # nothing is allocated before the shapes are seen to fit
            model = UNET(**shape)
        load_checkpoint(state, model, assign=True, name=printable(path))
    except (
        LookupError,
        AttributeError,
        ArithmeticError,
        ValueError,
        TypeError,
        RuntimeError,
    ) as error:
        raise UserError(
            f"{printable(path)} holds no weights of a UNET ({brief(error)}); name another"
        ) from error
    if shape["in_channels"] not in (1, 3):
        raise UserError(
            f"{printable(path)} is for images of {shape['in_channels']} channels (expected 1 or 3); name another"
        )
    try:
        known = sound_input(state.get("config", {}), shape["in_channels"])
    except ValueError as error:
        raise UserError(
            f"{printable(path)} was not written by train.py: {error}; name another checkpoint"
        ) from error
    classes = known.setdefault(
        "CLASSES",
        ["car"]
        if shape["out_channels"] == 1
        else [f"class {index}" for index in range(shape["out_channels"])],
    )
    if len(classes) != shape["out_channels"]:
        raise UserError(
            f"{printable(path)} was not written by train.py: {len(classes)} CLASSES, but logits of {shape['out_channels']}; name another checkpoint"
        )
    model.config = known | {"FEATURES": shape["features"], "IN_CHANNELS": shape["in_channels"]}
    return model.float().to(device, memory_format=torch.channels_last).eval()
