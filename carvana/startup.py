"""What a training settles before the seconds that torch takes to import: options and files."""

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace

from carvana import options
from carvana.classes import Classes
from carvana.compositing import check_backgrounds
from carvana.errors import UserError, raise_all, result_or_error
from carvana.files import same_file, same_place
from carvana.locks import output_locks
from carvana.naming import Naming
from carvana.opening import set_max_megapixels
from carvana.pairs import Pair, check_folders, list_files
from carvana.rendering import PARTS, remove_leftovers, render_set
from carvana.shipped import SHIPPED_MODELS, find_model
from carvana.tensorboard import check_tensorboard
from carvana.threads import keep_freed_memory
from carvana.two_values import settle_values

STARTED = time.time()  # the seconds of STOP_AT_DICE count from here: imports belong to them
PREPARED_FOLDERS = (  # where prepare_data.py puts data
    "data/train_images/",
    "data/train_masks/",
    "data/val_images/",
    "data/val_masks/",
)
OUTPUTS = ("CHECKPOINT_FILE", "BEST_CHECKPOINT_FILE", "SAVED_IMAGES_DIR")  # that a run writes
RENDERED_PRESETS = ("demo", "parts")
POLL_SECONDS = 0.5


def configure(config: ModuleType, description: str | None = None) -> SimpleNamespace:
    """Return the constants of this run, its files checked; render cars if there are no data.

    Args:
        config: the module of constants and PRESETS.
        description: printed by --help.

    Raises:
        UserError: with everything that is wrong.
    """
    keep_freed_memory()
    cfg = options.load(config, description=description)
    preset = _preset_for_missing_data(cfg)
    if preset:
        if _rank("RANK") == 0:
            settings = f"the preset {preset}{' and your options' if sys.argv[1:] else ''}"
            print(
                f"No photographs in data/train_images: training on rendered cars in data/{preset} "
                f"instead, with {settings}.\nFor Carvana's, download Kaggle's two zips "
                "and run: python prepare_data.py train.zip train_masks.zip"
            )
        cfg = options.load(config, base_preset=preset)
    cfg.INIT_WEIGHTS = find_model(cfg.INIT_WEIGHTS)
    set_max_megapixels(cfg.MAX_MEGAPIXELS)
    _render_missing_cars(cfg, config.PRESETS)
    _settle_mask_values(cfg, _check_data(cfg))
    _check_outputs(cfg)
    check_tensorboard(cfg.TENSORBOARD_DIR)
    if _rank("RANK") == 0:  # the process that reads checkpoints
        _check_checkpoints(cfg)
        with output_locks(outputs(cfg)):  # free now; train.main takes and keeps them
            pass
    return cfg


def outputs(cfg: SimpleNamespace) -> dict[str, str]:
    """Return the files and folders that a run writes, by the constant that names each."""
    return {name: getattr(cfg, name) for name in OUTPUTS}


def data_folders(cfg: SimpleNamespace) -> list[tuple[str, str]]:
    """Return (images, masks) of training and of validation."""
    return [(cfg.TRAIN_IMG_DIR, cfg.TRAIN_MASK_DIR), (cfg.VAL_IMG_DIR, cfg.VAL_MASK_DIR)]


def is_rendered(cfg: SimpleNamespace, presets: dict, *names: str) -> bool:
    """Return whether training is on the rendered cars of these presets, by default of any."""
    folder = Path(cfg.TRAIN_IMG_DIR)
    return any(folder == Path(presets[name]["TRAIN_IMG_DIR"]) for name in names or RENDERED_PRESETS)


def _rank(variable: str) -> int:
    """Return this process's RANK or LOCAL_RANK; torch, which knows it, is not imported yet."""
    return int(os.environ.get(variable, "0"))


def _preset_for_missing_data(cfg: SimpleNamespace) -> str | None:
    """Return the preset of rendered cars that takes the place of data that are not there yet."""
    folders = [folder for pair in data_folders(cfg) for folder in pair]
    if folders != list(PREPARED_FOLDERS):
        return None
    if any(Path(folder).is_dir() and list_files(folder, "data") for folder in folders):
        return None
    if tuple(cfg.CLASSES) == PARTS:
        return "parts"
    return "demo" if len(cfg.CLASSES) == 1 else None


