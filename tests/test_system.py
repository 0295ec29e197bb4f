"""Windows and macOS, as far as they can be simulated: what they lack, refuse and name otherwise."""

import contextlib
import ctypes
import errno
import functools
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers import (
    BEST,
    LAST,
    ROOT,
    check_status,
    csv_rows,
    file_contents,
    is_same,
    learned,
    picture_width_height,
    run_script,
    tiny_options,
    write_pairs,
)

from carvana import cache, preparing, system
from carvana.checkpoint import save_checkpoint
from carvana.classes import Classes
from carvana.errors import UserError, WriteError, user_errors
from carvana.files import file_identity, replacing
from carvana.images import Reading
from carvana.pairs import find_pairs
from carvana.rendering import render_set
from carvana.sources import zip_files
from carvana.streams import null_stream
from carvana.worker_process import WorkerError, WorkerProcess
from dataset import Loader

FAKED = ROOT / "tests/faked_windows"
SCRIPTS = ("prepare_data", "explore", "train", "evaluate", "inference", "export")
HELP_OF_ALL = """
import runpy, sys
for script in sys.argv[1:]:
    sys.argv = [script, "--help"]
    sys.stdout.reconfigure(errors="strict")
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as exit:
        print("status", exit.code)
"""


def refuse(*_, **__):
    raise PermissionError(errno.EACCES, "It is being used by another process")


def absent(*_):
    raise AttributeError


@pytest.fixture
def windows(monkeypatch):
    """What system.py asks for is as on Windows; waiting for open files takes no time."""
    monkeypatch.setattr(system, "LINUX", False)
    monkeypatch.setattr(system, "WINDOWS", True)
    monkeypatch.setattr(system, "RETRY_SECONDS", (0, 0))


# ---------------------------------------------------------------- processors and memory


def test_cores_are_counted_on_every_system(monkeypatch):
    allowed = len(os.sched_getaffinity(0))
    assert system.available_cores() == allowed
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "process_cpu_count", lambda: 3, raising=False)
    assert system.available_cores() == 3
    monkeypatch.delattr(os, "process_cpu_count")
    assert system.available_cores() == os.cpu_count()
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert system.available_cores() == 1


def test_cores_are_limited_where_that_can_be(monkeypatch):
    limits = []
    monkeypatch.setattr(os, "sched_setaffinity", lambda _, cores: limits.append(cores))
    system.limit_cores(1)
    assert [len(cores) for cores in limits] == [1]
    monkeypatch.delattr(os, "sched_setaffinity")
    system.limit_cores(1)
    assert len(limits) == 1


def test_memory_is_told_or_not(monkeypatch):
    assert system.total_memory() > 2**28
    assert system.peak_memory() > 2**20
    assert 0 < system.private_memory() <= system.peak_memory()
    assert system.processor_name()
    peak = system.peak_memory()
    monkeypatch.setattr(system, "MACOS", True)
    assert system.peak_memory() < peak / 500
    monkeypatch.setattr(system, "resource", None)
    assert system.peak_memory() == 0
    monkeypatch.setattr(os, "sysconf", lambda name: 4096 if "SIZE" in name else -1)
    assert system.total_memory() is None
    monkeypatch.delattr(os, "sysconf")
    assert system.total_memory() is None


def test_malloc_is_set_up_where_it_is_glibcs(monkeypatch):
    calls = []
    library = SimpleNamespace(mallopt=lambda *option: calls.append(option))
    monkeypatch.setattr(ctypes, "CDLL", lambda _: library)
    system.set_malloc_options({-4: 0, -1: 5})
    assert calls == [(-4, 0), (-1, 5)]
    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace())  # musl
    system.set_malloc_options({-4: 0})
    monkeypatch.setattr(system, "LINUX", False)
    monkeypatch.setattr(ctypes, "CDLL", absent)
    system.set_malloc_options({-4: 0})


# ---------------------------------------------------------------- processes and signals


@pytest.mark.parametrize(
    "linux, variable, method",
    [(True, "", "fork"), (False, "", "spawn"), (True, "spawn", "spawn")],
)
def test_start_method_is_the_systems(monkeypatch, linux, variable, method):
    monkeypatch.setattr(system, "LINUX", linux)
    monkeypatch.setenv(system.START_VARIABLE, variable)
    assert system.start_method() == method


