"""The names, calls and tensors that scripts and checkpoints of the lineage count on."""

import albumentations as A
import pytest
import torch
from albumentations.pytorch import ToTensorV2
from helpers import randomize, reference_logits, write_model

import utils
from carvana.model_config import model_config
from dataset import CarvanaDataset
from model import UNET
from train import train_fn
from utils import (
    check_accuracy,
    get_loaders,
    load_checkpoint,
    save_checkpoint,
    save_predictions_as_imgs,
)


@pytest.mark.parametrize("features", [[4, 8, 16, 32], [6, 10]])
@pytest.mark.parametrize("training", [False, True])
def test_logits_equal_the_reference(features, training):
    torch.manual_seed(0)
    model = randomize(UNET(3, 2, features)).train(training)
    x = torch.randn(2, 3, 32, 48)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    expected = reference_logits(x, weights, len(features), training)
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)


def test_default_network_is_the_lineages():
    model = UNET()
    assert sum(p.numel() for p in model.parameters()) == 31_037_633
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert shapes["downs.0.conv.0.weight"] == (64, 3, 3, 3)
    assert shapes["bottleneck.conv.3.weight"] == (1024, 1024, 3, 3)
    assert shapes["ups.0.weight"] == (1024, 512, 2, 2)
    assert shapes["ups.1.conv.0.weight"] == (512, 1024, 3, 3)
    assert shapes["ups.7.conv.4.bias"] == (64,)
    assert shapes["final_conv.weight"] == (1, 64, 1, 1)
    assert not any(name.endswith(("conv.0.bias", "conv.3.bias")) for name in shapes)


@pytest.mark.parametrize("size", [(161, 239), (1, 1), (16, 16), (5, 100)])
def test_any_size_comes_back(size):
    model = UNET(1, 3, [2, 4, 4, 8]).eval()
    x = torch.randn(2, 1, *size)
    assert model(x).shape == (2, 3, *size)


def test_blocks_of_pixels_become_channels_and_come_back():
    """Channel u * i + j is the picture from row i and column j on, in steps of u."""
    model = randomize(UNET(3, 2, [4, 8], unshuffle=2)).eval()
    x = torch.randn(2, 3, 24, 40)
    blocks = [x[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)]
    folded = torch.stack(blocks, 2).flatten(1, 2)  # (B, 12, 12, 20)
    small = reference_logits(folded, model.state_dict(), 2).unflatten(1, (2, 4))
    expected = torch.zeros(2, 2, 24, 40)
    for k in range(4):
        expected[:, :, k // 2 :: 2, k % 2 :: 2] = small[:, :, k]
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)
    assert model(torch.randn(1, 3, 13, 7)).shape == (1, 2, 13, 7)


def test_padding_changes_nothing_of_a_size_that_fits():
    model = UNET(3, 1, [2, 4]).eval()
    x = torch.randn(1, 3, 12, 16)
    torch.testing.assert_close(model(x), reference_logits(x, model.state_dict(), 2))


def test_wrong_inputs_are_clear_errors():
    model = UNET(3, 1, [2, 4])
    expected = r"expected images of shape \(B, 3, H, W\), got \(1, 1, 8, 8\)"
    with pytest.raises(ValueError, match=expected):
        model(torch.zeros(1, 1, 8, 8))
    with pytest.raises(ValueError, match="BatchNorm"):
        model.train()(torch.zeros(1, 3, 3, 4))
    assert model(torch.zeros(2, 3, 4, 4)).shape == (2, 1, 4, 4)


