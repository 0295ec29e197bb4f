"""Errors that users see, and how they are put into words."""

import contextlib
import errno
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from carvana import system
from carvana.streams import lenient_streams

REMEDIES = {
    errno.ENOSPC: "free some space",
    errno.EFBIG: "free some space",
    errno.EDQUOT: "free some space",
    errno.EACCES: system.DENIED,
    errno.EPERM: system.DENIED,
    errno.EROFS: "choose a folder that can be written to",
    errno.ENAMETOOLONG: "choose a shorter name",
}
SHARED_MEMORY = system.SHARED_MEMORY or "shared memory"
PAGING_FILE = "the paging file is too small for so many processes; lower NUM_WORKERS, or enlarge it"
SMALLER = "lower BATCH_SIZE first, then IMAGE_HEIGHT and IMAGE_WIDTH, or FEATURES"
MEMORY = f"the memory is too small for this; {SMALLER}"
GPU_MEMORY = (
    f"the GPU's memory is too small for this; {SMALLER}; in training COMPILE false takes less, too"
)
TORCH_ERRORS = {  # a phrase in torch's message -> what it means here
    "out of memory": GPU_MEMORY,
    "STATUS_ALLOC_FAILED": GPU_MEMORY,  # of cuDNN and cuBLAS
    "STATUS_NOT_INITIALIZED": GPU_MEMORY,  # they need some to start
    "unable to find an engine": f"{GPU_MEMORY}; if it is large enough, set PRECISION to fp32",
    "Unable to allocate": MEMORY,
    "allocate memory": MEMORY,
    "not enough memory": MEMORY,  # on Windows
    "exited unexpectedly": "a process that reads the images was ended from outside, usually for "
    "want of memory; lower NUM_WORKERS or BATCH_SIZE",
    "killed by signal": "a process that reads the images was killed, for want of memory or of "
    f"{SHARED_MEMORY}; set NUM_WORKERS to 0 or lower BATCH_SIZE",
    "shared memory": f"{SHARED_MEMORY} is too small for the batches that are read ahead; set "
    "NUM_WORKERS to 0 or lower BATCH_SIZE; docker run --shm-size 2g makes it larger",
    "WinError 1455": PAGING_FILE,  # each process that imports torch reserves gigabytes on Windows
    "error code: <1455>": PAGING_FILE,
    "no kernel image": "this torch has no code for this GPU, which is too old or too new for it; "
    "install one that has (pytorch.org/get-started/locally), or use --device cpu",
    "driver version is insufficient": "this torch needs a newer driver of the GPU; install one, or "
    "use --device cpu",
    "leaves BatchNorm": "the last batch is too small; change BATCH_SIZE so that it holds more than "
    "one image, or enlarge the images",
}


class UserError(Exception):
    """Something only the user can put right: what was expected, what was found, what to type."""


class WriteError(UserError):
    """A file cannot be written for a reason that holds for others too, such as a full disk."""


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Turn what a script's user can put right into one message on stderr and exit status 2.

    That is a UserError, a refusal by the system (OSError), or one of TORCH_ERRORS. Ctrl-C exits
    with status 130. Everything else is a bug and keeps its traceback. Output that cannot be
    written is dropped.
    """
    if hasattr(sys.stdout, "reconfigure"):  # a notebook's has no such method
        # A log file shows each line at once; a terminal may lack a letter of a file's name.
        sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")
    with lenient_streams():
        try:
            yield
        except UserError as error:
            message = str(error).rsplit("UserError: ", 1)[-1].strip()  # out of a worker's traceback
            _exit(f"error: {message}", 2)
        except OSError as error:
            _exit(f"error: {describe_os_error(error)}", 2)
        except AttributeError as error:  # MissingConstant, where a script asks the module itself
            if not str(error).startswith("module 'config' has no attribute "):
                raise
            _exit(f"error: config.py has no constant {error.name}; put its line back", 2)
        except (RuntimeError, ValueError, MemoryError) as error:
            advice = torch_advice(error)
            if advice is None:
                raise
            _exit(f"error: {advice} ({error_summary(error)})", 2)
        except KeyboardInterrupt:
            _exit("\ninterrupted", 130)


def _exit(message: str, status: int) -> None:
    warn(message)
    sys.exit(status)


def torch_advice(error: BaseException) -> str | None:
    """Return what one of torch's errors means here and what to change; None for any other."""
    message = str(error)
    return next((advice for phrase, advice in TORCH_ERRORS.items() if phrase in message), None)


def warn(message: str) -> None:
    """Print a message to stderr."""
    print(message, file=sys.stderr)


def remedy_of(error: OSError) -> str:
    """Return what to do about a refusal by the system."""
    return REMEDIES.get(error.errno or 0, "check the path")


def describe_os_error(error: OSError) -> str:
    """Return which file, what is wrong, and what to do about it."""
    remedy = remedy_of(error)
    if "WinError 1455" in str(error):
        remedy = PAGING_FILE
    description = f"{error_summary(error)}; {remedy}"
    if error.filename is None:
        return description
    return f"{one_line(error.filename)}: {description}"


def error_summary(error: BaseException | str) -> str:
    """Return an error in one line: the system's words, the message's first line, or its type."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = str(error).splitlines() or [type(error).__name__]
    return one_line(lines[0])


def one_line(text: object) -> str:
    """Return text as one printable line: line breaks and control codes become escapes."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in str(text))


def plural(count: int, noun: str) -> str:
    """Return a count and its noun: "1 problem", "2,000 problems"."""
    ending = "" if count == 1 else "s"
    return f"{count:,} {noun}{ending}"


def first_few(items: Sequence[str], limit: int = 3) -> str:
    """Return the first items in one line, and how many more there are."""
    return "; ".join(first_lines(items, limit))


def first_lines(lines: Sequence[str], limit: int) -> list[str]:
    """Return the first lines, and one that says how many more there are."""
    more = len(lines) - limit
    return [*lines[:limit], f"and {more:,} more"] if more > 0 else list(lines)


def bullet_list(headline: str, lines: Iterable[str]) -> str:
    """Return a headline with its details below it, one a line."""
    return "\n  ".join([headline, *lines])


def result_or_error(function: Callable, *args: Any, **kwargs: Any) -> Any:
    """Return what the function returns, or the UserError that it raises."""
    try:
        return function(*args, **kwargs)
    except UserError as error:
        return error


def raise_all(results: Iterable[Any]) -> None:
    """Raise one UserError that lists every UserError in `results` once, if there is any."""
    messages = [str(result) for result in results if isinstance(result, UserError)]
    if messages:
        raise UserError("\n".join(dict.fromkeys(messages)))
