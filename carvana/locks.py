"""Locks on what a training writes, so that two of them do not share a file."""

import contextlib
import os
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from filelock import FileLock, Timeout

from carvana.errors import REMEDIES, UserError, error_summary, one_line
from carvana.options import option_name


@contextlib.contextmanager
def output_locks(outputs: Mapping[str, str | Path]) -> Iterator[None]:
    """Hold a lock on each output of a run within the block.

    The system releases the locks of a process that ends in whatever way; a lock file that it
    leaves behind says who it was, and locks nothing.

    Args:
        outputs: the files and folders that the run writes, by the constant that names each.

    Raises:
        UserError: another process holds some, or a lock cannot be written.
    """
    with contextlib.ExitStack() as stack:
        holders = {}
        for constant, output in outputs.items():
            try:
                stack.enter_context(_lock(lock_path(output)))
            except Timeout:
                holders[constant] = _holder(lock_path(output))
            except OSError as error:
                remedy = REMEDIES.get(error.errno, "check the path")
                raise UserError(
                    f"{option_name(constant)}: nothing can be written to the folder of "
                    f"{one_line(output)} ({error_summary(error)}); {remedy}, or name another"
                ) from error
        if holders:
            raise UserError(_describe(holders, outputs))
        yield


def lock_path(output: str | Path) -> Path:
    """Return the path of an output's lock file, the same for all spellings of the output."""
    path = Path(os.path.realpath(output))
    return path.with_name(f".{path.name}.lock")


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path, timeout=0):
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        path.write_text(f"process {os.getpid()} on {socket.gethostname()}, since {since}\n")
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # Windows removes no open file
                path.unlink()


def _holder(path: Path) -> str:
    """Return who holds a lock, in words."""
    try:
        return one_line(path.read_text().strip()) or "which is just starting"
    except OSError:
        return "which is just ending"


def _describe(holders: Mapping[str, str], outputs: Mapping[str, str | Path]) -> str:
    """Return the message of a run that cannot write its outputs."""
    names = " and ".join(one_line(outputs[constant]) for constant in holders)
    chosen = " ".join(f"{option_name(constant)} OTHER" for constant in holders)
    holder = next(iter(holders.values()))
    return (
        f"another training writes {names} ({holder}); wait until it ends, or train beside it "
        f"with {chosen}"
    )
