"""Rendered cars, and the first run, which trains on them."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest
from helpers import ROOT, file_contents, scene, tiny_options
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from carvana.pairs import CAR_REGEX, find_pairs, group_of
from carvana.rendering import ANGLES, new_car, new_studio, render
from carvana.rendering.cars import BODIES

DEMO = ("prepare_data.py", "--demo")
SMALL_SET = ("--cars", 4, "--angles", 3, "--size", 64, 96)
RENDER_SMALL_SET = """
from carvana.rendering import render_set
render_set("demo", cars=4, val_cars=1, angles=3, size=(64, 96))
"""
RENDER_LARGE_SET = "from carvana.rendering import render_set\nrender_set('demo', size=(640, 960))"


# ---------------------------------------------------------------- pictures


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6))
def test_rendered_mask_is_one_car(seed):
    """Its body is one piece, and what is around it is the studio."""
    picture, mask = scene(seed, 96, 144)
    assert picture.shape == (96, 144, 3) and picture.dtype == np.uint8
    assert mask.shape == (96, 144) and mask.dtype == np.uint8
    assert set(np.unique(mask)) == {0, 1}
    assert 0.05 < mask.mean() < 0.5
    _, _, statistics, _ = cv2.connectedComponentsWithStats(mask)
    assert statistics[1:, cv2.CC_STAT_AREA].max() > 0.97 * mask.sum()
    assert picture[mask == 0].std() > 1


@pytest.mark.parametrize("body", BODIES)
def test_rendered_body_is_seen_from_every_side(body):
    rng = np.random.default_rng(0)
    car = new_car(rng)
    while car.body != body:
        car = new_car(rng)
    studio = new_studio(rng)
    shares = [render(car, studio, angle, (96, 144), rng)[1].mean() for angle in range(ANGLES)]
    assert max(shares[2:7]) > 1.2 * shares[0]  # longer from the side
    assert min(shares) > 0.04


# ---------------------------------------------------------------- sets


def test_rendered_set_is_like_carvanas(tmp_path, run):
    run(*DEMO, *SMALL_SET, "--out", "one")
    train, val = (
        find_pairs(tmp_path / f"one/{split}_images", tmp_path / f"one/{split}_masks")
        for split in ("train", "val")
    )
    assert [len(train), len(val)] == [9, 3]
    train_cars = {group_of(image.name) for image, _ in train}
    assert not train_cars & {group_of(image.name) for image, _ in val}
    for image, mask in train:
        assert re.fullmatch(CAR_REGEX, image.stem)
        assert mask.name == f"{image.stem}_mask.gif"
        with Image.open(mask) as gif:
            assert gif.mode == "P"
            assert gif.size == (96, 64)
            assert set(np.unique(gif)) == {0, 1}
    run("prepare_data.py", "--check", "--out", "one")


def test_rendered_set_is_the_same_each_time_and_another_with_another_seed(tmp_path, run):
    run(*DEMO, *SMALL_SET, "--out", "one")
    run(*DEMO, *SMALL_SET, "--out", "two")
    run(*DEMO, *SMALL_SET, "--out", "other", "--seed", 1)
    files = file_contents(tmp_path / "one")
    assert len(files) == 24
    assert file_contents(tmp_path / "two") == files
    assert not files.keys() & file_contents(tmp_path / "other").keys()


def test_rendered_set_is_replaced_only_by_force(tmp_path, run):
    run(*DEMO, *SMALL_SET, "--out", "one")
    assert "--force" in run(*DEMO, "--out", "one", status=2).stderr
    (tmp_path / "one/notes.txt").write_text("mine")
    smaller = ("--cars", 2, "--angles", 1, "--size", 32, 48)
    run(*DEMO, *smaller, "--out", "one", "--force")
    assert len(find_pairs(tmp_path / "one/train_images", tmp_path / "one/train_masks")) == 1
    assert (tmp_path / "one/notes.txt").exists()
    run("prepare_data.py", "--check", "--out", "one")


# ---------------------------------------------------------------- several at once, and leftovers


def start_rendering(folder, code):
    """Start Python code as the leader of a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=folder,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )


@pytest.mark.parametrize("processes", [2, 3])
def test_set_rendered_by_several_at_once_is_whole(tmp_path, processes):
    (tmp_path / "alone").mkdir()
    start_rendering(tmp_path / "alone", RENDER_SMALL_SET).communicate(timeout=60)
    started = [start_rendering(tmp_path, RENDER_SMALL_SET) for _ in range(processes)]
    for process in started:
        _, stderr = process.communicate(timeout=60)
        assert process.returncode == 0, stderr
    files = file_contents(tmp_path / "alone/demo")
    assert len(files) == 24
    assert file_contents(tmp_path / "demo") == files
    assert not list(tmp_path.glob(".*"))


def test_set_is_not_rendered_over_other_files(tmp_path):
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo/notes.txt").write_text("mine")
    process = start_rendering(tmp_path, RENDER_SMALL_SET)
    assert "demo could not be rendered (Directory not empty)" in process.communicate()[1]
    assert file_contents(tmp_path).keys() == {(tmp_path / "demo/notes.txt").relative_to(tmp_path)}


def test_killed_rendering_leaves_no_processes(tmp_path):
    process = start_rendering(tmp_path, RENDER_LARGE_SET)
    while not list(tmp_path.glob(".demo-rendering*/*/*.jpg")):
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    try:
        process.communicate(timeout=20)  # until all processes that hold its stderr have ended
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def test_rendering_removes_what_killed_ones_left_long_ago(tmp_path, run):
    run(*DEMO, "--cars", 2, "--angles", 1, "--size", 32, 48)
    old = tmp_path / "data/.demo-rendering-0123456789ab"
    new = tmp_path / "data/.demo-rendering-ba9876543210"
    for folder in (old, new):
        (folder / "train_images").mkdir(parents=True)
        (folder / "train_images/a.jpg").write_text("half")
    for path in (old / "train_images", old):
        os.utime(path, (0, 0))
    run("train.py", *tiny_options(NUM_EPOCHS=0))
    assert not old.exists()
    assert new.exists()  # perhaps another process is rendering into it


# ---------------------------------------------------------------- the first run


def test_first_run_trains_on_rendered_cars(tmp_path, run):
    """Small and short: the preset's own size is measured, not tested."""
    run(*DEMO, "--cars", 4, "--angles", 4, "--size", 64, 96)
    arguments = tiny_options(NUM_EPOCHS=1)
    lines = run("train.py", *arguments).stdout.splitlines()
    assert "data/demo" in lines[0] and "preset demo" in lines[0]
    assert "prepare_data.py train.zip train_masks.zip" in lines[1]
    assert "demo" in lines[-1]
    checkpoints = sorted(path.name for path in tmp_path.glob("*.pth.tar"))
    assert checkpoints == ["demo_best_checkpoint.pth.tar", "demo_checkpoint.pth.tar"]
    done = run("train.py", *arguments, "--load-model", "true")
    assert "1 of 1 epochs done" in done.stdout
    assert "demo" in done.stdout.splitlines()[-1]


def test_first_run_takes_another_preset(tmp_path, run):
    run(*DEMO, "--cars", 2, "--angles", 2, "--size", 64, 96)
    run("train.py", "--preset", "small", "--num-epochs", 0, "--num-workers", 0)
    assert (tmp_path / "saved_images/batch.png").exists()
    assert not list(tmp_path.glob("*.tar"))


@pytest.mark.parametrize("arguments", [["--train-img-dir", "mine"], ["--val-mask-dir", "mine"]])
def test_rendered_cars_never_replace_a_folder_of_ones_own(tmp_path, run, arguments):
    done = run("train.py", *arguments, status=2)
    assert re.search(r"no folder '(mine|data/)", done.stderr)
    assert not (tmp_path / "data").exists()
    (tmp_path / "mine").mkdir()
    run("train.py", *arguments, status=2)
    assert not (tmp_path / "data").exists()


def test_rendered_cars_never_replace_real_data(data, run):
    for path in (data / "data/val_images").iterdir():
        path.unlink()
    assert "no images in 'data/val_images/'" in run("train.py", status=2).stderr
    assert not (data / "data/demo").exists()
