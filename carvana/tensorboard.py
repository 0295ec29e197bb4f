"""TensorBoard: the figures of each epoch, and the validation images that come out worst."""

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from carvana.drawing import PairedDataset, worst_overview
from carvana.errors import UserError

WORST_IMAGES = 4


def check_tensorboard(folder: str) -> None:
    """Raise UserError if the folder is named, "" if not, and cannot be written to."""
    if not folder:
        return
    if Path(folder).exists() and not Path(folder).is_dir():
        raise UserError(
            f"--tensorboard-dir: expected a folder, found the file {folder!r}; name another"
        )
    if importlib.util.find_spec("tensorboard") is None:
        raise UserError(
            "TENSORBOARD_DIR needs the package tensorboard: pip install tensorboard, or set it to "
            "'' for none"
        )


def write_epoch(
    folder: str | Path,
    history: Sequence[Mapping[str, Any]],
    dataset: PairedDataset,
    scores: dict[str, Any],
) -> None:
    """Write the last epoch of a run, and into a new folder the figures of those before it, too.

    Args:
        folder: of this run alone.
        history: the rows of history.csv.
        dataset: the validation set.
        scores: what check_accuracy returned for it.
    """
    # It needs the package tensorboard, which is optional, and takes time to import.
    from torch.utils.tensorboard import SummaryWriter

    is_new = not Path(folder).exists()
    epoch = history[-1]["epoch"]
    # A run that resumes from an earlier checkpoint takes the place of what came after it.
    with SummaryWriter(str(folder), purge_step=1 if is_new else epoch) as writer:
        for row in history if is_new else history[-1:]:
            for name, value in row.items():
                if name != "epoch" and value is not None:
                    writer.add_scalar(name, value, row["epoch"])
        sheet = worst_overview(dataset, scores, WORST_IMAGES)
        writer.add_image("worst validation images", sheet, epoch, dataformats="HWC")
