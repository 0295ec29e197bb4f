"""The challenge's csv of run lengths, which an interrupted run continues."""

import contextlib
import csv
import glob
import itertools
import json
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from carvana import distributed
from carvana.errors import UserError, WriteError, error_summary, one_line, plural, remedy_of
from carvana.files import replacing
from carvana.locks import locked
from carvana.submission_settings import settings_file, settings_of

HEADER = ("img", "rle_mask")  # of the challenge
MAX_FIELD = 2**31 - 1  # characters; run lengths can be longer than csv's usual limit


def run_lengths(mask: np.ndarray) -> str:
    """Return "start length start length ..." of a mask, bool or uint8 0 and 1, (H, W).

    Pixels are counted from 1, from left to right, then from top to bottom.
    """
    flat = np.concatenate([[False], mask.reshape(-1).astype(bool), [False]])
    places = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    places[1::2] -= places[::2]
    return " ".join(map(str, places))


class Submission:
    """A csv that grows by a row at a time. What an earlier run wrote to it stays.

    Of several processes the first writes to it, the others to files beside it that are added at
    the end, or by the next run.

    Attributes:
        done: the names that have a row.
    """

    def __init__(self, path: str | Path, settings: dict[str, Any]) -> None:
        self.path = Path(path)
        self.settings = settings
        self.done: set[str] = set()
        self.written = 0.0  # when earlier runs did last, in seconds since 1970
        self.stack = contextlib.ExitStack()  # what ends with the block

    def __enter__(self) -> "Submission":
        """Open the csv.

        Raises:
            UserError: another process writes it, or has written it with other settings meanwhile.
        """
        with self.stack:
            self.done = distributed.from_first(self._take_over)
            # surrogateescape: names of files need not be text
            self.file = open(
                self._file_to_write(), "a", newline="", encoding="utf-8", errors="surrogateescape"
            )
            self.writer = csv.writer(self.file, lineterminator="\n")
            if self.file.tell() == 0 and distributed.FIRST:
                self._write_row(HEADER)
            self.stack = self.stack.pop_all()
        return self

    def _take_over(self) -> set[str]:
        """Put in order what earlier runs left, in the first process; return what is done."""
        claim = f"another process is writing {one_line(self.path)}"
        advice = "wait until it ends, or name another file with --rle"
        self.stack.enter_context(locked(self.path, claim, advice))
        if not self.path.exists():
            for shard in self._shards():  # of a csv that is gone
                shard.unlink()
            return set()
        self.written = self.path.stat().st_mtime
        if settings_of(self.path) != self.settings:
            raise UserError(f"another process has just written {one_line(self.path)}; remove it")
        return self._resume()

    def is_older_than(self, path: Path) -> bool:
        """Return whether a file has changed after earlier runs wrote the csv."""
        try:
            return path.stat().st_mtime > self.written
        except OSError:  # gone; who masks it says so
            return False

    def _resume(self) -> set[str]:
        with open(self.path, "rb+") as file:
            complete = _complete_bytes(file)
            if complete < file.tell():
                file.truncate(complete)  # drops the row in which the run ended
        self._add_shards()
        csv.field_size_limit(MAX_FIELD)
        with open(self.path, newline="", encoding="utf-8", errors="surrogateescape") as file:
            rows = itertools.islice(csv.reader(file), 1, None)
            done = {row[0] for row in rows if row}
        if done:
            print(f"{self.path}: continuing after {plural(len(done), 'row')}")
        return done

    def _file_to_write(self) -> Path:
        """Return this process's file; the first process notes the settings."""
        if not distributed.FIRST:
            return self.path.with_name(f".{self.path.name}.{distributed.RANK}")
        with replacing(settings_file(self.path)) as temporary:
            temporary.write_text(json.dumps(self.settings))
        return self.path

    def __exit__(self, failure: type[BaseException] | None, *_: object) -> None:
        with self.stack:
            try:
                self.file.close()
            except OSError:
                if failure is None:  # else the full disk that it fails on is reported already
                    raise
            if failure is None and distributed.FIRST:
                self._add_shards()

    def add(self, name: str, runs: str) -> None:
        """Add a row; it is in the file when this returns.

        Raises:
            WriteError: it cannot be written; the next run drops what there is of it.
        """
        self._write_row((name, runs))
        self.done.add(name)

    def _write_row(self, row: tuple[str, str]) -> None:
        try:
            self.writer.writerow(row)
            self.file.flush()
        except OSError as error:
            remedy = remedy_of(error)
            raise WriteError(
                f"{one_line(self.path)} cannot be written ({error_summary(error)}); {remedy}"
            ) from error

    def _shards(self) -> list[Path]:
        """Return the files that other processes write."""
        return sorted(self.path.parent.glob(f".{glob.escape(self.path.name)}.[0-9]*"))

    def _add_shards(self) -> None:
        """Move what other processes wrote into the csv: whole rows of photographs it lacks."""
        for path in self._shards():
            with open(self.path, "rb") as file:
                present = {_name_in(line) for line in file}
            with open(path, "rb") as shard, open(self.path, "ab") as file:
                for line in shard:
                    if line.endswith(b"\n") and _name_in(line) not in present:
                        file.write(line)
            path.unlink()


def _name_in(line: bytes) -> bytes:
    return line.rsplit(b",", 1)[0]


def _complete_bytes(file: BinaryIO) -> int:
    """Return how many bytes of a file are whole lines."""
    return sum(len(line) for line in file if line.endswith(b"\n"))
