"""What a training step follows: optimizers and learning rates, by the names that config.py gives them."""

import functools
import math

import torch
from torch.nn import functional as F

# Of a step that brings singular values from (0, 1] near 1 (0.7 to 1.2) and is steep at 0, found by Keller Jordan:
# Muon: An optimizer for hidden layers in neural networks, 2024, https://kellerjordan.github.io/posts/muon/
# There five times; three did as well here.
QUINTIC, STEPS = (3.4445, -4.7750, 2.0315), 3
ADAM_SHARE = 0.15  # of the learning rate, for what is no kernel: an orthogonal step of 0.02 goes with Adam's of 0.003


EDGE_WEIGHT, EDGE_REACH = (
    4.0,
    1 / 32,
)  # of the edge loss: on top of 1, and how far from the outline, as a share of the height


def make_loss(name, labels=None, positive_weight=1.0):
    """ "bce", "dice", "bce_dice" or "edge" -> loss_fn(logits, masks), float32 logits (B, C, H, W).

    Of one class C is 1 and masks are float32 (B, 1, H, W) in [0, 1]. With labels (pictures.Labels) C is their number, masks are
    int64 (B, H, W), and cross entropy takes the place of its binary form. positive_weight: of foreground, or all classes but the first, in "bce" and "bce_dice"."""
    if labels is None:

        def cross_entropy(logits, masks):
            return F.binary_cross_entropy_with_logits(
                logits,
                masks,
                pos_weight=_weights((positive_weight,), logits.device)
                if positive_weight != 1
                else None,
            )

        return {
            "bce": cross_entropy,
            "dice": lambda logits, masks: dice_loss(torch.sigmoid(logits), masks),
            "edge": edge_loss,
            "bce_dice": lambda logits, masks: (
                cross_entropy(logits, masks) + dice_loss(torch.sigmoid(logits), masks)
            ),
        }[name]

    def cross_entropy(logits, masks):
        weight = _weights((1.0,) + (positive_weight,) * (len(labels.names) - 1), logits.device)
        sums = F.cross_entropy(logits, masks, weight, ignore_index=labels.ignore, reduction="sum")
        counted = torch.where(
            masks == labels.ignore, 0.0, weight[masks.clamp(max=len(labels.names) - 1)]
        ).sum()
        return sums / counted.clamp(min=1)  # where all is to be ignored: 0, not a number

    def dice(logits, masks):
        known = (masks != labels.ignore).unsqueeze(1)
        return dice_loss(torch.softmax(logits, 1) * known, one_hot(masks, labels))

    return {
        "bce": cross_entropy,
        "dice": dice,
        "bce_dice": lambda logits, masks: cross_entropy(logits, masks) + dice(logits, masks),
        "edge": lambda logits, masks: edge_loss(logits, masks, labels),
    }[name]


@functools.lru_cache
def _weights(values, device):
    return torch.tensor(values, device=device)


def one_hot(masks, labels):
    """int64 (B, H, W) -> float32 (B, C, H, W), 0 for all classes where a pixel is to be ignored."""
    return torch.stack([masks == index for index in range(len(labels.names))], 1).float()


def dice_loss(p, t):
    """1 - (2 sum(p t) + 1) / (sum(p) + sum(t) + 1) of probabilities p and masks t, (B, C, H, W) both, a mean over images and classes.

    Milletari et al., V-Net, 2016, arXiv:1606.04797, with the sums of Sudre et al., 2017, arXiv:1707.03237."""
    p, t = p.flatten(2), t.flatten(2)
    return (1 - (2 * (p * t).sum(2) + 1) / (p.sum(2) + t.sum(2) + 1)).mean()


def edge_loss(logits, masks, labels=None):
    """Cross entropy, each pixel weighted by 1 + EDGE_WEIGHT * 4 m (1 - m), m the mask's mean around it, and divided by the weights' mean.

    After the border weights of Ronneberger et al., 2015, arXiv:1505.04597, equation 2, by a mean instead of a distance. Of several
    classes, 2 (1 - the sum of m * m over the classes) stands for 4 m (1 - m), which it is for two."""
    reach, m = (
        max(1, round(EDGE_REACH * masks.shape[-2])),
        masks if labels is None else one_hot(masks, labels),
    )
    m = means_around(
        means_around(m, reach).mT, reach
    ).mT  # a square's mean is that of its rows' means
    if labels is None:
        weights = 1 + EDGE_WEIGHT * 4 * m * (1 - m)
        return F.binary_cross_entropy_with_logits(logits, masks, weights / weights.mean())
    weights = (1 + EDGE_WEIGHT * 2 * (1 - m.square().sum(1))) * (masks != labels.ignore)
    return (
        F.cross_entropy(logits, masks, ignore_index=labels.ignore, reduction="none") * weights
    ).sum() / weights.sum().clamp(min=1)


