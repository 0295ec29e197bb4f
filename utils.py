"""Loaders, checkpoints, scores and prediction images: what the scripts share."""

import contextlib
import math
import threading
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F
from torch.utils.data import DataLoader
from tqdm import tqdm

import metrics
import parallel
from checkpoint import (
    NETWORK_CONSTANTS,
    checkpoint_state,
    load_checkpoint,
    load_model,
    read_checkpoint,
    restore,
    run_of,
    save_checkpoint,
    take_what_fits,
)  # noqa: F401
from dataset import CarvanaDataset, EpochSampler
from device import autocast, choose_workers, config_of, device_of, find_device, to_device, to_input
from interrupts import leave_signals_alone
from pictures import (
    attempt,
    colours_of,
    labels_of,
    read_all,
    refuse_faults,
    replacing,
    scale_image,
    thread_pool,
    write_picture,
)

ON_GPU = threading.Semaphore(
    2
)  # threads that have a forward pass there at once: each takes memory of its own

# ---------------------------------------------------------------- data


def get_loaders(
    train_dir,
    train_maskdir,
    val_dir,
    val_maskdir,
    batch_size,
    train_transform,
    val_transform,
    num_workers=4,
    pin_memory=True,
    device=None,
    **reading,
):
    """-> train_loader, val_loader over the pairs of the four folders; see make_loader for device, CarvanaDataset for the other keyword arguments.
    Batches: images (B, C, H, W), masks (B, H, W). The training order is a function of (seed, epoch)."""
    with parallel.one_a_machine_first():
        sets = [
            attempt(CarvanaDataset, *of, **reading)
            for of in (
                (train_dir, train_maskdir, train_transform),
                (val_dir, val_maskdir, val_transform),
            )
        ]
    refuse_faults(sets)
    train, val = sets
    loading = {
        "batch_size": parallel.own_batch(batch_size),
        "num_workers": num_workers,
        "pin_memory": pin_memory,
        "device": device,
    }
    sampler = EpochSampler(len(train), train.seed, batch_size, parallel.RANK, parallel.RANKS)
    return make_loader(train, sampler=sampler, **loading), make_loader(
        val, sampler=parallel.part(len(val)), **loading
    )


def make_loader(dataset, batch_size, num_workers=0, pin_memory=False, sampler=None, device=None):
    """A DataLoader of a CarvanaDataset; num_workers: -1 for as many as this machine needs with the network on `device`, None: on the one that is found."""
    if num_workers < 0:
        num_workers = choose_workers(device or find_device(), cached=dataset.cache is not None)
    return DataLoader(
        dataset,
        batch_size,
        sampler=sampler,
        num_workers=num_workers,
        worker_init_fn=leave_signals_alone,
        pin_memory=pin_memory and torch.cuda.is_available(),
        persistent_workers=num_workers > 0,
        prefetch_factor=4 if num_workers else None,
        generator=torch.Generator(),
    )  # its own, so that loading draws nothing from torch's random state


def refuse_unreadable(*datasets):
    """Read the pairs that no cache has read yet, of several processes each its part. Raises UserError, naming all that cannot be read."""

    def read(dataset):
        for _ in read_all(
            [dataset.pairs[i] for i in parallel.part(len(dataset))], "checking", **dataset.reading
        ):
            pass

    refuse_faults(
        [
            attempt(read, dataset)
            for dataset in datasets
            if dataset.cache is None and parallel.part(len(dataset))
        ]
    )


def end_workers(*loaders):
    """End the processes that read for these loaders. Left to the garbage collector, each takes five seconds where it comes upon them in a cycle."""
    for loader in loaders:
        if getattr(loader, "_iterator", None) is not None:
            loader._iterator._shutdown_workers()
            loader._iterator = None


