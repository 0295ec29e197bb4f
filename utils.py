"""Loaders, checkpoints, scores and prediction images: what the scripts share."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F
from torch.utils.data import DataLoader
from tqdm import tqdm

import metrics
from checkpoint import NETWORK_CONSTANTS, checkpoint_state, load_checkpoint, load_model, read_checkpoint, restore, save_checkpoint, take_what_fits  # noqa: F401
from dataset import CarvanaDataset, EpochSampler
from device import autocast, choose_workers, config_of, find_device, to_device, to_input
from interrupts import leave_signals_alone
from pictures import read_mask, replacing, scale_image, write_picture

# ---------------------------------------------------------------- data

def get_loaders(train_dir, train_maskdir, val_dir, val_maskdir, batch_size, train_transform, val_transform,
                num_workers=4, pin_memory=True, *, size=None, channels=3, mask_resize="area", seed=0, cache_dir=None):
    """-> train_loader, val_loader over the pairs of the four folders; see CarvanaDataset for the keyword arguments.
    Batches: images (B, C, H, W), masks (B, H, W). The training order is a function of (seed, epoch)."""
    reading = {"size": size, "channels": channels, "mask_resize": mask_resize, "seed": seed, "cache_dir": cache_dir}
    train = CarvanaDataset(train_dir, train_maskdir, train_transform, **reading)
    val = CarvanaDataset(val_dir, val_maskdir, val_transform, **reading)
    loading = {"batch_size": batch_size, "num_workers": num_workers, "pin_memory": pin_memory}
    return make_loader(train, sampler=EpochSampler(len(train), seed), **loading), make_loader(val, **loading)


def make_loader(dataset, batch_size, num_workers=0, pin_memory=False, sampler=None):
    """A DataLoader of a CarvanaDataset; num_workers: -1 for as many as this machine needs."""
    if num_workers < 0:
        num_workers = choose_workers(find_device(), cached=dataset.cache is not None)
    return DataLoader(dataset, batch_size, sampler=sampler, num_workers=num_workers, worker_init_fn=leave_signals_alone,
                      pin_memory=pin_memory and torch.cuda.is_available(), persistent_workers=num_workers > 0, prefetch_factor=4 if num_workers else None,
                      generator=torch.Generator())  # its own, so that loading draws nothing from torch's random state


@torch.no_grad()
def settle_batchnorm(model, loader, images):
    """Average BatchNorm's statistics over the first `images` of the training epoch just done, under the final weights.

    The running averages of training lag behind weights that still move, and hang on the last few batches.
    "Precise BatchNorm" of Wu and Johnson, Rethinking "Batch" in BatchNorm, 2021, arXiv:2105.07576."""
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average
    model.train()
    epoch = loader.sampler.epoch - 1
    keys = [(epoch, index) for index in loader.sampler.order(epoch)[:images]]
    for batch in make_loader(loader.dataset, loader.batch_size, sampler=keys):
        with autocast(model):
            model(to_device(*batch, model)[0])
    for norm, momentum in zip(norms, momenta):
        norm.momentum = momentum


# ---------------------------------------------------------------- predictions

def predict(model, images, tta=False):
    """Pictures, uint8 (H, W, 3) or (H, W) of any sizes -> for each the probability of its pixels to be foreground, float32 (H, W) in [0, 1].

    model: of load_model. tta: averaged with what it says of the mirror image."""
    config = config_of(model)
    size = (config["IMAGE_HEIGHT"], config["IMAGE_WIDTH"])
    logits = network_logits(model, np.stack([scale_image(image, size, config["IN_CHANNELS"]) for image in images]), tta)
    return [1 / (1 + np.exp(-upsample(one, image.shape[:2]))) for one, image in zip(logits, images)]


@torch.inference_mode()
def network_logits(model, images, tta=False):
    """uint8 (B, h, w, channels) at the network's size, as pictures.read_image returns them -> logits float32 (B, h, w), in NumPy."""
    images = to_input(torch.from_numpy(images).permute(0, 3, 1, 2), model)
    with autocast(model):
        logits = model(images).float()
        if tta:
            logits = (logits + model(images.flip(3)).float().flip(3)) / 2
    return logits[:, 0].cpu().numpy()


def upsample(logits, size):
    """float32 (h, w) -> (H, W), bilinear with pixel centres aligned, as check_accuracy has it."""
    return cv2.resize(logits, size[::-1], interpolation=cv2.INTER_LINEAR)


# ---------------------------------------------------------------- scores and pictures

