"""The challenge's csv: its run lengths, and how an interrupted run continues it."""

import json
import os
import shutil
import signal
import subprocess
import time

import numpy as np
import pytest
from helpers import (
    OWN_MODEL,
    csv_rows,
    picture_width_height,
    run_with_small_files,
    script_command,
    start_at_once,
    write_model,
    write_pairs,
)
from PIL import Image

from carvana.errors import UserError
from carvana.submission import Submission
from carvana.submission_settings import settings_file


def decode(runs, shape):
    """Return the mask, bool (H, W), of "start length ..." with pixels counted from 1, by rows."""
    mask = np.zeros(shape[0] * shape[1], bool)
    numbers = list(map(int, runs.split()))
    for start, length in zip(numbers[::2], numbers[1::2], strict=True):
        mask[start - 1 : start - 1 + length] = True
    return mask.reshape(shape)


def test_submission_holds_the_masks(work, run):
    run("inference.py", *OWN_MODEL, "--img", "photos", "--rle", "all.csv", "--no-overlay")
    header, *rows = csv_rows(work / "all.csv")
    assert header == ["img", "rle_mask"]
    assert [name for name, _ in rows] == sorted(path.name for path in (work / "photos").iterdir())
    for name, runs in rows:
        stem = name.removesuffix(".jpg")
        mask = np.asarray(Image.open(work / f"outputs/{stem}_mask.png")) > 0
        assert np.array_equal(decode(runs, (48, 72)), mask)
        assert sum(map(int, runs.split()[1::2])) == mask.sum()


def test_submission_continues_where_it_stopped(work, run):
    arguments = (*OWN_MODEL, "--img", "photos", "--rle", "a.csv", "--no-save")
    run("inference.py", *arguments)
    whole = (work / "a.csv").read_bytes()
    lines = whole.splitlines(keepends=True)
    for kept in (
        b"",
        lines[0][:5],
        b"".join(lines[:3]),
        b"".join(lines[:3]) + lines[3][:30],
        b"".join(lines[:6]) + lines[6][:-1],
    ):
        (work / "a.csv").write_bytes(kept)
        run("inference.py", *arguments)
        assert (work / "a.csv").read_bytes() == whole
    assert "0 photographs" in run("inference.py", *arguments).stdout
    assert (work / "a.csv").read_bytes() == whole


@pytest.mark.parametrize(
    "change",
    [
        ("--threshold", 0.4),
        ("--tta",),
        ("--image-levels", 4095),
        ("--model", "other.pth.tar"),
    ],
    ids=str,
)
def test_submission_of_another_run_is_refused(work, run, change):
    write_model(work / "other.pth.tar", seed=5)
    arguments = (*OWN_MODEL, "--img", "photos", "--rle", "a.csv", "--no-save")
    run("inference.py", *arguments)
    whole = (work / "a.csv").read_bytes()
    stderr = run("inference.py", *arguments, *change, status=2).stderr
    assert (
        "was written with another model, --threshold, --tta or --image-levels; remove it" in stderr
    )
    assert (work / "a.csv").read_bytes() == whole


def test_submission_of_another_reader_is_refused(work, run):
    arguments = (*OWN_MODEL, "--img", "photos", "--rle", "a.csv", "--no-save")
    run("inference.py", *arguments)
    file = settings_file(work / "a.csv")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"reader": 6}))
    stderr = run("inference.py", *arguments, status=2).stderr
    assert "written with another version of this program, which reads photographs diff" in stderr


def test_submission_of_other_windows_is_refused(work, run):
    arguments = (*OWN_MODEL, "--img", "photos", "--rle", "a.csv", "--no-save")
    run("inference.py", *arguments, "--tile", 32)
    assert "0 photographs" in run("inference.py", *arguments, "--tile", 32).stdout
    stderr = run("inference.py", *arguments, "--tile", 48, status=2).stderr
    assert "was written with another --tile or --tile-overlap; remove it" in stderr


def test_submission_takes_long_rows_and_odd_names(tmp_path):
    names = ["a,b.jpg", "a,c.jpg", "\udcff.jpg", 'a "b".jpg']
    for done in (0, 2, 4):
        with Submission(tmp_path / "a.csv", {}) as submission:
            assert submission.done == set(names[:done])
            for name in names[done : done + 2]:
                submission.add(name, "1 2 " * 50_000)
    # What a second process has written.
    (tmp_path / ".a.csv.1").write_bytes(b'"a,c.jpg",3 4\n"a,d.jpg",5 6\n')
    with Submission(tmp_path / "a.csv", {}) as submission:
        assert submission.done == {*names, "a,d.jpg"}


