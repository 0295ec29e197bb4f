"""U-Net (Ronneberger et al., 2015, arXiv:1505.04597) with padded convolutions and BatchNorm."""

import torch
from torch import nn
from torch.nn import functional as F


class DoubleConv(nn.Module):
    """(3x3 convolution, BatchNorm, ReLU) twice.

    (B, in_channels, H, W) -> (B, out_channels, H, W)
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        # No bias: BatchNorm has one.
        self.conv = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x)


class UNET(nn.Module):
    """(B, in_channels, H, W) float -> logits (B, out_channels, H, W), for any H and W.

    A picture whose sides `multiple` does not divide is continued at its right and lower edge, and
    the logits are cropped back.

    Args:
        features: channels of each level; the bottleneck has twice the last.
        unshuffle: side of the blocks of pixels that become channels before the first level, and
            pixels again after the last (Shi et al., 2016, arXiv:1609.05158).

    Raises:
        ValueError: an input of another shape, or a training batch that leaves BatchNorm a single
            value per channel.
    """

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 1,
        features: list[int] = [64, 128, 256, 512],  # noqa: B006 (the tutorials' signature)
        unshuffle: int = 1,
    ) -> None:
        super().__init__()
        self.downs = nn.ModuleList()
        self.ups = nn.ModuleList()
        self.pool = nn.MaxPool2d(2)
        self.in_channels = in_channels
        self.unshuffle = unshuffle
        self.multiple = unshuffle * 2 ** len(features)
        channels = in_channels * unshuffle**2
        for feature in features:
            self.downs.append(DoubleConv(channels, feature))
            channels = feature
        self.bottleneck = DoubleConv(channels, 2 * channels)
        channels = 2 * channels
        for feature in reversed(features):
            # channels is 2 * feature where features double
            self.ups.append(nn.ConvTranspose2d(channels, feature, kernel_size=2, stride=2))
            self.ups.append(DoubleConv(2 * feature, feature))
            channels = feature
        self.final_conv = nn.Conv2d(features[0], out_channels * unshuffle**2, kernel_size=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.dim() != 4 or x.shape[1] != self.in_channels:
            raise ValueError(
                f"expected images of shape (B, {self.in_channels}, H, W), got {tuple(x.shape)}"
            )
        height, width = x.shape[2:]
        multiple = self.multiple
        if height % multiple or width % multiple:
            x = F.pad(x, (0, -width % multiple, 0, -height % multiple), mode="replicate")
        if self.training and x.shape[0] * x.shape[2] * x.shape[3] == multiple**2:
            raise ValueError(
                f"a training batch of one {height}x{width} image leaves BatchNorm a single value "
                "per channel; train with a larger batch, or with images over "
                f"{multiple}x{multiple} pixels"
            )

        if self.unshuffle > 1:
            x = F.pixel_unshuffle(x, self.unshuffle)  # (B, C, u * h, u * w) -> (B, C * u * u, h, w)
        skips = []
        for down in self.downs:
            x = down(x)  # (B, f, h, w)
            skips.append(x)
            x = self.pool(x)  # (B, f, h/2, w/2)
        x = self.bottleneck(x)  # (B, 2f, h, w) at the lowest resolution
        levels = zip(self.ups[::2], self.ups[1::2], reversed(skips), strict=True)
        for up, double_conv, skip in levels:
            x = up(x)  # (B, 2f, h, w) -> (B, f, 2h, 2w)
            x = double_conv(torch.cat((skip, x), dim=1))  # (B, 2f, 2h, 2w) -> (B, f, 2h, 2w)
        x = self.final_conv(x)
        if self.unshuffle > 1:
            # (B, out * u * u, h, w) -> (B, out, u * h, u * w)
            x = F.pixel_shuffle(x, self.unshuffle)
        return x[:, :, :height, :width]
