"""Several processes as one run, under torchrun. Without it each function does nothing, or what one process does alone.

BATCH_SIZE is that of all processes together: each takes its part of every batch, gradients are averaged by
DistributedDataParallel, and every process ends each step with the same weights. The first process prints and writes.
"""

import contextlib
import functools
import os
import sys
import uuid
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn
from tqdm import tqdm

from pictures import UserError, brief

RANK, RANKS = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
LOCAL_RANK = int(os.environ.get("LOCAL_RANK", 0))
FIRST = RANK == 0  # the process that prints and writes
LONGEST_WAIT = timedelta(days=1)  # with a first decoding, for which the others wait


@contextlib.contextmanager
def together(device):
    """with together(device) as device: this process is one of the run's; on CUDA each takes a GPU of its own.

    The others' loss raises UserError in those that wait for them."""
    if RANKS == 1:
        yield device
        return
    if device.type == "cuda":
        if LOCAL_RANK >= torch.cuda.device_count():
            raise UserError(
                f"{os.environ.get('LOCAL_WORLD_SIZE')} processes on a machine with {torch.cuda.device_count()} GPUs; each needs one of its own, lower --nproc-per-node"
            )
        device = torch.device("cuda", LOCAL_RANK)
        torch.cuda.set_device(device)
    if not FIRST:
        sys.stdout = open(os.devnull, "w")
        tqdm.__init__ = functools.partialmethod(tqdm.__init__, disable=True)
    try:
        dist.init_process_group(
            "cuda:nccl,cpu:gloo" if device.type == "cuda" else "gloo",
            store=own_store(),
            rank=RANK,
            world_size=RANKS,
            timeout=LONGEST_WAIT,
        )
        yield device
    except RuntimeError as error:  # a collective whose other end has gone
        if not isinstance(error, dist.DistError) and not any(
            word in str(error) for word in ("onnection", "imed out", "connect")
        ):
            raise
        raise UserError(
            f"another process of this run ended ({brief(error)}); what is in the last checkpoint is good: "
            "--load-model true goes on from it, torchrun --max-restarts 3 does so by itself"
        ) from error
    dist.destroy_process_group()


def launchers_store():
    """torchrun's own store, which outlives the processes that it restarts; None where nobody else serves MASTER_PORT."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        return dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))


def own_store():
    """Where the processes of this start find each other: in the first one. The launcher's store still has the addresses of those before a restart."""
    host, launchers, store = os.environ["MASTER_ADDR"], launchers_store(), None
    if launchers is None:
        store = dist.TCPStore(host, int(os.environ["MASTER_PORT"]), RANKS, is_master=FIRST)
    elif FIRST:
        store = dist.TCPStore(host, 0, is_master=True)
        launchers.set("store", str(store.port))
    while store is None:  # until the port is this start's
        port = int(launchers.get("store"))
        with contextlib.suppress(dist.DistNetworkError):
            store = dist.TCPStore(host, port, timeout=timedelta(seconds=2))
    store.set_timeout(LONGEST_WAIT)
    return store


def run_name():
    """What tells this training from others, the same after torchrun's restarts."""
    launchers, name = launchers_store(), uuid.uuid4().hex
    return launchers.compare_set("run", "", name).decode() if launchers else name


def part(count):
    """The indices that are this process's, of so many."""
    return range(RANK, count, RANKS)


def own_batch(batch_size):
    """This process's part of a batch. Raises UserError where it cannot be dealt evenly."""
    if batch_size % RANKS:
        raise UserError(
            f"BATCH_SIZE {batch_size} is that of all {RANKS} processes together; set it to a multiple of {RANKS}"
        )
    return batch_size // RANKS


def wrapped(model, device):
    """The model, its gradients averaged over all processes; BatchNorm's statistics are those of all on CUDA, each process's own elsewhere."""
    if RANKS == 1:
        return model
    if device.type == "cuda":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return nn.parallel.DistributedDataParallel(
        model, device_ids=[device] if device.type == "cuda" else None
    )


def summed(tensor):
    """The sum over all processes, in place."""
    if RANKS > 1:
        dist.all_reduce(tensor)
    return tensor


def highest(number):
    """The largest of the processes' numbers."""
    if RANKS == 1:
        return number
    tensor = torch.tensor(number)
    dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return tensor.item()


def merged(items):
    """{index: anything} of all processes together, in the first; its own in the others."""
    if RANKS == 1:
        return items
    found = [None] * RANKS if FIRST else None
    dist.gather_object(items, found)
    return functools.reduce(lambda a, b: a | b, found) if FIRST else items


def same_statistics(model):
    """BatchNorm's running statistics become the first process's."""
    for buffer in model.buffers() if RANKS > 1 else ():
        dist.broadcast(buffer, 0)


def from_first(function):
    """What function() returns in the first process, in all of them; the file that it reads needs to be there only."""
    if RANKS == 1:
        return function()
    found = [function() if FIRST else None]
    dist.broadcast_object_list(found)
    return found[0]


@contextlib.contextmanager
def one_a_machine_first():
    """One process of each machine runs the block first, with all its cores, then the others: it makes what they find."""
    if RANKS > 1 and LOCAL_RANK:
        dist.barrier()
    processes = os.environ.get("LOCAL_WORLD_SIZE", "1")
    if not LOCAL_RANK:
        os.environ["LOCAL_WORLD_SIZE"] = "1"
    yield
    os.environ["LOCAL_WORLD_SIZE"] = processes
    if RANKS > 1 and not LOCAL_RANK:
        dist.barrier()
