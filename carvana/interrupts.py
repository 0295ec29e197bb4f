"""What ends training within an epoch: a signal, the clock, an evaluation that is due."""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Collection
from types import FrameType
from typing import Any

from carvana import distributed, system

STOPPING = "\nstopping after this step, with a checkpoint; Ctrl-C once more stops at once\n"
WORKER_GRACE = 10  # seconds that a loader's worker goes on after SIGTERM


class Interrupted(Exception):
    """A signal ends the run.

    Attributes:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class Signals:
    """Within the block, the first signal only sets .received; Ctrl-C after that ends the process.

    A launcher passes on what its processes have received already: under one, and for all signals
    but Ctrl-C, further ones change nothing. A signal that was being ignored still is, as under
    nohup.
    """

    def __init__(self) -> None:
        self.received = 0
        self.previous: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        if threading.current_thread() is not threading.main_thread():
            return self
        for number in system.stop_signals():
            if signal.getsignal(number) is not signal.SIG_IGN:
                self.previous[number] = signal.signal(number, self._receive)
        return self

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        if self.received:
            if number == signal.SIGINT and not distributed.LAUNCHED:
                raise KeyboardInterrupt
            return
        self.received = number
        # Not by print: the signal may come in the middle of one.
        with contextlib.suppress(OSError, ValueError, AttributeError):
            os.write(sys.stderr.fileno(), STOPPING.encode())

    def __exit__(self, *_: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """Raise Interrupted, in all processes, if any of them has received a signal."""
        (number,) = distributed.all_reduce_max(self.received)
        if number:
            raise Interrupted(number)


class Pause:
    """When to stop within an epoch: at a signal, at an evaluation that is due, by the clock.

    All processes agree on it. Called with the number of images done after each optimizer step.

    Attributes:
        signal: that any of the processes has received, 0 for none.
        checkpoint_due: whether the last checkpoint is too long ago in any of the processes.
    """

    def __init__(self, signals: Signals, looks: Collection[int], minutes: float) -> None:
        self.signals = signals
        self.looks = looks  # numbers of images done at which an evaluation is due
        self.seconds = 60 * minutes  # between checkpoints
        self.note_checkpoint()

    def __call__(self, done: int) -> bool:
        overdue = time.monotonic() - self.checkpoint_time > self.seconds
        self.signal, due = distributed.all_reduce_max(self.signals.received, int(overdue))
        self.checkpoint_due = bool(due)
        return bool(self.signal) or self.checkpoint_due or done in self.looks

    def note_checkpoint(self) -> None:
        """Remember that a checkpoint has been written."""
        self.checkpoint_time = time.monotonic()
        self.signal = 0
        self.checkpoint_due = False


def looks_within_epoch(images: int, step_images: int, looks: int) -> set[int]:
    """Return the numbers of images done after which to evaluate: `looks` in each epoch.

    Args:
        images: of an epoch.
        step_images: of an optimizer step.
    """
    steps = images / step_images
    places = {round(steps * (look + 1) / looks) * step_images for look in range(looks - 1)}
    return places | {images}


def leave_signals_alone(_worker: int) -> None:
    """Have a loader's worker leave signals to the training process, which ends its workers.

    Signals that are sent to all processes at once must not take away what that one still reads.
    """
    system.leave_signals_to_parent(WORKER_GRACE)
