"""Photographs of other channels than gray and color: TIFF of many bands, RGBA as it is stored."""

import importlib.util
import pickle
import re
import shlex
import subprocess
import sys

import cv2
import numpy as np
import pytest
import tifffile
import torch
from helpers import (
    BEST,
    OWN_MODEL,
    ROOT,
    needs_onnx,
    picture_width_height,
    run_script,
    scene,
    tiny_options,
    tiny_settings,
    write_model,
)
from hypothesis import given, settings, strategies
from hypothesis.extra import numpy as arrays
from PIL import Image

import utils
from carvana import exporting, multichannel
from carvana.augmentation import Augmentation, train_transform
from carvana.checkpoint import read_checkpoint
from carvana.errors import UserError
from carvana.images import (
    FULL_RANGE,
    PIXELS,
    Pixels,
    check_photograph,
    judge_levels,
    picture_size,
    read_image,
    read_mask,
    read_rgb,
    scale_image,
)
from carvana.opening import MAX_MEGAPIXELS, set_max_megapixels
from carvana.uploads import Choices, mask_uploads

SIZE = (40, 60)
HALF = (20, 30)
INTERLEAVED = {"photometric": "minisblack", "planarconfig": "contig"}
PLANAR = {"photometric": "minisblack", "planarconfig": "separate"}
PAGES = {"photometric": "minisblack"}
LAYOUTS = {"interleaved": INTERLEAVED, "planar": PLANAR, "pages": PAGES}
AUGMENTATION = {  # constants of augmentation, all of them on
    "SCALE_JITTER": 0.2,
    "COLOR_JITTER": 0.5,
    "ROTATE": 30.0,
    "GAMMA": 0.5,
    "WHITE_BALANCE": 0.5,
    "GRAY": 1.0,
    "BLUR": 3.0,
    "NOISE": 20.0,
    "DOWNSCALE": 0.3,
    "JPEG_QUALITY": 30,
    "HORIZONTAL_FLIP": 0.5,
    "VERTICAL_FLIP": 0.5,
    "BYSTANDERS": 0.5,
}
MODEL_FILES = (".onnx", ".pt2", ".pth", ".tar")
needs_codecs = pytest.mark.skipif(
    importlib.util.find_spec("imagecodecs") is None, reason="needs imagecodecs"
)


def random_levels(channels, dtype=np.uint8, size=SIZE, seed=0):
    """Return levels (H, W, channels) over the whole range of a type; of floats, 0 to 1."""
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        return rng.random((*size, channels)).astype(dtype)
    information = np.iinfo(dtype)
    return rng.integers(
        information.min, information.max, (*size, channels), dtype=dtype, endpoint=True
    )


def write_tiff(path, levels, layout="interleaved", **options):
    """Write levels (H, W, channels)."""
    if layout != "interleaved":
        levels = np.ascontiguousarray(np.moveaxis(levels, -1, 0))
    tifffile.imwrite(path, levels, **LAYOUTS[layout], **options)
    return path


def scaled(levels, size):
    """Return uint8 (H, W, C) at another size, each channel by itself as a gray picture is."""
    planes = [Image.fromarray(plane) for plane in np.moveaxis(levels, -1, 0)]
    return np.dstack([plane.resize(size[::-1], Image.Resampling.HAMMING) for plane in planes])


def five_bands(number, height=48, width=72):
    """Return a photograph of a car in five channels of 0 to 1, float32 (H, W, 5), and its mask."""
    image, mask = scene(number, height, width)
    colors = image.astype(np.float32) / 255
    infrared = 1 - colors.mean(2, keepdims=True)
    depth = np.where(mask[..., None] > 0, 0.3, 0.8).astype(np.float32)
    return np.concatenate([colors, infrared, depth], axis=2), mask


def write_band_pairs(images, masks, numbers, dtype=np.float32, ending=".tif"):
    """Write pairs of five channels, layouts in turns."""
    for folder in (images, masks):
        folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        bands, mask = five_bands(number)
        if dtype == np.uint8:
            bands = np.round(255 * bands).astype(np.uint8)
        write_tiff(images / f"{number}{ending}", bands, list(LAYOUTS)[number % 3])
        Image.fromarray(mask * np.uint8(255)).save(masks / f"{number}.png")


