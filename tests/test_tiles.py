"""A window that slides over pictures: what it computes, in evaluation and inference."""

import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from helpers import (
    BEST,
    OWN_MODEL,
    ROOT,
    TINY,
    needs_onnx,
    picture_width_height,
    run_script,
    write_model,
    write_pairs,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn
from torch.nn import functional as F

from carvana import exporting
from carvana.checkpoint import save_checkpoint
from carvana.evaluation import check_accuracy
from carvana.images import read_image
from carvana.predicting import network_bands, network_logits, predict
from carvana.tiles import picture_logits, tile_starts, tile_weights, tiled_bands
from model import UNET
from utils import load_model


@given(
    length=st.integers(1, 400),
    side=st.integers(1, 200),
    overlap=st.floats(0, 0.9),
)
def test_tiles_cover_a_picture_and_their_weights_add_up_to_one(length, side, overlap):
    starts = tile_starts(length, side, overlap)
    assert starts[0] == 0
    assert starts[-1] == max(0, length - side)
    steps = np.diff(starts)
    assert (steps > 0).all()
    # Rounding to whole pixels may move a window by one.
    assert (steps <= max(1, side * (1 - overlap)) + 1).all()
    total = torch.zeros(length)
    for start, weights in zip(starts, tile_weights(length, side, starts), strict=True):
        assert (weights > 0).all()
        total[start : start + side] += weights
    assert torch.allclose(total, torch.ones(length), atol=1e-5)


@settings(deadline=None, max_examples=40)
@given(
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    tile=st.integers(1, 40),
    overlap=st.floats(0, 0.9),
)
def test_tiles_of_a_pixelwise_network_equal_the_whole(height, width, tile, overlap):
    torch.manual_seed(0)
    network = nn.Conv2d(3, 4, 1)
    images = torch.rand(2, 3, height, width)
    with torch.no_grad():
        bands = list(tiled_bands(network, images, tile, overlap))
        expected = network(images)
    assert all(band.shape[2] for band in bands)
    assert torch.allclose(torch.cat(bands, 2), expected, atol=1e-5)


def test_tiles_count_most_at_their_center():
    def at_column(windows):
        """Return each window's first column's number, of pictures that hold their columns."""
        return windows[:, :1, :, :1].expand(-1, -1, -1, windows.shape[3])

    images = torch.arange(96.0).expand(1, 1, 8, 96)
    logits = picture_logits(at_column, images, {"TILE": 32, "TILE_OVERLAP": 0.5})
    row = logits[0, 0, 0]
    assert row[0] == 0  # of the first window alone
    assert row[-1] == 64
    assert row[31] == pytest.approx(16, abs=1)  # the last of one, the center of the next
    assert (row.diff() >= -1e-4).all()


def own_size_model(folder, tile=64, features=(8, 16)):
    """Write a checkpoint of a network for pictures at their own size; return its path."""
    torch.manual_seed(1)
    network = UNET(features=list(features))
    constants = {"IMAGE_HEIGHT": 0, "IMAGE_WIDTH": 0, "TILE": tile, "TILE_OVERLAP": 0.25}
    path = folder / "own.pth.tar"
    config = TINY | constants | {"IN_CHANNELS": 3, "FEATURES": list(features)}
    save_checkpoint({"state_dict": network.state_dict(), "config": config}, path)
    return path


def test_tiles_far_from_edges_agree_with_the_whole_picture():
    torch.manual_seed(0)
    network = UNET(features=[4]).eval()
    images = torch.rand(1, 3, 96, 96)
    with torch.no_grad():
        whole = network(images)
        tiled = picture_logits(network, images, {"TILE": 64, "TILE_OVERLAP": 0.9})
    assert torch.allclose(tiled[..., 40:56, 40:56], whole[..., 40:56, 40:56], atol=0.2)
    assert not torch.allclose(tiled, whole)


def test_inference_at_own_size_gives_what_the_network_says_of_each_window(tmp_path):
    model = load_model(own_size_model(tmp_path), "cpu")
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (100, 150, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "picture.png")
    bands = list(network_bands(model, picture[None]))
    assert len(bands) > 1
    probability = predict(model, [picture, picture[:64, :64]])
    assert [values.shape for values in probability] == [(100, 150), (64, 64)]
    whole = UNET(features=[8, 16]).eval()
    whole.load_state_dict(model.state_dict())
    corner = torch.from_numpy(picture[:64, :64]).permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        expected = torch.sigmoid(whole(corner))[0, 0]
    assert np.allclose(probability[1], expected, atol=1e-5)
    run_script(tmp_path, "inference.py", "--model", "own.pth.tar", "--img", "picture.png")
    mask = read_image(tmp_path / "outputs/picture_mask.png", channels=1)[..., 0]
    assert np.array_equal(mask > 127, probability[0] > 0.5)


def test_inference_at_own_size_makes_cutouts_and_a_page(tmp_path):
    own_size_model(tmp_path)
    for number, size in enumerate([(70, 90), (130, 60)]):
        picture = np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(picture).save(tmp_path / f"{number}.png")
    words = ("--img", "0.png", "1.png", "--cutout", "--background", "white", "--gallery", "--tta")
    printed = run_script(tmp_path, "inference.py", "--model", "own.pth.tar", *words).stdout
    assert "at own size on cpu" in printed
    logits = network_logits(
        load_model(tmp_path / "own.pth.tar", "cpu"), read_image(tmp_path / "1.png")[None], tta=True
    )
    mask = read_image(tmp_path / "outputs/1_mask.png", channels=1)[..., 0]
    assert np.array_equal(mask > 127, logits[0, 0] > 0)
    assert picture_width_height(tmp_path / "outputs/1_cutout.png") == (60, 130)
    assert (tmp_path / "outputs/index.html").exists()


def test_windows_can_be_chosen_for_one_command(tmp_path):
    write_pairs(tmp_path / "photos", tmp_path / "masks", cars=1, height=60, width=97)
    write_model(tmp_path / BEST)
    photograph = min((tmp_path / "photos").iterdir())
    data = ("--images", "photos", "--masks", "masks", "--json", "scores.json")
    masks = {}
    for tile in ("0", "20"):
        words = ("--tile", tile, "--tile-overlap", "0.5")
        run_script(tmp_path, "inference.py", *OWN_MODEL, "--img", photograph, *words)
        mask = read_image(tmp_path / f"outputs/{photograph.stem}_mask.png", channels=1)
        masks[tile] = mask[..., 0] > 127
        run_script(tmp_path, "evaluate.py", *OWN_MODEL, *data, *words)
        rows = json.loads((tmp_path / "scores.json").read_text())["images"]
        truth = read_image(tmp_path / f"masks/{photograph.stem}_mask.gif", channels=1)[..., 0] > 127
        both = (masks[tile] & truth).sum()
        dice = 2 * both / (masks[tile].sum() + truth.sum())
        assert rows[0]["full_dice"] == pytest.approx(dice, abs=1e-3)
    assert (masks["0"] != masks["20"]).any()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--tile", "-1"), "--tile: expected 0..16384 pixels, found -1"),
        (("--tile-overlap", "1"), "--tile-overlap: expected 0.0..0.9 share, found 1"),
        (
            ("--tile", "0"),
            "--tile: IMAGE_HEIGHT: 0 keeps pictures at their own size, which needs TILE",
        ),
    ],
)
def test_windows_that_cannot_be_are_refused(tmp_path, words, message):
    own_size_model(tmp_path)
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(tmp_path / "a.png")
    words = ("--model", "own.pth.tar", "--img", "a.png", *words)
    assert message in run_script(tmp_path, "inference.py", *words, status=2).stderr


