import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile

import numpy as np
import pytest
from conftest import ROOT, write_mask, write_pairs
from PIL import Image
from test_bad_input import command


@pytest.fixture
def raw(tmp_path):
    """Two folders and two zips of 10 cars x 2 angles."""
    write_pairs(tmp_path / "train", tmp_path / "train_masks", cars=10)
    zip_folders(tmp_path)
    return tmp_path


def zip_folders(folder, **extra):
    for name in ("train", "train_masks"):
        with zipfile.ZipFile(folder / f"{name}.zip", "w") as archive:
            for path in sorted((folder / name).iterdir()):
                archive.write(path, f"{name}/{path.name}")
            archive.writestr(f"__MACOSX/{name}/._x.jpg", "x")


def tree(folder):
    return (
        {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        if folder.exists()
        else {}
    )


def cars(folder, part):
    return (
        {name[:12] for name in os.listdir(folder / f"{part}_images")}
        if (folder / f"{part}_images").exists()
        else set()
    )


def test_zips_folders_and_the_outer_zip_give_the_same(raw, run):
    done = run("prepare_data.py", "train.zip", "train_masks.zip")
    assert "9 cars      18 pairs" in done.stdout and "1 cars       2 pairs" in done.stdout
    assert not cars(raw / "data", "train") & cars(raw / "data", "val")
    assert not cars(raw / "data", "test") and sorted(os.listdir(raw / "data")) == [
        "train_images",
        "train_masks",
        "val_images",
        "val_masks",
    ]

    with zipfile.ZipFile(raw / "outer.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        (
            archive.write(raw / "train.zip", "train.zip"),
            archive.write(raw / "train_masks.zip", "train_masks.zip"),
        )
        archive.writestr("metadata.csv.zip", "x")
    run("prepare_data.py", "outer.zip", "--out", "outer")
    run("prepare_data.py", ".", "--out", "unpacked")
    run("prepare_data.py", "--images", "train", "--masks", "train_masks", "--out", "folders")
    assert (
        tree(raw / "data") == tree(raw / "outer") == tree(raw / "unpacked") == tree(raw / "folders")
    )
    assert len(tree(raw / "data")) == 40


def test_three_way_split_keeps_cars_and_validation_together(raw, run):
    run("prepare_data.py", "train.zip", "train_masks.zip", "--val-fraction", 0.2, "--out", "two")
    run(
        "prepare_data.py",
        "train.zip",
        "train_masks.zip",
        "--val-fraction",
        0.2,
        "--test-fraction",
        0.3,
        "--out",
        "three",
    )
    run(
        "prepare_data.py",
        "train.zip",
        "train_masks.zip",
        "--val-fraction",
        0.2,
        "--seed",
        1,
        "--out",
        "other",
    )
    parts = [cars(raw / "three", part) for part in ("train", "val", "test")]
    assert [len(part) for part in parts] == [5, 2, 3] and len(set.union(*parts)) == 10
    assert cars(raw / "two", "val") == parts[1] != cars(raw / "other", "val")
    assert "test " in run("prepare_data.py", "--check", "--out", "three").stdout


def test_again_other_data_and_force(raw, run):
    run("prepare_data.py", "train.zip", "train_masks.zip")
    before = tree(raw / "data")
    assert "nothing to do" in run("prepare_data.py", "train.zip", "train_masks.zip").stdout
    refused = run("prepare_data.py", "train.zip", "train_masks.zip", "--seed", 5, status=2)
    assert "--force" in refused.stderr and tree(raw / "data") == before
    run("prepare_data.py", "train.zip", "train_masks.zip", "--seed", 5, "--force")
    assert tree(raw / "data") != before and len(tree(raw / "data")) == 40


def spoil(raw):
    """One of each fault, and what must be said of it."""
    train, masks = raw / "train", raw / "train_masks"
    names = sorted(p.stem for p in train.iterdir())
    (masks / f"{names[0]}_mask.gif").unlink()
    (train / f"{names[1]}.jpg").unlink()
    (train / f"{names[2]}.jpg").write_bytes((train / f"{names[2]}.jpg").read_bytes()[:900])
    (train / f"{names[3]}.jpg").write_text("no picture")
    (masks / f"{names[4]}_mask.gif").write_bytes(b"")
    write_mask(masks / f"{names[5]}_mask.gif", np.ones((10, 72), bool))
    Image.fromarray(np.uint8([[0, 128, 255]] * 48).repeat(24, 1)).save(
        masks / f"{names[6]}_mask.gif"
    )
    write_mask(masks / f"{names[7]}_mask.gif", np.zeros((48, 72), bool))
    return [
        f"{names[0]}.jpg: image without a mask",
        f"{names[1]}_mask.gif: mask without an image",
        f"{names[2]}.jpg: cannot be read",
        f"{names[3]}.jpg: cannot be read",
        f"{names[4]}_mask.gif: cannot be read",
        f"{names[5]}.jpg: 72x48 pixels, its mask",
        f"{names[6]}_mask.gif: 3 different values",
    ], f"warning: {names[7]}_mask.gif: empty mask"


@pytest.mark.parametrize("form", ["zips", "folders"])
def test_every_fault_is_listed_at_once(raw, run, form):
    faults, warning = spoil(raw)
    zip_folders(raw)
    words = (
        ["train.zip", "train_masks.zip"]
        if form == "zips"
        else ["--images", "train", "--masks", "train_masks"]
    )
    done = run("prepare_data.py", *words, status=2)
    for fault in faults:
        assert fault in done.stderr, fault
    assert (
        f"{len(faults)} problems" in done.stderr
        and warning in done.stderr
        and "--skip-bad" in done.stderr
    )
    assert not tree(raw / "data")
    done = run("prepare_data.py", *words, "--skip-bad")
    assert all(f"left out: {fault}" in done.stderr for fault in faults)
    assert len(tree(raw / "data")) == 2 * (20 - len(faults))
    assert run("prepare_data.py", "--check").stderr.count("warning") == 1


@pytest.mark.parametrize(
    "name, words",
    [
        ("../evil.jpg", "leads outside"),
        ("/abs/evil.jpg", "leads outside"),
        ("train/../../evil.jpg", "leads outside"),
        ("..\\evil.jpg", "leads outside"),
        ("other/000000000000_01.jpg", "a second file"),
    ],
)
def test_zip_entries_that_lead_elsewhere(raw, run, name, words):
    with zipfile.ZipFile(raw / "train.zip", "a") as archive:
        archive.writestr(name, "x")
    done = run("prepare_data.py", "train.zip", "train_masks.zip", status=2)
    assert words in done.stderr and not tree(raw / "data") and not list(raw.parent.glob("evil*"))


@pytest.mark.parametrize(
    "words, said",
    [
        (["no.zip", "train_masks.zip"], "no file 'no.zip'"),
        (["train/000000000000_01.jpg", "train_masks.zip"], "is not a zip"),
        (["train.zip"], "holds no train.zip and no train_masks.zip"),
        (["--images", "nowhere", "--masks", "train_masks"], "no file or folder 'nowhere'"),
        (["--images", "train"], "both --images DIR and --masks DIR"),
        ([], "--check"),
        (["a", "b", "c"], "one or two zips"),
        (["--demo", "train.zip"], "or --demo, or --check"),
        (["--demo", "--cars", "1"], "--cars of at least 2"),
        (["--demo", "--angles", "17"], "--angles"),
        (["train.zip", "train_masks.zip", "--cars", "4"], "go with --demo"),
        (["train.zip", "train_masks.zip", "--val-fraction", "1.5"], "from 0 to under 1"),
        (
            ["train.zip", "train_masks.zip", "--val-fraction", "0.6", "--test-fraction", "0.4"],
            "leave nothing to train on",
        ),
        (["train_masks.zip", "train.zip"], "no image with a mask"),
        (["--check", "--out", "nothing"], "no folder 'nothing/train_images'"),
    ],
)
def test_wrong_words(raw, run, words, said):
    assert said in run("prepare_data.py", *words, status=2).stderr
    assert not tree(raw / "data")


def test_check_finds_leaks_and_damage(raw, run):
    run("prepare_data.py", "train.zip", "train_masks.zip")
    car = sorted(cars(raw / "data", "train"))[0]
    for kind, name in (("images", f"{car}_01.jpg"), ("masks", f"{car}_01_mask.gif")):
        (raw / f"data/train_{kind}" / name).rename(raw / f"data/val_{kind}" / name)
    broken = next(
        (raw / "data/train_images").glob(f"{sorted(cars(raw / 'data', 'train'))[1]}_01.jpg")
    )
    broken.write_bytes(broken.read_bytes()[:-200])
    done = run("prepare_data.py", "--check", status=2)
    assert (
        f"car {car} is in val and in train" in done.stderr
        and f"{broken.name}: cannot be read" in done.stderr
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_leaves_all_as_it_was(tmp_path, number):
    write_pairs(tmp_path / "train", tmp_path / "masks", cars=40, angles=4, height=320, width=480)
    (tmp_path / "data").mkdir()
    process = subprocess.Popen(
        [sys.executable, ROOT / "prepare_data.py", "--images", "train", "--masks", "masks"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not list(tmp_path.glob("data/.preparing/all/*")):
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=30)
    assert (
        process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143}[number]
        and "Traceback" not in stderr
    )
    assert os.listdir(tmp_path / "data") == []


def test_killed_while_replacing_it_puts_the_old_data_back(raw, run):
    """What a run leaves that was killed between moving the old folders aside and the new ones in."""
    run("prepare_data.py", "train.zip", "train_masks.zip")
    before = tree(raw / "data")
    (raw / "data/.preparing/old").mkdir(parents=True)
    for name in ("train_images", "val_masks"):
        (raw / "data" / name).rename(raw / "data/.preparing/old" / name)
    (raw / "data/val_masks").mkdir()
    assert "nothing to do" in run("prepare_data.py", "train.zip", "train_masks.zip").stdout
    assert tree(raw / "data") == before


def test_killed_while_clearing_up_it_leaves_the_new_data(raw, run, monkeypatch):
    words = ["prepare_data.py", "train.zip", "train_masks.zip", "--force", "--seed"]
    run(*words, 0)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)
        patch.setattr(time, "sleep", lambda _: None)
        assert command(patch, raw, [*words, "1"]) == 0
    left = raw / "data/.preparing"
    shutil.rmtree(next(left.rglob("train_images")))
    after = {
        name: content
        for name, content in tree(raw / "data").items()
        if not name.startswith(".preparing")
    }
    assert left.exists() and "nothing to do" in run(*words, 1).stdout
    assert tree(raw / "data") == after


def test_same_names_and_sizes_are_not_the_same_data(raw, run):
    words = ["--images", "train", "--masks", "train_masks"]
    for path in (raw / "train").iterdir():
        Image.open(path).save(path.with_suffix(".bmp"))
        path.unlink()
    run("prepare_data.py", *words)
    path = next((raw / "train").iterdir())
    path.write_bytes(path.read_bytes()[:-9] + b"123456789")
    assert "--force" in run("prepare_data.py", *words, status=2).stderr


def test_unreadable_sources_are_faults_like_others(raw, run):
    path = min((raw / "train").iterdir())
    path.unlink()
    path.symlink_to("nowhere")
    words = ["--images", "train", "--masks", "train_masks"]
    assert f"{path.name}: cannot be read" in run("prepare_data.py", *words, status=2).stderr
    run("prepare_data.py", *words, "--skip-bad")
    assert len(tree(raw / "data")) == 38


def test_a_damaged_outer_zip(raw, run):
    with zipfile.ZipFile(raw / "outer.zip", "w") as archive:
        (
            archive.write(raw / "train.zip", "train.zip"),
            archive.write(raw / "train_masks.zip", "train_masks.zip"),
        )
    content = bytearray((raw / "outer.zip").read_bytes())
    content[300] ^= 255
    (raw / "outer.zip").write_bytes(content)
    assert (
        "train.zip in outer.zip is damaged" in run("prepare_data.py", "outer.zip", status=2).stderr
    )
    with zipfile.ZipFile(raw / "outer.zip", "w") as archive:
        (
            archive.write(raw / "train.zip", "../train.zip"),
            archive.write(raw / "train_masks.zip", "train_masks.zip"),
        )
    assert "leads outside" in run("prepare_data.py", "outer.zip", status=2).stderr


def test_any_other_names_are_groups_of_their_own(tmp_path, run):
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir(), (tmp_path / "labels").mkdir()
    for name in ("cat_01", "cat_02", "Ünïcode name", "b" * 12 + "_17"):
        Image.fromarray(rng.integers(0, 255, (20, 30, 3), dtype=np.uint8)).save(
            tmp_path / "photos" / f"{name}.png"
        )
        write_mask(tmp_path / "labels" / f"{name}.png", rng.random((20, 30)) > 0.5)
    done = run("prepare_data.py", "--images", "photos", "--masks", "labels", "--val-fraction", 0.5)
    assert done.stdout.count("2 cars       2 pairs") == 2