@pytest.fixture
def bands(tmp_path):
    """A working folder with data/ of five channels of floating-point values."""
    for split, numbers in (("train", range(6)), ("val", range(50, 53))):
        folders = (tmp_path / f"data/{split}_{kind}" for kind in ("images", "masks"))
        write_band_pairs(*folders, numbers)
    return tmp_path


# ---------------------------------------------------------------- reading


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("channels", [2, 4, 5, 13])
def test_bands_are_read_as_they_are(tmp_path, channels, layout):
    levels = random_levels(channels)
    path = write_tiff(tmp_path / "a.tif", levels, layout)
    assert np.array_equal(read_image(path, None, channels), levels)
    assert np.array_equal(read_image(path, HALF, channels), scaled(levels, HALF))
    assert picture_size(path) == check_photograph(path, Pixels(channels)) == SIZE


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_bands_of_16_bits_follow_image_levels(tmp_path, layout, byteorder):
    deep = random_levels(5, np.uint16)
    path = write_tiff(tmp_path / "a.tif", deep, layout, byteorder=byteorder)
    expected = np.round(deep / 257).astype(np.uint8)
    assert np.array_equal(read_image(path, None, 5), expected)
    clipped = np.round(np.minimum(deep, 10000) / (10000 / 255)).astype(np.uint8)
    assert np.array_equal(read_image(path, None, 5, levels=10000), clipped)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, np.int16, np.int32])
def test_values_beyond_levels_follow_image_range(tmp_path, dtype, layout):
    values = (random_levels(5, np.float64) * 3000 - 500).astype(dtype)
    if np.dtype(dtype).kind == "f":
        values[0, 0] = [np.nan, np.inf, -np.inf, -9999, 2000]
    path = write_tiff(tmp_path / "a.tif", values, layout)
    image = read_image(path, None, 5, FULL_RANGE, (0, 2000))
    shares = np.nan_to_num(values.astype(np.float64), nan=0) / 2000
    assert np.abs(image - 255 * np.clip(shares, 0, 1)).max() <= 0.5
    if np.dtype(dtype).kind == "f":
        assert image[0, 0].tolist() == [0, 255, 0, 0, 255]


@pytest.mark.parametrize("channels", [1, 3])
def test_floating_point_gray_and_color_follow_image_range(tmp_path, channels):
    values = random_levels(channels, np.float32)
    stored = values[..., 0] if channels == 1 else values
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="rgb" if channels == 3 else None)
    expected = np.round(255 * values.astype(np.float64)).astype(np.uint8)
    image = read_image(tmp_path / "a.tif", None, channels, FULL_RANGE, (0.0, 1.0))
    assert np.array_equal(image, expected)
    pixels = Pixels(channels, value_range=(0.0, 1.0))
    shown = np.broadcast_to(expected, (*SIZE, 3))
    assert np.array_equal(read_rgb(tmp_path / "a.tif", None, pixels), shown)


def test_range_that_is_missing_is_proposed(tmp_path):
    values = np.linspace(-2, 870.5, 40 * 60 * 5).astype(np.float32).reshape(40, 60, 5)
    values[3, 4, 1] = np.nan
    path = write_tiff(tmp_path / "dem.tif", values)
    expected = r"dem.tif: cannot be read \(floating-point levels; .*, -2 to 870.5, are black and "
    with pytest.raises(UserError, match=expected + "white: --image-range -2 870.5") as error:
        read_image(path, None, 5)
    words = str(error.value).rpartition("--image-range ")[2].rstrip(")").split()
    assert read_image(path, None, 5, FULL_RANGE, tuple(map(float, words))).max() == 255
    write_tiff(path, np.full((4, 4, 5), np.nan, np.float32))
    with pytest.raises(UserError, match="none of them is a number"):
        read_image(path, None, 5)
    tifffile.imwrite(path, np.full((4, 4), -3, np.int16))
    with pytest.raises(UserError, match="--image-range -3 "):
        read_image(path)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_bands_are_turned_as_gray_pictures_are(tmp_path, orientation):
    levels = random_levels(5)
    tags = [(274, "H", 1, orientation, True)]
    path = write_tiff(tmp_path / "a.tif", levels, extratags=tags)
    expected = []
    for channel in range(5):
        single = tmp_path / "single.png"
        exif = Image.Exif()
        exif[274] = orientation
        Image.fromarray(levels[..., channel]).save(single, exif=exif)
        expected.append(read_image(single, (30, 50), 1))
    assert np.array_equal(read_image(path, (30, 50), 5), np.dstack(expected))
    assert picture_size(path) == (SIZE if orientation < 5 else SIZE[::-1])


