"""The recipes that benchmark.py compares: ours, and the plain one of the tutorials.

python tools/benchmark.py

Each method returns {name: seconds per image}.
"""

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import albumentations as A
import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import train
from carvana.augmentation import train_transform, val_transform
from carvana.device import amp_dtype, choose_kernels, find_device, memory_format
from carvana.errors import UserError
from carvana.images import PILLOW_MODES
from carvana.model_config import model_config
from carvana.optim import make_optimizer
from carvana.pairs import find_pairs
from carvana.recorded import recorded
from carvana.threads import keep_freed_memory
from dataset import CarvanaDataset, make_loader
from model import UNET
from utils import check_accuracy, load_model

READ = 32  # pairs in a turn of reading
PLAIN_FILES = 32  # photographs in a turn of plain inference
MATRIX_SIDE = {"cuda": 8192}  # of the matrix product that counts as the peak
DEFAULT_MATRIX_SIDE = 2048
PEAK_RUNS = 10
Times = dict[str, float]


def timed(work: Callable[[], Any]) -> float:
    """Return the seconds that work() takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def start_recipe(recipe: type, args: argparse.Namespace) -> Any:
    """Return a recipe, in a process of its own that prints nothing."""
    # Loaders' workers start in the system's own way, as in a training.
    multiprocessing.set_start_method(multiprocessing.get_all_start_methods()[0], force=True)
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (open to the end of the process)
    if issubclass(recipe, OurRecipe):
        keep_freed_memory()
    return recipe(args, find_device(args.device))


# ---------------------------------------------------------------- as tutorials do it


class PlainDataset:
    """Pairs that are decoded whole at each access."""

    def __init__(self, pairs: list, transform: Callable) -> None:
        self.pairs = pairs
        self.transform = transform

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        image_path, mask_path = self.pairs[index]
        image = np.array(Image.open(image_path).convert("RGB"))
        mask = np.array(Image.open(mask_path).convert("L"), dtype=np.float32)
        mask[mask == 255.0] = 1.0
        item = self.transform(image=image, mask=mask)
        return item["image"], item["mask"]


class PlainRecipe:
    """What tutorials do."""

    def __init__(self, args: argparse.Namespace, device: torch.device) -> None:
        transform = A.Compose(
            [
                A.Resize(*args.size),
                A.Rotate(limit=35, p=1.0),
                A.HorizontalFlip(p=0.5),
                A.VerticalFlip(p=0.1),
                A.Normalize(mean=(0.0,) * 3, std=(1.0,) * 3, max_pixel_value=255.0),
                A.ToTensorV2(),
            ]
        )
        self.device = device
        self.images = args.batch_size * args.steps
        self.dataset = PlainDataset(find_pairs(args.images, args.masks), transform)
        self.model = UNET(features=args.features).to(device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-4)
        self.loss_fn = nn.BCEWithLogitsLoss()
        order = [i % len(self.dataset.pairs) for i in range(self.images)]
        self.batches = torch.utils.data.DataLoader(
            self.dataset,
            args.batch_size,
            sampler=order,
            num_workers=2,
            pin_memory=device.type == "cuda",
        )
        self.ready = [next(iter(self.batches))] * args.steps
        self.train(self.ready[:1])

    def train(self, batches: Any) -> None:
        """Train for one epoch."""
        self.model.train()
        for images, masks in batches:
            images = images.to(self.device)
            masks = masks.unsqueeze(1).to(self.device)
            loss = self.loss_fn(self.model(images), masks)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            loss.item()  # as their progress bars do

    def evaluate(self) -> None:
        """Score all batches."""
        self.model.eval()
        with torch.no_grad():
            for images, masks in self.batches:
                logits = self.model(images.to(self.device))
                predicted = (torch.sigmoid(logits) > 0.5).float()
                masks = masks.unsqueeze(1).to(self.device)
                (2 * (predicted * masks).sum() / (predicted + masks).sum()).item()

    def read(self) -> None:
        """Read READ pairs."""
        for i in range(READ):
            self.dataset[i % len(self.dataset.pairs)]

    def reading(self) -> Times:
        """Time reading and augmenting."""
        return {"plain": timed(self.read) / READ}

    def loader(self) -> Times:
        """Time the loader alone."""
        return {"plain": timed(lambda: list(self.batches)) / self.images}

    def step(self) -> Times:
        """Time steps on batches at hand."""
        return {"plain": timed(lambda: self.train(self.ready)) / self.images}

    def epoch(self) -> Times:
        """Time steps with reading."""
        return {"plain": timed(lambda: self.train(self.batches)) / self.images}

    def evaluation(self) -> Times:
        """Time an evaluation."""
        return {"plain": timed(self.evaluate) / self.images}


class PlainInference:
    """Predict as tutorials do: one photograph at a time, decoded whole, in float32."""

    def __init__(self, args: argparse.Namespace, device: torch.device) -> None:
        model = load_model(args.model, device)
        self.model = model.to(memory_format=torch.contiguous_format)
        self.device = device
        trained = model_config(self.model)
        channels = trained["IN_CHANNELS"]
        self.mode = PILLOW_MODES[channels]
        self.transform = A.Compose(
            [
                A.Resize(trained["IMAGE_HEIGHT"], trained["IMAGE_WIDTH"]),
                A.Normalize(
                    mean=(trained["MEAN"] * 3)[:channels], std=(trained["STD"] * 3)[:channels]
                ),
                A.ToTensorV2(),
            ]
        )
        self.paths = [image for image, _ in find_pairs(args.images, args.masks)][:PLAIN_FILES]

    def inference(self) -> Times:
        """Time the way from photographs to masks."""
        with tempfile.TemporaryDirectory() as out, torch.no_grad():
            return {"plain": timed(partial(self.predict, out)) / len(self.paths)}

    def predict(self, out: str) -> None:
        """Write the mask of each photograph to a folder."""
        for path in self.paths:
            photograph = Image.open(path).convert(self.mode)
            image = self.transform(image=np.atleast_3d(photograph))["image"][None].to(self.device)
            mask = (torch.sigmoid(self.model(image)) > 0.5)[0, 0].cpu().numpy()
            picture = Image.fromarray(mask.astype(np.uint8) * 255).resize(photograph.size)
            picture.save(f"{out}/{path.stem}.png")


# ---------------------------------------------------------------- as train.py does it


class ReadyBatches(list):
    """Batches at hand, as a loader for train_fn."""

    sampler = None

    @property
    def dataset(self) -> range:
        """Return something as long as the batches' images."""
        return range(sum(len(images) for images, _ in self))