def test_main_module_is_hidden_for_a_while():
    main = sys.modules["__main__"]
    with pytest.raises(ValueError), system.without_main_module():
        assert not hasattr(sys.modules["__main__"], "__file__")
        raise ValueError
    assert sys.modules["__main__"] is main


def test_threads_are_running_until_they_have_exited():
    assert system.is_running(threading.get_native_id())
    assert not system.is_running(2**22 + 1)


def test_stop_signals_are_those_of_the_system(monkeypatch):
    assert system.stop_signals() == [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
    monkeypatch.delattr(signal, "SIGHUP")
    monkeypatch.setattr(signal, "SIGBREAK", signal.SIGUSR1, raising=False)
    assert system.stop_signals() == [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1]


def test_workers_on_windows_leave_signals_to_the_training(monkeypatch, windows):
    handlers = {}
    monkeypatch.delattr(signal, "SIGHUP")
    monkeypatch.delattr(os, "setpgrp")
    monkeypatch.delattr(signal, "alarm")
    monkeypatch.setattr(signal, "signal", handlers.__setitem__)
    system.leave_signals_to_parent(10)
    assert handlers == {signal.SIGINT: signal.SIG_IGN, signal.SIGTERM: signal.SIG_IGN}


def test_handler_of_child_processes_is_kept(monkeypatch):
    before = signal.getsignal(signal.SIGCHLD)
    with system.child_handler_kept():
        signal.signal(signal.SIGCHLD, lambda *_: None)
    assert signal.getsignal(signal.SIGCHLD) is before
    monkeypatch.delattr(signal, "SIGCHLD")
    with system.child_handler_kept():
        pass


def test_broken_pipes_are_told_from_other_errors(windows):
    assert system.is_broken_pipe(BrokenPipeError())
    assert system.is_broken_pipe(EOFError())
    assert system.is_broken_pipe(OSError(errno.EINVAL, "Invalid argument"))
    assert not system.is_broken_pipe(OSError(errno.ENOSPC, "No space left"))
    assert not system.is_broken_pipe(ValueError())


class NeverStarts(Loader):
    """A loader whose worker ends before it has read what is sent to it."""

    def _start(self):
        raise OSError(errno.EINVAL, "Invalid argument")


def test_worker_that_does_not_start_is_reported_as_such(windows, capfd):
    loader = NeverStarts([1, 2], num_workers=1, multiprocessing_context="spawn")
    with pytest.raises(SystemExit), user_errors():
        next(iter(loader))
    assert "lower NUM_WORKERS" in capfd.readouterr().err


def start_nothing(process):
    raise FileNotFoundError(errno.ENOENT, "No such file or directory")


def test_worker_process_that_does_not_start_is_reported_as_such(monkeypatch):
    monkeypatch.setattr("multiprocessing.context.SpawnProcess.start", start_nothing)
    with pytest.raises(WorkerError, match="did not start .No such file or directory"):
        WorkerProcess(dict)


@pytest.mark.parametrize(
    "error",
    [
        OSError("[WinError 1455] The paging file is too small. Error loading 'cudnn64.dll'"),
        RuntimeError("Couldn't open shared file mapping: <torch_1_2>, error code: <1455>"),
        RuntimeError("[WinError 1455] Die Auslagerungsdatei ist zu klein"),
    ],
)
def test_paging_file_that_is_too_small_is_answered_with_fewer_workers(error, capfd):
    with pytest.raises(SystemExit), user_errors():
        raise error
    assert "lower NUM_WORKERS, or enlarge it" in capfd.readouterr().err


# ---------------------------------------------------------------- files that are open


class Busy:
    """A function that is refused the first times."""

    def __init__(self, function, refusals):
        self.function = function
        self.refusals = refusals
        self.calls = 0

    def __call__(self, *args):
        self.calls += 1
        if self.calls <= self.refusals:
            refuse()
        return self.function(*args)


def test_replacing_waits_for_who_has_the_file_open(tmp_path, monkeypatch, windows):
    path = tmp_path / "history.csv"
    path.write_text("old", encoding="utf-8")
    monkeypatch.setattr(os, "replace", Busy(os.replace, 2))
    with replacing(path) as temporary:
        temporary.write_text("new", encoding="utf-8")
    assert path.read_text(encoding="utf-8") == "new"
    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(WriteError, match="cannot be written .It is being used"), replacing(path):
        pass
    assert file_contents(tmp_path) == {Path("history.csv"): b"new"}


def test_replacing_waits_for_nobody_on_linux(tmp_path, monkeypatch):
    busy = Busy(os.replace, 1)
    monkeypatch.setattr(os, "replace", busy)
    with pytest.raises(PermissionError):
        system.replace(tmp_path / "a", tmp_path / "b")
    assert busy.calls == 1


def test_folder_takes_the_place_of_an_empty_one(tmp_path, monkeypatch, windows):
    for name in ("new", "out"):
        (tmp_path / name).mkdir()
    (tmp_path / "new/a").touch()
    system.move_folder(tmp_path / "new", tmp_path / "out")
    assert file_contents(tmp_path) == {Path("out/a"): b""}
    (tmp_path / "new").mkdir()
    with pytest.raises(OSError):
        system.move_folder(tmp_path / "new", tmp_path / "out")
    assert file_contents(tmp_path) == {Path("out/a"): b""}


def test_links_are_copies_where_they_are_not_allowed(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(b"a")
    system.link_or_copy(tmp_path / "a", tmp_path / "link")
    monkeypatch.setattr(os, "symlink", refuse)
    system.link_or_copy(tmp_path / "a", tmp_path / "copy")
    assert [(tmp_path / name).is_symlink() for name in ("link", "copy")] == [True, False]
    assert (tmp_path / "copy").read_bytes() == b"a"


def test_folders_that_cannot_be_opened_are_not_synced(tmp_path, monkeypatch):
    system.sync_folder(tmp_path)
    monkeypatch.setattr(os, "open", refuse)
    system.sync_folder(tmp_path)


def test_checkpoint_that_is_open_elsewhere_stays(tmp_path, monkeypatch, windows):
    path = tmp_path / LAST
    save_checkpoint({"run": "a"}, path)
    before = file_contents(tmp_path)
    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(UserError, match="It is being used by another process"):
        save_checkpoint({"run": "a", "epoch": 1}, path)
    assert file_contents(tmp_path) == before


READING = Reading((32, 48), 3, "area", Classes(), 65535)


@pytest.fixture
def pairs(tmp_path):
    write_pairs(tmp_path / "images", tmp_path / "masks", cars=2)
    return find_pairs(tmp_path / "images", tmp_path / "masks")


def remake(monkeypatch, path, pairs):
    """Write a cache's file a second time, as another process does at the same time."""
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refuse)
        return cache._make_cache(path, [], pairs, READING)


def test_cache_that_another_process_has_mapped_is_shared(
    tmp_path, pairs, monkeypatch, windows, capfd
):
    mapped = cache.open_cache(tmp_path / "cache", pairs, READING)
    shared = remake(monkeypatch, mapped.path, pairs)
    assert is_same([image.tolist() for image in shared[1]], [image.tolist() for image in mapped[1]])
    assert "warning" not in capfd.readouterr().err
    assert [path.name for path in mapped.path.parent.iterdir()] == [mapped.path.name]
    mapped.path.write_bytes(b"damaged")
    assert remake(monkeypatch, mapped.path, pairs) is None
    assert "warning: no cache in" in capfd.readouterr().err


def test_cache_of_an_earlier_state_may_be_mapped(tmp_path, pairs, monkeypatch, capfd):
    earlier = cache.open_cache(tmp_path / "cache", pairs, READING)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refuse)
        later = cache.open_cache(tmp_path / "cache", pairs[:-1], READING)
    assert later is not None and earlier.path.exists()
    assert "warning" not in capfd.readouterr().err


