"""Locks on what a process writes, so that two of them do not share a file."""

import contextlib
import os
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from filelock import FileLock, Timeout

from carvana import system
from carvana.errors import UserError, error_summary, one_line, remedy_of
from carvana.schema import option_name

NO_LOCKS = system.error_numbers("ENOSYS", "ENOTSUP", "EOPNOTSUPP", "ENOLCK")  # of network disks


@contextlib.contextmanager
def locked(output: str | Path, claim: str, advice: str) -> Iterator[None]:
    """Hold a lock on a file or folder within the block, and say in the lock's file who does.

    The system releases the lock of a process that ends in whatever way; a file that it leaves
    behind locks nothing. On a disk without locks there is none.

    Args:
        claim: what another holder is doing, such as "another training writes a.pth.tar".
        advice: what to do then.

    Raises:
        UserError: another process holds it.
        OSError: nothing can be written to the folder of `output`.
    """
    path = lock_path(output)
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(f"{claim} ({_holder(path)}); {advice}") from None
    except NotImplementedError:
        pass
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    try:
        if lock.is_locked:
            since = time.strftime("%Y-%m-%d %H:%M:%S")
            with contextlib.suppress(OSError):  # a full disk; Windows, which locks the content too
                note = f"process {os.getpid()} on {socket.gethostname()}, since {since}\n"
                path.write_text(note, encoding="utf-8")
        yield
    finally:
        if lock.is_locked:
            with contextlib.suppress(OSError):  # Windows removes no open file
                path.unlink()
        lock.release()


def lock_path(output: str | Path) -> Path:
    """Return the path of an output's lock file, the same for all spellings of the output."""
    path = Path(os.path.realpath(output))
    return path.with_name(f".{path.name.removeprefix('.')}.lock")


def _holder(path: Path) -> str:
    """Return who holds a lock, in words."""
    try:
        note = path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:  # Windows locks the content too
        note = ""
    return one_line(note) or "which has left no note"


@contextlib.contextmanager
def output_locks(outputs: Mapping[str, str | Path]) -> Iterator[None]:
    """Hold a lock on each output of a training within the block.

    Args:
        outputs: the files and folders that the run writes, by the constant that names each.

    Raises:
        UserError: another process holds one, or nothing can be written beside it.
    """
    constants = list(outputs)
    with contextlib.ExitStack() as stack:
        # The first refusal ends it: two runs that start at once must not refuse each other.
        for number, (constant, output) in enumerate(outputs.items()):
            others = " ".join(f"{option_name(name)} OTHER" for name in constants[number:])
            claim = f"another training writes {one_line(output)}"
            advice = f"wait until it ends, or train beside it with {others}"
            # A folder may be all that can be written to, as in a container.
            target = Path(output, "run") if constant.endswith("_DIR") else output
            try:
                stack.enter_context(locked(target, claim, advice))
            except OSError as error:
                remedy = remedy_of(error)
                raise UserError(
                    f"{option_name(constant)}: nothing can be written to the folder of "
                    f"{one_line(output)} ({error_summary(error)}); {remedy}, or name another"
                ) from error
        yield