def test_overlap_without_windows_is_refused(tmp_path):
    write_model(tmp_path / "whole.pth.tar")
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(tmp_path / "a.png")
    words = ("--model", "whole.pth.tar", "--img", "a.png", "--tile-overlap", 0.5)
    stderr = run_script(tmp_path, "inference.py", *words, status=2).stderr
    assert "--tile-overlap: expected a model with windows" in stderr
    run_script(tmp_path, "inference.py", *words, "--tile", 32)


def test_evaluation_in_tiles_counts_blended_logits():
    torch.manual_seed(0)
    network = UNET(features=[4])
    network.config = {"TILE": 32, "TILE_OVERLAP": 0.5, "PRECISION": "fp32"}
    images = torch.rand(3, 3, 48, 80)
    masks = (torch.rand(3, 48, 80) > 0.5).float()
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images, masks), 2)
    scores = check_accuracy(loader, network, "cpu", F.binary_cross_entropy_with_logits)
    with torch.no_grad():
        logits = picture_logits(network.eval(), images, network.config)
    predicted = (logits[:, 0] > 0).numpy()
    for index in range(3):
        assert np.array_equal(scores["masks"].mask(index), predicted[index])
    loss = F.binary_cross_entropy_with_logits(logits, masks[:, None])
    assert scores["loss"] == pytest.approx(loss.item(), abs=1e-5)


