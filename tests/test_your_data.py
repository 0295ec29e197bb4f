"""Several classes, other names and other pictures than Carvana's, from folder to exported model."""

import json
import re
import shlex

import numpy as np
import pytest
import torch
from helpers import (
    OWN_MODEL,
    ROOT,
    csv_rows,
    needs_onnx,
    picture_width_height,
    run_script,
    scene,
    tiny_options,
    write_parts,
)
from PIL import Image

import utils
from carvana import metrics
from carvana.classes import Classes
from carvana.images import read_labels
from carvana.rendering import PARTS

OWN_FOLDERS = ("--images", "mine/images", "--masks", "mine/masks")
OF_PARTS = ("--classes", *PARTS)
CLASSES = Classes(PARTS)


def training_options(**changes):
    """Return the words for a training that learns parts of cars in a few seconds."""
    recipe = {"FEATURES": [8, 16], "OPTIMIZER": "muon", "LEARNING_RATE": 0.03, "ROTATE": 0}
    size = {"IMAGE_HEIGHT": 48, "IMAGE_WIDTH": 72}
    return tiny_options(**recipe, **size, PRECISION="auto", **changes)


def test_groups_and_suffixes_of_ones_own(tmp_path, run):
    write_parts(tmp_path / "mine", 5, suffix="")
    naming = ("--mask-suffix", "", "--group-regex", r"scene(\d+)-\d")
    prepare = ("prepare_data.py", *OWN_FOLDERS, *naming)
    done = run(*prepare, *OF_PARTS, "--val-fraction", 0.4)
    assert "train      3 cars       6 pairs" in done.stdout
    assert "val        2 cars       4 pairs" in done.stdout
    train, val = (
        {path.name.split("-")[0] for path in (tmp_path / f"data/{split}_images").iterdir()}
        for split in ("train", "val")
    )
    assert not train & val
    check = ("prepare_data.py", "--check", *OF_PARTS, *naming)
    assert "train      3 cars       6 pairs" in run(*check).stdout
    assert "is in val and in train" in run(*check[:-1], r"(s)cene.*", status=2).stderr
    done = run(*prepare, *OF_PARTS[:-1], "--force", status=2)  # wheels are not named
    assert done.stderr.count("cannot be read") == 10
    assert "of value 3: CLASSES has 3 names, 0 to 2" in done.stderr
    done = run(*prepare, "--force", status=2)
    assert "4 different values in the mask (expected 2" in done.stderr


# ---------------------------------------------------------------- from training to export


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a network that tells parts apart, and what training it printed."""
    folder = tmp_path_factory.mktemp("trained")
    write_parts(folder / "mine", 12, angles=3)
    run_script(folder, "prepare_data.py", *OWN_FOLDERS, *OF_PARTS, "--val-fraction", 0.25)
    arguments = training_options(
        NUM_EPOCHS=40, SCHEDULE="linear", CLASSES=PARTS, BATCHNORM_IMAGES=24, GALLERY_MAX=9
    )
    return folder, run_script(folder, "train.py", *arguments).stdout


@pytest.fixture(scope="module")
def scores(trained):
    """What evaluate.py says and writes of that network."""
    folder, _ = trained
    arguments = (*OWN_MODEL, "--json", "scores.json", "--batch-size", 3)
    done = run_script(folder, "evaluate.py", *arguments)
    assert re.search(r"wheels +Dice 0\.\d{4}  IoU 0\.\d{4}", done.stdout)
    assert re.search(r"wheels .* set Dice 0\.\d{4}  set IoU 0\.\d{4}", done.stdout)
    assert re.search(r"set iou +0\.\d{6} +0\.\d{6}", done.stdout)
    return json.loads((folder / "scores.json").read_text())


@pytest.fixture(scope="module")
def predicted(trained):
    """The folder of what inference.py writes of that network's validation photographs."""
    folder, _ = trained
    arguments = ("--img", "data/val_images", "--cutout", "--background", "white", "--gallery")
    done = run_script(folder, "inference.py", *arguments, *OWN_MODEL)
    assert re.search(r"background [\d.]+ %, \w+ [\d.]+ %", done.stdout)
    return folder / "outputs"


