"""Train a U-Net on the images that config.py names.

python train.py                                    rendered cars if there are no photographs yet
python train.py --preset small --num-epochs 10     --help lists every constant
torchrun --nproc-per-node 4 train.py
"""

import config
from carvana import startup
from carvana.errors import user_errors

if __name__ == "__main__":  # wrong options and folders are answered before torch is imported
    with user_errors():
        cfg = startup.configure(config, description=__doc__)

import contextlib
import copy
import dataclasses
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from carvana import checkpoint, distributed, history, optim, reports, tensorboard
from carvana.augmentation import Augmentation, train_transform, val_transform
from carvana.balance import class_weights
from carvana.batchnorm import BatchNormKeeper, settle_batchnorm
from carvana.byproducts import Byproducts
from carvana.classes import Classes
from carvana.compositing import Compositing, Compositor
from carvana.crops import Crops
from carvana.device import (
    amp_dtype,
    autocast,
    check_memory,
    choose_kernels,
    count_parameters,
    find_device,
    memory_format,
    peak_memory,
    to_device,
)
from carvana.drawing import batch_sheet, save_picture
from carvana.epochs import PartialEpoch, PlainEpoch
from carvana.errors import UserError, first_few, one_line, warn
from carvana.exported import is_exported
from carvana.interrupts import Interrupted, Pause, Signals, looks_within_epoch
from carvana.locks import output_locks
from carvana.losses import make_loss
from carvana.model_config import describe_size, model_config, network_size
from carvana.naming import Naming
from carvana.options import default_values
from carvana.progress import LossMeter, Progress
from carvana.recorded import recorded
from carvana.weights import describe_levels, load_matching_weights
from dataset import (
    check_readable,
    end_workers,
    first_batches,
    get_loaders,
)
from model import UNET
from utils import check_accuracy, load_model, save_checkpoint, save_predictions_as_imgs


def read_weights(path: str) -> dict[str, Any]:
    """Return the weights and constants in a checkpoint, or in a whole network that was exported.

    Raises:
        UserError: the file holds none, or is the graph of a network.
    """
    if not is_exported(path):
        return checkpoint.read_checkpoint(path)
    network = load_model(path, "cpu")
    if not isinstance(network, UNET):
        raise UserError(
            f"{one_line(path)} is a network's graph, which has no weights by name; name the "
            "checkpoint that it was made from"
        )
    return {"state_dict": network.state_dict(), "config": dict(model_config(network))}


@dataclasses.dataclass
class StepOptions:
    """What train_fn does besides the plain step; the defaults change nothing."""

    accumulate: int = 1  # batches per optimizer step
    clip: float = 0.0  # largest gradient norm; 0: no limit
    learning_rate_at: Callable[[int], float] | None = None  # by the batches done here
    resolution_at: Callable[[int], float] | None = None  # share of the image size, likewise
    after_step: Callable[[int], None] | None = None  # called with the batches done here
    epochs_to_announce: int = 0  # print early on how long so many epochs take


def train_fn(
    loader: Any,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss_fn: Callable,
    scaler: torch.amp.GradScaler,
    options: StepOptions | None = None,
) -> float:
    """Train for one epoch, or for the part of one that `loader` is; return the mean loss."""
    options = options or StepOptions()
    epoch = loader if isinstance(loader, PartialEpoch) else PlainEpoch(loader)
    accumulate = options.accumulate
    model.train()
    with LossMeter(epoch, options.epochs_to_announce) as meter:
        for step, (images, masks) in enumerate(epoch):
            if options.learning_rate_at:
                for group in optimizer.param_groups:
                    group["lr"] = options.learning_rate_at(step)
            images, masks = to_device(images, masks, model)
            if options.resolution_at:
                images, masks = optim.resize_batch(images, masks, options.resolution_at(step))

            with autocast(model):
                logits = model(images)
            loss = loss_fn(logits.float(), masks)  # half precision rounds small losses to 0

            if step % accumulate == 0:
                optimizer.zero_grad()
            first = step - step % accumulate  # batch of this optimizer step
            batches = min(accumulate, len(epoch) - first)  # the epoch's last step can have fewer
            scaler.scale(loss * epoch.share.weight / batches).backward()
            if (step + 1) % accumulate == 0 or step + 1 == len(epoch):
                if options.clip:
                    scaler.unscale_(optimizer)
                    nn.utils.clip_grad_norm_(model.parameters(), options.clip)
                scaler.step(optimizer)
                scaler.update()
                if options.after_step:
                    options.after_step(step + 1)
            meter.add(loss)  # reads it every tenth step only: a reading waits for the device
    return meter.mean()


