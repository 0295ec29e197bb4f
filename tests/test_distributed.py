"""Several processes under torchrun: gloo on the CPU."""

import contextlib
import csv
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT, write_pairs
from test_inference import OURS, write_model

import utils
from dataset import EpochSampler

WORDS = [
    "--image-height",
    "32",
    "--image-width",
    "48",
    "--features",
    "4",
    "8",
    "--learning-rate",
    "0.01",
    "--batch-size",
    "4",
    "--num-workers",
    "0",
    "--precision",
    "fp32",
    "--rotate",
    "10",
    "--gallery-max",
    "0",
]


def launch(processes, script, *words, cwd, status=0, launcher=(), **how):
    """A script under torchrun -> the finished launcher."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--nproc-per-node",
            str(processes),
            *launcher,
            ROOT / script,
            *map(str, words),
        ],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
        **how,
    )
    assert (done.returncode == 0) == (status == 0), (
        f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    )
    return done


def test_every_batch_is_dealt_out():
    """All processes take as many batches; together they hold each index once, and fillers in the last batch only."""
    for length in (1, 7, 8, 9, 24):
        for ranks in (1, 2, 4):
            samplers = [EpochSampler(length, 3, 4, rank, ranks) for rank in range(ranks)]
            parts = [list(sampler) for sampler in samplers]
            own = 4 // ranks
            batches = [[part[at : at + own] for at in range(0, len(part), own)] for part in parts]
            assert len({len(part) for part in batches}) == 1
            dealt = [key for part in parts for key in part]
            assert {index for _, index in dealt} == set(range(length)) and len(
                dealt
            ) - length == max(0, ranks - (length % 4 or 4))
            assert all(len(part) <= len(samplers[0]) for part in parts)


STEPS = """
import sys
import torch
from torch import nn
import parallel, train, utils
from dataset import train_transform, val_transform
from interrupts import Stretch
from model import UNET
torch.manual_seed(0)
torch.set_num_threads(1)
with parallel.together(torch.device("cpu")) as device:
    loader, _ = utils.get_loaders("data/train_images", "data/train_masks", "data/val_images", "data/val_masks", 4, train_transform(), val_transform(), 0, size=(32, 48))
    model = UNET(features=[4, 8])
    model.config = {"PRECISION": "fp32"}
    for module in model.modules():  # its statistics are what tells processes' parts of a batch from the whole
        if isinstance(module, nn.BatchNorm2d):
            module.train = lambda mode=True, module=module: module
            module.training = False
    wrapped = parallel.wrapped(model, device)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for epoch in range(2):
        loss = train.train_fn(Stretch(loader, epoch, 0), wrapped, optimizer, nn.BCEWithLogitsLoss(), torch.amp.GradScaler("cpu", enabled=False))
    if parallel.FIRST:
        torch.save({"loss": loss, "weights": model.state_dict()}, sys.argv[1])
