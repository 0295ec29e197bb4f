"""Bad checkpoints: nothing in them runs, and the message says what is wrong."""

import pickle

import pytest
import torch
from bad_input import (
    EVALUATE,
    RESUME,
    check_answer,
    cut,
    documented_kinds,
    leave,
    make_folder,
    make_pipe,
    remove,
    rows,
    spoiler,
    write,
)
from helpers import LAST, Payload

from model import UNET

FIRST = "downs.0.conv.0.weight"
UNREADABLE = r"my_checkpoint.pth.tar is not a checkpoint that can be read"
GOOD_ONE = r"my_checkpoint.pth.tar is not a checkpoint .*: best_checkpoint.pth.tar$"
MISSING = r"no model 'my_checkpoint.pth.tar'"
NO_WEIGHTS = r"holds no weights of a UNET"
NOT_VALID = r"is not valid for this run"
NOT_FINITE = rf"{FIRST} holds values that are infinite or not numbers"
NAN, INFINITE = float("nan"), float("inf")


@spoiler
def save(path, content, **options):
    torch.save(content, path, **options)


def pickle_payload(path):
    path.write_bytes(pickle.dumps({"state_dict": Payload()}))


@spoiler
def change(path, **entries):
    """Replace entries of the checkpoint; a function makes the new entry from the old one."""
    state = torch.load(path, weights_only=True)
    for name, value in entries.items():
        state[name] = value(state[name]) if callable(value) else value
    torch.save(state, path)


@spoiler
def set_weight(path, name, value):
    """Set a weight to a value, or to what a function makes of it."""
    state = torch.load(path, weights_only=True)
    weights = state["state_dict"]
    weights[name] = value(weights[name]) if callable(value) else value
    torch.save(state, path)


def first(value):
    return set_weight(FIRST, value)


@spoiler
def remove_weight(path, name):
    state = torch.load(path, weights_only=True)
    del state["state_dict"][name]
    torch.save(state, path)


@spoiler
def set_first_number(path, number):
    """Set a number of the first weight."""
    first(lambda weight: weight.index_fill(0, torch.tensor([0]), number))(path)


def constants(**values):
    return change(config=lambda config: config | values)


@spoiler
def change_moments(path, function):
    """Call function({number of a parameter: its moments}) on the optimizer's state."""
    state = torch.load(path, weights_only=True)
    function(state["optimizer"]["state"])
    torch.save(state, path)


def flip_bit_of_weight(path):
    """Change one bit of one number, as a failing disk does it: the file still opens."""
    data = path.read_bytes()
    weight = torch.load(path, weights_only=True)["state_dict"]["bottleneck.conv.0.weight"]
    place = data.index(bytes(weight.untyped_storage().tolist()[:16]))
    path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])