@torch.no_grad()
def settle_batchnorm(model, loader, images):
    """Average BatchNorm's statistics over the first `images` of the training epoch just done, under the final weights.

    The running averages of training lag behind weights that still move, and hang on the last few batches.
    "Precise BatchNorm" of Wu and Johnson, Rethinking "Batch" in BatchNorm, 2021, arXiv:2105.07576."""
    norms = [
        module
        for module in model.modules()
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)
    ]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
    model.train()
    seen = 0
    epoch = loader.sampler.epoch - 1
    keys = [(epoch, index) for index in loader.sampler.order(epoch)[:images]]
    for batch in make_loader(loader.dataset, loader.batch_size, sampler=keys):
        seen += len(batch[0])
        for norm in norms:
            norm.momentum = (
                len(batch[0]) / seen
            )  # a plain average over images: the last batch can have fewer
        with autocast(model):
            model(to_device(*batch, model)[0])
    for norm, momentum in zip(norms, momenta):
        norm.momentum = momentum


# ---------------------------------------------------------------- predictions


def predict(model, images, tta=False):
    """Pictures, uint8 (H, W, 3) or (H, W) of any sizes -> for each the probability of its pixels to be foreground, float32 (H, W) in [0, 1]; of several classes (classes, H, W).

    model: of load_model. tta: averaged with what it says of the mirror image."""
    config = config_of(model)
    size = (config["IMAGE_HEIGHT"], config["IMAGE_WIDTH"])
    logits = network_logits(
        model, np.stack([scale_image(image, size, config["IN_CHANNELS"]) for image in images]), tta
    )
    whole = [upsample(one, image.shape[:2]) for one, image in zip(logits, images)]
    return [
        1 / (1 + np.exp(-one[0]))
        if len(one) == 1
        else torch.softmax(torch.from_numpy(one), 0).numpy()
        for one in whole
    ]


@torch.inference_mode()
def network_logits(model, images, tta=False):
    """uint8 (B, h, w, channels) at the network's size, as pictures.read_image returns them -> logits float32 (B, classes, h, w), in NumPy."""
    with autocast(model), ON_GPU if device_of(model).type == "cuda" else contextlib.nullcontext():
        images = to_input(torch.from_numpy(images).permute(0, 3, 1, 2), model)
        logits = model(images).float()
        if tta:
            logits = (logits + model(images.flip(3)).float().flip(3)) / 2
        return logits.cpu().numpy()


def upsample(logits, size):
    """float32 (C, h, w) -> (C, H, W), bilinear with pixel centres aligned, as check_accuracy has it."""
    return np.stack([cv2.resize(one, size[::-1], interpolation=cv2.INTER_LINEAR) for one in logits])


def decided(logits, cut=0.0):
    """Logits (B, C, H, W) -> masks: bool (B, H, W) of those above the cut, or of several classes uint8 (B, H, W), the likeliest."""
    return logits[:, 0] > cut if logits.shape[1] == 1 else logits.argmax(1).to(torch.uint8)


def cut_of(constants):
    """The logit above which a pixel is foreground."""
    return math.log(constants["THRESHOLD"] / (1 - constants["THRESHOLD"]))


# ---------------------------------------------------------------- scores and pictures


