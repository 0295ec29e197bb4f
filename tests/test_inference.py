"""From photographs to masks, overlays, cutouts and the challenge's csv."""

import csv
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT, scene, write_pairs
from PIL import Image
from test_contract import randomised, reference

import draw
import inference
import pictures
import utils
from checkpoint import checkpoint_state
from model import UNET


def write_model(path, features=(4, 8), channels=3, seed=0, **constants):
    """A checkpoint of a random network that finds something in every photograph."""
    torch.manual_seed(seed)
    model = randomised(UNET(channels, 1, list(features), constants.get("UNSHUFFLE", 1)), seed)
    model.config = {
        "IMAGE_HEIGHT": 32,
        "IMAGE_WIDTH": 48,
        "PRECISION": "fp32",
        "IN_CHANNELS": channels,
    } | constants
    with torch.no_grad():
        noise = model.eval()(torch.rand(8, channels, 32, 48))
        model.final_conv.bias -= noise.mean()
        model.final_conv.weight /= noise.std()
        model.final_conv.bias /= noise.std()
    torch.save(
        checkpoint_state(
            model,
            torch.optim.Adam(model.parameters()),
            torch.amp.GradScaler("cpu", enabled=False),
            "a run",
            1,
            0.5,
            [],
        ),
        path,
    )
    return path


OURS = ["--model", "best_checkpoint.pth.tar"]


@pytest.fixture
def run(run):
    """conftest's, with the folder's own model where none is named."""

    def call(script, *words, **how):
        return run(script, *words, *([] if "--model" in words else OURS), **how)

    return call


@pytest.fixture
def work(tmp_path):
    """A folder with six photographs in photos/, their masks and a model."""
    write_pairs(tmp_path / "photos", tmp_path / "masks", cars=3)
    write_model(tmp_path / "best_checkpoint.pth.tar")
    return tmp_path


def decode(runs, shape):
    """The challenge's words: pairs of start and length, pixels numbered from 1, left to right, then top to bottom."""
    mask = np.zeros(shape[0] * shape[1], bool)
    numbers = list(map(int, runs.split()))
    for start, length in zip(numbers[::2], numbers[1::2]):
        mask[start - 1 : start - 1 + length] = True
    return mask.reshape(shape)


def rows(path):
    with open(path, newline="") as file:
        return list(csv.reader(file))


def size_of(path):
    """(width, height) of a picture that can be read to its end."""
    with Image.open(path) as image:
        image.load()
        return image.size


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def test_a_folder(work, run):
    done = run(
        "inference.py", "--img", "photos", "--rle", "all.csv", "--cutout", "--background", "#00ff00"
    )
    names = sorted(path.stem for path in (work / "photos").iterdir())
    assert {path.name for path in (work / "outputs").iterdir()} == {
        f"{name}_{what}"
        for name in names
        for what in ("mask.png", "overlay.jpg", "cutout.png", "background.jpg")
    }
    assert re.search(
        r"best_checkpoint.pth.tar: 0\.\d\d M parameters at 32x48 on", done.stdout
    ) and re.search(
        r"6 photographs in [\d.]+ s, [\d.]+ images/s; all.csv holds 6 rows", done.stdout
    )
    found = {}
    for name in names:
        mask = np.asarray(Image.open(work / f"outputs/{name}_mask.png"))
        assert (
            mask.shape == (48, 72) and mask.dtype == np.uint8 and set(np.unique(mask)) == {0, 255}
        )
        assert (
            f"photos/{name}.jpg: car {100 * (mask > 0).mean():.1f} % -> outputs/{name}_mask.png"
            in done.stdout
        )
        assert (
            size_of(work / f"outputs/{name}_overlay.jpg")
            == size_of(work / f"outputs/{name}_background.jpg")
            == (72, 48)
        )
        cutout = np.asarray(Image.open(work / f"outputs/{name}_cutout.png"))
        assert cutout.shape == (48, 72, 4) and not cutout[cutout[..., 3] == 0].any()
        found[name] = mask > 0
    written = rows(work / "all.csv")
    assert written[0] == ["img", "rle_mask"] and [row[0] for row in written[1:]] == [
        f"{name}.jpg" for name in names
    ]
    for name, runs in written[1:]:
        assert np.array_equal(decode(runs, (48, 72)), found[name[:-4]])
        assert sum(map(int, runs.split()[1::2])) == found[name[:-4]].sum()

    run("evaluate.py", "--images", "photos", "--masks", "masks", "--json", "scores.json")
    for row in json.loads((work / "scores.json").read_text())["images"]:
        with Image.open(work / f"masks/{row['name'][:-4]}_mask.gif") as gif:
            truth = np.asarray(gif.convert("L")) > 0
        assert dice(found[row["name"][:-4]], truth) == pytest.approx(row["full_dice"], abs=1e-6)