def test_smaller_copies_in_a_tiff_are_passed_over(tmp_path):
    levels = random_levels(5)
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        writer.write(levels, **INTERLEAVED)
        writer.write(np.ascontiguousarray(levels[::2, ::2]), subfiletype=1, **INTERLEAVED)
    assert np.array_equal(read_image(tmp_path / "a.tif", None, 5), levels)


@needs_codecs
@pytest.mark.parametrize("compression", ["lzw", "deflate", "packbits"])
def test_compressed_bands_are_read(tmp_path, compression):
    levels = random_levels(5, np.uint16)
    options = {"compression": compression, "tile": (16, 16)}
    path = write_tiff(tmp_path / "a.tif", levels, **options)
    assert np.array_equal(read_image(path, None, 5, 65535), np.round(levels / 257))


@pytest.mark.parametrize(
    "mode, channels, ending",
    [
        ("RGBA", 4, ".png"),
        ("RGBA", 4, ".webp"),
        ("RGBA", 4, ".tif"),
        ("LA", 2, ".png"),
        ("LA", 2, ".tif"),
    ],
)
def test_alpha_is_a_channel_as_it_is_stored(tmp_path, mode, channels, ending):
    levels = random_levels(channels)  # alpha of 0 over colors included
    options = {"lossless": True, "exact": True} if ending == ".webp" else {}
    path = tmp_path / f"a{ending}"
    Image.fromarray(levels, mode).save(path, **options)
    assert np.array_equal(read_image(path, None, channels), levels)
    assert np.array_equal(read_image(path, HALF, channels), scaled(levels, HALF))
    usual = np.asarray(Image.open(path).convert("RGB"))
    assert np.array_equal(read_image(path), usual), "IN_CHANNELS 3 drops alpha as ever"


def test_alpha_of_16_bits_follows_image_levels(tmp_path):
    deep = random_levels(4, np.uint16) % 4096
    cv2.imwrite(str(tmp_path / "a.png"), deep[..., [2, 1, 0, 3]])
    expected = np.round(deep / (4095 / 255))
    assert np.array_equal(read_image(tmp_path / "a.png", None, 4, 4095), expected)
    assert "add --image-levels 4095" in judge_levels([tmp_path / "a.png"])
    path = write_tiff(tmp_path / "b.tif", np.dstack([deep, deep[..., :1]]))
    assert "b.tif is the brightest, reach only level 4,095" in judge_levels([path])


@given(
    levels=arrays.arrays(
        np.uint8,
        strategies.tuples(*[strategies.integers(1, 12)] * 2).map(lambda sides: (*sides, 3)),
    ),
    height=strategies.integers(1, 15),
    width=strategies.integers(1, 15),
    planar=strategies.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_three_bands_are_the_same_by_both_ways(tmp_path_factory, levels, height, width, planar):
    path = tmp_path_factory.mktemp("bands") / "a.tif"
    kind = {"photometric": "rgb", "planarconfig": "separate" if planar else "contig"}
    tifffile.imwrite(path, np.moveaxis(levels, -1, 0).copy() if planar else levels, **kind)
    stored, orientation = multichannel.read_levels(path, [3], FULL_RANGE, ())
    assert orientation == 1
    assert np.array_equal(stored, read_image(path))
    by_channel = [scale_image(plane, (height, width), 1) for plane in np.moveaxis(stored, -1, 0)]
    assert np.array_equal(np.dstack(by_channel), read_image(path, (height, width)))


def test_library_is_imported_for_many_channels_only(tmp_path):
    levels = random_levels(4)
    Image.fromarray(levels[..., :3]).save(tmp_path / "color.tif")
    Image.fromarray(levels[..., :3]).save(tmp_path / "color.png")
    Image.fromarray(levels, "RGBA").save(tmp_path / "alpha.png")
    code = (
        "import sys; sys.modules['tifffile'] = None; from carvana.images import *;"
        "[read_image(name) for name in ('color.tif', 'color.png', 'alpha.png')];"
        "read_image('alpha.png', None, 4); print(picture_size('color.tif'));"
        "read_image('color.tif', None, 5)"
    )
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); {code}"]
    finished = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert finished.stdout == f"{SIZE}\n"
    assert "color.tif: cannot be read (a TIFF for which Python needs a package: pip install " in (
        finished.stderr
    )


