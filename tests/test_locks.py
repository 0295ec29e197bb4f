"""One training at a time writes a file; others are told who does."""

import os
import signal
import socket
import subprocess
import sys
import threading
from unittest import mock

import pytest
import torch
from helpers import BEST, LAST, ROOT, file_contents, tiny_options

import train
from carvana import checkpoint, locks
from carvana.checkpoint import save_checkpoint
from carvana.errors import UserError
from carvana.locks import lock_path, locked, output_locks

OUTPUTS = {
    "CHECKPOINT_FILE": LAST,
    "BEST_CHECKPOINT_FILE": BEST,
    "SAVED_IMAGES_DIR": "saved_images/",
}
HOLDER = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from carvana.locks import output_locks
with output_locks({"CHECKPOINT_FILE": "my_checkpoint.pth.tar"}):
    if os.fork() == 0:
        print("held", flush=True)
    signal.pause()  # the child as a loader's worker does, for a while, without its training
"""


def test_lock_names_its_holder_and_the_constants_to_change(data, run, monkeypatch):
    monkeypatch.chdir(data)
    with output_locks(OUTPUTS):
        before = file_contents(data)
        finished = run("train.py", *tiny_options(), status=2)
        assert file_contents(data) == before
    (message,) = finished.stderr.splitlines()
    holder = f"(process {os.getpid()} on {socket.gethostname()}, since 20"
    assert f"another training writes {LAST} {holder}" in message
    advice = "--checkpoint-file OTHER --best-checkpoint-file OTHER --saved-images-dir OTHER"
    assert message.endswith(f"wait until it ends, or train beside it with {advice}")
    run("train.py", *tiny_options(NUM_EPOCHS=1))


def test_lock_is_of_each_output(data, run, monkeypatch):
    monkeypatch.chdir(data)
    other = ("--checkpoint-file", "other.pth.tar", "--best-checkpoint-file", "best.pth.tar")
    with output_locks(OUTPUTS):
        stderr = run("train.py", *tiny_options(), *other, status=2).stderr
        assert "another training writes saved_images/ (process" in stderr
        run("train.py", *tiny_options(NUM_EPOCHS=1), *other, "--saved-images-dir", "other")


def test_lock_is_the_same_for_all_spellings_of_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path)
    with output_locks({"CHECKPOINT_FILE": "a.pth.tar"}):
        for name in ("a.pth.tar", "./a.pth.tar", tmp_path / "link/a.pth.tar"):
            with pytest.raises(UserError), output_locks({"CHECKPOINT_FILE": name}):
                pass


def test_lock_leaves_no_file(tmp_path):
    with output_locks({"CHECKPOINT_FILE": tmp_path / "a", "SAVED_IMAGES_DIR": tmp_path / "b/c"}):
        locks_of_both = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob(".*")}
        assert locks_of_both == {".a.lock", "b/c/.run.lock"}
    assert not list(tmp_path.rglob(".*"))


def test_lock_of_a_killed_process_is_nobodys(tmp_path, monkeypatch):
    """At once, although its workers live on for some seconds."""
    monkeypatch.chdir(tmp_path)
    command = [sys.executable, "-c", HOLDER, str(ROOT)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"process {process.pid} on"), output_locks(OUTPUTS):
            pass
        process.kill()
        process.wait()
        assert lock_path(LAST).exists()
        with output_locks(OUTPUTS):
            pass
        os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere, or no Unix"
)
def test_lock_in_a_folder_that_cannot_be_written_names_the_constant(tmp_path):
    tmp_path.chmod(0o500)
    with (
        pytest.raises(UserError, match="--checkpoint-file: nothing can be written .* permissions"),
        output_locks({"CHECKPOINT_FILE": tmp_path / "a.pth.tar"}),
    ):
        pass


def test_lock_beside_a_file_in_the_place_of_a_folder_names_the_constant(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(UserError, match="--checkpoint-file: nothing can be written"),
        output_locks({"CHECKPOINT_FILE": tmp_path / "file/a.pth.tar"}),
    ):
        pass


@pytest.mark.parametrize("error", [OSError(95, "Operation not supported"), NotImplementedError()])
def test_lock_is_done_without_on_a_disk_that_offers_none(tmp_path, monkeypatch, error):
    monkeypatch.setattr(locks.FileLock, "acquire", mock.Mock(side_effect=error))
    with pytest.raises(ValueError) as raised, locked(tmp_path / "a", "", ""):
        raise ValueError
    assert raised.value.__context__ is None


# ---------------------------------------------------------------- files of several writers


def test_checkpoints_written_to_one_file_at_once_are_whole(tmp_path):
    """By scripts of others, which take no locks."""
    path = tmp_path / LAST
    states = [{"state_dict": {}, "values": torch.full((300_000,), float(i))} for i in range(4)]
    threads = [threading.Thread(target=save_often, args=(state, path)) for state in states]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    values = torch.load(path, weights_only=True)["values"]
    assert (values == values[0]).all()
    assert [file.name for file in tmp_path.iterdir()] == [LAST]


def save_often(state, path):
    for _ in range(20):
        save_checkpoint(state, path)


def test_what_a_killed_run_left_of_a_checkpoint_is_removed_by_the_next(data, run):
    leftovers = [data / f"{LAST}.0123456789ab.tmp", data / f"{BEST}.0123456789ab.tmp"]
    others = [
        data / "notes.tmp",
        data / f"{LAST}.other.0123456789ab.tmp",
        data / f"{LAST}.mine.tmp",
    ]
    for path in (*leftovers, *others):
        path.write_bytes(b"half")
    run("train.py", *tiny_options(NUM_EPOCHS=1))
    assert not any(path.exists() for path in leftovers)
    assert all(path.exists() for path in others)


def test_checkpoint_of_another_run_is_there_at_any_moment(tmp_path, monkeypatch):
    """Also if the run that would replace it is killed in between."""
    path = tmp_path / LAST
    save_checkpoint({"run": "a"}, path)
    monkeypatch.setattr(checkpoint.os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint({"run": "b"}, path)
    assert torch.load(path, weights_only=True) == {"run": "a"}


def interrupt(*_):
    raise KeyboardInterrupt


@pytest.mark.parametrize("hard_links", [True, False])
def test_checkpoints_of_other_runs_are_kept(tmp_path, monkeypatch, hard_links):
    if not hard_links:
        monkeypatch.setattr(checkpoint.os, "link", refuse_link)
    for run in "abc":
        save_checkpoint({"run": run}, tmp_path / LAST)
    files = {path.name: torch.load(path, weights_only=True)["run"] for path in tmp_path.iterdir()}
    assert files == {LAST: "c", "my_checkpoint_1.pth.tar": "a", "my_checkpoint_2.pth.tar": "b"}


def refuse_link(*_):
    raise PermissionError("hard links are not supported here")


class LockWatch:
    """save_checkpoint, and whether the lock was held at each call."""

    def __init__(self):
        self.save_checkpoint = checkpoint.save_checkpoint
        self.held = []

    def __call__(self, *args):
        self.held.append(lock_path(LAST).exists())
        self.save_checkpoint(*args)


def test_lock_is_held_until_the_last_checkpoint(settings, monkeypatch):
    watch = LockWatch()
    monkeypatch.setattr(train, "save_checkpoint", watch)
    train.main(settings(NUM_EPOCHS=1))
    assert watch.held == [True, True]
    assert not lock_path(LAST).exists()
