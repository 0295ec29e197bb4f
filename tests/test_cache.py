"""What is decoded once is what would be decoded each time, and nothing that befalls the file changes that."""

import errno
import functools
import os
import pickle
import shutil

import numpy as np
import pytest
import torch
from conftest import scene, write_mask, write_pairs
from PIL import Image

import cache
import pictures
import utils
from dataset import CarvanaDataset, train_transform, val_transform
from pictures import UserError


@pytest.fixture
def folders(tmp_path):
    write_pairs(tmp_path / "images", tmp_path / "masks", cars=4)
    return tmp_path / "images", tmp_path / "masks"


def data_set(folders, cached=True, **reading):
    reading = {"size": (32, 48)} | reading
    return CarvanaDataset(
        *folders,
        train_transform(),
        seed=3,
        cache_dir=folders[0].parent / ".cache" if cached else None,
        **reading,
    )


def files(folders):
    return sorted((folders[0].parent / ".cache").iterdir())


def same(one, other):
    return len(one) == len(other) and all(
        torch.equal(a, b) for i in range(len(one)) for a, b in zip(one[1, i], other[1, i])
    )


@pytest.mark.parametrize(
    "reading",
    [{}, {"channels": 1}, {"mask_resize": "nearest"}, {"size": (48, 72)}, {"size": (7, 201)}],
)
def test_cached_and_uncached_are_the_same_bit_for_bit(folders, reading, capfd, monkeypatch):
    monkeypatch.setattr(
        pictures, "tqdm", functools.partial(pictures.tqdm, disable=True)
    )  # a slow machine shows it
    plain = data_set(folders, cached=False, **reading)
    for _ in range(2):  # when it is made, and when it is found
        cached = data_set(folders, **reading)
        assert cached.cache is not None and plain.cache is None
        assert same(plain, cached) and same(plain, pickle.loads(pickle.dumps(cached)))
    assert (
        len(pickle.dumps(cached)) < len(pickle.dumps(plain)) + 3000
    )  # no pictures go to a worker, only their file's name
    loaders = [
        utils.make_loader(dataset, 3, workers, sampler=[(0, i) for i in range(8)])
        for dataset in (plain, cached)
        for workers in (0, 2)
    ]
    for batches in zip(*loaders):
        assert all(torch.equal(a, b) for batch in batches[1:] for a, b in zip(batches[0], batch))
    assert capfd.readouterr().err == "" and len(files(folders)) == 1


def test_it_is_read_without_the_photographs_being_opened(folders, monkeypatch):
    first = [data_set(folders)[0, i] for i in range(8)]
    monkeypatch.setattr(cache, "read_pair", None)
    assert all(
        torch.equal(a, b) for i in range(8) for a, b in zip(first[i], data_set(folders)[0, i])
    )


def test_what_it_gives_can_be_written_to(folders):
    dataset = CarvanaDataset(*folders, size=(32, 48), cache_dir=folders[0].parent / ".cache")
    image, mask = dataset[0]
    image[:], mask[:] = 0, 0
    assert dataset[0][0].any() and dataset[0][1].any()


def change(images, masks):
    name = sorted(images.iterdir())[2].stem
    Image.fromarray(scene(99)[0]).save(images / f"{name}.jpg")


def redraw(images, masks):
    write_mask(sorted(masks.iterdir())[2], scene(98)[1])


def add(images, masks):
    write_pairs(images, masks, cars=1, first=50)


def remove(images, masks):
    for folder in (images, masks):
        sorted(folder.iterdir())[2].unlink()


def rename(images, masks):
    for path in (sorted(images.iterdir())[2], sorted(masks.iterdir())[2]):
        path.rename(path.with_name("z" + path.name))


def exchange(images, masks):
    """Two photographs swap their names, and keep their lengths and times."""
    one, other = sorted(images.iterdir())[2:4]
    size = max(path.stat().st_size for path in (one, other))
    for path in (one, other):
        path.write_bytes(path.read_bytes().ljust(size, b"\0"))
    os.utime(one, ns=(10**18, 10**18))
    os.utime(other, ns=(10**18 + 1, 10**18 + 1))
    one.rename(images / "x")
    other.rename(one)
    (images / "x").rename(other)


@pytest.mark.parametrize("what", [change, redraw, add, remove, rename, exchange])
def test_a_change_of_the_files_is_noticed(folders, what, capsys):
    data_set(folders)
    before = files(folders)
    what(*folders)
    assert same(data_set(folders, cached=False), data_set(folders))
    assert "has changed since" in capsys.readouterr().err
    assert len(files(folders)) == 1 and files(folders) != before


def test_another_reader_makes_another_cache(folders, monkeypatch):
    data_set(folders)
    before = files(folders)
    monkeypatch.setattr(cache, "READER", cache.READER + 1)
    data_set(folders)
    assert len(files(folders)) == 1 and files(folders) != before


