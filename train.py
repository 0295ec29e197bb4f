"""Train a U-Net on the photographs that config.py names: python train.py [--preset NAME] [--any-constant VALUE ...]"""

import os
import time

STARTED = time.time()  # what STOP_AT_DICE's seconds are counted from: the imports belong to them

from pathlib import Path  # noqa: E402

import config  # noqa: E402
import demo_data  # noqa: E402
from pictures import (
    UserError,
    check_folders,
    few,
    keep_freed_memory,
    labels_of,
    listing,
    replacing,
    printable,
    user_errors,
)  # noqa: E402

PREPARED = (
    "data/train_images/",
    "data/train_masks/",
    "data/val_images/",
    "data/val_masks/",
)  # prepare_data.py's own choice


def configured():
    """The configuration of this run, its files checked; where there are no photographs yet, that of the demo."""
    cfg = config.load(description=__doc__)
    rendered = (
        "parts"
        if tuple(cfg.CLASSES) == demo_data.PARTS
        else "demo"
        if len(cfg.CLASSES) == 1
        else None
    )
    if (
        rendered
        and folders(cfg) == PREPARED
        and not any(Path(folder).is_dir() and listing(folder, "data") for folder in PREPARED)
    ):
        if os.environ.get("RANK", "0") == "0":
            print(
                f"No photographs in data/train_images: training on rendered cars in data/{rendered} instead, with the preset {rendered}.\n"
                "For Carvana's, download Kaggle's two zips and run: python prepare_data.py train.zip train_masks.zip"
            )
        cfg = config.load(base=rendered)
    if (
        is_rendered(cfg)
        and not Path(cfg.TRAIN_IMG_DIR).exists()
        and os.environ.get("LOCAL_RANK", "0") == "0"
    ):
        demo_data.render_set(Path(cfg.TRAIN_IMG_DIR).parent, parts=is_rendered(cfg, "parts"))
    while (
        is_rendered(cfg) and not Path(cfg.TRAIN_IMG_DIR).exists()
    ):  # another process of this machine renders
        time.sleep(0.5)
    check_folders(
        (cfg.TRAIN_IMG_DIR, cfg.TRAIN_MASK_DIR),
        (cfg.VAL_IMG_DIR, cfg.VAL_MASK_DIR),
        suffix=cfg.MASK_SUFFIX,
    )
    written = {
        "CHECKPOINT_FILE": cfg.CHECKPOINT_FILE,
        "BEST_CHECKPOINT_FILE": cfg.BEST_CHECKPOINT_FILE,
    }
    for name, file in written.items():
        if not file or Path(file).exists() and not Path(file).is_file():
            raise UserError(
                f"{config.option(name)}: expected a file to write, found {file!r}; name another"
            )
    if len(set(map(os.path.abspath, written.values()))) == 1:
        raise UserError(
            f"--checkpoint-file and --best-checkpoint-file are both {cfg.CHECKPOINT_FILE!r}; one would overwrite the other"
        )
    if Path(cfg.SAVED_IMAGES_DIR).exists() and not Path(cfg.SAVED_IMAGES_DIR).is_dir():
        raise UserError(
            f"--saved-images-dir: expected a folder, found the file {cfg.SAVED_IMAGES_DIR!r}; name another"
        )
    first = (
        os.environ.get("RANK", "0") == "0"
    )  # of several processes: the one that reads checkpoints
    if first and cfg.INIT_WEIGHTS and not Path(cfg.INIT_WEIGHTS).is_file():
        raise UserError(
            f"no checkpoint {cfg.INIT_WEIGHTS!r} to take weights from; name another with --init-weights, or leave it away"
        )
    if first and cfg.LOAD_MODEL and not Path(cfg.CHECKPOINT_FILE).is_file():
        raise UserError(
            f"no checkpoint {cfg.CHECKPOINT_FILE!r} to go on from; leave --load-model away to train anew"
        )
    return cfg


def folders(cfg):
    return cfg.TRAIN_IMG_DIR, cfg.TRAIN_MASK_DIR, cfg.VAL_IMG_DIR, cfg.VAL_MASK_DIR


def is_rendered(cfg, *sets):
    return any(
        Path(cfg.TRAIN_IMG_DIR) == Path(config.PRESETS[name]["TRAIN_IMG_DIR"])
        for name in sets or ("demo", "parts")
    )