@pytest.mark.parametrize("mapped", [True, False])
def test_cache_that_is_damaged_is_given_up(tmp_path, pairs, monkeypatch, mapped, capfd):
    original = cache.open_cache(tmp_path / "cache", pairs, READING)
    good = original[2]
    content = bytearray(original.path.read_bytes())
    content[-100] ^= 255
    original.path.write_bytes(content)
    damaged = cache.open_cache(tmp_path / "cache", pairs, READING)
    sent = pickle.dumps(damaged)
    with monkeypatch.context() as patch:
        if mapped:
            patch.setattr(Path, "unlink", refuse)
        damaged[3]
    assert pickle.loads(sent) is None  # a worker that starts now reads the photographs
    remade = cache.open_cache(tmp_path / "cache", pairs, READING)
    assert (remade[2][0] == good[0]).all() and remade.path.read_bytes() != bytes(content)
    assert "is damaged at" in capfd.readouterr().err


def test_data_that_cannot_be_put_back_is_not_lost(tmp_path, monkeypatch, run):
    write_pairs(tmp_path / "photos", tmp_path / "labels", cars=4)
    command = ("prepare_data.py", "--images", "photos", "--masks", "labels")
    run(*command)
    before = file_contents(tmp_path / "data")
    with monkeypatch.context() as patch:
        patch.setattr(preparing.system, "move_folder", Moves(4))
        stderr = run(*command, "--force", "--seed", 1, status=2).stderr
    assert "the next run puts back what was moved to data/.preparing/old" in stderr
    assert len(list((tmp_path / "data/.preparing/old").iterdir())) > 0
    run(*command)
    assert file_contents(tmp_path / "data") == before


