"""What the cache gives is what the reader gives, whatever happens to the cache's file."""

import errno
import functools
import os
import pickle
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import LAST, is_same, scene, tiny_options, write_mask, write_pairs
from PIL import Image

from carvana import cache, threads
from carvana.augmentation import train_transform, val_transform
from carvana.checkpoint import read_checkpoint
from carvana.errors import UserError
from dataset import CarvanaDataset, make_loader

PAIRS = 8


@pytest.fixture
def folders(tmp_path):
    """Folders of eight photographs and their masks."""
    write_pairs(tmp_path / "images", tmp_path / "masks", cars=4)
    return tmp_path / "images", tmp_path / "masks"


def open_dataset(folders, cached=True, **reading):
    reading = {"size": (32, 48)} | reading
    cache_dir = folders[0].parent / ".cache" if cached else None
    return CarvanaDataset(*folders, train_transform(), seed=3, cache_dir=cache_dir, **reading)


def cache_files(folders):
    return sorted((folders[0].parent / ".cache").iterdir())


def items(dataset):
    """Return all items of an epoch."""
    return [dataset[1, index] for index in range(len(dataset))]


def assert_same_items(dataset, reference):
    assert is_same(items(dataset), items(reference))


# ---------------------------------------------------------------- what it gives


@pytest.mark.parametrize(
    "reading",
    [{}, {"channels": 1}, {"mask_resize": "nearest"}, {"size": (48, 72)}, {"size": (7, 201)}],
)
def test_cache_gives_what_the_reader_gives(folders, reading, capfd, monkeypatch):
    no_bar = functools.partial(threads.tqdm, disable=True)  # a slow machine shows it
    monkeypatch.setattr(threads, "tqdm", no_bar)
    plain = open_dataset(folders, cached=False, **reading)
    for _ in range(2):  # when it is made, and when it is opened again
        cached = open_dataset(folders, **reading)
        assert cached.cache is not None and plain.cache is None
        assert_same_items(plain, cached)
        assert_same_items(plain, pickle.loads(pickle.dumps(cached)))
    # No pictures go to a worker, only their file's name.
    assert len(pickle.dumps(cached)) < len(pickle.dumps(plain)) + 3000
    keys = [(0, index) for index in range(PAIRS)]
    expected = list(make_loader(plain, 3, 0, sampler=keys))
    for dataset, workers in ((plain, 2), (cached, 0), (cached, 2)):
        assert is_same(list(make_loader(dataset, 3, workers, sampler=keys)), expected)
    assert capfd.readouterr().err == ""
    assert len(cache_files(folders)) == 1


def test_cache_is_read_without_opening_photographs(folders, monkeypatch):
    expected = items(open_dataset(folders))
    monkeypatch.setattr(cache.Reading, "read_pair", None)
    assert is_same(items(open_dataset(folders)), expected)


def test_cache_gives_arrays_that_can_be_written_to(folders):
    dataset = CarvanaDataset(*folders, size=(32, 48), cache_dir=folders[0].parent / ".cache")
    image, mask = dataset[0]
    image[:] = 0
    mask[:] = 0
    assert dataset[0][0].any() and dataset[0][1].any()


def test_cache_of_validation_images(folders):
    cache_dir = folders[0].parent / ".cache"
    cached = CarvanaDataset(*folders, val_transform(), size=(32, 48), cache_dir=cache_dir)
    image, mask = cached[5]
    assert image.dtype == torch.uint8
    assert image.shape == (3, 32, 48)
    assert mask.dtype == torch.uint8
    assert mask.max() == 255


# ---------------------------------------------------------------- when it is made again


def change_photograph(images, masks):
    name = sorted(images.iterdir())[2].stem
    Image.fromarray(scene(99)[0]).save(images / f"{name}.jpg")


def change_mask(images, masks):
    write_mask(sorted(masks.iterdir())[2], scene(98)[1])


def add_pairs(images, masks):
    write_pairs(images, masks, cars=1, first=50)


def remove_pair(images, masks):
    for folder in (images, masks):
        sorted(folder.iterdir())[2].unlink()


