"""Training images: augmentations that belong to seed, epoch and image, and their order."""

import contextlib

import numpy as np
import pytest
import torch
from helpers import scene, split_folders

import utils
from carvana.augmentation import Augmentation, train_transform, val_transform
from carvana.device import to_device
from carvana.model_config import check_model_config
from dataset import CarvanaDataset, end_workers
from model import UNET

CHANNELS_LAST = torch.channels_last


def augmented_images(data, seed):
    """Return the 12 training images of epoch 0, then those of epoch 1."""
    folders = split_folders(data)[:2]
    dataset = CarvanaDataset(*folders, train_transform(), size=(32, 48), seed=seed)
    return [dataset[epoch, index][0] for epoch in (0, 1) for index in range(12)]


def test_augmentations_differ_over_epochs_and_images_and_agree_over_runs(data):
    images = augmented_images(data, seed=1)
    assert all(map(torch.equal, images, augmented_images(data, seed=1)))
    assert not any(map(torch.equal, images[:12], images[12:]))
    assert not any(map(torch.equal, images, augmented_images(data, seed=2)))


def test_augmentations_turn_masks_with_their_images():
    """The mask of a white car on black ground is the picture itself, whatever is drawn."""
    mask = scene(3)[1].astype(np.float32)
    image = np.repeat((mask * 255).astype(np.uint8)[..., None], 3, axis=2)
    augmentation = Augmentation(rotate=35, horizontal_flip=0.5, vertical_flip=0.5)
    pipeline = train_transform(augmentation)
    for seed in range(20):
        pipeline.set_random_seed(seed)
        item = pipeline(image=image, mask=mask)
        assert item["image"].dtype == torch.uint8
        assert item["mask"].dtype == torch.uint8
        assert (item["image"][0].int() - item["mask"].int()).abs().max() < 5


def test_sampler_permutes_the_images_in_each_epoch(data):
    loader, _ = utils.get_loaders(
        *split_folders(data), 4, train_transform(), val_transform(), 0, False, size=(32, 48)
    )
    epochs = [list(loader.sampler) for _ in range(3)]
    assert [{epoch for epoch, _ in keys} for keys in epochs] == [{0}, {1}, {2}]
    orders = [[index for _, index in keys] for keys in epochs]
    assert all(sorted(order) == list(range(12)) for order in orders)
    assert orders[0] != orders[1] != orders[2]
    loader.sampler.epoch = 1
    assert list(loader.sampler) == epochs[1]


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_levels_in_the_order_of_pictures(data, workers):
    """Neither a worker nor the training process turns channels around, nor are there floats."""
    loader, _ = utils.get_loaders(
        *split_folders(data), 4, train_transform(), val_transform(), workers, size=(32, 48)
    )
    with contextlib.closing(iter(loader)) as batches:
        images, masks = next(batches)
    end_workers(loader)
    assert images.shape == (4, 3, 32, 48) and images.is_contiguous(memory_format=CHANNELS_LAST)
    assert masks.shape == (4, 32, 48) and images.dtype == masks.dtype == torch.uint8
    assert masks.max() == 255
    first = loader.sampler.order(0)[0]
    assert torch.equal(images[0], loader.dataset[0, first][0])


def test_to_device_gives_floats_for_levels_and_for_shares():
    """The tutorials' loaders give floats, those of this project levels: the losses see the same."""
    model = UNET(features=[4])
    model.config = check_model_config({}, 3)
    levels = torch.randint(0, 256, (2, 32, 48), dtype=torch.uint8)
    images = torch.randint(0, 256, (2, 3, 32, 48), dtype=torch.uint8)
    of_levels = to_device(images, levels, model)
    of_floats = to_device(images.float() / 255, levels.float() / 255, model)
    assert all(map(torch.equal, of_levels, of_floats))
    hard = to_device(images.float() / 255, (levels > 127).byte(), model)[1]
    assert hard.unique().tolist() == [0, 1]


FAULTS = {
    "gamma": 0.5,
    "white_balance": 0.3,
    "gray": 1.0,
    "blur": 4.0,
    "noise": 30.0,
    "downscale": 0.2,
    "jpeg_quality": 10,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_change_images_but_neither_masks_nor_sizes(fault):
    photograph, mask = scene(3)
    mask = mask.astype(np.float32)
    plain = {"rotate": 0, "horizontal_flip": 0, "vertical_flip": 0}
    unchanged = train_transform(Augmentation(**plain))
    assert torch.equal(
        unchanged(image=photograph, mask=mask)["image"],
        torch.from_numpy(photograph).permute(2, 0, 1),
    )
    spoil = train_transform(Augmentation(**plain, **{fault: FAULTS[fault]}))
    changes = 0
    for seed in range(20):
        spoil.set_random_seed(seed)
        item = spoil(image=photograph, mask=mask)
        assert item["image"].shape == (3, *mask.shape)
        assert torch.equal(item["mask"], torch.from_numpy(255 * mask).byte())
        changes += not np.array_equal(item["image"].permute(1, 2, 0), photograph)
    assert changes >= 4
