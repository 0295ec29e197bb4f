"""What ends training within an epoch: a signal, the clock, an evaluation that is due."""

import os
import signal
import sys
import threading
import time
from collections.abc import Collection
from types import FrameType

from carvana import distributed

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Signals:
    """Within the block, the first Ctrl-C or SIGTERM only sets .received; a second one ends it."""

    def __init__(self) -> None:
        self.received = 0
        self.previous = {}

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():
            self.previous = {number: signal.signal(number, self._receive) for number in SIGNALS}
        return self

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        self.received = number
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        print(
            "\nstopping after this step, with a checkpoint; once more stops at once",
            file=sys.stderr,
        )

    def __exit__(self, *_: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)


class Pause:
    """When to stop within an epoch: at a signal, at an evaluation that is due, by the clock.

    All processes agree on it. Called with the number of images done after each optimizer step.
    """

    def __init__(self, signals: Signals, looks: Collection[int], minutes: float) -> None:
        self.signals = signals
        self.looks = looks  # numbers of images done at which an evaluation is due
        self.seconds = 60 * minutes  # between checkpoints
        self.checkpoint_time = time.monotonic()

    def __call__(self, done: int) -> bool:
        return bool(self.signal_received()) or done in self.looks or self.checkpoint_due()

    def signal_received(self) -> int:
        """Return the signal that any of the processes has received, 0 for none."""
        return distributed.all_reduce_max(self.signals.received)

    def checkpoint_due(self) -> bool:
        """Return whether the last checkpoint is too long ago in any of the processes."""
        overdue = time.monotonic() - self.checkpoint_time > self.seconds
        return bool(distributed.all_reduce_max(int(overdue)))

    def note_checkpoint(self) -> None:
        """Remember that a checkpoint has been written."""
        self.checkpoint_time = time.monotonic()


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
    """Have a loader's worker leave signals of the terminal to the training process.

    It ends its workers when it is done.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(os, "setpgrp"):  # not on Windows
        os.setpgrp()
