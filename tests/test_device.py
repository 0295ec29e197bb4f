"""What is decided by the machine."""

import torch

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
