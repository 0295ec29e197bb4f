"""Threads that leave nothing behind."""

import os
import threading

from carvana.threads import thread_pool


def test_threads_have_exited_when_their_pool_closes():
    """A lock that a thread still holds would stay locked in a process that is forked then."""
    for _ in range(100):
        with thread_pool(4) as pool:
            started = set(pool.map(_native_id, range(8)))
        assert not [number for number in started if os.path.exists(f"/proc/self/task/{number}")]


def _native_id(_):
    return threading.get_native_id()
