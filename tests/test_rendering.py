"""Rendered cars, and the first run, which trains on them."""

import contextlib
import dataclasses
import os
import re
import shlex
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
from carvana.rendering import (
    ANGLES,
    SCENE_CLASSES,
    new_car,
    new_street,
    new_studio,
    render,
    render_scene,
)
from carvana.rendering.cars import BODIES
from carvana.rendering.footprints import back_to_front, car_footprint, is_apart

DEMO = ("prepare_data.py", "--demo")
SMALL_SCENES = (*DEMO, "--scenes", 6, "--size", 90, 120, "--val-fraction", 0.3)
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


# ---------------------------------------------------------------- scenes


def street_scene(seed, size=(360, 480), **changes):
    """Return a street, with changes to its fields, and its photograph and mask."""
    rng = np.random.default_rng(seed)
    street = dataclasses.replace(new_street(rng), **changes)
    return street, *render_scene(street, size, rng)


def is_class(mask, name):
    """Return where a scene's mask is of a class, uint8 (H, W) of 0 and 1."""
    return (mask == SCENE_CLASSES.index(name)).astype(np.uint8)


@pytest.fixture(scope="module")
def scene_masks():
    return [street_scene(seed)[2] for seed in range(12)]


def test_scenes_hold_every_class_in_its_share(scene_masks):
    bounds = {
        "sky": (0.03, 0.4),
        "building": (0.2, 0.7),
        "road": (0.1, 0.5),
        "sidewalk": (0.02, 0.3),
        "car": (0.01, 0.25),
        "wheel": (0.001, 0.04),
        "pole": (0.002, 0.03),
        "mirror": (0.00005, 0.004),
    }
    assert tuple(bounds) == SCENE_CLASSES
    for name, (lowest, highest) in bounds.items():
        shares = [is_class(mask, name).mean() for mask in scene_masks]
        assert lowest < np.mean(shares) < highest, name
        assert sum(share > 0 for share in shares) >= 9, name


def test_scenes_differ(scene_masks):
    """A scene's mask is no copy of another's."""
    agreements = [
        np.mean(first == second)
        for i, first in enumerate(scene_masks)
        for second in scene_masks[:i]
    ]
    assert max(agreements) < 0.9


@pytest.mark.parametrize("seed", range(8))
def test_poles_of_scenes_are_thin(seed):
    """A bare post is one to four pixels wide, from left to right."""
    street = new_street(np.random.default_rng(seed))
    for pole in street.poles:
        bare = pole._replace(arm=0.0, plate=0.0)
        mask = is_class(street_scene(seed, cars=(), poles=(bare,))[2], "pole")
        widths = mask.sum(axis=1)[mask.any(axis=1)]
        assert widths.size == 0 or 1 <= np.median(widths) <= 4
        assert widths.max(initial=0) <= 5


@pytest.mark.parametrize("seed", range(8))
def test_wheels_and_mirrors_of_scenes_touch_cars(seed):
    mask = street_scene(seed, poles=())[2]  # one before a car may cut a piece off
    near_car = cv2.dilate(is_class(mask, "car"), np.ones((5, 5), np.uint8))
    for name in ("wheel", "mirror"):
        count, labels = cv2.connectedComponents(is_class(mask, name))
        assert all(near_car[labels == i].any() for i in range(1, count))
    assert is_class(mask, "wheel").any()


