"""Bad options on the command line, and constants in config.py that cannot be."""

import shlex

import pytest
from bad_input import EVALUATE, Bad, check_answer, documented_kinds, leave
from helpers import LAST, run_script

import config
from carvana import system

BIG = "--features 8192 8192 8192 8192 8192"

TRAIN = [  # options of train.py, message
    ("--learning-rate nan", r"--learning-rate: expected 1e-9..10.0, found nan"),
    ("--learning-rate inf", r"found inf"),
    ("--learning-rate -1", r"found -1"),
    ("--learning-rate 0", r"found 0"),
    ("--learning-rate 1e99", r"found 1e\+99"),
    ("--learning-rate fast", r"expected a number, found 'fast'"),
    ("--learning-rate ''", r"expected a number, found ''"),
    ("--learning-rate", r"argument --learning-rate: expected one argument"),
    ("--learning-rate 1 2", r"'2' belongs to no option"),
    ("--batch-size 0", r"expected 1..65536 images, found 0"),
    ("--batch-size 1e3", r"expected a whole number, found '1e3'"),
    (f"--batch-size {'9' * 400}", r"--batch-size: expected 1..65536 images"),
    (f"--batch-size {'9' * 5000}", r"--batch-size: expected a whole number"),
    ("--batch-size true", r"expected a whole number"),
    ("--num-epochs -3", r"--num-epochs: expected 0..100000, found -3"),
    ("--image-height -1", r"--image-height: expected 0..16384 pixels"),
    ("--image-width 99999", r"found 99999"),
    ("--features", r"--features: expected at least one argument"),
    ("--features 0", r"found 0"),
    ("--features a b", r"--features: expected a whole number, found 'a'"),
    ("--mean 0 0", r"--mean: expected one value, or one for each of 3"),
    ("--std 0", r"--std: expected"),
    ("--seed -1", r"--seed"),
    ("--threshold 1", r"--threshold"),
    ("--in-channels 129", r"--in-channels: expected 1\.\.128 channels, found 129"),
    ("--load-model maybe", r"expected true or false, found 'maybe'"),
    ("--mask-resize cubic", r"expected area \| nearest, found cubic"),
    ("--device tpu", r"--device: expected auto \| cuda"),
    ("--precision fp8", r"--precision"),
    ("--optimizer sgd", r"--optimizer: expected adam \| muon, found sgd"),
    ("--schedule cubic", r"--schedule"),
    ("--warmup 2", r"--warmup"),
    ("--checkpoint-minutes 0", r"--checkpoint-minutes"),
    ("--stop-at-dice 98", r"--stop-at-dice"),
    ("--preset huge", r"there is no preset huge; the nearest is"),
    ("--presets demo", r"there is no --presets; the nearest is --preset"),
    ("--lrn 0.1", r"there is no --lrn; the nearest is"),
    ("--lr 0.1", r"there is no --lr; use --learning-rate RATE$"),
    (
        "--epochs 5 --amp",
        r"no --epochs; use --num-epochs N; there is no --amp; use --precision bf16",
    ),
    ("-b 4", r"there is no -b; use --batch-size N"),
    ("--resume", r"there is no --resume; use --load-model true"),
    ("--img_size=512", r"there is no --img_size=512; use --image-height H --image-width W"),
    ("--data photos", r"use --train-img-dir, --train-mask-dir, --val-img-dir and --val-mask-dir"),
    ("--weights a.pth", r"use --init-weights FILE to start from it, or --load-model true"),
    ("--num-classes 3", r"use --classes NAME NAME ..., their names"),
    ("--classes 3", r"--classes: expected the classes' names, such as background road sky"),
    ("50", r"'50' belongs to no option"),
    ("--checkpoint-file ''", r"expected a file to write, found ''"),
    (
        "--checkpoint-file a --best-checkpoint-file ./a",
        r"are both 'a'; one would overwrite the other",
    ),
    (
        BIG,
        r"M parameters and batches of 16 images of 160x240 take at least [\d,]+ GB, but this "
        r"machine has [\d,]+ GB; make FEATURES",
    ),
    ("--object-scale 1.2 0.35", r"--object-scale: expected two shares, the smaller one first"),
    ("--object-scale 0.5", r"--object-scale: expected two shares, .*, found 0.5"),
    (
        "--class-weights median",
        r"--class-weights: expected none \| median_frequency \| inverse_sqrt, or a list of "
        r"0.001..10000.0, found \['median'\]",
    ),
    ("--classes a b --class-weights 1 0", r"or a list of 0.001..10000.0, found \[1.0, 0.0\]"),
    ("--classes a b --class-weights 1 nan", r"found \[1.0, nan\]"),
    ("--classes a b --class-weights 1 none", r"found \[1.0, 'none'\]"),
    ("--class-weight 3", r"no --class-weight; use --class-weights W W ..., one a class"),
    ("--jpeg-quality 0", r"--jpeg-quality: expected 1..100, found 0"),
    (
        "--batch-size 65536 --image-height 16384 --image-width 16384",
        r"take at least [\d,]+ GB",
    ),
]
EVALUATION = [  # name, options of evaluate.py, message
    ("--batch-size 0", "--batch-size 0", r"--batch-size: expected 1..65536 images, found 0"),
    (
        "--batch-size many",
        "--batch-size many",
        r"--batch-size: expected a whole number, found 'many'",
    ),
    (
        "--json nowhere/a.json",
        "--json nowhere/a.json",
        r"no folder 'nowhere' to write --json",
    ),
    ("--json on a folder", "--json data", r"data cannot be written \(Is a directory\)"),
    ("--images nowhere", "--images nowhere", r"no folder 'nowhere'"),
]


def bad_option(name, command, text, message):
    return Bad(name, LAST, leave, (*command, *shlex.split(text)), message)


BAD = [
    *(bad_option(text, ("train.py",), text, message) for text, message in TRAIN),
    *(bad_option(f"evaluate {name}", EVALUATE, *row) for name, *row in EVALUATION),
]


@pytest.mark.parametrize("bad", BAD, ids=str)
def test_bad_options_are_named(bad, finished_run, tmp_path):
    if "GB" in bad.message and system.total_memory() is None:
        pytest.skip("this system does not tell how much memory there is")
    check_answer(bad, finished_run, tmp_path / "work")


def test_bad_options_are_documented():
    assert documented_kinds(__file__) == len({bad.name for bad in BAD})


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("LEARNING_RATE", "fast", "expected a number"),
        ("LEARNING_RATE", None, "expected a number"),
        ("BATCH_SIZE", 16.5, "expected a whole number"),
        ("BATCH_SIZE", True, "expected a whole number"),
        ("FEATURES", 64, "expected a list"),
        ("FEATURES", [], "expected a list"),
        ("FEATURES", [64, "a"], "expected a whole number"),
        ("LOAD_MODEL", "no", "expected true or false"),
        ("STD", [float("nan")], "expected"),
        ("TRAIN_IMG_DIR", 5, "expected a text"),
        ("IN_CHANNELS", 0, "expected 1..128 channels"),
    ],
)
def test_bad_constants_in_config_are_named(tmp_path, monkeypatch, name, value, message):
    monkeypatch.setattr(config, name, value)
    stderr = run_script(tmp_path, "train.py", status=2).stderr.strip()
    assert stderr.startswith(f"error: {name}: ")
    assert message in stderr
    assert "\n" not in stderr
    assert not list(tmp_path.iterdir())
