"""Several processes as one run, under torchrun. Without it there is one process, of rank 0.

BATCH_SIZE is that of all processes together: each takes its shard of every batch, gradients are
averaged by DistributedDataParallel, and all end each step with the same weights. Rank 0 prints
and writes.
"""

import contextlib
import functools
import operator
import os
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from tqdm import tqdm

from carvana.errors import UserError, error_summary, torch_advice

RANK = int(os.environ.get("RANK", 0))
WORLD_SIZE = int(os.environ.get("WORLD_SIZE", 1))
LOCAL_RANK = int(os.environ.get("LOCAL_RANK", 0))
FIRST = RANK == 0  # the process that prints and writes
LAUNCHED = "TORCHELASTIC_RUN_ID" in os.environ or WORLD_SIZE > 1  # by torchrun or its like
TIMEOUT = timedelta(days=1)  # a first decoding of many files, for which the others wait
SECONDS_TO_LET_GO = 0.1
LOST_CONNECTION = ("connect", "timed out")  # in the errors of a broken collective


@contextlib.contextmanager
def process_group(device: torch.device) -> Iterator[torch.device]:
    """Make this process one of the run's, and give its device: on CUDA a GPU of its own.

    Raises:
        UserError: there are too few GPUs, or another process has ended.
    """
    if WORLD_SIZE == 1:
        yield device
        return
    if device.type == "cuda":
        device = _own_gpu()
    if not FIRST:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (open to the end of the process)
        tqdm.__init__ = functools.partialmethod(tqdm.__init__, disable=True)
    backend = "cuda:nccl,cpu:gloo" if device.type == "cuda" else "gloo"
    if device.type == "cuda" and not dist.is_nccl_available():
        raise UserError(
            "several processes on GPUs need NCCL, which this torch does not have; run the script "
            "without torchrun, or with --device cpu"
        )
    try:
        dist.init_process_group(
            backend, store=_own_store(), rank=RANK, world_size=WORLD_SIZE, timeout=TIMEOUT
        )
        yield device
    except RuntimeError as error:  # a collective whose other end has gone
        lost = any(phrase in str(error).lower() for phrase in LOST_CONNECTION)
        if torch_advice(error) or not (isinstance(error, dist.DistError) or lost):
            raise
        _, _, reason = str(error).partition("Last error:\n")  # of NCCL, some lines further down
        raise UserError(
            f"another process of this run ended ({error_summary(reason or error)}); what is in the "
            "last checkpoint is good: --load-model true continues from it, torchrun "
            "--max-restarts 3 does so by itself"
        ) from error
    # A thread of gloo's lets go of the last collective's tensors, for which it needs Python's lock.
    # torch 2.6 holds that while it ends the group and waits for the thread.
    time.sleep(SECONDS_TO_LET_GO)
    dist.destroy_process_group()


def _own_gpu() -> torch.device:
    if torch.cuda.device_count() <= LOCAL_RANK:
        raise UserError(
            f"{os.environ.get('LOCAL_WORLD_SIZE')} processes on a machine with "
            f"{torch.cuda.device_count()} GPUs; each needs one of its own, lower --nproc-per-node"
        )
    device = torch.device("cuda", LOCAL_RANK)
    torch.cuda.set_device(device)
    return device