class OurRecipe:
    """The same with what train.py is made of."""

    def __init__(self, args: argparse.Namespace, device: torch.device) -> None:
        choose_kernels(deterministic=False, steps=0)
        self.device = device
        self.dtype = amp_dtype(device)
        self.size = args.size
        self.images = args.batch_size * args.steps
        self.model = UNET(features=args.features).to(device, memory_format=memory_format(device))
        # Before there are loaders, which may use the GPU.
        self.trained = recorded(self.model, (args.batch_size, 3, *args.size))
        self._make_loaders(args)
        self.optimizer = make_optimizer("adam", self.model.parameters(), 1e-4, device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)
        self.loss_fn = nn.BCEWithLogitsLoss()
        self.train(self.ready)

    def _make_loaders(self, args: argparse.Namespace) -> None:
        self.sets = {
            name: CarvanaDataset(
                args.images, args.masks, train_transform(), size=args.size, cache_dir=folder
            )
            for name, folder in (("ours", None), ("ours, cached", args.cache_dir))
        }
        val = CarvanaDataset(
            args.images, args.masks, val_transform(), size=args.size, cache_dir=args.cache_dir
        )
        if val.cache is None:
            raise UserError(
                f"no cache could be made in {args.cache_dir}; set CACHE_DIR to a disk with room"
            )
        val.pairs = val.pairs[: self.images]
        order = [(0, i % len(val.pairs)) for i in range(self.images)]
        self.loaders = {
            name: make_loader(dataset, args.batch_size, -1, True, order)
            for name, dataset in self.sets.items()
        }
        self.val_loader = make_loader(val, args.batch_size, -1, True)
        batch = next(iter(self.loaders["ours, cached"]))
        self.ready = ReadyBatches([batch] * args.steps)

    def train(self, loader: Any) -> None:
        """Train for one epoch, by the function that is measured."""
        train.train_fn(loader, self.trained, self.optimizer, self.loss_fn, self.scaler)

    def evaluate(self, full_size: bool) -> None:
        """Score all validation images."""
        check_accuracy(self.val_loader, self.model, self.device, self.loss_fn, full_size=full_size)

    def read(self, dataset: CarvanaDataset) -> None:
        """Read READ pairs."""
        for i in range(READ):
            dataset[0, i % len(dataset)]

    def reading(self) -> Times:
        """Time reading and augmenting."""
        return {
            name: timed(partial(self.read, dataset)) / READ for name, dataset in self.sets.items()
        }

    def loader(self) -> Times:
        """Time the loaders alone."""
        return {
            name: timed(partial(list, loader)) / self.images
            for name, loader in self.loaders.items()
        }

    def step(self) -> Times:
        """Time steps on batches at hand."""
        return {"ours": timed(lambda: self.train(self.ready)) / self.images}

    def epoch(self) -> Times:
        """Time steps with reading, and without."""
        times = {"ours, step alone": timed(lambda: self.train(self.ready)) / self.images}
        for name, loader in self.loaders.items():
            times[name] = timed(partial(self.train, loader)) / self.images
        return times

    def evaluation(self) -> Times:
        """Time an evaluation."""
        count = len(self.val_loader.dataset)
        return {
            "ours": timed(lambda: self.evaluate(False)) / count,
            "ours, at full size too": timed(lambda: self.evaluate(True)) / count,
        }

    def peak(self) -> float:
        """Return the FLOP/s of a large matrix product in the network's precision."""
        side = MATRIX_SIDE.get(self.device.type, DEFAULT_MATRIX_SIDE)
        a = torch.randn(side, side, device=self.device).to(self.dtype)
        b = torch.randn(side, side, device=self.device).to(self.dtype)
        # Reading an element waits for a GPU.
        seconds = min(timed(lambda: (a @ b)[0, 0].item()) for _ in range(PEAK_RUNS))
        return 2 * side**3 / seconds

    def flops(self) -> int:
        """Return the floating-point operations of a training step, per image."""
        with FlopCounterMode(display=False) as counter:
            self.model(torch.zeros(1, 3, *self.size, device=self.device)).sum().backward()
        return counter.get_total_flops()
