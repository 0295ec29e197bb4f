"""A training step on a GPU that Python starts in a few calls, not kernel by kernel."""

from collections.abc import Sequence

import torch
from torch import nn

from carvana.batchnorm import BatchNormKeeper
from carvana.device import device_of, has_cuda_graphs, record_forward
from carvana.errors import error_summary, warn


def recorded(network: nn.Module, shape: Sequence[int]) -> nn.Module:
    """Return a network as a RecordedNetwork; where it cannot be recorded, as it is."""
    if not has_cuda_graphs(device_of(network)):
        return network
    try:
        return RecordedNetwork(network, shape)
    except RuntimeError as error:  # of the driver or of torch, or for want of memory
        warn(
            "warning: the GPU's kernels could not be recorded, and are started one by one "
            f"({error_summary(error)}); COMPILE false does not try"
        )
        return network


class RecordedNetwork(nn.Module):
    """A network whose forward and backward passes are recorded once, each as a CUDA graph.

    To start kernels one by one can take longer than a fast GPU takes to run them. A graph holds for
    one shape of batches; the kernels of any others are started one by one.

    Its gradients lie where the next backward pass overwrites them: they do not add up over batches.
    The graphs keep the memory of a whole step; other batches and evaluations need theirs on top.
    While it is made, nothing else may use the GPU, such as a loader that pins memory.

    Args:
        network: on a GPU; its weights and statistics stay as they are.
        shape: (B, C, H, W) of the batches.
    """

    def __init__(self, network: nn.Module, shape: Sequence[int]) -> None:
        super().__init__()
        self.module = network
        self.shape = torch.Size(shape)
        statistics = BatchNormKeeper(network)  # which recording moves
        statistics.keep()
        try:
            self.replay = record_forward(network, self.shape)
        finally:
            statistics.restore()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.training and images.shape == self.shape:
            return self.replay(images)
        return self.module(images)
