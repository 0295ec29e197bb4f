"""What a training prints of its data and its epochs, and history.csv."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from carvana.balance import count_classes
from carvana.errors import one_line
from carvana.files import replacing
from carvana.model_config import describe_size

NEARLY_ALL = 0.999  # of the pixels predicted as one class: nothing has been learned
RARE = 0.02  # share of the pixels below which plain cross entropy may overlook a class
FEW_PHOTOGRAPHS = 100  # with 20, random weights end at Dice 0.70 to 0.93, those of cars at 0.99
RARE_SAMPLE = 64  # masks that this is measured on


def print_epoch(row: Mapping[str, Any], cfg: SimpleNamespace) -> None:
    """Print a row of the history as one line."""
    size = describe_size(vars(cfg))
    dice = f"Dice {_at_both_sizes(row, 'dice', size)}"
    if len(cfg.CLASSES) > 1:
        dice += f"  data-set IoU {_at_both_sizes(row, 'set_iou', size)}"
    print(
        f"epoch {row['epoch']}/{cfg.NUM_EPOCHS}  train loss {row['train_loss']:.4f}  "
        f"val loss {row['val_loss']:.4f}  accuracy {100 * row['accuracy']:.2f} %  "
        f"1-Dice {row['one_minus_dice']:.4f}  {dice}  {row['seconds']:.0f} s  "
        f"{row['images_per_second']:.1f} images/s  {row['peak_memory_mb'] / 1000:.2f} GB"
    )


def _at_both_sizes(row: Mapping[str, Any], name: str, size: str) -> str:
    """Return a score of a row at the network's size, and at full size if it was measured there."""
    text = f"{row[name]:.4f} at {size}"
    full_score = row[f"full_{name}"]
    return text if full_score is None else f"{text}, {full_score:.4f} at full size"


def write_history(history: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """Write all epochs as history.csv; the columns are those of the last row."""
    with replacing(path) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.DictWriter(file, history[-1], restval="", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(history)


def warn_if_constant(scores: Mapping[str, Any], classes: Sequence[str]) -> None:
    """Print a warning if nearly all pixels are predicted as one class, or as none.

    Args:
        scores: of check_accuracy.
        classes: the names of CLASSES.
    """
    if len(classes) == 1:
        name = classes[0]
        share = scores["foreground"]
        constant = max(share, 1 - share) > NEARLY_ALL
    else:
        pixels = np.sum(scores["confusion"], axis=0)  # by predicted class
        name = classes[int(np.argmax(pixels))]
        share = pixels.max() / max(pixels.sum(), 1)
        constant = share > NEARLY_ALL
    if constant:
        print(
            f"warning: {100 * share:.2f} % of all pixels are predicted as {one_line(name)}; the "
            "network has learned nothing yet. Train longer, or look at LEARNING_RATE and at the "
            "masks in batch.png"
        )


def advise_on_few_photographs(dataset: Any) -> None:
    """Print where to start from if there are too few photographs to learn from nothing.

    Args:
        dataset: a CarvanaDataset.
    """
    if len(dataset) < FEW_PHOTOGRAPHS:
        print(
            f"few photographs to train on ({len(dataset)}): masks become better from the weights "
            "that come with the project; see Fine-tune in README.md"
        )


def warn_of_rare_classes(dataset: Any) -> None:
    """Print which classes cover so little that plain cross entropy may overlook them.

    Args:
        dataset: a CarvanaDataset.
    """
    step = -(-len(dataset) // RARE_SAMPLE)
    sample = range(0, len(dataset), step)
    classes = dataset.reading.classes
    shares = count_classes(dataset, sample).shares()[-len(classes.names) :]
    rare = [
        f"{one_line(name)}: {100 * share:.2f} %"
        for name, share in zip(classes.names, shares, strict=True)
        if share < RARE
    ]
    remedy = "a POSITIVE_WEIGHT over 1" if classes.single else "CLASS_WEIGHTS inverse_sqrt"
    if rare:
        print(
            f"{', '.join(rare)} of the pixels of {len(sample)} training masks; where few pixels "
            f"count, try LOSS dice or bce_dice, or {remedy}"
        )