# ---------------------------------------------------------------- what is refused


def write_png(path, mode):
    Image.new(mode, SIZE[::-1]).save(path)


def write_rows(path):
    tifffile.imwrite(path, random_levels(5), photometric="minisblack")


def write_volume(path):
    tifffile.imwrite(path, np.zeros((16, 40, 60), np.uint8), volumetric=True, tile=(16, 16, 16))


WRONG_FILES = {
    "five bands for color": (
        lambda path: write_tiff(path, random_levels(5)),
        3,
        r"has 5 channels, IN_CHANNELS is 3; set --in-channels 5",
    ),
    "five bands, the first three RGB, for color": (
        lambda path: tifffile.imwrite(path, random_levels(5), photometric="rgb"),
        3,
        r"has 5 channels, IN_CHANNELS is 3; set --in-channels 5",
    ),
    "five bands for gray": (
        lambda path: write_tiff(path, random_levels(5), "planar"),
        1,
        r"has 5 channels, IN_CHANNELS is 1; set --in-channels 5",
    ),
    "pages for color": (
        lambda path: write_tiff(path, random_levels(5), "pages"),
        3,
        r"5 pictures in one file; .* set --in-channels 5",
    ),
    "four bands for five": (
        lambda path: write_tiff(path, random_levels(4)),
        5,
        r"has 4 channels, IN_CHANNELS is 5; set --in-channels 4 \(a model .* keeps its 5\)$",
    ),
    "one band for two": (
        lambda path: tifffile.imwrite(path, random_levels(1)[..., 0]),
        2,
        r"has 1 channel, IN_CHANNELS is 2; set --in-channels 1",
    ),
    "four bands of floating point for color": (
        lambda path: write_tiff(path, random_levels(4, np.float32)),
        3,
        r"has 4 channels, IN_CHANNELS is 3; set --in-channels 4",
    ),
    "color for four": (
        lambda path: write_png(path, "RGB"),
        4,
        r"has 3 channels, IN_CHANNELS is 4; set --in-channels 3",
    ),
    "palette for four": (
        lambda path: write_png(path, "P"),
        4,
        r"its pixels are of the kind P; for IN_CHANNELS 4 save it as gray with alpha, RGBA",
    ),
    "rows for pages": (write_rows, 5, r"planarconfig='contig'"),
    "129 pages": (
        lambda path: tifffile.imwrite(path, np.zeros((129, 4, 4), np.uint8), **PAGES),
        5,
        r"more than 128 channels",
    ),
    "volume": (write_volume, 16, r"a volume, or nothing at all"),
    "complex numbers": (
        lambda path: write_tiff(path, random_levels(5, np.float32).astype(np.complex64)),
        5,
        r"values of type complex64; save it with 8 or 16 bits",
    ),
}


@pytest.mark.parametrize("case", WRONG_FILES)
def test_other_channels_are_refused_in_words(tmp_path, case):
    write, channels, message = WRONG_FILES[case]
    path = tmp_path / ("a.png" if "color for" in case or "palette" in case else "a.tif")
    write(path)
    for read in (read_image, lambda path, _, channels: check_photograph(path, Pixels(channels))):
        with pytest.raises(UserError, match=re.escape(path.name) + ": .*" + message) as error:
            read(path, None, channels)
        assert "\n" not in str(error.value)


def patched(path, tag, value):
    """Give a tag of a TIFF another value."""
    with tifffile.TiffFile(path, mode="r+") as tiff:
        tiff.pages[0].tags[tag].overwrite(value)
    return path


