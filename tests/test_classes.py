"""Masks of several classes, other names and other pictures than Carvana's, from folder to exported model."""

import json
import re
import shlex
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from test_inference import size_of
from torch.nn import functional as F

import config
import demo_data
import metrics
import pictures
import recipe
import utils
from dataset import CarvanaDataset, train_transform
from pictures import Labels, UserError, read_labels

THREE = Labels(("ground", "thing", "edge"))
PAINTED = Labels(
    ("ground", "thing", "edge"), ((0, 0, 0), (255, 0, 0), (10, 20, 30), (255, 255, 255)), 99
)


def indices(seed=0, size=(24, 36)):
    """A mask of three classes and some pixels to ignore, uint8 (H, W)."""
    rng = np.random.default_rng(seed)
    mask = cv2.resize(
        rng.integers(0, 3, (4, 6), dtype=np.uint8), size[::-1], interpolation=cv2.INTER_NEAREST
    )
    mask[rng.random(size) < 0.02] = 255
    return mask


# ---------------------------------------------------------------- reading


@pytest.mark.parametrize("kind", ["L", "P", "16 bits", "grey RGB", "bmp", "tif"])
def test_class_numbers_in_any_format(tmp_path, kind):
    mask = indices()
    path = tmp_path / f"a.{kind if kind in ('bmp', 'tif') else 'png'}"
    image = Image.fromarray(
        mask.astype(np.uint16)
        if kind == "16 bits"
        else np.dstack([mask] * 3)
        if kind == "grey RGB"
        else mask
    )
    if kind == "P":
        image.putpalette(np.random.default_rng(0).integers(0, 255, 768, dtype=np.uint8).tobytes())
    image.save(path)
    assert np.array_equal(read_labels(path, THREE), mask)


def test_colours_are_classes(tmp_path):
    mask = indices()
    colours = pictures.colours_of(PAINTED)
    Image.fromarray(colours[np.where(mask == 255, 99, mask)]).save(tmp_path / "a.png")
    Image.fromarray(colours[np.where(mask == 255, 99, mask)]).quantize(8).save(tmp_path / "a.gif")
    for name in ("a.png", "a.gif"):
        assert np.array_equal(
            read_labels(tmp_path / name, PAINTED), np.where(mask == 255, 99, mask)
        ), name


def test_what_is_no_class_is_named_and_counted(tmp_path):
    mask = np.zeros((4, 5), np.uint8)
    mask[0, :3], mask[1, 0] = 7, 200
    Image.fromarray(mask).save(tmp_path / "a.png")
    with pytest.raises(
        UserError,
        match=r"a.png: cannot be read \(3 pixels of value 7, 1 pixels of value 200: CLASSES has 3 names, 0 to 2; add names, set PALETTE, or IGNORE_INDEX",
    ):
        read_labels(tmp_path / "a.png", THREE)
    Image.fromarray(np.full((2, 2, 3), (1, 2, 3), np.uint8)).save(tmp_path / "b.png")
    with pytest.raises(UserError, match="4 pixels of colour #010203: no colour of PALETTE"):
        read_labels(tmp_path / "b.png", PAINTED)
    with pytest.raises(UserError, match="coloured, and PALETTE is empty"):
        read_labels(tmp_path / "b.png", Labels(tuple("abcdef")))


def test_a_smaller_mask_has_the_class_that_covers_most(tmp_path):
    mask = np.zeros((40, 60), np.uint8)
    mask[:, 31:], mask[:, 52:], mask[-10:] = (
        1,
        2,
        255,
    )  # of columns 30 to 39, nine are class 1; of 50 to 59, eight are class 2
    Image.fromarray(mask).save(tmp_path / "a.png")
    assert read_labels(tmp_path / "a.png", THREE, (4, 6)).tolist() == [[0, 0, 0, 1, 1, 2]] * 3 + [
        [255] * 6
    ]
    assert np.array_equal(
        read_labels(tmp_path / "a.png", THREE, (4, 6), "nearest"), mask[::10, ::10]
    )