def test_predict_says_the_same(work, run):
    run("inference.py", "--img", "photos", "--no-overlay", "--threshold", 0.6, "--batch-size", 5)
    model = utils.load_model(work / "best_checkpoint.pth.tar", "cpu")
    paths = sorted((work / "photos").iterdir())
    images = [pictures.read_image(path) for path in paths] + [
        scene(1, 31, 90)[0],
        scene(2, 200, 100)[0][..., 0],
    ]
    probabilities = utils.predict(model, images)
    for probability, image in zip(probabilities, images, strict=True):
        assert (
            probability.dtype == np.float32
            and probability.shape == image.shape[:2]
            and 0 <= probability.min() < probability.max() <= 1
        )
    for probability, path in zip(probabilities, paths):
        mask = np.asarray(Image.open(work / f"outputs/{path.stem}_mask.png")) > 0
        assert ((probability > 0.6) != mask).mean() < 1e-3


def test_mirrored_predictions_are_averaged(work):
    model, image = utils.load_model(work / "best_checkpoint.pth.tar", "cpu"), scene(5, 64, 96)[0]
    plain, mirrored = utils.predict(model, [image, image[:, ::-1].copy()])
    both, other = utils.predict(model, [image, image[:, ::-1].copy()], tta=True)
    assert np.allclose(both, other[:, ::-1], atol=1e-4) and not np.allclose(
        plain, mirrored[:, ::-1], atol=1e-2
    )
    assert (both >= np.minimum(plain, mirrored[:, ::-1]) - 1e-3).all() and (
        both <= np.maximum(plain, mirrored[:, ::-1]) + 1e-3
    ).all()


@pytest.mark.parametrize("bare", [True, False])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_checkpoint_of_the_lineage(tmp_path, run, bare, channels):
    """Its network and its preprocessing, written here as plain function calls; 160x240, mean 0, standard deviation 1."""
    torch.manual_seed(3)
    model = UNET(channels, 1, [6, 10])
    write_pairs(tmp_path / "photos", tmp_path / "masks", cars=1, height=320, width=480)
    path = min((tmp_path / "photos").iterdir())
    image = (
        torch.from_numpy(pictures.read_image(path, (160, 240), channels))
        .permute(2, 0, 1)[None]
        .float()
        / 255
    )
    with torch.no_grad():
        for _ in range(30):
            model(image)  # BatchNorm learns what it looks like
    weights = model.state_dict()
    weights["final_conv.bias"] -= reference(image, weights, 2).median()
    logits = reference(image, weights, 2)
    torch.save(
        weights if bare else {"state_dict": weights, "optimizer": {}},
        tmp_path / "my_checkpoint.pth.tar",
    )
    run("inference.py", "--img", path, "--model", "my_checkpoint.pth.tar", "--no-overlay")
    mask = np.asarray(Image.open(tmp_path / f"outputs/{path.stem}_mask.png")) > 0
    expected = torch.nn.functional.interpolate(logits, size=mask.shape, mode="bilinear")[
        0, 0
    ].numpy()
    sure = abs(expected) > 0.25 * expected.std()  # what bfloat16 does not turn over
    assert (
        np.array_equal(mask[sure], expected[sure] > 0)
        and sure.mean() > 0.6
        and 0.2 < mask.mean() < 0.8
    )


