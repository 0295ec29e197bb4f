"""The names that tutorial scripts import, and models for Python users."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from carvana import distributed
from carvana.augmentation import val_transform
from carvana.checkpoint import load_network, save_checkpoint
from carvana.cutouts import cutout
from carvana.device import find_device
from carvana.evaluation import check_accuracy, save_predictions_as_imgs
from carvana.exported import is_exported, load_exported
from carvana.model_config import mask_classes, model_config, network_size, set_windows
from carvana.naming import NAMING, Naming
from carvana.predicting import predict
from carvana.shipped import find_model
from carvana.two_values import settle_values
from carvana.weights import load_checkpoint
from dataset import CarvanaDataset, check_readable, end_workers, get_loaders, make_loader
from model import UNET, DoubleConv

__all__ = [
    "Loading",
    "check_accuracy",
    "cutout",
    "evaluate",
    "get_loaders",
    "load_checkpoint",
    "load_model",
    "predict",
    "save_checkpoint",
    "save_predictions_as_imgs",
]


def load_model(path: str | Path, device: str | torch.device = "auto") -> nn.Module:
    """Return the network in a checkpoint, in eval mode on a device.

    It may be one of train.py or of the tutorials ({'state_dict': ...} or a bare state_dict): the
    network is read off the tensors' shapes, and .config holds the constants it was trained with.
    A file of export.py's (.onnx, .pt2, .pth) becomes a module that is called in the same way;
    "anywhere", "studio" and "studio-full" are the networks that come with the project.

    Raises:
        UserError: the file holds no such network.
    """
    device = find_device(str(device))
    path = find_model(str(path))
    if is_exported(path):
        return load_exported(path, device, (UNET, DoubleConv))
    return load_network(path, UNET, device)


class Loading(NamedTuple):
    """How evaluate reads pairs."""

    naming: Naming = NAMING  # what surrounds the name that a photograph and its mask share
    batch_size: int = 16
    num_workers: int = -1  # as many as this machine needs
    mask_constants: dict[str, Any] | None = None  # MASK_VALUES, MASK_THRESHOLD; None: the model's
    levels: int | None = None  # of 16-bit photographs; None: the model's
    windows: dict[str, Any] | None = None  # TILE, TILE_OVERLAP; None: the model's


def evaluate(
    path: str | Path,
    image_dir: str | Path,
    mask_dir: str | Path,
    loading: Loading | None = None,
    device: str = "auto",
) -> dict[str, Any] | None:
    """Return the scores of check_accuracy for a model's file, at full size and of outlines too.

    Sizes, channels and threshold come from the file. Of several processes each scores its shard,
    the first one returns the scores and the others None.
    """
    loading = loading or Loading()
    with distributed.process_group(find_device(device)) as own_device:
        model = load_model(path, own_device)
        set_windows(model, loading.windows or {})
        trained = model_config(model)
        classes = mask_classes(trained, loading.mask_constants or {})
        dataset = CarvanaDataset(
            image_dir,
            mask_dir,
            val_transform(),
            size=network_size(trained),
            channels=trained["IN_CHANNELS"],
            mask_resize=trained["MASK_RESIZE"],
            classes=classes,
            naming=loading.naming,
            levels=loading.levels or trained["IMAGE_LEVELS"],
            value_range=trained["IMAGE_RANGE"],
        )
        masks = [mask for _, mask in dataset.pairs]
        classes = settle_values(masks, classes, announce=distributed.FIRST)
        dataset.reading = dataset.reading._replace(classes=classes)
        check_readable(dataset)
        loader = make_loader(
            dataset,
            loading.batch_size if dataset.reading.size else 1,  # several sizes are no batch
            loading.num_workers,
            sampler=distributed.shard(len(dataset)),
            device=own_device,
        )
        scores = check_accuracy(loader, model, own_device, full_size=True, outlines=True)
        end_workers(loader)  # they hold connections open, for whose end gloo may wait
    return scores if distributed.FIRST else None
