"""train.py and evaluate.py as commands: what they print and write, and what they answer."""

import csv
import json
import shutil

import numpy as np
import pytest
import torch
from helpers import BEST, LAST, split_folders, tiny_options, write_mask, write_pairs
from PIL import Image

from carvana.checkpoint import read_checkpoint

TINY = tiny_options(NUM_WORKERS=1, PRECISION="auto")


def history(folder):
    with open(folder / "saved_images/history.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def trained(data, run):
    """A working folder after two epochs, and what train.py ended with."""
    return data, run("train.py", *TINY, "--num-epochs", 2, "--batch-size", 2)


def test_train_prints_and_writes_each_epoch(trained):
    folder, finished = trained
    lines = [line for line in finished.stdout.splitlines() if line.startswith("epoch ")]
    assert len(lines) == 2
    for phrase in (
        "train loss",
        "val loss",
        "accuracy",
        "1-Dice ",
        " Dice ",
        " at 32x48, ",
        " at full size ",
        " s ",
        "images/s",
        "GB",
    ):
        assert phrase in lines[0]
    assert "data-set" not in lines[0]  # of one class Dice says it all
    page = (folder / "saved_images/index.html").read_text(encoding="utf-8")
    assert "<td>Dice of all pixels together</td>" in page
    assert finished.stdout.count("Got ") == 2
    assert finished.stdout.count("Dice score: 0.") == 2
    assert finished.stdout.count("an epoch, ") == 1
    assert "an epoch, " not in finished.stderr
    assert "images/s" in finished.stderr
    assert "loss=" in finished.stderr
    rows = history(folder)
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert list(rows[0]) == [
        "epoch",
        "train_loss",
        "val_loss",
        "accuracy",
        "dice",
        "one_minus_dice",
        "full_dice",
        "set_dice",
        "set_iou",
        "full_set_dice",
        "full_set_iou",
        "learning_rate",
        "seconds",
        "images_per_second",
        "peak_memory_mb",
    ]
    assert f"Dice {float(rows[1]['dice']):.4f}" in lines[1]
    assert {path.name for path in (folder / "saved_images").iterdir()} == {
        "0.png",
        "1.png",
        "2.png",
        "pred_0.png",
        "pred_1.png",
        "pred_2.png",
        "batch.png",
        "overview.png",
        "history.csv",
        "index.html",
        "curves.png",
        "learning.gif",
    }
    assert np.asarray(Image.open(folder / "saved_images/overview.png")).std() > 20


def test_train_only_evaluates_when_all_epochs_are_done(trained, run):
    folder, _ = trained
    before = {name: (folder / name).read_bytes() for name in (LAST, BEST)}
    shutil.rmtree(folder / "saved_images")
    resume = ("--batch-size", 2, "--load-model", "true")
    finished = run("train.py", *TINY, "--num-epochs", 2, *resume)
    assert "2 of 2 epochs done" in finished.stdout
    assert "Dice score:" in finished.stdout
    assert "epoch 3" not in finished.stdout
    assert (folder / "saved_images/overview.png").exists()
    assert before == {name: (folder / name).read_bytes() for name in before}


def test_train_resumes_with_a_changed_learning_rate_and_evaluate_agrees(trained, run):
    folder, _ = trained
    changes = ("--num-epochs", 3, "--batch-size", 2, "--learning-rate", 0.001)
    finished = run("train.py", *TINY, *changes, "--load-model", "true")
    assert "LEARNING_RATE: 0.01 in the checkpoint, 0.001 from now on" in finished.stdout
    assert "epoch 3/3" in finished.stdout
    optimizer = read_checkpoint(folder / LAST)["optimizer"]
    assert optimizer["param_groups"][0]["lr"] == 0.001

    finished = run("evaluate.py", "--model", LAST, "--json", "scores.json")
    scores = json.loads((folder / "scores.json").read_text())
    row = history(folder)[2]
    assert scores["dice"] == float(row["dice"])
    assert scores["full_dice"] == float(row["full_dice"])
    assert scores["set_iou"] == float(row["set_iou"])
    assert scores["full_set_dice"] == float(row["full_set_dice"])
    for phrase in (
        "dice",
        "iou",
        "accuracy",
        "precision",
        "recall",
        "32x48",
        "average symmetric surface distance",
        "worst",
    ):
        assert phrase in finished.stdout
    assert len(scores["images"]) == 6
    assert scores["images"][0]["name"].endswith(".jpg")
    assert scores["full_boundary"] > 0


def test_train_refuses_to_resume_with_another_network(trained, run):
    changes = ("--features", 4, 4, "--image-width", 64, "--load-model", "true")
    finished = run("train.py", *TINY, *changes, status=2)
    assert "--image-width 48 --features 4 8" in finished.stderr


# ---------------------------------------------------------------- wrong files


def test_wrong_files_are_all_named_before_the_first_step(data, run):
    train_images, train_masks, _, val_masks = split_folders(data)
    names = sorted(path.stem for path in train_images.iterdir())
    (train_masks / f"{names[0]}_mask.gif").unlink()
    (train_images / f"{names[1]}.jpg").unlink()
    (train_images / f"{names[2]}.jpg").write_text("no picture")
    write_mask(train_masks / f"{names[3]}_mask.gif", np.ones((10, 10), bool))
    message = run("train.py", *TINY, status=2).stderr
    for phrase in (
        f"{names[0]}.jpg: image without",
        f"{names[1]}_mask.gif: mask without",
        f"{names[2]}.jpg: cannot be read",
        f"{names[3]}.jpg: 72x48 pixels, its mask {names[3]}_mask.gif 10x10",
        "4 problems",
    ):
        assert phrase in message
    min(val_masks.iterdir()).unlink()
    message = run("train.py", *TINY, status=2).stderr
    assert "4 problems" in message
    assert "1 problem in 'data/val_images/'" in message
    for path in train_images.iterdir():
        path.unlink()
    assert "no images in" in run("train.py", *TINY, status=2).stderr


def test_wrong_files_that_cannot_be_read_are_named_with_and_without_a_cache(data, run):
    bad = [
        data / "data/train_images/000000000001_01.jpg",
        data / "data/train_images/000000000003_02.jpg",
        data / "data/val_masks/000000000065_02_mask.gif",
    ]
    for path in bad:
        path.write_bytes(path.read_bytes()[:-40])
    size = ("--features", 4, "--image-height", 32, "--image-width", 48)
    for arguments in (["--cache", "false"], []):
        finished = run("train.py", *size, *arguments, status=2)
        assert all(path.name in finished.stderr for path in bad)
        assert "1/3" not in finished.stdout
    cut_off = (data / "data/val_images/000000000064_02.jpg").read_bytes()[:-40]
    (data / "data/val_images/000000000064_01.jpg").write_bytes(cut_off)
    message = run("evaluate.py", status=2).stderr
    assert "000000000065_02_mask.gif" in message
    assert "000000000064_01.jpg" in message


@pytest.mark.parametrize("cache", ["true", "false"])
def test_wrong_file_that_is_cut_off_is_named_once(data, run, cache):
    path = next((data / "data/train_images").iterdir())
    path.write_bytes(path.read_bytes()[:1000])
    message = run("train.py", *TINY, "--cache", cache, status=2).stderr
    assert f"{path.name}: cannot be read" in message
    assert message.count("error: ") == 1


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "is not a checkpoint"),
        (b"text", "is not a checkpoint"),
        ({"a": 1}, "holds no weights"),
        ([1], "holds no weights"),
    ],
)
@pytest.mark.parametrize(
    "arguments",
    [["train.py", *TINY, "--load-model", "true"], ["evaluate.py", "--model", LAST]],
    ids=["train", "evaluate"],
)
def test_wrong_files_for_checkpoints_are_named(data, run, content, message, arguments):
    if isinstance(content, bytes):
        (data / LAST).write_bytes(content)
    else:
        torch.save(content, data / LAST)
    assert message in run(*arguments, status=2).stderr