def _render_missing_cars(cfg: SimpleNamespace, presets: dict) -> None:
    """Render the cars of a preset, in one process of each machine; the others wait for it."""
    if not is_rendered(cfg, presets):
        return
    folder = Path(cfg.TRAIN_IMG_DIR)
    if _rank("LOCAL_RANK") == 0:
        if folder.exists():
            remove_leftovers(folder.parent)
        else:
            kind = "parts" if is_rendered(cfg, presets, "parts") else "cars"
            render_set(folder.parent, kind=kind)
    while not folder.exists():
        time.sleep(POLL_SECONDS)


def _check_data(cfg: SimpleNamespace) -> list[Pair]:
    """Return the pairs to train on.

    Raises:
        UserError: with what is wrong in the folders of photographs and masks.
    """
    training, validation = data_folders(cfg)
    naming = Naming.from_constants(vars(cfg))
    if Path(training[0]).is_dir() and not Path(validation[0]).is_dir():
        options_of_training = f"--val-img-dir {training[0]} --val-mask-dir {training[1]}"
        missing = UserError(
            f"no folder {validation[0]!r}, where the photographs to score on should be; set some "
            "aside with prepare_data.py --val-fraction 0.1, or, where there are too few, score on "
            f"those that are trained on: {options_of_training}"
        )
        raise_all([result_or_error(check_folders, training, naming=naming), missing])
    pairs, _ = check_folders(training, validation, naming=naming)
    if cfg.BACKGROUNDS_DIR:
        check_backgrounds(cfg.BACKGROUNDS_DIR)
    return pairs


def _settle_mask_values(cfg: SimpleNamespace, pairs: Sequence[Pair]) -> None:
    """Set MASK_VALUES if the masks to train on hold two values that have to be named."""
    classes = Classes.from_constants(vars(cfg))
    settled = settle_values([mask for _, mask in pairs], classes, announce=_rank("RANK") == 0)
    if settled != classes:
        cfg.MASK_VALUES = list(settled.values)


def _check_outputs(cfg: SimpleNamespace) -> None:
    """Raise UserError if a file or folder to write is something else, or two are the same."""
    for name in ("CHECKPOINT_FILE", "BEST_CHECKPOINT_FILE"):
        file = getattr(cfg, name)
        if not file or (Path(file).exists() and not Path(file).is_file()):
            option = options.option_name(name)
            raise UserError(f"{option}: expected a file to write, found {file!r}; name another")
    if same_place(cfg.CHECKPOINT_FILE, cfg.BEST_CHECKPOINT_FILE):
        raise UserError(
            f"--checkpoint-file and --best-checkpoint-file are both {cfg.CHECKPOINT_FILE!r}; "
            "one would overwrite the other"
        )
    folder = Path(cfg.SAVED_IMAGES_DIR)
    if folder.exists() and not folder.is_dir():
        raise UserError(
            f"--saved-images-dir: expected a folder, found the file {cfg.SAVED_IMAGES_DIR!r}; "
            "name another"
        )
    data = [path for pair in data_folders(cfg) for path in pair]
    if any(same_file(folder, path) for path in data):
        raise UserError(
            f"--saved-images-dir: {cfg.SAVED_IMAGES_DIR!r} holds photographs or masks, which the "
            "pictures of this run would be taken for, or replace; name another"
        )


def _check_checkpoints(cfg: SimpleNamespace) -> None:
    """Raise UserError if a checkpoint to read is not there."""
    if cfg.INIT_WEIGHTS and not cfg.LOAD_MODEL and not Path(cfg.INIT_WEIGHTS).is_file():
        raise UserError(
            f"no checkpoint {cfg.INIT_WEIGHTS!r} to take weights from; name another with "
            f"--init-weights ({' or '.join(SHIPPED_MODELS)} come with the project), or omit it"
        )
    if cfg.LOAD_MODEL and not Path(cfg.CHECKPOINT_FILE).is_file():
        raise UserError(
            f"no checkpoint {cfg.CHECKPOINT_FILE!r} to resume from; omit --load-model to start over"
        )
