import os
import signal
import subprocess
import sys
from pathlib import Path

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the tests run side by side, a process a core
signal.signal(
    signal.SIGINT, signal.default_int_handler
)  # which a shell's background jobs start without
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import pytest  # noqa: E402
from PIL import Image  # noqa: E402

import demo_data  # noqa: E402


def scene(seed, height=48, width=72):
    """A rendered photograph (H, W, 3) uint8 of a car, and its mask (H, W) bool."""
    rng = np.random.default_rng(seed)
    return demo_data.render(
        demo_data.new_car(rng),
        demo_data.new_studio(rng),
        seed % demo_data.ANGLES,
        (height, width),
        rng,
    )


def write_mask(path, mask):
    """As Carvana's: a palette gif of 0 and 1 in black and white."""
    gif = Image.fromarray(mask.astype(np.uint8), "L").convert("P")
    gif.putpalette([0, 0, 0, 255, 255, 255])
    gif.save(path)


def write_pairs(images, masks, cars, angles=2, first=0, **size):
    """cars x angles pairs, named and stored as Carvana's."""
    for folder in (images, masks):
        folder.mkdir(parents=True, exist_ok=True)
    for car in range(first, first + cars):
        for angle in range(1, angles + 1):
            image, mask = scene(100 * car + angle, **size)
            name = f"{car:012x}_{angle:02d}"
            Image.fromarray(image).save(images / f"{name}.jpg", quality=92)
            write_mask(masks / f"{name}_mask.gif", mask)


@pytest.fixture
def data(tmp_path):
    """A working folder with data/ as prepare_data.py leaves it: 12 training and 6 validation pairs."""
    write_pairs(tmp_path / "data/train_images", tmp_path / "data/train_masks", cars=6)
    write_pairs(tmp_path / "data/val_images", tmp_path / "data/val_masks", cars=3, first=100)
    return tmp_path


@pytest.fixture
def run(tmp_path):
    """run("train.py", "--seed", 1) -> the finished process, run as a command in tmp_path."""

    def call(script, *words, status=0, cwd=tmp_path, env=None):
        done = subprocess.run(
            [sys.executable, "-W", "error::UserWarning:__main__", ROOT / script, *map(str, words)],
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=300,
            env=os.environ | (env or {}),
        )
        assert done.returncode == status, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        if status == 2:
            assert "Traceback" not in done.stderr
        return done

    return call


@pytest.fixture
def settings(data, monkeypatch):
    """settings(NUM_EPOCHS=2) -> a configuration for train.main on the tiny data, the working folder being data's."""
    import config

    monkeypatch.chdir(data)

    def make(**changes):
        cfg = config.load([])
        vars(cfg).update(
            {
                "IMAGE_HEIGHT": 32,
                "IMAGE_WIDTH": 48,
                "FEATURES": [4, 8],
                "LEARNING_RATE": 0.01,
                "BATCH_SIZE": 4,
                "NUM_WORKERS": 0,
                "PRECISION": "fp32",
                "SAVE_IMAGES_MAX": 1,
            }
            | changes
        )
        return cfg

    return make