# ---------------------------------------------------------------- scores and losses


@given(st.integers(0, 2**32 - 1))
def test_scores_are_counts(seed):
    rng = np.random.default_rng(seed)
    truth, predicted = (
        rng.integers(0, rng.integers(1, 4), (2, 5, 6)),
        rng.integers(0, rng.integers(1, 4), (2, 5, 6)),
    )
    truth[rng.random(truth.shape) < 0.2] = 255
    matrices = metrics.confusion_matrices(torch.from_numpy(predicted), torch.from_numpy(truth), 3)
    for i in range(2):
        known = truth[i] != 255
        assert all(
            matrices[i, a, b] == ((truth[i] == a) & (predicted[i] == b)).sum()
            for a in range(3)
            for b in range(3)
        )
        dices = metrics.class_scores(matrices, metrics.dice)[i]
        for c in range(3):
            p, t = (predicted[i] == c) & known, (truth[i] == c) & known
            expected = 2 * (p & t).sum() / (p.sum() + t.sum()) if p.any() or t.any() else np.nan
            assert dices[c].item() == pytest.approx(expected, nan_ok=True)


def test_losses_are_their_formulas():
    torch.manual_seed(0)
    logits, masks = torch.randn(2, 3, 8, 12), torch.randint(0, 3, (2, 8, 12))
    masks[0, :2] = 255
    assert recipe.make_loss("bce", THREE)(logits, masks).item() == pytest.approx(
        F.cross_entropy(logits, masks, ignore_index=255).item()
    )
    weighted = F.cross_entropy(logits, masks, torch.tensor([1.0, 5, 5]), ignore_index=255)
    assert recipe.make_loss("bce", THREE, 5.0)(logits, masks).item() == pytest.approx(
        weighted.item()
    )
    p, known = torch.softmax(logits, 1), masks != 255
    dices = [
        (2 * (p[i, c] * (masks[i] == c))[known[i]].sum() + 1)
        / (p[i, c][known[i]].sum() + (masks[i] == c).sum() + 1)
        for i in range(2)
        for c in range(3)
    ]
    assert recipe.make_loss("dice", THREE)(logits, masks).item() == pytest.approx(
        1 - torch.stack(dices).mean().item()
    )
    binary, masks = torch.randn(2, 1, 8, 12), torch.rand(2, 1, 8, 12)
    assert recipe.make_loss("bce", None, 3.0)(binary, masks).item() == pytest.approx(
        F.binary_cross_entropy_with_logits(binary, masks, pos_weight=torch.tensor(3.0)).item()
    )


@pytest.mark.parametrize("name", ["bce", "dice", "bce_dice", "edge"])
def test_losses_are_least_for_the_truth_and_ignore_what_is_to_be(name):
    loss, masks = (
        recipe.make_loss(name, THREE),
        torch.from_numpy(np.stack([indices(1), indices(2)])).long(),
    )
    right = 12 * F.one_hot(masks.clamp(max=2), 3).permute(0, 3, 1, 2).float()
    assert loss(right, masks) < 0.01 < 0.1 < loss(-right, masks)
    logits = torch.randn(2, 3, 24, 36, requires_grad=True)
    loss(logits, masks).backward()
    grads = logits.grad.abs().sum(1)
    assert grads[masks == 255].max() == 0 < grads[masks != 255].min()
    assert loss(logits, torch.full_like(masks, 255)).isfinite()


def test_two_classes_edge_loss_is_the_binary_one():
    torch.manual_seed(0)
    logits, masks = torch.randn(1, 1, 64, 64), (torch.arange(64) > 30).expand(1, 64, 64).long()
    both = torch.cat((torch.zeros_like(logits), logits), 1)
    assert recipe.make_loss("edge", Labels(("a", "b")))(both, masks).item() == pytest.approx(
        recipe.make_loss("edge")(logits, masks[:, None].float()).item(), rel=1e-4
    )