def test_hostile_sizes_are_refused_before_anything_is_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr(tifffile.TiffPage, "asarray", lambda *_, **__: pytest.fail("decoded"))
    zeros = np.zeros((*SIZE, 5), np.uint8)
    path = patched(write_tiff(tmp_path / "a.tif", zeros), "ImageWidth", 30_000_000)
    with pytest.raises(UserError, match="1,200 megapixels; over 179, .*--max-megapixels 1200"):
        read_image(path, None, 5)
    path = patched(write_tiff(tmp_path / "b.tif", zeros), "ImageLength", 4000)
    with pytest.raises(UserError, match="not all of its 100 strips or tiles are there"):
        read_image(path, None, 5)
    patched(path, "RowsPerStrip", 4000)
    with pytest.raises(UserError, match="it ends too early"):
        read_image(path, None, 5)
    options = {"compression": "deflate", "rowsperstrip": 40}
    path = write_tiff(tmp_path / "c.tif", np.zeros((*SIZE, 13), np.float64), **options)
    patched(patched(path, "ImageLength", 13000), "ImageWidth", 13000)
    patched(path, "RowsPerStrip", 13000)
    with pytest.raises(UserError, match="4,394 megapixels; over 179, a file may be made to fill"):
        read_image(path, None, 13, FULL_RANGE, (0, 1))
    options = {"compression": "deflate", "tile": (16, 16)}
    path = write_tiff(tmp_path / "d.tif", random_levels(5, size=(16, 16)), **options)
    patched(patched(path, "TileWidth", 65520), "TileLength", 65520)
    with pytest.raises(UserError, match="megapixels; over 179, a file may be made to fill"):
        read_image(path, None, 5)


def test_size_limit_of_bands_is_that_of_pictures(tmp_path):
    path = write_tiff(tmp_path / "a.tif", np.zeros((1200, 1000, 5), np.uint8))
    try:
        set_max_megapixels(1)
        with pytest.raises(UserError, match="2 megapixels; over 1, .* add --max-megapixels 2"):
            read_image(path, None, 5)
        set_max_megapixels(2)
        assert read_image(path, (4, 4), 5).shape == (4, 4, 5)
    finally:
        set_max_megapixels(MAX_MEGAPIXELS)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_damaged_bands_end_as_messages(tmp_path, layout):
    whole = write_tiff(tmp_path / "whole.tif", random_levels(5), layout).read_bytes()
    path = tmp_path / "damaged.tif"
    rng = np.random.default_rng(0)
    refused = 0
    for number in range(120):
        damaged = bytearray(whole)
        if number % 2:
            del damaged[rng.integers(4, len(whole)) :]
        else:
            for place in rng.integers(4, 400, 3):
                damaged[place] = rng.integers(256)
        path.write_bytes(damaged)
        for pixels in (PIXELS, Pixels(5, FULL_RANGE, (0, 1))):
            try:
                read_image(path, HALF, *pixels)
            except UserError as error:
                refused += 1
                assert str(path) in str(error) and "\n" not in str(error)
    assert refused > 120


def test_compression_without_its_package_is_answered(tmp_path, monkeypatch):
    path = write_tiff(tmp_path / "a.tif", random_levels(5))
    patched(path, "Compression", 5)
    message = "<COMPRESSION.LZW: 5> requires the 'imagecodecs' package"

    def refuse(*_, **__):
        raise ValueError(message)

    monkeypatch.setattr(tifffile.TiffPage, "asarray", refuse)
    with pytest.raises(UserError, match="needs a package: pip install imagecodecs"):
        read_image(path, None, 5)


def test_mask_of_several_pages_is_refused_as_ever(tmp_path):
    path = write_tiff(tmp_path / "a.tif", random_levels(5), "pages")
    with pytest.raises(UserError, match="5 pictures in one file; save the one that counts"):
        read_mask(path)


# ---------------------------------------------------------------- constants


@pytest.mark.parametrize(
    "options, message",
    [
        ("--in-channels 0", "--in-channels: expected 1..128 channels, found 0"),
        ("--in-channels 5 --mean 0.1 0.2 0.3", "one for each of 5 channels, found 3"),
        ("--image-range 1", "--image-range: expected two values, the smaller one first, found 1.0"),
        ("--image-range 2 1", "--image-range: expected two values, the smaller one first"),
        ("--image-range nan 1", "--image-range: expected"),
        (
            "--in-channels 5 --backgrounds-dir photos",
            "--backgrounds-dir: expected none with IN_CHANNELS 5",
        ),
    ],
)
def test_constants_that_do_not_fit_channels_are_answered(run, options, message):
    assert message in run("train.py", *options.split(), status=2).stderr