@torch.no_grad()
def check_accuracy(loader, model, device="cuda", loss_fn=None, full_size=False, outlines=False, at_least=0.0):
    """Print pixel accuracy and Dice of a model over a loader of (images, masks), and return what was measured.

    -> {"dice", "iou", "accuracy", "precision", "recall": means over images at the network's resolution,
    "foreground": predicted share of all pixels, "loss": mean of loss_fn where given, "images": a dict per image,
    "masks": the predicted ones, as bytes of bits, and their "size"}.
    full_size adds the same scores with "full_" before them: logits upsampled bilinearly to the size of the mask's
    file and thresholded there (the loader must go through a CarvanaDataset in order). outlines adds
    "full_boundary", the mean distance of the outlines in pixels. The model is moved to device.
    at_least: where not even perfect masks of all further images could lift the mean Dice so high, the rest is
    left out, nothing is printed, and {"dice": what they would have made it} is returned."""
    was_training = model.training
    model.to(device).eval()
    cut = float(torch.logit(torch.tensor(config_of(model)["THRESHOLD"])))
    # made at once: many small tensors that stay would keep the large ones between them from being one piece of memory again
    counts, full_counts = (torch.zeros(len(loader.dataset), 4, dtype=torch.int64, device=device) for _ in range(2))
    boundaries, predictions, loss, done = [], [], 0.0, 0
    with ThreadPoolExecutor(max_workers=2) as readers:
        for images, masks in tqdm(loader, desc="evaluating", unit=" batches", delay=2, leave=False):
            pairs = loader.dataset.pairs[done:done + len(images)] if full_size else []
            truths = [readers.submit(read_mask, mask_path) for _, mask_path in pairs]  # while the network computes
            images, masks = to_device(images, masks, model)
            with autocast(model):
                logits = model(images)
            logits = logits.float()
            counts[done:done + len(images)] = metrics.confusion(logits > cut, masks >= 0.5)
            predictions += [np.packbits(mask) for mask in (logits > cut).cpu().numpy()]
            if loss_fn is not None:
                loss += loss_fn(logits, masks).item() * len(images)
            for i, (logit, truth) in enumerate(zip(logits, truths), done):
                truth = torch.from_numpy(truth.result() > 127).to(logit.device)
                predicted = F.interpolate(logit[None], size=truth.shape, mode="bilinear")[0, 0] > cut
                full_counts[i] = metrics.confusion(predicted[None], truth[None])[0]
                if outlines:
                    boundaries.append(metrics.boundary_distance(predicted.cpu().numpy(), truth.cpu().numpy()))
            done += len(images)
            if at_least:
                best_possible = 1 - (1 - metrics.dice(counts[:done])).sum().item() / len(loader.dataset)
                if best_possible < at_least:
                    break
    model.train(was_training)
    if at_least and best_possible < at_least:
        return {"dice": best_possible}

    counts = counts[:done].cpu()
    rows = _rows(counts, "")
    if full_size:
        rows = [a | b for a, b in zip(rows, _rows(full_counts[:done].cpu(), "full_"))]
    for row, boundary in zip(rows, boundaries):
        row["full_boundary"] = boundary
    result = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    tp, fp, fn, tn = counts.sum(0).tolist()
    result["foreground"] = (tp + fp) / (tp + fp + fn + tn)
    if loss_fn is not None:
        result["loss"] = loss / done
    if hasattr(loader.dataset, "pairs"):
        rows = [{"name": image.name} | row for (image, _), row in zip(loader.dataset.pairs, rows)]
    print(f"Got {tp + tn}/{tp + fp + fn + tn} with acc {100 * (tp + tn) / (tp + fp + fn + tn):.2f}")
    print(f"Dice score: {result['dice']:.6f}")
    return result | {"images": rows, "masks": predictions, "size": tuple(logits.shape[2:])}


def _rows(counts, prefix):
    """(B, 4) counts -> a dict of scores per image."""
    columns = {prefix + name: score(counts).tolist() for name, score in metrics.SCORES.items()}
    return [dict(zip(columns, row)) for row in zip(*columns.values())]


@torch.no_grad()
def save_predictions_as_imgs(loader, model, folder="saved_images/", device="cuda", max_batches=None):
    """Write pred_{idx}.png (the predicted masks) and {idx}.png (the true ones) for each batch of a loader."""
    import torchvision  # takes a second

    was_training = model.training
    model.to(device).eval()
    threshold = config_of(model)["THRESHOLD"]
    for idx, (images, masks) in enumerate(loader):
        if idx == max_batches:
            break
        images, masks = to_device(images, masks, model)
        with autocast(model):
            predicted = torch.sigmoid(model(images).float()) > threshold
        for name, picture in ((f"pred_{idx}.png", predicted.float()), (f"{idx}.png", masks)):
            with replacing(Path(folder) / name) as temporary:
                grid = torchvision.utils.make_grid(picture).mul(255).round().to(torch.uint8)
                write_picture(Image.fromarray(grid.permute(1, 2, 0).cpu().numpy()), temporary)
    model.train(was_training)
