"""Threads and memory: using all cores without leaving anything behind."""

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

from tqdm import tqdm

from carvana import system

M_TRIM_THRESHOLD = -1  # parameters of mallopt(3)
M_MMAP_MAX = -4
M_ARENA_MAX = -8
MAX_PENDING = 32  # results that wait to be taken, so that memory does not grow with the items


def cores() -> int:
    """Return how many cores this process may use: its share of them under torchrun."""
    return max(1, system.available_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


@contextlib.contextmanager
def thread_pool(threads: int) -> Iterator[ThreadPoolExecutor]:
    """Give a pool of threads that returns only once its threads have exited.

    A joined thread may still clean up after OpenCV; forking meanwhile can deadlock on its lock.
    """
    started = []
    try:
        with ThreadPoolExecutor(
            threads, initializer=lambda: started.append(threading.get_native_id())
        ) as pool:
            yield pool
    finally:
        while any(map(system.is_running, started)):
            time.sleep(1e-4)


def map_in_threads(
    function: Callable,
    items: Sequence,
    description: str,
    unit: str = " pairs",
    threads: int | None = None,
) -> Generator[Any, None, None]:
    """Yield function(item) for each item, in order, on all cores, with a progress bar.

    Wrap it in contextlib.closing() to end its threads when the loop is left early.
    """
    remaining = iter(items)
    bar = tqdm(
        total=len(items), desc=description, unit=unit, delay=1, dynamic_ncols=True, leave=False
    )
    with thread_pool(threads or cores()) as pool, bar:
        pending = deque(pool.submit(function, item) for item in islice(remaining, MAX_PENDING))
        try:
            while pending:
                result = pending.popleft().result()
                pending.extend(pool.submit(function, item) for item in islice(remaining, 1))
                yield result
                bar.update()
        finally:
            for future in pending:  # after an error or Ctrl-C
                future.cancel()


def keep_freed_memory() -> None:
    """Let glibc keep freed memory: fresh pages cost more than what is computed in them.

    This helps with arrays of megabytes on a CPU. With any other C library it does nothing. All
    threads share one arena: glibc returns the memory of any other to the system nevertheless.
    """
    system.set_malloc_options({M_MMAP_MAX: 0, M_TRIM_THRESHOLD: 2**31 - 1, M_ARENA_MAX: 1})
