"""What a training writes besides its checkpoints: one that cannot be written does not end it."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from carvana.errors import UserError, error_summary, one_line, warn


class Byproducts:
    """The pictures, pages and tables of a training run."""

    def __init__(self) -> None:
        self.warnings: set[str] = set()  # printed already: a full disk fails in every epoch

    @contextlib.contextmanager
    def writing(self, path: str | Path) -> Iterator[None]:
        """Turn whatever fails within the block into a warning, once in a run for each reason.

        Args:
            path: the file or folder that the block writes.
        """
        try:
            yield
        except Exception as error:  # a full disk, no memory, a damaged matplotlib: nearly anything
            message = str(error)
            if not isinstance(error, UserError):  # it names the file and what to do
                message = f"{one_line(path)} cannot be written ({error_summary(error)})"
            if message not in self.warnings:
                self.warnings.add(message)
                warn(f"warning: {message}; training goes on without it")
