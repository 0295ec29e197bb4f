"""How far a training run has come, and how its losses are read and shown."""

import dataclasses
import math
import time
from collections.abc import Mapping
from typing import Any

import torch
from tqdm import tqdm

from carvana import distributed
from carvana.epochs import PartialEpoch, PlainEpoch
from carvana.errors import UserError

READ_EVERY = 10  # steps between readings of the loss: each waits for the device
FIRST_READINGS = (1, 5)  # further steps; the time of an epoch is estimated between them


@dataclasses.dataclass
class PartDone:
    """What is done of the current epoch."""

    of: int  # images of the whole epoch
    images: int = 0
    loss: float = 0.0  # summed over the images
    seconds: float = 0.0
    evaluated: int = 0  # images that were done when STOP_AT_DICE was last looked for


class Progress:
    """How far a run has come: what a checkpoint says besides weights and optimizer."""

    def __init__(self, run: str, images: int, epochs: int) -> None:
        self.run = run  # tells this training from others
        self.epochs = epochs  # NUM_EPOCHS
        self.epoch = 0  # how many are done
        self.best = -1.0  # highest validation Dice
        self.history: list[dict[str, Any]] = []  # a row per epoch
        self.part = PartDone(images)
        self.stop_reason = ""  # how STOP_AT_DICE was reached, in a line

    def state(self) -> dict[str, Any]:
        """Return plain values for a checkpoint."""
        return {
            "run": self.run,
            "epoch": self.epoch,
            "best": self.best,
            "history": self.history,
            "part": dataclasses.asdict(self.part),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint; one that others wrote counts as epoch 0.

        An epoch that was begun starts again if the number of training images has changed.
        """
        self.run = state.get("run", self.run)
        self.epoch = state.get("epoch", 0)
        self.best = state.get("best", -1.0)
        history = state.get("history", [])
        self.history = history if all(map(_is_own_row, history)) else []
        part = state.get("part")
        if part and part["of"] == self.part.of:
            self.part = PartDone(**part)

    @property
    def images(self) -> int:
        """Return the number of training images."""
        return self.part.of

    @property
    def done(self) -> int:
        """Return how many images of the current epoch are done."""
        return self.part.images

    @property
    def epoch_complete(self) -> bool:
        """Return whether all images of the current epoch are done."""
        return self.part.images >= self.part.of

    @property
    def epochs_left(self) -> int:
        """Return how many epochs are to be done."""
        return self.epochs - self.epoch

    def fraction(self, more_images: int) -> float:
        """Return the share of the run that is done after so many more images of this epoch."""
        done = min(self.part.images + more_images, self.images)
        return (self.epoch + done / self.images) / self.epochs

    def add(self, images: int, mean_loss: float, seconds: float) -> None:
        """Note that so many more images are done."""
        self.part.images += images
        self.part.loss += mean_loss * images
        self.part.seconds += seconds

    def finish_epoch(
        self, scores: Mapping[str, Any], learning_rate: float, peak_memory: int
    ) -> bool:
        """Add a row to the history; return whether the epoch has the best Dice so far."""
        self.epoch += 1
        self.history.append(
            {
                "epoch": self.epoch,
                "train_loss": self.part.loss / self.part.images,
                "val_loss": scores["loss"],
                "accuracy": scores["accuracy"],
                "dice": scores["dice"],
                "one_minus_dice": 1 - scores["dice"],
                "full_dice": scores.get("full_dice"),
                "set_dice": scores["set_dice"],
                "set_iou": scores["set_iou"],
                "full_set_dice": scores.get("full_set_dice"),
                "full_set_iou": scores.get("full_set_iou"),
                "learning_rate": learning_rate,
                "seconds": self.part.seconds,
                "images_per_second": self.part.images / max(self.part.seconds, 1e-9),
                "peak_memory_mb": peak_memory / 1e6,
            }
        )
        improved = scores["dice"] > self.best
        self.best = max(self.best, scores["dice"])
        self.part = PartDone(self.images)
        return improved

    def out_of_patience(self, patience: int) -> bool:
        """Return whether the best Dice is `patience` epochs or more ago; never with 0."""
        dices = [row["dice"] for row in self.history]
        if not patience or not dices:
            return False
        return len(dices) - 1 - dices.index(max(dices)) >= patience


class LossMeter:
    """The losses of an epoch's batches, and a progress bar that shows them."""

    def __init__(self, epoch: PlainEpoch | PartialEpoch, epochs_to_announce: int) -> None:
        self.epoch = epoch
        self.epochs_to_announce = epochs_to_announce
        self.step = -1  # batches so far, less 1
        self.images = 0
        self.total = 0.0
        self.unread: list[torch.Tensor] = []  # losses that are still on the device
        self.started = 0.0
        self.bar = tqdm(
            total=epoch.length,
            initial=epoch.first,
            unit=" images",
            dynamic_ncols=True,
            leave=False,
        )

    def __enter__(self) -> "LossMeter":
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def add(self, loss: torch.Tensor) -> None:
        """Add the mean loss of this process's images of a batch.

        Raises:
            UserError: a loss is not finite; the batch's files are named.
        """
        self.step += 1
        share = self.epoch.share
        self.bar.update(share.total)
        self.images += share.total
        self.unread.append(loss.detach() * share.own)
        if self.step in FIRST_READINGS or len(self.unread) == READ_EVERY:
            self._read()
        first, last = FIRST_READINGS
        if self.step == first:
            self.started = time.perf_counter()
        if self.step == last and self.epochs_to_announce:
            self._announce((time.perf_counter() - self.started) / (last - first))

    def mean(self) -> float:
        """Return the mean loss per image."""
        if self.unread:
            self._read()
        return self.total / max(self.images, 1)

    def _read(self) -> None:
        """Sum and show the unread losses: the only place that waits for the device."""
        losses = distributed.all_reduce_sum(torch.stack(self.unread)).tolist()
        self.unread.clear()
        self.bar.set_postfix(loss=f"{losses[-1] / self.epoch.share.total:.4f}")
        for i, loss in enumerate(losses):
            if not math.isfinite(loss):
                self._refuse(self.step + 1 - len(losses) + i)
        self.total += sum(losses)

    def _refuse(self, batch: int) -> None:
        names = ", ".join(self.epoch.image_names(batch)) or "unknown"
        step = self.epoch.batches_before + batch + 1
        raise UserError(
            f"the loss of step {step} is not finite; its images: {names}. "
            "Lower LEARNING_RATE or set PRECISION to fp32; --load-model true continues from the "
            "last good checkpoint, if one was written"
        )

    def _announce(self, seconds: float) -> None:
        """Print how long an epoch and all of them take, at so many seconds a batch."""
        images_per_batch = self.images / (self.step + 1)
        epoch = seconds * self.epoch.length / images_per_batch
        total = seconds * len(self.epoch) + epoch * (self.epochs_to_announce - 1)
        tqdm.write(
            f"about {duration(epoch)} an epoch, {duration(total)} in all, and evaluation on top"
        )


def _is_own_row(row: Mapping[str, Any]) -> bool:
    """Return whether a row of a checkpoint's history is one that finish_epoch wrote."""
    return all(isinstance(row.get(name), int | float) for name in ("epoch", "dice", "seconds"))


def duration(seconds: float) -> str:
    """Return a time for people: "45 s", "12 min", "3.5 h"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
