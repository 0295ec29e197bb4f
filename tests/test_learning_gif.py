"""learning.gif, whose memory is the file itself."""

import numpy as np
import pytest
from PIL import Image

from carvana import learning_gif
from carvana.classes import BLUE, ORANGE, SINGLE
from carvana.drawing import read_shown
from carvana.evaluation import PredictedMasks
from dataset import CarvanaDataset

SIZE = (16, 24)


@pytest.fixture
def dataset(data):
    return CarvanaDataset(data / "data/val_images", data / "data/val_masks", size=SIZE)


def add_epoch(path, dataset, number, masks=None):
    """Add a frame with these masks of 0 and 1, by default with noise."""
    rng = np.random.default_rng(number)
    predicted = PredictedMasks(SINGLE)
    for index in range(len(dataset)):
        mask = (rng.random(SIZE) < 0.5).astype(np.uint8) if masks is None else masks[index]
        predicted.add(index, mask)
    scores = {"masks": predicted, "dice": 0.5}
    learning_gif.add_epoch(path, dataset, scores, number, height=40)


def read_frames(path):
    """Return the epochs' numbers in a file, and its frames, uint8 (H, W, 3)."""
    frames = []
    with Image.open(path) as image:
        for index in range(image.n_frames):
            image.seek(index)
            frames.append(np.asarray(image.convert("RGB")))
        return [int(number) for number in image.info["comment"].split()], frames


def test_learning_gif_has_a_frame_per_epoch(dataset, tmp_path):
    path = tmp_path / "learning.gif"
    for number in (1, 2, 3):
        add_epoch(path, dataset, number)
    numbers, frames = read_frames(path)
    assert numbers == [1, 2, 3] and len(frames) == 3
    assert not np.array_equal(frames[0], frames[1])
    add_epoch(path, dataset, 3)  # resumed within epoch 3
    numbers, frames_again = read_frames(path)
    assert numbers == [1, 2, 3]
    assert all(map(np.array_equal, frames, frames_again))


def test_learning_gif_thins_out_many_epochs(dataset, tmp_path, monkeypatch):
    path = tmp_path / "learning.gif"
    monkeypatch.setattr(learning_gif, "MAX_FRAMES", 4)
    for number in range(1, 12):
        add_epoch(path, dataset, number)
    numbers, frames = read_frames(path)
    assert len(numbers) == len(frames) <= 4
    assert (numbers[0], numbers[-1]) == (1, 11)


def test_learning_gif_is_black_where_a_file_has_gone(dataset, tmp_path):
    path = tmp_path / "learning.gif"
    add_epoch(path, dataset, 1)
    dataset.pairs[0][0].unlink()
    add_epoch(path, dataset, 2)
    before, after = read_frames(path)[1]
    assert after.shape == before.shape
    photograph, truth = read_shown(dataset, 0, 40, SIZE)
    assert photograph.shape == (40, 60, 3) and truth.shape == (40, 60)
    assert photograph.max() == truth.max() == 0
    assert read_shown(dataset, 1, 40, SIZE)[0].max() > 0


def test_learning_gif_keeps_a_single_wrong_pixel(dataset, tmp_path):
    """Also in a frame that is read and written again."""
    path = tmp_path / "learning.gif"
    masks = [dataset.mask(index, SIZE) for index in range(len(dataset))]
    masks[0][0, 0] ^= 1
    for number in (11, 12, 13):
        add_epoch(path, dataset, number, None if number == 11 else masks)
    for frame in read_frames(path)[1][-2:]:
        colored = frame[frame.max(2) - frame.min(2) > 30]
        assert set(map(tuple, colored)) <= {ORANGE, BLUE}
        assert (frame == ORANGE).all(2).any()


def test_learning_gif_begins_anew_for_a_fresh_run_or_a_damaged_file(dataset, tmp_path):
    path = tmp_path / "learning.gif"
    path.write_bytes(b"GIF89a rubbish")
    add_epoch(path, dataset, 2)
    assert read_frames(path)[0] == [2]
    add_epoch(path, dataset, 1)
    assert read_frames(path)[0] == [1]
