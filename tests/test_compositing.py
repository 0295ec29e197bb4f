"""Objects put before other photographs: what becomes of pictures, masks and runs."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import LAST, learned, run_script, split_folders, tiny_options
from PIL import Image

from carvana.classes import SINGLE, Classes
from carvana.compositing import Compositing, Compositor
from carvana.errors import UserError
from dataset import CarvanaDataset

GREEN = (20, 200, 40)
PARTS = Classes(("background", "body", "wheels"))
ALWAYS = Compositing(share=1.0, plain=0.0, bars=0.0, reflected=0.0)


@pytest.fixture
def meadow(tmp_path):
    """A folder of green photographs of two shapes."""
    folder = tmp_path / "meadow"
    folder.mkdir()
    for name, size in {"a.png": (90, 60), "b.jpg": (50, 80)}.items():
        Image.new("RGB", size, GREEN).save(folder / name, quality=98)
    (folder / "notes.txt").write_text("meadows")
    return folder


def red_disk(height=64, width=96):
    """Return a red disk on gray, and its mask of 0 and 255."""
    rows, columns = np.ogrid[:height, :width]
    inside = (rows - height / 2) ** 2 + (columns - width / 2) ** 2 < (height / 3) ** 2
    image = np.where(inside[..., None], (220, 30, 30), (128, 128, 128)).astype(np.uint8)
    return image, inside.astype(np.uint8) * 255


class Crowd:
    """A data set of one disk, in a color of its own."""

    def __init__(self, color):
        image, self.disk = red_disk()
        self.image = np.where(self.disk[..., None] > 0, color, image).astype(np.uint8)

    def __len__(self):
        return 1

    def read(self, index):
        assert index == 0
        return self.image, self.disk


BLUE_CROWD = Crowd((20, 30, 220))


def draws(compositor, image, mask, count=30, others=BLUE_CROWD):
    generators = map(np.random.default_rng, range(count))
    return [compositor(image, mask, generator, others) for generator in generators]


def test_masks_show_where_objects_are(meadow):
    """Red is where the mask is, the meadow's green where it is not, and gray nowhere."""
    compositor = Compositor(meadow, ALWAYS, SINGLE, 3)
    shares = []
    for image, mask in draws(compositor, *red_disk()):
        assert image.shape == (64, 96, 3)
        assert image.dtype == mask.dtype == np.uint8
        red = image[..., 0].astype(int) - image[..., 1]
        assert (red[mask == 255] > 0).all()
        assert (red[mask == 0] < 0).all()
        shares.append((mask > 127).mean())
    assert len(set(shares)) > 20
    assert min(shares) < 0.08
    assert max(shares) > 0.3


def test_edges_keep_nothing_of_the_old_background(meadow):
    image, mask = red_disk(256, 384)
    image = np.asarray(Image.fromarray(image).resize((96, 64), Image.Resampling.BOX))
    mask = np.asarray(Image.fromarray(mask).resize((96, 64), Image.Resampling.BOX))
    assert ((mask > 50) & (mask < 200)).sum() > 50
    for image_drawn, mask_drawn in draws(Compositor(meadow, ALWAYS, SINGLE, 3), image, mask):
        blue = image_drawn[..., 2].astype(int)
        soft = (mask_drawn > 0) & (mask_drawn < 255)
        assert blue[soft].max() < 100  # the disk has 30 and the meadow 40, more in bright light


def test_every_object_stays_in_the_frame(meadow):
    image, mask = red_disk()
    settings = replace(ALWAYS, scale=(0.05, 4.0))
    for _, drawn in draws(Compositor(meadow, settings, SINGLE, 3), image, mask, 100):
        assert (drawn > 127).any()


def test_share_and_empty_masks_leave_pictures_alone(meadow):
    image, mask = red_disk()
    half = Compositor(meadow, Compositing(share=0.5), SINGLE, 3)
    same = [drawn is image for drawn, _ in draws(half, image, mask, 100)]
    assert 30 < sum(same) < 70
    nothing = np.zeros_like(mask)
    for drawn, drawn_mask in draws(Compositor(meadow, ALWAYS, SINGLE, 3), image, nothing):
        assert drawn is image
        assert drawn_mask is nothing


def test_objects_behind_are_background(meadow):
    """The other disk is blue: it is smaller, never masked, and often partly hidden."""
    settings = replace(ALWAYS, bystanders=0.5)
    drawn = draws(Compositor(meadow, settings, SINGLE, 3), *red_disk(), 60)
    blue = [image[..., 2].astype(int) - image[..., :2].max(axis=2) > 0 for image, _ in drawn]
    seen = [bool(pixels.any()) for pixels in blue]
    assert 10 < sum(seen) < 45  # half of them, but for those that are hidden
    for (_, mask), pixels in zip(drawn, blue, strict=True):
        assert not pixels[mask == 255].any()
    masked = sum((mask > 127).sum() for (_, mask), one in zip(drawn, seen, strict=True) if one)
    assert sum(pixels.sum() for pixels in blue) < masked


