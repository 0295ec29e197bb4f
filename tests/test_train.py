"""Training: it learns, and neither workers nor interruptions nor resuming change what it learns."""

import copy

import numpy as np
import pytest
import torch
from helpers import BEST, LAST, is_same, no_scaler, run_result, split_folders, write_pairs
from torch.nn import functional as F

import train
import utils
from carvana import __version__, checkpoint, history
from carvana.augmentation import val_transform
from carvana.batchnorm import settle_batchnorm
from carvana.classes import Classes
from carvana.errors import UserError
from carvana.images import Reading
from carvana.model_config import model_config
from carvana.optim import make_optimizer
from dataset import CarvanaDataset, first_batches
from model import UNET

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


# ---------------------------------------------------------------- resuming


def test_training_is_the_same_resumed_and_with_workers(settings, data):
    results = {}
    for workers in (0, 2):
        train.main(settings(NUM_EPOCHS=3, NUM_WORKERS=workers))
        results["straight", workers] = run_result()
        train.main(settings(NUM_EPOCHS=2, NUM_WORKERS=workers))
        train.main(settings(NUM_EPOCHS=3, NUM_WORKERS=workers, LOAD_MODEL=True))
        results["resumed", workers] = run_result()
    first = results["straight", 0]
    assert first["epoch"] == 3
    assert [row["epoch"] for row in first["history"]] == [1, 2, 3]
    for key, result in results.items():
        assert is_same(first, result), key
    train.main(settings(NUM_EPOCHS=3, SEED=7))
    assert not is_same(first["state_dict"], run_result()["state_dict"])
    assert (data / "my_checkpoint_4.pth.tar").exists()  # no run overwrote another one's


def test_resuming_an_earlier_run_leaves_the_best_of_the_later_one_alone(settings, data, no_report):
    train.main(settings(NUM_EPOCHS=1))
    train.main(settings(NUM_EPOCHS=1, SEED=7))
    later = (data / BEST).read_bytes()
    train.main(settings(NUM_EPOCHS=9, LOAD_MODEL=True, CHECKPOINT_FILE="my_checkpoint_1.pth.tar"))
    assert later in [path.read_bytes() for path in data.glob("best_checkpoint*.pth.tar")]
    assert checkpoint.read_checkpoint("my_checkpoint_1.pth.tar")["epoch"] == 9


@pytest.mark.parametrize("with_optimizer", [True, False])
def test_resuming_from_a_tutorials_checkpoint_starts_at_epoch_0(
    settings, data, capsys, with_optimizer
):
    model = UNET(features=[4, 8])
    state = {"state_dict": model.state_dict()}
    if with_optimizer:
        state["optimizer"] = torch.optim.Adam(model.parameters(), 1e-3).state_dict()
    torch.save(state, LAST)
    train.main(settings(NUM_EPOCHS=1, LOAD_MODEL=True))
    assert "0 of 1 epochs done" in capsys.readouterr().out
    assert (data / "my_checkpoint_1.pth.tar").exists()
    assert run_result()["epoch"] == 1


@pytest.mark.parametrize("name", ["cpu", pytest.param("cuda", marks=GPU)])
def test_resuming_with_a_tutorials_optimizer_makes_its_next_step(name):
    """Its moments have another layout in memory, as the tutorials' weights do."""
    torch.manual_seed(0)
    theirs = UNET(features=[4, 8]).to(name)
    ours = UNET(features=[4, 8]).to(name, memory_format=torch.channels_last)
    images = torch.rand(2, 3, 16, 24, device=name)
    masks = (torch.rand(2, 1, 16, 24, device=name) > 0.5).float()
    their_adam = torch.optim.Adam(theirs.parameters(), 1e-3)
    for _ in range(5):
        _step(theirs, their_adam, images, masks)
    our_adam = make_optimizer("adam", ours.parameters(), 1e-3, torch.device(name))
    state = {
        "state_dict": theirs.state_dict(),
        "optimizer": copy.deepcopy(their_adam.state_dict()),
    }
    checkpoint.restore(state, ours, our_adam, no_scaler(name))
    _step(theirs, their_adam, images, masks)
    _step(ours, our_adam, images, masks)
    for their_weight, our_weight in zip(theirs.parameters(), ours.parameters(), strict=True):
        assert (their_weight - our_weight).abs().max() < 1e-4


def _step(model, optimizer, images, masks):
    optimizer.zero_grad()
    F.binary_cross_entropy_with_logits(model(images), masks).backward()
    optimizer.step()


def test_best_dice_is_measured_again_where_scoring_has_changed(settings, no_report):
    train.main(settings(NUM_EPOCHS=1))
    state = checkpoint.read_checkpoint(LAST)
    torch.save(state | {"best": 0.999}, LAST)
    train.main(settings(NUM_EPOCHS=2, LOAD_MODEL=True))
    assert run_result()["best"] == 0.999
    torch.save(state | {"best": 0.999}, LAST)
    train.main(settings(NUM_EPOCHS=2, LOAD_MODEL=True, MASK_RESIZE="nearest"))
    assert run_result()["best"] < 0.999
    assert checkpoint.read_checkpoint(BEST)["best"] == run_result()["best"]