def means_around(values, reach):
    """float (..., n) -> the mean of each value and its neighbours up to `reach` away: differences of running sums, as fast for any reach."""
    at, sums = (
        torch.arange(values.shape[-1], device=values.device),
        F.pad(values.cumsum(-1), (1, 0)),
    )
    low, high = (at - reach).clamp(min=0), (at + reach + 1).clamp(max=len(at))
    return (sums[..., high] - sums[..., low]) / (high - low)


def make_optimizer(name, parameters, learning_rate, device, weight_decay=0.0):
    """ "adam" or "muon" -> the optimizer of these parameters; weight decay is decoupled (Loshchilov and Hutter, 2019, arXiv:1711.05101)."""
    if name == "muon":
        return Muon(parameters, learning_rate, weight_decay=weight_decay)
    return torch.optim.Adam(
        parameters,
        learning_rate,
        weight_decay=weight_decay,
        decoupled_weight_decay=weight_decay > 0,
        fused=device.type in ("cpu", "cuda"),
    )


@torch.no_grad()
def average_weights(average, model, decay, steps):
    """Move the weights and BatchNorm statistics of `average` towards the model's; of its own stay `decay`, at first less: (1 + steps) / (10 + steps)."""
    stays = min(decay, (1 + steps) / (10 + steps))
    for mine, new in zip(average.state_dict().values(), model.state_dict().values()):
        if mine.is_floating_point():
            mine.lerp_(new, 1 - stays)
        else:
            mine.copy_(new)


def shrunk(images, masks, share, multiple):
    """Images (B, C, H, W) and masks, float (B, 1, H, W) or indices of classes (B, H, W), at about this share of their size, sides a multiple of `multiple`, by area (indices by nearest)."""
    if share == 1:
        return images, masks
    size = [max(multiple, round(share * side / multiple) * multiple) for side in images.shape[2:]]
    if masks.is_floating_point():
        return (F.interpolate(each, size=size, mode="area") for each in (images, masks))
    return F.interpolate(images, size=size, mode="area"), F.interpolate(
        masks[:, None].float(), size=size, mode="nearest"
    )[:, 0].long()


def learning_rate(schedule, highest, warmup, progress):
    """The rate at a point of the run, progress running from 0 at its first step to 1 behind its last.

    "constant"; else up to the highest over the share `warmup` of the run, then down to 0: as a straight line ("linear"; with much
    of warm-up the one cycle of Smith and Topin, 2018, arXiv:1708.07120), as its square ("quadratic": low sooner, for runs that
    end at a score), or as half a wave ("cosine": Loshchilov and Hutter, 2017, arXiv:1608.03983)."""
    if schedule == "constant":
        return highest
    if progress < warmup:
        return highest * (progress + 1e-3) / (warmup + 1e-3)
    left = (1 - progress) / (1 - warmup) if warmup < 1 else 0
    return highest * (
        (1 - math.cos(math.pi * left)) / 2
        if schedule == "cosine"
        else left ** {"linear": 1, "quadratic": 2}[schedule]
    )


class Muon(torch.optim.Optimizer):
    """Each kernel (out, in, h, w) moves by lr along its gradients' running sum, made orthogonal as an (out, in*h*w) matrix.

    All directions of a kernel are learnt at one pace, where plain gradients favour a few: many times fewer steps. Nesterov
    momentum; scaled by sqrt(max(1, rows / columns)). What has no rows and columns (BatchNorm, biases, the kernel of a
    single output) follows Adam (Kingma and Ba, 2015, arXiv:1412.6980) at ADAM_SHARE of lr."""

    def __init__(self, params, lr, momentum=0.9, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0):
        super().__init__(
            params,
            {
                "lr": lr,
                "momentum": momentum,
                "betas": betas,
                "eps": eps,
                "weight_decay": weight_decay,
            },
        )

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            kernels = {}  # those of one shape are done at once
            for p in group["params"]:
                if p.grad is not None:
                    p.mul_(1 - group["lr"] * group["weight_decay"])
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
        mean, square = (
            state[name] / (1 - beta ** state["step"])
            for name, beta in zip(("mean", "square"), betas)
        )
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
