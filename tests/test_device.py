"""What is decided by the machine."""

import multiprocessing
import os
import shlex
import shutil
import subprocess
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch
from helpers import (
    BEST,
    LAST,
    OWN_MODEL,
    check_status,
    run_result,
    script_command,
    tiny_options,
    write_model,
)
from torch._dynamo.utils import counters
from torch._subclasses.fake_tensor import FakeTensorMode

import train
from carvana import device, losses, recorded, shared_memory, system
from carvana.checkpoint import read_checkpoint
from carvana.classes import Classes
from carvana.device import choose_workers
from carvana.errors import UserError
from carvana.model_config import check_model_config
from carvana.optim import resize_batch
from model import UNET

CUDA, MPS, CPU = torch.device("cuda"), torch.device("mps"), torch.device("cpu")


# ---------------------------------------------------------------- a GPU that is not there


@pytest.mark.parametrize(
    "capability, precision, expected",
    [
        ((7, 5), "auto", torch.float16),  # the T4 of Colab and Kaggle computes in no bfloat16
        ((8, 0), "auto", torch.bfloat16),
        ((9, 0), "auto", torch.bfloat16),
        ((7, 5), "bf16", torch.float16),  # as a model trained elsewhere may say
        ((8, 0), "bf16", torch.bfloat16),
        ((9, 0), "fp32", torch.float32),
    ],
)
def test_precision_follows_the_capability(monkeypatch, capability, precision, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert device.amp_dtype(CUDA, precision) == expected


def test_products_are_in_bfloat16_where_a_device_computes_in_it(monkeypatch):
    for capability, expected in (((7, 5), torch.float32), ((8, 0), torch.bfloat16)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, c=capability: c)
        assert device.product_dtype(CUDA) == expected
    assert device.product_dtype(CPU) == torch.bfloat16
    assert device.product_dtype(MPS) == torch.float32


def test_found_device_is_the_first_available(monkeypatch):
    present = {"cuda": True, "mps": True}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: present["cuda"])
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: present["mps"])
    assert device.find_device() == CUDA
    present["cuda"] = False
    assert device.find_device() == torch.device("mps")
    present["mps"] = False
    assert device.find_device() == CPU
    with pytest.raises(UserError, match="finds none here; use --device auto .it would take cpu"):
        device.find_device("cuda")


def test_a_gpu_leaves_the_cores_to_reading_and_writing(monkeypatch):
    monkeypatch.setattr(device, "cores", lambda: 8)
    assert device.choose_threads(CUDA, batches=2) == (8, torch.get_num_threads())
    assert device.choose_threads(CPU, batches=2) == (2, 4)
    assert device.choose_threads(CPU, batches=100) == (8, 1)
    assert device.photographs_at_once(CUDA) == 4
    assert device.photographs_at_once(CPU) == 1
    assert device.pinning_pays(CUDA) and not device.pinning_pays(CPU)
    assert device.onnx_providers(CUDA, ["CUDAExecutionProvider"])[0] == "CUDAExecutionProvider"
    for available, place in (([], CUDA), (["CUDAExecutionProvider"], CPU)):
        assert device.onnx_providers(place, available) == ["CPUExecutionProvider"]


@pytest.fixture
def fake_gpu(monkeypatch):
    """Give the context in which tensors on a GPU have a shape and a dtype, but no content."""
    monkeypatch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: device.AMPERE)
    kept = (device._channel_values, losses._weights)
    for function in kept:
        function.cache_clear()
    with FakeTensorMode(), torch.device("cuda"):
        try:
            torch.empty(1).uniform_()
        except RuntimeError:
            pytest.skip("this torch asks even for fake numbers whether there is a GPU")
        yield
    for function in kept:
        function.cache_clear()


@pytest.mark.parametrize("precision, half", [("fp16", torch.float16), ("bf16", torch.bfloat16)])
@pytest.mark.parametrize("names", [["car"], ["background", "car", "road"]], ids=str)
def test_a_step_keeps_its_tensors_on_the_gpu(fake_gpu, precision, half, names):
    classes = Classes(tuple(names))
    model = UNET(features=[4, 8], out_channels=len(names))
    model.config = check_model_config({"CLASSES": names, "PRECISION": precision}, 3)
    images = torch.empty(2, 3, 32, 48, dtype=torch.uint8, device="cpu")
    masks = torch.empty(2, 32, 48, dtype=torch.uint8, device="cpu")
    images, masks = device.to_device(images, masks, model)
    assert images.dtype == torch.float32 and images.device.type == "cuda"
    assert images.is_contiguous(memory_format=torch.channels_last)
    with device.autocast(model):
        logits = model(images)
    assert logits.dtype == half
    for name in ("bce", "dice", "bce_dice", "edge"):
        loss = losses.make_loss(name, classes, positive_weight=2.0)(logits.float(), masks)
        assert loss.device.type == "cuda" and loss.dtype == torch.float32 and loss.shape == ()
        if not classes.single:
            weigh = losses.make_loss(name, classes, class_weights=(1.0, 2.0, 3.0))
            assert weigh(logits.float(), masks).device.type == "cuda"