# ---------------------------------------------------------------- learning


def test_training_overfits_a_single_batch(tmp_path):
    write_pairs(tmp_path / "images", tmp_path / "masks", cars=4, height=64, width=96)
    pair = (tmp_path / "images", tmp_path / "masks")
    loader, _ = utils.get_loaders(
        *pair, *pair, 8, val_transform(), val_transform(), 0, False, size=(64, 96)
    )
    torch.manual_seed(0)
    model = UNET(features=[16, 32, 64])
    optimizer = torch.optim.Adam(model.parameters(), 0.003)
    for _ in range(160):
        train.train_fn(loader, model, optimizer, torch.nn.BCEWithLogitsLoss(), no_scaler())
    settle_batchnorm(model, first_batches(loader, 0, 8))
    assert utils.check_accuracy(loader, model, "cpu", full_size=True)["dice"] > 0.97


def test_training_warns_when_nothing_is_predicted(settings, capsys):
    train.main(settings(NUM_EPOCHS=1, LEARNING_RATE=1e-9, THRESHOLD=0.999))
    assert "0.00 % of all pixels are predicted as car" in capsys.readouterr().out


@pytest.mark.parametrize(
    "changes",
    [
        {"IN_CHANNELS": 1},
        {"PRECISION": "bf16"},
        {"MEAN": [0.5, 0.4, 0.3], "STD": [0.2]},
        {"MASK_RESIZE": "nearest"},
        {"IMAGE_HEIGHT": 33, "IMAGE_WIDTH": 47},
    ],
    ids=str,
)
def test_training_and_evaluation_score_alike_with_changed_constants(settings, data, changes):
    train.main(settings(NUM_EPOCHS=1, **changes))
    model = utils.load_model(LAST, "cpu")
    config = model_config(model)
    dataset = CarvanaDataset(
        *split_folders(data)[2:],
        val_transform(),
        size=(config["IMAGE_HEIGHT"], config["IMAGE_WIDTH"]),
        channels=config["IN_CHANNELS"],
        mask_resize=config["MASK_RESIZE"],
    )
    scores = utils.check_accuracy(utils.make_loader(dataset, 4), model, "cpu")
    assert scores["dice"] == checkpoint.read_checkpoint(LAST)["history"][0]["dice"]


def test_settled_batchnorm_averages_over_all_images_alike(data):
    """A last batch of one image weighs as much as one image."""
    folders = split_folders(data)
    loader, _ = utils.get_loaders(*folders, 11, val_transform(), val_transform(), 0, size=(32, 48))
    model = UNET(features=[4])
    dataset = CarvanaDataset(*folders[:2], val_transform(), size=(32, 48))
    images = torch.stack([image for image, _ in dataset]).float() / 255
    with torch.no_grad():
        expected = model.downs[0].conv[0](images).mean((0, 2, 3))
    model.config = {"PRECISION": "fp32"}
    settle_batchnorm(model, first_batches(loader, 0, 12))
    assert torch.allclose(model.downs[0].conv[1].running_mean, expected, atol=1e-6)
    assert model.downs[0].conv[1].momentum == 0.1


class Masks(list):
    """Masks in place of a CarvanaDataset."""

    def __init__(self, masks, *names):
        super().__init__(masks)
        self.reading = Reading(classes=Classes(names))

    def read_target(self, index):
        return self[index]


def test_rare_classes_are_warned_about(capsys):
    rare = np.zeros((40, 50), np.uint8)
    rare[:2, :10] = 255
    history.warn_of_rare_classes(Masks([rare] * 3, "car"))
    expected = "car: 1.00 % of the pixels of 3 training masks; "
    assert capsys.readouterr().out.startswith(expected)
    history.warn_of_rare_classes(Masks([rare // 255] * 200, "a", "b"))
    expected = "b: 1.00 % of the pixels of 50 training masks; "
    assert capsys.readouterr().out.startswith(expected)
    history.warn_of_rare_classes(Masks([rare, np.full_like(rare, 255)], "car"))
    assert capsys.readouterr().out == ""


def test_checkpoints_name_the_version(settings, data):
    train.main(settings(NUM_EPOCHS=1))
    assert checkpoint.read_checkpoint(LAST)["version"] == __version__


def test_loss_that_is_not_finite_names_the_files_and_keeps_the_checkpoint(settings, data):
    train.main(settings(NUM_EPOCHS=1))
    before = (data / LAST).read_bytes()
    with pytest.raises(UserError, match=r"not finite; its images: 0000\w+_0[12]\.jpg, "):
        train.main(settings(NUM_EPOCHS=9, LEARNING_RATE=1e30, LOAD_MODEL=True))
    assert (data / LAST).read_bytes() == before
