"""Files that are replaced whole or not at all, and which files are the same one."""

import os

import pytest
from helpers import BEST, LAST, OWN_MODEL, file_contents, tiny_options

from carvana.files import is_inside, replacing, same_file, same_place


def test_replacing_at_once_takes_names_of_its_own(tmp_path):
    """Two processes of one number, as in two containers, can write the same file at once."""
    path = tmp_path / "page.html"
    with replacing(path) as first, replacing(path) as second:
        first.write_text("first")
        second.write_text("second")
        assert first.read_text() == "first"
        for temporary in (first, second):
            assert temporary.parent == tmp_path
            assert temporary.name.startswith(".")
            assert temporary.suffix == ".html"
    assert path.read_text() == "first"  # the outer one ends last
    assert os.listdir(tmp_path) == ["page.html"]


def test_same_file_is_told_by_what_it_is(tmp_path):
    file = tmp_path / "folder/file"
    file.parent.mkdir()
    file.write_text("")
    (tmp_path / "other").write_text("")
    (tmp_path / "link").symlink_to(file.parent)
    (tmp_path / "hard").hardlink_to(file)
    (tmp_path / "circle").symlink_to("circle")
    for name in ("folder/file", "folder/../folder/file", "link/file", "hard"):
        assert same_file(file, tmp_path / name)
    for name in ("other", "nowhere", "circle", "folder"):
        assert not same_file(file, tmp_path / name)
    assert not same_file(tmp_path / "nowhere", tmp_path / "nowhere")


def test_same_place_is_where_one_file_would_replace_the_other(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("folder")
    for name in ("folder/a.tar", "folder/../folder/a.tar", "link/a.tar", "folder/A.tar"):
        assert same_place(tmp_path / "folder/a.tar", tmp_path / name)
    for name in ("folder/b.tar", "a.tar", "nowhere/a.tar"):
        assert not same_place(tmp_path / "folder/a.tar", tmp_path / name)
    assert same_place(tmp_path / "nowhere/a.tar", tmp_path / "folder/../nowhere/a.tar")


def test_is_inside_follows_links(tmp_path):
    (tmp_path / "folder/sub").mkdir(parents=True)
    (tmp_path / "link").symlink_to("folder")
    for name in ("folder", "folder/sub", "link", "link/sub", "folder/nowhere"):
        assert is_inside(tmp_path / name, tmp_path / "folder")
    for name in (".", "folder2", "folder/.."):
        assert not is_inside(tmp_path / name, tmp_path / "folder")
    assert not is_inside(tmp_path / "nowhere", tmp_path / "nowhere")


# ---------------------------------------------------------------- what scripts never overwrite

PAIRS = ("--images", "photos", "--masks", "masks")
PHOTOGRAPH = "photos/000000000000_01.jpg"
MASK = "masks/000000000002_02_mask.gif"


@pytest.mark.parametrize(
    "command, message",
    [
        (("evaluate.py", *OWN_MODEL, *PAIRS, "--json", BEST), f"{BEST} is the model"),
        (("evaluate.py", *OWN_MODEL, *PAIRS, "--json", f"link/{MASK}"), "of the photographs or"),
        (("evaluate.py", *OWN_MODEL, *PAIRS, "--json", PHOTOGRAPH), "of the photographs or masks"),
        (("explore.py", *PAIRS, "--out", "page.html"), "page.html is one of the photographs or"),
        (
            ("export.py", "--model", "unet_weights.pth.tar", "--out", "link"),
            "link/unet_weights.pth.tar is the model",
        ),
    ],
)
def test_scripts_overwrite_no_input(work, run, command, message):
    (work / "link").symlink_to(".")
    (work / "page.html").hardlink_to(work / PHOTOGRAPH)
    (work / "unet_weights.pth.tar").write_bytes((work / BEST).read_bytes())
    before = file_contents(work)
    stderr = run(*command, status=2).stderr
    assert message in stderr
    assert "and would be overwritten; " in stderr
    assert file_contents(work) == before


@pytest.mark.parametrize(
    "options, message",
    [
        (("--best-checkpoint-file", f"link/{LAST}"), "one would overwrite the other"),
        (("--best-checkpoint-file", LAST.upper()), "one would overwrite the other"),
        (("--saved-images-dir", "link/data/train_images"), "holds photographs or masks"),
        (("--saved-images-dir", "data/val_masks/"), "holds photographs or masks"),
    ],
)
def test_training_overwrites_neither_data_nor_its_own_files(data, run, options, message):
    (data / "link").symlink_to(".")
    before = file_contents(data)
    assert message in run("train.py", *tiny_options(), *options, status=2).stderr
    assert file_contents(data) == before
