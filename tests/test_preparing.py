"""prepare_data.py: what is put in place, what is refused, and what an end in the middle leaves."""

import os
import shutil
import signal
import subprocess
import time
import zipfile

import numpy as np
import pytest
from helpers import (
    file_contents,
    run_script,
    scene,
    script_command,
    start_at_once,
    write_mask,
    write_pairs,
)
from PIL import Image

from carvana.locks import locked
from carvana.pairs import MAKE_DATA

ZIPS = ("train.zip", "train_masks.zip")
FOLDERS = ("--images", "train", "--masks", "train_masks")


@pytest.fixture
def raw(tmp_path):
    """Two folders and two zips of 10 cars x 2 angles."""
    write_pairs(tmp_path / "train", tmp_path / "train_masks", cars=10)
    zip_folders(tmp_path)
    return tmp_path


def zip_folders(folder):
    for name in ("train", "train_masks"):
        with zipfile.ZipFile(folder / f"{name}.zip", "w") as archive:
            for path in sorted((folder / name).iterdir()):
                archive.write(path, f"{name}/{path.name}")
            archive.writestr(f"__MACOSX/{name}/._x.jpg", "x")


def zip_zips(folder, compression=zipfile.ZIP_STORED, prefix=""):
    """Write outer.zip, as Kaggle's is, with the two zips in it."""
    with zipfile.ZipFile(folder / "outer.zip", "w", compression) as archive:
        for name in ZIPS:
            archive.write(folder / name, f"{prefix}{name}")
            prefix = ""
        archive.writestr("metadata.csv.zip", "x")


def cars(folder, split):
    """Return the cars of a split."""
    images = folder / f"{split}_images"
    return {name[:12] for name in os.listdir(images)} if images.exists() else set()


# ---------------------------------------------------------------- what is put in place


def test_prepare_zips_folders_and_the_outer_zip_alike(raw, run):
    done = run("prepare_data.py", *ZIPS)
    assert "9 cars      18 pairs" in done.stdout
    assert "1 cars       2 pairs" in done.stdout
    data = raw / "data"
    assert not cars(data, "train") & cars(data, "val")
    assert not cars(data, "test")
    assert sorted(os.listdir(data)) == ["train_images", "train_masks", "val_images", "val_masks"]
    assert len(file_contents(data)) == 40

    zip_zips(raw, zipfile.ZIP_DEFLATED)
    run("prepare_data.py", "outer.zip", "--out", "outer")
    run("prepare_data.py", ".", "--out", "unpacked")
    run("prepare_data.py", *FOLDERS, "--out", "folders")
    for name in ("outer", "unpacked", "folders"):
        assert file_contents(raw / name) == file_contents(data), name


def test_prepare_splits_three_ways_and_keeps_cars_and_validation_together(raw, run):
    prepare = ("prepare_data.py", *ZIPS, "--val-fraction", 0.2)
    run(*prepare, "--out", "two")
    run(*prepare, "--test-fraction", 0.3, "--out", "three")
    run(*prepare, "--seed", 1, "--out", "other")
    train, val, test = (cars(raw / "three", split) for split in ("train", "val", "test"))
    assert [len(train), len(val), len(test)] == [5, 2, 3]
    assert len(train | val | test) == 10
    assert cars(raw / "two", "val") == val
    assert cars(raw / "other", "val") != val
    assert "test " in run("prepare_data.py", "--check", "--out", "three").stdout


def test_prepare_again_does_nothing_and_replaces_only_by_force(raw, run):
    data = raw / "data"
    run("prepare_data.py", *ZIPS)
    before = file_contents(data)
    assert "nothing to do" in run("prepare_data.py", *ZIPS).stdout
    refused = run("prepare_data.py", *ZIPS, "--seed", 5, status=2)
    assert "--force" in refused.stderr
    assert file_contents(data) == before
    run("prepare_data.py", *ZIPS, "--seed", 5, "--force")
    assert file_contents(data) != before
    assert len(file_contents(data)) == 40


def test_prepare_compares_contents_not_names_and_sizes(raw, run):
    for path in (raw / "train").iterdir():
        Image.open(path).save(path.with_suffix(".bmp"))
        path.unlink()
    run("prepare_data.py", *FOLDERS)
    path = next((raw / "train").iterdir())
    path.write_bytes(path.read_bytes()[:-9] + b"123456789")
    assert "--force" in run("prepare_data.py", *FOLDERS, status=2).stderr


