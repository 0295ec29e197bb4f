"""Loaders, checkpoints, scores and prediction images: what the scripts share."""

import contextlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader
from tqdm import tqdm

import metrics
from dataset import CarvanaDataset, EpochSampler
from device import autocast, choose_workers, config_of, find_device, to_device
from interrupts import leave_signals_alone
from model import UNET
from pictures import UserError, brief, read_mask

# What decides which network it is and what it is fed; the rest of the configuration may change between runs.
NETWORK_CONSTANTS = ("IMAGE_HEIGHT", "IMAGE_WIDTH", "IN_CHANNELS", "MEAN", "STD", "FEATURES")


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


# ---------------------------------------------------------------- checkpoints

def checkpoint_state(model, optimizer, scaler, run, epoch, best, history, part=None):
    """The one dict that resuming needs, of tensors and plain values only (torch.load's weights_only=True reads it).

    run: what tells this training from others; epoch: how many are done; best: highest validation Dice so far;
    history: a dict per epoch; part: what is done of the next one."""
    return {
        "run": run, "state_dict": _plain_names(model.state_dict()), "optimizer": optimizer.state_dict(), "scaler": scaler.state_dict(),
        "epoch": epoch, "best": best, "history": history, "part": part, "config": config_of(model),
        "random": {"torch": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []},
    }


