"""The reader: photographs and masks in every format in use, at any size."""

import warnings

import cv2
import numpy as np
import pytest
from helpers import ramp, scene, write_mask
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from carvana import images
from carvana.classes import SINGLE
from carvana.errors import UserError
from carvana.images import EXIF_ORIENTATION, UPRIGHT, picture_size, read_image, read_mask
from carvana.pairs import inspect_pair


def largest_difference(image, reference):
    return np.abs(image.astype(int) - reference).max()


# ---------------------------------------------------------------- photographs


@pytest.mark.parametrize("suffix", [".jpg", ".JPEG", ".png", ".bmp", ".webp", ".tif", ".TIFF"])
def test_image_color_in_every_format(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    Image.fromarray(ramp()).save(path, quality=98)
    lossless = suffix.lower() in (".png", ".bmp", ".tif", ".tiff")
    assert largest_difference(read_image(path), ramp()) <= (0 if lossless else 8)
    assert read_image(path).dtype == np.uint8


def test_image_gray_palette_alpha_and_16_bit(tmp_path):
    gray = ramp()[..., 0]
    palette = Image.fromarray(np.repeat(gray[..., None], 3, 2))
    stored = {
        "gray.png": Image.fromarray(gray),
        "palette.png": palette.quantize(256, dither=Image.Dither.NONE),
        "alpha.png": Image.fromarray(np.dstack([gray, gray, gray, np.full_like(gray, 7)])),
        "gray alpha.png": Image.fromarray(np.dstack([gray, np.full_like(gray, 7)])),
        "sixteen.png": Image.fromarray(gray.astype(np.uint16) * 257),
        "sixteen.tif": Image.fromarray(gray.astype(np.uint16) * 257),
    }
    for name, image in stored.items():
        image.save(tmp_path / name)
        read = read_image(tmp_path / name)
        assert read.shape == (40, 60, 3), name
        assert largest_difference(read, gray[..., None]) <= 1, name
        assert np.array_equal(read_image(tmp_path / name, channels=1)[..., 0], read[..., 0]), name


def test_image_16_bit_color_is_scaled_not_clipped(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), ramp()[..., ::-1].astype(np.uint16) * 257)
    assert np.array_equal(read_image(tmp_path / "a.png"), ramp())


def test_image_cmyk_jpeg(tmp_path):
    Image.fromarray(ramp()).convert("CMYK").save(tmp_path / "a.jpg", quality=98)
    assert np.abs(read_image(tmp_path / "a.jpg").astype(int) - ramp()).mean() < 3
    assert read_image(tmp_path / "a.jpg", (10, 15)).shape == (10, 15, 3)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [None, (40, 60)])
