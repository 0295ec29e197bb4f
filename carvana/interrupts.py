"""What ends a stretch of training before its epoch does: a signal, the clock, a loader that fails."""

import os
import signal
import sys
import threading

import parallel


class Stretch:
    """The batches of an epoch behind its first `done` images, until pause() is true after a step, or reading fails.

    A loader for train_fn. accumulate: batches to a step. done: images whose step is complete; error: what reading failed with, kept so that what
    was learnt up to then can be saved first. batch: images of the current batch that are this process's, those of all
    processes together, and the weight of this one's loss in the mean of all."""

    def __init__(self, loader, epoch, done, pause=lambda done: False, accumulate=1):
        self.loader, self.epoch, self.first, self.done, self.pause, self.accumulate, self.error = (
            loader,
            epoch,
            done,
            done,
            pause,
            accumulate,
            None,
        )
        self.dataset, self.batch_size, self.sampler = (
            loader.dataset,
            loader.batch_size * parallel.RANKS,
            loader.sampler,
        )

    def __len__(self):
        return -(-(len(self.dataset) - self.first) // self.batch_size)

    def __iter__(self):
        self.sampler.epoch, self.sampler.start = self.epoch, self.first
        given = self.first
        try:
            for number, batch in enumerate(self.loader, 1):
                images = min(self.batch_size, len(self.dataset) - given)
                own = len(parallel.part(images))
                self.batch = own, images, own * parallel.RANKS / images
                yield batch
                given += images
                if number % self.accumulate == 0 or number == len(self):
                    self.done = given
                    if self.pause(self.done):
                        return
        except (
            Exception
        ) as error:  # from reading alone: what goes wrong in a step is not raised here
            if parallel.RANKS > 1:  # the others are in the middle of a step
                raise
            self.error = error


class Signals:
    """with Signals() as signals: the first Ctrl-C or SIGTERM only sets signals.received; a second one ends the process at once."""

    def __enter__(self):
        self.received = None
        if threading.current_thread() is threading.main_thread():
            self.before = {
                number: signal.signal(number, self.receive)
                for number in (signal.SIGINT, signal.SIGTERM)
            }
        return self

    def receive(self, number, _frame):
        self.received = number
        self.restore()
        print(
            "\nending after this step, with a checkpoint; once more ends at once", file=sys.stderr
        )

    def restore(self):
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(
                number, signal.SIG_DFL if number == signal.SIGTERM else signal.default_int_handler
            )

    def __exit__(self, *_):
        for number, handler in getattr(self, "before", {}).items():
            signal.signal(number, handler)


def leave_signals_alone(_worker):
    """For a loader's workers: what is sent to a terminal's whole group is for the training process, which ends them when it is done."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(os, "setpgrp"):  # not on Windows
        os.setpgrp()