def test_names_folders_and_patterns(work, run):
    for folder in ("photos/sub", "photos/.hidden", "other"):
        (work / folder).mkdir()
        Image.fromarray(scene(7)[0]).save(work / folder / "000000000000_01.jpg")
    Image.fromarray(scene(8)[0]).save(work / "photos/000000000000_01.png")
    Image.fromarray(scene(8)[0]).save(work / "photos/a[1].jpg")
    (work / "photos/notes.txt").write_text("not a photograph")
    done = run(
        "inference.py",
        "--img",
        "photos",
        "other",
        "photos/a[1].jpg",
        "other/*.jpg",
        "--recursive",
        "--out",
        "photos/out",
        "--no-overlay",
    )
    names = {
        str(path.relative_to(work / "photos/out")) for path in (work / "photos/out").rglob("*.png")
    }
    cars = {f"00000000000{car}_0{angle}_mask.png" for car in range(3) for angle in (1, 2)}
    assert names == cars | {
        "000000000000_01_2_mask.png",
        "000000000000_01_3_mask.png",
        "000000000000_01_4_mask.png",
        "a[1]_mask.png",
        "a[1]_2_mask.png",
        "sub/000000000000_01_mask.png",
    }
    assert "12 photographs" in done.stdout
    assert (
        "12 photographs"
        in run(
            "inference.py",
            "--img",
            "photos",
            "other",
            "photos/a[1].jpg",
            "other/*.jpg",
            "--recursive",
            "--out",
            "photos/out",
            "--no-overlay",
        ).stdout
    )


def test_photographs_of_every_kind(work, run):
    upright = Image.fromarray(scene(1, 60, 90)[0])
    exif = Image.Exif()
    exif[0x0112] = 6
    kinds = work / "kinds"
    kinds.mkdir()
    upright.transpose(Image.Transpose.ROTATE_90).save(kinds / "turned.jpg", exif=exif, quality=98)
    upright.convert("L").save(kinds / "grey.png")
    upright.convert("CMYK").save(kinds / "cmyk.jpg")
    Image.fromarray(scene(1)[0][..., 0].astype(np.uint16) * 257).save(kinds / "deep.png")
    upright.resize((1, 1)).save(kinds / "one.png")
    upright.resize((2000, 7)).save(kinds / "flat.webp")
    upright.save(kinds / "имя с пробелом\nи строкой.jpg")
    done = run(
        "inference.py",
        "--img",
        "kinds",
        "--cutout",
        "--background",
        "photos/000000000000_01.jpg",
        "--rle",
        "a.csv",
    )
    assert (
        len(list((work / "outputs").iterdir())) == 7 * 4
        and "имя с пробелом\\nи строкой.jpg: car" in done.stdout
    )
    for path in kinds.iterdir():
        sizes = {
            size_of(work / f"outputs/{path.stem}_{what}")
            for what in ("mask.png", "overlay.jpg", "cutout.png", "background.jpg")
        }
        assert sizes == {pictures.picture_size(path)[::-1]}, path.name
    assert size_of(work / "outputs/turned_mask.png") == (90, 60)
    assert {row[0] for row in rows(work / "a.csv")[1:]} == {path.name for path in kinds.iterdir()}


def test_nothing_is_saved_without_need(work, run):
    before = sorted(os.listdir(work))
    assert run("inference.py", "--img", "photos", "--no-save").stdout.count("car ") == 6
    assert sorted(os.listdir(work)) == before


def test_what_fails_is_listed_and_the_rest_is_done(work, run):
    (work / "empty").mkdir()
    (work / "photos/bad.jpg").write_bytes((work / "photos/000000000000_01.jpg").read_bytes()[:700])
    (work / "photos/text.jpg").write_text("no")
    header = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\1\0\0\0\1\0\0\x08\2\0\0\0"
    (work / "photos/bomb.png").write_bytes(header + np.uint32(0).tobytes())
    done = run(
        "inference.py",
        "--img",
        "nowhere.jpg",
        "photos",
        "empty",
        "none*.jpg",
        "--rle",
        "a.csv",
        "--batch-size",
        3,
        status=1,
    )
    assert (
        "6 photographs in" in done.stdout
        and len(list((work / "outputs").glob("*_mask.png"))) == 6
        and len(rows(work / "a.csv")) == 7
    )
    said = done.stderr[done.stderr.index("6 failed:") :].splitlines()
    assert len(said) == 7 and "Traceback" not in done.stderr
    for fault in (
        "empty: no photographs in this folder",
        "none*.jpg: no photograph fits this pattern",
        "nowhere.jpg: cannot be read (No such file",
        "bad.jpg: cannot be read (",
        "text.jpg: cannot be read (not a picture",
        "bomb.png: cannot be read (",
    ):
        assert sum(fault in line for line in said) == 1, fault
    shutil.copy(work / "photos/000000000000_01.jpg", work / "photos/bad.jpg")
    done = run("inference.py", "--img", "photos", "--rle", "a.csv", status=1)
    assert (
        "going on after 6 rows" in done.stdout
        and "1 photograph in" in done.stdout
        and "2 failed" in done.stderr
    )
    assert rows(work / "a.csv")[-1][0] == "bad.jpg"