# ---------------------------------------------------------------- data


def write_parts(folder, cars, first=0, angles=2, size=(48, 72), suffix="_mask"):
    """cars x angles rendered pairs of four classes, in two folders, under names that are not Carvana's."""
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    for car in range(first, first + cars):
        for angle in range(angles):
            rng = np.random.default_rng([car, angle])
            image, mask = demo_data.render(
                demo_data.new_car(rng), demo_data.new_studio(rng), 5 * angle, size, rng, parts=True
            )
            Image.fromarray(image).save(folder / f"images/scene{car}-{angle}.jpg", quality=92)
            Image.fromarray(mask).save(folder / f"masks/scene{car}-{angle}{suffix}.png")


def test_augmented_masks_stay_classes(tmp_path):
    write_parts(tmp_path, 1)
    labels = Labels(demo_data.PARTS)
    dataset = CarvanaDataset(
        tmp_path / "images",
        tmp_path / "masks",
        train_transform(rotate=35, rotate_fill="black", scale=0.2, labels=labels),
        size=(48, 72),
        labels=labels,
    )
    _, mask = dataset[0, 0]
    assert (
        mask.dtype == torch.uint8
        and set(mask.unique().tolist()) <= {0, 1, 2, 3, 255}
        and (mask == 255).any()
        and (mask == 3).any()
    )


def test_groups_and_suffixes(tmp_path, run):
    write_parts(tmp_path / "mine", 5, suffix="")
    words = [
        "--images",
        "mine/images",
        "--masks",
        "mine/masks",
        "--mask-suffix",
        "",
        "--group-regex",
        r"scene(\d+)-\d",
        "--classes",
        *demo_data.PARTS,
    ]
    done = run("prepare_data.py", *words, "--val-fraction", 0.4)
    assert (
        "train      3 cars       6 pairs" in done.stdout
        and "val        2 cars       4 pairs" in done.stdout
    )
    groups = [
        {path.name.split("-")[0] for path in (tmp_path / f"data/{part}_images").iterdir()}
        for part in ("train", "val")
    ]
    assert not groups[0] & groups[1]
    check = [
        "prepare_data.py",
        "--check",
        "--mask-suffix",
        "",
        "--classes",
        *demo_data.PARTS,
        "--group-regex",
    ]
    assert "train      3 cars       6 pairs" in run(*check, r"scene(\d+)-\d").stdout
    assert "is in val and in train" in run(*check, r"(s)cene.*", status=2).stderr
    done = run("prepare_data.py", *words[:-1], "--force", status=2)  # wheels are not named
    assert (
        done.stderr.count("cannot be read") == 10
        and "of value 3: CLASSES has 3 names, 0 to 2" in done.stderr
    )
    assert (
        "4 different values in the mask (expected 2"
        in run("prepare_data.py", *words[:8], "--force", status=2).stderr
    )


TINY = [
    "--image-height",
    48,
    "--image-width",
    72,
    "--features",
    8,
    16,
    "--optimizer",
    "muon",
    "--learning-rate",
    0.03,
    "--batch-size",
    4,
    "--num-workers",
    0,
    "--rotate",
    0,
]


