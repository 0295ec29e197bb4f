"""Weights of classes: their formulas, and trainings with each kind of them."""

import re
from unittest import mock

import numpy as np
import pytest
import torch
from helpers import (
    BEST,
    LAST,
    is_same,
    learned,
    run_process,
    run_script,
    split_folders,
    tiny_options,
    write_parts,
)
from PIL import Image

from carvana import balance
from carvana.checkpoint import read_checkpoint
from carvana.classes import Classes
from carvana.images import Reading
from carvana.rendering import PARTS

THREE = Classes(("ground", "thing", "edge"))
IGNORED = THREE.ignore
OWN_FOLDERS = ("--images", "mine/images", "--masks", "mine/masks")
KINDS = ["median_frequency", "inverse_sqrt", (1, 2, 5, 0.5)]


def dataset_of(*masks, classes=THREE):
    """Return what counting needs of a CarvanaDataset with these masks."""
    dataset = mock.MagicMock()
    dataset.__len__.return_value = len(masks)
    dataset.reading = Reading(classes=classes)
    dataset.read_target.side_effect = masks.__getitem__
    return dataset


def mask_of(*pixels):
    """Return a mask with so many pixels of each class, and the last number of ignored ones."""
    values = [*range(len(pixels) - 1), IGNORED]
    return np.repeat(np.array(values, np.uint8), pixels).reshape(2, -1)


# The second class is in the first mask alone; 80 and 100 pixels are known.
TWO_MASKS = (mask_of(60, 20, 0, 20), mask_of(90, 0, 10, 0))


# ---------------------------------------------------------------- formulas


def test_counts_are_of_known_pixels():
    counts = balance.count_training_set(dataset_of(*TWO_MASKS))
    assert counts.pixels.tolist() == [150, 20, 10]
    assert counts.around.tolist() == [180, 80, 100]
    assert counts.shares().tolist() == [150 / 180, 20 / 180, 10 / 180]


def test_median_frequency_is_its_formula():
    frequencies = np.array([150 / 180, 20 / 80, 10 / 100])  # the median is the second
    weights = balance.class_weights("median_frequency", dataset_of(*TWO_MASKS))
    assert weights == pytest.approx((20 / 80) / frequencies)


def test_inverse_sqrt_is_its_formula_and_the_mean_pixel_weighs_1():
    shares = np.array([150, 20, 10]) / 180
    weights = np.array(balance.class_weights("inverse_sqrt", dataset_of(*TWO_MASKS)))
    assert weights / weights[0] == pytest.approx(np.sqrt(shares[0] / shares))
    assert (weights * shares).sum() == pytest.approx(1)


def test_median_frequency_is_bounded():
    masks = (mask_of(5000, 4999, 1, 0),)
    _, thing, edge = balance.class_weights("median_frequency", dataset_of(*masks))
    assert thing == 1
    assert edge == balance.MAX_WEIGHT < 4999


@pytest.mark.parametrize("method", balance.METHODS)
def test_class_that_never_occurs_has_weight_1_and_is_named(method, capsys):
    weights = balance.class_weights(method, dataset_of(mask_of(60, 30, 0, 10)))
    without = Classes(("ground", "thing"))
    expected = balance.class_weights(method, dataset_of(mask_of(60, 30, 10), classes=without))
    assert weights == pytest.approx((*expected, 1))
    assert "in no training mask, so that its weight is 1: edge" in capsys.readouterr().err


@pytest.mark.parametrize("method", balance.METHODS)
def test_masks_without_a_known_pixel_weigh_nothing(method):
    assert balance.class_weights(method, dataset_of(mask_of(0, 0, 0, 10))) == (1, 1, 1)


@pytest.mark.parametrize("method", balance.METHODS)
def test_weights_of_equal_classes_are_1(method):
    weights = balance.class_weights(method, dataset_of(mask_of(20, 20, 20, 4)))
    assert weights == pytest.approx((1, 1, 1))