if (
    __name__ == "__main__"
):  # wrong words and wrong folders are answered before the seconds that torch takes to import
    keep_freed_memory()
    with user_errors():
        cfg = configured()

import contextlib  # noqa: E402
import copy  # noqa: E402
import csv  # noqa: E402
import math  # noqa: E402
import shlex  # noqa: E402
import sys  # noqa: E402

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import nn  # noqa: E402
from tqdm import tqdm  # noqa: E402

import draw  # noqa: E402
import gallery  # noqa: E402
import parallel  # noqa: E402
import utils  # noqa: E402
from dataset import train_transform, val_transform  # noqa: E402
from device import (
    amp_dtype,
    autocast,
    compiling_pays,
    find_device,
    peak_memory,
    refuse_what_cannot_fit,
    to_device,
)  # noqa: E402
from interrupts import Signals, Stretch  # noqa: E402
from model import UNET  # noqa: E402
from recipe import average_weights, learning_rate, make_loss, make_optimizer, shrunk  # noqa: E402

SHRUNK_TO = 16  # of a smaller size to train at, both sides are multiples
FEW, FEW_OF = (
    0.02,
    64,
)  # the share of the pixels below which a class is remarked on, and of how many masks
JUDGED_BY = {
    "VAL_IMG_DIR",
    "VAL_MASK_DIR",
    "MASK_SUFFIX",
    "MASK_RESIZE",
    "THRESHOLD",
}  # scores by others do not compare
LOOK_EVERY = 10  # steps between looks at the loss; each look waits for the device
COLUMNS = (
    "epoch",
    "train_loss",
    "val_loss",
    "accuracy",
    "dice",
    "one_minus_dice",
    "full_dice",
    "learning_rate",
    "seconds",
    "images_per_second",
    "peak_memory_mb",
)


def train_fn(
    loader,
    model,
    optimizer,
    loss_fn,
    scaler,
    epochs_left=0,
    rate=None,
    accumulate=1,
    clip=0.0,
    share=None,
    after_step=None,
):
    """The steps of an epoch, or of a Stretch of it -> mean loss of its images.

    epochs_left: of so many the time is announced early on. rate: batches done here -> learning rate; None leaves the optimizer's own.
    accumulate: batches to a step. clip: longest gradient, 0 for any. share: batches done here -> share of the images' size to
    train at. after_step: called with the batches done here after each step."""
    model.train()
    total, seen, recent, started = 0.0, 0, [], None
    with tqdm(
        total=len(loader.dataset),
        initial=getattr(loader, "first", 0),
        unit=" images",
        dynamic_ncols=True,
        leave=False,
    ) as bar:
        for step, (images, masks) in enumerate(loader):
            if rate is not None:
                for group in optimizer.param_groups:
                    group["lr"] = rate(step)
            images, masks = to_device(images, masks, model)
            if share is not None:
                images, masks = shrunk(images, masks, share(step), SHRUNK_TO)

            with autocast(model):
                logits = model(images)
            loss = loss_fn(
                logits.float(), masks
            )  # in float32: half precision rounds small losses away

            own, together, weight = getattr(
                loader, "batch", (len(images), len(images), 1)
            )  # of several processes
            if step % accumulate == 0:
                optimizer.zero_grad()
            batches = min(
                accumulate, len(loader) - step + step % accumulate
            )  # of this step; the last of an epoch can have fewer
            scaler.scale(loss * weight / batches).backward()
            if (step + 1) % accumulate == 0 or step + 1 == len(loader):
                if clip:
                    scaler.unscale_(optimizer)
                    nn.utils.clip_grad_norm_(model.parameters(), clip)
                scaler.step(optimizer)
                scaler.update()
                if after_step is not None:
                    after_step(step + 1)

            bar.update(together)
            seen += together
            recent.append(loss.detach() * own)
            if step in (1, 5) or len(recent) == LOOK_EVERY:
                total += look_at(recent, together, step, loader, bar)
            if step == 1:
                started = time.perf_counter()
            if step == 5 and epochs_left:
                seconds = (time.perf_counter() - started) / 4
                epoch = seconds * len(loader.dataset) / together
                tqdm.write(
                    f"about {duration(epoch)} an epoch, {duration(seconds * len(loader) + epoch * (epochs_left - 1))} in all, and evaluation on top"
                )
        total += look_at(recent, together, step, loader, bar) if recent else 0.0
    return total / max(seen, 1)