def _launcher_store() -> dist.TCPStore | None:
    """Return torchrun's own store, which outlives restarts; None if nobody else serves it."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    return _open_store(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))


def _open_store(host: str, port: int, **settings: Any) -> dist.TCPStore:
    """Return a store; USE_LIBUV=0, which torchrun needs on Windows, holds for it too."""
    libuv = os.environ.get("USE_LIBUV", "1") == "1"
    return dist.TCPStore(host, port, use_libuv=libuv, **settings)


def _own_store() -> dist.TCPStore:
    """Return the store at which the processes of this start meet: one that rank 0 serves.

    The launcher's store still has the addresses of the processes before a restart.
    """
    host = os.environ["MASTER_ADDR"]
    launcher = _launcher_store()
    if launcher is None:
        port = int(os.environ["MASTER_PORT"])
        store = _open_store(host, port, world_size=WORLD_SIZE, is_master=FIRST)
    elif FIRST:
        store = _open_store(host, 0, is_master=True)
        launcher.set("store", str(store.port))
    else:
        store = _join_store(host, launcher)
    store.set_timeout(TIMEOUT)
    return store


def _join_store(host: str, launcher: dist.TCPStore) -> dist.TCPStore:
    """Return the store that rank 0 serves; wait until the port is that of this start."""
    while True:
        port = int(launcher.get("store"))
        with contextlib.suppress(dist.DistNetworkError):
            return _open_store(host, port, timeout=timedelta(seconds=2))


def run_name() -> str:
    """Return what tells this training from others; it survives torchrun's restarts."""
    launcher = _launcher_store()
    name = uuid.uuid4().hex
    if launcher is None:
        return name
    return launcher.compare_set("run", "", name).decode()


def shard(count: int) -> range:
    """Return the indices that are this process's, of `count`."""
    return range(RANK, count, WORLD_SIZE)


def local_batch_size(batch_size: int) -> int:
    """Return this process's share of a batch. Raises UserError if it cannot be split evenly."""
    if batch_size % WORLD_SIZE:
        raise UserError(
            f"BATCH_SIZE {batch_size} is that of all {WORLD_SIZE} processes together; set it to a "
            f"multiple of {WORLD_SIZE}"
        )
    return batch_size // WORLD_SIZE


def wrap(model: nn.Module, device: torch.device) -> nn.Module:
    """Return the model with gradients averaged over all processes.

    BatchNorm's statistics are those of all processes on CUDA, each process's own elsewhere.
    """
    if WORLD_SIZE == 1:
        return model
    device_ids = None
    if device.type == "cuda":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        device_ids = [device]
    return nn.parallel.DistributedDataParallel(model, device_ids=device_ids)


def all_reduce_sum(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor, summed over all processes in place."""
    if WORLD_SIZE > 1:
        dist.all_reduce(tensor)
    return tensor


def all_reduce_max(*numbers: int) -> tuple[int, ...]:
    """Return the largest of the processes' numbers, for each place."""
    if WORLD_SIZE == 1:
        return numbers
    tensor = torch.tensor(numbers)
    dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return tuple(tensor.tolist())


def barrier() -> None:
    """Wait until all processes are here."""
    if WORLD_SIZE > 1:
        dist.barrier()


def gather_dict(items: dict) -> dict:
    """Return the items of all processes in rank 0, and its own in each other one."""
    if WORLD_SIZE == 1:
        return items
    gathered: list[dict] = [{} for _ in range(WORLD_SIZE)]
    dist.gather_object(items, gathered if FIRST else None)
    if not FIRST:
        return items
    return functools.reduce(operator.or_, gathered)


def broadcast_buffers(model: nn.Module) -> None:
    """Give every process the BatchNorm statistics of rank 0."""
    if WORLD_SIZE > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


def from_first(function: Callable[[], Any]) -> Any:
    """Return in all processes what function() returns in rank 0: only there a file must exist."""
    if WORLD_SIZE == 1:
        return function()
    results = [function() if FIRST else None]
    dist.broadcast_object_list(results)
    return results[0]


@contextlib.contextmanager
def local_rank_zero_first() -> Iterator[None]:
    """Run the block in one process of each machine first, with all its cores, then in the others.

    What the first one makes, the others then find.
    """
    if WORLD_SIZE > 1 and LOCAL_RANK:
        dist.barrier()
    local_world_size = os.environ.get("LOCAL_WORLD_SIZE", "1")
    if not LOCAL_RANK:
        os.environ["LOCAL_WORLD_SIZE"] = "1"
    yield
    os.environ["LOCAL_WORLD_SIZE"] = local_world_size
    if WORLD_SIZE > 1 and not LOCAL_RANK:
        dist.barrier()
