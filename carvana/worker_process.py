"""An object in a process of its own, for what must not share memory, threads or imports."""

import contextlib
import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from carvana.errors import UserError, error_summary


class WorkerError(Exception):
    """What failed in the other process, or that it ended, in words."""


class WorkerProcess:
    """factory(*args) in a new process, whose methods call() runs there.

    Args:
        daemon: the process ends with this one, and can have none of its own. Any other must be
            closed: this process waits for it.

    Raises:
        UserError, WorkerError: as call() does, if the object cannot be made.
    """

    def __init__(self, factory: Callable, *args: Any, daemon: bool = True) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, factory, args), daemon=daemon)
        try:
            process.start()
        except OSError as error:  # on Windows, also that it ended before it had read all
            raise WorkerError(f"its process did not start ({error_summary(error)})") from None
        theirs.close()
        self._answer()

    def call(self, method: str, *args: Any) -> Any:
        """Return what the object's method returns.

        Raises:
            UserError: the method raised it.
            WorkerError: the method failed otherwise, or the process ended.
        """
        return self._answer((method, args))

    def close(self) -> None:
        """End the process."""
        with contextlib.suppress(OSError):  # it has ended already
            self.connection.send(None)

    def _answer(self, message: tuple[str, tuple] | None = None) -> Any:
        """Send a message, if any, and return what the process answers."""
        try:
            if message:
                self.connection.send(message)
            succeeded, result = self.connection.recv()
        except (EOFError, OSError):
            raise WorkerError("its process ended") from None
        if not succeeded:
            raise result
        return result


def _serve(connection: Connection, factory: Callable, args: tuple) -> None:
    """Make the object and answer calls until None comes."""
    try:
        target = factory(*args)
        connection.send((True, None))
        while (message := connection.recv()) is not None:
            method, method_args = message
            connection.send((True, getattr(target, method)(*method_args)))
    except UserError as error:
        connection.send((False, error))
    except Exception as error:  # of a kind that may not survive the way to the other process
        connection.send((False, WorkerError(f"{type(error).__name__}: {error}")))
