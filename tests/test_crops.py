"""Random windows of pictures: where they are, and what a data set and a training make of them."""

import json

import numpy as np
import pytest
import torch
from helpers import LAST, run_script, tiny_options
from PIL import Image

from carvana.augmentation import val_transform
from carvana.checkpoint import read_checkpoint
from carvana.classes import SINGLE, Classes
from carvana.crops import Crops, Window, find_places
from carvana.losses import make_loss
from dataset import CarvanaDataset


def own_sizes(folder, sizes=((70, 90), (50, 130), (64, 64), (81, 77)), classes=None):
    """Write noise of several sizes with masks in which a few pixels are foreground, or a class."""
    rng = np.random.default_rng(7)
    images, masks = folder / "images", folder / "masks"
    images.mkdir(parents=True)
    masks.mkdir()
    for number, size in enumerate(sizes):
        image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        mask = np.zeros(size, np.uint8)
        if classes:
            mask[:, : size[1] // 2] = 1
            mask[-4:, -4:] = classes - 1
        else:
            mask[5:9, 7:12] = 255
        Image.fromarray(image).save(images / f"{number}.png")
        Image.fromarray(mask).save(masks / f"{number}.png")
    return images, masks


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("size", [None, (48, 64)])
def test_crops_are_parts_of_what_is_read(tmp_path, cached, size):
    folders = own_sizes(tmp_path)
    whole = CarvanaDataset(*folders, size=size)
    crops = Crops(32, 40, rare_share=0.5, per_image=3)
    cropped = CarvanaDataset(
        *folders, size=size, crops=crops, cache_dir=tmp_path / "cache" if cached else None
    )
    assert cropped.epoch_length == 3 * len(whole)
    for index in range(cropped.epoch_length):
        image, mask = cropped[2, index]
        assert image.shape == (32, 40, 3)
        assert mask.shape == (32, 40)
        picture, truth = whole[index % len(whole)]
        windows = np.lib.stride_tricks.sliding_window_view(picture, (32, 40, 3))
        matches = np.argwhere((windows == image).all((3, 4, 5)))
        assert len(matches) == 1
        top, left, _ = matches[0]
        assert np.array_equal(truth[top : top + 32, left : left + 40], mask)


def test_crops_depend_on_seed_epoch_and_index_alone(tmp_path):
    folders = own_sizes(tmp_path)
    options = {"crops": Crops(24, 24, per_image=4), "seed": 3}
    cached = CarvanaDataset(*folders, cache_dir=tmp_path / "cache", **options)
    plain = CarvanaDataset(*folders, **options)
    keys = [(epoch, index) for epoch in range(2) for index in range(16)]
    items = [plain[key][0] for key in keys]
    assert all(np.array_equal(cached[key][0], item) for key, item in zip(keys, items, strict=True))
    different = {item.tobytes() for item in items}
    assert len(different) > 28  # of 32, a few of which may meet by chance
    other_seed = CarvanaDataset(*folders, crops=options["crops"], seed=4)
    assert any(not np.array_equal(other_seed[key][0], plain[key][0]) for key in keys)


@pytest.mark.parametrize("rare_share", [0.0, 1.0])
def test_crops_hold_rarer_classes_as_often_as_asked(rare_share):
    mask = np.zeros((200, 300), np.uint8)
    mask[100:103, 150:153] = 255
    places = find_places(mask, SINGLE)
    crops = Crops(20, 20, rare_share)
    rng = np.random.default_rng(0)
    holding = [crops.draw(rng, mask.shape, places).cut(mask).any() for _ in range(300)]
    if rare_share:
        assert all(holding)
    else:
        assert np.mean(holding) < 0.05


def test_crops_around_rarer_classes_take_each_class_equally_often():
    mask = np.zeros((100, 100), np.uint8)
    mask[:20] = 1
    mask[90, 90] = 2
    classes = Classes(["a", "b", "c"])
    places = find_places(mask, classes)
    assert [len(of_class) <= 128 for of_class in places] == [True, True]
    assert [mask[tuple(of_class.T)].tolist() for of_class in places] == [
        [1] * len(places[0]),
        [2],
    ]
    crops = Crops(5, 5, 1.0)
    rng = np.random.default_rng(0)
    rarest = [(crops.draw(rng, mask.shape, places).cut(mask) == 2).any() for _ in range(400)]
    assert 0.4 < np.mean(rarest) < 0.6


def test_places_leave_out_ignored_pixels_and_what_covers_most():
    mask = np.full((10, 10), 255, np.uint8)
    mask[0] = 1
    assert find_places(mask, Classes(["a", "b"])) == []
    assert find_places(np.full((4, 4), 255, np.uint8), Classes(["a", "b"])) == []
    assert find_places(np.full((4, 4), 255, np.uint8), SINGLE) == []


def test_crops_of_smaller_pictures_are_filled_by_reflection(tmp_path):
    folders = own_sizes(tmp_path, sizes=((10, 30),))
    picture, truth = CarvanaDataset(*folders)[0]
    image, mask = CarvanaDataset(*folders, crops=Crops(24, 20))[0, 0]
    assert image.shape == (24, 20, 3)
    columns = [
        left for left in range(11) if np.array_equal(image[:10], picture[:, left : left + 20])
    ]
    assert len(columns) == 1
    assert np.array_equal(image[10:19], image[8::-1])
    assert np.array_equal(mask[:10], truth[:, columns[0] : columns[0] + 20])


def test_window_cuts_a_view():
    picture = np.arange(12).reshape(3, 4)
    assert Window(1, 2, 2, 2).cut(picture).tolist() == [[6, 7], [10, 11]]


# ---------------------------------------------------------------- from the command line


OWN_SIZE = {
    "IMAGE_HEIGHT": 0,
    "IMAGE_WIDTH": 0,
    "CROP_HEIGHT": 32,
    "CROP_WIDTH": 32,
    "CROPS_PER_IMAGE": 3,
    "TILE": 32,
}


def options_for(folders, **changes):
    """Return the words that train on these folders, and validate on them too."""
    images, masks = folders
    folder_constants = {
        "TRAIN_IMG_DIR": images,
        "TRAIN_MASK_DIR": masks,
        "VAL_IMG_DIR": images,
        "VAL_MASK_DIR": masks,
    }
    return tiny_options(**folder_constants, **changes)


def test_training_on_crops_at_own_sizes_resumes_exactly(tmp_path):
    folders = own_sizes(tmp_path)
    constants = OWN_SIZE | {"BATCH_SIZE": 2, "COLOR_JITTER": 0.2}
    whole = options_for(folders, NUM_EPOCHS=2, CHECKPOINT_FILE="whole.pth.tar", **constants)
    printed = run_script(tmp_path, "train.py", *whole).stdout
    assert "4 training and 4 validation images at own size, 3 crops of 32x32 from each" in printed
    assert "best validation Dice" in printed
    run_script(tmp_path, "train.py", *options_for(folders, NUM_EPOCHS=1, **constants))
    resumed = options_for(folders, NUM_EPOCHS=2, LOAD_MODEL=True, **constants)
    run_script(tmp_path, "train.py", *resumed)
    scored = ("--images", folders[0], "--masks", folders[1], "--json", "scores.json")
    run_script(tmp_path, "evaluate.py", "--model", LAST, *scored)
    rows = json.loads((tmp_path / "scores.json").read_text())["images"]
    assert [row["dice"] for row in rows] == [row["full_dice"] for row in rows]
    expected = read_checkpoint(tmp_path / "whole.pth.tar")["state_dict"]
    weights = read_checkpoint(tmp_path / LAST)["state_dict"]
    assert all(tensor.equal(weights[name]) for name, tensor in expected.items())


def test_training_on_crops_scores_whole_pictures_of_a_given_size(tmp_path):
    folders = own_sizes(tmp_path)
    crops = {"CROP_HEIGHT": 16, "CROP_WIDTH": 24, "CROPS_PER_IMAGE": 3}
    words = options_for(folders, NUM_EPOCHS=1, NUM_WORKERS=1, **crops)
    printed = run_script(tmp_path, "train.py", *words).stdout
    assert "validation images at 32x48, 3 crops of 16x24 from each" in printed
    assert "at 32x48" in printed.splitlines()[-1]
    run_script(tmp_path, "train.py", *words, "--load-model", "true", "--num-epochs", "2")
    assert read_checkpoint(tmp_path / LAST)["epoch"] == 2


def test_objects_of_other_sizes_stand_behind_at_own_sizes(tmp_path):
    folders = own_sizes(tmp_path)
    backgrounds = {"BACKGROUNDS_DIR": folders[0], "BACKGROUND_SHARE": 1.0, "BYSTANDERS": 1.0}
    words = options_for(folders, NUM_EPOCHS=1, **OWN_SIZE, **backgrounds)
    assert "best validation Dice" in run_script(tmp_path, "train.py", *words).stdout


def test_memory_for_batches_counts_the_largest_picture(tmp_path):
    folders = own_sizes(tmp_path)
    dataset = CarvanaDataset(*folders, cache_dir=tmp_path / "cache")
    assert dataset.item_bytes() == 50 * 130 * 4  # the others are smaller
    assert CarvanaDataset(*folders, crops=Crops(8, 9)).item_bytes() == 8 * 9 * 4


def test_changed_windows_are_noticed_on_an_earlier_versions_checkpoint(tmp_path):
    folders = own_sizes(tmp_path)
    words = options_for(folders, NUM_EPOCHS=1)
    run_script(tmp_path, "train.py", *words)
    state = read_checkpoint(tmp_path / LAST)
    for name in ("TILE", "TILE_OVERLAP"):
        del state["config"][name]
    torch.save(state, tmp_path / LAST)
    resumed = (*words, "--load-model", "true", "--tile", "32")
    printed = run_script(tmp_path, "train.py", *resumed).stdout
    assert "TILE: 0 in the checkpoint, 32 from now on" in printed


def test_edge_loss_reaches_as_far_in_whole_pictures_as_in_crops():
    """The pixels that count most are as near to an outline, whatever is around."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 1, 128, 128, generator=generator)
    mask = torch.zeros(1, 1, 128, 128)
    mask[..., 64:] = 1
    loss = make_loss("edge", edge_height=64)
    quarters = [
        loss(logits[..., top : top + 64, 32:96], mask[..., top : top + 64, 32:96])
        for top in (0, 64)
    ]
    middle = loss(logits[..., 32:96], mask[..., 32:96])
    assert torch.stack(quarters).mean().item() == pytest.approx(middle.item(), rel=1e-5)
    assert make_loss("edge", edge_height=128)(logits, mask) == make_loss("edge")(logits, mask)
    assert make_loss("edge")(logits[..., 32:96], mask[..., 32:96]) != middle


@pytest.mark.parametrize(
    ("constants", "message"),
    [
        ({"IMAGE_HEIGHT": 0, "IMAGE_WIDTH": 0}, "which needs CROP_HEIGHT, CROP_WIDTH, TILE"),
        ({"IMAGE_HEIGHT": 0}, "expected IMAGE_WIDTH 0 too, or neither, found 48"),
        ({"CROP_HEIGHT": 32}, "expected CROP_WIDTH too, or neither, found 32 and 0"),
        (
            {"CROP_HEIGHT": 33, "CROP_WIDTH": 32},
            "expected crops of at most 32x48, to which pictures are scaled, found 33x32",
        ),
        (
            {"CROPS_PER_IMAGE": 4},
            "--crops-per-image: expected CROP_HEIGHT and CROP_WIDTH too, or 1, found 4",
        ),
        ({"TILE_OVERLAP": 0.95}, "expected 0.0..0.9 share, found 0.95"),
    ],
)
def test_sizes_that_do_not_go_together_are_refused(tmp_path, constants, message):
    words = options_for(own_sizes(tmp_path), **constants)
    assert message in run_script(tmp_path, "train.py", *words, status=2).stderr


def test_validation_at_own_sizes_reads_whole_pictures(tmp_path):
    folders = own_sizes(tmp_path)
    dataset = CarvanaDataset(*folders, val_transform())
    shapes = {tuple(dataset[index][0].shape) for index in range(4)}
    assert shapes == {(3, 70, 90), (3, 50, 130), (3, 64, 64), (3, 81, 77)}