def test_prepare_takes_names_that_are_not_carvanas_as_groups_of_their_own(tmp_path, run):
    rng = np.random.default_rng(0)
    images = tmp_path / "photos"
    masks = tmp_path / "labels"
    images.mkdir()
    masks.mkdir()
    for name in ("cat_01", "cat_02", "Ünïcode name", "b" * 12 + "_17"):
        noise = rng.integers(0, 255, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(noise).save(images / f"{name}.png")
        write_mask(masks / f"{name}.png", rng.random((20, 30)) > 0.5)
    folders = ("--images", "photos", "--masks", "labels")
    done = run("prepare_data.py", *folders, "--val-fraction", 0.5)
    assert done.stdout.count("2 cars       2 pairs") == 2


# ---------------------------------------------------------------- what is refused


def spoil(raw):
    """Make one of each fault; return what must be said of them, and a warning."""
    train = raw / "train"
    masks = raw / "train_masks"
    names = sorted(path.stem for path in train.iterdir())
    (masks / f"{names[0]}_mask.gif").unlink()
    (train / f"{names[1]}.jpg").unlink()
    (train / f"{names[2]}.jpg").write_bytes((train / f"{names[2]}.jpg").read_bytes()[:900])
    (train / f"{names[3]}.jpg").write_text("no picture")
    (masks / f"{names[4]}_mask.gif").write_bytes(b"")
    write_mask(masks / f"{names[5]}_mask.gif", np.ones((10, 72), bool))
    three_values = np.uint8([[0, 128, 255]] * 48).repeat(24, 1)
    Image.fromarray(three_values).save(masks / f"{names[6]}_mask.gif")
    write_mask(masks / f"{names[7]}_mask.gif", np.zeros((48, 72), bool))
    faults = [
        f"{names[0]}.jpg: image without a mask",
        f"{names[1]}_mask.gif: mask without an image",
        f"{names[2]}.jpg: cannot be read",
        f"{names[3]}.jpg: cannot be read",
        f"{names[4]}_mask.gif: cannot be read",
        f"{names[5]}.jpg: 72x48 pixels, its mask",
        f"{names[6]}_mask.gif: 3 different values",
    ]
    return faults, f"warning: {names[7]}_mask.gif: empty mask"


@pytest.mark.parametrize("source", [ZIPS, FOLDERS], ids=["zips", "folders"])
def test_prepare_lists_every_fault_at_once(raw, run, source):
    faults, warning = spoil(raw)
    zip_folders(raw)
    done = run("prepare_data.py", *source, status=2)
    for expected in (*faults, warning, f"{len(faults)} problems", "--skip-bad"):
        assert expected in done.stderr, expected
    assert not file_contents(raw / "data")
    done = run("prepare_data.py", *source, "--skip-bad")
    for fault in faults:
        assert f"left out: {fault}" in done.stderr, fault
    assert len(file_contents(raw / "data")) == 2 * (20 - len(faults))
    assert run("prepare_data.py", "--check").stderr.count("warning") == 1


def test_prepare_takes_unreadable_sources_for_faults_like_others(raw, run):
    path = min((raw / "train").iterdir())
    path.unlink()
    path.symlink_to("nowhere")
    assert f"{path.name}: cannot be read" in run("prepare_data.py", *FOLDERS, status=2).stderr
    run("prepare_data.py", *FOLDERS, "--skip-bad")
    assert len(file_contents(raw / "data")) == 38


@pytest.mark.parametrize(
    "name, expected",
    [
        ("../evil.jpg", "leads outside"),
        ("/abs/evil.jpg", "leads outside"),
        ("train/../../evil.jpg", "leads outside"),
        ("..\\evil.jpg", "leads outside"),
        ("other/000000000000_01.jpg", "a second file"),
    ],
)
def test_prepare_refuses_zip_entries_that_lead_elsewhere(raw, run, name, expected):
    with zipfile.ZipFile(raw / "train.zip", "a") as archive:
        archive.writestr(name, "x")
    assert expected in run("prepare_data.py", *ZIPS, status=2).stderr
    assert not file_contents(raw / "data")
    assert not list(raw.parent.glob("evil*"))


def test_prepare_refuses_a_damaged_or_dangerous_outer_zip(raw, run):
    path = raw / "outer.zip"
    zip_zips(raw)
    content = bytearray(path.read_bytes())
    content[300] ^= 255
    path.write_bytes(content)
    done = run("prepare_data.py", "outer.zip", status=2)
    assert "train.zip in outer.zip is damaged" in done.stderr
    zip_zips(raw, prefix="../")
    assert "leads outside" in run("prepare_data.py", "outer.zip", status=2).stderr


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (["no.zip", "train_masks.zip"], "no file or folder 'no.zip'"),
        (["train/000000000000_01.jpg", "train_masks.zip"], "is not a zip"),
        (["train.zip"], "train.zip is no data set that is known; expected train.zip and"),
        (["--images", "nowhere", "--masks", "train_masks"], "no file or folder 'nowhere'"),
        (["--images", "train"], "both --images DIR and --masks DIR"),
        ([], "--check"),
        (["a", "b", "c"], "one or two zips"),
        (["--demo", "train.zip"], "or --demo, or --check"),
        (["--demo", "--cars", "1"], "--cars of at least 2"),
        (["--demo", "--angles", "17"], "--angles"),
        ([*ZIPS, "--cars", "4"], "go with --demo"),
        ([*ZIPS, "--scenes", "4"], "go with --demo"),
        (["--demo", "--scenes", "1"], "--scenes takes at least 2"),
        (["--demo", "--scenes", "-3"], "--scenes takes at least 2"),
        (["--demo", "--scenes", "4", "--angles", "2"], "goes without --parts, --cars and"),
        (["--demo", "--scenes", "4", "--parts"], "goes without --parts, --cars and"),
        ([*ZIPS, "--val-fraction", "1.5"], "from 0 to under 1"),
        ([*ZIPS, "--val-fraction", "0.6", "--test-fraction", "0.4"], "leave nothing to train on"),
        (["train_masks.zip", "train.zip"], "no image with a mask"),
        (["--check", "--out", "nothing"], "no folder 'nothing/train_images'"),
    ],
)
def test_prepare_answers_wrong_options(raw, run, arguments, expected):
    assert expected in run("prepare_data.py", *arguments, status=2).stderr
    assert not file_contents(raw / "data")


