"""Draw the network of config.py's constants, as a forward pass finds it, to docs/unet.svg.

python tools/draw_unet.py [--preset NAME] [--any-constant VALUE ...]
"""

import sys
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import nn

import config
from carvana import options
from carvana.errors import user_errors
from carvana.files import replacing
from carvana.templating import render
from model import UNET, DoubleConv

PICTURE = Path(__file__).resolve().parent.parent / "docs" / "unet.svg"
STEP = 92  # pixels from block to block
FIRST_HEIGHT = 150  # pixels of a block on the first level
SHRINK = 0.66  # of the height, from level to level
MIN_HEIGHT = 20
GAP = 46  # pixels between levels
TOP = 56
Shape = tuple[int, int, int]  # channels, height, width


class Block(NamedTuple):
    """What a module returns, as a rectangle; pixels of the drawing."""

    kind: str  # image, block or deep
    channels: int
    size: str
    x: float  # of its middle
    top: float
    width: float
    height: float

    @property
    def left(self) -> float:
        return self.x - self.width / 2

    @property
    def right(self) -> float:
        return self.x + self.width / 2

    @property
    def middle(self) -> float:
        return self.top + self.height / 2

    @property
    def bottom(self) -> float:
        return self.top + self.height


def find_shapes(model: nn.Module, size: tuple[int, int]) -> list[Shape]:
    """Run one image through a network.

    Returns:
        (C, H, W) of the input, of what each DoubleConv returns, in order, and of the output.
    """
    recorder = ShapeRecorder()
    blocks = [module for module in model.modules() if isinstance(module, DoubleConv)]
    hooks = [block.register_forward_hook(recorder) for block in blocks]
    with torch.no_grad():
        output = model.eval()(torch.zeros(1, model.in_channels, *size))
    for hook in hooks:
        hook.remove()
    return [(model.in_channels, *size), *recorder.shapes, tuple(output.shape[1:])]


class ShapeRecorder:
    """A forward hook that remembers the shapes of outputs."""

    def __init__(self) -> None:
        self.shapes: list[Shape] = []

    def __call__(self, module: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        self.shapes.append(tuple(output.shape[1:]))


def place_blocks(shapes: list[Shape]) -> list[Block]:
    """Return a block for each shape: left to right, down to the bottleneck and up again."""
    deepest = (len(shapes) - 3) // 2
    heights = [max(MIN_HEIGHT, FIRST_HEIGHT * SHRINK**level) for level in range(deepest + 1)]
    tops = [TOP + sum(heights[:level]) + GAP * level for level in range(deepest + 1)]
    blocks = []
    last = len(shapes) - 1
    for i, (channels, rows, columns) in enumerate(shapes):
        level = min(i - 1, last - 1 - i)
        kind = "deep" if level == deepest else "block"
        width = 10 + 4.2 * (channels.bit_length() - 1)
        if i in (0, last):
            level = 0
            kind = "image"
            width = 14
        x = 50 + STEP * i
        size = f"{rows}×{columns}"
        blocks.append(Block(kind, channels, size, x, tops[level], width, heights[level]))
    return blocks


def draw(model: nn.Module, size: tuple[int, int]) -> str:
    """Return the drawing of a network for images of this size (H, W), as SVG."""
    blocks = place_blocks(find_shapes(model, size))
    deepest = (len(blocks) - 3) // 2
    parameters = sum(parameter.numel() for parameter in model.parameters())
    title = f"UNET, {parameters / 1e6:.2f} M parameters"
    if model.unshuffle > 1:
        title += f", {model.unshuffle}x{model.unshuffle} pixels to channels first"
    return render(
        "unet.svg.jinja",
        escape=False,
        folder=Path(__file__).parent,
        title=title,
        blocks=blocks,
        pairs=list(zip(blocks, blocks[1:], strict=False)),
        skips=[(blocks[1 + level], blocks[-2 - level]) for level in range(deepest)],
        width=STEP * len(blocks) + 8,
        height=max(block.bottom for block in blocks) + GAP + 46,
    )


def main() -> None:
    """Draw the network of the constants."""
    cfg = options.load(config, description=__doc__)
    network = UNET(cfg.IN_CHANNELS, len(cfg.CLASSES), cfg.FEATURES, cfg.UNSHUFFLE)
    with replacing(PICTURE) as temporary:
        size = cfg.CROP_HEIGHT or cfg.IMAGE_HEIGHT, cfg.CROP_WIDTH or cfg.IMAGE_WIDTH
        drawing = draw(network, size)
        temporary.write_text(drawing, encoding="utf-8")
    print(PICTURE)


if __name__ == "__main__":
    with user_errors():
        main()