@pytest.mark.parametrize("seed", range(6))
def test_scene_without_things_shows_what_they_hid(seed):
    """Sky, buildings and ground are the same with and without cars and poles before them."""
    _, _, mask = street_scene(seed)
    _, _, empty = street_scene(seed, cars=(), poles=())
    setting = mask < SCENE_CLASSES.index("car")
    edges = cv2.dilate((~setting).astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    assert set(np.unique(empty)) <= {0, 1, 2, 3}
    assert np.array_equal(mask[~edges], empty[~edges])


def test_scene_picture_shows_the_mask():
    """Where things are in the mask, the picture differs from the one without them."""
    street, _, _ = street_scene(3)
    calm = dataclasses.replace(street.exposure, noise=0.0, softness=0.2)
    _, full, mask = street_scene(3, exposure=calm)
    _, empty, _ = street_scene(3, exposure=calm, cars=(), poles=())
    difference = np.abs(full.astype(int) - empty.astype(int)).max(axis=2)
    things = mask >= SCENE_CLASSES.index("car")
    around = cv2.dilate(things.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    above = mask <= SCENE_CLASSES.index("building")  # cars have shadows on the ground
    assert np.mean(difference[things] > 4) > 0.9
    assert difference[~around & above].max() <= 1


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**6))
def test_nearer_cars_hide_farther_ones(seed):
    """Each car's pixels are its own unless what comes later in the order covers them."""
    street = new_street(np.random.default_rng(seed))
    eye = np.array([0, street.view.offset])
    footprints = [car_footprint(*placed) for placed in street.cars]
    assert 1 <= len(footprints) <= 5
    order = back_to_front(footprints, eye)
    assert sorted(order) == list(range(len(footprints)))
    for place, i in enumerate(order):
        for j in order[place + 1 :]:
            assert is_apart(footprints[i], footprints[j])
            distances = [first_hits(footprints[k], eye) for k in (i, j)]
            both = np.isfinite(distances).all(axis=0)
            assert (distances[0][both] > distances[1][both]).all()


def first_hits(footprint, eye):
    """Return how far a footprint is from an eye in 720 directions, infinite beside it."""
    directions = np.linspace(-np.pi / 2, np.pi / 2, 720)
    rays = np.stack([np.cos(directions), np.sin(directions)], axis=1)
    nearest = np.full(len(rays), np.inf)
    for i in range(len(footprint)):
        start, along = footprint[i - 1] - eye, footprint[i] - footprint[i - 1]
        across = rays[:, 0] * along[1] - rays[:, 1] * along[0]
        distance = (start[0] * along[1] - start[1] * along[0]) / across
        share = (start[0] * rays[:, 1] - start[1] * rays[:, 0]) / across
        hit = (share >= 0) & (share <= 1) & (distance > 0)
        nearest[hit] = np.minimum(nearest, distance)[hit]
    return nearest


def test_set_of_scenes_is_complete_and_the_same_each_time(tmp_path, run):
    done = run(*SMALL_SCENES, "--out", "one")
    assert "4 scenes to train on and 2 to validate on, in one" in done.stdout
    run(*SMALL_SCENES, "--out", "two")
    run(*SMALL_SCENES, "--out", "other", "--seed", 1)
    files = file_contents(tmp_path / "one")
    assert len(files) == 12
    assert file_contents(tmp_path / "two") == files
    assert not files.keys() & file_contents(tmp_path / "other").keys()
    for path in (tmp_path / "one/train_masks").iterdir():
        with Image.open(path) as mask:
            assert (mask.mode, mask.format, mask.size) == ("P", "PNG", (120, 90))
            assert np.array(mask).max() < len(SCENE_CLASSES)
    run("prepare_data.py", "--check", "--out", "one", "--classes", *SCENE_CLASSES)


def test_scenes_are_360_by_480_in_a_folder_of_their_own(tmp_path, run):
    run(*DEMO, "--scenes", 2)
    (path,) = (tmp_path / "data/scenes/val_images").iterdir()
    with Image.open(path) as photograph:
        assert photograph.size == (480, 360)


@pytest.mark.parametrize("number", [896, 1555])
def test_streets_have_a_car_where_the_first_view_had_room_for_none(number):
    street = new_street(np.random.default_rng([0, number]))
    assert street.cars


def test_scenes_are_trained_on_as_documented(run):
    """The commands of docs/your-data.md, with fewer and smaller scenes."""
    text = (ROOT / "docs/your-data.md").read_text(encoding="utf-8")
    section = text[text.index("## Rendered street scenes") : text.index("## From elsewhere")]
    commands = re.findall(r"^python (\S+) (.*)$", section, re.MULTILINE)
    smaller = {
        "prepare_data.py": SMALL_SCENES[1:],
        "train.py": tiny_options(NUM_EPOCHS=1),
        "evaluate.py": (),
    }
    assert [script for script, _ in commands] == list(smaller)
    printed = {}
    for script, options in commands:
        printed[script] = run(script, *shlex.split(options), *smaller[script]).stdout
    assert "2 images" in printed["evaluate.py"]
    for name in SCENE_CLASSES:
        assert re.search(rf"^  {name} +Dice .* set IoU ", printed["evaluate.py"], re.MULTILINE)


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
    assert "data/demo" in lines[0] and "the preset demo and your options" in lines[0]
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
