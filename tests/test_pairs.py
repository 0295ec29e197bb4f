"""Which photograph goes with which mask, and which pairs stay together."""

import numpy as np
import pytest
from helpers import ramp, write_mask
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from carvana.errors import UserError
from carvana.pairs import find_pairs, group_of, pair_names, split_groups


def test_pairs_follow_every_convention(tmp_path):
    images = tmp_path / "images"
    masks = tmp_path / "masks"
    (images / "folder").mkdir(parents=True)
    masks.mkdir()
    for name in ("a.jpg", "b.JPG", "c.png", "d.tiff", ".hidden.jpg", "e_mask.png"):
        Image.fromarray(ramp()).save(images / name)
    for name in ("a_mask.gif", "b_mask.png", "c.png", "d.GIF", "._a_mask.gif", "e_mask.gif"):
        Image.fromarray(ramp()[..., 0]).save(masks / name)
    assert [(image.name, mask.name) for image, mask in find_pairs(images, masks)] == [
        ("a.jpg", "a_mask.gif"),
        ("b.JPG", "b_mask.png"),
        ("c.png", "c.png"),
        ("d.tiff", "d.GIF"),
        ("e_mask.png", "e_mask.gif"),
    ]


def test_pairs_name_everything_wrong_at_once(tmp_path):
    images = tmp_path / "images"
    masks = tmp_path / "masks"
    images.mkdir()
    masks.mkdir()
    for name in ("alone", "twice", "small", "good", "both", "text"):
        Image.fromarray(ramp()).save(images / f"{name}.jpg")
    Image.fromarray(ramp()).save(images / "twice.png")
    (images / "text.jpg").write_text("no picture")
    (images / "notes.txt").write_text("x")
    for name in ("widow", "twice", "good", "both", "text"):
        write_mask(masks / f"{name}.gif", np.ones((40, 60), bool))
    write_mask(masks / "both_mask.png", np.ones((40, 60), bool))
    write_mask(masks / "small.gif", np.ones((20, 60), bool))
    with pytest.raises(UserError) as error:
        find_pairs(images, masks)
    message = str(error.value)
    for phrase in (
        "alone.jpg: image without",
        "widow.gif: mask without",
        "twice: more than one image",
        "both: more than one mask",
        "small.jpg: 60x40 pixels, its mask small.gif 60x20",
        "text.jpg: cannot be read",
        "6 problems",
    ):
        assert phrase in message, phrase
    assert "good" not in message


def test_pairs_by_name_need_no_files():
    pairs, problems = pair_names(["b.jpg", "a.jpg"], ["a.gif", "b_mask.gif"])
    assert pairs == [("a.jpg", "a.gif"), ("b.jpg", "b_mask.gif")]
    assert problems == []


GROUPS = st.sets(st.text("0123456789abcdef", min_size=4, max_size=4), min_size=2, max_size=40)


@given(GROUPS, st.integers(0, 99), st.randoms())
def test_split_is_a_partition_that_ignores_order(groups, seed, random):
    shuffled = list(groups) * 2
    random.shuffle(shuffled)
    val, test, train = split_groups(shuffled, (0.1, 0.2), seed)
    assert val | test | train == groups
    assert len(val) + len(test) + len(train) == len(groups)
    assert [val, test, train] == split_groups(sorted(groups), (0.1, 0.2), seed)
    assert val == split_groups(groups, (0.1, 0), seed)[0]
    assert val


def test_group_is_the_car_of_a_carvana_name():
    assert group_of("0cdf5b5d0ce1_01.jpg") == group_of("0cdf5b5d0ce1_16.jpg") == "0cdf5b5d0ce1"
    assert group_of("0cdf5b5d0ce1_17.jpg") == "0cdf5b5d0ce1_17"
    assert group_of("cat_01.jpg") == "cat_01"


def test_group_follows_a_regular_expression():
    names = ("a_1.jpg", "b-1.jpg", "c.jpg")
    assert [group_of(name, "(.*)_[0-9]+|(.*)-[0-9]+") for name in names] == ["a", "b", "c"]