@pytest.mark.parametrize("channels", [2, 4, 5, 13, 128])
def test_augmentation_takes_any_number_of_channels(channels):
    constants = tiny_settings(IN_CHANNELS=channels, **AUGMENTATION)
    transform = train_transform(Augmentation.from_constants(constants))
    levels = random_levels(channels, size=(32, 48))
    mask = np.zeros((32, 48), np.float32)
    images = []
    transform = pickle.loads(pickle.dumps(transform))  # as it goes to workers
    for seed in range(40):
        transform.set_random_seed(seed)
        item = transform(image=levels, mask=mask)
        assert item["image"].shape == (channels, 32, 48)
        assert item["image"].dtype == torch.uint8
        images.append(item["image"].numpy().tobytes())
    assert len(set(images)) == 40


def test_channels_jitter_together_around_their_own_means():
    augmentation = Augmentation(
        rotate=0, horizontal_flip=0, vertical_flip=0, color_jitter=0.5, channels=5
    )
    levels = random_levels(5) // 4 + 60
    transform = train_transform(augmentation)
    gray = train_transform(
        Augmentation(rotate=0, horizontal_flip=0, vertical_flip=0, color_jitter=0.5, channels=1)
    )
    mask = np.zeros(SIZE, np.float32)
    for seed in range(5):
        transform.set_random_seed(seed)
        image = transform(image=levels, mask=mask)["image"].numpy()
        for channel in range(5):
            gray.set_random_seed(seed)
            alone = gray(image=np.ascontiguousarray(levels[..., [channel]]), mask=mask)["image"]
            assert np.array_equal(image[channel], alone[0].numpy())


# ---------------------------------------------------------------- end to end


def test_every_script_takes_five_channels(bands, run):
    constants = {"IN_CHANNELS": 5, "IMAGE_RANGE": [0.0, 1.0], "UNSHUFFLE": 2}
    data = ("--in-channels", 5, "--image-range", 0, 1)
    assert "train" in run("prepare_data.py", "--check", *data).stdout
    run("explore.py", *data, "--noise")
    statistics = {"MEAN": [0.5, 0.4, 0.4, 0.6, 0.7], "STD": [0.2]}
    options = tiny_options(NUM_EPOCHS=1, **constants, **statistics, **AUGMENTATION)
    run("train.py", *options)
    assert picture_width_height(bands / "saved_images/batch.png")[0] > 100
    state = read_checkpoint(bands / BEST)
    assert state["config"]["IN_CHANNELS"] == 5 and state["config"]["IMAGE_RANGE"] == [0, 1]
    run("train.py", *tiny_options(NUM_EPOCHS=2, LOAD_MODEL=True, **constants, **statistics))
    run("evaluate.py", *OWN_MODEL)
    everything = ("--cutout", "--background", "white", "--shadow", "--gallery", "--tta")
    run("inference.py", "--img", "data/val_images", *everything, *OWN_MODEL)
    photograph = five_bands(50)[0]
    overlay = np.asarray(Image.open(bands / "outputs/50_overlay.jpg"))
    cutout = np.asarray(Image.open(bands / "outputs/50_cutout.png"))
    assert overlay.shape == (48, 72, 3) and cutout.shape == (48, 72, 4)
    mask = np.asarray(Image.open(bands / "outputs/50_mask.png"))
    kept = cv2.dilate(mask, np.ones((9, 9), np.uint8)) == 0
    colors = np.round(255 * photograph[..., :3])
    assert not kept.any() or np.abs(overlay[kept] - colors[kept]).mean() < 12
    constants["IMAGE_RANGE"] = [0.0, 2.0]
    other = tiny_options(LOAD_MODEL=True, **constants, **statistics)
    message = run("train.py", *other, status=2).stderr
    assert "was trained with other IMAGE_RANGE; to continue with it, add --image-range 0.0 1.0" in (
        message
    )