class Trainer:
    """A training run: the network, what updates it, and how far it has come."""

    def __init__(
        self, cfg: SimpleNamespace, device: torch.device, defaults: dict[str, Any]
    ) -> None:
        self.cfg = cfg
        self.defaults = defaults  # of the constants; the page shows what differs
        self.device = device
        self.classes = Classes.from_constants(vars(cfg))
        self.network_args = {
            "in_channels": cfg.IN_CHANNELS,
            "out_channels": len(cfg.CLASSES),
            "features": cfg.FEATURES,
            "unshuffle": cfg.UNSHUFFLE,
        }
        self.parameters = count_parameters(UNET, **self.network_args)
        self.check_size()
        torch.manual_seed(cfg.SEED)
        self.train_loader, self.val_loader = self.make_loaders()
        check_readable(self.train_loader.dataset, self.val_loader.dataset)
        self.starts_whole = False  # with all weights of another run's network
        self.model = self.make_model()
        self.ema_model = copy.deepcopy(self.model) if cfg.EMA else None
        self.eval_model = self.ema_model or self.model  # whose weights are scored and kept
        weights = class_weights(cfg.CLASS_WEIGHTS, self.train_loader.dataset)
        edge_height = cfg.CROP_HEIGHT or None
        self.loss_fn = make_loss(cfg.LOSS, self.classes, cfg.POSITIVE_WEIGHT, weights, edge_height)
        # LEARNING_RATE only sets it up; learning_rate_at() decides at each step.
        self.optimizer = optim.make_optimizer(
            cfg.OPTIMIZER, self.model.parameters(), cfg.LEARNING_RATE, device, cfg.WEIGHT_DECAY
        )
        self.dtype = amp_dtype(device, cfg.PRECISION)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)
        images = self.train_loader.sampler.length
        choose_kernels(cfg.DETERMINISTIC, cfg.NUM_EPOCHS * len(self.train_loader))
        self.progress = Progress(distributed.run_name(), images, cfg.NUM_EPOCHS)
        self.looks = set()  # numbers of images done at which to look for STOP_AT_DICE
        if cfg.STOP_AT_DICE:
            step_images = cfg.BATCH_SIZE * cfg.ACCUMULATE
            self.looks = looks_within_epoch(images, step_images, cfg.LOOKS_PER_EPOCH)
        self.byproducts = Byproducts()
        self.signals = Signals()
        self.pause = Pause(self.signals, self.looks, cfg.CHECKPOINT_MINUTES)
        self.statistics = BatchNormKeeper(self.model) if cfg.ACCUMULATE > 1 else None

    def check_size(self) -> None:
        """Refuse a network and batches that cannot fit, before anything is allocated."""
        cfg = self.cfg
        images, _, height, width = self.batch_shape
        first_channels = cfg.FEATURES[0] / cfg.UNSHUFFLE**2
        check_memory(self.parameters, (images, height, width), first_channels, self.device)

    @property
    def batch_shape(self) -> tuple[int, int, int, int]:
        """Return (B, C, H, W) of this process's training batches; the last may be smaller."""
        cfg = self.cfg
        height, width = cfg.CROP_HEIGHT or cfg.IMAGE_HEIGHT, cfg.CROP_WIDTH or cfg.IMAGE_WIDTH
        return distributed.local_batch_size(cfg.BATCH_SIZE), cfg.IN_CHANNELS, height, width

    def make_loaders(self) -> tuple:
        """Return the loaders of training and validation images."""
        cfg = self.cfg
        return get_loaders(
            cfg.TRAIN_IMG_DIR,
            cfg.TRAIN_MASK_DIR,
            cfg.VAL_IMG_DIR,
            cfg.VAL_MASK_DIR,
            cfg.BATCH_SIZE,
            train_transform(Augmentation.from_constants(cfg), self.classes),
            val_transform(),
            cfg.NUM_WORKERS,
            cfg.PIN_MEMORY,
            self.device,
            self.make_compositor(),
            Crops.from_constants(cfg),
            size=network_size(vars(cfg)),
            channels=cfg.IN_CHANNELS,
            mask_resize=cfg.MASK_RESIZE,
            classes=self.classes,
            naming=Naming.from_constants(vars(cfg)),
            levels=cfg.IMAGE_LEVELS,
            value_range=cfg.IMAGE_RANGE,
            seed=cfg.SEED,
            cache_dir=cfg.CACHE_DIR if cfg.CACHE else None,
        )

    def make_compositor(self) -> Compositor | None:
        """Return what puts objects before other photographs, if there are any."""
        cfg = self.cfg
        if not cfg.BACKGROUNDS_DIR:
            if cfg.BYSTANDERS and distributed.FIRST:
                print(
                    "BACKGROUNDS_DIR is empty: objects stay before their own backgrounds; "
                    "--backgrounds-dir names a folder of other photographs"
                )
            return None
        settings = Compositing(
            cfg.BACKGROUND_SHARE,
            tuple(cfg.OBJECT_SCALE),
            tint=cfg.OBJECT_TINT,
            bystanders=cfg.BYSTANDERS,
        )
        return Compositor(cfg.BACKGROUNDS_DIR, settings, self.classes, cfg.IN_CHANNELS)

    def make_model(self) -> UNET:
        """Return the network, with the weights of INIT_WEIGHTS as far as they fit."""
        cfg = self.cfg
        model = UNET(**self.network_args).to(self.device, memory_format=memory_format(self.device))
        model.config = vars(cfg)
        if cfg.INIT_WEIGHTS and not cfg.LOAD_MODEL:
            state = distributed.from_first(lambda: read_weights(cfg.INIT_WEIGHTS))
            missing = load_matching_weights(state, model, cfg.INIT_WEIGHTS)
            exceptions = f", but not: {first_few(missing)}" if missing else ""
            print(f"weights of {cfg.INIT_WEIGHTS}{exceptions}")
            levels = describe_levels(state)
            own = {"state_dict": model.state_dict(), "config": vars(cfg)}
            if missing and levels not in ("", describe_levels(own)) and distributed.FIRST:
                warn(f"warning: these weights fit in part only; they are of {levels}: set these")
            self.starts_whole = not missing
        return model

    def print_start(self) -> None:
        """Print what is trained on what."""
        cfg = self.cfg
        parts = ""
        if cfg.CROP_HEIGHT:
            parts = f", {cfg.CROPS_PER_IMAGE} crops of {cfg.CROP_HEIGHT}x{cfg.CROP_WIDTH} from each"
        print(
            f"{len(self.train_loader.dataset)} training and {len(self.val_loader.dataset)} "
            f"validation images at {describe_size(vars(cfg))}{parts}; "
            f"{self.parameters / 1e6:.2f} M parameters on {self.device}, "
            f"{str(self.dtype).removeprefix('torch.')}"
        )
        if (
            self.classes.single
            and cfg.IN_CHANNELS == 3
            and not (cfg.INIT_WEIGHTS or cfg.LOAD_MODEL)
        ):
            history.advise_on_few_photographs(self.train_loader.dataset)
        if cfg.CLASS_WEIGHTS == "none":  # the remedy that it names
            history.warn_of_rare_classes(self.train_loader.dataset)

    def resume(self) -> bool:
        """Continue from CHECKPOINT_FILE if asked to, or after a restart by torchrun."""
        cfg = self.cfg
        state = distributed.from_first(self.read_own_checkpoint)
        if state is None:
            return False
        changed = checkpoint.compare_constants(cfg, state.get("config", {}))
        checkpoint.restore(
            state, self.model, self.optimizer, self.scaler, self.ema_model, cfg.CHECKPOINT_FILE
        )
        progress = self.progress
        progress.restore(state)
        part = f", and {progress.done} images of the next" if progress.done else ""
        print(f"{cfg.CHECKPOINT_FILE}: {progress.epoch} of {cfg.NUM_EPOCHS} epochs done{part}")
        model = self.eval_model
        if progress.done and cfg.BATCHNORM_IMAGES:  # in an epoch they are those of the last steps
            model = copy.deepcopy(model)
            settle_batchnorm(model, self.statistics_batches())
        scores = check_accuracy(self.val_loader, model, self.device, self.loss_fn, full_size=True)
        print(f"Dice {scores['full_dice']:.4f} at full size")
        if "best" not in state or changed & checkpoint.SCORING_CONSTANTS:
            progress.best = scores["dice"]
        self.write_pictures(scores, model)
        return True

    def read_own_checkpoint(self) -> dict | None:
        """Return the checkpoint to resume from, None to start afresh."""
        file = self.cfg.CHECKPOINT_FILE
        if self.cfg.LOAD_MODEL or checkpoint.run_of(file) == self.progress.run:
            return checkpoint.read_checkpoint(file)
        return None

    def run(self) -> None:
        """Train until all epochs are done, or STOP_AT_DICE or PATIENCE ends the run."""
        cfg = self.cfg
        progress = self.progress
        self.print_start()
        resumed = self.resume()
        start_dice = 0.0
        if self.starts_whole and not resumed:
            start_dice = check_accuracy(self.val_loader, self.eval_model, self.device)["dice"]
            print(f"before training: Dice {start_dice:.4f} at {describe_size(vars(cfg))}")
        self.train_loader.sampler.epoch = progress.epoch
        if distributed.FIRST:
            path = os.path.join(cfg.SAVED_IMAGES_DIR, "batch.png")
            with self.byproducts.writing(path):
                save_picture(batch_sheet(self.train_loader, cfg.BATCH_SIZE), path)
        if distributed.WORLD_SIZE > 1 and not resumed:
            self.save(cfg.CHECKPOINT_FILE)  # what a restart after a process's death continues from
        with self.signals:
            try:
                self.train()
            except Interrupted as interruption:
                print(
                    f"stopped after {progress.done} of {progress.images} images of epoch "
                    f"{progress.epoch + 1}; run the same command with --load-model true to continue"
                )
                sys.exit(128 + interruption.number)
            if distributed.FIRST and progress.history:
                with self.byproducts.writing(os.path.join(cfg.SAVED_IMAGES_DIR, "curves.png")):
                    reports.write_curves(cfg, progress.history)
            # A signal that comes now must leave no half-written picture.
            conclude(cfg, progress, start_dice)

    def train(self) -> None:
        """Train and evaluate in turns. Raises Interrupted, with a checkpoint, at a signal."""
        progress = self.progress
        if self.finished():
            return
        epochs_to_announce = progress.epochs_left
        model = self.make_fast(distributed.wrap(self.model, self.device))
        while not self.finished():
            if not self.look_is_due():  # a run that was stopped at a look continues with it
                self.train_until_pause(model, epochs_to_announce)
            epochs_to_announce = 0
            if self.look_is_due():
                self.look()
            if progress.epoch_complete or progress.stop_reason:
                self.finish_epoch()
                self.pause.note_checkpoint()

    def make_fast(self, model: nn.Module) -> nn.Module:
        """Return the network as it is trained: recorded, compiled or as it is, by COMPILE."""
        cfg = self.cfg
        if cfg.COMPILE == "true":
            return torch.compile(model)
        # Gradients of several batches, or of other processes, do not go with a recorded network.
        alone = cfg.ACCUMULATE == 1 and distributed.WORLD_SIZE == 1
        if cfg.COMPILE == "auto" and alone and cfg.RESOLUTIONS == [1.0]:
            end_workers(self.train_loader, self.val_loader)  # which may be using the GPU
            images, *shape = self.batch_shape
            return recorded(model, (min(images, self.progress.images), *shape))
        return model

    def train_until_pause(self, model: nn.Module, epochs_to_announce: int) -> None:
        """Train to the end of the epoch, or to a signal, a look at the score, a due checkpoint."""
        cfg = self.cfg
        progress = self.progress
        pause = self.pause
        epoch = PartialEpoch(
            self.train_loader, progress.epoch, progress.done, pause, cfg.ACCUMULATE
        )
        options = StepOptions(
            accumulate=cfg.ACCUMULATE,
            clip=cfg.CLIP_GRADIENT,
            learning_rate_at=self.learning_rate_at,
            resolution_at=None if cfg.RESOLUTIONS == [1.0] else self.resolution_at,
            after_step=self.after_step,
            epochs_to_announce=epochs_to_announce,
        )
        if self.statistics:
            self.statistics.keep()
        started = time.perf_counter()
        loss = train_fn(epoch, model, self.optimizer, self.loss_fn, self.scaler, options)
        progress.add(epoch.done - epoch.first, loss, time.perf_counter() - started)
        self.check_weights()
        if epoch.error:  # a file that cannot be read, a worker that died
            if self.statistics:
                self.statistics.restore()
            self.save_before_the_end()
            self.signals.check()  # it may have ended the workers as well
            raise epoch.error
        if pause.signal:
            self.save_before_the_end()
            raise Interrupted(pause.signal)
        if pause.checkpoint_due:
            self.save(cfg.CHECKPOINT_FILE)
            pause.note_checkpoint()

    def fraction(self, step: int) -> float:
        """Return the share of the run that is done after so many batches since the last pause."""
        return self.progress.fraction(step * self.cfg.BATCH_SIZE)

    def learning_rate_at(self, step: int) -> float:
        """Return the learning rate, by the batches done since the last pause."""
        cfg = self.cfg
        return optim.learning_rate(cfg.SCHEDULE, cfg.LEARNING_RATE, cfg.WARMUP, self.fraction(step))

    def resolution_at(self, step: int) -> float:
        """Return the share of the image size, by the batches done since the last pause."""
        return optim.resolution(self.cfg.RESOLUTIONS, self.fraction(step))

    def after_step(self, step: int) -> None:
        """Move the average of the weights, after so many batches since the last pause."""
        cfg = self.cfg
        if self.statistics:
            self.statistics.keep()
        if cfg.EMA:
            batches = self.fraction(step) * cfg.NUM_EPOCHS * len(self.train_loader)
            optim.update_ema(self.ema_model, self.model, cfg.EMA, batches / cfg.ACCUMULATE)

    def check_weights(self) -> None:
        """Raise UserError, in all processes, if the weights are not finite."""
        finite = checkpoint.weights_are_finite(self.model, self.ema_model)
        if distributed.all_reduce_max(int(not finite))[0]:
            raise self.not_finite()

    def not_finite(self) -> UserError:
        """Return the error of weights that must not be saved."""
        progress = self.progress
        return UserError(
            f"weights are not finite after {progress.done} of {progress.images} images of epoch "
            f"{progress.epoch + 1}, and were not saved; lower LEARNING_RATE, or set CLIP_GRADIENT "
            "to 1 or PRECISION to fp32. --load-model true continues from the last good checkpoint, "
            "if one was written"
        )

    def look_is_due(self) -> bool:
        """Return whether it is time to look if STOP_AT_DICE has been reached."""
        part = self.progress.part
        return part.images in self.looks and part.images != part.evaluated

    def look(self) -> None:
        """Look if STOP_AT_DICE has been reached."""
        self.evaluate(full_size=False, at_least=self.cfg.STOP_AT_DICE)
        if not self.progress.stop_reason:  # or a run that is stopped now would not see it again
            self.progress.part.evaluated = self.progress.done

    def evaluate(self, full_size: bool, at_least: float = 0.0) -> dict[str, Any]:
        """Return the scores of the weights that are kept. If it fails, they are saved first."""
        cfg = self.cfg
        distributed.broadcast_buffers(self.eval_model)
        try:
            if cfg.BATCHNORM_IMAGES:
                settle_batchnorm(self.eval_model, self.statistics_batches())
            scores = check_accuracy(
                self.val_loader,
                self.eval_model,
                self.device,
                self.loss_fn,
                full_size=full_size,
                at_least=at_least,
                signals=self.signals,
            )
        except Interrupted:
            self.save_before_the_end()
            raise
        except Exception:  # a file that has gone bad, a worker that died, no memory
            self.save(cfg.CHECKPOINT_FILE)
            raise
        self.note_target(scores["dice"])
        return scores

    def statistics_batches(self) -> Iterable:
        """Return training images to measure BatchNorm's statistics on, seen as in evaluation.

        That is whole, or in parts from anywhere: crops around rare classes are no fair sample.
        """
        cfg = self.cfg
        crops = Crops.from_constants(cfg)
        if crops:
            crops = dataclasses.replace(crops, rare_share=0.0) if cfg.TILE else None
        return first_batches(self.train_loader, self.progress.epoch, cfg.BATCHNORM_IMAGES, crops)

    def note_target(self, dice: float) -> None:
        """Remember when STOP_AT_DICE was first reached."""
        target = self.cfg.STOP_AT_DICE
        if target and dice >= target and not self.progress.stop_reason:
            seconds = time.time() - startup.STARTED
            self.progress.stop_reason = (
                f"Dice {dice:.5f} >= STOP_AT_DICE {target}, {seconds:.1f} s after the start of the "
                "process"
            )

    def finish_epoch(self) -> None:
        """Evaluate, and keep and show what the epoch has brought."""
        cfg = self.cfg
        progress = self.progress
        last = progress.epochs_left == 1 or bool(progress.stop_reason)
        due = cfg.FULL_RES_EVERY > 0 and (progress.epoch + 1) % cfg.FULL_RES_EVERY == 0
        scores = self.evaluate(full_size=last or due)
        learning_rate = self.optimizer.param_groups[0]["lr"]
        best_before = progress.best
        if progress.finish_epoch(scores, learning_rate, peak_memory(self.device)):
            self.save_best(best_before)
        self.save(cfg.CHECKPOINT_FILE)
        history.print_epoch(progress.history[-1], cfg)
        history.warn_if_constant(scores, cfg.CLASSES)
        if distributed.FIRST:
            path = os.path.join(cfg.SAVED_IMAGES_DIR, "history.csv")
            with self.byproducts.writing(path):
                history.write_history(progress.history, path)
            if cfg.TENSORBOARD_DIR:
                folder = os.path.join(cfg.TENSORBOARD_DIR, f"run_{progress.run[:8]}")
                with self.byproducts.writing(folder):
                    dataset = self.val_loader.dataset
                    tensorboard.write_epoch(folder, progress.history, dataset, scores)
        self.write_pictures(scores, self.eval_model)

    def save_best(self, best_before: float) -> None:
        """Write the best checkpoint; if that fails, the epoch is kept in the other one.

        It comes first: a run that is killed in between repeats the epoch, and is best again.
        """
        try:
            self.save(self.cfg.BEST_CHECKPOINT_FILE)
        except UserError:
            self.progress.best = best_before
            self.save(self.cfg.CHECKPOINT_FILE)
            raise

    def write_pictures(self, scores: dict[str, Any], model: nn.Module) -> None:
        """Write all that shows an evaluation of a model into SAVED_IMAGES_DIR."""
        cfg = self.cfg
        if not distributed.FIRST:
            return
        folder = cfg.SAVED_IMAGES_DIR
        with self.byproducts.writing(folder):
            save_predictions_as_imgs(
                self.val_loader, model, folder, self.device, cfg.SAVE_IMAGES_MAX
            )
        reports.write_training_report(
            cfg,
            self.defaults,
            self.progress.history,
            self.val_loader.dataset,
            scores,
            self.byproducts,
        )

    def finished(self) -> bool:
        """Return whether there is nothing more to train."""
        progress = self.progress
        done = progress.epochs_left <= 0 or bool(progress.stop_reason)
        return done or progress.out_of_patience(self.cfg.PATIENCE)

    def save(self, filename: str) -> None:
        """Write a checkpoint, in the first of several processes.

        Raises:
            UserError: it cannot be written, or weights are not finite: not even by an evaluation,
                which measures BatchNorm's statistics anew.
        """
        if distributed.FIRST:
            if not checkpoint.weights_are_finite(self.model, self.ema_model):
                raise self.not_finite()
            state = checkpoint.training_state(
                self.model, self.optimizer, self.scaler, self.progress.state(), self.ema_model
            )
            save_checkpoint(state, filename)

    def save_before_the_end(self) -> None:
        """Write the checkpoint, in the first of several processes; the others wait for it.

        Where one process ends, a launcher ends the others.
        """
        self.save(self.cfg.CHECKPOINT_FILE)
        distributed.barrier()