BAD = [
    *rows(
        EVALUATE,
        LAST,
        {
            "checkpoint missing": (remove, MISSING),
            "checkpoint is a folder": (make_folder, MISSING),
            "checkpoint is a pipe": (make_pipe, MISSING),
            "checkpoint with a payload": (save({"state_dict": Payload()}), UNREADABLE),
            "payload of the older format": (
                save({"state_dict": Payload()}, _use_new_zipfile_serialization=False),
                UNREADABLE,
            ),
            "a pickle": (pickle_payload, UNREADABLE),
            "a whole model": (save(UNET(features=[4])), UNREADABLE),
            "a list": (save([1, 2]), rf"{NO_WEIGHTS} \(it is a list\); name another"),
            "a tensor": (save(torch.zeros(3)), NO_WEIGHTS),
            "weights of another kind of network": (
                save(torch.nn.Linear(2, 2).state_dict()),
                NO_WEIGHTS,
            ),
            "weights are a list": (change(state_dict=[1]), NO_WEIGHTS),
            "a weight's name is a number": (
                change(state_dict=lambda weights: weights | {7: torch.zeros(1)}),
                NO_WEIGHTS,
            ),
            "a weight is a number": (
                first(1.0),
                rf"not sound: {FIRST} is no plain tensor but float",
            ),
            "a weight is text": (
                set_weight("final_conv.weight", "x"),
                r"final_conv.weight is no plain tensor but str",
            ),
            "a weight of whole numbers": (
                first(lambda weight: weight.to(torch.int32)),
                rf"{FIRST} holds int32",
            ),
            "a weight of complex numbers": (
                first(lambda weight: weight.to(torch.complex64)),
                rf"{FIRST} holds complex64",
            ),
            "a weight of bools": (first(lambda weight: weight > 0), rf"{FIRST} holds bool"),
            "a sparse weight": (
                first(lambda weight: weight.to_sparse()),
                rf"is no plain tensor but sparse_coo|{UNREADABLE}",
            ),
            "a weight that is not a number": (set_first_number(NAN), NOT_FINITE),
            "a weight of 3 TB": (
                first(lambda _: torch.zeros(1).expand(10**6, 10**6)),
                r"claims the shape \(1000000, 1000000\) for 4 bytes",
            ),
            "a network of 5 TB": (
                first(lambda _: torch.zeros(10**6, 1, 1, 1)),
                r"is of another network",
            ),
            "a weight of two axes": (
                first(lambda weight: weight.flatten(1)),
                rf"is of another network: {FIRST}: \(4, 27\) in the checkpoint",
            ),
            "a weight without axes": (first(torch.tensor(1.0)), NO_WEIGHTS),
            "a weight of another size": (
                set_weight("downs.1.conv.0.weight", lambda weight: weight[:, :, :2]),
                r"downs.1.conv.0.weight: \(8, 4, 2, 3\) in the checkpoint",
            ),
            "a weight missing": (
                remove_weight("bottleneck.conv.3.weight"),
                r"bottleneck.conv.3.weight: missing",
            ),
            "a weight too many": (
                set_weight("extra.weight", torch.zeros(2)),
                r"extra.weight: \(2,\) in the checkpoint, missing",
            ),
            "levels that are no network's": (
                set_weight("downs.x.conv.0.weight", torch.zeros(2, 2, 3, 3)),
                NO_WEIGHTS,
            ),
            "its constants are a list": (
                change(config=[1]),
                r"'config' is \[1\] \(expected the constants\)",
            ),
            "its height is negative": (
                constants(IMAGE_HEIGHT=-5),
                r"was not written by train.py: IMAGE_HEIGHT is -5",
            ),
            "its width is huge": (constants(IMAGE_WIDTH=10**9), r"IMAGE_WIDTH is 1000000000"),
            "its height is text": (constants(IMAGE_HEIGHT="160"), r"IMAGE_HEIGHT is '160'"),
            "its mean is not a number": (constants(MEAN=[NAN]), r"MEAN is \[nan\]"),
            "its standard deviation is 0": (constants(STD=[0.0]), r"STD is \[0.0\]"),
            "its means are too many": (
                constants(MEAN=[0.0, 0.0]),
                r"MEAN: expected one value, or one for each of 3 channels, found 2",
            ),
            "its threshold is 2": (constants(THRESHOLD=2), r"THRESHOLD is 2"),
            "its masks are of an unknown kind": (
                constants(MASK_RESIZE="cubic"),
                r"MASK_RESIZE is 'cubic'",
            ),
            "its precision is unknown": (constants(PRECISION="fp4"), r"PRECISION is 'fp4'"),
        },
    ),
    *rows(
        RESUME,
        LAST,
        {
            "checkpoint missing, to resume": (
                remove,
                r"no checkpoint 'my_checkpoint.pth.tar' to resume from",
            ),
            "checkpoint empty": (write(b""), rf"{UNREADABLE} .*: best_checkpoint.pth.tar$"),
            "checkpoint is text": (write(b"weights"), GOOD_ONE),
            "checkpoint truncated": (cut(0.7), GOOD_ONE),
            "checkpoint with one changed bit": (flip_bit_of_weight, GOOD_ONE),
            "checkpoint with a payload, to resume": (change(history=[Payload()]), UNREADABLE),
            "a weight that is infinite": (set_first_number(INFINITE), NOT_FINITE),
            "its epoch is negative": (
                change(epoch=-1),
                r"'epoch' is -1 \(expected a whole number of epochs\)",
            ),
            "its epoch is text": (change(epoch="1"), r"'epoch' is '1'"),
            "its best Dice is not a number": (change(best=NAN), r"'best' is nan"),
            "its history is text": (change(history="x"), r"'history' is 'x'"),
            "its part of an epoch is incomplete": (change(part={"of": 4}), r"'part' is"),
            "its run is a number": (change(run=5), r"'run' is 5"),
            "its optimizer is another": (
                change_moments(
                    lambda moments: moments.update(
                        {0: {"momentum_buffer": torch.zeros(4, 3, 3, 3)}}
                    )
                ),
                NOT_VALID,
            ),
            "its optimizer is text": (change(optimizer="adam"), NOT_VALID),
            "its optimizer has other shapes": (
                change_moments(lambda moments: moments[0].update(exp_avg=torch.zeros(7))),
                rf"{NOT_VALID} .*exp_avg \(7,\)",
            ),
            "its optimizer lacks a value": (
                change_moments(lambda moments: moments[0].pop("exp_avg_sq")),
                NOT_VALID,
            ),
            "its optimizer is for more weights": (
                change_moments(lambda moments: moments.update({999: {"step": torch.tensor(1.0)}})),
                NOT_VALID,
            ),
            "its random state is too short": (
                change(random={"torch": torch.zeros(3, dtype=torch.uint8), "cuda": []}),
                NOT_VALID,
            ),
            "its random state is text": (change(random="x"), NOT_VALID),
        },
    ),
    *rows(
        (*RESUME, "--features", "4", "16"),
        LAST,
        {
            "its network is another than the constants'": (
                leave,
                r"trained with other FEATURES; to continue with it, add --features 4 8",
            ),
        },
    ),
]


@pytest.mark.parametrize("bad", BAD, ids=str)
def test_bad_checkpoints_are_named(bad, finished_run, tmp_path):
    check_answer(bad, finished_run, tmp_path / "work")


def test_bad_checkpoints_are_documented():
    assert documented_kinds(__file__) == len({bad.name for bad in BAD})
