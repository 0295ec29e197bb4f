"""On real photographs, where the environment variable CARVANA_ZIPS names the folder of Kaggle's two zips."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import metrics
from pictures import find_pairs, group_of, read_image, read_mask

zips = Path(os.environ.get("CARVANA_ZIPS", ""))
pytestmark = pytest.mark.skipif(
    not os.environ.get("CARVANA_ZIPS"), reason="CARVANA_ZIPS names no folder"
)


@pytest.fixture(scope="module")
def carvana(tmp_path_factory):
    """The folder in which prepare_data.py has made data/ of the real zips."""
    import subprocess
    import sys

    folder = tmp_path_factory.mktemp("carvana")
    script = Path(__file__).resolve().parent.parent / "prepare_data.py"
    done = subprocess.run(
        [sys.executable, script, zips / "train.zip", zips / "train_masks.zip"],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_the_split_is_by_car(carvana):
    sides = [
        find_pairs(carvana / f"data/{part}_images", carvana / f"data/{part}_masks")
        for part in ("train", "val")
    ]
    cars = [{group_of(image.name) for image, _ in pairs} for pairs in sides]
    assert not cars[0] & cars[1]
    assert len(cars[1]) == round(0.1 * (len(cars[0]) + len(cars[1])))


def test_what_a_perfect_network_could_score(carvana):
    """Area-resized masks, upsampled again, give back the outline better than nearest-resized ones do."""
    pairs = find_pairs(carvana / "data/val_images", carvana / "data/val_masks")[:20]
    ceilings = {}
    for how in ("area", "nearest"):
        scores = []
        for _, path in pairs:
            full = torch.from_numpy(read_mask(path) > 127)
            small = torch.from_numpy(read_mask(path, (160, 240), how) / np.float32(255))
            up = F.interpolate(small[None, None], size=full.shape, mode="bilinear")[0, 0] > 0.5
            scores.append(metrics.dice(metrics.confusion(up[None], full[None])).item())
        ceilings[how] = np.mean(scores)
    assert ceilings["area"] > 0.997 > 0.990 > ceilings["nearest"]


def test_reduced_reading_is_the_full_picture(carvana):
    image, _ = find_pairs(carvana / "data/val_images", carvana / "data/val_masks")[0]
    small, full = read_image(image, (160, 240)), read_image(image)
    assert full.shape == (1280, 1918, 3)
    average = full[:1280, :1912].reshape(160, 8, 239, 8, 3).mean((1, 3))
    assert np.abs(small[:, :60] - average[:, :60]).mean() < 3