def test_preparing_says_what_to_train_with(tmp_path, run):
    write_band_pairs(tmp_path / "bands", tmp_path / "labels", range(4))
    folders = ("--images", "bands", "--masks", "labels")
    finished = run("prepare_data.py", *folders, "--in-channels", 5, "--image-range", 0, 1)
    assert "IN_CHANNELS = 5" in finished.stdout
    assert "--in-channels 5 --image-range 0.0 1.0" in finished.stdout


def test_sides_that_are_exchanged_are_listed_with_the_rest(tmp_path, run):
    write_band_pairs(tmp_path / "bands", tmp_path / "labels", range(4))
    for number in (0, 1):
        path = tmp_path / f"labels/{number}.png"
        Image.open(path).transpose(Image.Transpose.ROTATE_90).save(path)
    folders = ("--images", "bands", "--masks", "labels")
    options = ("--in-channels", 5, "--image-range", 0, 1)
    stderr = run("prepare_data.py", *folders, *options, status=2).stderr
    for number in (0, 1):
        assert f"{number}.tif: 72x48 pixels, its mask {number}.png 48x72" in stderr


def test_files_of_other_channels_are_named(bands, run):
    path = bands / "data/train_images/3.tif"
    write_tiff(path, random_levels(4, size=(48, 72)))
    data = ("--in-channels", 5, "--image-range", 0, 1)
    expected = "3.tif: has 4 channels, IN_CHANNELS is 5; set --in-channels 4"
    assert expected in run("prepare_data.py", "--check", *data, status=2).stderr
    constants = {"IN_CHANNELS": 5, "IMAGE_RANGE": [0.0, 1.0]}
    assert expected in run("train.py", *tiny_options(**constants), status=2).stderr
    assert expected in run("explore.py", *data, status=2).stderr
    stderr = run("prepare_data.py", "--check", status=2).stderr
    assert "0.tif: has 5 channels, IN_CHANNELS is 3; set --in-channels 5" in stderr
    write_model(bands / BEST)
    stderr = run("inference.py", "--img", "data/val_images/51.tif", *OWN_MODEL, status=1).stderr
    assert re.search("51.tif: .*set --in-channels 5", stderr)


@pytest.mark.parametrize("mode, order", [("RGBA", [0, 1, 2, 4]), ("LA", [1, 4])])
def test_depth_in_the_alpha_of_a_png_is_trained_on(tmp_path, run, mode, order):
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
    for number in range(6):
        levels, mask = five_bands(number)
        stored = np.round(255 * levels[..., order]).astype(np.uint8)
        Image.fromarray(stored, mode).save(tmp_path / f"images/{number}.png")
        Image.fromarray(mask * np.uint8(255)).save(tmp_path / f"masks/{number}.png")
    data = ("--images", "images", "--masks", "masks", "--in-channels", len(order))
    run("prepare_data.py", *data, "--val-fraction", 0.3)
    run("explore.py", "--in-channels", len(order))
    run("train.py", *tiny_options(NUM_EPOCHS=1, IN_CHANNELS=len(order), **AUGMENTATION))
    run("evaluate.py", *OWN_MODEL)
    run("inference.py", "--img", "images", *OWN_MODEL, "--cutout")
    assert len(list((tmp_path / "outputs").iterdir())) == 18


def test_python_users_predict_and_cut_out_with_five_channels(tmp_path):
    write_model(tmp_path / BEST, channels=5)
    model = utils.load_model(tmp_path / BEST, "cpu")
    levels = np.round(255 * five_bands(1)[0]).astype(np.uint8)
    (probability,) = utils.predict(model, [levels])
    assert probability.shape == (48, 72)
    assert utils.cutout(model, levels).shape == (48, 72, 4)
    with pytest.raises(UserError, match=r"a picture of 5 channels, \(H, W, 5\), found \(48, 72, 3"):
        utils.predict(model, [levels[..., :3]])