def look_at(recent, images, step, loader, bar):
    """Sum, show and forget the losses of the last steps, the last one of so many images: the only place that waits for the device."""
    losses = parallel.summed(torch.stack(recent)).tolist()
    recent.clear()
    bar.set_postfix(loss=f"{losses[-1] / images:.4f}")
    stop_if_not_finite(losses, step, loader)
    return sum(losses)


def stop_if_not_finite(losses, step, loader):
    """Raises UserError, naming the batch's files, where one of the losses up to this step is infinite or not a number."""
    bad = [not math.isfinite(loss) for loss in losses]
    if any(bad):
        start = (
            getattr(loader, "first", 0)
            + (step + 1 - len(losses) + bad.index(True)) * loader.batch_size
        )
        order = (
            loader.sampler.order(loader.sampler.epoch - 1)
            if hasattr(loader.sampler, "order")
            else []
        )
        names = [
            printable(loader.dataset.pairs[i][0].name)
            for i in order[start : start + loader.batch_size]
        ]
        raise UserError(
            f"the loss of step {start // loader.batch_size + 1} is not finite; its images: {', '.join(names) or 'unknown'}. "
            "Lower LEARNING_RATE or set PRECISION to fp32; --load-model true goes on from the last good checkpoint"
        )


def duration(seconds):
    return (
        f"{seconds:.0f} s"
        if seconds < 100
        else f"{seconds / 60:.0f} min"
        if seconds < 6000
        else f"{seconds / 3600:.1f} h"
    )


def main(cfg):
    with parallel.together(find_device(cfg.DEVICE)) as device, contextlib.ExitStack() as stack:
        train(cfg, device, stack)