def test_a_photograph_wider_than_a_jpeg_can_be(work, run):
    Image.new("RGB", (65600, 2)).save(work / "photos/wide.png")
    done = run("inference.py", "--img", "photos", status=1)
    assert (
        "wide_overlay.jpg cannot be written: 65600x2 pixels, a JPEG holds 65,500 a side"
        in done.stderr
        and "1 failed" in done.stderr
    )
    assert (work / "outputs/wide_mask.png").exists() and len(
        list((work / "outputs").glob("*_overlay.jpg"))
    ) == 6
    assert "7 photographs in" in run("inference.py", "--img", "photos", "--no-overlay").stdout


@pytest.mark.parametrize(
    "words, said",
    [
        (["--img", "nowhere"], r"error: nowhere: cannot be read|No such file"),
        (["--img", "photos", "--model", "nowhere"], r"no model 'nowhere'; train one"),
        ([], r"arguments are required: --img"),
        (
            ["--img", "photos", "--threshold", "nan"],
            r"--threshold: expected a probability between 0 and 1, found nan",
        ),
        (["--img", "photos", "--threshold", "1"], r"between 0 and 1"),
        (["--img", "photos", "--batch-size", "0"], r"--batch-size: expected 1..65536"),
        (
            ["--img", "photos", "--background", "whitish"],
            r"expected a colour such as white or #c0ffee, or a photograph, found 'whitish'",
        ),
        (["--img", "photos", "--background", "masks"], r"found 'masks'"),
        (
            ["--img", "photos", "--background", "best_checkpoint.pth.tar"],
            r"best_checkpoint.pth.tar: cannot be read",
        ),
        (
            ["--img", "photos", "--out", "best_checkpoint.pth.tar"],
            r"best_checkpoint.pth.tar: File exists",
        ),
        (["--img", "photos", "--out", "best_checkpoint.pth.tar/x"], r"Not a directory"),
        (["--img", "photos", "--no-save", "--cutout"], r"--no-save leaves nothing"),
        (["--img", "photos", "--rle", "masks"], r"masks is there already, and not of this model"),
        (["--img", "photos", "--device", "tpu"], r"--device"),
        (
            ["--img", "clash", "--out", "clash"],
            r"clash/a_mask.png is one of the photographs, and would be overwritten",
        ),
        (["--img", "empty"], r"empty: no photographs in this folder"),
        (
            ["--img", "photos", "--model", "photos/000000000000_01.jpg"],
            r"is not a checkpoint that can be read",
        ),
    ],
)
def test_wrong_words(work, run, words, said):
    (work / "empty").mkdir(), (work / "clash").mkdir()
    for name in ("a.png", "a_mask.png"):
        Image.fromarray(scene(1)[0]).save(work / "clash" / name)
    done = run("inference.py", *words, status=1 if words == ["--img", "nowhere"] else 2)
    assert re.search(said, done.stderr) and not list(work.glob("outputs/*"))


def test_a_csv_goes_on_where_it_stopped(work, run):
    words = ["--img", "photos", "--rle", "a.csv", "--no-save"]
    run("inference.py", *words)
    whole = (work / "a.csv").read_bytes()
    lines = whole.splitlines(keepends=True)
    for kept in (
        b"",
        lines[0][:5],
        b"".join(lines[:3]),
        b"".join(lines[:3]) + lines[3][:30],
        b"".join(lines[:6]) + lines[6][:-1],
    ):
        (work / "a.csv").write_bytes(kept)
        run("inference.py", *words)
        assert (work / "a.csv").read_bytes() == whole
    assert (
        "0 photographs" in run("inference.py", *words).stdout
        and (work / "a.csv").read_bytes() == whole
    )
    for changed in (
        ["--threshold", 0.4],
        ["--tta"],
        ["--model", write_model(work / "other.pth.tar", seed=5)],
    ):
        assert (
            "not of this model, --threshold and --tta; remove it"
            in run("inference.py", *words, *changed, status=2).stderr
        )
        assert (work / "a.csv").read_bytes() == whole


