"""Cutouts by inference.py and in Python: shadows, frames and formats."""

import numpy as np
import pytest
from helpers import BEST, OWN_MODEL, picture_width_height, run_script, scene, write_model
from PIL import Image

import utils
from carvana.errors import UserError
from carvana.images import read_image

CAR = "photos/000000000000_01.jpg"
NAME = "outputs/000000000000_01"


def read_picture(path):
    with Image.open(path) as image:
        return np.asarray(image)


@pytest.mark.parametrize("picture_format", ["png", "webp"])
def test_cutouts_of_each_format(work, run, picture_format):
    arguments = ("--img", CAR, "--cutout", "--background", "white", "--format", picture_format)
    finished = run("inference.py", *OWN_MODEL, *arguments)
    names = {path.name for path in (work / "outputs").iterdir()}
    endings = ("mask.png", *(f"{kind}.{picture_format}" for kind in ("overlay", "cutout")))
    endings += (f"background.{picture_format}",)
    assert names == {f"000000000000_01_{ending}" for ending in endings}
    assert f"{NAME}_cutout.{picture_format}" in finished.stdout
    cutout = read_picture(work / f"{NAME}_cutout.{picture_format}")
    assert cutout.shape == (48, 72, 4)
    run("inference.py", *OWN_MODEL, "--img", CAR, "--cutout", "--out", "usual")
    usual = read_picture(work / "usual/000000000000_01_cutout.png")
    assert np.array_equal(cutout[..., 3], usual[..., 3])  # alpha is without loss in each format
    opaque = usual[..., 3] == 255
    assert np.abs(cutout[opaque].astype(int) - usual[opaque]).mean() < 8


def test_backgrounds_as_jpg(work, run):
    arguments = ("--img", CAR, "--background", "white", "--no-overlay", "--format", "jpg")
    run("inference.py", *OWN_MODEL, *arguments)
    with Image.open(work / f"{NAME}_background.jpg") as image:
        assert image.format == "JPEG"


@pytest.mark.parametrize("picture_format", ["png", "webp", "jpg"])
def test_pictures_keep_exif_and_stand_upright_in_each_format(work, run, picture_format):
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010F] = "Maker"
    turned = Image.fromarray(scene(1)[0]).transpose(Image.Transpose.ROTATE_90)
    turned.save(work / "turned.jpg", exif=exif)
    arguments = ("--img", "turned.jpg", "--background", "white", "--format", picture_format)
    run("inference.py", *OWN_MODEL, *arguments)
    with Image.open(work / f"outputs/turned_background.{picture_format}") as image:
        assert image.size == (72, 48)
        assert image.getexif()[0x010F] == "Maker"
        assert 0x0112 not in image.getexif()


def test_cutouts_on_a_canvas_come_out_alike(work, run):
    arguments = ("--img", "photos", "--cutout", "--background", CAR, "--no-overlay")
    arguments += ("--fit", "120x90", "--margin", "0.1", "--shadow")
    run("inference.py", *OWN_MODEL, *arguments)
    for path in (work / "photos").iterdir():
        cutout = work / f"outputs/{path.stem}_cutout.png"
        background = work / f"outputs/{path.stem}_background.jpg"
        assert picture_width_height(cutout) == picture_width_height(background) == (120, 90)
        assert picture_width_height(work / f"outputs/{path.stem}_mask.png") == (72, 48)
        columns = np.flatnonzero((read_picture(cutout)[..., 3] > 200).any(0))
        assert columns[0] >= 11
        assert columns[-1] <= 108
        assert abs(columns[0] + columns[-1] - 119) <= 3


def test_trimmed_cutouts_are_cut_to_the_car(work, run):
    run("inference.py", *OWN_MODEL, "--img", "photos", "--cutout", "--trim")
    for path in (work / "outputs").glob("*_cutout.png"):
        opaque = read_picture(path)[..., 3] >= 128
        assert opaque[[0, -1]].any(1).all()
        assert opaque[:, [0, -1]].any(0).all()