def test_batch_too_small_for_batchnorm_says_what_to_change(data, run):
    size = ("--image-height", 4, "--image-width", 4, "--batch-size", 11)
    assert "change BATCH_SIZE" in run("train.py", *TINY, *size, status=2).stderr


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--model", "no.pth.tar"], "no model 'no.pth.tar'"),
        (["--images", "nowhere"], "no folder 'nowhere'"),
        (["--batch-size", "0"], "--batch-size: expected 1..65536 images, found 0"),
        (["--json", "nowhere/scores.json"], "no folder 'nowhere'"),
    ],
)
def test_evaluate_answers_wrong_options(data, run, arguments, message):
    (data / BEST).write_text("")
    assert message in run("evaluate.py", *arguments, status=2).stderr


def test_one_pair_is_enough_for_a_trial(tmp_path, run):
    write_pairs(tmp_path / "photos", tmp_path / "masks", cars=1, angles=1)
    source = ("prepare_data.py", "photos", "masks")
    assert "set --val-fraction 0" in run(*source, status=2).stderr
    run(*source, "--val-fraction", 0)
    stderr = run("train.py", *tiny_options(NUM_EPOCHS=1), status=2).stderr
    advice = "--val-img-dir data/train_images/ --val-mask-dir data/train_masks/"
    assert stderr.strip().endswith(advice)
    run("train.py", *tiny_options(NUM_EPOCHS=1), *advice.split())


def test_fault_of_a_folder_for_training_and_validation_is_told_once(data, run):
    same = ("--val-img-dir", "data/train_images", "--val-mask-dir", "data/train_masks")
    folders = (
        "--train-img-dir",
        "data/train_images",
        "--train-mask-dir",
        "data/train_masks",
        *same,
    )
    stderr = run("train.py", *tiny_options(), *folders, "--mask-suffix", "_x", status=2).stderr
    assert stderr.count("has a mask") == 1


def test_exchanged_folders_are_noticed(data, run):
    folders = ("--images", "data/train_masks", "--masks", "data/train_images")
    for script in ("explore.py", "evaluate.py"):
        stderr = run(script, *folders, status=2).stderr
        assert "12 pair the other way round: exchange the two folders" in stderr


def test_weights_of_the_project_go_by_their_names(data, run):
    tiny = tiny_options(NUM_EPOCHS=0)
    stderr = run("train.py", *tiny, "--init-weights", "anywere", status=2).stderr
    assert "anywhere or studio or studio-full come with the project" in stderr
    same = ("--features", 16, 32, 64, 128, "--unshuffle", 2)
    assert (
        "before training: Dice" in run("train.py", *tiny, *same, "--init-weights", "studio").stdout
    )


def test_train_advises_on_few_photographs(data, run):
    advice = "few photographs to train on (12): masks become better from the weights"
    tiny = tiny_options(NUM_EPOCHS=0)
    assert advice in run("train.py", *tiny).stdout
    run("train.py", *tiny_options(NUM_EPOCHS=1))
    assert advice not in run("train.py", *tiny, "--init-weights", BEST).stdout
    assert advice not in run("train.py", *tiny_options(NUM_EPOCHS=1), "--load-model").stdout
