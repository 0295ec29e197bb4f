"""Cutouts: the old background's color is taken out of soft edges."""

import cv2
import numpy as np

from carvana.matting import composite, matte


def soft_disc():
    """Return the share of each pixel that a disc covers, its edge blurred as by a lens."""
    y, x = np.mgrid[:200, :300]
    return np.clip((60 - np.hypot(y - 100, x - 150)) / 4 + 0.5, 0, 1).astype(np.float32)


def test_matte_takes_out_the_colors_of_the_old_background():
    """A red disc on a white wall; the logits are those of the true shares."""
    share = soft_disc()
    red = np.float32([200, 20, 30])
    white = np.float32([245, 245, 245])
    photograph = np.round(share[..., None] * red + (1 - share[..., None]) * white).astype(np.uint8)
    probability = np.clip(share, 1e-6, 1 - 1e-6)
    logits = np.log(probability / (1 - probability)).astype(np.float32)
    colors, alpha = matte(photograph, logits, scale=1)
    edge = (alpha > 30) & (alpha < 225)
    assert edge.sum() > 300
    assert np.abs(alpha / 255 - share).max() < 0.01
    assert np.abs(colors[edge] - red).mean() < 8
    assert np.abs(photograph[edge] - red).mean() > 60
    black = composite(colors, alpha, (0, 0, 0))
    assert np.abs(black - share[..., None] * red).max() < 25
    on_photograph = composite(colors, alpha, np.full((50, 900, 3), 7, np.uint8))
    assert on_photograph[0, 0].tolist() == [7, 7, 7]


def test_matte_has_a_sharp_edge_at_any_scale():
    """Upsampled logits of a small network: the edge is two or three pixels wide, not sixteen."""
    small = np.tile(np.linspace(-8, 8, 12, dtype=np.float32), (12, 1))
    photograph = np.zeros((96, 96, 3), np.uint8)
    _, alpha = matte(photograph, cv2.resize(small, (96, 96)), scale=8)
    assert 1 <= ((alpha[48] > 25) & (alpha[48] < 230)).sum() <= 7