@needs_onnx
@pytest.mark.parametrize("size", [(0, 0), (60, 90)], ids=["own size", "fixed size"])
def test_exports_and_their_script_look_through_windows(tmp_path, monkeypatch, size):
    monkeypatch.setattr(exporting, "TURNS", 1)
    write_pairs(tmp_path / "photos", tmp_path / "masks", cars=4, height=60, width=97)
    constants = {"IMAGE_HEIGHT": size[0], "IMAGE_WIDTH": size[1], "TILE": 40}
    write_model(tmp_path / BEST, **constants)
    data = ("--images", "photos", "--masks", "masks")
    data += ("--calibration", "photos", "--calibration-masks", "masks")
    words = (*OWN_MODEL, "--formats", "onnx", "int8", "torchscript", "weights", *data)
    run_script(tmp_path, "export.py", *words)
    assert "the network is for 40x40, windows of larger pictures" in " ".join(
        (tmp_path / "exports/README.md").read_text().split()
    )
    photograph = min((tmp_path / "photos").iterdir())
    model = load_model(tmp_path / BEST, "cpu")
    expected = predict(model, [read_image(photograph)])[0] > 0.5
    assert 0.05 < expected.mean() < 0.95
    for file in ("unet_model_onnx.onnx", "unet_model_torchjit.pth"):
        words = ("--model", f"exports/{file}", "--img", photograph, "--no-overlay")
        run_script(tmp_path, "inference.py", *words)
        mask = read_image(tmp_path / f"outputs/{photograph.stem}_mask.png", channels=1)[..., 0]
        assert ((mask > 127) != expected).mean() < 1e-3
    words = [sys.executable, "exports/predict.py", photograph, "exports/unet_model_onnx.onnx"]
    subprocess.run(words, cwd=tmp_path, check=True, capture_output=True)
    mask = read_image(photograph.with_name(f"{photograph.stem}_mask.png"), channels=1)[..., 0]
    assert ((mask > 127) != expected).mean() < 0.01


# ---------------------------------------------------------------- tiny things in large pictures


