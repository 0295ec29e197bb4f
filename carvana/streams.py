"""Standard output and error that may lose their reader, or the disk under a log, at any time."""

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO

FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # what follows may find room again


class LenientStream:
    """A text stream that drops what cannot be written; everything else is the stream's own.

    `python train.py | head` and a terminal that is closed end nobody's training.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """Write text, or drop it; return its length."""
        try:
            return self.stream.write(text)
        except OSError as error:
            self._note(error)
            return len(text)

    def flush(self) -> None:
        """Write what is buffered, or drop it."""
        try:
            self.stream.flush()
        except OSError as error:
            self._note(error)

    def _note(self, error: OSError) -> None:
        if error.errno not in FULL_DISK:
            self.discard_all()

    def close_softly(self) -> None:
        """Write what is buffered, or discard it: Python's own flush at exit must not fail."""
        try:
            self.stream.flush()
        except OSError:
            self.discard_all()

    def discard_all(self) -> None:
        """Send everything, also what is buffered, to the null device from now on."""
        with contextlib.suppress(OSError, ValueError):  # a stream without a file needs none
            descriptor = self.stream.fileno()
            null_device = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null_device, descriptor)
            os.close(null_device)


def _occupy_standard_descriptors() -> None:
    """Open the null device where standard input, output or error are closed.

    Else the next file to be opened would take the place, and what libraries print.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number


def null_stream() -> TextIO:
    """Return a stream that takes every text and keeps nothing. It stays open to the end."""
    return open(os.devnull, "w", encoding="utf-8", errors="backslashreplace")


@contextlib.contextmanager
def lenient_streams() -> Iterator[None]:
    """Within the block, sys.stdout and sys.stderr drop what cannot be written.

    A process that was started without them (python train.py >&-) gets the null device.
    """
    _occupy_standard_descriptors()
    stdout = LenientStream(sys.stdout or null_stream())
    stderr = LenientStream(sys.stderr or null_stream())
    try:
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
            yield
    finally:
        for stream in (stdout, stderr):
            stream.close_softly()
