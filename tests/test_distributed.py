"""Several processes under torchrun: gloo on the CPU."""

import contextlib
import functools
import itertools
import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from helpers import (
    BEST,
    LAST,
    OWN_MODEL,
    ROOT,
    csv_rows,
    run_process,
    script_command,
    tiny_options,
    write_model,
    write_pairs,
)

from carvana import distributed
from carvana.checkpoint import read_checkpoint
from carvana.errors import UserError, user_errors
from carvana.sampling import EpochSampler
from model import UNET

TINY = tiny_options(ROTATE=10.0, GALLERY_MAX=0)
IMPORTS = {"PYTHONPATH": str(ROOT)}  # for scripts outside of the project
CUDA = torch.device("cuda")
PROC = pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs /proc")


@pytest.fixture
def launch(tmp_path):
    """launch(2, "train.py", *arguments, status=1): a script under torchrun, in tmp_path."""
    return functools.partial(run_under_torchrun, tmp_path)


def run_under_torchrun(folder, processes, script, *arguments, **options):
    return run_process(folder, script, *arguments, processes=processes, **options)


def history(folder, filename=LAST):
    return read_checkpoint(folder / filename)["history"]


# ---------------------------------------------------------------- GPUs that are not there


@pytest.fixture
def second_of_two(monkeypatch):
    """Give what process_group asks of torch, in the second of two processes with a GPU each."""
    asked = {}
    for name, value in {"WORLD_SIZE": 2, "RANK": 1, "LOCAL_RANK": 1, "FIRST": True}.items():
        monkeypatch.setattr(distributed, name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda place: asked.update(place=place))
    monkeypatch.setattr(distributed, "_own_store", lambda: None)
    monkeypatch.setattr(dist, "is_nccl_available", lambda: True)
    monkeypatch.setattr(dist, "init_process_group", lambda name, **_: asked.update(backend=name))
    monkeypatch.setattr(dist, "destroy_process_group", lambda: None)
    return asked


def test_each_process_has_a_gpu_of_its_own(second_of_two):
    """Numbers on the CPU are summed by gloo: NCCL has no place for them."""
    with distributed.process_group(CUDA) as place:
        assert place == torch.device("cuda:1") == second_of_two["place"]
    assert second_of_two["backend"] == "cuda:nccl,cpu:gloo"
    with distributed.process_group(torch.device("cpu")) as place:
        assert place == torch.device("cpu")
    assert second_of_two["backend"] == "gloo"


def test_processes_share_statistics_on_gpus(second_of_two, monkeypatch):
    place = torch.device("cuda:1")
    wrapped = []
    monkeypatch.setattr(
        torch.nn.parallel,
        "DistributedDataParallel",
        lambda *given, **more: wrapped.append((given, more)),
    )
    distributed.wrap(UNET(features=[4]), place)
    ((network,), settings) = wrapped[0]
    norms = [module for module in network.modules() if "BatchNorm" in type(module).__name__]
    assert norms and all(isinstance(module, torch.nn.SyncBatchNorm) for module in norms)
    assert settings == {"device_ids": [place]}


def test_too_few_gpus_or_no_nccl_are_named(second_of_two, monkeypatch):
    monkeypatch.setattr(dist, "is_nccl_available", lambda: False)
    with pytest.raises(UserError, match="need NCCL, which this torch does not have"):
        distributed.process_group(CUDA).__enter__()
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match="each needs one of its own, lower --nproc-per-node"):
        distributed.process_group(CUDA).__enter__()


NCCL = "NCCL error in: NCCLUtils.cpp:3690, unhandled system error\nncclSystemError: A call failed."


@pytest.mark.parametrize(
    "reason, message",
    [
        ("socket closed", r"another process of this run ended \(socket closed\); what is in"),
        ("Error while creating shared memory segment /dev/shm/nccl-9", "docker run --shm-size 2g"),
    ],
)
def test_errors_of_nccl_are_told_by_their_reason(second_of_two, capsys, reason, message):
    with pytest.raises(SystemExit, match="2"), user_errors(), distributed.process_group(CUDA):
        raise dist.DistBackendError(f"{NCCL}\nLast error:\n{reason}")
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize("word, expected", [("0", False), ("1", True)])
def test_store_is_without_libuv_where_torchrun_is(monkeypatch, word, expected):
    asked = {}
    monkeypatch.setenv("USE_LIBUV", word)
    monkeypatch.setattr(dist, "TCPStore", lambda *_, **settings: asked.update(settings))
    distributed._open_store("localhost", 0, is_master=True)
    assert asked == {"use_libuv": expected, "is_master": True}


