"""The first run: rendered cars, and the training on them."""

import re

import cv2
import numpy as np
import pytest
from conftest import scene
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import demo_data
from pictures import CAR, find_pairs, group_of


def test_a_demo_set_is_like_carvanas_and_comes_out_the_same(tmp_path, run):
    for out in ("one", "two"):
        run("prepare_data.py", "--demo", "--cars", 4, "--angles", 3, "--size", 64, 96, "--out", out)
    run(
        "prepare_data.py",
        "--demo",
        "--cars",
        4,
        "--angles",
        3,
        "--size",
        64,
        96,
        "--seed",
        1,
        "--out",
        "other",
    )
    files = {
        out: {
            p.relative_to(tmp_path / out): p.read_bytes()
            for p in (tmp_path / out).rglob("*")
            if p.is_file()
        }
        for out in ("one", "two", "other")
    }
    assert (
        files["one"] == files["two"]
        and len(files["one"]) == 24
        and not set(files["one"]) & set(files["other"])
    )
    sides = [
        find_pairs(tmp_path / f"one/{part}_images", tmp_path / f"one/{part}_masks")
        for part in ("train", "val")
    ]
    assert [len(side) for side in sides] == [9, 3]
    assert not {group_of(i.name) for i, _ in sides[0]} & {group_of(i.name) for i, _ in sides[1]}
    for image, mask in sides[0]:
        assert re.fullmatch(CAR, image.stem) and mask.name == f"{image.stem}_mask.gif"
        gif = Image.open(mask)
        assert gif.mode == "P" and gif.size == (96, 64) and set(np.unique(gif)) == {0, 1}
        gif.close()
    assert "--force" in run("prepare_data.py", "--demo", "--out", "one", status=2).stderr
    (tmp_path / "one/notes.txt").write_text("mine")
    run(
        "prepare_data.py",
        "--demo",
        "--cars",
        2,
        "--angles",
        1,
        "--size",
        32,
        48,
        "--out",
        "one",
        "--force",
    )
    assert (
        len(find_pairs(tmp_path / "one/train_images", tmp_path / "one/train_masks")) == 1
        and (tmp_path / "one/notes.txt").exists()
    )
    run("prepare_data.py", "--check", "--out", "one")


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6))
def test_masks_are_the_cars(seed):
    """One car, its body one piece over the floor, not touching the picture's top; other pixels belong to the studio."""
    picture, mask = scene(seed, 96, 144)
    assert (
        picture.shape == (96, 144, 3)
        and picture.dtype == np.uint8
        and mask.shape == (96, 144)
        and mask.dtype == bool
    )
    assert 0.05 < mask.mean() < 0.5
    _, _, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    assert stats[1:, cv2.CC_STAT_AREA].max() > 0.97 * mask.sum()
    assert picture[~mask].std() > 1


@pytest.mark.parametrize("body", demo_data.BODIES)
def test_every_body_stands_on_its_wheels_from_every_side(body):
    rng = np.random.default_rng(0)
    while (car := demo_data.new_car(rng))["body"] != body:
        pass
    studio = demo_data.new_studio(rng)
    shares = [
        demo_data.render(car, studio, angle, (96, 144), rng)[1].mean()
        for angle in range(demo_data.ANGLES)
    ]
    assert max(shares[2:7]) > 1.2 * shares[0]  # longer from the side
    assert min(shares) > 0.04


def test_an_empty_clone_trains_on_the_demo(tmp_path, run):
    """Small and short: the preset's own size is measured, not tested."""
    run("prepare_data.py", "--demo", "--cars", 4, "--angles", 4, "--size", 64, 96)
    small = [
        "--image-height",
        32,
        "--image-width",
        48,
        "--features",
        4,
        8,
        "--num-epochs",
        1,
        "--num-workers",
        0,
    ]
    done = run("train.py", *small)
    first, second = done.stdout.splitlines()[:2]
    assert (
        "data/demo" in first
        and "preset demo" in first
        and "prepare_data.py train.zip train_masks.zip" in second
    )
    assert "demo" in done.stdout.splitlines()[-1]
    assert sorted(p.name for p in tmp_path.glob("*.pth.tar")) == [
        "demo_best_checkpoint.pth.tar",
        "demo_checkpoint.pth.tar",
    ]
    done = run("train.py", *small, "--load-model", "true")
    assert "1 of 1 epochs done" in done.stdout and "demo" in done.stdout.splitlines()[-1]


def test_another_preset_on_the_demo(tmp_path, run):
    run("prepare_data.py", "--demo", "--cars", 2, "--angles", 2, "--size", 64, 96)
    run("train.py", "--preset", "small", "--num-epochs", 0, "--num-workers", 0)
    assert (tmp_path / "saved_images/batch.png").exists() and not list(tmp_path.glob("*.tar"))


@pytest.mark.parametrize("words", [["--train-img-dir", "mine"], ["--val-mask-dir", "mine"]])
def test_a_folder_of_ones_own_is_never_replaced_by_the_demo(tmp_path, run, words):
    done = run("train.py", *words, status=2)
    assert re.search(r"no folder '(mine|data/)", done.stderr) and not (tmp_path / "data").exists()
    (tmp_path / "mine").mkdir()
    run("train.py", *words, status=2)
    assert not (tmp_path / "data").exists()


def test_real_data_is_never_replaced_by_the_demo(data, run):
    for path in (data / "data/val_images").iterdir():
        path.unlink()
    assert "no images in 'data/val_images/'" in run("train.py", status=2).stderr
    assert not (data / "data/demo").exists()