@torch.no_grad()
def check_accuracy(
    loader, model, device="cuda", loss_fn=None, full_size=False, outlines=False, at_least=0.0
):
    """Print pixel accuracy and Dice of a model over a loader of (images, masks), and return what was measured.

    -> {"dice", "iou", "accuracy", "precision", "recall": means over images at the network's resolution,
    "foreground": predicted share of all pixels, "loss": mean of loss_fn where given, "images": a dict per image,
    "masks": the predicted ones, as bytes of bits (of several classes, of indices), and their "size"}.
    full_size adds the same scores with "full_" before them: logits upsampled bilinearly to the size of the mask's
    file and thresholded there (the loader must go through a CarvanaDataset in order). outlines adds
    "full_boundary", the mean distance of the outlines in pixels, and "full_beyond" (metrics.beyond). The model is moved to device.
    Of several classes an image's Dice and so on are means over the classes that are in its truth or its prediction, and
    there are "classes" (Dice and IoU of each, means over the images where it is one of these) and "confusion" (pixels by true and predicted class) too.
    at_least: where not even perfect masks of all further images could lift the mean Dice so high, the rest is
    left out, nothing is printed, and {"dice": what they would have made it} is returned."""
    was_training = model.training
    model.to(device).eval()
    at_least = (
        at_least if parallel.RANKS == 1 else 0.0
    )  # each of several processes sees a part only
    cut, labels = cut_of(config_of(model)), labels_of(config_of(model))
    shape = (4,) if labels is None else (len(labels.names),) * 2
    # made at once: many small tensors that stay would keep the large ones between them from being one piece of memory again
    counts, full_counts = (
        torch.zeros(len(loader.dataset), *shape, dtype=torch.int64, device=device) for _ in range(2)
    )
    boundaries, predictions, loss, done, size = (
        {},
        {},
        torch.zeros((), dtype=torch.float64),
        0,
        None,
    )
    order = (
        loader.sampler if isinstance(loader.sampler, range) else range(len(loader.dataset))
    )  # of several processes this one's part
    with thread_pool(2) as readers:
        for images, masks in tqdm(loader, desc="evaluating", unit=" batches", delay=2, leave=False):
            indices = order[done : done + len(images)]
            truths = [
                readers.submit(loader.dataset.mask, index) for index in indices if full_size
            ]  # while the network computes
            images, masks = to_device(images, masks, model)
            with autocast(model):
                logits = model(images)
            logits, size = logits.float(), tuple(logits.shape[2:])
            predicted = decided(logits, cut)
            counts[list(indices)] = compared(
                predicted, masks if labels else masks[:, 0] >= 0.5, labels
            )
            predictions |= {
                index: mask.reshape(-1) if labels else np.packbits(mask)
                for index, mask in zip(indices, predicted.cpu().numpy())
            }
            if loss_fn is not None:
                loss += loss_fn(logits, masks).item() * len(images)
            for index, logit, truth in zip(indices, logits, truths):
                truth = torch.from_numpy(truth.result()).to(logit.device)
                predicted = decided(
                    F.interpolate(logit[None], size=truth.shape, mode="bilinear"), cut
                )
                full_counts[index] = compared(predicted, truth[None], labels)[0]
                if outlines:
                    known = truth != (labels.ignore if labels else 2)
                    pair = [((mask > 0) & known).cpu().numpy() for mask in (predicted[0], truth)]
                    boundaries[index] = {
                        "full_boundary": metrics.boundary_distance(*pair),
                        "full_beyond": metrics.beyond(*pair),
                    }
            done += len(images)
            if at_least:
                best_possible = 1 - (
                    1 - _per_image(counts[:done].cpu(), metrics.dice)
                ).sum().item() / len(loader.dataset)
                if best_possible < at_least:
                    break
    model.train(was_training)
    if at_least and best_possible < at_least:
        return {"dice": best_possible}

    count = (
        done if parallel.RANKS == 1 else len(loader.dataset)
    )  # somebody's own loader may leave images out
    counts, loss, predictions, boundaries = (
        parallel.summed(counts)[:count].cpu(),
        parallel.summed(loss).item(),
        parallel.merged(predictions),
        parallel.merged(boundaries),
    )
    rows = _rows(counts)
    if full_size:
        full_counts = parallel.summed(full_counts)[:count].cpu()
        rows = [
            a | {f"full_{name}": value for name, value in b.items()}
            for a, b in zip(rows, _rows(full_counts))
        ]
    for index, boundary in boundaries.items():
        rows[index] |= boundary
    result = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    pixels, right = (
        counts.sum().item(),
        (counts[:, 0] + counts[:, 3] if labels is None else counts.diagonal(dim1=1, dim2=2))
        .sum()
        .item(),
    )
    result["foreground"] = (
        (counts[:, 0] + counts[:, 1]) if labels is None else counts[:, :, 1:]
    ).sum().item() / max(pixels, 1)
    if labels is not None:
        result["classes"], result["confusion"] = _classes(counts, labels), counts.sum(0).tolist()
        if full_size:
            result["full_classes"], result["full_confusion"] = (
                _classes(full_counts, labels),
                full_counts.sum(0).tolist(),
            )
    if loss_fn is not None:
        result["loss"] = loss / count
    if hasattr(loader.dataset, "pairs"):
        rows = [{"name": image.name} | row for (image, _), row in zip(loader.dataset.pairs, rows)]
    print(f"Got {right}/{pixels} with acc {100 * right / max(pixels, 1):.2f}")
    print(f"Dice score: {result['dice']:.6f}")
    return result | {
        "images": rows,
        "masks": [predictions[index] for index in sorted(predictions)],
        "size": size,
    }


