"""Files and words that nobody would think of: only UserError comes out, whatever goes in.

Each test has a few examples; with pytest -m slow, FUZZ_EXAMPLES of them.
"""

import functools
import io
import os

import numpy as np
import pytest
import torch
from helpers import no_scaler, scene
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import config
import utils
from carvana.checkpoint import read_checkpoint, restore, training_state
from carvana.classes import SINGLE, Classes
from carvana.errors import UserError
from carvana.images import EXIF_ORIENTATION, picture_size, read_image, read_labels, read_mask
from carvana.options import load, option_name, read_constants
from carvana.pairs import inspect_pair
from carvana.schema import check
from model import UNET

# Pillow and torch warn about what is wrong with a file.
pytestmark = pytest.mark.filterwarnings("ignore")
SHORT_RUN = 60
LONG_RUN = int(os.environ.get("FUZZ_EXAMPLES", 20_000))
MAX_PIXELS = 4_000_000  # decoding more takes long
THREE = Classes(("ground", "thing", "edge"))


def fuzz(test, **strategies):
    """Return a test with a few examples, and a slow one with many."""
    runs = []
    for examples in (SHORT_RUN, LONG_RUN):
        relaxed = settings(
            max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck)
        )
        runs.append(relaxed(given(**strategies)(test)))
    short, long = runs
    return short, pytest.mark.slow(long)


def only_user_errors(function, *args):
    """Return what the function returns; None if it raises a UserError."""
    try:
        return function(*args)
    except UserError as error:
        assert str(error).isprintable(), repr(error)


# ---------------------------------------------------------------- damaged files


@functools.cache
def good_pictures():
    """Return the bytes of one good file of each format that is read."""
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    kinds = [
        ("RGB", "JPEG", {"exif": exif}),
        ("RGB", "JPEG", {"progressive": True}),
        ("CMYK", "JPEG", {}),
        ("RGB", "PNG", {"exif": exif}),
        ("P", "PNG", {}),
        ("I;16", "PNG", {}),
        ("L", "GIF", {}),
        ("1", "GIF", {}),
        ("RGB", "BMP", {}),
        ("RGB", "WEBP", {}),
        ("RGBA", "WEBP", {"lossless": True}),
        ("RGB", "TIFF", {"exif": exif}),
        ("L", "TIFF", {"compression": "tiff_lzw"}),
        ("1", "TIFF", {"compression": "group4"}),
        ("RGB", "TIFF", {"compression": "jpeg"}),
        ("RGB", "TIFF", {"compression": "tiff_adobe_deflate"}),
    ]
    photograph, _ = scene(1, 24, 36)
    files = []
    for mode, file_format, options in kinds:
        if mode == "I;16":
            picture = Image.fromarray(photograph.astype(np.uint16)[..., 0])
        else:
            picture = Image.fromarray(photograph).convert(mode)
        buffer = io.BytesIO()
        picture.save(buffer, file_format, **options)
        files.append(buffer.getvalue())
    return files


@functools.cache
def good_checkpoints():
    """Return the bytes of a good checkpoint, in a list."""
    model = UNET(features=[2])
    model.config = {"IMAGE_HEIGHT": 16, "IMAGE_WIDTH": 16}
    optimizer = torch.optim.Adam(model.parameters())
    progress = {"run": "run", "epoch": 1, "best": 0.5, "history": [{"dice": 0.5}]}
    buffer = io.BytesIO()
    torch.save(training_state(model, optimizer, no_scaler(), progress), buffer)
    return [buffer.getvalue()]


EXTREMES = st.sampled_from(
    [
        b"\0\0\0\0",
        b"\xff\xff\xff\xff",
        b"\x7f\xff\xff\xff",
        b"\xff\xff\xff\x7f",
        b"\0\0\0\1",
        b"\1\0\0\0",
    ]
)
DAMAGES = st.sampled_from(["overwrite", "extreme", "cut", "double", "end"])


@st.composite
def damaged(draw, files):
    """Draw one of some files, with bytes changed, cut out, doubled, or its end missing."""
    data = bytearray(draw(st.sampled_from(files())))
    for _ in range(draw(st.integers(1, 6))):
        # Headers are short and matter most: half of all damage is in the first 200 bytes.
        place = draw(st.integers(0, min(200, len(data))) | st.integers(0, len(data)))
        length = draw(st.integers(0, 8))
        damage = draw(DAMAGES)
        if damage == "overwrite":
            data[place : place + length] = draw(st.binary(min_size=length, max_size=length))
        elif damage == "extreme":
            data[place : place + 4] = draw(EXTREMES)
        elif damage == "cut":
            del data[place : place + length]
        elif damage == "double":
            data[place:place] = data[place : place + 40 * length]
        else:
            del data[max(place, 1) :]
    return bytes(data)