def rename_pair(images, masks):
    for path in (sorted(images.iterdir())[2], sorted(masks.iterdir())[2]):
        path.rename(path.with_name("z" + path.name))


def exchange_photographs(images, masks):
    """Have two photographs swap their names, and keep their lengths and times."""
    first, second = sorted(images.iterdir())[2:4]
    size = max(path.stat().st_size for path in (first, second))
    for path in (first, second):
        path.write_bytes(path.read_bytes().ljust(size, b"\0"))
    os.utime(first, ns=(10**18, 10**18))
    os.utime(second, ns=(10**18 + 1, 10**18 + 1))
    first.rename(images / "x")
    second.rename(first)
    (images / "x").rename(second)


CHANGES = [
    change_photograph,
    change_mask,
    add_pairs,
    remove_pair,
    rename_pair,
    exchange_photographs,
]


@pytest.mark.parametrize("change", CHANGES)
def test_cache_notices_a_change_of_the_files(folders, change, capsys):
    open_dataset(folders)
    before = cache_files(folders)
    change(*folders)
    assert_same_items(open_dataset(folders, cached=False), open_dataset(folders))
    assert "has changed since" in capsys.readouterr().err
    assert len(cache_files(folders)) == 1
    assert cache_files(folders) != before


def test_cache_is_made_again_by_another_reader(folders, monkeypatch):
    open_dataset(folders)
    before = cache_files(folders)
    monkeypatch.setattr(cache, "READER_VERSION", cache.READER_VERSION + 1)
    open_dataset(folders)
    assert len(cache_files(folders)) == 1
    assert cache_files(folders) != before


def test_cache_keeps_sizes_and_data_sets_beside_each_other(folders):
    open_dataset(folders)
    open_dataset(folders, size=(16, 24))
    copied = folders[0].parent / "other/images"
    shutil.copytree(folders[0], copied)
    open_dataset((copied, folders[1]))
    assert len(cache_files(folders)) == 2
    assert len(cache_files((copied,))) == 1


# ---------------------------------------------------------------- damage


def with_object_type(content):
    header = b"{'descr': '|O', 'fortran_order': False, 'shape': (8,), }"
    return content[:10] + header.ljust(117) + b"\n" + content[128:]


