"""Pictures, pages and tables that cannot be written do not end a training."""

import re

import numpy as np
import pytest
from helpers import (
    LAST,
    csv_rows,
    is_same,
    picture_width_height,
    run_result,
    run_with_small_files,
    tiny_options,
)

from carvana.byproducts import Byproducts
from carvana.drawing import save_picture
from carvana.errors import WriteError

NAMES = (
    "0.png",
    "batch.png",
    "curves.png",
    "history.csv",
    "index.html",
    "learning.gif",
    "overview.png",
    "pred_0.png",
)
TWO_EPOCHS = {"NUM_EPOCHS": 2, "SAVE_IMAGES_MAX": 1, "FEATURES": [2, 4]}


def warnings_in(stderr):
    return [line for line in stderr.splitlines() if line.startswith("warning: saved_images")]


def test_byproduct_that_fails_is_one_warning_for_each_reason(capsys):
    byproducts = Byproducts()
    for _ in range(3):
        for error in (MemoryError(), ValueError("no\nfont"), OSError(28, "No space left")):
            with byproducts.writing("a\nb.png"):
                raise error
    assert capsys.readouterr().err.splitlines() == [
        "warning: a\\nb.png cannot be written (MemoryError); training goes on without it",
        "warning: a\\nb.png cannot be written (no); training goes on without it",
        "warning: a\\nb.png cannot be written (No space left); training goes on without it",
    ]
    with pytest.raises(KeyboardInterrupt), byproducts.writing("a.png"):
        raise KeyboardInterrupt


@pytest.mark.parametrize("name", NAMES)
def test_training_goes_on_without_a_byproduct(data, run, name):
    """A folder in the file's place cannot be replaced by a file."""
    (data / "saved_images" / name).mkdir(parents=True)
    finished = run("train.py", *tiny_options(**TWO_EPOCHS))
    (warning,) = warnings_in(finished.stderr)
    assert re.search(rf"saved_images/{name} cannot be written \(.*directory\); ", warning)
    assert warning.endswith("; training goes on without it")
    assert "epoch 2/2" in finished.stdout
    for other in set(NAMES) - {name, "0.png", "pred_0.png"}:
        assert (data / "saved_images" / other).is_file(), other
    assert not list(data.glob("saved_images/.*"))


def test_training_goes_on_where_no_byproduct_can_be_written(data, run):
    """And ends with the same weights; what is resumed, too."""
    run("train.py", *tiny_options(**TWO_EPOCHS))
    expected = run_result(data / LAST)
    (data / LAST).unlink()
    for name in NAMES:
        (data / "broken" / name).mkdir(parents=True)
    broken = ("--saved-images-dir", "broken")
    run("train.py", *tiny_options(**TWO_EPOCHS), *broken)
    assert is_same(run_result(data / LAST), expected)
    (data / LAST).unlink()
    run("train.py", *tiny_options(**TWO_EPOCHS | {"NUM_EPOCHS": 1}), *broken)
    finished = run("train.py", *tiny_options(**TWO_EPOCHS, LOAD_MODEL=True), *broken)
    assert is_same(run_result(data / LAST), expected)
    assert finished.stderr.count("broken/overview.png cannot be written") == 1
    assert finished.stderr.count("broken/history.csv cannot be written") == 1


def test_training_goes_on_where_only_checkpoints_fit(data, run):
    """A limit on the size of files stands for a full disk."""
    options = tiny_options(**TWO_EPOCHS)
    run("train.py", *options)
    expected = run_result(data / LAST)
    limit = (data / LAST).stat().st_size
    for path in (data / "saved_images").iterdir():
        path.unlink()
    (data / LAST).unlink()
    finished = run_with_small_files(data, limit, "train.py", *options)
    assert finished.returncode == 0, finished.stderr
    assert is_same(run_result(data / LAST), expected)
    warnings = warnings_in(finished.stderr)
    assert len(set(warnings)) == len(warnings) >= 2
    for warning in warnings:
        assert "(File too large); free some space; training goes on without it" in warning
    assert not list(data.glob("saved_images/.*"))
    assert len(csv_rows(data / "saved_images/history.csv")) == 3


def test_training_goes_on_without_matplotlib(data, run_process):
    """It is imported late, and some installations of it are damaged."""
    (data / "damaged").mkdir()
    (data / "damaged/matplotlib.py").write_text("raise ImportError('no libfreetype')\n")
    path = {"PYTHONPATH": str(data / "damaged")}
    finished = run_process("train.py", *tiny_options(**TWO_EPOCHS), env=path)
    warnings = warnings_in(finished.stderr)
    assert len(warnings) == 2  # of the page and of the curves
    assert all("(no libfreetype); training goes on without it" in line for line in warnings)
    picture_width_height(data / "saved_images/overview.png")


def test_picture_that_cannot_be_written_is_an_error_elsewhere(tmp_path):
    (tmp_path / "a.png").mkdir()
    with pytest.raises(WriteError, match="a.png cannot be written"):
        save_picture(np.zeros((4, 4, 3), np.uint8), tmp_path / "a.png")