def test_sizes_and_data_sets_are_kept_beside_each_other(folders):
    data_set(folders)
    data_set(folders, size=(16, 24))
    shutil.copytree(folders[0], folders[0].parent / "other/images")
    data_set((folders[0].parent / "other/images", folders[1]))
    assert len(files(folders)) == 2 and len(files((folders[0].parent / "other/images",))) == 1


DAMAGE = {
    "empty": lambda content: b"",
    "text": lambda content: b"not an array",
    "cut short": lambda content: content[:-1],
    "header only": lambda content: content[:128],
    "longer": lambda content: content + b"x" * 99,
    "torn header": lambda content: content[:40],
    "another shape": lambda content: content.replace(b"(8,)", b"(7,)"),
    "a pickle": lambda content: content.replace(b"\x93NUMPY", b"\x80\x04PICK"),
    "objects": lambda content: (
        content[:10]
        + b"{'descr': '|O', 'fortran_order': False, 'shape': (8,), }".ljust(117)
        + b"\n"
        + content[128:]
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_file_that_is_no_cache_is_made_anew(folders, damage, capsys):
    data_set(folders)
    (path,) = files(folders)
    good = path.read_bytes()
    path.write_bytes(DAMAGE[damage](good))
    assert path.read_bytes() != good
    assert same(data_set(folders, cached=False), data_set(folders))
    said = capsys.readouterr().err
    assert (f"{path} is damaged" in said and said.count("\n") == 1) or damage == "longer"
    assert damage == "longer" or path.read_bytes() == good


@pytest.mark.parametrize("how", ["one bit", "zeros", "another's"])
def test_a_spoilt_record_is_read_from_its_photograph(folders, how, capsys):
    plain, size = data_set(folders, cached=False), 32 * 48 * 4 + 4
    data_set(folders)
    (path,) = files(folders)
    content = bytearray(path.read_bytes())
    start = len(content) - 5 * size  # of record 3
    content[start : start + size] = {
        "one bit": bytes([content[start] ^ 1]) + content[start + 1 : start + size],
        "zeros": bytes(size),
        "another's": content[start + 7 : start + 7 + size],
    }[how]
    path.write_bytes(content)
    assert same(plain, data_set(folders))
    said = capsys.readouterr().err
    assert "is damaged at" in said and plain.pairs[3][0].name in said and not path.exists()
    assert same(plain, data_set(folders)) and path.exists()


def test_files_that_cannot_be_read_are_all_named(folders):
    names = sorted(path.name for path in folders[0].iterdir())
    for name in names[2:4]:
        (folders[0] / name).write_bytes((folders[0] / name).read_bytes()[:900])
    with pytest.raises(
        UserError,
        match=rf"2 of 8 pairs[^\0]*{names[2]}: cannot be read[^\0]*{names[3]}: cannot be read",
    ):
        data_set(folders)
    assert files(folders) == []


# ---------------------------------------------------------------- the disk


@pytest.mark.parametrize("fails", ["space", "write", "rename", "read-only"])
def test_without_room_it_goes_on_uncached(folders, fails, monkeypatch, capsys):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        if fails == "space":
            patch.setattr(
                shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 10)
            )
        elif fails == "read-only":
            (folders[0].parent / ".cache").write_text("a file where the folder should be")
        else:
            patch.setattr(cache, "write" if fails == "write" else "checksum", full)
        dataset = data_set(folders)
    assert dataset.cache is None and same(data_set(folders, cached=False), dataset)
    assert "warning: no cache in" in capsys.readouterr().err
    assert fails == "read-only" or files(folders) == []


def test_what_a_killed_run_left_is_cleared_away(folders):
    data_set(folders)
    left, live = (files(folders)[0].with_suffix(f".{n}.tmp") for n in (1, 2))
    left.write_bytes(b"old")
    live.write_bytes(b"new")
    os.utime(left, (1, 1))
    add(*folders)
    data_set(folders)
    assert not left.exists() and live.exists()


def test_train_makes_it_uses_it_and_does_without(data, run):
    words = [
        "--image-height",
        32,
        "--image-width",
        48,
        "--features",
        4,
        8,
        "--batch-size",
        4,
        "--num-epochs",
        1,
    ]
    weights = []
    for more in ([], [], ["--cache", "false"]):
        run("train.py", *words, *more)
        weights.append(utils.read_checkpoint(data / "my_checkpoint.pth.tar")["state_dict"])
        assert len(list((data / "data/.cache").iterdir())) == 2
    assert all(torch.equal(w[name], weights[0][name]) for w in weights for name in weights[0])
    shutil.rmtree(data / "data/.cache")
    run("train.py", *words, "--cache", "false")
    assert not (data / "data/.cache").exists()


def test_validation_reads_as_training_does(folders):
    cached = CarvanaDataset(
        *folders, val_transform(), size=(32, 48), cache_dir=folders[0].parent / ".cache"
    )
    image, mask = cached[5]
    assert image.dtype == torch.uint8 and image.shape == (3, 32, 48)
    assert np.array_equal(np.unique(mask * 255 % 1), [0.0]) and mask.max() == 1