# ---------------------------------------------------------------- the same as one process


@pytest.mark.parametrize("length", [1, 7, 8, 9, 24])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_sampler_shards_every_batch(length, world_size):
    """All ranks take as many batches; together they hold each index once.

    There are fillers in the last batch only.
    """
    samplers = [EpochSampler(length, 3, 4, rank, world_size) for rank in range(world_size)]
    shards = [list(sampler) for sampler in samplers]
    assert len({-(-len(shard) // (4 // world_size)) for shard in shards}) == 1
    keys = [key for shard in shards for key in shard]
    assert {index for _, index in keys} == set(range(length))
    assert len(keys) - length == max(0, world_size - (length % 4 or 4))
    assert all(len(shard) <= len(samplers[0]) for shard in shards)


STEPS = """
import sys

import torch
from torch import nn

import train
from carvana import distributed
from carvana.epochs import PartialEpoch
from carvana.augmentation import train_transform, val_transform
from dataset import get_loaders
from model import UNET

torch.manual_seed(0)
torch.set_num_threads(1)
with distributed.process_group(torch.device("cpu")) as device:
    folders = ("data/train_images", "data/train_masks", "data/val_images", "data/val_masks")
    loader, _ = get_loaders(*folders, 4, train_transform(), val_transform(), 0, size=(32, 48))
    model = UNET(features=[4, 8])
    model.config = {"PRECISION": "fp32"}
    # BatchNorm's statistics are what tells the processes' shards of a batch from the whole.
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train = lambda mode=True, module=module: module
            module.training = False
    wrapped = distributed.wrap(model, device)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    for number in range(2):
        epoch = PartialEpoch(loader, number, 0)
        loss = train.train_fn(epoch, wrapped, optimizer, nn.BCEWithLogitsLoss(), scaler)
    if distributed.FIRST:
        torch.save({"loss": loss, "weights": model.state_dict()}, sys.argv[1])
"""


def test_steps_are_those_of_one_process(tmp_path, run, launch):
    """But for BatchNorm and rounding. Of 13 images in fours the second rank lacks the last."""
    data = tmp_path / "data"
    write_pairs(data / "train_images", data / "train_masks", cars=13, angles=1)
    write_pairs(data / "val_images", data / "val_masks", cars=1, first=100)
    script = tmp_path / "steps.py"
    script.write_text(STEPS)
    run(script, "1.pt")
    launch(2, script, "2.pt", env=IMPORTS)
    alone = torch.load(tmp_path / "1.pt", weights_only=True)
    two = torch.load(tmp_path / "2.pt", weights_only=True)
    assert len(alone["weights"]) > 10
    assert two["loss"] == pytest.approx(alone["loss"], abs=1e-6)
    for name, weight in alone["weights"].items():
        torch.testing.assert_close(two["weights"][name], weight, rtol=1e-4, atol=1e-6)


def test_scores_are_exactly_those_of_one_process(data, run, launch):
    write_model(data / BEST)
    # Seven pairs: no multiple of two.
    write_pairs(data / "data/val_images", data / "data/val_masks", cars=1, angles=1, first=200)
    arguments = ("evaluate.py", *OWN_MODEL, "--batch-size", 2, "--json")
    run(*arguments, "1.json")
    launch(2, *arguments, "2.json")
    alone = json.loads((data / "1.json").read_text())
    two = json.loads((data / "2.json").read_text())
    assert alone == two
    assert len(alone["images"]) == 7


def test_inference_masks_each_photograph_once(tmp_path, run, launch):
    """By three processes, and after an interrupted run of several left files beside the csv."""
    write_pairs(tmp_path / "photos", tmp_path / "masks", cars=5, angles=2)
    write_model(tmp_path / BEST)
    arguments = ("inference.py", *OWN_MODEL, "--img", "photos", "--no-overlay")
    run(*arguments, "--rle", "one.csv", "--out", "one")
    three = ("--rle", "three.csv", "--out", "three")
    finished = launch(3, *arguments, *three, "--gallery")
    assert "10 photographs in" in finished.stdout
    assert "three.csv holds 10 rows" in finished.stdout
    rows = csv_rows(tmp_path / "three.csv")
    assert rows[0] == ["img", "rle_mask"]
    assert len(rows) == 11
    assert sorted(rows) == sorted(csv_rows(tmp_path / "one.csv"))
    one_masks = {path.name: path.read_bytes() for path in (tmp_path / "one").iterdir()}
    masks = {path.name: path.read_bytes() for path in (tmp_path / "three").glob("*.png")}
    assert masks == one_masks
    assert (tmp_path / "three/index.html").read_text().count("<li ") == 10
    assert not list(tmp_path.glob(".three.csv.[0-9]*"))

    lines = (tmp_path / "three.csv").read_bytes().splitlines(keepends=True)
    (tmp_path / "three.csv").write_bytes(b"".join(lines[:4]) + lines[4][:9])
    (tmp_path / ".three.csv.1").write_bytes(b"".join(lines[5:8]) + lines[8][:9])
    finished = run(*arguments, *three)
    assert "continuing after 6 rows" in finished.stdout
    assert "4 photographs in" in finished.stdout
    assert sorted(csv_rows(tmp_path / "three.csv")) == sorted(rows)

    for path in sorted((tmp_path / "three").glob("*.png"))[::3]:
        path.unlink()
    assert "4 photographs in" in launch(2, *arguments, *three).stdout
    assert {path.name for path in (tmp_path / "three").glob("*.png")} == one_masks.keys()
    assert sorted(csv_rows(tmp_path / "three.csv")) == sorted(rows)


@pytest.mark.slow
def test_training_resumes_with_another_number_of_processes(data, run, launch):
    for epochs, processes in ((1, 1), (2, 2), (3, 1)):
        resume = str(epochs > 1).lower()
        arguments = (*TINY, "--num-epochs", epochs, "--load-model", resume)
        stdout = launch(processes, "train.py", *arguments).stdout
        assert stdout.count(f"epoch {epochs}/{epochs}") == 1
        assert stdout.count("Dice score") == (2 if epochs > 1 else 1)
    files = ("--checkpoint-file", "alone.pth.tar", "--best-checkpoint-file", "alone_best.pth.tar")
    run("train.py", *TINY, "--num-epochs", 3, *files)
    assert [row["epoch"] for row in history(data)] == [1, 2, 3]
    losses = [row["train_loss"] for row in history(data)]
    alone = [row["train_loss"] for row in history(data, "alone.pth.tar")]
    assert losses == pytest.approx(alone, rel=0.05)


def test_batch_size_that_cannot_be_split_is_an_error(data, launch):
    stderr = launch(2, "train.py", *TINY, "--batch-size", 5, status=1).stderr
    expected = "BATCH_SIZE 5 is that of all 2 processes together; set it to a multiple of 2"
    assert expected in stderr


# ---------------------------------------------------------------- processes that die


def child_processes(process):
    listed = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True)
    return [int(pid) for pid in listed.stdout.split()]


def kill_second_rank(process):
    """SIGKILL the second of a launcher's training processes."""
    second = next(
        pid
        for pid in child_processes(process)
        if b"\0RANK=1\0" in Path(f"/proc/{pid}/environ").read_bytes()
    )
    os.kill(second, signal.SIGKILL)


@PROC
@pytest.mark.parametrize("restarts", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_training_of_which_a_process_is_killed(data, restarts):
    """The others end, the checkpoint is good; with restarts the launcher continues from it."""
    epochs = 12 if restarts else 300
    arguments = (*TINY, "--num-epochs", epochs, "--checkpoint-minutes", "0.02")
    launcher = ("--max-restarts", restarts)
    with subprocess.Popen(
        script_command("train.py", *arguments, processes=2, launcher=launcher),
        cwd=data,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        for line in process.stdout:
            if line.startswith("epoch 3/"):
                break
        kill_second_rank(process)
        killed = time.monotonic()
        out, err = process.communicate(timeout=200)
    rows = history(data)
    assert [row["epoch"] for row in rows] == list(range(1, len(rows) + 1))
    assert len(rows) >= 2
    if restarts:
        assert process.returncode == 0, f"{out}\n{err}"
        assert len(rows) == 12
        assert "epochs done" in out
        assert "epoch 1/" not in out
    else:
        assert process.returncode != 0
        assert time.monotonic() - killed < 60
        assert len(rows) < 300
        assert "another process of this run ended" in err


RESTARTS = """
import os
import signal
import time

import torch

from carvana import distributed

with distributed.process_group(torch.device("cpu")):
    processes = distributed.all_reduce_sum(torch.ones(1)).item()
    if os.environ["TORCHELASTIC_RESTART_COUNT"] < "3":
        if distributed.RANK == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)
    print("together:", processes)
"""


def test_processes_find_each_other_after_restarts(tmp_path, launch):
    """And not those before a restart, whose addresses the launcher still has."""
    script = tmp_path / "restarts.py"
    script.write_text(RESTARTS)
    finished = launch(2, script, launcher=("--max-restarts", "3"), env=IMPORTS)
    lines = finished.stdout.splitlines()  # among those of gloo, in some versions of torch
    assert lines.count("together: 2.0") == 1


# ---------------------------------------------------------------- many photographs


def private_megabytes(process):
    """Return the memory that each process of a launcher has for itself, of those still there."""
    sizes = []
    for pid in child_processes(process):
        with contextlib.suppress(OSError):
            status = Path(f"/proc/{pid}/status").read_text()
            sizes += [int(size) / 1e3 for size in re.findall(r"RssAnon:\s+(\d+)", status)]
    return sizes


def write_ten_thousand(folder):
    """Write 20 photographs under 10,000 names into folder/many."""
    write_pairs(folder / "photos", folder / "masks", cars=5, angles=4, height=320, width=480)
    (folder / "many").mkdir()
    paths = itertools.cycle(sorted((folder / "photos").iterdir()))
    for index in range(10_000):
        path = next(paths)
        (folder / f"many/{index:04d}_{path.name}").symlink_to(path)


@pytest.mark.slow
@PROC
def test_inference_of_ten_thousand_photographs_needs_no_more_memory(tmp_path):
    """Each is masked once, and the last of them take no more memory than the first thousand."""
    write_ten_thousand(tmp_path)
    write_model(tmp_path / BEST)
    arguments = (*OWN_MODEL, "--img", "many", "--no-overlay", "--rle", "many.csv")
    outputs = tmp_path / "outputs"
    samples = {}  # megabytes of both processes, by the number of masks written
    with (
        open(tmp_path / "printed", "w") as printed,
        subprocess.Popen(
            script_command("inference.py", *arguments, processes=2),
            cwd=tmp_path,
            stdout=printed,
            stderr=subprocess.STDOUT,
        ) as process,
    ):
        while process.poll() is None:
            time.sleep(1)
            sizes = private_megabytes(process)
            if len(sizes) == 2:
                samples[len(list(outputs.glob("*_mask.png")))] = sum(sizes)
    assert process.returncode == 0, (tmp_path / "printed").read_text()
    masks = dict(csv_rows(tmp_path / "many.csv")[1:])
    assert masks.keys() == {path.name for path in (tmp_path / "many").iterdir()}
    assert (tmp_path / "many.csv").read_bytes().count(b"\n") == 10_001
    assert len(list(outputs.iterdir())) == 10_000
    assert len({(name.split("_", 1)[1], mask) for name, mask in masks.items()}) == 20
    early = max(size for count, size in samples.items() if 500 < count <= 2000)
    late = max(size for count, size in samples.items() if 8000 < count <= 10_000)
    print(f"two processes: {early:.0f} MB in the first 2,000 photographs, {late:.0f} MB at last")
    assert late < 1.05 * early