def restore(state, model, optimizer, scaler):
    """The reverse of checkpoint_state: fills the three in -> (epochs done, best, history, part of the next epoch or None).

    A checkpoint of only weights, or of weights and optimizer, counts as epoch 0. Raises UserError where something does not fit."""
    load_checkpoint(state, model)
    try:
        optimizer.load_state_dict(state.get("optimizer") or optimizer.state_dict())
    except (KeyError, ValueError) as error:
        raise UserError(f"the checkpoint's optimizer is another one ({brief(error)}); remove its 'optimizer', or train anew") from error
    scaler.load_state_dict(state.get("scaler") or scaler.state_dict())
    if "random" in state:
        torch.set_rng_state(state["random"]["torch"])
        if len(state["random"]["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(state["random"]["cuda"])
    return state.get("epoch", 0), state.get("best", -1.0), state.get("history", []), state.get("part")


def save_checkpoint(state, filename="my_checkpoint.pth.tar"):
    """Write a checkpoint so that at any moment `filename` is the old one or the new one, whole.

    Where the state has a "run" and the file is of another, the file is renamed to NAME_1, NAME_2, ... first."""
    print("=> Saving checkpoint")
    path, temporary = Path(filename), Path(f"{filename}.tmp")
    try:
        path.absolute().parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        if "run" in state and path.exists() and _run_of(path) != state["run"]:
            stem = path.name.removesuffix(".pth.tar")
            aside = next(name for n in range(1, 10**6) if not (name := path.with_name(f"{stem}_{n}.pth.tar")).exists())
            path.rename(aside)
            print(f"{path} is of another run; it is now {aside}")
        os.replace(temporary, path)
        sync_folder(path.absolute().parent)
    except (OSError, RuntimeError) as error:  # torch's zip writer turns a full disk into a RuntimeError
        temporary.unlink(missing_ok=True)
        raise UserError(f"{filename} could not be written ({brief(error)}); what stood there before is untouched. "
                        "Free some space, then go on with --load-model true") from error


def sync_folder(folder):
    """Have a rename in it survive a loss of power, where the system can be told so."""
    with contextlib.suppress(OSError):  # Windows opens no folders
        number = os.open(folder, os.O_RDONLY)
        os.fsync(number)
        os.close(number)


def _run_of(path):
    """The "run" of a checkpoint file, None where there is none to be read."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True).get("run")
    except Exception:  # a damaged file can raise nearly anything; it is of no run of ours
        return None


def load_checkpoint(checkpoint, model):
    """Fill a model with the weights of a checkpoint dict (or a bare state_dict). Raises UserError where they do not fit."""
    print("=> Loading checkpoint")
    weights = _plain_names(checkpoint.get("state_dict", checkpoint))
    target = getattr(model, "_orig_mod", getattr(model, "module", model))
    ours = target.state_dict()
    faults = [f"{name}: {_shape(weights.get(name))} in the checkpoint, {_shape(ours.get(name))} in the model"
              for name in sorted(ours.keys() | weights.keys()) if _shape(weights.get(name)) != _shape(ours.get(name))]
    if faults:
        more = f"; and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise UserError(f"the checkpoint is of another network: {'; '.join(faults[:3])}{more}. "
                        "Give the FEATURES and IN_CHANNELS it was trained with")
    target.load_state_dict(weights)


def _plain_names(weights):
    """Parameter names without the prefixes that torch.compile and DistributedDataParallel put before them."""
    return {name.removeprefix("_orig_mod.").removeprefix("module.").removeprefix("_orig_mod."): tensor
            for name, tensor in weights.items()}


def _shape(tensor):
    return "missing" if tensor is None else tuple(tensor.shape) if hasattr(tensor, "shape") else type(tensor).__name__


def read_checkpoint(filename, device="cpu"):
    """The dict in a checkpoint file. Code in it does not run. Raises UserError where the file is none."""
    try:
        state = torch.load(filename, map_location=device, weights_only=True)
    except FileNotFoundError:
        raise UserError(f"no checkpoint {str(filename)!r}; train one with python train.py, or name another") from None
    except Exception as error:  # a damaged or hostile file can raise nearly anything
        good = [path.name for path in sorted(Path(filename).parent.glob("*.pth.tar")) if path != Path(filename) and _run_of(path) is not None]
        instead = f"copy one of these over it, or name one: {', '.join(good)}" if good else "name another"
        raise UserError(f"{filename} is not a checkpoint that can be read ({brief(error)}); {instead}") from error
    weights = state.get("state_dict", state) if isinstance(state, dict) else None
    if not isinstance(weights, dict) or not any(str(name).endswith("final_conv.weight") for name in weights):
        raise UserError(f"{filename} holds no weights of a UNET (a state_dict with final_conv.weight); name another")
    return state


def load_model(path, device="auto"):
    """A checkpoint of ours or of the lineage ({'state_dict', ...} or a bare state_dict) -> UNET in eval mode on a device.

    The network is read off the tensors' shapes; model.config holds the constants it was trained with."""
    device = find_device(str(device))
    state = read_checkpoint(path, device)
    weights = _plain_names(state.get("state_dict", state))
    try:
        firsts = sorted((int(name.split(".")[1]), tensor.shape) for name, tensor in weights.items()
                        if name.startswith("downs.") and name.endswith(".conv.0.weight"))
        shape = {"in_channels": firsts[0][1][1], "features": [shape[0] for _, shape in firsts],
                 "out_channels": weights["final_conv.weight"].shape[0]}
        model = UNET(**shape)
        load_checkpoint(state, model)
    except (LookupError, AttributeError, ValueError) as error:
        raise UserError(f"{path} holds no weights of a UNET ({error!r}); name another") from error
    model.config = {"FEATURES": shape["features"], "IN_CHANNELS": shape["in_channels"]} | state.get("config", {})
    return model.to(device, memory_format=torch.channels_last).eval()


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


# ---------------------------------------------------------------- scores and pictures

@torch.no_grad()
def check_accuracy(loader, model, device="cuda", loss_fn=None, full_size=False, outlines=False, at_least=0.0):
    """Print pixel accuracy and Dice of a model over a loader of (images, masks), and return what was measured.

    -> {"dice", "iou", "accuracy", "precision", "recall": means over images at the network's resolution,
    "foreground": predicted share of all pixels, "loss": mean of loss_fn where given, "images": a dict per image}.
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
    boundaries, loss, done = [], 0.0, 0
    with ThreadPoolExecutor(max_workers=2) as readers:
        for images, masks in tqdm(loader, desc="evaluating", unit=" batches", delay=2, leave=False):
            pairs = loader.dataset.pairs[done:done + len(images)] if full_size else []
            truths = [readers.submit(read_mask, mask_path) for _, mask_path in pairs]  # while the network computes
            images, masks = to_device(images, masks, model)
            with autocast(model):
                logits = model(images)
            logits = logits.float()
            counts[done:done + len(images)] = metrics.confusion(logits > cut, masks >= 0.5)
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
    return result | {"images": rows}


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
    Path(folder).mkdir(parents=True, exist_ok=True)
    threshold = config_of(model)["THRESHOLD"]
    for idx, (images, masks) in enumerate(loader):
        if idx == max_batches:
            break
        images, masks = to_device(images, masks, model)
        with autocast(model):
            predicted = torch.sigmoid(model(images).float()) > threshold
        torchvision.utils.save_image(predicted.float(), Path(folder) / f"pred_{idx}.png")
        torchvision.utils.save_image(masks, Path(folder) / f"{idx}.png")
    model.train(was_training)