def test_parts_are_learned(trained):
    folder, stdout = trained
    assert float(re.findall(r"Dice ([\d.]+) at 48x72", stdout)[-1]) > 0.5
    assert "Confusion" in (folder / "saved_images/index.html").read_text()
    model = utils.load_model(folder / "best_checkpoint.pth.tar", "cpu")
    assert model.config["CLASSES"] == list(PARTS)
    assert model(torch.rand(1, 3, 48, 72)).shape == (1, 4, 48, 72)


def test_parts_of_every_pixel_are_scored(scores):
    assert sum(map(sum, scores["full_confusion"])) == 9 * 48 * 72


def test_parts_are_scored_by_all_pixels_together(trained, scores):
    """From the confusion matrix of the whole set, as the mIoU of papers is."""
    for prefix in ("", "full_"):
        confusion = np.array(scores[f"{prefix}confusion"])
        right = confusion.diagonal()
        sizes = confusion.sum(0) + confusion.sum(1)
        assert scores[f"{prefix}set_iou"] == pytest.approx(np.mean(right / (sizes - right)))
        assert scores[f"{prefix}set_dice"] == pytest.approx(np.mean(2 * right / sizes))
        by_class = scores[f"{prefix}classes"]
        expected = dict(zip(PARTS, right / (sizes - right), strict=True))
        assert {name: row["set_iou"] for name, row in by_class.items()} == pytest.approx(expected)
    folder, stdout = trained
    last = csv_rows(folder / "saved_images/history.csv")
    row = dict(zip(last[0], last[-1], strict=True))
    assert f"data-set IoU {float(row['set_iou']):.4f} at 48x72, " in stdout
    page = (folder / "saved_images/index.html").read_text()
    shown = f"{float(row['full_set_iou']):.4f}"
    assert re.search(rf"<td>IoU of all pixels together</td><td>0\.\d+</td><td>{shown}</td>", page)


def test_parts_in_palette_files_score_as_evaluated(trained, scores, predicted):
    folder, _ = trained
    matrices = []
    for path in sorted((folder / "data/val_images").iterdir()):
        with Image.open(predicted / f"{path.stem}_mask.png") as image:
            assert image.mode == "P"
            assert image.getpalette()[:12] == CLASSES.mask_colors()[:4].ravel().tolist()
            mask = torch.from_numpy(np.array(image))
        truth = read_labels(folder / f"data/val_masks/{path.stem}_mask.png", CLASSES)
        truth = torch.from_numpy(truth)
        matrices.append(metrics.confusion_matrices(mask[None], truth[None], CLASSES))
    dice = metrics.image_scores(torch.cat(matrices), "dice", CLASSES).mean().item()
    # Convolutions are computed in bfloat16 in one, in threads in the other.
    assert dice == pytest.approx(scores["full_dice"], abs=2e-3)


@pytest.mark.parametrize("arguments", [["--rle", "a.csv"], ["--threshold", "0.4"]])
def test_parts_have_no_run_lengths_and_no_threshold(trained, arguments):
    folder, _ = trained
    options = ("--img", "data/val_images", *OWN_MODEL, *arguments)
    done = run_script(folder, "inference.py", *options, status=2)
    assert "tells 4 classes apart" in done.stderr


@needs_onnx
def test_parts_of_exported_models_are_the_same(trained, predicted):
    folder, _ = trained
    run_script(folder, "export.py", *OWN_MODEL, "--formats", "torchscript", "onnx")
    text = (folder / "exports/README.md").read_text()
    assert "the largest is the class, of background, body, glass, wheels" in text
    for file in ("unet_model_onnx.onnx", "unet_model_torchjit.pth"):
        model = ("--model", f"exports/{file}")
        options = ("--img", "data/val_images", "--out", file, "--no-overlay")
        run_script(folder, "inference.py", *model, *options)
        same = [
            read_labels(path, CLASSES) == read_labels(predicted / path.name, CLASSES)
            for path in (folder / file).iterdir()
        ]
        assert np.mean(same) > 0.98


# ---------------------------------------------------------------- other photographs