def test_check_finds_leaks_and_damage(raw, run):
    run("prepare_data.py", *ZIPS)
    data = raw / "data"
    leaked, damaged = sorted(cars(data, "train"))[:2]
    for kind, name in (("images", f"{leaked}_01.jpg"), ("masks", f"{leaked}_01_mask.gif")):
        (data / f"train_{kind}" / name).rename(data / f"val_{kind}" / name)
    path = data / f"train_images/{damaged}_01.jpg"
    path.write_bytes(path.read_bytes()[:-200])
    done = run("prepare_data.py", "--check", status=2)
    assert f"car {leaked} is in val and in train" in done.stderr
    assert f"{path.name}: cannot be read" in done.stderr


def test_prepare_does_not_replace_its_sources(raw, run):
    """What has no mask, or is bad, would be gone."""
    run("prepare_data.py", *ZIPS)
    (raw / "data/train_images/no_mask.jpg").write_text("the only copy")
    (raw / "link").symlink_to(raw / "data/train_images")
    before = file_contents(raw / "data")
    for images in ("data/train_images", "data/../link", raw / "data/train_images/../train_images"):
        arguments = ("--images", images, "--masks", "data/train_masks", "--force", "--skip-bad")
        stderr = run("prepare_data.py", *arguments, status=2).stderr
        assert "is in data/train_images, which would be replaced; move it elsewhere" in stderr
    assert file_contents(raw / "data") == before


