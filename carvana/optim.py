"""What a training step follows: optimizers, learning rates, weight averages, image sizes."""

import functools
import math
from collections.abc import Iterable, Sequence

import torch
from torch import nn
from torch.nn import functional as F

from carvana.device import fused_adam, product_dtype, resize_by_area
from carvana.schema import pick

# Coefficients of a step that brings singular values from (0, 1] near 1 (0.7 to 1.2) and is steep
# at 0, found by Keller Jordan: Muon: An optimizer for hidden layers in neural networks, 2024,
# https://kellerjordan.github.io/posts/muon/. Five steps there; three did as well here.
QUINTIC = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 3
ADAM_SHARE = 0.15  # of Muon's learning rate, for all but kernels: 0.003 goes with 0.02
SIDE_MULTIPLE = 16  # pixels; the sides of reduced training images are multiples of it


def make_optimizer(
    name: str,
    parameters: Iterable[nn.Parameter],
    learning_rate: float,
    device: torch.device,
    weight_decay: float = 0.0,
) -> torch.optim.Optimizer:
    """Return the optimizer "adam" or "muon".

    Weight decay is decoupled (Loshchilov and Hutter, 2019, arXiv:1711.05101).

    Raises:
        UserError: it is called something else.
    """
    adam = torch.optim.AdamW if weight_decay > 0 else torch.optim.Adam
    optimizers = {"adam": functools.partial(adam, fused=fused_adam(device)), "muon": Muon}
    optimizer = pick(optimizers, name, "OPTIMIZER")
    return optimizer(parameters, learning_rate, weight_decay=weight_decay)


def learning_rate(schedule: str, peak: float, warmup: float, progress: float) -> float:
    """Return the learning rate at a point of the run.

    "constant" stays at the peak. The others rise to it over the share `warmup` of the run, then
    fall to 0: "linear" as a straight line (with a long warm-up the one cycle of Smith and Topin,
    2018, arXiv:1708.07120), "quadratic" as its square (low sooner, for runs that stop at a
    score), "cosine" as half a wave (Loshchilov and Hutter, 2017, arXiv:1608.03983).

    Args:
        progress: 0 at the first step of the run, 1 after its last.
    """
    if progress < warmup and schedule != "constant":
        return peak * (progress + 1e-3) / (warmup + 1e-3)
    remaining = (1 - progress) / (1 - warmup) if warmup < 1 else 0
    shares = {
        "constant": 1.0,
        "linear": remaining,
        "quadratic": remaining**2,
        "cosine": (1 - math.cos(math.pi * remaining)) / 2,
    }
    return peak * pick(shares, schedule, "SCHEDULE")


def resolution(shares: Sequence[float], progress: float) -> float:
    """Return the share of the image size to train at, each being used for an equal time."""
    return shares[min(int(progress * len(shares)), len(shares) - 1)]


