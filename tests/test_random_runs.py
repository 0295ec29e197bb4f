"""Trainings with options drawn at random, stopped anywhere and resumed, end with the same bits.

COMBINATIONS=300 pytest -m slow tests/test_random_runs.py draws as many; the default suite draws
a few.
"""

import os
import random
import signal

import pytest
from helpers import BEST, LAST, is_same, learned

import carvana.batchnorm
import carvana.evaluation
import train
from carvana.checkpoint import read_checkpoint

COMBINATIONS = int(os.environ.get("COMBINATIONS", 300))
FIRST_SLOW = 1000  # seed of the first of them
CHOICES = {
    "OPTIMIZER": ["adam", "muon"],
    "PRECISION": ["fp32", "fp16", "bf16"],
    "EMA": [0.0, 0.0, 0.9],
    "ACCUMULATE": [1, 1, 2, 3, 7],
    "CLIP_GRADIENT": [0.0, 1.0],
    "LOSS": ["bce", "dice", "bce_dice", "edge"],
    "POSITIVE_WEIGHT": [1.0, 3.0],
    "WEIGHT_DECAY": [0.0, 0.01],
    "LEARNING_RATE": [0.01, 0.001],
    "SCHEDULE": ["constant", "linear", "quadratic", "cosine"],
    "WARMUP": [0.0, 0.1, 0.5],
    "RESOLUTIONS": [[1.0], [0.5, 1.0], [0.3, 0.6, 1.0]],
    "BATCHNORM_IMAGES": [0, 5, 128],
    "PATIENCE": [0, 1, 2],
    "STOP_AT_DICE": [0.0, 0.3, 0.6, 0.9],
    "LOOKS_PER_EPOCH": [1, 3, 5],
    "FULL_RES_EVERY": [0, 1, 2],
    "NUM_EPOCHS": [1, 2, 3],
    "BATCH_SIZE": [2, 3, 5, 12],
    "NUM_WORKERS": [0, 0, 1, 2],
    "CACHE": [True, False],
    "CHECKPOINT_MINUTES": [10.0, 1e-9],
    "UNSHUFFLE": [1, 2],
    "IN_CHANNELS": [1, 3],
    "MASK_RESIZE": ["area", "nearest"],
    "ROTATE": [0.0, 35.0],
    "SCALE_JITTER": [0.0, 0.2],
    "COLOR_JITTER": [0.0, 0.2],
    "HORIZONTAL_FLIP": [0.0, 0.5],
    "SEED": [1, 2],
}
MAX_STOPS = 4


class SignalAtBatch:
    """A place that every batch passes; at its n-th one, of training or of evaluation, a signal."""

    def __init__(self, function):
        self.function = function
        self.passed = 0
        self.signal_at = None  # None: no signal

    def __call__(self, *args):
        self.passed += 1
        # Before the first step a signal ends the process.
        handled = signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
        if self.signal_at is not None and self.passed >= self.signal_at and handled:
            self.signal_at = None
            signal.raise_signal(signal.SIGTERM)
        return self.function(*args)

    def start(self, signal_at=None):
        self.passed = 0
        self.signal_at = signal_at


@pytest.fixture
def batches(monkeypatch):
    counter = SignalAtBatch(train.to_device)
    for module in (train, carvana.evaluation, carvana.batchnorm):
        monkeypatch.setattr(module, "to_device", counter)
    return counter


def draw_options(rng):
    return {name: rng.choice(values) for name, values in CHOICES.items()}


def result():
    """Return what a run has learned, and what its best epoch had."""
    best = read_checkpoint(BEST)["state_dict"]
    return learned(LAST) | {"weights of the best": best}


def assert_interruptions_change_nothing(seed, settings, batches, folder):
    rng = random.Random(seed)
    options = draw_options(rng)
    batches.start()
    train.main(settings(**options))
    straight = result()
    stops = [rng.randint(1, batches.passed) for _ in range(rng.randint(1, MAX_STOPS))]
    for path in folder.glob("*.pth.tar"):
        path.unlink()
    for stop in stops:
        batches.start(stop)
        try:
            train.main(settings(LOAD_MODEL=(folder / LAST).exists(), **options))
            break
        except SystemExit as exit:
            assert exit.code == 128 + signal.SIGTERM
    else:
        batches.start()
        train.main(settings(LOAD_MODEL=True, **options))
    assert is_same(straight, result()), (seed, options, stops)


@pytest.mark.parametrize("seed", range(6))
def test_interruptions_change_no_bit_whatever_the_options(seed, settings, data, batches, no_report):
    assert_interruptions_change_nothing(seed, settings, batches, data)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(FIRST_SLOW, FIRST_SLOW + COMBINATIONS))
def test_interruptions_change_no_bit_whatever_the_options_in_hundreds(
    seed, settings, data, batches, no_report
):
    assert_interruptions_change_nothing(seed, settings, batches, data)