@pytest.mark.parametrize(
    "place, copies_alone, order",
    [
        (CUDA, True, torch.channels_last),
        (MPS, False, torch.contiguous_format),
        (CPU, False, torch.channels_last),
    ],
    ids=str,
)
def test_images_get_to_a_device_in_the_way_that_is_right_there(
    monkeypatch, place, copies_alone, order
):
    """MPS would read memory that may be freed by then, and BatchNorm needs its usual order."""
    asked = []

    def note(tensor, device, non_blocking=False):
        asked.append((device, non_blocking))
        return tensor

    monkeypatch.setattr(device, "device_of", lambda _: place)
    monkeypatch.setattr(torch.Tensor, "to", note)
    images, _ = device.to_device(
        torch.rand(2, 3, 16, 16), torch.rand(2, 16, 16), UNET(features=[4])
    )
    assert asked == [(place, copies_alone)] * 2
    assert images.is_contiguous(memory_format=order)
    assert device.memory_format(place) == order  # of the kernels, too


def test_images_for_mps_are_resized_on_the_cpu(monkeypatch):
    places = []
    moved = []
    interpolate = torch.nn.functional.interpolate

    def note(images, **settings):
        places.append(images.device)
        return interpolate(images, **settings)

    def note_move(tensor, place):
        moved.append(place.type)
        return tensor

    monkeypatch.setattr("torch.nn.functional.interpolate", note)
    monkeypatch.setattr(torch.Tensor, "to", note_move)
    with FakeTensorMode():
        images = torch.empty(2, 3, 160, 240, device=MPS)
        masks = torch.empty(2, 1, 160, 240, device=MPS)
        resized = resize_batch(images, masks, 0.5)
    assert [tuple(item.shape[2:]) for item in resized] == [(80, 128)] * 2
    assert places == [CPU] * 2
    assert moved == ["mps"] * 2


@pytest.mark.parametrize("place, at_once", [(CUDA, 2), (MPS, 1), (CPU, 3)], ids=str)
def test_forward_passes_take_turns(monkeypatch, place, at_once):
    """MPS is no place for two threads; on CUDA each takes memory."""
    monkeypatch.setattr(device, "device_of", lambda _: place)
    inside = []
    most = []

    def run_forward(_):
        with device.forward_turn(None):
            inside.append(1)
            time.sleep(0.05)
            most.append(len(inside))
            inside.pop()

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(run_forward, range(6)))
    assert max(most) == at_once


def test_float16_is_trained_with_a_scaler(settings):
    train.main(settings(PRECISION="fp16", NUM_EPOCHS=1))
    assert 0 < run_result()["scaler"]["scale"] <= 2**16
    train.main(settings(PRECISION="bf16", NUM_EPOCHS=1))
    assert run_result()["scaler"] == {}


def test_random_states_are_those_of_every_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: ["first", "second"])
    assert device.random_states()["cuda"] == ["first", "second"]


def test_random_states_of_other_gpus_are_left_alone(monkeypatch):
    """A checkpoint of a machine with two GPUs goes on with one, or with none."""
    states = device.random_states() | {"cuda": [torch.zeros(16, dtype=torch.uint8)] * 2}
    restored = []
    monkeypatch.setattr(torch.cuda, "set_rng_state_all", restored.append)
    for count in (0, 1):
        monkeypatch.setattr(torch.cuda, "device_count", lambda count=count: count)
        device.set_random_states(states)
    assert restored == []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    device.set_random_states(states)
    assert len(restored[0]) == 2