def test_from_training_to_export(tmp_path, run):
    """Evaluation, inference, the palette PNGs and exported models agree on what they see."""
    write_parts(tmp_path / "mine", 12, angles=3)
    run(
        "prepare_data.py",
        "--images",
        "mine/images",
        "--masks",
        "mine/masks",
        "--classes",
        *demo_data.PARTS,
        "--val-fraction",
        0.25,
    )
    done = run(
        "train.py",
        *TINY,
        "--num-epochs",
        40,
        "--schedule",
        "linear",
        "--classes",
        *demo_data.PARTS,
        "--batchnorm-images",
        24,
    )
    dice = float(re.findall(r"Dice ([\d.]+) at 48x72", done.stdout)[-1])
    assert dice > 0.5 and "Confusion" in (tmp_path / "saved_images/index.html").read_text()
    model = utils.load_model(tmp_path / "best_checkpoint.pth.tar", "cpu")
    assert model.config["CLASSES"] == list(demo_data.PARTS) and model(
        torch.rand(1, 3, 48, 72)
    ).shape == (1, 4, 48, 72)
    done = run(
        "evaluate.py",
        "--model",
        "best_checkpoint.pth.tar",
        "--json",
        "scores.json",
        "--batch-size",
        3,
    )
    assert re.search(r"wheels +Dice 0\.\d{4}  IoU 0\.\d{4}", done.stdout)
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert sum(map(sum, scores["full_confusion"])) == 9 * 48 * 72

    done = run(
        "inference.py",
        "--img",
        "data/val_images",
        "--model",
        "best_checkpoint.pth.tar",
        "--cutout",
        "--background",
        "white",
        "--gallery",
    )
    assert re.search(r"background [\d.]+ %, \w+ [\d.]+ %", done.stdout)
    labels, counts = Labels(demo_data.PARTS), []
    for path in sorted((tmp_path / "data/val_images").iterdir()):
        with Image.open(tmp_path / f"outputs/{path.stem}_mask.png") as image:
            assert (
                image.mode == "P"
                and image.getpalette()[:12] == pictures.colours_of(labels)[:4].ravel().tolist()
            )
            predicted = np.array(image)
        truth = read_labels(tmp_path / f"data/val_masks/{path.stem}_mask.png", labels)
        counts.append(
            metrics.confusion_matrices(
                torch.from_numpy(predicted)[None], torch.from_numpy(truth)[None], 4
            )
        )
    dices = metrics.class_scores(torch.cat(counts), metrics.dice)
    assert dices.nanmean(1).mean().item() == pytest.approx(
        scores["full_dice"], abs=2e-3
    )  # bf16 in one, threads in the other
    for words in (["--rle", "a.csv"], ["--threshold", "0.4"]):
        assert (
            "tells 4 classes apart"
            in run(
                "inference.py",
                "--img",
                "data/val_images",
                "--model",
                "best_checkpoint.pth.tar",
                *words,
                status=2,
            ).stderr
        )

    run("export.py", "--model", "best_checkpoint.pth.tar", "--formats", "torchscript", "onnx")
    assert (
        "the largest is the class, of background, body, glass, wheels"
        in (tmp_path / "exports/README.md").read_text()
    )
    same = []
    for file in ("unet_model_onnx.onnx", "unet_model_torchjit.pth"):
        run(
            "inference.py",
            "--img",
            "data/val_images",
            "--model",
            f"exports/{file}",
            "--out",
            file,
            "--no-overlay",
        )
        same.append(
            np.mean(
                [
                    read_labels(path, labels)
                    == read_labels(tmp_path / f"outputs/{path.name}", labels)
                    for path in (tmp_path / file).iterdir()
                ]
            )
        )
    assert min(same) > 0.98