def train(cfg, device, stack):
    labels = labels_of(vars(cfg))
    network = {
        "in_channels": cfg.IN_CHANNELS,
        "out_channels": len(cfg.CLASSES),
        "features": cfg.FEATURES,
        "unshuffle": cfg.UNSHUFFLE,
    }
    with torch.device("meta"):  # takes no memory
        parameters = sum(p.numel() for p in UNET(**network).parameters())
    refuse_what_cannot_fit(
        parameters,
        (parallel.own_batch(cfg.BATCH_SIZE), cfg.IMAGE_HEIGHT, cfg.IMAGE_WIDTH),
        cfg.FEATURES[0] / cfg.UNSHUFFLE**2,
        device,
    )
    torch.manual_seed(cfg.SEED)
    torch.backends.cudnn.benchmark = True

    train_loader, val_loader = utils.get_loaders(
        *folders(cfg),
        cfg.BATCH_SIZE,
        train_transform(
            cfg.ROTATE,
            cfg.HORIZONTAL_FLIP,
            cfg.VERTICAL_FLIP,
            cfg.ROTATE_FILL,
            cfg.SCALE_JITTER,
            cfg.COLOR_JITTER,
            labels,
        ),
        val_transform(),
        cfg.NUM_WORKERS,
        cfg.PIN_MEMORY,
        device,
        size=(cfg.IMAGE_HEIGHT, cfg.IMAGE_WIDTH),
        channels=cfg.IN_CHANNELS,
        mask_resize=cfg.MASK_RESIZE,
        seed=cfg.SEED,
        cache_dir=cfg.CACHE_DIR if cfg.CACHE else None,
        labels=labels,
        suffix=cfg.MASK_SUFFIX,
    )
    stack.callback(utils.end_workers, train_loader, val_loader)
    utils.refuse_unreadable(train_loader.dataset, val_loader.dataset)
    model = UNET(**network).to(device, memory_format=torch.channels_last)
    model.config = vars(cfg)
    if cfg.INIT_WEIGHTS and not cfg.LOAD_MODEL:
        left = utils.take_what_fits(
            parallel.from_first(lambda: utils.read_checkpoint(cfg.INIT_WEIGHTS)),
            model,
            cfg.INIT_WEIGHTS,
        )
        print(f"weights of {cfg.INIT_WEIGHTS}" + (f", but not: {few(left)}" if left else ""))
    average = copy.deepcopy(model) if cfg.EMA else None
    judged = average or model
    loss_fn = make_loss(cfg.LOSS, labels, cfg.POSITIVE_WEIGHT)
    optimizer = make_optimizer(
        cfg.OPTIMIZER, model.parameters(), cfg.LEARNING_RATE, device, cfg.WEIGHT_DECAY
    )
    scaler = torch.amp.GradScaler(
        device.type, enabled=amp_dtype(device, cfg.PRECISION) == torch.float16
    )
    print(
        f"{len(train_loader.dataset)} training and {len(val_loader.dataset)} validation images at "
        f"{cfg.IMAGE_HEIGHT}x{cfg.IMAGE_WIDTH}; {parameters / 1e6:.2f} M parameters on {device}, "
        f"{str(amp_dtype(device, cfg.PRECISION)).removeprefix('torch.')}"
    )

    remark_on_few(train_loader.dataset, cfg.CLASSES)
    images = len(train_loader.dataset)
    nothing_done = {"of": images, "images": 0, "loss": 0.0, "seconds": 0.0}
    run, epoch, best, history, part = parallel.run_name(), 0, -1.0, [], nothing_done
    state = parallel.from_first(
        lambda: (
            utils.read_checkpoint(cfg.CHECKPOINT_FILE)
            if cfg.LOAD_MODEL or utils.run_of(cfg.CHECKPOINT_FILE) == run
            else None
        )
    )
    resumed = state is not None
    if resumed:
        changed = compare_with_checkpoint(cfg, state.get("config", {}))
        epoch, best, history, part = utils.restore(
            state, model, optimizer, scaler, cfg.CHECKPOINT_FILE, average
        )
        run, part = state.get("run", run), part if part and part["of"] == images else nothing_done
        print(
            f"{cfg.CHECKPOINT_FILE}: {epoch} of {cfg.NUM_EPOCHS} epochs done"
            + (f", and {part['images']} images of the next" if part["images"] else "")
        )
        scores = utils.check_accuracy(val_loader, judged, device, loss_fn, full_size=True)
        print(f"Dice {scores['full_dice']:.4f} at full size")
        best = (
            scores["dice"] if best < 0 and "part" not in state or JUDGED_BY & changed else best
        )  # of a file that others wrote, or by another measure
        show(cfg, history, val_loader, judged, scores)
    del state
    train_loader.sampler.epoch = epoch
    if parallel.FIRST:
        draw.save(
            draw.batch(train_loader, cfg.BATCH_SIZE),
            os.path.join(cfg.SAVED_IMAGES_DIR, "batch.png"),
        )

    step_images = cfg.BATCH_SIZE * cfg.ACCUMULATE
    looks = (
        {
            round(images / step_images * (look + 1) / cfg.LOOKS_PER_EPOCH) * step_images
            for look in range(cfg.LOOKS_PER_EPOCH - 1)
        }
        | {images}
        if cfg.STOP_AT_DICE
        else set()
    )
    reached, saved = [], time.monotonic()

    def pause(done):
        return parallel.highest(signals.received or 0) or done in looks or overdue()

    def overdue():
        return parallel.highest(int(time.monotonic() - saved > 60 * cfg.CHECKPOINT_MINUTES))

    def progress(step):
        return (
            epoch + min(part["images"] + step * cfg.BATCH_SIZE, images) / images
        ) / cfg.NUM_EPOCHS

    def rate(step):
        return learning_rate(cfg.SCHEDULE, cfg.LEARNING_RATE, cfg.WARMUP, progress(step))

    def share(step):
        return cfg.RESOLUTIONS[
            min(int(progress(step) * len(cfg.RESOLUTIONS)), len(cfg.RESOLUTIONS) - 1)
        ]

    def after_step(step):
        average_weights(
            average,
            model,
            cfg.EMA,
            progress(step) * cfg.NUM_EPOCHS * len(train_loader) / cfg.ACCUMULATE,
        )

    def evaluate(full_size, at_least=0.0):
        parallel.same_statistics(judged)
        try:
            if cfg.BATCHNORM_IMAGES:
                utils.settle_batchnorm(judged, train_loader, cfg.BATCHNORM_IMAGES)
            scores = utils.check_accuracy(
                val_loader, judged, device, loss_fn, full_size=full_size, at_least=at_least
            )
        except Exception:  # a file that has gone bad, or no memory: what was learnt is kept
            save()
            raise
        if cfg.STOP_AT_DICE and scores["dice"] >= cfg.STOP_AT_DICE:
            reached.append(
                f"Dice {scores['dice']:.5f} >= STOP_AT_DICE {cfg.STOP_AT_DICE}, {time.time() - STARTED:.1f} s after the start of the process"
            )
        return scores

    def save(filename=cfg.CHECKPOINT_FILE):
        if parallel.FIRST:
            utils.save_checkpoint(
                utils.checkpoint_state(
                    model, optimizer, scaler, run, epoch, best, history, part, average
                ),
                filename,
            )

    distributed = trained = parallel.wrapped(model, device)
    ahead, epochs_left = 0.0, cfg.NUM_EPOCHS - epoch  # to announce
    if parallel.RANKS > 1 and not resumed:
        save()  # what a restart after a process's death goes on from is this run's from the first step on
    with Signals() as signals:
        while epoch < cfg.NUM_EPOCHS and not reached and not out_of_patience(history, cfg.PATIENCE):
            if trained is distributed and compiling_pays(cfg.COMPILE, device, ahead):
                trained = torch.compile(distributed)
            started = time.perf_counter()
            stretch = Stretch(train_loader, epoch, part["images"], pause, cfg.ACCUMULATE)
            loss = train_fn(
                stretch,
                trained,
                optimizer,
                loss_fn,
                scaler,
                epochs_left,
                rate,
                cfg.ACCUMULATE,
                cfg.CLIP_GRADIENT,
                share if cfg.RESOLUTIONS != [1.0] else None,
                after_step if cfg.EMA else None,
            )
            part = {
                "of": images,
                "images": stretch.done,
                "loss": part["loss"] + loss * (stretch.done - stretch.first),
                "seconds": part["seconds"] + time.perf_counter() - started,
            }
            epochs_left = 0
            ending, late = parallel.highest(signals.received or 0), overdue()
            if ending or stretch.error or late:
                save()
                saved = time.monotonic()
            if stretch.error:
                raise stretch.error
            if ending:
                print(
                    f"ended after {part['images']} of {images} images of epoch {epoch + 1}; the same command with --load-model true goes on there"
                )
                sys.exit(128 + ending)
            if part["images"] in looks:
                evaluate(full_size=False, at_least=cfg.STOP_AT_DICE)
            if part["images"] < images and not reached:
                continue

            full_size = (
                epoch + 1 == cfg.NUM_EPOCHS
                or bool(reached)
                or cfg.FULL_RES_EVERY > 0
                and (epoch + 1) % cfg.FULL_RES_EVERY == 0
            )
            scores = evaluate(full_size)
            epoch += 1
            history.append(
                {
                    "epoch": epoch,
                    "train_loss": part["loss"] / part["images"],
                    "val_loss": scores["loss"],
                    "accuracy": scores["accuracy"],
                    "dice": scores["dice"],
                    "one_minus_dice": 1 - scores["dice"],
                    "full_dice": scores.get("full_dice"),
                    "learning_rate": optimizer.param_groups[0]["lr"],
                    "seconds": part["seconds"],
                    "images_per_second": part["images"] / part["seconds"],
                    "peak_memory_mb": peak_memory(device) / 1e6,
                }
            )
            ahead = part["seconds"] * (cfg.NUM_EPOCHS - epoch)
            best_so_far, best, part = best, max(best, scores["dice"]), nothing_done
            if best > best_so_far:
                save(cfg.BEST_CHECKPOINT_FILE)
            save()
            saved = time.monotonic()
            report(history, scores, cfg)
            show(cfg, history, val_loader, judged, scores)

    if reached:
        print(reached[0])
    elif epoch < cfg.NUM_EPOCHS:
        print(f"no better Dice for PATIENCE = {cfg.PATIENCE} epochs")
    if parallel.FIRST:
        draw.curves(
            history,
            f"{cfg.IMAGE_HEIGHT}x{cfg.IMAGE_WIDTH}",
            os.path.join(cfg.SAVED_IMAGES_DIR, "curves.png"),
        )
    page = os.path.join(cfg.SAVED_IMAGES_DIR, "index.html" if cfg.GALLERY_MAX else "overview.png")
    on = "demo Dice (rendered cars, not Carvana)" if is_rendered(cfg) else "validation Dice"
    print(
        f"best {on} {max(best, 0):.4f} at {cfg.IMAGE_HEIGHT}x{cfg.IMAGE_WIDTH}; now look at {page}"
    )


