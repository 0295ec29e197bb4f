"""What TensorBoard is given of a training. Skipped where the package tensorboard is missing."""

import csv
import importlib.util
import re

import pytest
from helpers import LAST, is_same, run_result, run_with_small_files, tiny_options

needs_tensorboard = pytest.mark.skipif(
    importlib.util.find_spec("tensorboard") is None, reason="no package tensorboard"
)
ON = ("--tensorboard-dir", "runs")
EPOCHS = {"FEATURES": [2, 4], "SAVE_IMAGES_MAX": 0, "GALLERY_MAX": 0}
COLUMN = "epoch"  # of history.csv, which is no figure


def read_events(folder):
    """Return what TensorBoard shows of a run."""
    accumulators = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", exc_type=ImportError
    )
    events = accumulators.EventAccumulator(str(folder))
    events.Reload()
    return events


def scalars(events, name):
    return [(event.step, event.value) for event in events.Scalars(name)]


def check_against_history(events, path):
    """The figures are those of history.csv, each once, and every epoch has its pictures."""
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    for name in set(rows[0]) - {COLUMN}:
        expected = [(int(row[COLUMN]), float(row[name])) for row in rows if row[name]]
        assert [step for step, _ in scalars(events, name)] == [step for step, _ in expected]
        values = [value for _, value in expected]
        assert [value for _, value in scalars(events, name)] == pytest.approx(values, rel=1e-6)
    (pictures,) = events.Tags()["images"]
    steps = [event.step for event in events.Images(pictures)]
    assert steps == [int(row[COLUMN]) for row in rows]
    picture = events.Images(pictures)[-1]
    assert picture.width > 4 * 300 and picture.height > 4 * 240  # four rows of four


@needs_tensorboard
def test_figures_of_the_history_are_written_and_continued(data, run):
    run("train.py", *tiny_options(**EPOCHS, NUM_EPOCHS=1), *ON)
    run("train.py", *tiny_options(**EPOCHS, NUM_EPOCHS=3, LOAD_MODEL=True), *ON)
    (folder,) = (data / "runs").iterdir()  # both are one run
    check_against_history(read_events(folder), data / "saved_images/history.csv")


@needs_tensorboard
def test_epochs_after_an_earlier_checkpoint_are_replaced(data, run):
    run("train.py", *tiny_options(**EPOCHS, NUM_EPOCHS=1), *ON)
    first = (data / LAST).read_bytes()
    run("train.py", *tiny_options(**EPOCHS, NUM_EPOCHS=3, LOAD_MODEL=True), *ON)
    (data / LAST).write_bytes(first)
    run("train.py", *tiny_options(**EPOCHS, NUM_EPOCHS=2, LOAD_MODEL=True), *ON)
    (folder,) = (data / "runs").iterdir()
    check_against_history(read_events(folder), data / "saved_images/history.csv")


@needs_tensorboard
def test_run_that_turns_it_on_late_has_the_earlier_figures(data, run):
    run("train.py", *tiny_options(**EPOCHS, NUM_EPOCHS=2))
    run("train.py", *tiny_options(**EPOCHS, NUM_EPOCHS=3, LOAD_MODEL=True), *ON)
    (folder,) = (data / "runs").iterdir()
    assert [step for step, _ in scalars(read_events(folder), "dice")] == [1, 2, 3]


@needs_tensorboard
def test_new_run_has_a_folder_of_its_own(data, run):
    for seed in (1, 2):
        run("train.py", *tiny_options(**EPOCHS, NUM_EPOCHS=1, SEED=seed), *ON)
    folders = list((data / "runs").iterdir())
    assert len(folders) == 2
    for folder in folders:
        assert len(scalars(read_events(folder), "dice")) == 1


@needs_tensorboard
def test_training_goes_on_where_it_cannot_be_written(data, run):
    """A limit on the size of files stands for a full disk."""
    options = tiny_options(**EPOCHS, NUM_EPOCHS=2)
    run("train.py", *options)
    expected = run_result(data / LAST)
    limit = (data / LAST).stat().st_size + 1024  # it will hold the name of the folder, too
    (data / LAST).unlink()
    finished = run_with_small_files(data, limit, "train.py", *options, *ON)
    assert finished.returncode == 0, finished.stderr
    assert is_same(run_result(data / LAST), expected)
    # TensorBoard's own thread writes to stderr at the same time.
    assert len(re.findall("warning: runs.*training goes on without it", finished.stderr)) == 1


def test_missing_package_is_said_at_the_start(data, run, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    finished = run("train.py", *tiny_options(), *ON, status=2)
    assert "TENSORBOARD_DIR needs the package tensorboard: pip install tensorboard" in (
        finished.stderr
    )
    assert not (data / LAST).exists()


def test_file_in_the_folders_place_is_said_at_the_start(data, run):
    (data / "runs").write_bytes(b"")
    finished = run("train.py", *tiny_options(), *ON, status=2)
    assert "--tensorboard-dir: expected a folder, found the file 'runs'" in finished.stderr
