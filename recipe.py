"""What a training step follows: optimizers and learning rates, by the names that config.py gives them."""

import torch

# Of a step that brings singular values from (0, 1] near 1 (0.7 to 1.2) and is steep at 0, found by Keller Jordan:
# Muon: An optimizer for hidden layers in neural networks, 2024, https://kellerjordan.github.io/posts/muon/
# There five times; three did as well here.
QUINTIC, STEPS = (3.4445, -4.7750, 2.0315), 3
ADAM_SHARE = 0.15  # of the learning rate, for what is no kernel: an orthogonal step of 0.02 goes with Adam's of 0.003


def make_optimizer(name, parameters, learning_rate, device):
    """"adam" or "muon" -> the optimizer of these parameters."""
    if name == "muon":
        return Muon(parameters, learning_rate)
    return torch.optim.Adam(parameters, learning_rate, fused=device.type in ("cpu", "cuda"))


def learning_rate(schedule, highest, warmup, progress):
    """The rate at a point of the run, progress running from 0 at its first step to 1 behind its last.

    "constant"; else up to the highest over the share `warmup` of the run, then down to 0 as a straight line ("linear")
    or as its square ("quadratic": low sooner, for runs that end at a score)."""
    if schedule == "constant":
        return highest
    if progress < warmup:
        return highest * (progress + 1e-3) / (warmup + 1e-3)
    return highest * ((1 - progress) / (1 - warmup)) ** {"linear": 1, "quadratic": 2}[schedule]


class Muon(torch.optim.Optimizer):
    """Each kernel (out, in, h, w) moves by lr along its gradients' running sum, made orthogonal as an (out, in*h*w) matrix.

    All directions of a kernel are learnt at one pace, where plain gradients favour a few: many times fewer steps. Nesterov
    momentum; scaled by sqrt(max(1, rows / columns)). What has no rows and columns (BatchNorm, biases, the kernel of a
    single output) follows Adam (Kingma and Ba, 2015, arXiv:1412.6980) at ADAM_SHARE of lr."""

    def __init__(self, params, lr, momentum=0.9, betas=(0.9, 0.999), eps=1e-8):
        super().__init__(params, {"lr": lr, "momentum": momentum, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            kernels = {}  # those of one shape are done at once
            for p in group["params"]:
                if p.grad is not None:
                    if p.dim() == 4 and p.shape[0] > 1:
                        kernels.setdefault(p.shape, []).append(p)
                    else:
                        self._adam(p, **group)
            for alike in kernels.values():
                self._muon(alike, **group)

    def _muon(self, alike, lr, momentum, **_):
        directions = []
        for p in alike:
            total = self.state[p].setdefault("momentum", torch.zeros_like(p))
            total.mul_(momentum).add_(p.grad)
            directions.append(p.grad.add(total, alpha=momentum).flatten(1))
        matrices = orthogonal(torch.stack(directions))  # (kernels, out, in*h*w)
        scale = lr * max(1, matrices.shape[1] / matrices.shape[2]) ** 0.5
        for p, matrix in zip(alike, matrices):
            p.sub_(matrix.view(p.shape), alpha=scale)

    def _adam(self, p, lr, betas, eps, **_):
        state = self.state[p]
        if not state:
            state.update(step=0, mean=torch.zeros_like(p), square=torch.zeros_like(p))
        state["step"] += 1
        state["mean"].lerp_(p.grad, 1 - betas[0])
        state["square"].lerp_(p.grad.square(), 1 - betas[1])
        mean, square = (state[name] / (1 - beta ** state["step"]) for name, beta in zip(("mean", "square"), betas))
        p.sub_(mean / (square.sqrt() + eps), alpha=ADAM_SHARE * lr)


def orthogonal(matrices):
    """(B, m, n) -> about U V^T of each one's singular value decomposition U S V^T, float32, by Newton-Schulz in bfloat16."""
    tall = matrices.shape[1] > matrices.shape[2]
    x = (matrices / (torch.linalg.matrix_norm(matrices, keepdim=True) + 1e-12)).bfloat16()
    x = x.mT if tall else x
    a, b, c = QUINTIC
    for _ in range(STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).float()
