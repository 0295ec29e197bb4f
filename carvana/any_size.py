"""A network in the form that exporters can trace for any size of image."""

import torch
from torch import nn
from torch.nn import functional as F


class AnySize(nn.Module):
    """A network for any height and width without a branch, which tracing would fix."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits of images (B, C, H, W)."""
        height, width = x.shape[2:]
        multiple: int = self.model.multiple  # type: ignore[assignment]
        right = (multiple - width % multiple) % multiple
        bottom = (multiple - height % multiple) % multiple
        x = F.pad(x, [0, right, 0, bottom], mode="replicate")
        return self.model(x)[:, :, :height, :width]


def example_input(model: nn.Module) -> torch.Tensor:
    """Return images of a size that needs padding."""
    multiple: int = model.multiple  # type: ignore[assignment]
    size = (2, model.in_channels, multiple + 3, multiple + 5)
    return torch.rand(size)  # type: ignore[arg-type]