# ---------------------------------------------------------------- what an end in the middle leaves


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_prepare_interrupted_leaves_all_as_it_was(tmp_path, number, status):
    images = tmp_path / "train"
    masks = tmp_path / "train_masks"
    images.mkdir()
    masks.mkdir()
    image, mask = scene(0, 320, 480)
    for index in range(160):
        Image.fromarray(image).save(images / f"{index}.jpg", quality=92)
        write_mask(masks / f"{index}.gif", mask)
    (tmp_path / "data").mkdir()
    process = subprocess.Popen(
        script_command("prepare_data.py", *FOLDERS),
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
    assert process.returncode == status
    assert "Traceback" not in stderr
    assert os.listdir(tmp_path / "data") == []


def test_prepare_puts_back_what_a_killed_run_had_moved_aside(raw, run):
    """Killed between moving the old folders aside and the new ones in."""
    data = raw / "data"
    run("prepare_data.py", *ZIPS)
    before = file_contents(data)
    (data / ".preparing/old").mkdir(parents=True)
    for name in ("train_images", "val_masks"):
        (data / name).rename(data / ".preparing/old" / name)
    (data / "val_masks").mkdir()
    assert "nothing to do" in run("prepare_data.py", *ZIPS).stdout
    assert file_contents(data) == before


def do_nothing(*_, **__):
    pass


def test_prepare_killed_while_clearing_up_leaves_the_new_data(raw, monkeypatch):
    data = raw / "data"
    prepare = ("prepare_data.py", *ZIPS, "--force", "--seed")
    run_script(raw, *prepare, 0)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", do_nothing)
        patch.setattr(time, "sleep", do_nothing)
        run_script(raw, *prepare, 1)
    left = data / ".preparing"
    shutil.rmtree(next(left.rglob("train_images")))
    after = {
        path: content
        for path, content in file_contents(data).items()
        if path.parts[0] != ".preparing"
    }
    assert left.exists()
    assert "nothing to do" in run_script(raw, *prepare, 1).stdout
    assert file_contents(data) == after


def test_prepare_started_while_another_prepares_is_refused(raw, run):
    run("prepare_data.py", *ZIPS)
    before = file_contents(raw / "data")
    with locked(raw / "data/.preparing", "", ""):
        again = run("prepare_data.py", *ZIPS, "--force", "--seed", 5, status=2)
    assert "another process is preparing data in data (process" in again.stderr
    assert file_contents(raw / "data") == before
    run("prepare_data.py", *ZIPS, "--force", "--seed", 5)
    assert file_contents(raw / "data") != before


def test_prepare_started_several_times_at_once_is_whole(raw, run):
    run("prepare_data.py", *ZIPS, "--seed", 1)
    expected = file_contents(raw / "data")
    run("prepare_data.py", *ZIPS, "--force", "--seed", 0)
    assert file_contents(raw / "data") != expected
    arguments = ("prepare_data.py", *ZIPS, "--force", "--seed", 1)
    statuses, messages = start_at_once(raw, 3, *arguments)
    for status, message in zip(statuses, messages, strict=True):
        assert status == 0 or "another process is preparing" in message
    assert 0 in statuses and set(statuses) <= {0, 2}
    assert file_contents(raw / "data") == expected


def test_prepare_keeps_identical_photographs_on_one_side(tmp_path, run):
    """Copies under the names of other cars would show the network what it is scored on."""
    write_pairs(tmp_path / "photos", tmp_path / "masks", cars=12, angles=1)
    first = (tmp_path / "photos/000000000000_01.jpg").read_bytes()
    copies = [f"{car:012x}_01.jpg" for car in (0, 3, 4, 7, 9, 11)]
    for name in copies[1:]:
        (tmp_path / "photos" / name).write_bytes(first)
    for seed in range(4):
        finished = run(
            *("prepare_data.py", "photos", "masks", "--val-fraction", 0.4, "--force"),
            *("--seed", seed),
        )
        assert "photographs of the same content stay on one side: 000000" in finished.stderr
        sides = {
            path.parent.name for name in copies for path in tmp_path.glob(f"data/*_images/{name}")
        }
        assert len(sides) == 1


def test_an_empty_folder_of_masks_is_named_in_few_lines(tmp_path, run):
    for number in range(30):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{number}.jpg")
    (tmp_path / "empty").mkdir()
    stderr = run(
        "prepare_data.py", "--images", tmp_path, "--masks", tmp_path / "empty", status=2
    ).stderr
    assert "of 30 images (such as 0.jpg) and 0 masks" in stderr
    assert "and 20 more" in stderr
    assert len(stderr.splitlines()) == 12
    assert not (tmp_path / "data").exists()
    stderr = run(
        "evaluate.py", "--images", tmp_path, "--masks", tmp_path / "empty", status=2
    ).stderr
    assert stderr == f"error: no masks in {str(tmp_path / 'empty')!r}; {MAKE_DATA}\n"
