"""What explore.py finds in a data set."""

import shutil
import xml.etree.ElementTree
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, scene, write_mask, write_pairs
from PIL import Image

import explore
import pictures


@pytest.fixture
def faulty(tmp_path):
    """Ten cars, 8 of one size; a copy, a re-encoded copy, a mask that lies beside its car, an empty one, a black photograph."""
    images, masks = tmp_path / "photos", tmp_path / "labels"
    write_pairs(images, masks, cars=10, angles=2, height=96, width=144)
    first, second = "000000000000_01", "000000000001_01"
    for name, source, same in (("copy", first, True), ("saved_again", second, False)):
        shutil.copy(masks / f"{source}_mask.gif", masks / f"{name}_mask.gif")
        if same:
            shutil.copy(images / f"{source}.jpg", images / f"{name}.jpg")
        else:
            Image.open(images / f"{source}.jpg").save(images / f"{name}.jpg", quality=80)
    write_mask(masks / "000000000002_01_mask.gif", np.roll(scene(201, 96, 144)[1], 14, axis=(0, 1)))
    write_mask(masks / "000000000003_01_mask.gif", np.zeros((96, 144), bool))
    Image.fromarray(np.zeros((96, 144, 3), np.uint8)).save(images / "000000000004_01.jpg")
    return tmp_path


def test_what_is_wrong_is_found(faulty, run):
    done = run("explore.py", "--images", "photos", "--masks", "labels", "--out", "look/a.html")
    lines = dict(line.split(": ", 1) for line in done.stdout.splitlines() if ": " in line)
    assert (
        lines["pairs"] == "22"
        and lines["sizes"] == "144x96 (22)"
        and lines["formats"] == "jpg with gif (22)"
    )
    assert lines["same bytes"] == "000000000000_01.jpg = copy.jpg"
    assert lines["look alike"] == "000000000001_01.jpg ~ saved_again.jpg"
    assert (
        "000000000003_01.jpg (nothing in its mask)" in lines["odd ones out"]
        and "000000000004_01.jpg (brightness, 0 to 255: 0" in lines["odd ones out"]
    )
    text = (faulty / "look/a.html").read_text()
    assert done.stdout.endswith("now look at look/a.html\n") and "http" not in text.replace(
        "http://www.w3.org/2000/svg", ""
    )
    assert text.count("<li ") == 22 and len(text) < 3_000_000


def test_a_mask_beside_its_object_agrees_least(faulty):
    pairs = pictures.find_pairs(faulty / "photos", faulty / "labels")
    rows = {row["name"]: row for row in map(explore.look, pairs)}
    scores = {
        name: row["agreement"]
        for name, row in rows.items()
        if name != "000000000004_01.jpg" and np.isfinite(row["agreement"])
    }
    assert min(scores, key=scores.get) == "000000000002_01.jpg" and np.isnan(
        rows["000000000003_01.jpg"]["agreement"]
    )
    assert rows["000000000005_02.jpg"]["share"] == pytest.approx(
        100 * scene(502, 96, 144)[1].mean(), abs=0.01
    )


def test_mean_masks_are_by_angle():
    rows = [
        {"name": name, "mean": np.full((2, 2), level, np.uint8)}
        for name, level in (
            ("0123456789ab_01.jpg", 0),
            ("0123456789ac_01.jpg", 200),
            ("0123456789ab_16.jpg", 50),
        )
    ]
    assert {name: mask.max() for name, mask in explore.mean_masks(rows).items()} == {
        "01": 100,
        "16": 50,
    }


@pytest.mark.parametrize(
    "words, said",
    [
        (["--images", "nowhere"], "no folder 'nowhere'"),
        (["--out", "a.txt"], "ends in .html"),
        (["--most", "0"], "expected 1..1000"),
        (["--imgaes", "x"], "--help lists"),
    ],
)
def test_wrong_words(data, run, words, said):
    assert said in run("explore.py", *words, status=2).stderr


def test_the_networks_picture_is_the_networks():
    """docs/unet.svg is what docs/unet.py draws of the default constants, and shows what a forward pass returns."""
    import importlib.util

    spec = importlib.util.spec_from_file_location("unet", ROOT / "docs/unet.py")
    unet = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(unet)
    assert Path(ROOT / "docs/unet.svg").read_text(encoding="utf-8") == unet.svg(
        unet.UNET(), (160, 240)
    )
    drawn = xml.etree.ElementTree.fromstring(
        unet.svg(unet.UNET(1, 1, [4, 6, 8], unshuffle=2), (50, 61))
    )
    words = [text.text for text in drawn.iter("{http://www.w3.org/2000/svg}text")]
    assert [word for word in words if "×" in word] == [
        "50×61",
        "32×32",
        "16×16",
        "8×8",
        "4×4",
        "8×8",
        "16×16",
        "32×32",
        "50×61",
    ]
    assert [word for word in words if word.isdigit()] == [
        "1",
        "4",
        "6",
        "8",
        "16",
        "8",
        "6",
        "4",
        "1",
    ]


def test_outlines_that_are_off_are_measured(tmp_path):
    """Dark squares whose masks are up to three pixels larger or smaller on each side."""
    pairs, rng = [], np.random.default_rng(0)
    for i in range(12):
        image, mask = np.full((300, 400), 220, np.uint8), np.zeros((300, 400), bool)
        image[60:240, 80:320] = 60
        top, left, bottom, right = rng.integers(-3, 4, 4) if i % 2 else (0, 0, 0, 0)
        mask[60 + top : 240 + bottom, 80 + left : 320 + right] = True
        Image.fromarray(image).save(tmp_path / f"{i}.png")
        write_mask(tmp_path / f"{i}.gif", mask)
        pairs.append((tmp_path / f"{i}.png", tmp_path / f"{i}.gif"))
    exact, off = ([explore.outline_noise(pair) for pair in pairs[start::2]] for start in (0, 1))
    assert abs(np.concatenate([one for one, _ in exact])).max() <= 0.5 and len(exact[0][0]) > 50
    distances = abs(np.concatenate([one for one, _ in off]))
    assert 1.2 < distances.mean() < 2.2 and exact[0][1] == pytest.approx(
        2 * (180 + 240) / (180 * 240), rel=0.02
    )
    assert "scores Dice 0.9" in explore.noise_words(off) and explore.noise_words(
        exact[:0] + [(np.empty(0), np.nan)]
    ).startswith("too few")