def test_plain_backgrounds_and_bars(meadow):
    """A row of a plain background has one color; bars lie along two opposite sides."""
    image, mask = red_disk()
    plain = Compositor(meadow, replace(ALWAYS, plain=1.0, scale=(0.2, 0.3)), SINGLE, 3)
    colors = set()
    for picture, _ in draws(plain, image, mask):
        assert (picture[0] == picture[0, 0]).all() or (picture[-1] == picture[-1, 0]).all()
        colors.add(tuple(picture[0, 0]))
    assert len(colors) > 10
    barred = Compositor(meadow, replace(ALWAYS, bars=1.0, scale=(0.2, 0.3)), SINGLE, 3)
    for picture, _ in draws(barred, image, mask):
        corners = picture[[0, 0, -1, -1], [0, -1, 0, -1], 0]
        assert np.bincount(corners).max() >= 3  # the disk or its shadow may be on the fourth


def test_ground_mirrors_objects_below_them_alone(meadow):
    mirrored = 0
    settings = replace(ALWAYS, reflected=1.0, scale=(0.3, 0.4))
    for image, mask in draws(Compositor(meadow, settings, SINGLE, 3), *red_disk()):
        green = image[..., 1].astype(int) - image[..., 0]
        above = np.cumsum(mask[::-1] > 127, axis=0)[::-1].any(axis=1)  # down to the lowest row
        assert (green[above] > 0)[mask[above] == 0].all()
        mirrored += (green[~above] < 60).any()
    assert mirrored > 10


@pytest.mark.parametrize("tint", [0.0, 0.5])
def test_tint_varies_colors(meadow, tint):
    image, mask = red_disk()
    image[mask > 0] = 120
    compositor = Compositor(meadow, replace(ALWAYS, tint=tint), SINGLE, 3)
    drawn = draws(compositor, image, mask)
    grays = [np.ptp(picture[mask == 255].mean(axis=0)) < 2 for picture, mask in drawn]
    assert all(grays) == (tint == 0)


def test_classes_move_with_their_objects(meadow):
    image, disk = red_disk()
    mask = (disk > 0).astype(np.uint8)
    mask[40:] *= 2  # the lower part of the disk
    mask[:4] = PARTS.ignore
    for drawn, drawn_mask in draws(Compositor(meadow, ALWAYS, PARTS, 3), image, mask):
        assert set(np.unique(drawn_mask)) <= {0, 1, 2}
        red = drawn[..., 0].astype(int) - drawn[..., 1]
        assert ((red > 0) == (drawn_mask > 0)).mean() > 0.97


def test_gray_pictures_get_gray_backgrounds(meadow):
    image, mask = red_disk()
    for drawn, _ in draws(Compositor(meadow, ALWAYS, SINGLE, 1), image[..., :1], mask, 5):
        assert drawn.shape == (64, 96, 1)


def test_pictures_depend_on_seed_epoch_and_image_alone(data, meadow):
    compositor = Compositor(meadow, ALWAYS, SINGLE, 3)
    options = {"size": (32, 48), "compositor": compositor}
    datasets = [CarvanaDataset(*split_folders(data)[:2], seed=s, **options) for s in (1, 1, 2)]
    first, again, other_seed = ([dataset[0, i][0] for i in range(6)] for dataset in datasets)
    assert all(map(np.array_equal, first, again))
    assert not any(map(np.array_equal, first, other_seed))
    assert not any(map(np.array_equal, first, [datasets[0][1, i][0] for i in range(6)]))


def test_training_before_other_photographs_resumes_exactly(data, meadow, no_report):
    backgrounds = ("--backgrounds-dir", meadow, "--jpeg-quality", 40, "--noise", 16)
    options = (*tiny_options(GALLERY_MAX=0), *backgrounds)
    run_script(data, "train.py", *options, "--num-epochs", 2)
    expected = learned(data / LAST)
    run_script(data, "train.py", *options, "--num-epochs", 1, "--checkpoint-file", "a.pth.tar")
    more = ("--num-epochs", 2, "--checkpoint-file", "a.pth.tar", "--load-model", "true")
    run_script(data, "train.py", *options, *more)
    resumed = learned(data / "a.pth.tar")
    for name, weights in expected["state_dict"].items():
        assert torch.equal(weights, resumed["state_dict"][name]), name


@pytest.mark.parametrize(
    "spoil, message",
    [
        (shutil.rmtree, r"no folder 'meadow', where photographs to put objects before should be"),
        (lambda folder: (folder / "a.png").write_bytes(b"x"), r"a.png: cannot be read"),
    ],
)
def test_backgrounds_that_cannot_be_read_are_named(data, meadow, spoil, message):
    spoil(meadow)
    done = run_script(data, "train.py", *tiny_options(), "--backgrounds-dir", "meadow", status=2)
    assert message in done.stderr


def test_folder_without_photographs_is_refused(tmp_path):
    with pytest.raises(UserError, match="no photographs in .* name another folder"):
        Compositor(tmp_path, ALWAYS, SINGLE, 3)


def test_training_says_that_there_are_no_backgrounds(data, no_report):
    options = tiny_options(GALLERY_MAX=0, NUM_EPOCHS=1)
    done = run_script(data, "train.py", *options, "--bystanders", 0.3)
    assert "BACKGROUNDS_DIR is empty: objects stay before their own backgrounds" in done.stdout