def test_a_lineage_script_runs_unchanged(data, monkeypatch, capsys):
    monkeypatch.chdir(data)
    (data / "saved_images").mkdir()
    device = "cpu"
    resize = A.Resize(height=32, width=48)
    normalize = A.Normalize(mean=[0.0, 0.0, 0.0], std=[1.0, 1.0, 1.0], max_pixel_value=255.0)
    rotate = A.Rotate(limit=35, p=1.0)
    flips = [A.HorizontalFlip(p=0.5), A.VerticalFlip(p=0.1)]
    train_transform = A.Compose([resize, rotate, *flips, normalize, ToTensorV2()])
    val_transforms = A.Compose([resize, normalize, ToTensorV2()])
    model = UNET(in_channels=3, out_channels=1, features=[4, 8]).to(device)
    loss_fn = torch.nn.BCEWithLogitsLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    train_loader, val_loader = get_loaders(
        "data/train_images/",
        "data/train_masks/",
        "data/val_images/",
        "data/val_masks/",
        4,
        train_transform,
        val_transforms,
        0,
        False,
    )
    image, mask = train_loader.dataset[0]
    assert image.shape == (3, 32, 48)
    assert image.dtype == torch.float32
    assert image.min() >= 0 and image.max() <= 1
    assert mask.shape == (32, 48)
    assert set(mask.unique().tolist()) == {0, 1}
    scaler = torch.amp.GradScaler(device, enabled=False)
    losses = [train_fn(train_loader, model, optimizer, loss_fn, scaler) for _ in range(6)]
    assert losses[-1] < losses[0]
    scores = check_accuracy(val_loader, model, device=device)
    out = capsys.readouterr().out
    assert f"Got {round(scores['accuracy'] * 6 * 32 * 48)}/{6 * 32 * 48} with acc" in out
    assert f"Dice score: {scores['dice']:.6f}" in out
    assert scores["dice"] > 0.3

    save_checkpoint({"state_dict": model.state_dict(), "optimizer": optimizer.state_dict()})
    fresh = UNET(in_channels=3, out_channels=1, features=[4, 8])
    load_checkpoint(torch.load("my_checkpoint.pth.tar"), fresh)
    assert check_accuracy(val_loader, fresh, device)["dice"] == scores["dice"]
    save_predictions_as_imgs(val_loader, model, folder="saved_images/", device=device)
    written = sorted(path.name for path in (data / "saved_images").iterdir())
    assert written == ["0.png", "1.png", "pred_0.png", "pred_1.png"]


def test_dataset_positional_and_bare(data):
    dataset = CarvanaDataset(str(data / "data/train_images"), str(data / "data/train_masks"))
    image, mask = dataset[0]
    assert len(dataset) == 12
    assert image.shape == (48, 72, 3) and image.dtype == "uint8"
    assert mask.shape == (48, 72) and mask.dtype == "float32"
    assert set(mask.flatten()) == {0, 1}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_of_ones_own_augments_anew_each_epoch(data, workers):
    pipeline = A.Compose([A.Resize(32, 48), A.Rotate(limit=35, p=1.0), ToTensorV2()])
    dataset = CarvanaDataset(data / "data/train_images", data / "data/train_masks", pipeline)
    loader = torch.utils.data.DataLoader(dataset, batch_size=12, num_workers=workers)
    first, second = (next(iter(loader))[0] for _ in range(2))
    assert not any(map(torch.equal, first, second))


@pytest.mark.parametrize(
    "prefix", ["", "_orig_mod.", "module.", "module._orig_mod.", "_orig_mod.module."]
)
def test_load_model_reads_the_network_off_the_tensors(tmp_path, prefix):
    model = randomize(UNET(1, 2, [4, 6, 8])).eval()
    weights = {prefix + name: tensor for name, tensor in model.state_dict().items()}
    torch.save({"state_dict": weights}, tmp_path / "a.pth.tar")
    for name in ("bare.pth.tar", "tutorial.pth"):
        torch.save(model.state_dict(), tmp_path / name)
    x = torch.randn(1, 1, 16, 24)
    for name in ("a.pth.tar", "bare.pth.tar", "tutorial.pth"):
        loaded = utils.load_model(tmp_path / name, "cpu")
        torch.testing.assert_close(loaded(x), model(x))
        assert loaded.config["FEATURES"] == [4, 6, 8]
        assert loaded.unshuffle == 1
        assert model_config(loaded)["THRESHOLD"] == 0.5


def test_checkpoint_of_a_run_is_kept_when_a_tutorials_script_saves(tmp_path, capsys):
    path = write_model(tmp_path / "my_checkpoint.pth.tar")
    trained = path.read_bytes()
    for value in (1.0, 2.0):
        save_checkpoint({"state_dict": {"weight": torch.tensor(value)}}, path)
    assert (tmp_path / "my_checkpoint_1.pth.tar").read_bytes() == trained
    assert torch.load(path)["state_dict"]["weight"] == 2.0
    assert len(list(tmp_path.iterdir())) == 2
    assert "is of another run; it is now" in capsys.readouterr().out
