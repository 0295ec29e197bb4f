"""What is decided by the machine."""

import shlex
import shutil
import subprocess
from types import SimpleNamespace

import pytest
import torch
from helpers import LAST, check_status, script_command, tiny_options

from carvana import device, system
from carvana.checkpoint import read_checkpoint
from carvana.device import choose_workers, compiling_pays

CUDA, CPU = torch.device("cuda"), torch.device("cpu")


def test_compiling_pays_on_cuda_in_long_runs_only():
    assert compiling_pays("auto", CUDA, 3600)
    assert not compiling_pays("auto", CUDA, 100)
    assert not compiling_pays("auto", CPU, 10**6)
    assert not compiling_pays("false", CUDA, 10**6)
    assert compiling_pays("true", CPU, 0)


def test_workers_are_chosen_from_the_machine():
    assert choose_workers(CPU, cached=True) == 0
    assert choose_workers(CPU, cached=False) in (1, 2)
    assert 1 <= choose_workers(CUDA, cached=True) <= 8


# ---------------------------------------------------------------- shared memory


def disk_of(free):
    return lambda _: SimpleNamespace(free=free)


@pytest.mark.parametrize(
    "free, workers, fitting", [(10**9, 2, 2), (10**7, 2, 1), (10**6, 2, 0), (10**6, 0, 0)]
)
def test_fit_workers_takes_as_many_as_shared_memory_has_room_for(
    monkeypatch, capsys, free, workers, fitting
):
    monkeypatch.setattr(device, "SHARED_MEMORY", "/")
    monkeypatch.setattr(device.shutil, "disk_usage", disk_of(free))
    assert device.fit_workers(workers, bytes_per_worker=4_000_000) == fitting
    warnings = capsys.readouterr().err.splitlines()
    assert len(warnings) == (fitting < workers)
    if warnings:
        expected = f"2 workers can need 16 MB of /, which has {free // 10**6} MB free; reading with"
        assert expected in warnings[0]


MOUNT_ALONE = "mount -t tmpfs -o size={size} tmpfs /dev/shm && exec {command}"


def can_mount():
    """Return whether a process may have a /dev/shm of its own here."""
    if not system.SHARED_MEMORY or shutil.which("unshare") is None:
        return False
    return subprocess.run(["unshare", "-m", "true"], stderr=subprocess.PIPE).returncode == 0


@pytest.mark.skipif(not can_mount(), reason="needs Linux, unshare and its rights")
@pytest.mark.parametrize("size, workers", [("600k", 1), ("100k", 0)])
def test_training_in_a_container_reads_with_the_workers_that_fit(data, size, workers):
    """docker run gives 64 MB of /dev/shm, here for batches of 43 KB."""
    command = script_command("train.py", *tiny_options(NUM_WORKERS=2, NUM_EPOCHS=2))
    inside = MOUNT_ALONE.format(size=size, command=shlex.join(command))
    finished = subprocess.run(
        ["unshare", "-m", "sh", "-c", inside], cwd=data, capture_output=True, text=True
    )
    check_status(finished, 0)
    assert finished.stderr.count("2 workers can need") == 1
    assert f"reading with {workers} instead of NUM_WORKERS" in finished.stderr
    assert read_checkpoint(data / LAST)["epoch"] == 2
