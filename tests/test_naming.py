"""Photographs and masks of everybody's names pair, or the message says what would pair them."""

import shlex
import unicodedata

import pytest
from helpers import BEST, OWN_MODEL, tiny_options, write_model, write_pairs

from carvana.naming import (
    NAMING,
    Naming,
    is_visible,
    pair_names,
    propose_naming,
    split_shared_folder,
)

NUMBERS = range(1, 102)
LAYOUTS = {  # names of photographs, of masks, and the options that pair them
    "DeepGlobe": ("{}_sat.jpg", "{}_mask.png", Naming(image_suffix="_sat")),
    "Cityscapes": (
        "ulm_{0:06}_{0:06}_leftImg8bit.png",
        "ulm_{0:06}_{0:06}_gtFine_labelIds.png",
        Naming("_gtFine_labelIds", image_suffix="_leftImg8bit"),
    ),
    "nnU-Net": ("case_{:03}_0000.png", "case_{:03}.png", Naming("", image_suffix="_0000")),
    "prefixes": ("img_{}.png", "mask_{}.png", Naming("", "mask_", image_prefix="img_")),
    "a prefix": ("{}.png", "mask_{}.png", Naming("", "mask_")),
    "ISIC": ("ISIC_{:07}.jpg", "ISIC_{:07}_segmentation.png", Naming("_segmentation")),
    "words": ("a{}.jpg", "b{}.png", Naming("", "b", image_prefix="a")),
    "dots": ("{}.rgb.tif", "{}.label.tif", Naming(".label", image_suffix=".rgb")),
}


def names_of(pattern):
    return [pattern.format(number) for number in NUMBERS]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_naming_that_pairs_everything_is_proposed(layout):
    image, mask, naming = LAYOUTS[layout]
    images = names_of(image)
    masks = names_of(mask)
    proposal = propose_naming(images, masks)
    assert proposal == (naming, 101, 101)
    pairs, problems = pair_names(images, masks, naming)
    assert not problems
    assert pairs == sorted(zip(images, masks, strict=True))


def test_naming_is_not_proposed_where_nothing_is_better():
    images = names_of("{}.jpg")
    assert propose_naming(images, names_of("{}_mask.png")) is None
    assert propose_naming(images, ["other.png", "another.png"]) is None
    assert propose_naming(images, []) is None
    assert propose_naming([], images) is None


def test_naming_for_most_of_the_files_is_proposed():
    images = [*names_of("{}_sat.jpg"), "overview.jpg"]
    naming, pairs, count = propose_naming(images, names_of("{}_mask.png"))
    assert (naming.image_suffix, pairs, count) == ("_sat", 101, 102)


def test_naming_compares_letters_as_macos_writes_them_too():
    name = "Müller_é"
    decomposed = unicodedata.normalize("NFD", name)
    assert decomposed != name
    pairs, problems = pair_names([f"{decomposed}.jpg"], [f"{name}_mask.png"])
    assert pairs == [(f"{decomposed}.jpg", f"{name}_mask.png")]
    assert not problems
    assert not pair_names([f"{name}.jpg"], [f"{decomposed}.png"])[1]


@pytest.mark.parametrize(
    "names, images",
    [
        (["a.jpg", "a_mask.png", "b.jpg", "b_mask.png"], ["a.jpg", "b.jpg"]),
        (["a.png", "a_mask.png", "b.tif", "b_mask.tif"], ["a.png", "b.tif"]),
        (["a.jpg", "a.png", "b.JPEG", "b.gif"], ["a.jpg", "b.JPEG"]),
        (["a.png", "a_mask.png", "lonely_mask.png"], ["a.png", "lonely_mask.png"]),
        (["a.png", "b.png"], ["a.png", "b.png"]),
    ],
    ids=["jpg", "same type", "by type", "a mask without photograph", "photographs"],
)
def test_naming_tells_photographs_from_masks_in_one_folder(names, images):
    assert split_shared_folder(names, NAMING) == (
        images,
        [name for name in names if name not in images],
    )


def test_naming_names_the_mask_of_a_photograph():
    assert NAMING.mask_file("a") == "a_mask.png"
    assert Naming("_seg", "m_", "_sat").mask_file("a_sat") == "m_a_seg.png"


def test_naming_leaves_files_of_systems_out():
    for name in (".DS_Store", "._a.jpg", "Thumbs.db", "desktop.ini", "Icon\r", "__MACOSX"):
        assert not is_visible(name)
    assert is_visible("thumbs.jpg")


# ---------------------------------------------------------------- through the scripts


def rename(folder, pattern):
    """Give the files of a folder names by a pattern, "{}" for the name without its ending."""
    for path in sorted(folder.iterdir()):
        name = path.stem.removesuffix("_mask")
        path.rename(folder / f"{pattern.format(name)}{path.suffix}")


@pytest.mark.parametrize("script", ["train.py", "explore.py", "evaluate.py", "prepare_data.py"])
def test_scripts_propose_the_options_that_pair_and_take_them(data, run, script):
    for split in ("train", "val"):
        rename(data / f"data/{split}_images", "{}_sat")
        rename(data / f"data/{split}_masks", "label_{}")
    write_model(data / BEST)
    folders = ("--images", "data/val_images", "--masks", "data/val_masks")
    arguments = {
        "train.py": (script, *tiny_options(NUM_EPOCHS=1)),
        "explore.py": (script, *folders),
        "evaluate.py": (script, *OWN_MODEL, *folders),
        "prepare_data.py": (script, *folders, "--out", "new"),
    }[script]
    stderr = run(*arguments, status=2).stderr
    options = "--mask-suffix '' --mask-prefix label_ --image-suffix _sat"
    assert f"6 of 6 pair with {options}" in stderr or f"12 of 12 pair with {options}" in stderr
    run(*arguments, *shlex.split(options))


@pytest.mark.parametrize("script", ["train.py", "explore.py", "evaluate.py"])
def test_scripts_take_one_folder_of_photographs_and_masks(data, run, script):
    for split in ("train", "val"):
        for path in sorted((data / f"data/{split}_masks").iterdir()):
            path.rename(data / f"data/{split}_images" / path.name)
        (data / f"data/{split}_images/_classes.csv").write_text("0, background")
        (data / f"data/{split}_images/Thumbs.db").write_text("")
    write_model(data / BEST)
    folders = ("--images", "data/val_images", "--masks", "data/val_images")
    same = ("--train-mask-dir", "data/train_images", "--val-mask-dir", "data/val_images")
    arguments = {
        "train.py": (script, *tiny_options(NUM_EPOCHS=1), *same),
        "explore.py": (script, *folders),
        "evaluate.py": (script, *OWN_MODEL, *folders),
    }[script]
    finished = run(*arguments)
    assert "left out of data/val_images" in finished.stderr
    assert "1 .csv" in finished.stderr
    assert "Thumbs" not in finished.stderr
    if script == "train.py":
        assert "12 training and 6 validation images" in finished.stdout


def test_photograph_is_never_paired_with_itself(tmp_path, run):
    """A folder of photographs given for both."""
    write_pairs(tmp_path / "all", tmp_path / "masks", cars=2)
    stderr = run("explore.py", "--images", "all", "--masks", "all", status=2).stderr
    assert "000000000000_01.jpg: image without a mask" in stderr or "no mask" in stderr