def test_cutout_of_python_is_that_of_the_command(work, run):
    run("inference.py", *OWN_MODEL, "--img", CAR, "--cutout", "--shadow")
    model = utils.load_model(work / BEST, "cpu")
    photograph = read_image(work / CAR)
    cutout = utils.cutout(model, photograph, shadow=True)
    written = read_picture(work / f"{NAME}_cutout.png")
    assert cutout.shape == written.shape == (48, 72, 4)
    assert np.abs(cutout[..., 3].astype(int) - written[..., 3]).mean() < 2
    assert utils.cutout(model, photograph, fit=(50, 100)).shape == (50, 100, 4)
    assert utils.cutout(model, photograph, trim=True).size <= cutout.size
    with pytest.raises(UserError, match="--trim cuts to the car, and --fit puts it on a canvas"):
        utils.cutout(model, photograph, fit=(50, 100), trim=True)


def test_cutout_takes_gray_pictures(tmp_path):
    model = utils.load_model(write_model(tmp_path / BEST, channels=1), "cpu")
    gray = scene(1)[0][..., 0]
    cutout = utils.cutout(model, gray)
    assert cutout.shape == (48, 72, 4)
    opaque = cutout[cutout[..., 3] == 255]
    assert (opaque[:, 0] == opaque[:, 1]).all() and (opaque[:, 0] == opaque[:, 2]).all()


def test_cutout_takes_models_of_other_channels_and_classes(tmp_path):
    write_model(tmp_path / "gray.pth.tar", channels=1)
    model = utils.load_model(tmp_path / "gray.pth.tar", "cpu")
    assert utils.cutout(model, scene(1)[0], margin=0.2, trim=True).shape[2] == 4


WHITE = ("--background", "white")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--shadow",), "--shadow changes cutouts and backgrounds only; add --cutout or"),
        (("--fit", "10x10"), "--fit changes cutouts and backgrounds only"),
        (("--trim",), "--trim changes cutouts and backgrounds only"),
        (("--margin", "0"), "--margin changes cutouts and backgrounds only"),
        ((*WHITE, "--margin", "0"), "--margin is that of a canvas; add --fit 1200x800, or --trim"),
        ((*WHITE, "--fit", "800"), "--fit: expected width and height in pixels, each 1..8192"),
        ((*WHITE, "--fit", "9x9", "--margin", "0.5"), "--margin: expected a share of each side"),
        ((*WHITE, "--fit", "9x9", "--trim"), "--trim cuts to the car, and --fit puts it"),
        (("--cutout", "--format", "jpg"), "a JPEG cannot be transparent, as --cutout is; take png"),
        (("--cutout", "--format", "gif"), "--format: invalid choice: 'gif'"),
    ],
)
def test_options_of_cutouts_that_do_not_go_together_are_answered(work, run, arguments, message):
    stderr = run("inference.py", *OWN_MODEL, "--img", CAR, *arguments, status=2).stderr
    assert message in stderr
    assert not (work / "outputs").exists()


def test_cutouts_in_another_format_overwrite_no_input(work, run):
    outputs = work / "outputs"
    outputs.mkdir()
    (outputs / "000000000000_01_cutout.webp").hardlink_to(work / CAR)
    before = (work / CAR).read_bytes()
    arguments = (*OWN_MODEL, "--img", CAR, "--cutout", "--format", "webp")
    stderr = run("inference.py", *arguments, status=2).stderr
    assert "000000000000_01_cutout.webp is one of the photographs, and would be over" in stderr
    assert (work / CAR).read_bytes() == before


def test_picture_too_wide_for_its_format_is_refused_in_words(work):
    Image.new("RGB", (17000, 2)).save(work / "wide.png")
    arguments = (*OWN_MODEL, "--img", "wide.png", "--no-overlay", "--cutout", "--format", "webp")
    stderr = run_script(work, "inference.py", *arguments, status=1).stderr
    assert "17000x2 pixels, a WebP holds 16,383 a side; take --format png" in stderr
