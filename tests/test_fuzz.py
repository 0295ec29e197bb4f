"""Files and words that nobody would think of: only UserError comes out, whatever goes in."""

import functools
import io
import os

import numpy as np
import pytest
import torch
from conftest import scene
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import checkpoint
import config
import pictures
from model import UNET
from pictures import UserError

FEW, MANY = 60, int(os.environ.get("FUZZ_EXAMPLES", 20_000))
pytestmark = pytest.mark.filterwarnings(
    "ignore"
)  # Pillow's and torch's, about what is wrong with a file
RELAXED = {"deadline": None, "suppress_health_check": list(HealthCheck)}
IMAGE, TRUTH = scene(1, 24, 36)


def fuzz(test, **strategies):
    """The test with a few examples by default, with many under pytest -m slow."""
    few, many = (
        settings(max_examples=examples, **RELAXED)(given(**strategies)(test))
        for examples in (FEW, MANY)
    )
    return few, pytest.mark.slow(many)


@functools.cache
def sound():
    """One good file of each format that is read."""
    exif = Image.Exif()
    exif[0x0112] = 6
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
    found = []
    for mode, form, how in kinds:
        picture = (
            Image.fromarray(IMAGE.astype(np.uint16)[..., 0])
            if mode == "I;16"
            else Image.fromarray(IMAGE).convert(mode)
        )
        buffer = io.BytesIO()
        picture.save(buffer, form, **how)
        found.append(buffer.getvalue())
    return found


@functools.cache
def sound_checkpoint():
    buffer = io.BytesIO()
    model = UNET(features=[2])
    model.config = {"IMAGE_HEIGHT": 16, "IMAGE_WIDTH": 16}
    optimizer = torch.optim.Adam(model.parameters())
    torch.save(
        checkpoint.checkpoint_state(
            model,
            optimizer,
            torch.amp.GradScaler("cpu", enabled=False),
            "run",
            1,
            0.5,
            [{"dice": 0.5}],
        ),
        buffer,
    )
    return buffer.getvalue()


@st.composite
def damaged(draw, files):
    """One of some files, with bytes changed, cut out, doubled or put in, or its end missing."""
    data = bytearray(draw(st.sampled_from(files())))
    for _ in range(draw(st.integers(1, 6))):
        # headers are short and matter most: half of all damage is in the first 200 bytes
        place = draw(st.integers(0, min(200, len(data))) | st.integers(0, len(data)))
        length = draw(st.integers(0, 8))
        what = draw(st.sampled_from(["overwrite", "extreme", "cut", "double", "end"]))
        if what == "overwrite":
            data[place : place + length] = draw(st.binary(min_size=length, max_size=length))
        elif what == "extreme":
            data[place : place + 4] = draw(
                st.sampled_from(
                    [
                        b"\0\0\0\0",
                        b"\xff\xff\xff\xff",
                        b"\x7f\xff\xff\xff",
                        b"\xff\xff\xff\x7f",
                        b"\0\0\0\1",
                        b"\1\0\0\0",
                    ]
                )
            )
        elif what == "cut":
            del data[place : place + length]
        elif what == "double":
            data[place:place] = data[place : place + 40 * length]
        else:
            del data[max(place, 1) :]
    return bytes(data)


def only_user_errors(function, *args):
    try:
        return function(*args)
    except UserError as error:
        assert str(error).isprintable(), repr(error)


def reader(tmp_path_factory, data, size, channels):
    path = tmp_path_factory.getbasetemp() / "fuzzed.jpg"
    path.write_bytes(data)
    shape = only_user_errors(pictures.picture_size, path)
    if shape is not None and shape[0] * shape[1] > 4_000_000:
        return  # may be a picture; decoding it takes long
    image, mask = (
        only_user_errors(pictures.read_image, path, size, channels),
        only_user_errors(pictures.read_mask, path, size),
    )
    assert image is None or image.dtype == np.uint8 and image.shape == (*(size or shape), channels)
    assert mask is None or mask.dtype == np.uint8 and mask.shape == tuple(size or shape)
    faults, warnings = pictures.check_pair(path, path)
    assert all(isinstance(one, str) for one in faults + warnings)


def checkpoints(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "fuzzed" / "a.pth.tar"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    resume(only_user_errors(checkpoint.read_checkpoint, path))
    only_user_errors(checkpoint.load_model, path, "cpu")


def resume(state):
    if state is not None:
        model = UNET(features=[2])
        only_user_errors(
            checkpoint.restore,
            state,
            model,
            torch.optim.Adam(model.parameters()),
            torch.amp.GradScaler("cpu", enabled=False),
        )


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
THINGS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | TENSORS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=4) | st.integers(0, 3), inner, max_size=3)
    ),
    max_leaves=6,
)


@st.composite
def replaced(draw):
    """A good checkpoint's dict with entries at any depth replaced, removed or added."""
    state = torch.load(io.BytesIO(sound_checkpoint()), weights_only=True)
    for _ in range(draw(st.integers(1, 3))):
        level = state
        while True:
            keys = list(level) if isinstance(level, dict) else list(range(len(level)))
            key = draw(st.sampled_from(keys)) if keys else None
            inner = level[key] if keys else None
            if isinstance(inner, (dict, list)) and len(inner) and draw(st.booleans()):
                level = inner
                continue
            break
        if isinstance(level, dict) and (key is None or draw(st.integers(0, 3)) == 0):
            level[
                draw(
                    st.text(max_size=4)
                    | st.sampled_from(["epoch", "downs.1.conv.0.weight", "IMAGE_HEIGHT"])
                )
            ] = draw(THINGS)
        elif isinstance(level, dict) and draw(st.integers(0, 3)) == 0:
            del level[key]
        elif key is not None:
            level[key] = draw(THINGS)
    return state


def contents(tmp_path_factory, state):
    path = tmp_path_factory.getbasetemp() / "replaced.pth.tar"
    torch.save(state, path)
    resume(only_user_errors(checkpoint.read_checkpoint, path))
    only_user_errors(checkpoint.load_model, path, "cpu")


OPTIONS = [config.option(name) for name in config.constants()] + ["--preset"]
WORDS = (
    st.sampled_from(OPTIONS)
    | st.sampled_from(
        [
            "nan",
            "inf",
            "-inf",
            "-1",
            "0",
            "1e99",
            "true",
            "small",
            "--",
            "-",
            "",
            "=",
            "--preset=demo",
            "--mean=0",
            "1_0",
            "٣",
            "0x10",
            " 5 ",
        ]
    )
    | st.text(max_size=8)
    | st.integers().map(str)
    | st.floats().map(str)
    | st.sampled_from(OPTIONS).flatmap(
        lambda option: st.text(max_size=6).map(lambda text: f"{option}={text}")
    )
)


def overrides(words):
    if "-h" in words or any(word.startswith(("--h", "-h")) for word in words):
        return  # prints the help
    cfg = only_user_errors(config.load, words)
    if cfg is not None:  # whatever was accepted follows the rules again
        for name, (value, why) in config.constants().items():
            assert config._checked(getattr(cfg, name), config._rule(value, why)) == getattr(
                cfg, name
            )


test_reader, test_reader_long = fuzz(
    reader,
    data=damaged(sound),
    size=st.sampled_from([None, (8, 12), (40, 30)]),
    channels=st.sampled_from([1, 3]),
)
test_checkpoints, test_checkpoints_long = fuzz(
    checkpoints, data=damaged(lambda: [sound_checkpoint()])
)
test_contents, test_contents_long = fuzz(contents, state=replaced())
test_overrides, test_overrides_long = fuzz(overrides, words=st.lists(WORDS, max_size=8))
