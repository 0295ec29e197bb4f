"""Fixtures, and what must be set before anything is imported."""

import functools
import os
import shutil
import signal
import sys
from pathlib import Path

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
os.environ["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", "1")  # tests run side by side
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import bad_input
import helpers
import pytest

from carvana import reports, system

# Tests whose worker knows itself by what it inherits as a copy.
NEED_COPIES = {"test_worker_that_is_killed_leaves_a_checkpoint"}
# Tests of signals that Windows does not have, and those that simulate it.
NEED_UNIX = {
    "test_interruption_by_a_signal_that_is_ignored_is_none",
    "test_interruption_by_a_signal_that_is_sent_twice_is_one",
    "test_interruption_of_the_command_is_resumed_by_the_next",
    "test_training_stops_in_order_when_its_terminal_is_closed",
    "test_worker_ends_by_itself_a_while_after_sigterm",
    "test_workers_leave_sigterm_to_the_training",
}
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
if hasattr(signal, "SIGHUP"):  # not on Windows
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup has it ignored


def pytest_collection_modifyitems(items):
    """Skip what cannot be where processes start anew, or on Windows; CONTRIBUTING.md says how."""
    for item in items:
        if system.start_method() != "fork" and item.originalname in NEED_COPIES:
            item.add_marker(pytest.mark.skip(reason="needs processes that start as copies"))
        if system.WINDOWS and (item.originalname in NEED_UNIX or item.path.stem == "test_system"):
            item.add_marker(pytest.mark.skip(reason="needs Unix"))


@pytest.fixture(scope="session")
def data_template(tmp_path_factory):
    """A folder with data/ as prepare_data.py leaves it: 12 training and 6 validation pairs."""
    folder = tmp_path_factory.mktemp("data_template")
    data = folder / "data"
    helpers.write_pairs(data / "train_images", data / "train_masks", cars=6)
    helpers.write_pairs(data / "val_images", data / "val_masks", cars=3, first=100)
    return folder


@pytest.fixture
def data(tmp_path, data_template):
    """A working folder of the test's own with the pairs of data_template."""
    shutil.copytree(data_template, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory):
    """A folder as a finished run leaves it, with the two zips that its data came from."""
    return bad_input.make_finished_run(tmp_path_factory.mktemp("finished_run"))


@pytest.fixture
def run(tmp_path):
    """run("train.py", "--seed", 1, status=2): a script in this process, in tmp_path."""
    return functools.partial(helpers.run_script, tmp_path)


@pytest.fixture
def run_process(tmp_path):
    """run_process("train.py", "--seed", 1, status=2): a script as a process, in tmp_path."""
    return functools.partial(helpers.run_process, tmp_path)


@pytest.fixture
def no_report(monkeypatch):
    """Trainings draw no pictures, which take most of their time."""
    monkeypatch.setattr(reports, "write_training_report", lambda *_: None)


@pytest.fixture
def settings(data, monkeypatch):
    """settings(NUM_EPOCHS=2): constants for train.main; the working folder is data's."""
    monkeypatch.chdir(data)
    return helpers.tiny_settings


@pytest.fixture
def work(tmp_path):
    """A folder with six photographs in photos/, their masks and a model."""
    helpers.write_pairs(tmp_path / "photos", tmp_path / "masks", cars=3)
    helpers.write_model(tmp_path / helpers.BEST)
    return tmp_path
