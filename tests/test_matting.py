"""Cutouts: the old background's color is taken out of soft edges."""

import cv2
import numpy as np
import pytest

from carvana import matting
from carvana.matting import composite, matte, with_alpha


def soft_disc(height=200, width=300, radius=60):
    """Return the share of each pixel that a disc covers, its edge blurred as by a lens."""
    y, x = np.mgrid[:height, :width]
    distance = np.hypot(y - height / 2, x - width / 2)
    return np.clip((radius - distance) / 4 + 0.5, 0, 1).astype(np.float32)


def logits_of(share):
    probability = np.clip(share, 1e-6, 1 - 1e-6)
    return np.log(probability / (1 - probability)).astype(np.float32)


def mix(share, color, background):
    """Return the photograph of a color before a background, uint8 (H, W, 3)."""
    weight = share[..., None]
    return np.round(weight * color + (1 - weight) * background).astype(np.uint8)


def speckled_photograph(share, seed=0):
    """Return a photograph of two patterns of colors, one behind the other."""
    rng = np.random.default_rng(seed)
    patterns = [
        cv2.resize(rng.integers(0, 256, (9, 13, 3), dtype=np.uint8), share.shape[::-1])
        for _ in range(2)
    ]
    return mix(share, *(pattern.astype(np.float32) for pattern in patterns))


def test_matte_takes_out_the_colors_of_the_old_background():
    """A red disc on a white wall; the logits are those of the true shares."""
    share = soft_disc()
    red = np.float32([200, 20, 30])
    photograph = mix(share, red, np.float32([245, 245, 245]))
    colors, alpha = matte(photograph, logits_of(share), scale=1)
    edge = (alpha > 30) & (alpha < 225)
    assert edge.sum() > 300
    assert np.abs(alpha / 255 - share).max() < 0.01
    assert np.abs(colors[edge] - red).mean() < 8
    assert np.abs(photograph[edge] - red).mean() > 60
    cutout = with_alpha(colors, alpha)
    black = composite(cutout, (0, 0, 0))
    assert np.abs(black - share[..., None] * red).max() < 25
    on_photograph = composite(cutout, np.full((50, 900, 3), 7, np.uint8))
    assert on_photograph[0, 0].tolist() == [7, 7, 7]


def test_matte_has_a_sharp_edge_at_any_scale():
    """Upsampled logits of a small network: the edge is two or three pixels wide, not sixteen."""
    small = np.tile(np.linspace(-8, 8, 12, dtype=np.float32), (12, 1))
    photograph = np.zeros((96, 96, 3), np.uint8)
    _, alpha = matte(photograph, cv2.resize(small, (96, 96)), scale=8)
    assert 1 <= ((alpha[48] > 25) & (alpha[48] < 230)).sum() <= 7


def test_matte_by_tiles_is_matte_of_the_whole(monkeypatch):
    """Also where the picture's sides are no multiple of a tile's."""
    share = soft_disc(190, 333, 85)
    photograph = speckled_photograph(share)
    colors, alpha = matte(photograph, logits_of(share), scale=1)
    monkeypatch.setattr(matting, "TILE", 1000)
    whole_colors, whole_alpha = matte(photograph, logits_of(share), scale=1)
    assert np.array_equal(alpha, whole_alpha)
    assert np.abs(colors.astype(int) - whole_colors).max() <= 1


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 2), (64, 64), (65, 130)])
@pytest.mark.parametrize("level", [-50.0, -0.5, 0.0, 0.5, 50.0])
def test_matte_takes_any_size_and_certainty(size, level):
    photograph = np.full((*size, 3), 99, np.uint8)
    colors, alpha = matte(photograph, np.full(size, level, np.float32), scale=1)
    assert np.ptp(alpha) == 0
    assert alpha[0, 0] == (255 if level > 0 else 0)  # where there is no edge, nothing is soft
    assert np.array_equal(colors, photograph * (alpha > 0)[..., None])


def test_matte_leaves_out_specks_and_doubts():
    """Of a disc, a speck and a part; around the disc the network is not sure of anything."""
    logits = np.where(soft_disc() > 0.5, 9, -1.5).astype(np.float32)
    logits[5:8, 5:8] = 9  # a speck
    logits[:30, 270:] = 9  # a part, such as a mirror
    _, alpha = matte(np.full((200, 300, 3), 99, np.uint8), logits, scale=1)
    assert alpha[:12, :12].max() == 0
    assert alpha[0, 299] == alpha[100, 150] == 255
    assert alpha[100, 150 + 60 + 10] == 0
    assert 0 < alpha[100, 150 + 60 + 1] < 255


def test_composite_of_a_cutout_with_its_own_background_is_the_photograph():
    share = soft_disc()
    blue = np.float32([30, 60, 220])
    background = np.full((200, 300, 3), 180, np.uint8)
    photograph = mix(share, blue, background)
    cutout = with_alpha(*matte(photograph, logits_of(share), scale=1))
    for behind in (background, (180, 180, 180)):
        difference = np.abs(composite(cutout, behind).astype(int) - photograph)
        assert difference.mean() < 0.1
        assert difference.max() <= 12


def test_composite_keeps_what_is_opaque_and_what_is_transparent():
    rng = np.random.default_rng(1)
    cutout = rng.integers(0, 256, (40, 60, 4), dtype=np.uint8)
    cutout[..., 3] = np.where(rng.random((40, 60)) < 0.5, 0, 255)
    background = rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)
    expected = np.where(cutout[..., 3:] > 0, cutout[..., :3], background)
    assert np.array_equal(composite(cutout, background), expected)