def show(cfg, history, loader, model, scores):
    """Write all pictures of an evaluation."""
    if parallel.FIRST:
        draw.validation_pictures(loader, model, scores, cfg.SAVED_IMAGES_DIR, cfg.SAVE_IMAGES_MAX)
        gallery.training_page(
            cfg,
            {name: value for name, (value, _) in config.constants().items()},
            history,
            loader.dataset,
            scores,
        )
        if history and history[-1]["dice"] == scores["dice"]:  # not of an epoch that has only begun
            draw.learning(
                loader.dataset,
                scores,
                len(history),
                os.path.join(cfg.SAVED_IMAGES_DIR, "learning.gif"),
            )


def remark_on_few(dataset, classes):
    """Print which classes cover so little of some training masks that plain cross entropy may overlook them."""
    masks = [
        dataset.small_mask(index) for index in range(0, len(dataset), -(-len(dataset) // FEW_OF))
    ]
    shares = {
        name: np.mean(
            [(mask == index).mean() if len(classes) > 1 else mask.mean() / 255 for mask in masks]
        )
        for index, name in enumerate(classes)
    }
    few = {name: share for name, share in shares.items() if share < FEW}
    if few:
        print(
            f"{', '.join(f'{printable(name)}: {100 * share:.2f} %' for name, share in few.items())} of the pixels of {len(masks)} training masks; "
            "where few pixels count, try LOSS dice or bce_dice, or a POSITIVE_WEIGHT over 1"
        )


def out_of_patience(history, patience):
    """Whether the best Dice is `patience` epochs or more ago."""
    dices = [row["dice"] for row in history]
    return bool(patience and dices) and len(dices) - 1 - dices.index(max(dices)) >= patience


def compare_with_checkpoint(cfg, old):
    """Print which constants changed since a checkpoint was written, and return their names. Raises UserError where that makes it another network."""
    changed = {
        name: value
        for name, value in ({"OPTIMIZER": "adam"} | old).items()
        if name in vars(cfg) and getattr(cfg, name) != value and name != "LOAD_MODEL"
    }
    fatal = [name for name in changed if name in (*utils.NETWORK_CONSTANTS, "OPTIMIZER")]
    if fatal:
        words = {
            name: f"{config.option(name)} {' '.join(shlex.quote(str(one)) for one in (value if isinstance(value, list) else [value]))}"
            for name, value in changed.items()
        }
        others = [words[name] for name in changed if name not in fatal]
        raise UserError(
            f"{cfg.CHECKPOINT_FILE} was trained with other {', '.join(fatal)}; to go on with it, add {' '.join(words[name] for name in fatal)}"
            + (f" (and, for the rest as it was, {' '.join(others)})" if others else "")
            + "; to train anew, leave --load-model away"
        )
    for name, value in changed.items():
        print(f"{name}: {value} in the checkpoint, {getattr(cfg, name)} from now on")
    return set(changed)


def report(history, scores, cfg):
    """Print the last row of the history, and write all of it to history.csv."""
    row = history[-1]
    size = f"{cfg.IMAGE_HEIGHT}x{cfg.IMAGE_WIDTH}"
    full = "" if row["full_dice"] is None else f", {row['full_dice']:.4f} at full size"
    print(
        f"epoch {row['epoch']}/{cfg.NUM_EPOCHS}  train loss {row['train_loss']:.4f}  val loss {row['val_loss']:.4f}  "
        f"accuracy {100 * row['accuracy']:.2f} %  1-Dice {row['one_minus_dice']:.4f}  Dice {row['dice']:.4f} at {size}{full}  "
        f"{row['seconds']:.0f} s  {row['images_per_second']:.1f} images/s  {row['peak_memory_mb'] / 1000:.2f} GB"
    )
    shares = (
        np.sum(scores["confusion"], 0) / max(np.sum(scores["confusion"]), 1)
        if "confusion" in scores
        else [1 - scores["foreground"], scores["foreground"]]
    )
    if max(shares) > 0.999:
        name = cfg.CLASSES[0] if len(cfg.CLASSES) == 1 else cfg.CLASSES[np.argmax(shares)]
        print(
            f"warning: {100 * (shares[1] if len(cfg.CLASSES) == 1 else max(shares)):.2f} % of all pixels are predicted as {printable(name)}; the network has learnt nothing yet. "
            "Train longer, or look at LEARNING_RATE and at the masks in batch.png"
        )
    if parallel.FIRST:
        with (
            replacing(os.path.join(cfg.SAVED_IMAGES_DIR, "history.csv")) as temporary,
            open(temporary, "w", newline="") as file,
        ):
            writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(history)


if __name__ == "__main__":
    with user_errors():
        main(cfg)