def read_damaged_picture(tmp_path_factory, data, size, channels):
    path = tmp_path_factory.getbasetemp() / "fuzzed.jpg"
    path.write_bytes(data)
    own_size = only_user_errors(picture_size, path)
    if own_size is not None and own_size[0] * own_size[1] > MAX_PIXELS:
        return
    expected = tuple(size or own_size or ())
    image = only_user_errors(read_image, path, size, channels)
    if image is not None:
        assert image.dtype == np.uint8
        assert image.shape == (*expected, channels)
    masks = (only_user_errors(read_mask, path, size), only_user_errors(read_labels, path, THREE))
    for mask, mask_size in zip(masks, (expected, own_size), strict=True):
        if mask is not None:
            assert mask.dtype == np.uint8
            assert mask.shape == mask_size
    for classes in (SINGLE, THREE):
        check = inspect_pair(path, path, classes)
        assert all(isinstance(text, str) for text in check.faults + check.warnings)


def read_damaged_checkpoint(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "fuzzed" / "a.pth.tar"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    resume_and_load(path)


def resume_and_load(path):
    """Do with a file what training and inference do with a checkpoint."""
    state = only_user_errors(read_checkpoint, path)
    if state is not None:
        model = UNET(features=[2])
        optimizer = torch.optim.Adam(model.parameters())
        only_user_errors(restore, state, model, optimizer, no_scaler())
    only_user_errors(utils.load_model, path, "cpu")


# ---------------------------------------------------------------- hostile contents


TENSORS = st.sampled_from(
    [
        torch.zeros(()),
        torch.zeros(2, 3),
        torch.zeros(0),
        torch.full((2, 3, 3, 3), float("nan")),
        torch.zeros(4, dtype=torch.int64),
        torch.zeros(5056, dtype=torch.uint8),
        torch.zeros(2, dtype=torch.complex64),
        torch.zeros(1).expand(10**5, 10**5),
        torch.ones(2, 3, 3, 3, dtype=torch.float16),
        torch.zeros(1, 10**6, 1, 1),
    ]
)
TEXTS = st.text(max_size=4)
PLAIN_VALUES = st.none() | st.booleans() | st.integers() | st.floats() | TEXTS | TENSORS
NEW_KEYS = TEXTS | st.sampled_from(["epoch", "downs.1.conv.0.weight", "IMAGE_HEIGHT"])


def nested(inner):
    keys = TEXTS | st.integers(0, 3)
    return st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3)


VALUES = st.recursive(PLAIN_VALUES, nested, max_leaves=6)


@st.composite
def replaced(draw):
    """Draw a good checkpoint's dict with entries at any depth replaced, removed or added."""
    (content,) = good_checkpoints()
    state = torch.load(io.BytesIO(content), weights_only=True)
    for _ in range(draw(st.integers(1, 3))):
        level, key = draw_entry(draw, state)
        if isinstance(level, dict) and (key is None or draw(st.integers(0, 3)) == 0):
            level[draw(NEW_KEYS)] = draw(VALUES)
        elif isinstance(level, dict) and draw(st.integers(0, 3)) == 0:
            del level[key]
        elif key is not None:
            level[key] = draw(VALUES)
    return state


def draw_entry(draw, level):
    """Draw a dict or list at any depth, and one of its keys; None if it has none."""
    while True:
        keys = list(level) if isinstance(level, dict) else list(range(len(level)))
        if not keys:
            return level, None
        key = draw(st.sampled_from(keys))
        inner = level[key]
        if not isinstance(inner, dict | list) or not len(inner) or not draw(st.booleans()):
            return level, key
        level = inner


def read_replaced_checkpoint(tmp_path_factory, state):
    path = tmp_path_factory.getbasetemp() / "replaced.pth.tar"
    torch.save(state, path)
    resume_and_load(path)


# ---------------------------------------------------------------- the command line


CONSTANTS = read_constants(config)
OPTIONS = st.sampled_from([*map(option_name, CONSTANTS), "--preset"])
ODD_WORDS = st.sampled_from(
    ["nan", "inf", "-inf", "-1", "0", "1e99", "true", "small", "--", "-", "", "="]
    + ["--preset=demo", "--mean=0", "1_0", "٣", "0x10", " 5 "]
)
NUMBERS = st.integers().map(str) | st.floats().map(str)
ASSIGNMENTS = st.tuples(OPTIONS, st.text(max_size=6)).map("=".join)
WORDS = OPTIONS | ODD_WORDS | st.text(max_size=8) | NUMBERS | ASSIGNMENTS


def load_odd_words(arguments):
    if any(word.startswith(("--h", "-h")) for word in arguments):
        return  # prints the help
    cfg = only_user_errors(load, config, arguments)
    if cfg is None:
        return
    for name, constant in CONSTANTS.items():  # what was accepted follows the rules again
        value = getattr(cfg, name)
        assert check(value, constant.type) == value


test_damaged_picture, test_damaged_picture_long = fuzz(
    read_damaged_picture,
    data=damaged(good_pictures),
    size=st.sampled_from([None, (8, 12), (40, 30)]),
    channels=st.sampled_from([1, 3]),
)
test_damaged_checkpoint, test_damaged_checkpoint_long = fuzz(
    read_damaged_checkpoint, data=damaged(good_checkpoints)
)
test_replaced_checkpoint, test_replaced_checkpoint_long = fuzz(
    read_replaced_checkpoint, state=replaced()
)
test_odd_words, test_odd_words_long = fuzz(load_odd_words, arguments=st.lists(WORDS, max_size=8))