def conclude(cfg: SimpleNamespace, progress: Progress, start_dice: float) -> None:
    """Print why the run ended, its best Dice, and where to look.

    Args:
        start_dice: of the weights to start from; 0 if there were none, or not of all layers.
    """
    if not progress.history and progress.best < 0:
        print("nothing was trained: NUM_EPOCHS is 0")
        return
    if progress.stop_reason:
        print(progress.stop_reason)
    elif progress.epochs_left > 0:
        print(f"no better Dice for PATIENCE = {cfg.PATIENCE} epochs")
    page = os.path.join(cfg.SAVED_IMAGES_DIR, "index.html" if cfg.GALLERY_MAX else "overview.png")
    score = "validation Dice"
    if startup.is_rendered(cfg, config.PRESETS):
        score = "demo Dice (rendered cars, not Carvana)"
    print(
        f"best {score} {max(progress.best, 0):.4f} at {describe_size(vars(cfg))}; "
        f"now look at {page}"
    )
    if distributed.FIRST and progress.best < start_dice:
        warn(
            f"warning: the weights to start from score higher, {start_dice:.4f}; keep these, or "
            "lower LEARNING_RATE"
        )


@contextlib.contextmanager
def locked_outputs(cfg: SimpleNamespace) -> Iterator[None]:
    """Keep other trainings from the files of this one, in the first of several processes."""
    if not distributed.FIRST:
        yield
        return
    with output_locks(startup.outputs(cfg)):
        checkpoint.remove_unfinished(cfg.CHECKPOINT_FILE)
        checkpoint.remove_unfinished(cfg.BEST_CHECKPOINT_FILE)
        yield


def main(cfg: SimpleNamespace) -> None:
    """Train with the constants in `cfg`."""
    with distributed.process_group(find_device(cfg.DEVICE)) as device, locked_outputs(cfg):
        trainer = Trainer(cfg, device, default_values(config))
        try:
            trainer.run()
        finally:
            end_workers(trainer.train_loader, trainer.val_loader)


if __name__ == "__main__":
    with user_errors():
        main(cfg)
