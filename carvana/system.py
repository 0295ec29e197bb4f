"""What differs between Linux, macOS and Windows: no other file asks where it runs."""

import contextlib
import ctypes
import errno
import gc
import os
import platform
import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from types import FrameType, ModuleType

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

LINUX = sys.platform == "linux"
MACOS = sys.platform == "darwin"
WINDOWS = sys.platform == "win32"
START_VARIABLE = "CARVANA_START_METHOD"  # has processes start as on another system, for tests
SHARED_MEMORY = "/dev/shm" if LINUX else ""  # where processes hand over batches, if in a folder
DENIED = "check its permissions"  # what to do about a file that must not be written
if WINDOWS:
    DENIED += ", and close the programs that have it open"
RETRY_SECONDS = (0.05, 0.1, 0.2, 0.4, 0.6)  # a scanner of files lets go of a new one after that
WINDOWS_DEVICE = re.compile(r"(con|prn|aux|nul|com[1-9]|lpt[1-9]) *(\..*)?", re.IGNORECASE)
WINDOWS_SIGN = re.compile(r'[<>:"|?*\\\x00-\x1f]|[ .]$')  # that no file's name has, or ends with

# ---------------------------------------------------------------- processors and memory


def available_cores() -> int:
    """Return how many cores this process may use; macOS and Windows tell only what there is."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    if hasattr(os, "process_cpu_count"):  # Python 3.13
        return os.process_cpu_count() or 1
    return os.cpu_count() or 1


def limit_cores(count: int) -> None:
    """Keep this process to the first cores that it may use, on Linux alone."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])


def processor_name() -> str:
    """Return the processor's name, of which Linux keeps the best one in a file."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line for line in lines if line.startswith("model name")).split(":")[1].strip()
    return platform.processor() or platform.machine()


def total_memory() -> int | None:
    """Return the machine's bytes of memory; None on Windows."""
    with contextlib.suppress(AttributeError, ValueError, OSError):
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return size if size > 0 else None
    return None


def peak_memory() -> int:
    """Return the most bytes that this process has held; 0 on Windows. macOS counts in bytes."""
    if resource is None:
        return 0
    unit = 1 if MACOS else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def private_memory() -> int:
    """Return the bytes that belong to this process alone, not to a mapped file; 0 but on Linux."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    return 0


def set_malloc_options(options: Mapping[int, int]) -> None:
    """Call glibc's mallopt(3), which neither musl nor macOS nor Windows have."""
    if LINUX:
        with contextlib.suppress(OSError, AttributeError):
            library = ctypes.CDLL(None)
            for parameter, value in options.items():
                library.mallopt(parameter, value)


# ---------------------------------------------------------------- threads and processes


def is_running(thread: int) -> bool:
    """Return whether the thread with this native id has yet to exit; False but on Linux."""
    return os.path.exists(f"/proc/self/task/{thread}")


def start_method() -> str:
    """Return how processes start: as copies on Linux, anew on macOS and Windows."""
    return os.environ.get(START_VARIABLE) or ("fork" if LINUX else "spawn")


@contextlib.contextmanager
def without_main_module() -> Iterator[None]:
    """Have processes that are spawned within the block not import the script that was started.

    What it imports can take seconds and, on Windows, more memory than there is.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def is_broken_pipe(error: BaseException) -> bool:
    """Return whether an error says that a process has ended. On Windows it may be EINVAL."""
    if isinstance(error, ConnectionError | EOFError):
        return True
    return WINDOWS and isinstance(error, OSError) and error.errno == errno.EINVAL


# ---------------------------------------------------------------- signals


def stop_signals() -> list[signal.Signals]:
    """Return the signals of Ctrl-C and a launcher, of a closed terminal, of Windows' Ctrl-Break."""
    names = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")
    return [getattr(signal, name) for name in names if hasattr(signal, name)]


def leave_signals_to_parent(grace: int) -> None:
    """Have this process ignore the terminal's signals, and end `grace` seconds after SIGTERM.

    On Windows nobody can send SIGTERM, which ends a process at once.
    """
    for number in stop_signals():
        signal.signal(number, signal.SIG_IGN)
    if not WINDOWS:
        os.setpgrp()
        signal.signal(signal.SIGTERM, partial(_end_soon, grace))


def _end_soon(grace: int, _number: int, _frame: FrameType | None) -> None:
    """Have the system end this process in a while, by SIGALRM: nothing may wait for it forever."""
    signal.alarm(grace)


@contextlib.contextmanager
def child_handler_kept() -> Iterator[None]:
    """Put the handler of SIGCHLD, which Windows does not have, back after the block."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not hasattr(signal, "SIGCHLD") or not in_main_thread:
        yield
        return
    handler = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        if handler is not None:  # one that was not set by Python
            signal.signal(signal.SIGCHLD, handler)


# ---------------------------------------------------------------- files


def replace(source: str | Path, target: str | Path) -> None:
    """Give a file another's name; on Windows, wait a little for who has either of them open."""
    _insist(os.replace, source, target)


def move_folder(source: str | Path, target: str | Path) -> None:
    """Rename a folder, also to that of an empty one, which Windows does not replace by itself.

    Raises:
        OSError: there is something at `target`, or on Windows something in `source` is open.
    """
    if WINDOWS:
        with contextlib.suppress(OSError):
            os.rmdir(target)
    _insist(os.rename, source, target)


def _insist(rename: Callable[..., None], source: str | Path, target: str | Path) -> None:
    """Rename; on Windows, try again while something is open."""
    pauses = RETRY_SECONDS if WINDOWS else ()
    for number, seconds in enumerate(pauses):
        with contextlib.suppress(PermissionError):
            rename(source, target)
            return
        if number == 0:
            gc.collect()  # what nobody uses any more may have it mapped
        time.sleep(seconds)
    rename(source, target)


def sync_folder(folder: str | Path) -> None:
    """Make a rename in a folder survive a loss of power. Windows opens no folders."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def link_or_copy(path: str | Path, name: str | Path) -> None:
    """Give a file a second name; on Windows few may make links, so it is copied."""
    try:
        os.symlink(path, name)
    except OSError:
        shutil.copyfile(path, name)


def name_key(name: str) -> str:
    """Return what two names in one folder must not share: Windows and macOS ignore the case."""
    return name if LINUX else name.lower()


def is_possible_name(name: str) -> bool:
    """Return whether a path can have this part: Windows keeps some for devices and streams."""
    if not WINDOWS or name == "..":
        return True
    return not (WINDOWS_DEVICE.fullmatch(name) or WINDOWS_SIGN.search(name))


def error_numbers(*names: str) -> tuple[int, ...]:
    """Return the numbers of these errors, such as "ENOTSUP", as far as the system has them."""
    return tuple(vars(errno)[name] for name in names if name in vars(errno))