DAMAGE = {
    "empty": lambda content: b"",
    "text": lambda content: b"not an array",
    "cut short": lambda content: content[:-1],
    "header only": lambda content: content[:128],
    "torn header": lambda content: content[:40],
    "another shape": lambda content: content.replace(b"(8,)", b"(7,)"),
    "a pickle": lambda content: content.replace(b"\x93NUMPY", b"\x80\x04PICK"),
    "objects": with_object_type,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_cache_that_is_none_is_made_again(folders, damage, capsys):
    open_dataset(folders)
    (path,) = cache_files(folders)
    good = path.read_bytes()
    path.write_bytes(DAMAGE[damage](good))
    assert path.read_bytes() != good
    assert_same_items(open_dataset(folders, cached=False), open_dataset(folders))
    printed = capsys.readouterr().err
    assert f"{path} is damaged" in printed
    assert printed.count("\n") == 1
    assert path.read_bytes() == good


def test_cache_with_something_behind_it_is_used(folders):
    open_dataset(folders)
    (path,) = cache_files(folders)
    path.write_bytes(path.read_bytes() + b"x" * 99)
    assert_same_items(open_dataset(folders, cached=False), open_dataset(folders))


@pytest.mark.parametrize("damage", ["one bit", "zeros", "another's"])
def test_cache_reads_a_damaged_record_from_its_photograph(folders, damage, capsys):
    plain = open_dataset(folders, cached=False)
    open_dataset(folders)
    (path,) = cache_files(folders)
    content = bytearray(path.read_bytes())
    size = 32 * 48 * 4
    start = len(content) - 5 * size  # of record 3
    record = content[start : start + size]
    content[start : start + size] = {
        "one bit": bytes([record[0] ^ 1]) + record[1:],
        "zeros": bytes(size),
        "another's": content[start + 7 : start + 7 + size],
    }[damage]
    path.write_bytes(content)
    assert_same_items(plain, open_dataset(folders))
    printed = capsys.readouterr().err
    assert "is damaged at" in printed
    assert plain.pairs[3][0].name in printed
    assert not path.exists()
    assert_same_items(plain, open_dataset(folders))
    assert path.exists()


def test_cache_names_all_files_that_cannot_be_read(folders):
    first, second = sorted(folders[0].iterdir())[2:4]
    for path in (first, second):
        path.write_bytes(path.read_bytes()[:900])
    faults = rf"{first.name}: cannot be read[^\0]*{second.name}: cannot be read"
    with pytest.raises(UserError, match=rf"2 of {PAIRS} pairs[^\0]*{faults}"):
        open_dataset(folders)
    assert cache_files(folders) == []


# ---------------------------------------------------------------- the disk


def no_space(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def nearly_full(_):
    return shutil._ntuple_diskusage(10**9, 10**9, 10)


def break_disk(patch, cache_dir: Path, failure):
    if failure == "space":
        patch.setattr(shutil, "disk_usage", nearly_full)
    elif failure == "write":
        patch.setattr(cache, "_write", no_space)
    elif failure == "record":
        patch.setattr(cache, "_checksum", no_space)
    else:
        cache_dir.write_text("a file where the folder should be")


@pytest.mark.parametrize("failure", ["space", "write", "record", "no folder"])
def test_cache_is_done_without_where_it_cannot_be_written(folders, failure, monkeypatch, capsys):
    cache_dir = folders[0].parent / ".cache"
    with monkeypatch.context() as patch:
        break_disk(patch, cache_dir, failure)
        dataset = open_dataset(folders)
    assert dataset.cache is None
    assert_same_items(open_dataset(folders, cached=False), dataset)
    assert "warning: no cache in" in capsys.readouterr().err
    assert failure == "no folder" or cache_files(folders) == []


def test_outdated_cache_makes_room_for_the_new_one(folders, monkeypatch):
    open_dataset(folders)
    (outdated,) = folders[0].parent.joinpath(".cache").glob("*.pairs")
    monkeypatch.setattr(cache, "READER_VERSION", cache.READER_VERSION + 1)
    full = SimpleNamespace(free=10)
    roomy = SimpleNamespace(free=10**9)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full if outdated.exists() else roomy)
    assert open_dataset(folders).cache is not None
    assert not outdated.exists()


def test_cache_clears_away_what_a_killed_run_left(folders):
    open_dataset(folders)
    (path,) = cache_files(folders)
    abandoned = path.with_suffix(".1.tmp")
    growing = path.with_suffix(".2.tmp")
    abandoned.write_bytes(b"old")
    growing.write_bytes(b"new")
    os.utime(abandoned, (1, 1))
    add_pairs(*folders)
    open_dataset(folders)
    assert not abandoned.exists()
    assert growing.exists()


def test_cache_made_by_several_at_once_is_whole(folders, monkeypatch, capfd):
    """They are threads: of one number of a process, as in two containers that share a disk."""
    together = threading.Barrier(3)
    write = cache._write

    def write_together(*args):
        together.wait()
        write(*args)
        together.wait()

    with monkeypatch.context() as patch, ThreadPoolExecutor(3) as pool:
        patch.setattr(cache, "_write", write_together)
        datasets = list(pool.map(open_dataset, [folders] * 3))
    plain = open_dataset(folders, cached=False)
    for dataset in datasets:
        assert dataset.cache is not None
        assert_same_items(plain, dataset)
    assert "warning" not in capfd.readouterr().err
    assert len(cache_files(folders)) == 1


def test_cache_in_training_is_made_used_and_done_without(data, run):
    weights = []
    for options in ([], [], ["--cache", "false"]):
        run("train.py", *tiny_options(NUM_EPOCHS=1, NUM_WORKERS=-1), *options)
        weights.append(read_checkpoint(data / LAST)["state_dict"])
        assert len(list((data / "data/.cache").iterdir())) == 2
    assert is_same(weights[1], weights[0]) and is_same(weights[2], weights[0])
    shutil.rmtree(data / "data/.cache")
    run("train.py", *tiny_options(NUM_EPOCHS=1, NUM_WORKERS=-1, CACHE=False))
    assert not (data / "data/.cache").exists()