class Moves:
    """system.move_folder, so many times; then somebody has every folder open."""

    def __init__(self, allowed):
        self.move_folder = system.move_folder
        self.allowed = allowed

    def __call__(self, *paths):
        self.allowed -= 1
        if self.allowed < 0:
            refuse()
        self.move_folder(*paths)


def test_archives_are_closed_before_they_are_removed(tmp_path, monkeypatch, run):
    """Kaggle's two zips, unpacked from the outer one: Windows removes no file that is open."""
    write_pairs(tmp_path / "photos", tmp_path / "labels", cars=2)
    (tmp_path / "photos/000000000000_01.jpg").write_bytes(b"bad")
    outer = tmp_path / "outer.zip"
    with zipfile.ZipFile(outer, "w") as archive:
        for name, kind in (("train.zip", "photos"), ("train_masks.zip", "labels")):
            shutil.make_archive(tmp_path / kind, "zip", tmp_path / kind)
            archive.write(tmp_path / f"{kind}.zip", name)
    opened = []
    monkeypatch.setattr(preparing, "_remove", lambda folder: opened.append(open_files(folder)))
    run("prepare_data.py", outer, status=2)
    assert opened == [[], []]


def open_files(folder):
    """Return the files below a folder that this process has open."""
    places = map(os.path.realpath, Path("/proc/self/fd").iterdir())
    return [place for place in places if place.startswith(f"{folder.resolve()}/")]


# ---------------------------------------------------------------- names


@pytest.mark.parametrize("name", ["con", "NUL.png", "com1.jpg", "a:b.jpg", "a?.jpg", "a.", "a\n"])
def test_names_of_windows_are_refused_there(tmp_path, monkeypatch, name):
    assert system.is_possible_name(name)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(f"folder/{name}", b"")
    monkeypatch.setattr(system, "WINDOWS", True)
    assert not system.is_possible_name(name)
    with pytest.raises(UserError, match="Windows does not allow"):
        zip_files(tmp_path / "a.zip", tmp_path)


@pytest.mark.parametrize(
    "name", ["console.jpg", "com10.png", "a.b.jpg", "авто.jpg", ".nul", "c n", ".."]
)
def test_names_of_others_are_not(monkeypatch, name):
    monkeypatch.setattr(system, "WINDOWS", True)
    assert system.is_possible_name(name)


