"""BatchNorm statistics measured again, under the weights that are evaluated."""

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from carvana.device import autocast, to_device


class BatchNormKeeper:
    """A copy of a model's BatchNorm statistics, to go back to.

    They move with every batch, the weights with every optimizer step, of several batches perhaps.
    """

    def __init__(self, model: nn.Module) -> None:
        self.buffers = list(model.buffers())
        self.copies = [buffer.clone() for buffer in self.buffers]

    def keep(self) -> None:
        """Copy the statistics as they are."""
        for copy, buffer in zip(self.copies, self.buffers, strict=True):
            copy.copy_(buffer)

    def restore(self) -> None:
        """Give the model the statistics that were kept."""
        for copy, buffer in zip(self.copies, self.buffers, strict=True):
            buffer.copy_(copy)


@torch.no_grad()
def settle_batchnorm(
    model: nn.Module, batches: Iterable[tuple[torch.Tensor, torch.Tensor]]
) -> None:
    """Average BatchNorm's statistics over batches of training images, in place.

    The running averages of training lag behind weights that still move, and depend on the last
    few batches. "Precise BatchNorm" of Wu and Johnson, Rethinking "Batch" in BatchNorm, 2021,
    arXiv:2105.07576.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
    model.train()
    seen = 0
    for images, masks in batches:
        seen += len(images)
        for norm in norms:
            norm.momentum = len(images) / seen  # a plain average: the last batch can be smaller
        with autocast(model):
            model(to_device(images, masks, model)[0])
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
