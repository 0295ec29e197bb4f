"""Long campaigns against training as a command: never a bit is lost.

It is killed, stopped and out of space at random moments. pytest -m slow tests/test_campaigns.py -s
prints what happened to each run. KILLS, TERMS and FULL set the counts.
"""

import contextlib
import functools
import os
import random
import re
import resource
import signal
import subprocess
import time

import pytest
from helpers import BEST, LAST, is_same, learned, script_command, tiny_options, write_pairs

from carvana.checkpoint import read_checkpoint

pytestmark = pytest.mark.slow
KILLS = int(os.environ.get("KILLS", 100))
TERMS = int(os.environ.get("TERMS", 20))
FULL = int(os.environ.get("FULL", 20))
CONSTANTS = {
    "IMAGE_HEIGHT": 48,
    "IMAGE_WIDTH": 72,
    "FEATURES": [16, 32],
    "BATCH_SIZE": 1,
    "LEARNING_RATE": 0.001,
    "NUM_EPOCHS": 3,
    "CHECKPOINT_MINUTES": 0.001,
    "SAVE_IMAGES_MAX": 1,
}
DISK_FULL = "ree some space"
# What a loader's worker prints when the process that it was handing a batch to is killed.
LOST_PARENT = re.compile(
    r"Traceback \(most recent call last\):\n.*resource_sharer.*\n(  .*\n)*EOFError\n"
)


@pytest.fixture
def work(tmp_path):
    """A folder with 40 training and 4 validation pairs."""
    data = tmp_path / "data"
    write_pairs(data / "train_images", data / "train_masks", cars=20)
    write_pairs(data / "val_images", data / "val_masks", cars=2, first=100)
    return tmp_path


def start(folder, more=(), preexec_fn=None, **changes):
    """Start training as a command, and wait until its first batch is about to be read."""
    process = subprocess.Popen(
        script_command("train.py", *tiny_options(**CONSTANTS, **changes), *more),
        cwd=folder,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=preexec_fn,
    )
    for line in process.stdout:
        if "training and" in line:
            break
    return process


def finish(process):
    """Wait for the end of a process; return what it wrote to stderr, without a traceback."""
    _, stderr = process.communicate(timeout=120)
    own = stderr
    if process.returncode == -signal.SIGKILL:
        own = LOST_PARENT.sub("", stderr)
    assert "Traceback" not in own, stderr
    return stderr


def results(folder):
    """Return what a finished run has learned, and the weights of its best epoch."""
    weights = read_checkpoint(folder / BEST)["state_dict"]
    return learned(folder / LAST) | {"weights of the best": weights}


def progress(folder):
    """Return (epochs, images of the next) in the last checkpoint, which must be whole.

    None where there is none yet.
    """
    if not (folder / LAST).exists():
        return None
    state = read_checkpoint(folder / LAST)
    if (folder / BEST).exists():
        read_checkpoint(folder / BEST)
    return state["epoch"], state["part"]["images"]


@pytest.fixture
def straight(work):
    """What a run that nothing happens to ends with, and its seconds from the first batch on."""
    process = start(work)
    started = time.time()
    stderr = finish(process)
    assert process.returncode == 0, stderr
    return results(work), time.time() - started


def remove_checkpoints(folder):
    for path in folder.glob("*.pth.tar*"):
        path.unlink()