def tiny_things(rng, size=(2000, 3000), things=60):
    """Return a photograph with discs of 15 pixels among larger ones and lines, and their mask."""
    height, width = size
    coarse = rng.integers(90, 180, (height // 100, width // 100, 3), dtype=np.uint8)
    picture = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    mask = np.zeros(size, np.uint8)
    colors = rng.integers(10, 80, (3 * things, 3)).tolist()
    places = rng.integers((100, 100), (width - 100, height - 100), (3 * things, 2))
    steps = rng.integers(-90, 90, (things, 2))
    for place, color in zip(places[:things], colors, strict=False):
        cv2.circle(picture, place.tolist(), int(rng.integers(25, 80)), color, -1, cv2.LINE_AA)
    lines = zip(places[things : 2 * things], steps, colors[things:], strict=False)
    for place, step, color in lines:
        cv2.line(picture, place.tolist(), (place + step).tolist(), color, 4, cv2.LINE_AA)
    for place, color in zip(places[2 * things :], colors[2 * things :], strict=True):
        cv2.circle(picture, place.tolist(), 7, color, -1, cv2.LINE_AA)
        cv2.circle(mask, place.tolist(), 7, 255, -1)
    noise = rng.integers(-12, 13, (height, width, 1), dtype=np.int16)
    return np.clip(picture + noise, 0, 255).astype(np.uint8), mask


def write_tiny_things(folder, counts=(("train", 12), ("val", 4)), **options):
    """Write photographs of tiny things, and their masks, into a folder's data/."""
    for seed, (split, count) in enumerate(counts):
        for kind in ("images", "masks"):
            (folder / f"data/{split}_{kind}").mkdir(parents=True)
        for number in range(count):
            picture, mask = tiny_things(np.random.default_rng([seed, number]), **options)
            Image.fromarray(picture).save(folder / f"data/{split}_images/{number}.jpg", quality=95)
            Image.fromarray(mask).save(folder / f"data/{split}_masks/{number}.png")


def test_small_things_are_trained_on_as_documented(tmp_path):
    """docs/your-data.md, the section on small things, with smaller pictures and a smaller network.

    One of the pictures is smaller than a crop, one than a window.
    """
    for kind in ("slides", "outlines"):
        (tmp_path / kind).mkdir()
    sizes = ((300, 400), (220, 520), (600, 700), (520, 530))
    for number, size in enumerate(sizes):
        picture, mask = tiny_things(np.random.default_rng(number), size, things=4)
        Image.fromarray(picture).save(tmp_path / f"slides/{number}.jpg")
        Image.fromarray(mask).save(tmp_path / f"outlines/{number}.png")
    text = (ROOT / "docs/your-data.md").read_text(encoding="utf-8")
    section = re.search("## Small things in large pictures\n(.*?)\n## ", text, re.DOTALL)[1]
    commands = re.findall(r"^python (\S+) (.*)$", section, re.MULTILINE)
    smaller = {
        "prepare_data.py": (),
        "train.py": ("--features", "4", "8", "--num-epochs", "1", "--crops-per-image", "2"),
        "inference.py": ("--gallery",),
    }
    assert [script for script, _ in commands] == list(smaller)
    printed = {}
    for script, words in commands:
        finished = run_script(tmp_path, script, *shlex.split(words), *smaller[script])
        printed[script] = finished.stdout
    assert (
        "3 training and 1 validation images at own size, 2 crops of 256x256"
        in (printed["train.py"])
    )
    (photograph,) = (tmp_path / "data/val_images").iterdir()
    mask = tmp_path / f"outputs/{photograph.stem}_mask.png"
    assert picture_width_height(mask) == picture_width_height(photograph)


WHOLE = ("--crop-height", "0", "--crop-width", "0", "--crops-per-image", "1", "--tile", "0")
RUNS = {  # options beside preset tiles, about the same time for each
    "tiles": (),
    "160x240": (*WHOLE, "--image-height", "160", "--image-width", "240", "--num-epochs", "40"),
    "640x960": (*WHOLE, "--image-height", "640", "--image-width", "960", "--num-epochs", "12"),
}


@pytest.mark.slow
def test_tiny_things_are_found_in_tiles_and_lost_in_whole_pictures(tmp_path):
    write_tiny_things(tmp_path)
    scores = {}
    for name, words in RUNS.items():
        started = time.perf_counter()
        run_script(tmp_path, "train.py", "--preset", "tiles", "--full-res-every", "0", *words)
        seconds = time.perf_counter() - started
        run_script(tmp_path, "evaluate.py", *OWN_MODEL, "--json", f"{name}.json")
        scores[name] = json.loads((tmp_path / f"{name}.json").read_text())["full_dice"]
        print(f"{name}: Dice {scores[name]:.4f} at full size, {seconds:.0f} s")
    assert scores["tiles"] >= 0.9
    assert scores["160x240"] < 0.5
    assert scores["640x960"] < scores["tiles"] - 0.1


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux says what is needed")
def test_inference_in_tiles_takes_the_memory_of_a_few_pictures(tmp_path):
    """Of 50 megapixels: picture, overlay, mask and what is needed to make them; no activations."""
    own_size_model(tmp_path, tile=512)
    peaks = {}
    for name, size in {"small": (600, 800), "large": (5774, 8660)}.items():
        picture, _ = tiny_things(np.random.default_rng(0), size)
        Image.fromarray(picture).save(tmp_path / f"{name}.jpg")
        code = (
            "import re, runpy, sys; "
            f"sys.argv = {['inference.py', '--model', 'own.pth.tar', '--img', f'{name}.jpg']}; "
            f"runpy.run_path({str(ROOT / 'inference.py')!r}, run_name='__main__'); "
            "print(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])"
        )
        words = [sys.executable, "-c", code]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        finished = subprocess.run(
            words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
        )
        print(finished.stdout)
        peaks[name] = int(finished.stdout.split()[-1]) / 1024
    assert peaks["large"] - peaks["small"] < 25 * 50  # bytes a pixel, megapixels