"""


def test_steps_are_those_of_one_process(tmp_path):
    """But for BatchNorm and rounding: 13 images in batches of four, the last of one image that the second process has no part of."""
    write_pairs(tmp_path / "data/train_images", tmp_path / "data/train_masks", cars=13, angles=1)
    write_pairs(tmp_path / "data/val_images", tmp_path / "data/val_masks", cars=1, first=100)
    (tmp_path / "steps.py").write_text(STEPS)
    for processes in (1, 2):
        launch(
            processes,
            tmp_path / "steps.py",
            f"{processes}.pt",
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
    one, two = (torch.load(tmp_path / f"{processes}.pt", weights_only=True) for processes in (1, 2))
    assert len(one["weights"]) > 10 and two["loss"] == pytest.approx(one["loss"], abs=1e-6)
    for name, weight in one["weights"].items():
        torch.testing.assert_close(two["weights"][name], weight, rtol=1e-4, atol=1e-6)


def test_scores_are_exactly_those_of_one_process(data):
    write_model(data / "best_checkpoint.pth.tar")
    write_pairs(
        data / "data/val_images", data / "data/val_masks", cars=1, angles=1, first=200
    )  # seven: no multiple of two
    found = []
    for processes in (1, 2):
        launch(
            processes,
            "evaluate.py",
            *OURS,
            "--json",
            f"{processes}.json",
            "--batch-size",
            2,
            cwd=data,
        )
        found.append(json.loads((data / f"{processes}.json").read_text()))
    assert found[0] == found[1] and len(found[0]["images"]) == 7


def history(folder):
    return utils.read_checkpoint(folder / "my_checkpoint.pth.tar")["history"]


@pytest.mark.slow
def test_resuming_with_another_number_of_processes(data):
    for epochs, processes in ((1, 1), (2, 2), (3, 1)):
        done = launch(
            processes,
            "train.py",
            *WORDS,
            "--num-epochs",
            epochs,
            "--load-model",
            str(epochs > 1).lower(),
            cwd=data,
        )
        assert done.stdout.count(f"epoch {epochs}/{epochs}") == 1 and done.stdout.count(
            "Dice score"
        ) == (2 if epochs > 1 else 1)
    launch(
        1,
        "train.py",
        *WORDS,
        "--num-epochs",
        3,
        "--checkpoint-file",
        "alone.pth.tar",
        "--best-checkpoint-file",
        "alone_best.pth.tar",
        cwd=data,
    )
    alone = utils.read_checkpoint(data / "alone.pth.tar")["history"]
    assert [row["epoch"] for row in history(data)] == [1, 2, 3]
    assert [row["train_loss"] for row in history(data)] == pytest.approx(
        [row["train_loss"] for row in alone], rel=0.05
    )


def children(process):
    return [
        int(pid)
        for pid in subprocess.run(
            ["pgrep", "-P", str(process.pid)], capture_output=True, text=True
        ).stdout.split()
    ]


def kill_one(process):
    """SIGKILL the second of a launcher's training processes once it has trained for a while."""
    second = next(
        pid
        for pid in children(process)
        if b"\0RANK=1\0" in Path(f"/proc/{pid}/environ").read_bytes()
    )
    os.kill(second, signal.SIGKILL)


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="finds processes by /proc")
@pytest.mark.parametrize("restarts", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_process_that_is_killed(data, restarts):
    """The others end; the checkpoint is good; with restarts the launcher goes on from it."""
    words = [
        *WORDS,
        "--num-epochs",
        "300" if restarts == 0 else "12",
        "--checkpoint-minutes",
        "0.02",
    ]
    with subprocess.Popen(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--nproc-per-node",
            "2",
            "--max-restarts",
            str(restarts),
            ROOT / "train.py",
            *words,
        ],
        cwd=data,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        for line in process.stdout:
            if line.startswith("epoch 3/"):
                break
        kill_one(process)
        killed = time.monotonic()
        out, err = process.communicate(timeout=200)
    rows = history(data)
    assert [row["epoch"] for row in rows] == list(range(1, len(rows) + 1)) and len(rows) >= 2
    if restarts:
        assert process.returncode == 0, f"{out}\n{err}"
        assert len(rows) == 12 and "epochs done" in out and "epoch 1/" not in out
    else:
        assert process.returncode != 0 and time.monotonic() - killed < 60 and len(rows) < 300
        assert "another process of this run ended" in err


RESTARTS = """
import os, signal, time
import torch
import parallel
with parallel.together(torch.device("cpu")):
    together = parallel.summed(torch.ones(1)).item()
    if os.environ["TORCHELASTIC_RESTART_COUNT"] < "3":
        os.kill(os.getpid(), signal.SIGKILL) if parallel.RANK == 1 else time.sleep(60)
    print("together:", together)
"""


def test_after_a_restart_the_processes_find_each_other(tmp_path):
    """And not those before it, whose addresses the launcher still has."""
    (tmp_path / "restarts.py").write_text(RESTARTS)
    done = launch(
        2,
        tmp_path / "restarts.py",
        cwd=tmp_path,
        launcher=["--max-restarts", "3"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.stdout == "together: 2.0\n"


def test_each_photograph_once(tmp_path):
    """Three processes, and what an interrupted run of several left beside the csv."""
    write_pairs(tmp_path / "photos", tmp_path / "masks", cars=5, angles=2)
    write_model(tmp_path / "best_checkpoint.pth.tar")
    words = [*OURS, "--img", "photos", "--no-overlay"]
    subprocess.run(
        [sys.executable, ROOT / "inference.py", *words, "--rle", "one.csv", "--out", "one"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    done = launch(
        3, "inference.py", *words, "--rle", "three.csv", "--out", "three", "--gallery", cwd=tmp_path
    )
    assert "10 photographs in" in done.stdout and "three.csv holds 10 rows" in done.stdout

    def rows(name):
        with open(tmp_path / name, newline="") as file:
            return list(csv.reader(file))

    whole = rows("three.csv")
    assert (
        whole[0] == ["img", "rle_mask"]
        and len(whole) == 11
        and sorted(whole) == sorted(rows("one.csv"))
    )
    assert {path.name: path.read_bytes() for path in (tmp_path / "one").iterdir()} == {
        path.name: path.read_bytes() for path in (tmp_path / "three").glob("*.png")
    }
    assert (tmp_path / "three/index.html").read_text().count("<li ") == 10 and not list(
        tmp_path.glob(".three.csv.[0-9]*")
    )

    lines = (tmp_path / "three.csv").read_bytes().splitlines(keepends=True)
    (tmp_path / "three.csv").write_bytes(b"".join(lines[:4]) + lines[4][:9])
    (tmp_path / ".three.csv.1").write_bytes(b"".join(lines[5:8]) + lines[8][:9])
    done = launch(1, "inference.py", *words, "--rle", "three.csv", "--out", "three", cwd=tmp_path)
    assert (
        "going on after 6 rows" in done.stdout
        and "4 photographs in" in done.stdout
        and sorted(rows("three.csv")) == sorted(whole)
    )


@pytest.mark.slow
@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="reads memory in /proc")
def test_ten_thousand_photographs(tmp_path):
    """Each exactly once, and no more memory for the last of them than for the first thousand."""
    write_pairs(tmp_path / "photos", tmp_path / "masks", cars=5, angles=4, height=320, width=480)
    (tmp_path / "many").mkdir()
    for index, path in zip(range(10_000), itertools.cycle(sorted((tmp_path / "photos").iterdir()))):
        (tmp_path / f"many/{index:04d}_{path.name}").symlink_to(path)
    write_model(tmp_path / "best_checkpoint.pth.tar")
    words = [*OURS, "--img", "many", "--no-overlay", "--rle", "many.csv"]
    memory = {}  # of each process, in KB, by the number of masks written
    with (
        open(tmp_path / "said", "w") as said,
        subprocess.Popen(
            [
                sys.executable,
                "-m",
                "torch.distributed.run",
                "--nproc-per-node",
                "2",
                ROOT / "inference.py",
                *words,
            ],
            cwd=tmp_path,
            stdout=said,
            stderr=subprocess.STDOUT,
        ) as process,
    ):
        while process.poll() is None:
            time.sleep(1)
            written = (
                len(list((tmp_path / "outputs").glob("*_mask.png")))
                if (tmp_path / "outputs").exists()
                else 0
            )
            with contextlib.suppress(OSError, AttributeError):  # of processes that end meanwhile
                memory[written] = [
                    int(re.search(r"RssAnon:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1])
                    for pid in children(process)
                ]
    assert process.returncode == 0, (tmp_path / "said").read_text()
    with open(tmp_path / "many.csv", newline="") as file:
        masks = dict(list(csv.reader(file))[1:])
    names = {path.name for path in (tmp_path / "many").iterdir()}
    assert masks.keys() == names and (tmp_path / "many.csv").read_bytes().count(b"\n") == 10_001
    assert len(list((tmp_path / "outputs").iterdir())) == 10_000
    assert len({(name.split("_", 1)[1], mask) for name, mask in masks.items()}) == 20
    samples = {written: sum(sizes) / 1e3 for written, sizes in memory.items() if len(sizes) == 2}
    early, late = (
        max(size for written, size in samples.items() if low < written <= high)
        for low, high in ((500, 2000), (8000, 10_000))
    )
    print(
        f"10,000 photographs: {early:.0f} MB in two processes within the first 2,000, {late:.0f} MB within the last"
    )
    assert late < 1.05 * early


def test_batches_that_cannot_be_dealt(data):
    assert (
        "BATCH_SIZE 5 is that of all 2 processes together; set it to a multiple of 2"
        in launch(2, "train.py", *WORDS, "--batch-size", 5, cwd=data, status=2).stderr
    )
