"""Optimizers, learning rates and weight averages."""

import itertools

import pytest
import torch
from helpers import is_same
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from carvana import optim
from model import UNET


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 16, 144), (2, 64, 9), (1, 5, 1000)])
def test_orthogonal_is_near_the_orthogonal_factor(shape):
    torch.manual_seed(0)
    matrices = torch.randn(shape) * 1e-3
    u, _, vh = torch.linalg.svd(matrices, full_matrices=False)
    factor = u @ vh
    result = optim.orthogonal(matrices)
    assert result.dtype == torch.float32
    assert result.shape == shape
    norms = result.norm(dim=(1, 2)) * factor.norm(dim=(1, 2))
    cosines = (result * factor).sum((1, 2)) / norms
    assert cosines.min() > 0.95
    assert torch.isfinite(optim.orthogonal(torch.zeros(shape))).all()


def test_muon_follows_adam_where_there_is_no_kernel():
    torch.manual_seed(0)
    by_muon = torch.nn.Parameter(torch.ones(7))
    by_adam = torch.nn.Parameter(torch.ones(7))
    muon = optim.Muon([by_muon], 0.02)
    adam = torch.optim.Adam([by_adam], 0.02 * optim.ADAM_SHARE)
    for _ in range(20):
        by_muon.grad = torch.randn(7)
        by_adam.grad = by_muon.grad.clone()
        muon.step()
        adam.step()
    assert torch.allclose(by_muon, by_adam, atol=1e-6)


def test_muon_moves_a_kernel_by_the_learning_rate_in_every_direction():
    kernel = torch.nn.Parameter(torch.zeros(8, 4, 3, 3))
    kernel.grad = torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(0)) * 1e-6
    optim.Muon([kernel], 0.1).step()
    moved = torch.linalg.svdvals(kernel.detach().flatten(1))
    assert moved.max() < 0.13
    assert moved.min() > 0.03


VIEWS = {"detach", "permute", "select", "transpose", "unbind", "view"}  # nothing is computed


class OperationCounter(TorchDispatchMode):
    """Counts what torch computes within the block: a kernel or more each on a GPU."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function.overloadpacket.__name__ not in VIEWS
        return function(*args, **(kwargs or {}))


def test_muon_starts_few_operations():
    model = UNET(features=[16, 16, 32, 64, 64])  # of preset fast
    model.to(memory_format=torch.channels_last)
    for parameter in model.parameters():
        parameter.grad = torch.rand_like(parameter)
    muon = optim.Muon(model.parameters(), 0.02)
    muon.step()  # makes its state
    with OperationCounter() as operations:
        muon.step()
    assert operations.count <= 275


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_muon_moves_each_kernel_by_its_formula(memory_format):
    """The first step: decay, Nesterov momentum 0.9, orthogonalized, scaled by the sides."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(8, 4, 3, 3), (16, 3, 2, 2), (8, 4, 3, 3), (32, 2, 2, 3), (2, 2, 1, 1)]
    starts = [torch.randn(shape, generator=generator) for shape in shapes]
    gradients = [torch.randn(shape, generator=generator) for shape in shapes]
    kernels = [
        torch.nn.Parameter(start.clone(memory_format=memory_format).detach()) for start in starts
    ]
    without_gradient = torch.nn.Parameter(torch.ones(4, 4, 1, 1))
    for kernel, gradient in zip(kernels, gradients, strict=True):
        kernel.grad = gradient.clone(memory_format=memory_format)
    optim.Muon([*kernels, without_gradient], 0.1, weight_decay=0.1).step()
    for kernel, start, gradient in zip(kernels, starts, gradients, strict=True):
        matrix = (1.9 * gradient).flatten(1)
        move = optim.orthogonal(matrix[None])[0].view(start.shape)
        scale = max(1, matrix.shape[0] / matrix.shape[1]) ** 0.5
        assert torch.allclose(kernel, 0.99 * start - 0.1 * scale * move, atol=2e-3)
    assert torch.equal(without_gradient, torch.ones(4, 4, 1, 1))


def test_muon_without_any_gradient_does_nothing():
    kernel = torch.nn.Parameter(torch.ones(4, 4, 1, 1))
    optim.Muon([kernel], 0.1, weight_decay=0.1).step()
    assert torch.equal(kernel, torch.ones(4, 4, 1, 1))


class MuonRun:
    """A small network and its optimizer, always the same at the start."""

    def __init__(self, memory_format):
        torch.manual_seed(0)
        self.model = UNET(features=[4, 8]).to(memory_format=memory_format)
        self.optimizer = optim.make_optimizer(
            "muon", self.model.parameters(), 0.02, torch.device("cpu")
        )
        self.images = torch.rand(4, 3, 16, 24, generator=torch.Generator().manual_seed(0))
        self.masks = (self.images[:, :1] > 0.5).float()

    def train(self, steps):
        """Return the loss of the last of so many steps."""
        for _ in range(steps):
            loss = F.binary_cross_entropy_with_logits(self.model(self.images), self.masks)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        return loss.item()

    def state(self):
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load(self, state):
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_muon_learns_and_its_state_resumes(memory_format, tmp_path):
    straight = MuonRun(memory_format)
    first_loss = straight.train(1)
    straight.train(9)
    torch.save(straight.state(), tmp_path / "state")
    assert straight.train(30) < 0.6 * first_loss
    resumed = MuonRun(memory_format)
    resumed.load(torch.load(tmp_path / "state", weights_only=True))
    resumed.train(30)
    assert is_same(straight.state(), resumed.state())


def test_learning_rate_constant():
    rates = {optim.learning_rate("constant", 0.1, 0.3, tenth / 10) for tenth in range(10)}
    assert rates == {0.1}


@pytest.mark.parametrize(
    "schedule, warmup", list(itertools.product(("linear", "quadratic"), (0.0, 0.1, 1.0)))
)
def test_learning_rate_rises_over_the_warmup_then_falls_to_zero(schedule, warmup):
    rates = [optim.learning_rate(schedule, 0.1, warmup, step / 1000) for step in range(1000)]
    assert all(0 < rate <= 0.1 for rate in rates)
    assert max(rates) == pytest.approx(0.1, rel=0.01)
    top = rates.index(max(rates))
    assert abs(top - 1000 * warmup) <= 1
    assert rates == sorted(rates[:top]) + sorted(rates[top:], reverse=True)
    assert warmup == 1.0 or rates[-1] < 0.0002


def test_average_of_constant_weights_is_those_weights():
    """At first it lies near the model, whatever it started from."""
    model = UNET(features=[2])
    average = UNET(features=[2])
    for steps in range(1, 400):
        optim.update_ema(average, model, 0.9, steps)
        if steps == 1:
            assert torch.allclose(average.final_conv.bias, model.final_conv.bias, atol=0.3)
    weights = zip(average.state_dict().values(), model.state_dict().values(), strict=True)
    assert all(torch.allclose(averaged, current, atol=1e-6) for averaged, current in weights)