@pytest.mark.parametrize("kind", ["grey", "16 bits", "mixed sizes"])
def test_other_photographs(tmp_path, run, kind):
    """Trained, and scored at the photographs' own sizes."""
    for part, cars, first in (("train", 4, 0), ("val", 2, 50)):
        for folder in ("images", "masks"):
            (tmp_path / f"data/{part}_{folder}").mkdir(parents=True)
        for i in range(first, first + 2 * cars):
            rng = np.random.default_rng(i)
            size = (40 + 7 * (i % 3), 60 + 11 * (i % 4)) if kind == "mixed sizes" else (48, 72)
            image, mask = demo_data.render(
                demo_data.new_car(rng), demo_data.new_studio(rng), i % 16, size, rng
            )
            image = image if kind == "mixed sizes" else image.mean(2).astype(np.uint8)
            Image.fromarray(image.astype(np.uint16) * 257 if kind == "16 bits" else image).save(
                tmp_path / f"data/{part}_images/{i}.png"
            )
            Image.fromarray(mask).save(tmp_path / f"data/{part}_masks/{i}.png")
    run("train.py", *TINY, "--num-epochs", 2, "--in-channels", 3 if kind == "mixed sizes" else 1)
    run("evaluate.py", "--model", "best_checkpoint.pth.tar", "--json", "a.json")
    assert 0 < json.loads((tmp_path / "a.json").read_text())["full_dice"] <= 1
    run(
        "inference.py",
        "--img",
        "data/val_images",
        "--model",
        "best_checkpoint.pth.tar",
        "--no-overlay",
    )
    for path in (tmp_path / "data/val_images").iterdir():
        assert size_of(path) == size_of(tmp_path / f"outputs/{path.stem}_mask.png")


def test_smaller_images_first(tmp_path, run):
    write_parts(tmp_path / "mine", 4)
    run(
        "prepare_data.py",
        "--images",
        "mine/images",
        "--masks",
        "mine/masks",
        "--classes",
        *demo_data.PARTS,
        "--val-fraction",
        0.25,
    )
    assert (
        "epoch 2/2"
        in run(
            "train.py",
            *TINY,
            "--num-epochs",
            2,
            "--classes",
            *demo_data.PARTS,
            "--resolutions",
            0.5,
            1.0,
        ).stdout
    )


def test_a_class_never_found_has_no_precision():
    matrices = torch.tensor(
        [[[8, 0, 0], [4, 0, 0], [0, 0, 0]]]
    )  # of two classes that are there one is never found
    for score in (metrics.dice, metrics.precision, metrics.recall):
        values = metrics.class_scores(matrices, score)[0]
        assert values[0] > 0 and values[1] == 0 and values[2].isnan()


@pytest.mark.parametrize(
    "words, said",
    [
        (["--classes", "a", "a"], "CLASSES: expected 1 to 255 different names"),
        (["--classes", "a", "b", "--palette", "red", "#000000"], "each as #rrggbb, found red"),
        (["--classes", "a", "b", "--palette", "#000000"], "a colour for each of 2 classes"),
        (["--palette", "#000000"], "expected none with one class"),
        (["--classes", "a", "b", "--ignore-index", "1"], "1 is the class b; expected 2..255"),
        (["--group-regex", "("], "expected a regular expression"),
    ],
)
def test_constants_that_do_not_fit(words, said):
    with pytest.raises(UserError, match=re.escape(said)):
        config.load(words)


def test_the_document_is_right(tmp_path):
    """docs/your-data.md, its commands as printed."""
    lines = re.findall(
        r"^python (\S+) (.*)$", (ROOT / "docs/your-data.md").read_text(), re.MULTILINE
    )
    assert [script for script, _ in lines] == [
        "prepare_data.py",
        "explore.py",
        "prepare_data.py",
        "train.py",
        "evaluate.py",
        "inference.py",
        "export.py",
        "-c",
    ]
    (tmp_path / "labels").mkdir()
    Image.fromarray(np.uint8(255 * np.eye(40)).repeat(5, 1)).save(tmp_path / "labels/soft.jpg")
    said = {}
    for script, words in lines:
        done = subprocess.run(
            [sys.executable, script if script == "-c" else ROOT / script, *shlex.split(words)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{script} {words}\n{done.stdout}\n{done.stderr}"
        said[script] = done.stdout
    assert float(re.findall(r"best .*Dice ([\d.]+)", said["train.py"])[0]) > 0.7
    with Image.open(tmp_path / "hard/soft.png") as hard:
        assert set(np.unique(hard)) == {0, 255}
    assert (tmp_path / "exports/unet_model_int8.onnx").exists() and (
        tmp_path / "outputs/index.html"
    ).exists()