def test_a_csv_of_long_rows_and_odd_names(tmp_path):
    names = ["a,b.jpg", "a,c.jpg", "\udcff.jpg", 'a "b".jpg']
    for already in (0, 2, 4):
        with inference.Submission(tmp_path / "a.csv", {}) as rows:
            assert rows.done == set(names[:already])
            for name in names[already : already + 2]:
                rows.add(name, "1 2 " * 50_000)
    (tmp_path / ".a.csv.1").write_bytes(b'"a,c.jpg",3 4\n"a,d.jpg",5 6\n')  # of a second process
    assert inference.Submission(tmp_path / "a.csv", {}).done == {*names, "a,d.jpg"}


def test_a_cutout_is_of_what_is_masked(work, run):
    run("inference.py", "--img", "photos", "--no-overlay", "--cutout", "--threshold", 0.7)
    for path in (work / "outputs").glob("*_mask.png"):
        mask, alpha = (
            np.asarray(Image.open(path)),
            np.asarray(Image.open(str(path).replace("_mask", "_cutout")))[..., 3],
        )
        assert (abs(alpha.astype(int) - 127.5) < 2)[(alpha > 127) != (mask > 0)].all() and 0 < (
            mask > 0
        ).mean() < 1


def test_four_channels_are_refused(tmp_path):
    write_model(tmp_path / "four.pth.tar", channels=4)
    with pytest.raises(pictures.UserError, match="images of 4 channels"):
        utils.load_model(tmp_path / "four.pth.tar", "cpu")


def test_interrupted_every_file_is_whole_and_the_csv_goes_on(work, run):
    write_pairs(work / "many", work / "x", cars=60, angles=4, height=240, width=360)
    words = ["--img", "many", "--rle", "a.csv", "--cutout"]
    process = subprocess.Popen(
        [sys.executable, ROOT / "inference.py", *words, *OURS],
        cwd=work,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while len(list(work.glob("outputs/*_mask.png"))) < 20:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err
    for path in (work / "outputs").iterdir():
        size_of(path)
    done = len(rows(work / "a.csv"))
    assert 1 < done < 241
    assert "going on after" in run("inference.py", *words).stdout
    assert (
        len({row[0] for row in rows(work / "a.csv")}) == len(rows(work / "a.csv")) == 241
        and len(list((work / "outputs").iterdir())) == 3 * 240
    )


def test_a_full_disk_ends_the_run(work):
    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))

    done = subprocess.run(
        [sys.executable, ROOT / "inference.py", "--img", "photos", *OURS],
        cwd=work,
        capture_output=True,
        text=True,
        preexec_fn=limit,
    )
    assert (
        done.returncode == 2
        and "Traceback" not in done.stderr
        and "cannot be written (File too large); free some space" in done.stderr
    )
    assert all(path.suffix == ".png" and size_of(path) for path in (work / "outputs").iterdir())


def test_colours_of_the_old_background_are_taken_out():
    """A red disc whose edge is a mixture with a white wall, as a lens makes it; the logits are those of the true shares."""
    y, x = np.mgrid[:200, :300]
    share = np.clip((60 - np.hypot(y - 100, x - 150)) / 4 + 0.5, 0, 1).astype(np.float32)
    red, white = np.float32([200, 20, 30]), np.float32([245, 245, 245])
    photograph = np.round(share[..., None] * red + (1 - share[..., None]) * white).astype(np.uint8)
    logits = np.log(np.clip(share, 1e-6, 1 - 1e-6) / (1 - np.clip(share, 1e-6, 1 - 1e-6))).astype(
        np.float32
    )
    colours, alpha = draw.matte(photograph, logits, scale=1)
    edge = (alpha > 30) & (alpha < 225)
    assert edge.sum() > 300 and np.abs(alpha / 255 - share).max() < 0.01
    assert np.abs(colours[edge] - red).mean() < 8 < 60 < np.abs(photograph[edge] - red).mean()
    black = draw.on_background(colours, alpha, (0, 0, 0))
    assert np.abs(black - share[..., None] * red).max() < 25
    assert draw.on_background(colours, alpha, np.full((50, 900, 3), 7, np.uint8))[
        0, 0
    ].tolist() == [7, 7, 7]


def test_fog_is_sharpened_with_the_scale():
    """Logits of a small network, upsampled: the edge of the alpha is two or three pixels wide, not sixteen."""
    small = np.tile(np.linspace(-8, 8, 12, dtype=np.float32), (12, 1))
    _, alpha = draw.matte(np.zeros((96, 96, 3), np.uint8), cv2.resize(small, (96, 96)), scale=8)
    assert 1 <= ((alpha[48] > 25) & (alpha[48] < 230)).sum() <= 7
