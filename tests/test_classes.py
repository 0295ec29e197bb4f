"""Masks of several classes: what their values mean, and how they are scaled."""

import numpy as np
import pytest
import torch
from helpers import class_indices, write_parts
from PIL import Image

from carvana.augmentation import Augmentation, train_transform
from carvana.classes import SINGLE, Classes
from carvana.errors import UserError
from carvana.images import read_labels
from carvana.rendering import PARTS
from dataset import CarvanaDataset

THREE = Classes(("ground", "thing", "edge"))
PAINTED = Classes(
    ("ground", "thing", "edge"), ((0, 0, 0), (255, 0, 0), (10, 20, 30), (255, 255, 255)), 99
)


@pytest.mark.parametrize("kind", ["L", "P", "16 bits", "gray RGB", "bmp", "tif"])
def test_class_indices_in_any_format(tmp_path, kind):
    mask = class_indices()
    path = tmp_path / f"a.{kind if kind in ('bmp', 'tif') else 'png'}"
    values = {"16 bits": mask.astype(np.uint16), "gray RGB": np.dstack([mask] * 3)}
    image = Image.fromarray(values.get(kind, mask))
    if kind == "P":
        image.putpalette(np.random.default_rng(0).integers(0, 255, 768, dtype=np.uint8).tobytes())
    image.save(path)
    assert np.array_equal(read_labels(path, THREE), mask)


def test_class_colors_in_any_format(tmp_path):
    mask = class_indices()
    mask[mask == 255] = PAINTED.ignore
    colored = Image.fromarray(PAINTED.mask_colors()[mask])
    colored.save(tmp_path / "a.png")
    colored.quantize(8).save(tmp_path / "a.gif")
    for name in ("a.png", "a.gif"):
        assert np.array_equal(read_labels(tmp_path / name, PAINTED), mask), name


def test_class_values_that_are_unknown_are_named_and_counted(tmp_path):
    mask = np.zeros((4, 5), np.uint8)
    mask[0, :3] = 7
    mask[1, 0] = 200
    Image.fromarray(mask).save(tmp_path / "a.png")
    expected = (
        r"a.png: cannot be read \(3 pixels of value 7, 1 pixel of value 200: "
        "CLASSES has 3 names, 0 to 2; add names, set PALETTE, or IGNORE_INDEX"
    )
    with pytest.raises(UserError, match=expected):
        read_labels(tmp_path / "a.png", THREE)


def test_class_colors_that_are_unknown_are_named_and_counted(tmp_path):
    Image.fromarray(np.full((2, 2, 3), (1, 2, 3), np.uint8)).save(tmp_path / "b.png")
    with pytest.raises(UserError, match="4 pixels of color #010203: no color of PALETTE"):
        read_labels(tmp_path / "b.png", PAINTED)
    with pytest.raises(UserError, match="colored, and PALETTE is empty"):
        read_labels(tmp_path / "b.png", Classes(tuple("abcdef")))


def test_class_mask_made_smaller_has_the_class_that_covers_most(tmp_path):
    mask = np.zeros((40, 60), np.uint8)
    mask[:, 31:] = 1  # nine of columns 30 to 39
    mask[:, 52:] = 2  # eight of columns 50 to 59
    mask[-10:] = 255
    Image.fromarray(mask).save(tmp_path / "a.png")
    by_area = read_labels(tmp_path / "a.png", THREE, (4, 6))
    assert by_area.tolist() == [[0, 0, 0, 1, 1, 2]] * 3 + [[255] * 6]
    nearest = read_labels(tmp_path / "a.png", THREE, (4, 6), "nearest")
    assert np.array_equal(nearest, mask[::10, ::10])


def test_class_mask_stays_one_when_augmented(tmp_path):
    write_parts(tmp_path, 1)
    classes = Classes(PARTS)
    augmentation = Augmentation(rotate=35, rotate_fill="black", scale_jitter=0.2)
    dataset = CarvanaDataset(
        tmp_path / "images",
        tmp_path / "masks",
        train_transform(augmentation, classes),
        size=(48, 72),
        classes=classes,
    )
    _, mask = dataset[0, 0]
    assert mask.dtype == torch.uint8
    assert set(mask.unique().tolist()) <= {0, 1, 2, 3, 255}
    assert (mask == 255).any()
    assert (mask == 3).any()


def test_classes_count_names_and_colors():
    assert SINGLE.single and SINGLE.count == 2 and SINGLE.foreground_name == "foreground"
    assert not THREE.single and THREE.count == 3 and THREE.foreground_name == "not ground"
    assert SINGLE.mask_colors()[:2].tolist() == [[0, 0, 0], [255, 255, 255]]
    assert PAINTED.mask_colors()[[0, 1, 2, 99]].tolist() == [list(rgb) for rgb in PAINTED.palette]
