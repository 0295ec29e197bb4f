"""Draw the network of config.py's constants, as a forward pass finds it: python docs/unet.py [--preset NAME] [--any-constant VALUE ...]

Writes unet.svg beside this file."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch  # noqa: E402

import config  # noqa: E402
from model import UNET, DoubleConv  # noqa: E402
from pictures import replacing, user_errors  # noqa: E402

STEP, TALL, SHRINK, GAP = (
    92,
    150,
    0.66,
    46,
)  # pixels: from block to block, the first level's height, the next one's share of it, between levels
STYLE = """
svg { color-scheme: light dark } text { font: 13px system-ui, sans-serif; fill: #1c1c1e } .small { font-size: 11px; fill: #55555c }
.block { fill: #bcd9ee; stroke: #0060a8 } .deep { fill: #f6d6a8; stroke: #a86400 } .image { fill: #d9d9de; stroke: #77777f }
.way { fill: none; stroke: #55555c; stroke-width: 1.6; marker-end: url(#head) } .skip { stroke-dasharray: 5 4 } .down { stroke: #b03a2e } .up { stroke: #1e7d4b } marker path { fill: #55555c }
@media (prefers-color-scheme: dark) { text { fill: #ececf0 } .small { fill: #b0b0ba } .block { fill: #1d4866; stroke: #6cb8f0 } .deep { fill: #5c4219; stroke: #eeb55c }
  .image { fill: #3a3a42; stroke: #9a9aa4 } .way { stroke: #b0b0ba } .down { stroke: #ff8f80 } .up { stroke: #6fd3a0 } marker path { fill: #b0b0ba } }
"""


def shapes(model, size):
    """A forward pass of one image -> (C, H, W) of the input, of what each DoubleConv returns, in order, and of the output."""
    found = [(model.in_channels, *size)]
    hooks = [
        module.register_forward_hook(
            lambda module, inputs, output: found.append(tuple(output.shape[1:]))
        )
        for module in model.modules()
        if isinstance(module, DoubleConv)
    ]
    with torch.no_grad():
        output = model.eval()(torch.zeros(1, model.in_channels, *size))
    for hook in hooks:
        hook.remove()
    return [*found, tuple(output.shape[1:])]


def svg(model, size):
    """The picture as text."""
    found = shapes(model, size)
    levels = (len(found) - 3) // 2
    tops, heights, y = [], [], 56
    for level in range(levels + 1):
        heights.append(max(20, TALL * SHRINK**level))
        tops.append(y)
        y += heights[-1] + GAP
    width, height = STEP * (2 * levels + 2) + 100, y + 46
    drawn, centres = [], []
    for i, (channels, rows, columns) in enumerate(found):
        image = i in (0, len(found) - 1)
        level = 0 if image else min(i - 1, len(found) - 2 - i)
        wide = 14 if image else 10 + 4.2 * (channels.bit_length() - 1)
        x, top, tall = 50 + STEP * i, tops[level], heights[level]
        centres.append((x, top + tall / 2, wide / 2, top, top + tall))
        kind = "image" if image else "deep" if level == levels else "block"
        drawn.append(
            f'<rect class="{kind}" x="{x - wide / 2:.1f}" y="{top:.1f}" width="{wide:.1f}" height="{tall:.1f}" rx="3"/>'
        )
        drawn.append(f'<text x="{x:.1f}" y="{top - 7:.1f}" text-anchor="middle">{channels}</text>')
        drawn.append(
            f'<text class="small" x="{x:.1f}" y="{top + tall + 15:.1f}" text-anchor="middle">{rows}×{columns}</text>'
        )
    last = len(found) - 1
    for i, ((x, y, half, top, bottom), (to_x, to_y, to_half, to_top, to_bottom)) in enumerate(
        zip(centres, centres[1:])
    ):
        if i in (0, last - 1):
            drawn.append(
                f'<path class="way" d="M{x + half + 3:.1f} {y:.1f}H{to_x - to_half - 5:.1f}"/>'
            )
        elif to_top > top:  # down a level
            drawn.append(
                f'<path class="way down" d="M{x + half + 3:.1f} {bottom - 8:.1f}H{to_x:.1f}V{to_top - 24:.1f}"/>'
            )
        else:
            drawn.append(
                f'<path class="way up" d="M{x + half + 3:.1f} {top + 8:.1f}H{to_x:.1f}V{to_bottom + 22:.1f}"/>'
            )
    for level in range(levels):
        (x, y, half, top, _), (to_x, _, to_half, _, _) = (
            centres[1 + level],
            centres[last - 1 - level],
        )
        drawn.append(
            f'<path class="way skip" d="M{x + half + 3:.1f} {top + 12:.1f}H{to_x - to_half - 5:.1f}"/>'
        )
    folded = (
        f", {model.unshuffle}x{model.unshuffle} pixels to channels first"
        if model.unshuffle > 1
        else ""
    )
    parameters = sum(p.numel() for p in model.parameters())
    legend = (
        f'<text x="{width / 2:.0f}" y="20" text-anchor="middle">UNET, {parameters / 1e6:.2f} M parameters{folded}</text>'
        + "".join(
            f'<path class="way {kind}" d="M{x:.0f} {height - 36:.0f}h34"/><text class="small" x="{x + 42:.0f}" y="{height - 32:.0f}">{words}</text>'
            for x, kind, words in (
                (20, "skip", "skip connection"),
                (190, "down", "2x2 max pooling"),
                (360, "up", "2x2 transposed convolution"),
            )
        )
        + f'<text class="small" x="20" y="{height - 10:.0f}">blocks: (3x3 convolution, BatchNorm, ReLU) twice; channels above, size below</text>'
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="The U-Net: {" ".join(str(one[0]) for one in found)} channels from input to output">\n'
        f'<style>{STYLE}</style>\n<defs><marker id="head" viewBox="0 0 8 8" refX="6" refY="4" markerWidth="7" markerHeight="7" orient="auto"><path d="M0 0L8 4L0 8z"/></marker></defs>\n'
        + "\n".join(drawn)
        + f"\n{legend}\n</svg>\n"
    )


if __name__ == "__main__":
    with user_errors():
        cfg = config.load(description=__doc__)
        network = UNET(cfg.IN_CHANNELS, len(cfg.CLASSES), cfg.FEATURES, cfg.UNSHUFFLE)
        path = Path(__file__).with_name("unet.svg")
        with replacing(path) as temporary:
            temporary.write_text(
                svg(network, (cfg.IMAGE_HEIGHT, cfg.IMAGE_WIDTH)), encoding="utf-8"
            )
        print(path)