def mean_scores(pairs, constants):
    """(logits float32 (C, h, w) in NumPy, true mask as CarvanaDataset.mask returns it) of images -> {score: mean over them}, at the masks' size.

    constants: THRESHOLD, CLASSES and so on, as of config_of."""
    labels, cut = labels_of(constants), cut_of(constants)
    counts = [
        compared(
            decided(torch.from_numpy(upsample(logits, truth.shape)[None]), cut),
            torch.from_numpy(truth[None]),
            labels,
        )
        for logits, truth in pairs
    ]
    rows = _rows(torch.cat(counts))
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def compared(predicted, truth, labels):
    """Masks (B, H, W) as decided() and CarvanaDataset.mask return them -> what they have in common, in counts: (B, 4), or with labels (B, C, C)."""
    return (
        metrics.confusion(predicted, truth)
        if labels is None
        else metrics.confusion_matrices(predicted, truth, len(labels.names), labels.ignore)
    )


def _per_image(counts, score):
    """One of metrics.SCORES of counts of compared() -> float64 (B,); of several classes the mean over those that are there."""
    if counts.dim() == 2:
        return score(counts)
    if score is metrics.accuracy:
        return metrics.share(counts.diagonal(dim1=1, dim2=2).sum(1), counts.sum((1, 2)))
    return metrics.class_scores(counts, score).nanmean(1).nan_to_num(1.0)


def _rows(counts):
    """Counts of compared() -> a dict of scores per image."""
    columns = {name: _per_image(counts, score).tolist() for name, score in metrics.SCORES.items()}
    return [dict(zip(columns, row)) for row in zip(*columns.values())]


def _classes(matrices, labels):
    """{class: {"dice", "iou"}}: means over the images where the class is; None where it is in none."""
    found = {
        name: metrics.class_scores(matrices, metrics.SCORES[name]).nanmean(0).tolist()
        for name in ("dice", "iou")
    }
    return {
        label: {
            name: None if math.isnan(values[i]) else values[i] for name, values in found.items()
        }
        for i, label in enumerate(labels.names)
    }


@torch.no_grad()
def save_predictions_as_imgs(
    loader, model, folder="saved_images/", device="cuda", max_batches=None
):
    """Write pred_{idx}.png (the predicted masks) and {idx}.png (the true ones) for each batch of a loader."""
    import torchvision  # takes a second

    was_training = model.training
    model.to(device).eval()
    cut, labels = cut_of(config_of(model)), labels_of(config_of(model))
    for idx, (images, masks) in enumerate(loader):
        if idx == max_batches:
            break
        images, masks = to_device(images, masks, model)
        with autocast(model):
            predicted = decided(model(images).float(), cut)
        for name, picture in ((f"pred_{idx}.png", predicted[:, None]), (f"{idx}.png", masks)):
            with replacing(Path(folder) / name) as temporary:
                if labels:
                    picture = (
                        torch.from_numpy(
                            colours_of(labels)[picture.reshape(-1, *picture.shape[-2:]).cpu()]
                        ).permute(0, 3, 1, 2)
                        / 255
                    )
                grid = torchvision.utils.make_grid(picture.float()).mul(255).round().to(torch.uint8)
                write_picture(Image.fromarray(grid.permute(1, 2, 0).cpu().numpy()), temporary)
    model.train(was_training)