def test_weights_are_printed_in_a_line(capsys):
    balance.class_weights("median_frequency", dataset_of(*TWO_MASKS))
    balance.class_weights([1.0, 2.5, 4.0], dataset_of(*TWO_MASKS))
    assert balance.class_weights("none", dataset_of(*TWO_MASKS)) is None
    assert capsys.readouterr().out.splitlines() == [
        "class weights, median_frequency (share of the pixels): ground 0.3 (83.3 %), "
        "thing 1 (11.1 %), edge 2.5 (5.56 %)",
        "class weights: ground 1, thing 2.5, edge 4",
    ]


# ---------------------------------------------------------------- trainings


def options_of(weights, **changes):
    """Return the words for a training of two epochs on parts of cars with these weights."""
    words = {"NUM_EPOCHS": 2, "CLASSES": PARTS, "CLASS_WEIGHTS": weights, "GALLERY_MAX": 0}
    return tiny_options(**(words | changes))


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """A folder with a tiny data set of four classes."""
    folder = tmp_path_factory.mktemp("parts")
    write_parts(folder / "mine", 6)
    classes = ("--classes", *PARTS, "--val-fraction", 0.34)
    run_script(folder, "prepare_data.py", *OWN_FOLDERS, *classes)
    return folder


def train(folder, weights, **changes):
    """Train from nothing; return the line of the weights, and what was learned."""
    for name in (LAST, BEST):
        (folder / name).unlink(missing_ok=True)
    stdout = run_script(folder, "train.py", *options_of(weights, **changes)).stdout
    lines = re.findall("^class weights.*", stdout, re.MULTILINE)
    return lines, learned(folder / LAST)


@pytest.mark.parametrize("weights", KINDS, ids=str)
@pytest.mark.parametrize("loss", ["bce_dice", "edge"])
def test_training_with_weights_learns_something_else_and_resumes_exactly(parts, weights, loss):
    _, plain = train(parts, "none", LOSS=loss)
    (line,), straight = train(parts, weights, LOSS=loss)
    assert all(f"{name} " in line for name in PARTS)
    assert not is_same(plain["state_dict"], straight["state_dict"])
    train(parts, weights, LOSS=loss, NUM_EPOCHS=1)
    run_script(parts, "train.py", *options_of(weights, LOSS=loss, LOAD_MODEL=True))
    assert is_same(straight, learned(parts / LAST))
    saved = read_checkpoint(parts / LAST)["config"]["CLASS_WEIGHTS"]
    assert saved == (weights if isinstance(weights, str) else list(weights))


@pytest.mark.parametrize("cache", [True, False])
def test_weights_are_those_of_the_masks_that_are_trained_on(parts, cache):
    size = {"IMAGE_HEIGHT": 48, "IMAGE_WIDTH": 72}  # that of the files
    lines, _ = train(parts, "inverse_sqrt", CACHE=cache, **size)
    _, mask_folder, _, _ = split_folders(parts)
    pixels = np.zeros(4)
    for path in mask_folder.iterdir():
        with Image.open(path) as image:
            mask = np.array(image)
        pixels += np.bincount(mask.ravel(), minlength=4)
    shares = re.findall(r"\(([\d.]+) %\)", lines[0])
    assert [float(share) for share in shares] == pytest.approx(
        100 * pixels / pixels.sum(), rel=5e-3
    )


def test_checkpoint_without_class_weights_resumes(parts):
    """As they were written before the constant was there."""
    _, straight = train(parts, "none")
    train(parts, "none", NUM_EPOCHS=1)
    state = read_checkpoint(parts / LAST)
    del state["config"]["CLASS_WEIGHTS"]
    torch.save(state, parts / LAST)
    run_script(parts, "train.py", *options_of("none", LOAD_MODEL=True))
    assert is_same(straight, learned(parts / LAST))


def test_processes_count_the_same_weights(parts):
    """Two processes print the line of one."""
    words = options_of("median_frequency", DEVICE="cpu")
    expected, _ = train(parts, "median_frequency")
    stdout = run_process(parts, "train.py", *words, processes=2).stdout
    assert re.findall("^class weights.*", stdout, re.MULTILINE) == expected