@pytest.mark.parametrize("kind", ["gray", "16 bits", "mixed sizes"])
def test_photographs_of_other_kinds_are_trained_on_and_scored(tmp_path, run, kind):
    for split, numbers in (("train", range(8)), ("val", range(50, 54))):
        for folder in ("images", "masks"):
            (tmp_path / f"data/{split}_{folder}").mkdir(parents=True)
        for number in numbers:
            image, mask = picture_of_kind(kind, number)
            Image.fromarray(image).save(tmp_path / f"data/{split}_images/{number}.png")
            Image.fromarray(mask).save(tmp_path / f"data/{split}_masks/{number}.png")
    channels = 3 if kind == "mixed sizes" else 1
    run("train.py", *training_options(NUM_EPOCHS=2, IN_CHANNELS=channels))
    run("evaluate.py", *OWN_MODEL, "--json", "a.json")
    assert 0 < json.loads((tmp_path / "a.json").read_text())["full_dice"] <= 1
    run("inference.py", "--img", "data/val_images", *OWN_MODEL, "--no-overlay")
    for path in (tmp_path / "data/val_images").iterdir():
        mask_path = tmp_path / f"outputs/{path.stem}_mask.png"
        assert picture_width_height(path) == picture_width_height(mask_path)


def picture_of_kind(kind, number):
    """Return a photograph of a kind, uint8 or uint16, and its mask of 0 and 1."""
    if kind == "mixed sizes":
        return scene(number, 40 + 7 * (number % 3), 60 + 11 * (number % 4))
    image, mask = scene(number)
    gray = image.mean(2).astype(np.uint8)
    if kind == "16 bits":
        return gray.astype(np.uint16) * 257, mask
    return gray, mask


def test_resolutions_begin_with_smaller_class_masks(tmp_path, run):
    write_parts(tmp_path / "mine", 4)
    run("prepare_data.py", *OWN_FOLDERS, *OF_PARTS, "--val-fraction", 0.25)
    arguments = training_options(NUM_EPOCHS=2, CLASSES=PARTS, RESOLUTIONS=[0.5, 1.0])
    assert "epoch 2/2" in run("train.py", *arguments).stdout


# ---------------------------------------------------------------- the document


def test_scenes_of_your_own_are_trained_on_as_documented(tmp_path):
    """docs/your-data.md, the section on scenes, with six small pictures of five classes."""
    write_parts(tmp_path / "written", cars=6, angles=1, suffix="")
    (tmp_path / "written/images").rename(tmp_path / "scenes")
    (tmp_path / "written/masks").rename(tmp_path / "labels")
    text = (ROOT / "docs/your-data.md").read_text(encoding="utf-8")
    section = re.search("## Many classes in scenes\n(.*?)\n## ", text, re.DOTALL)[1]
    commands = re.findall(r"^python (\S+) (.*)$", section, re.MULTILINE)
    smaller = tiny_options(NUM_EPOCHS=1)
    assert [script for script, _ in commands] == ["prepare_data.py", "train.py", "evaluate.py"]
    for script, words in commands:
        more = smaller if script == "train.py" else ()
        printed = run_script(tmp_path, script, *shlex.split(words), *more).stdout
    assert re.search(r"^set iou +0\.\d+ +0\.\d+$", printed, re.MULTILINE)


@needs_onnx
def test_document_is_right(tmp_path):
    """docs/your-data.md, its commands as printed."""
    text = (ROOT / "docs/your-data.md").read_text(encoding="utf-8")
    # Files of other programs, folders of your own and what is rendered are tested elsewhere.
    elsewhere = (
        "Scenes that your photographs do not show",
        "Many classes in scenes",
        "Small things in large pictures",
        "More than three channels",
        "Rendered street scenes",
        "From elsewhere",
    )
    for section in elsewhere:
        text = re.sub(f"## {section}.*?\n(?=## )", "", text, flags=re.DOTALL)
    commands = re.findall(r"^python (\S+) (.*)$", text, re.MULTILINE)
    scripts = "prepare_data.py explore.py prepare_data.py train.py evaluate.py inference.py"
    assert [script for script, _ in commands] == [*scripts.split(), "export.py"]
    printed = {}
    for script, options in commands:
        printed[script] = run_script(tmp_path, script, *shlex.split(options)).stdout
    assert float(re.findall(r"best .*Dice ([\d.]+)", printed["train.py"])[0]) > 0.7
    assert (tmp_path / "exports/unet_model_int8.onnx").exists()
    assert (tmp_path / "outputs/index.html").exists()