@pytest.mark.parametrize("number, count", [(signal.SIGKILL, KILLS), (signal.SIGTERM, TERMS)])
def test_training_ended_at_random_moments_loses_nothing(work, straight, number, count):
    expected, seconds = straight
    rng = random.Random(number)
    ended = 0
    finished = 0
    unfinished_files = 0
    before = None
    remove_checkpoints(work)
    while ended < count or before is not None:
        resumes = before is not None
        process = start(work, NUM_WORKERS=rng.choice([0, 0, 0, 1]), LOAD_MODEL=resumes)
        time.sleep(rng.uniform(0, 0.7 * seconds))
        process.send_signal(number)
        stderr = finish(process)
        after = progress(work)
        assert (after or (0, 0)) >= (before or (0, 0)), "went back"
        if process.returncode == 0:
            assert is_same(expected, results(work))
            finished += 1
            before = None
            remove_checkpoints(work)
            continue
        # Before the first step there is nothing to save, and SIGTERM ends at once.
        stops = number == signal.SIGTERM and "once more" in stderr
        assert process.returncode == (143 if stops else -number), stderr
        assert process.returncode < 0 or after is not None, stderr
        ended += 1
        print(f"{number.name} {ended}: {before} -> {after}")
        before = after
        unfinished_files += len(list(work.glob("*.tmp")))
    print(
        f"{ended} x {number.name}, {finished} runs finished with the bits of the run never ended, "
        f"{unfinished_files} half-written files were left beside good ones"
    )
    assert finished


def limit_files(limit):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))  # bytes


def train_until(folder, seconds):
    """Train for so many seconds from the first batch on; return the progress then."""
    remove_checkpoints(folder)
    process = start(folder)
    time.sleep(seconds)
    process.terminate()
    finish(process)
    return progress(folder)


def resume_and_compare(folder, expected):
    process = start(folder, LOAD_MODEL=True)
    stderr = finish(process)
    assert process.returncode == 0, stderr
    assert is_same(expected, results(folder))


def test_training_on_a_full_disk_loses_nothing(work, straight):
    """A limit on the size of files stands for a full disk: writes fail in the middle of a file."""
    expected, seconds = straight
    size = (work / LAST).stat().st_size
    rng = random.Random(0)
    hits = 0
    while hits < FULL:
        before = train_until(work, rng.uniform(0.1, 0.7) * seconds)
        limit = rng.randrange(1000, size)
        if before is None:
            continue
        content = (work / LAST).read_bytes()
        limit_size = functools.partial(limit_files, limit)
        process = start(work, LOAD_MODEL=True, preexec_fn=limit_size)
        stderr = finish(process)
        if process.returncode == 0:  # nothing was left to write that is so large
            assert is_same(expected, results(work))
            continue
        lines = stderr.replace("\r", "\n").splitlines()
        (message,) = [line for line in lines if line.startswith("error: ")]
        assert process.returncode == 2
        assert DISK_FULL in message
        assert not list(work.glob("*.tmp"))
        assert not list(work.glob("saved_images/.*"))
        assert progress(work) >= before
        assert progress(work) != before or (work / LAST).read_bytes() == content
        resume_and_compare(work, expected)
        hits += 1
        print(f"limit {limit} of {size} bytes at {before}: {message}")


@contextlib.contextmanager
def mounted(folder, size):
    """Mount a file system of so many bytes on a folder."""
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder]
    if subprocess.run(mount, stderr=subprocess.PIPE).returncode:
        pytest.skip("only root may mount a file system")
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


def test_training_on_a_small_disk_loses_nothing(work, straight):
    """The same with a file system that holds one checkpoint, two, or less than one."""
    expected, _ = straight
    size = (work / LAST).stat().st_size
    rng = random.Random(1)
    disk = work / "disk"
    disk.mkdir()
    on_disk = ("--checkpoint-file", f"disk/{LAST}", "--best-checkpoint-file", f"disk/{BEST}")
    full = 0
    for _ in range(FULL // 2):
        room = int(size * rng.uniform(0.3, 3.3)) // 4096 * 4096
        with mounted(disk, room):
            process = start(work, on_disk)
            stderr = finish(process)
            before = progress(disk)
            assert process.returncode in (0, 2), stderr
            assert process.returncode == 0 or DISK_FULL in stderr, stderr
            full += process.returncode == 2
            outcome = stderr.splitlines()[-1] if process.returncode else ""
            print(f"{room / size:.1f} checkpoints' room: {before}; {outcome}")
            subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
            process = start(work, on_disk, LOAD_MODEL=before is not None)
            stderr = finish(process)
            assert process.returncode == 0, stderr
            assert is_same(expected, results(disk))
    assert full
