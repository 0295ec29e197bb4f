"""On real photographs: the environment variable CARVANA_ZIPS names the folder of Kaggle's zips."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import run_script
from torch.nn import functional as F

from carvana import metrics
from carvana.classes import SINGLE
from carvana.images import read_hard_mask, read_image, read_mask
from carvana.pairs import find_pairs, group_of

ZIPS = Path(os.environ.get("CARVANA_ZIPS", ""))
pytestmark = pytest.mark.skipif(
    not os.environ.get("CARVANA_ZIPS"), reason="CARVANA_ZIPS names no folder"
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The folder that prepare_data.py has made of the real zips."""
    folder = tmp_path_factory.mktemp("carvana")
    run_script(folder, "prepare_data.py", ZIPS / "train.zip", ZIPS / "train_masks.zip")
    return folder / "data"


def pairs_of(data, split):
    return find_pairs(data / f"{split}_images", data / f"{split}_masks")


def test_split_is_by_car(data):
    train, val = (
        {group_of(image.name) for image, _ in pairs_of(data, split)} for split in ("train", "val")
    )
    assert not train & val
    assert len(val) == round(0.1 * (len(train) + len(val)))


def best_possible_dice(path, resize):
    """Return the Dice of a network that predicts the mask at 160x240 perfectly."""
    truth = torch.from_numpy(read_hard_mask(path, SINGLE))
    small = torch.from_numpy(read_mask(path, (160, 240), resize) / np.float32(255))
    whole = F.interpolate(small[None, None], size=truth.shape, mode="bilinear")
    prediction = (whole[:, 0] > 0.5).to(torch.uint8)
    matrices = metrics.confusion_matrices(prediction, truth[None], SINGLE)
    return metrics.image_scores(matrices, "dice", SINGLE).item()


def test_masks_reduced_by_area_allow_higher_scores(data):
    """Upsampled again, they give back the outline better than nearest-resized ones do."""
    paths = [mask for _, mask in pairs_of(data, "val")[:20]]
    area = np.mean([best_possible_dice(path, "area") for path in paths])
    nearest = np.mean([best_possible_dice(path, "nearest") for path in paths])
    assert area > 0.997
    assert nearest < 0.990


def test_reduced_reading_is_the_full_picture(data):
    image, _ = pairs_of(data, "val")[0]
    small = read_image(image, (160, 240))
    full = read_image(image)
    assert full.shape == (1280, 1918, 3)
    average = full[:1280, :1912].reshape(160, 8, 239, 8, 3).mean((1, 3))
    assert np.abs(small[:, :60] - average[:, :60]).mean() < 3