def test_image_exif_orientation(tmp_path, orientation, size, suffix):
    upright = Image.fromarray(ramp()).resize((480, 320), Image.Resampling.BICUBIC)
    inverse = {6: 8, 8: 6}.get(orientation, orientation)
    stored = upright.transpose(UPRIGHT[inverse]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    turned_path = tmp_path / f"turned.{suffix}"
    upright_path = tmp_path / f"upright.{suffix}"
    stored.save(turned_path, quality=98, exif=exif)
    upright.save(upright_path, quality=98)
    assert picture_size(turned_path) == (320, 480)
    write_mask(tmp_path / "mask.gif", np.eye(320, 480) > 0)
    check = inspect_pair(turned_path, tmp_path / "mask.gif", SINGLE)
    assert not check.faults + check.warnings
    read = read_image(turned_path, size)
    assert read.shape == (*(size or (320, 480)), 3)
    assert largest_difference(read, read_image(upright_path, size)) <= 6


@pytest.mark.parametrize("size", [(160, 240), (100, 90), (320, 480), (700, 990)])
def test_image_reduced_decoding_loses_nothing(tmp_path, size):
    """Against the average over the fully decoded picture: no shift, next to no difference."""
    Image.fromarray(scene(3, 640, 959)[0]).save(tmp_path / "a.jpg", quality=95)
    with Image.open(tmp_path / "a.jpg") as full:
        filtering = Image.Resampling.HAMMING if size[0] < 640 else Image.Resampling.BILINEAR
        expected = np.asarray(full.convert("RGB").resize(size[::-1], filtering)).astype(int)
    difference = np.abs(read_image(tmp_path / "a.jpg", size).astype(int) - expected)
    assert difference.mean() < 1.5


@pytest.mark.parametrize(
    "stored, asked, decoded",
    [
        ((1280, 1918), (640, 960), (640, 959)),
        ((1280, 1918), (641, 962), (1280, 1918)),
        ((1280, 1918), (320, 480), (640, 959)),
        ((1280, 1918), (160, 240), (320, 480)),
        ((2, 2), (2, 2), (2, 2)),  # one pixel fewer would be all of them
    ],
)
def test_image_is_decoded_no_smaller_than_it_is_asked_for(tmp_path, stored, asked, decoded):
    Image.new("RGB", stored[::-1]).save(tmp_path / "a.jpg")
    with Image.open(tmp_path / "a.jpg") as image:
        images._draft(image, "RGB", *asked[::-1])
        assert image.size[::-1] == decoded


SIDES = st.integers(1, 40)


@given(SIDES, SIDES, SIDES, SIDES)
def test_image_any_size_to_any_size(tmp_path_factory, height, width, new_height, new_width):
    path = tmp_path_factory.getbasetemp() / "any.png"
    new_size = (new_height, new_width)
    write_mask(path.with_suffix(".gif"), np.ones((height, width), bool))
    for suffix in (".png", ".jpg"):
        Image.fromarray(ramp(height, width)).save(path.with_suffix(suffix))
        assert read_image(path.with_suffix(suffix), new_size).shape == (*new_size, 3)
    assert (read_mask(path.with_suffix(".gif"), new_size) == 255).all()


@pytest.mark.parametrize(
    "content", [b"", b"not a picture", b"\xff\xd8\xff\xe0" + b"\0" * 50, "truncated"]
)
def test_image_that_cannot_be_read_is_named(tmp_path, content):
    path = tmp_path / "bad.jpg"
    Image.fromarray(ramp(200, 300)).save(path)
    path.write_bytes(path.read_bytes()[:2000] if content == "truncated" else content)
    with warnings.catch_warnings(), pytest.raises(UserError, match="bad.jpg"):
        read_image(path, (20, 30))


# ---------------------------------------------------------------- masks


def write_in_every_format(folder, mask):
    """Write a mask of 0 and 1 in every way that is in use; return the paths."""
    full = mask * np.uint8(255)
    write_mask(folder / "palette.gif", mask)
    arrays = {
        "0 255.png": full,
        "0 1.png": mask,
        "color.png": np.dstack([full] * 3),
        "ones.gif": mask,
        "alpha.png": np.dstack([full] * 3 + [np.full_like(full, 255)]),
        "sixteen.png": mask * np.uint16(65535),
        "sixteen ones.png": mask * np.uint16(1),
        "faint.png": mask * np.uint8(100) + np.uint8(100),
    }
    for name, array in arrays.items():
        Image.fromarray(array).save(folder / name)
    Image.fromarray(full).convert("1").save(folder / "bits.png")
    dark = Image.fromarray(mask, "L").convert("P")
    dark.putpalette([0, 0, 0, 128, 0, 0])
    dark.save(folder / "dark red.png")
    return sorted(folder.iterdir())


def test_mask_is_the_same_in_every_format(tmp_path):
    _, mask = scene(1)
    paths = write_in_every_format(tmp_path, mask)
    assert len(paths) == 11
    for path in paths:
        assert np.array_equal(read_mask(path), mask * np.uint8(255)), path.name


def test_mask_empty_and_full(tmp_path):
    for value, expected in ((0, 0), (255, 255), (1, 255)):
        Image.fromarray(np.full((8, 9), value, np.uint8)).save(tmp_path / "a.png")
        assert (read_mask(tmp_path / "a.png") == expected).all()


def center_of_columns(mask):
    return np.average(np.arange(mask.shape[1]), weights=mask.sum(0))


@pytest.fixture(scope="module")
def large_mask():
    """A mask of Carvana's size."""
    return scene(5, 1280, 1918)[1]


def test_mask_area_keeps_the_outline_where_nearest_moves_it(tmp_path, large_mask):
    write_mask(tmp_path / "a.gif", large_mask)
    area = read_mask(tmp_path / "a.gif", (160, 240), "area") / 255
    nearest = read_mask(tmp_path / "a.gif", (160, 240), "nearest") / 255
    assert area.mean() == pytest.approx(large_mask.mean(), abs=1e-4)
    assert set(np.unique(nearest)) == {0, 1}
    assert len(np.unique(area)) > 50
    true_center = (center_of_columns(large_mask) + 0.5) * 240 / 1918 - 0.5
    assert abs(center_of_columns(area) - true_center) < 0.01
    assert abs(center_of_columns(nearest) - true_center) > 0.3


@pytest.mark.parametrize("size", [(160, 240), (320, 480), (200, 200)])
def test_mask_and_image_stay_on_top_of_each_other(tmp_path, large_mask, size):
    """A picture of the mask, read as image and as mask, has its center at the same place."""
    write_mask(tmp_path / "a.gif", large_mask)
    picture = Image.fromarray(large_mask * np.uint8(255)).convert("RGB")
    picture.save(tmp_path / "a.jpg", quality=95)
    image = read_image(tmp_path / "a.jpg", size)[..., 0] / 255
    mask = read_mask(tmp_path / "a.gif", size) / 255
    for turn in (np.asarray, np.transpose):
        image_center = center_of_columns(np.maximum(turn(image), 0.1))
        mask_center = center_of_columns(np.maximum(turn(mask), 0.1))
        assert abs(image_center - mask_center) < 0.02
    assert np.abs(image - mask).mean() < 0.005