def test_kernels_that_repeat_are_taken_when_asked_for(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    device.choose_kernels(deterministic=True, steps=10**6)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    device.choose_kernels(deterministic=True, steps=10**6)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    repeating = torch.are_deterministic_algorithms_enabled() and not torch.backends.cudnn.benchmark
    device.choose_kernels(deterministic=False, steps=10**6)
    assert repeating
    assert torch.backends.cudnn.benchmark and not torch.are_deterministic_algorithms_enabled()
    device.choose_kernels(deterministic=False, steps=100)  # a run too short to try out kernels
    assert not torch.backends.cudnn.benchmark


class OutOfMemory:
    """A model that does not fit into the GPU."""

    def __init__(self, *_args, **_kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 12.00 GiB.")


@pytest.mark.parametrize(
    "script, place",
    [
        ("train.py", "carvana.device.to_input"),
        ("evaluate.py", "carvana.device.to_input"),
        ("inference.py", "carvana.predicting.to_input"),
        ("inference.py", "torch.nn.Module.float"),
        ("train.py", "carvana.checkpoint._restore_optimizer"),
    ],
)
def test_scripts_say_that_the_gpu_is_too_small(data, run, monkeypatch, script, place):
    write_model(data / BEST)
    write_model(data / LAST)
    image = next((data / "data/val_images").iterdir())
    arguments = {
        "train.py": tiny_options(LOAD_MODEL=place.endswith("optimizer"), NUM_EPOCHS=3),
        "evaluate.py": OWN_MODEL,
        "inference.py": (*OWN_MODEL, "--img", image),
    }
    monkeypatch.setattr(place, OutOfMemory)
    stderr = run(script, *arguments[script], status=2).stderr
    assert "the GPU's memory is too small for this; lower BATCH_SIZE first" in stderr
    assert "Traceback" not in stderr


# ---------------------------------------------------------------- recorded networks


class FakeGraphs(list):
    """Stands in for torch.cuda.make_graphed_callables: the shapes of the batches that it replays.

    Like the original, it refuses autocast that keeps cast weights, runs a network some times to
    warm up, replaces its forward method, and keeps only a weak reference to it.
    """

    def __call__(self, shell, images):
        assert not (torch.is_autocast_enabled("cpu") and torch.is_autocast_cache_enabled())
        assert images[0].is_contiguous(memory_format=torch.channels_last)
        forward = type(shell).forward
        owner = weakref.ref(shell)
        for _ in range(4):
            forward(shell, images[0])

        def replay(batch):
            self.append(tuple(batch.shape))
            return forward(owner(), batch)

        shell.forward = replay
        return shell


@pytest.fixture
def fake_graphs(monkeypatch):
    graphs = FakeGraphs()
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", graphs)
    monkeypatch.setattr(recorded, "has_cuda_graphs", lambda device: True)
    return graphs


class FakeGraph:
    """Stands in for torch.cuda.CUDAGraph, and for the context in which one is recorded."""

    def __init__(self, *_args, **_kwargs):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_exception):
        pass

    def replay(self):
        pass


def test_this_torch_records_a_network(monkeypatch):
    """Its own function, on graphs that replay nothing: outputs are those of recording."""
    monkeypatch.setattr(recorded, "has_cuda_graphs", lambda device: True)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(torch.cuda, "graph", FakeGraph)
    monkeypatch.setattr(torch.cuda, "Stream", FakeGraph)
    monkeypatch.setattr(torch.cuda, "stream", FakeGraph)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr("torch.cuda.graphs.graph_pool_handle", lambda: None)
    network = UNET(features=[4, 8])
    network.config = check_model_config({"PRECISION": "fp32"}, 3)
    fast = recorded.recorded(network, (2, 3, 32, 48))
    logits = fast(torch.rand(2, 3, 32, 48))
    logits.sum().backward()
    expected = network.train()(torch.zeros(2, 3, 32, 48))
    assert torch.allclose(logits, expected, atol=1e-2)  # BatchNorm enlarges rounding here
    assert all(parameter.grad is not None for parameter in network.parameters())
    assert list(fast.state_dict()) == [f"module.{name}" for name in network.state_dict()]


def test_recording_leaves_a_network_as_it_was(fake_graphs):
    network = UNET(features=[4, 8])
    network.config = check_model_config({"PRECISION": "bf16"}, 3)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    fast = recorded.recorded(network, (4, 3, 32, 48))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    names = [name.removeprefix("module.") for name, _ in fast.named_parameters()]
    assert names == [name for name, _ in network.named_parameters()]
    network(torch.rand(4, 3, 32, 48))
    assert fake_graphs == [(4, 3, 32, 48)]  # to try
    fast(torch.rand(3, 3, 32, 48))  # an epoch's last batch
    assert fake_graphs == [(4, 3, 32, 48)]
    fast(torch.rand(4, 3, 32, 48))
    fast.eval()(torch.rand(4, 3, 32, 48))
    assert fake_graphs == [(4, 3, 32, 48)] * 2


def test_network_that_cannot_be_recorded_is_trained_nevertheless(settings, monkeypatch, capsys):
    def fail(shell, images):
        shell(images[0])
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(recorded, "has_cuda_graphs", lambda device: True)
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", fail)
    train.main(settings(NUM_EPOCHS=2))
    assert "kernels could not be recorded, and are started one by one" in capsys.readouterr().err
    tried = run_result()["state_dict"]
    train.main(settings(NUM_EPOCHS=2, COMPILE="false"))
    plain = run_result()["state_dict"]
    assert all(map(torch.equal, tried.values(), plain.values()))


def test_recorded_run_learns_the_same(settings, fake_graphs):
    options = {"NUM_EPOCHS": 2, "BATCH_SIZE": 5}  # of 12 images
    train.main(settings(**options))
    assert fake_graphs == [(5, 3, 32, 48)] * 5  # once to try, and two in each epoch
    by_graphs = run_result()["state_dict"]
    train.main(settings(COMPILE="false", **options))
    assert fake_graphs == [(5, 3, 32, 48)] * 5
    plain = run_result()["state_dict"]
    assert all(map(torch.equal, by_graphs.values(), plain.values()))


@pytest.mark.parametrize(
    "constants",
    [{"ACCUMULATE": 2}, {"RESOLUTIONS": [0.5, 1.0]}, {"COMPILE": "false"}, {"NUM_EPOCHS": 0}],
    ids=str,
)
def test_network_is_not_recorded_where_it_does_not_fit(settings, monkeypatch, constants):
    monkeypatch.setattr(train, "recorded", lambda *_: pytest.fail("recorded"))
    train.main(settings(**{"NUM_EPOCHS": 1, "BATCH_SIZE": 2} | constants))


def test_network_of_several_processes_is_not_recorded(monkeypatch):
    monkeypatch.setattr(train.distributed, "WORLD_SIZE", 2)
    monkeypatch.setattr(train, "recorded", lambda *_: pytest.fail("recorded"))
    cfg = SimpleNamespace(COMPILE="auto", ACCUMULATE=1, RESOLUTIONS=[1.0])
    network = UNET(features=[4])
    assert train.Trainer.make_fast(SimpleNamespace(cfg=cfg), network) is network


def test_no_worker_reads_while_a_network_is_recorded(settings, monkeypatch):
    """A resumed run has just drawn pictures, in the middle of the validation loader's batches."""
    train.main(settings(NUM_EPOCHS=1))
    children = []

    def note_children(network, shape):
        children.append(multiprocessing.active_children())
        return network

    monkeypatch.setattr(train, "recorded", note_children)
    train.main(settings(NUM_EPOCHS=2, NUM_WORKERS=1, BATCH_SIZE=2, LOAD_MODEL=True))
    assert children == [[]]


def test_batches_larger_than_the_set_are_recorded_as_they_come(settings, fake_graphs):
    train.main(settings(NUM_EPOCHS=1, BATCH_SIZE=64))
    assert fake_graphs == [(12, 3, 32, 48)] * 2  # the first to try


# ---------------------------------------------------------------- compiled networks


def graphs_of(shapes):
    """Return how many graphs torch.compile makes of a network for these batches, and its breaks."""
    torch._dynamo.reset()
    counters.clear()
    model = UNET(features=[4, 8]).to(memory_format=torch.channels_last)
    compiled = torch.compile(model, backend="eager")
    for shape in shapes:
        compiled(torch.rand(shape).contiguous(memory_format=torch.channels_last))
    return counters["stats"]["unique_graphs"], sum(counters["graph_break"].values())


FULL, LAST_BATCH, SMALLER = (8, 3, 32, 48), (3, 3, 32, 48), (8, 3, 16, 32)


@pytest.mark.filterwarnings("ignore:Guards may run slower:RuntimeWarning")  # on Python 3.13.0
@pytest.mark.parametrize(
    "shapes, graphs",
    [
        ([FULL, FULL], 1),
        ([FULL, LAST_BATCH, FULL, LAST_BATCH, (5, 3, 32, 48)], 2),  # the second for any number
        ([SMALLER, FULL, SMALLER, FULL], 2),  # RESOLUTIONS
        ([SMALLER, (3, 3, 16, 32), FULL, LAST_BATCH], 3),
    ],
    ids=["full batches", "last batches", "resolutions", "both"],
)
def test_compiled_network_has_few_graphs_and_no_breaks(shapes, graphs):
    assert graphs_of(shapes) == (graphs, 0)


# ---------------------------------------------------------------- what pays


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
    monkeypatch.setattr(shared_memory, "SHARED_MEMORY", "/")
    monkeypatch.setattr(shared_memory.shutil, "disk_usage", disk_of(free))
    assert shared_memory.fit_workers(workers, bytes_per_worker=4_000_000) == fitting
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
@pytest.mark.parametrize("size, workers", [("300k", 1), ("100k", 0)])
def test_training_in_a_container_reads_with_the_workers_that_fit(data, size, workers):
    """docker run gives 64 MB of /dev/shm, here for batches of 25 KB."""
    command = script_command("train.py", *tiny_options(NUM_WORKERS=2, NUM_EPOCHS=2))
    inside = MOUNT_ALONE.format(size=size, command=shlex.join(command))
    finished = subprocess.run(
        ["unshare", "-m", "sh", "-c", inside], cwd=data, capture_output=True, text=True
    )
    check_status(finished, 0)
    assert finished.stderr.count("2 workers can need") == 1
    assert f"reading with {workers} instead of NUM_WORKERS" in finished.stderr
    assert read_checkpoint(data / LAST)["epoch"] == 2