def test_names_that_differ_in_case_are_one_file_but_on_linux(tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.jpg", b"")
        archive.writestr("A.JPG", b"")
    assert len(zip_files(tmp_path / "a.zip", tmp_path)) == 2
    monkeypatch.setattr(system, "LINUX", False)
    with pytest.raises(UserError, match="a second file of that name"):
        zip_files(tmp_path / "a.zip", tmp_path)


def test_files_without_numbers_are_told_by_their_paths(tmp_path, monkeypatch):
    status = SimpleNamespace(st_dev=1, st_ino=0)
    monkeypatch.setattr(os, "stat", lambda _: status)
    assert file_identity(tmp_path / "a") != file_identity(tmp_path / "b")
    assert file_identity(tmp_path / "a") == file_identity(tmp_path / "b/../a")


def test_errors_that_a_system_does_not_have_have_no_number():
    assert system.error_numbers("ENOSPC", "EWINDOWS") == (errno.ENOSPC,)


# ---------------------------------------------------------------- consoles


def test_help_is_printed_on_a_console_of_few_letters(tmp_path):
    scripts = [str(ROOT / f"{script}.py") for script in SCRIPTS]
    done = subprocess.run(
        [sys.executable, "-c", HELP_OF_ALL, *scripts],
        cwd=tmp_path,
        env=os.environ | {"PYTHONIOENCODING": "cp1252", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        encoding="cp1252",
    )
    check_status(done, 0)
    assert done.stdout.count("usage: ") == done.stdout.count("status 0") == len(SCRIPTS)
    assert done.stderr == ""


def test_names_in_other_letters_are_printed_on_a_console_of_few(work, run_process):
    (work / "photos").rename(work / "фото")
    photograph = work / "фото/000000000000_01.jpg"
    photograph.rename(work / "фото/авто.jpg")
    (work / "фото/плохо.jpg").write_bytes(b"bad")
    done = run_process(
        "inference.py",
        *("--img", "фото", "--rle", "маски.csv", "--model", BEST, "--device", "cpu"),
        status=1,
        env={"PYTHONIOENCODING": "cp1252"},
    )
    escaped = "авто".encode("cp1252", "backslashreplace").decode()
    assert f"{escaped}.jpg: car" in done.stdout
    assert "cannot be read" in done.stderr
    assert picture_width_height(work / "outputs/авто_mask.png") == (72, 48)
    with open(work / "маски.csv", encoding="utf-8") as file:
        assert any(line.startswith("авто.jpg,") for line in file)


def test_null_stream_takes_every_letter():
    with null_stream() as stream:
        assert stream.encoding == "utf-8"
        stream.write("авто \udcff")


# ---------------------------------------------------------------- all of it


def test_rendering_with_spawned_processes_is_the_same(tmp_path, monkeypatch):
    options = {"cars": 2, "val_cars": 1, "angles": 2, "size": (32, 48)}
    render_set(tmp_path / "copies", **options)
    monkeypatch.setenv(system.START_VARIABLE, "spawn")
    render_set(tmp_path / "spawned", **options)
    assert file_contents(tmp_path / "spawned") == file_contents(tmp_path / "copies")


def work_on_windows():
    """Render, train, resume and mask, as a user does, in the working folder.

    What is open there can be neither removed nor replaced.
    """
    assert system.WINDOWS and not hasattr(system.os, "fork")
    run = functools.partial(run_script, Path.cwd())
    run("prepare_data.py", "--demo", "--cars", 4, "--angles", 3, "--size", 64, 96)
    first = run("train.py", *tiny_options(NUM_EPOCHS=1, NUM_WORKERS=2))
    assert "warning" not in first.stderr and "best demo Dice" in first.stdout
    with_workers = learned("demo_checkpoint.pth.tar")
    second = run("train.py", *tiny_options(NUM_EPOCHS=1))
    assert "demo_checkpoint.pth.tar is of another run" in second.stdout
    assert is_same(learned("demo_checkpoint.pth.tar"), with_workers)
    resumed = run("train.py", *tiny_options(NUM_EPOCHS=2), "--load-model", "true")
    assert "epoch 2/2" in resumed.stdout
    model = ("--model", "demo_best_checkpoint.pth.tar")
    run("inference.py", "--img", "data/demo/val_images", *model, "--rle", "masks.csv")
    assert len(csv_rows("masks.csv")) == 4
    with contextlib.closing(WorkerProcess(list, "ab")) as process:
        assert process.call("index", "b") == 1
    run("prepare_data.py", "--demo", "--cars", 2, "--angles", 1, "--size", 32, 48, "--force")
    assert not list(Path("data").rglob(".prep*"))


def test_everything_works_on_a_faked_windows(tmp_path):
    paths = os.pathsep.join(map(str, (FAKED, ROOT, ROOT / "tests")))
    done = subprocess.run(
        [sys.executable, "-c", "import test_system; test_system.work_on_windows()"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    check_status(done, 0)