def resize_batch(
    images: torch.Tensor, masks: torch.Tensor, share: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a batch at about this share of its size, by area (class indices by nearest).

    Args:
        images: float (B, C, H, W).
        masks: float (B, 1, H, W), or class indices (B, H, W).
    """
    if share == 1:
        return images, masks
    size = [
        max(SIDE_MULTIPLE, round(share * side / SIDE_MULTIPLE) * SIDE_MULTIPLE)
        for side in images.shape[2:]
    ]
    images = resize_by_area(images, size)
    if masks.is_floating_point():
        return images, resize_by_area(masks, size)
    indices = F.interpolate(masks[:, None].float(), size=size, mode="nearest")
    return images, indices[:, 0].long()


@torch.no_grad()
def update_ema(ema_model: nn.Module, model: nn.Module, decay: float, steps: float) -> None:
    """Move the weights and BatchNorm statistics of `ema_model` toward the model's.

    The decay starts lower: min(decay, (1 + steps) / (10 + steps)).
    """
    decay = min(decay, (1 + steps) / (10 + steps))
    averages, currents = [], []
    pairs = zip(ema_model.state_dict().values(), model.state_dict().values(), strict=True)
    for average, current in pairs:
        if average.is_floating_point():
            averages.append(average)
            currents.append(current)
        else:
            average.copy_(current)
    torch._foreach_lerp_(averages, currents, 1 - decay)


class Muon(torch.optim.Optimizer):
    """Move each kernel by lr along the orthogonalized running sum of its gradients.

    A kernel (out, in, h, w) counts as an (out, in*h*w) matrix. All its directions are learned at
    one pace, where plain gradients favor a few: many times fewer steps. Nesterov momentum; scaled
    by sqrt(max(1, rows / columns)). What has no rows and columns (BatchNorm, biases, the kernel of
    a single output) follows Adam (Kingma and Ba, 2015, arXiv:1412.6980) at ADAM_SHARE of lr.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float,
        momentum: float = 0.9,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update all parameters that have a gradient.

        A GPU would wait for hundreds of small kernels, hence torch's operations on whole lists.
        """
        for group in self.param_groups:
            moving: list[torch.Tensor] = [
                parameter for parameter in group["params"] if parameter.grad is not None
            ]
            kernels = [item for item in moving if item.dim() == 4 and item.shape[0] > 1]
            others = [item for item in moving if item.dim() != 4 or item.shape[0] == 1]
            if moving and group["weight_decay"]:
                torch._foreach_mul_(moving, 1 - group["lr"] * group["weight_decay"])
            if kernels:
                self._muon_step(kernels, group)
            if others:
                self._adam_step(others, group)

    def _muon_step(self, kernels: list[torch.Tensor], group: dict) -> None:
        momentum = group["momentum"]
        for kernel in kernels:
            if not self.state[kernel]:
                self.state[kernel]["momentum"] = torch.zeros_like(kernel)
        totals = [self.state[kernel]["momentum"] for kernel in kernels]
        gradients = _gradients(kernels)
        torch._foreach_mul_(totals, momentum)
        torch._foreach_add_(totals, gradients)
        directions = torch._foreach_add(gradients, totals, alpha=momentum)
        torch._foreach_add_(kernels, _orthogonal_kernels(directions), alpha=-group["lr"])

    def _adam_step(self, parameters: list[torch.Tensor], group: dict) -> None:
        states = [self.state[parameter] for parameter in parameters]
        for state, parameter in zip(states, parameters, strict=True):
            if not state:
                state["step"] = 0
                state["mean"] = torch.zeros_like(parameter)
                state["square"] = torch.zeros_like(parameter)
            state["step"] += 1
        gradients = _gradients(parameters)
        means = [state["mean"] for state in states]
        squares = [state["square"] for state in states]
        beta_mean, beta_square = group["betas"]
        torch._foreach_lerp_(means, gradients, 1 - beta_mean)
        torch._foreach_lerp_(squares, torch._foreach_mul(gradients, gradients), 1 - beta_square)
        # Both begin at 0, and are low at first by these shares.
        mean_shares = [1 - beta_mean ** state["step"] for state in states]
        square_shares = [1 - beta_square ** state["step"] for state in states]
        moves = torch._foreach_div(means, mean_shares)
        roots = torch._foreach_sqrt(torch._foreach_div(squares, square_shares))
        torch._foreach_add_(roots, group["eps"])
        step_size = ADAM_SHARE * group["lr"]
        torch._foreach_addcdiv_(parameters, moves, roots, value=-step_size)


def _gradients(parameters: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def _orthogonal_kernels(kernels: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return each kernel (out, in, h, w) as Muon moves it; those of one shape share products."""
    by_shape: dict[torch.Size, list[int]] = {}
    for index, kernel in enumerate(kernels):
        by_shape.setdefault(kernel.shape, []).append(index)
    moves = list(kernels)
    for (rows, channels, height, width), indices in by_shape.items():
        # As (rows, h*w*in): channels last, which is their order in memory.
        matrices = [kernels[index].permute(0, 2, 3, 1).flatten(1) for index in indices]
        products = orthogonal(torch.stack(matrices))
        products *= max(1, rows / (channels * height * width)) ** 0.5
        for index, product in zip(indices, products, strict=True):
            moves[index] = product.view(rows, height, width, channels).permute(0, 3, 1, 2)
    return moves


def orthogonal(matrices: torch.Tensor) -> torch.Tensor:
    """Return about U V^T of each matrix's singular value decomposition U S V^T.

    By Newton-Schulz steps, in bfloat16 where the device computes in it.

    Args:
        matrices: float32 (B, m, n).
    """
    tall = matrices.shape[1] > matrices.shape[2]
    norms = torch.linalg.matrix_norm(matrices, keepdim=True)
    x = (matrices / (norms + 1e-12)).to(product_dtype(matrices.device))
    if tall:
        x = x.mT
    a, b, c = QUINTIC
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = torch.bmm(x, x.mT)
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)  # b gram + c gram^2
        x = torch.baddbmm(x, polynomial, x, beta=a)  # a x + polynomial x
    if tall:
        x = x.mT
    return x.float()
