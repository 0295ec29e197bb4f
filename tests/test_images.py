import os
import threading
import warnings

import numpy as np
import pytest
from conftest import scene, write_mask
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import draw
import pictures
from dataset import CarvanaDataset
from pictures import UserError, find_pairs, pair_names, read_image, read_mask, split_groups


def ramp(height=40, width=60):
    """A smooth colour picture: what survives JPEG nearly unchanged."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([40 + 2 * x, 200 - 3 * y, 90 + x + y], axis=2).astype(np.uint8)


# ---------------------------------------------------------------- images


@pytest.mark.parametrize("suffix", [".jpg", ".JPEG", ".png", ".bmp", ".webp", ".tif", ".TIFF"])
def test_colour_in_every_format(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    Image.fromarray(ramp()).save(path, quality=98)
    tolerance = 0 if suffix.lower() in (".png", ".bmp", ".tif", ".tiff") else 8
    assert np.abs(read_image(path).astype(int) - ramp()).max() <= tolerance
    assert read_image(path).dtype == np.uint8


def test_grey_palette_alpha_and_16_bit(tmp_path):
    grey = ramp()[..., 0]
    stored = {
        "grey.png": Image.fromarray(grey),
        "palette.png": Image.fromarray(np.repeat(grey[..., None], 3, 2)).quantize(
            256, dither=Image.Dither.NONE
        ),
        "alpha.png": Image.fromarray(np.dstack([grey, grey, grey, np.full_like(grey, 7)])),
        "grey alpha.png": Image.fromarray(np.dstack([grey, np.full_like(grey, 7)])),
        "sixteen.png": Image.fromarray(grey.astype(np.uint16) * 257),
        "sixteen.tif": Image.fromarray(grey.astype(np.uint16) * 257),
    }
    for name, image in stored.items():
        image.save(tmp_path / name)
        read = read_image(tmp_path / name)
        assert read.shape == (40, 60, 3), name
        assert np.abs(read.astype(int) - grey[..., None]).max() <= 1, name
        assert np.array_equal(read_image(tmp_path / name, channels=1)[..., 0], read[..., 0]), name


def test_16_bit_colour_is_scaled_not_clipped(tmp_path):
    import cv2

    cv2.imwrite(str(tmp_path / "a.png"), ramp()[..., ::-1].astype(np.uint16) * 257)
    assert np.array_equal(read_image(tmp_path / "a.png"), ramp())


def test_cmyk_jpeg(tmp_path):
    Image.fromarray(ramp()).convert("CMYK").save(tmp_path / "a.jpg", quality=98)
    assert np.abs(read_image(tmp_path / "a.jpg").astype(int) - ramp()).mean() < 3
    assert read_image(tmp_path / "a.jpg", (10, 15)).shape == (10, 15, 3)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [None, (40, 60)])
def test_exif_orientation(tmp_path, orientation, size, suffix):
    upright = Image.fromarray(ramp()).resize((480, 320), Image.Resampling.BICUBIC)
    inverse = {6: 8, 8: 6}.get(orientation, orientation)
    stored = upright.transpose(pictures.UPRIGHT[inverse]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / f"turned.{suffix}", quality=98, exif=exif)
    upright.save(tmp_path / f"upright.{suffix}", quality=98)
    assert pictures.picture_size(tmp_path / f"turned.{suffix}") == (320, 480)
    write_mask(tmp_path / "mask.gif", np.eye(320, 480) > 0)
    assert pictures.check_pair(tmp_path / f"turned.{suffix}", tmp_path / "mask.gif") == ([], [])
    read, expected = (
        read_image(tmp_path / f"{name}.{suffix}", size) for name in ("turned", "upright")
    )
    assert read.shape == (*(size or (320, 480)), 3)
    assert np.abs(read.astype(int) - expected).max() <= 6


@pytest.mark.parametrize("size", [(160, 240), (100, 90), (320, 480), (700, 990)])
def test_reduced_decoding_loses_nothing(tmp_path, size):
    """Against the average over the fully decoded picture: no shift, next to no difference."""
    image = np.clip(scene(3, 640, 959)[0].astype(int), 0, 255).astype(np.uint8)
    Image.fromarray(image).save(tmp_path / "a.jpg", quality=95)
    with Image.open(tmp_path / "a.jpg") as full:
        filtering = Image.Resampling.HAMMING if size[0] < 640 else Image.Resampling.BILINEAR
        expected = np.asarray(full.convert("RGB").resize(size[::-1], filtering)).astype(int)
    difference = np.abs(read_image(tmp_path / "a.jpg", size).astype(int) - expected)
    assert difference.mean() < 1.5


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40), st.integers(1, 40))
def test_any_size_to_any_size(tmp_path_factory, height, width, new_height, new_width):
    path = tmp_path_factory.getbasetemp() / "any.png"
    write_mask(path.with_suffix(".gif"), np.ones((height, width), bool))
    for suffix in (".png", ".jpg"):
        Image.fromarray(ramp(height, width)).save(path.with_suffix(suffix))
        assert read_image(path.with_suffix(suffix), (new_height, new_width)).shape == (
            new_height,
            new_width,
            3,
        )
    assert (read_mask(path.with_suffix(".gif"), (new_height, new_width)) == 255).all()


# ---------------------------------------------------------------- masks


def mask_files(folder, mask):
    """The same mask in every way that is in use -> paths."""
    half, full = mask.astype(np.uint8), mask.astype(np.uint8) * 255
    write_mask(folder / "palette.gif", mask)
    for name, array in {
        "0 255.png": full,
        "0 1.png": half,
        "colour.png": np.dstack([full] * 3),
        "ones.gif": half,
        "alpha.png": np.dstack([full] * 3 + [np.full_like(full, 255)]),
        "sixteen.png": mask * np.uint16(65535),
        "sixteen ones.png": mask * np.uint16(1),
        "faint.png": mask * np.uint8(100) + 100,
    }.items():
        Image.fromarray(array).save(folder / name)
    Image.fromarray(full).convert("1").save(folder / "bits.png")
    dark = Image.fromarray(mask.astype(np.uint8), "L").convert("P")
    dark.putpalette([0, 0, 0, 128, 0, 0])
    dark.save(folder / "dark red.png")
    return sorted(folder.iterdir())


def test_masks_of_every_format_are_alike(tmp_path):
    mask = scene(1)[1]
    paths = mask_files(tmp_path, mask)
    assert len(paths) == 11
    for path in paths:
        assert np.array_equal(read_mask(path), mask * np.uint8(255)), path.name


def test_empty_and_full_masks(tmp_path):
    for value, expected in ((0, 0), (255, 255), (1, 255)):
        Image.fromarray(np.full((8, 9), value, np.uint8)).save(tmp_path / "a.png")
        assert (read_mask(tmp_path / "a.png") == expected).all()


def test_area_keeps_the_outline_where_nearest_moves_it(tmp_path):
    mask = scene(5, 1280, 1918)[1]
    write_mask(tmp_path / "a.gif", mask)
    area, nearest = (
        read_mask(tmp_path / "a.gif", (160, 240), how) / 255 for how in ("area", "nearest")
    )
    assert area.mean() == pytest.approx(mask.mean(), abs=1e-4)
    assert set(np.unique(nearest)) == {0, 1} and len(np.unique(area)) > 50
    centre = [np.average(np.arange(240), weights=one.sum(0)) for one in (area, nearest)]
    true = (np.average(np.arange(1918), weights=mask.sum(0)) + 0.5) * 240 / 1918 - 0.5
    assert abs(centre[0] - true) < 0.01 < 0.3 < abs(centre[1] - true)


@pytest.mark.parametrize("size", [(160, 240), (320, 480), (200, 200)])
def test_image_and_mask_stay_on_top_of_each_other(tmp_path, size):
    """A picture of the mask itself, read as an image and as a mask: the same centre to a hundredth of a pixel."""
    mask = scene(5, 1280, 1918)[1]
    write_mask(tmp_path / "a.gif", mask)
    Image.fromarray(mask * np.uint8(255)).convert("RGB").save(tmp_path / "a.jpg", quality=95)
    image, mask = (
        read_image(tmp_path / "a.jpg", size)[..., 0] / 255,
        read_mask(tmp_path / "a.gif", size) / 255,
    )
    for axis in (0, 1):
        centres = [
            np.average(np.arange(size[1 - axis]), weights=np.maximum(one, 0.1).sum(axis))
            for one in (image, mask)
        ]
        assert abs(centres[0] - centres[1]) < 0.02
    assert np.abs(image - mask).mean() < 0.005


# ---------------------------------------------------------------- pairing and splitting


def test_pairs_by_every_convention(tmp_path):
    images, masks = tmp_path / "images", tmp_path / "masks"
    (images / "folder").mkdir(parents=True)
    masks.mkdir()
    for name in ("a.jpg", "b.JPG", "c.png", "d.tiff", ".hidden.jpg", "e_mask.png"):
        Image.fromarray(ramp()).save(images / name)
    for name in ("a_mask.gif", "b_mask.png", "c.png", "d.GIF", "._a_mask.gif", "e_mask.gif"):
        Image.fromarray(ramp()[..., 0]).save(masks / name)
    found = [(image.name, mask.name) for image, mask in find_pairs(images, masks)]
    assert found == [
        ("a.jpg", "a_mask.gif"),
        ("b.JPG", "b_mask.png"),
        ("c.png", "c.png"),
        ("d.tiff", "d.GIF"),
        ("e_mask.png", "e_mask.gif"),
    ]


def test_everything_wrong_is_named_at_once(tmp_path):
    images, masks = tmp_path / "images", tmp_path / "masks"
    images.mkdir(), masks.mkdir()
    for name in (
        "alone.jpg",
        "twice.jpg",
        "twice.png",
        "small.jpg",
        "good.jpg",
        "both.jpg",
        "text.jpg",
    ):
        Image.fromarray(ramp()).save(images / name)
    (images / "text.jpg").write_text("no picture")
    (images / "notes.txt").write_text("x")
    for name in (
        "widow.gif",
        "twice.gif",
        "small.gif",
        "good.gif",
        "both.gif",
        "both_mask.png",
        "text.gif",
    ):
        write_mask(masks / name, np.ones((20, 60) if name == "small.gif" else (40, 60), bool))
    with pytest.raises(UserError) as error:
        find_pairs(images, masks)
    message = str(error.value)
    for words in (
        "alone.jpg: image without",
        "widow.gif: mask without",
        "twice: more than one image",
        "both: more than one mask",
        "small.jpg: 60x40 pixels, its mask small.gif 60x20",
        "text.jpg: cannot be read",
        "notes.txt: not an image",
        "7 problems",
    ):
        assert words in message, words
    assert "good" not in message


@pytest.mark.parametrize(
    "content", [b"", b"not a picture", b"\xff\xd8\xff\xe0" + b"\0" * 50, "truncated"]
)
def test_unreadable_files_are_named(tmp_path, content):
    path = tmp_path / "bad.jpg"
    Image.fromarray(ramp(200, 300)).save(path)
    path.write_bytes(path.read_bytes()[:2000] if content == "truncated" else content)
    with warnings.catch_warnings(), pytest.raises(UserError, match="bad.jpg"):
        read_image(path, (20, 30))


@given(
    st.sets(st.text("0123456789abcdef", min_size=4, max_size=4), min_size=2, max_size=40),
    st.integers(0, 99),
    st.randoms(),
)
def test_split_is_a_partition_that_ignores_order(groups, seed, random):
    shuffled = list(groups) * 2
    random.shuffle(shuffled)
    val, test, train = split_groups(shuffled, (0.1, 0.2), seed)
    assert val | test | train == groups and len(val) + len(test) + len(train) == len(groups)
    assert (val, test, train) == tuple(split_groups(sorted(groups), (0.1, 0.2), seed))
    assert val == split_groups(groups, (0.1, 0), seed)[0] and val


def test_all_angles_of_a_car_are_one_group():
    assert (
        pictures.group_of("0cdf5b5d0ce1_01.jpg")
        == pictures.group_of("0cdf5b5d0ce1_16.jpg")
        == "0cdf5b5d0ce1"
    )
    assert [
        pictures.group_of(name, "(.*)_[0-9]+|(.*)-[0-9]+")
        for name in ("a_1.jpg", "b-1.jpg", "c.jpg")
    ] == ["a", "b", "c"]
    assert (
        pictures.group_of("0cdf5b5d0ce1_17.jpg") == "0cdf5b5d0ce1_17"
        and pictures.group_of("cat_01.jpg") == "cat_01"
    )


def test_pair_names_needs_no_files():
    assert pair_names(["b.jpg", "a.jpg"], ["a.gif", "b_mask.gif"]) == (
        [("a.jpg", "a.gif"), ("b.jpg", "b_mask.gif")],
        [],
    )


def frames_of(path):
    with Image.open(path) as image:
        return image.info["comment"].split(), [
            np.asarray([image.seek(i), image.convert("RGB")][1]) for i in range(image.n_frames)
        ]


def test_a_frame_an_epoch(data, tmp_path):
    """learning.gif: frames go on from what is there, a fresh run's begin anew, and many epochs are thinned out."""
    dataset = CarvanaDataset(data / "data/val_images", data / "data/val_masks", size=(16, 24))
    path = tmp_path / "learning.gif"

    def epoch(number, **how):
        rng = np.random.default_rng(number)
        masks = [np.packbits(rng.random((16, 24)) < 0.5) for _ in range(len(dataset))]
        draw.learning(dataset, {"masks": masks, "size": (16, 24), "dice": 0.5}, number, path, **how)

    for number in (1, 2, 3):
        epoch(number, height=40)
    numbers, frames = frames_of(path)
    assert (
        numbers == [b"1", b"2", b"3"]
        and len(frames) == 3
        and not np.array_equal(frames[0], frames[1])
    )
    epoch(3, height=40)  # resumed within epoch 3
    again = frames_of(path)
    assert again[0] == numbers and all(map(np.array_equal, again[1], frames))
    for number in range(4, 12):
        epoch(number, height=40, most=4)
    numbers, frames = frames_of(path)
    assert len(numbers) == len(frames) <= 4 and (numbers[0], numbers[-1]) == (b"1", b"11")
    truth = [np.asarray(dataset.mask(index, (16, 24)), bool) for index in range(len(dataset))]
    truth[0][0, 0] ^= True  # a single wrong pixel, in a frame that is read and written again
    for number in (12, 13):
        draw.learning(
            dataset,
            {"masks": list(map(np.packbits, truth)), "size": (16, 24), "dice": 0.5},
            number,
            path,
            height=40,
        )
    for frame in frames_of(path)[1][-2:]:
        assert set(map(tuple, frame[frame.max(2) - frame.min(2) > 30])) <= {draw.ORANGE, draw.BLUE}
        assert (frame == draw.ORANGE).all(2).any()
    path.write_bytes(b"GIF89a rubbish")
    epoch(2, height=40)
    assert frames_of(path)[0] == [b"2"]
    epoch(1, height=40)
    assert frames_of(path)[0] == [b"1"]


def test_threads_are_gone_when_their_pool_is():
    """What one that is only joined still holds would be locked for ever in a process forked then."""
    for _ in range(100):
        with pictures.thread_pool(4) as pool:
            started = set(pool.map(lambda _: threading.get_native_id(), range(8)))
        assert not [number for number in started if os.path.exists(f"/proc/self/task/{number}")]
