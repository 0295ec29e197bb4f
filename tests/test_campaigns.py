"""Long campaigns against training as a command: never a bit is lost.

It is killed, stopped and out of space at random moments, its processes are one by one or all
together, and it is started twice. pytest -m slow tests/test_campaigns.py -s prints what happened
to each run. KILLS, TERMS, FULL, EVENTS and TOGETHER set the counts.
"""

import collections
import contextlib
import functools
import os
import random
import re
import signal
import subprocess
import time

import psutil
import pytest
from helpers import BEST, LAST, is_same, learned, script_command, tiny_options, write_pairs

from carvana.checkpoint import read_checkpoint

resource = pytest.importorskip("resource")  # not on Windows
pytestmark = pytest.mark.slow
KILLS = int(os.environ.get("KILLS", 100))
TERMS = int(os.environ.get("TERMS", 20))
FULL = int(os.environ.get("FULL", 20))
EVENTS = int(os.environ.get("EVENTS", 100))  # for one process, and again under torchrun
TOGETHER = int(os.environ.get("TOGETHER", 20))
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


# ---------------------------------------------------------------- any of a run's processes


EPOCHS = 8  # of runs whose processes get signals


class Run:
    """A training as a command, with all its processes: launcher, ranks and loaders' workers."""

    def __init__(self, folder, processes=0, **changes):
        self.folder = folder
        self.output = folder / "output.txt"
        options = tiny_options(**CONSTANTS | changes)
        with open(self.output, "w") as output:
            self.process = subprocess.Popen(
                script_command("train.py", *options, processes=processes),
                cwd=folder,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def text(self):
        return self.output.read_text(errors="replace").replace("\r", "\n")

    def wait_for(self, phrase):
        """Wait until a phrase is printed, or the launcher has ended."""
        while phrase not in self.text() and self.process.poll() is None:
            time.sleep(0.02)

    def members(self):
        """Return all processes of the run that are alive; the first one is the command's own."""
        try:
            command = psutil.Process(self.process.pid)
            return [command, *command.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def finish(self, members):
        """Wait until all of these processes have ended; return the seconds that took."""
        started = time.time()
        self.process.wait(120)
        _, alive = psutil.wait_procs(members, timeout=120)
        assert not alive, self.text()
        return time.time() - started


def send(number, members):
    for process in members:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def choose_members(rng, number, members):
    """Return which of a run's processes get a signal: one for SIGKILL, else any, often all."""
    if number == signal.SIGKILL:
        return [rng.choice(members)]
    if rng.random() < 0.5:
        return members
    return rng.sample(members, rng.randint(1, len(members)))


def images_done(text):
    """Return (epochs, images of the next) that a run says it has stopped at, if it does."""
    stopped = re.search(r"stopped after (\d+) of \d+ images of epoch (\d+)", text)
    return stopped and (int(stopped[2]) - 1, int(stopped[1]))


@pytest.mark.parametrize("processes", [0, 2], ids=["one process", "torchrun"])
def test_signals_to_any_processes_of_a_run_lose_nothing(work, processes):
    sizes = {"BATCH_SIZE": 2, "NUM_EPOCHS": EPOCHS, "GALLERY_MAX": 0}
    straight = Run(work, processes, **sizes)
    straight.finish(straight.members())
    expected = results(work)
    remove_checkpoints(work)
    rng = random.Random(processes)
    before = None
    counts = collections.Counter()
    slowest = 0.0
    while counts["events"] < EVENTS or before is not None:
        changes = sizes | {
            "NUM_WORKERS": rng.choice([0, 1, 2]),
            "CHECKPOINT_MINUTES": rng.choice([10.0, 0.001]),
            "LOAD_MODEL": before is not None,
        }
        run = Run(work, processes, **changes)
        run.wait_for(rng.choice(["training and", "an epoch, "]))
        time.sleep(rng.uniform(0, 1))
        members = run.members()
        number = rng.choice([signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL])
        chosen = choose_members(rng, number, members) if members else []
        send(number, chosen)
        seconds = run.finish(members)
        after = progress(work)
        text = run.text()
        assert (after or (0, 0)) >= (before or (0, 0)), f"went back\n{text}"
        stopped = images_done(text)
        if after is not None and after[0] == EPOCHS:
            assert is_same(expected, results(work)), text
            counts["finished"] += 1
            after = None
            remove_checkpoints(work)
        elif stopped:
            assert stopped == after, text
            counts["stopped with a checkpoint"] += 1
            slowest = max(slowest, seconds)
        elif number == signal.SIGKILL:
            counts["killed"] += 1
            if "exited unexpectedly" in text:
                counts["of them workers, with a checkpoint"] += 1
                assert after is not None and "cannot be read" not in text, text
        else:
            # Nothing is learned before the first step, where signals end a process at once.
            assert "an epoch, " not in text, f"{number.name} to {len(chosen)}\n{text}"
            counts["before the first step"] += 1
        counts["events"] += bool(chosen)
        print(f"{number.name} to {len(chosen)} of {len(members)}: {before} -> {after}")
        before = after
    print(f"{dict(counts)}; the slowest stop took {slowest:.1f} s")
    assert counts["finished"]


def test_runs_started_at_once_in_one_folder_lose_nothing(work):
    rng = random.Random(0)
    straight = Run(work)
    straight.finish(straight.members())
    expected = results(work)
    refused = 0
    for _ in range(TOGETHER):
        remove_checkpoints(work)
        folder_runs = []
        for number in range(rng.choice([2, 3])):
            run = Run(work)
            run.output = run.output.rename(work / f"output{number}.txt")
            folder_runs.append(run)
            time.sleep(rng.choice([0, 0.1, 1]))
        for run in folder_runs:
            run.finish(run.members())
        statuses = sorted(run.process.returncode for run in folder_runs)
        assert statuses == [0] + [2] * (len(folder_runs) - 1)
        for run in folder_runs:
            if run.process.returncode:
                assert "another training writes my_checkpoint.pth.tar" in run.text()
                assert "Traceback" not in run.text()
                refused += 1
        assert is_same(expected, results(work))
        assert not list(work.glob("*.tmp"))
        assert not list(work.glob(".*.lock"))
    print(f"{TOGETHER} times runs at once: one finished with the same bits, {refused} refused")