def test_submission_is_written_by_one_process_at_a_time(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path)
    with Submission(tmp_path / "a.csv", {}) as submission:
        submission.add("a.jpg", "1 2")
        before = (tmp_path / "a.csv").read_bytes()
        for path in (tmp_path / "a.csv", tmp_path / "link/a.csv"):
            with pytest.raises(
                UserError, match="another process is writing .*a.csv .*; wait until"
            ):
                Submission(path, {}).__enter__()
        assert (tmp_path / "a.csv").read_bytes() == before
    with pytest.raises(UserError, match="another process has just written"):
        Submission(tmp_path / "a.csv", {"threshold": 0.4}).__enter__()
    with Submission(tmp_path / "a.csv", {}) as submission:
        assert submission.done == {"a.jpg"}
    assert not list(tmp_path.glob(".*lock"))


def test_submission_started_twice_at_once_is_whole(work):
    """In processes: one does the work, or the other continues it, or is refused."""
    arguments = (*OWN_MODEL, "--img", "photos", "--rle", "a.csv", "--cutout")
    statuses, messages = start_at_once(work, 2, "inference.py", *arguments)
    for status, message in zip(statuses, messages, strict=True):
        assert status == 0 or "another process is writing a.csv" in message
    assert 0 in statuses and set(statuses) <= {0, 2}
    names = [row[0] for row in csv_rows(work / "a.csv")]
    assert len(names) == len(set(names)) == 7
    for path in (work / "outputs").iterdir():
        picture_width_height(path)


def test_submission_names_the_csv_when_the_disk_is_full(work, run):
    arguments = (*OWN_MODEL, "--img", "photos", "--rle", "a.csv", "--no-save")
    finished = run_with_small_files(work, 600, "inference.py", *arguments)
    assert finished.returncode == 2
    assert "Traceback" not in finished.stderr
    assert "error: a.csv cannot be written (File too large); free some space" in finished.stderr
    run("inference.py", *arguments)
    assert len(csv_rows(work / "a.csv")) == 7


def test_submission_and_pictures_are_whole_after_an_interruption(work, run):
    write_pairs(work / "few", work / "x", cars=4, angles=4, height=240, width=360)
    (work / "many").mkdir()
    for index, path in enumerate(sorted((work / "few").iterdir()) * 15):
        shutil.copy(path, work / f"many/{index:03d}.jpg")
    arguments = (*OWN_MODEL, "--img", "many", "--rle", "a.csv", "--cutout")
    process = subprocess.Popen(
        script_command("inference.py", *arguments),
        cwd=work,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while len(list(work.glob("outputs/*_mask.png"))) < 20:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in stderr
    for path in (work / "outputs").iterdir():
        picture_width_height(path)
    assert 1 < len(csv_rows(work / "a.csv")) < 241
    assert "continuing after" in run("inference.py", *arguments).stdout
    rows = csv_rows(work / "a.csv")
    assert len({row[0] for row in rows}) == len(rows) == 241
    assert len(list((work / "outputs").iterdir())) == 3 * 240


def test_pictures_are_written_of_photographs_that_have_their_rows(work, run):
    arguments = (*OWN_MODEL, "--img", "photos", "--rle", "a.csv")
    run("inference.py", *arguments, "--no-save")
    rows = csv_rows(work / "a.csv")
    finished = run("inference.py", *arguments, "--no-overlay")
    assert "6 photographs in" in finished.stdout
    assert "a.csv holds 6 rows" in finished.stdout
    assert len(list((work / "outputs").glob("*_mask.png"))) == 6
    next((work / "outputs").glob("*_mask.png")).unlink()
    assert "1 photograph in" in run("inference.py", *arguments, "--no-overlay").stdout
    assert "6 photographs in" in run("inference.py", *arguments, "--cutout").stdout
    assert "0 photographs in" in run("inference.py", *arguments, "--cutout").stdout
    assert csv_rows(work / "a.csv") == rows


def test_photograph_that_changed_after_its_row_is_named(work, run):
    arguments = (*OWN_MODEL, "--img", "photos", "--no-save", "--rle", "a.csv")
    assert "changed" not in run("inference.py", *arguments).stderr
    path = min((work / "photos").iterdir())
    later = (work / "a.csv").stat().st_mtime + 60
    os.utime(path, (later, later))
    for _ in range(2):
        stderr = run("inference.py", *arguments).stderr
        assert f"{path.name}: changed after a.csv was written" in stderr
