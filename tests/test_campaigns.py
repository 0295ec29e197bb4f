"""Long campaigns against training as a command: killed, ended and out of space at random moments, and never a bit lost.

pytest -m slow tests/test_campaigns.py -s prints what happened to each run. KILLS, TERMS and FULL set the counts."""

import os
import random
import resource
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT, write_pairs
from test_interrupts import LEARNT
from test_train import same

from checkpoint import read_checkpoint

pytestmark = pytest.mark.slow
KILLS, TERMS, FULL = (
    int(os.environ.get(name, default))
    for name, default in (("KILLS", 100), ("TERMS", 20), ("FULL", 20))
)
LAST, BEST = "my_checkpoint.pth.tar", "best_checkpoint.pth.tar"
WORDS = [
    "--image-height",
    48,
    "--image-width",
    72,
    "--features",
    16,
    32,
    "--batch-size",
    1,
    "--learning-rate",
    0.001,
    "--precision",
    "fp32",
    "--num-epochs",
    3,
    "--checkpoint-minutes",
    0.001,
    "--save-images-max",
    1,
    "--num-workers",
]


@pytest.fixture
def data(tmp_path):
    write_pairs(tmp_path / "data/train_images", tmp_path / "data/train_masks", cars=20)
    write_pairs(tmp_path / "data/val_images", tmp_path / "data/val_masks", cars=2, first=100)
    return tmp_path


def start(data, workers=0, load=False, more=(), **how):
    """Training as a command, from where its first batch is about to be read -> (process, seconds since 1970)."""
    words = [*WORDS, workers, "--load-model", "true" if load else "false", *more]
    process = subprocess.Popen(
        [sys.executable, ROOT / "train.py", *map(str, words)],
        cwd=data,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **how,
    )
    for line in process.stdout:
        if "training and" in line:
            break
    return process, time.time()


def learnt(folder):
    """What the weights of a finished run and everything else that is learnt are."""
    state = read_checkpoint(folder / LAST)
    return {name: state[name] for name in LEARNT} | {
        "scores": [(row["dice"], row["full_dice"], row["val_loss"]) for row in state["history"]],
        "weights of the best": read_checkpoint(folder / BEST)["state_dict"],
    }


def progress(data):
    """(epochs, images of the next) in the last checkpoint, None where there is none yet; it must be whole."""
    if not (data / LAST).exists():
        return None
    state = read_checkpoint(data / LAST)
    if (data / BEST).exists():
        read_checkpoint(data / BEST)
    return state["epoch"], state["part"]["images"]


@pytest.fixture
def straight(data):
    """What a run that nothing happens to ends with, and the seconds it takes from its first batch on."""
    process, started = start(data)
    _, err = process.communicate()
    assert process.returncode == 0, err
    return learnt(data), time.time() - started


def anew(data):
    for path in data.glob("*.pth.tar*"):
        path.unlink()


@pytest.mark.parametrize("number, count", [(signal.SIGKILL, KILLS), (signal.SIGTERM, TERMS)])
def test_ended_at_random_moments(data, straight, number, count):
    expected, seconds = straight
    rng, hit, finished, before, unfinished = random.Random(number), 0, 0, None, 0
    anew(data)
    while hit < count or before is not None:
        process, _ = start(data, workers=rng.choice([0, 0, 0, 1]), load=before is not None)
        time.sleep(rng.uniform(0, 0.7 * seconds))
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
        after = progress(data)
        assert (after or (0, 0)) >= (before or (0, 0)), "went back"
        if process.returncode == 0:
            assert same(expected, learnt(data))
            finished, before = finished + 1, None
            anew(data)
        else:
            # before the first step there is nothing to save, and SIGTERM ends at once
            assert (
                process.returncode
                == (143 if number == signal.SIGTERM and "once more" in err else -number)
                and "Traceback" not in err
            ), err
            assert process.returncode < 0 or after is not None, err
            print(f"{number.name} {hit + 1}: {before} -> {after}")
            hit, before, unfinished = hit + 1, after, unfinished + len(list(data.glob("*.tmp")))
    print(
        f"{hit} x {number.name}, {finished} runs finished with the bits of the run never ended, {unfinished} half-written files were left beside good ones"
    )
    assert finished


def test_full_disk_at_random_moments(data, straight):
    """A limit on the size of a file stands for a disk that is full: each write fails in the middle of a file."""
    expected, seconds = straight
    size, rng, hit = (data / LAST).stat().st_size, random.Random(0), 0
    while hit < FULL:
        anew(data)
        process, _ = start(data)
        time.sleep(rng.uniform(0.1, 0.7) * seconds)
        process.terminate()
        process.communicate()
        before, limit = progress(data), rng.randrange(1000, size)
        content = (data / LAST).read_bytes() if before else None
        if before is None:
            continue
        process, _ = start(
            data,
            load=True,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        )
        _, err = process.communicate(timeout=120)
        if process.returncode == 0:  # nothing was left to write that is so large
            assert same(expected, learnt(data))
            continue
        said = [line for line in err.replace("\r", "\n").splitlines() if line.startswith("error: ")]
        assert (
            process.returncode == 2
            and "Traceback" not in err
            and len(said) == 1
            and "ree some space" in said[0]
        ), err
        assert not list(data.glob("*.tmp")) and not list(data.glob("saved_images/.*"))
        assert progress(data) >= before and (
            progress(data) != before or (data / LAST).read_bytes() == content
        )
        process, _ = start(data, load=True)
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0 and same(expected, learnt(data)), err
        hit += 1
        print(f"limit {limit} of {size} bytes at {before}: {said[0]}")


def test_a_small_disk(data, straight):
    """The same with a file system of a few megabytes, which holds one checkpoint, two, or less than one."""
    expected, _ = straight
    size, rng, disk, full = (data / LAST).stat().st_size, random.Random(1), data / "disk", 0
    disk.mkdir()
    on_disk = ["--checkpoint-file", f"disk/{LAST}", "--best-checkpoint-file", f"disk/{BEST}"]
    for _ in range(FULL // 2):
        room = int(size * rng.uniform(0.3, 3.3)) // 4096 * 4096
        if subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={room}", "tmpfs", disk], stderr=subprocess.PIPE
        ).returncode:
            pytest.skip("only root may mount a file system")
        try:
            process, _ = start(data, more=on_disk)
            _, err = process.communicate(timeout=120)
            before = progress(disk)
            assert (
                process.returncode == 2
                and "Traceback" not in err
                and "ree some space" in err
                or process.returncode == 0
            ), err
            full += process.returncode == 2
            print(
                f"{room / size:.1f} checkpoints' room: {before}; {err.splitlines()[-1] if process.returncode else ''}"
            )
            subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
            process, _ = start(data, load=before is not None, more=on_disk)
            _, err = process.communicate(timeout=120)
            assert process.returncode == 0 and same(expected, learnt(disk)), err
        finally:
            subprocess.run(["umount", disk], check=True)
    assert full