def test_page_takes_models_of_five_channels(tmp_path):
    write_model(tmp_path / BEST, channels=5)
    write_band_pairs(tmp_path / "photos", tmp_path / "masks", range(2), np.uint8)
    (tmp_path / "results").mkdir()
    model = utils.load_model(tmp_path / BEST, "cpu")
    files = sorted((tmp_path / "photos").iterdir())
    Image.new("RGB", (72, 48)).save(tmp_path / "color.png")
    paths = [*files, tmp_path / "color.png"]
    results, failures = mask_uploads(paths, Choices(), model, tmp_path / "results")
    assert [result.file.name for result in results] == ["0_cutout.png", "1_cutout.png"]
    assert len(failures) == 1
    assert failures[0].startswith("color.png: has 3 channels, IN_CHANNELS is 5")


# ---------------------------------------------------------------- exports


def test_export_of_many_channels_needs_their_photographs(tmp_path, run):
    write_model(tmp_path / BEST, channels=5)
    stderr = run("export.py", *OWN_MODEL, "--formats", "weights", status=2).stderr
    assert "a model of 5 channels needs photographs of them" in stderr


@needs_onnx
@pytest.mark.parametrize("layout", LAYOUTS)
def test_exports_of_five_channels_predict_the_same(bands, exported, layout):
    model = utils.load_model(exported / BEST, "cpu")
    values, _ = five_bands(7)
    path = write_tiff(bands / "car.tif", values, layout)
    script = str(exported / "exports/predict.py")
    code = (
        "import runpy, sys; sys.modules['torch'] = None; "
        f"sys.argv = ['predict.py', {str(path)!r}]; runpy.run_path({script!r})"
    )
    command = [sys.executable, "-c", code]
    finished = subprocess.run(command, cwd=bands, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    image = read_image(path, None, 5, FULL_RANGE, (0.0, 1.0))
    (probability,) = utils.predict(model, [image])
    mask = np.asarray(Image.open(bands / "car_mask.png")) > 0
    assert (mask != (probability > 0.5)).mean() < 0.01
    assert 0.01 < mask.mean() < 0.99
    write_tiff(path, random_levels(4, np.uint8))
    finished = subprocess.run(command, cwd=bands, capture_output=True, text=True)
    assert finished.returncode == 1
    assert "car.tif: 4 channels, expected 5" in finished.stderr


@needs_onnx
def test_exports_of_five_channels_load_again(exported):
    images = torch.rand(2, 5, 32, 48, generator=torch.Generator().manual_seed(0))
    expected = utils.load_model(exported / BEST, "cpu")(images)
    files = [path for path in (exported / "exports").iterdir() if path.suffix in MODEL_FILES]
    assert len(files) >= 5
    for path in files:
        logits = utils.load_model(path, "cpu")(images)
        allowed = 0.05 if "fp16" in path.name else 1e-3
        if "int8" not in path.name:
            assert (logits - expected).abs().max() < allowed, path.name


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A folder with a model of five channels, its photographs, and its exports."""
    folder = tmp_path_factory.mktemp("exported")
    write_band_pairs(folder / "data/train_images", folder / "data/train_masks", range(8))
    write_band_pairs(folder / "data/val_images", folder / "data/val_masks", range(50, 54))
    write_model(folder / BEST, channels=5, UNSHUFFLE=2, IMAGE_RANGE=[0.0, 1.0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporting, "TURNS", 1)  # of measuring latency, which takes seconds
        run_script(folder, "export.py", *OWN_MODEL)
    return folder


# ---------------------------------------------------------------- the document


@needs_onnx
def test_document_on_channels_is_right(tmp_path, monkeypatch):
    """docs/your-data.md, the section on channels, its commands as printed."""
    text = (ROOT / "docs/your-data.md").read_text(encoding="utf-8")
    section = re.search("## More than three channels\n(.*?)\n## ", text, re.DOTALL)[1]
    write_band_pairs(tmp_path / "bands", tmp_path / "labels", range(8))
    monkeypatch.setattr(exporting, "TURNS", 1)  # of measuring latency, which takes seconds
    commands = re.findall(r"^python (\S+) (.*)$", section, re.MULTILINE)
    scripts = "prepare_data.py train.py evaluate.py inference.py export.py"
    assert [script for script, _ in commands] == scripts.split()
    for script, options in commands:
        run_script(tmp_path, script, *shlex.split(options))
    assert (tmp_path / "exports/unet_model_onnx.onnx").exists()
    assert (tmp_path / "outputs/index.html").exists()
