"""Scores of a model over a data set: at the network's resolution and at the photographs' own."""

import contextlib
import functools
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

from carvana import distributed
from carvana.boundaries import boundary_distance, error_beyond_outline
from carvana.classes import Classes
from carvana.device import autocast, to_device
from carvana.files import replacing, write_image
from carvana.images import Size
from carvana.interrupts import Signals
from carvana.metrics import (
    confusion_matrices,
    image_scores,
    score_rows,
    scores_by_class,
    set_scores,
)
from carvana.model_config import logit_threshold, model_classes, model_config
from carvana.predicting import predict_mask, upsample
from carvana.threads import thread_pool
from carvana.tiles import picture_logits

READERS = 2  # threads that read true masks while the network computes


class Measures(NamedTuple):
    """What an evaluation measures besides the scores at the network's resolution."""

    loss_fn: Callable | None = None
    full_size: bool = False  # the same scores at the size of each mask's file
    outlines: bool = False  # distances of outlines, at full size
    at_least: float = 0.0  # give up when the mean Dice can no longer reach this
    signals: Signals | None = None  # give up when one is received


class PredictedMasks:
    """The predicted masks of a data set at the network's resolution, in little memory."""

    def __init__(self, classes: Classes) -> None:
        self.classes = classes
        self.packed: dict[int, tuple[Size, bytes]] = {}

    def add(self, index: int, mask: np.ndarray) -> None:
        """Add an image's mask, uint8 (H, W) of class indices."""
        pixels = np.packbits(mask) if self.classes.single else mask
        self.packed[index] = mask.shape[:2], zlib.compress(pixels.tobytes(), level=1)

    def size(self, index: int) -> Size:
        """Return the size (H, W) that an image was scored at."""
        return self.packed[index][0]

    def describe_size(self) -> str:
        """Return the size of all images in words: "160x240", or that it differs."""
        sizes = {size for size, _ in self.packed.values()}
        if len(sizes) > 1:
            return "own size"
        height, width = sizes.pop()
        return f"{height}x{width}"

    def mask(self, index: int) -> np.ndarray:
        """Return an image's mask, uint8 (H, W) of class indices."""
        size, compressed = self.packed[index]
        pixels = np.frombuffer(zlib.decompress(compressed), np.uint8)
        if self.classes.single:
            pixels = np.unpackbits(pixels, count=size[0] * size[1])
        return pixels.reshape(size)

    def resized(self, index: int, size: Size) -> np.ndarray:
        """Return an image's mask at another size (H, W)."""
        mask = self.mask(index)
        if not self.classes.single:
            return cv2.resize(mask, size[::-1], interpolation=cv2.INTER_NEAREST)
        soft = cv2.resize(mask * np.uint8(255), size[::-1], interpolation=cv2.INTER_LINEAR)
        return (soft > 127).view(np.uint8)


def check_accuracy(  # noqa: PLR0913 (the tutorials' own signature, and keywords)
    loader: Any,
    model: nn.Module,
    device: str | torch.device = "cuda",
    loss_fn: Callable | None = None,
    full_size: bool = False,
    outlines: bool = False,
    at_least: float = 0.0,
    signals: Signals | None = None,
) -> dict[str, Any]:
    """Print a model's pixel accuracy and Dice over a loader, and return all its scores.

    Args:
        loader: of (images, masks). For full_size it must go through a CarvanaDataset in order.
        device: the model is moved to it.
        loss_fn: adds "loss", its mean.
        full_size: adds the scores at the size of each mask's file, with "full_" before their
            names: logits are upsampled bilinearly and thresholded there.
        outlines: with full_size, adds "full_boundary", the mean distance of the outlines in
            pixels, and "full_beyond" (boundaries.error_beyond_outline).
        at_least: where not even perfect masks of all further images could lift the mean Dice
            this high, give up and return only {"dice": what they would have made it}.
        signals: at one that any of the processes receives, give up.

    Raises:
        Interrupted: by one of `signals`.

    Returns:
        "dice", "iou", "accuracy", "precision", "recall": means over images at the network's
        resolution. "set_dice", "set_iou": of all pixels of the set together
        (metrics.set_scores). "foreground": the predicted share of all pixels. "images": a dict
        of scores per image. "masks": PredictedMasks. "size": that resolution, in words. For
        several classes an image's scores are means over the classes in its truth or prediction;
        "classes" (metrics.scores_by_class) and "confusion" (pixels by true and predicted class)
        come on top.
    """
    measures = Measures(loss_fn, full_size, outlines, at_least, signals)
    with _evaluating(model, device):
        evaluation = Evaluation(loader, model, measures)
        evaluation.run()
    if evaluation.hopeless:
        return {"dice": evaluation.best_possible_dice()}
    evaluation.merge_processes()
    if not len(evaluation.matrices):
        raise ValueError("the loader gives no images")
    correct, pixels = evaluation.pixel_counts()
    scores = evaluation.scores()
    print(f"Got {correct}/{pixels} with acc {100 * correct / max(pixels, 1):.2f}")
    print(f"Dice score: {scores['dice']:.6f}")
    return scores


@contextlib.contextmanager
def _evaluating(model: nn.Module, device: str | torch.device) -> Iterator[None]:
    """Have a model on a device in eval mode within the block, and gradients off."""
    was_training = model.training
    model.to(device).eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


class Evaluation:
    """What has been counted of a loader's images; of several processes, this one's shard."""

    def __init__(self, loader: Any, model: nn.Module, measures: Measures) -> None:
        self.loader = loader
        self.model = model
        self.measures = measures
        self.classes = model_classes(model)
        self.config = model_config(model)
        self.run_network = functools.partial(_float_logits, model)
        self.threshold = logit_threshold(self.config)
        self.length = len(loader.dataset)
        self.done = 0
        self.hopeless = False
        # Allocated up front: small long-lived tensors would fragment memory.
        device = next(model.parameters()).device
        shape = (self.length, self.classes.count, self.classes.count)
        self.matrices = torch.zeros(shape, dtype=torch.int64, device=device)
        self.full_matrices = torch.zeros(shape, dtype=torch.int64, device=device)
        self.boundaries: dict[int, dict[str, float]] = {}
        self.masks = PredictedMasks(self.classes)
        self.loss = torch.zeros((), dtype=torch.float64)

    def run(self) -> None:
        """Count all images of the loader, or as many as it takes to know that it is hopeless."""
        order = self._order()
        # Each of several processes sees only its shard.
        at_least = self.measures.at_least if distributed.WORLD_SIZE == 1 else 0.0
        signals = self.measures.signals
        bar = tqdm(self.loader, desc="evaluating", unit=" batches", delay=2, leave=False)
        with thread_pool(READERS) as readers, bar:
            for images, masks in bar:
                indices = order[self.done : self.done + len(images)]
                truths = self._read_truths(indices, readers)
                logits = self._count_batch(indices, images, masks)
                for index, image_logits, truth in zip(indices, logits, truths, strict=False):
                    self._count_full_size(index, image_logits, truth.result())
                self.done += len(images)
                if at_least and self.best_possible_dice() < at_least:
                    self.hopeless = True
                    break
                if signals and signals.received:
                    break
        if signals:
            signals.check()

    def _order(self) -> Sequence[int]:
        """Return the indices of the images that the loader gives, in its order."""
        if isinstance(self.loader.sampler, range):  # of several processes, this one's shard
            return self.loader.sampler
        return range(self.length)

    def _read_truths(self, indices: Sequence[int], readers: ThreadPoolExecutor) -> list[Future]:
        """Start reading true masks at full size, if they are wanted, while the network computes."""
        if not self.measures.full_size:
            return []
        return [readers.submit(self.loader.dataset.mask, index) for index in indices]

    def _count_batch(
        self, indices: Sequence[int], images: torch.Tensor, masks: torch.Tensor
    ) -> torch.Tensor:
        """Count a batch at the network's resolution; return its logits, float32."""
        images, masks = to_device(images, masks, self.model)
        with autocast(self.model):
            logits = picture_logits(self.run_network, images, self.config)
        predicted = predict_mask(logits, self.threshold)
        targets = (masks[:, 0] >= 0.5).view(torch.uint8) if self.classes.single else masks
        self.matrices[list(indices)] = confusion_matrices(predicted, targets, self.classes)
        for index, mask in zip(indices, predicted.cpu().numpy(), strict=True):
            self.masks.add(index, mask)
        if self.measures.loss_fn is not None:
            self.loss += self.measures.loss_fn(logits, masks).item() * len(images)
        return logits

    def _count_full_size(self, index: int, logits: torch.Tensor, truth: np.ndarray) -> None:
        """Count an image at its mask's own size.

        Args:
            logits: (C, h, w).
            truth: uint8 (H, W) of class indices.
        """
        target = torch.from_numpy(truth).to(logits.device)
        whole = logits[None]
        if logits.shape[1:] != target.shape:
            whole = F.interpolate(whole, size=target.shape, mode="bilinear")
        predicted = predict_mask(whole, self.threshold)
        self.full_matrices[index] = confusion_matrices(predicted, target[None], self.classes)[0]
        if self.measures.outlines:
            known = truth != self.classes.ignore
            prediction = (predicted[0].cpu().numpy() > 0) & known
            foreground = self.classes.foreground(truth)
            self.boundaries[index] = {
                "full_boundary": boundary_distance(prediction, foreground, known),
                "full_beyond": error_beyond_outline(prediction, foreground, known),
            }

    def best_possible_dice(self) -> float:
        """Return the mean Dice if all further masks were perfect."""
        dice = image_scores(self.matrices[: self.done].cpu(), "dice", self.classes)
        return 1 - (1 - dice).sum().item() / self.length

    def merge_processes(self) -> None:
        """Bring the counts of all processes together."""
        # Somebody's own loader may leave images out.
        count = self.done if distributed.WORLD_SIZE == 1 else self.length
        self.matrices = distributed.all_reduce_sum(self.matrices)[:count].cpu()
        self.loss = distributed.all_reduce_sum(self.loss)
        self.masks.packed = distributed.gather_dict(self.masks.packed)
        self.boundaries = distributed.gather_dict(self.boundaries)
        if self.measures.full_size:
            self.full_matrices = distributed.all_reduce_sum(self.full_matrices)[:count].cpu()

    def pixel_counts(self) -> tuple[int, int]:
        """Return how many pixels are right, and how many there are."""
        matrix = self.matrices.sum(0)  # (classes, classes), true by predicted
        return int(matrix.trace()), int(matrix.sum())

    def scores(self) -> dict[str, Any]:
        """Return what check_accuracy returns."""
        rows = self._rows()
        result = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
        result |= set_scores(self.matrices, self.classes)
        if self.measures.full_size:
            full_scores = set_scores(self.full_matrices, self.classes)
            result |= {f"full_{name}": value for name, value in full_scores.items()}
        foreground = self.matrices[:, :, 1:].sum().item()
        result["foreground"] = foreground / max(self.matrices.sum().item(), 1)
        if not self.classes.single:
            result |= self._class_scores()
        if self.measures.loss_fn is not None:
            result["loss"] = self.loss.item() / len(self.matrices)
        if hasattr(self.loader.dataset, "pairs"):
            pairs = zip(self.loader.dataset.pairs, rows, strict=False)
            rows = [{"name": image.name} | row for (image, _), row in pairs]
        return result | {"images": rows, "masks": self.masks, "size": self.masks.describe_size()}

    def _rows(self) -> list[dict[str, float]]:
        """Return a dict of scores per image."""
        rows = score_rows(self.matrices, self.classes)
        if self.measures.full_size:
            for row, full_row in zip(
                rows, score_rows(self.full_matrices, self.classes), strict=True
            ):
                row |= {f"full_{name}": value for name, value in full_row.items()}
        for index, distances in self.boundaries.items():
            rows[index] |= distances
        return rows

    def _class_scores(self) -> dict[str, Any]:
        """Return the scores of each class, and the confusion matrix."""
        scores = {
            "classes": scores_by_class(self.matrices, self.classes),
            "confusion": self.matrices.sum(0).tolist(),
        }
        if self.measures.full_size:
            scores["full_classes"] = scores_by_class(self.full_matrices, self.classes)
            scores["full_confusion"] = self.full_matrices.sum(0).tolist()
        return scores


def _float_logits(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Return the logits of images, or of windows of them, float32 (B, classes, h, w)."""
    return model(images).float()


def mean_scores(
    pairs: Iterable[tuple[np.ndarray, np.ndarray]], config: Mapping[str, Any]
) -> dict[str, float]:
    """Return the mean of each score over images, at the masks' own size.

    Args:
        pairs: logits float32 (C, h, w), and true masks uint8 (H, W) of class indices.
        config: the model's constants.
    """
    classes = Classes.from_constants(config)
    threshold = logit_threshold(config)
    matrices = []
    for logits, truth in pairs:
        whole = torch.from_numpy(upsample(logits, truth.shape)[None])
        predicted = predict_mask(whole, threshold)
        matrices.append(confusion_matrices(predicted, torch.from_numpy(truth[None]), classes))
    rows = score_rows(torch.cat(matrices), classes)
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


# ---------------------------------------------------------------- pictures of batches


def save_predictions_as_imgs(
    loader: Any,
    model: nn.Module,
    folder: str | Path = "saved_images/",
    device: str | torch.device = "cuda",
    max_batches: int | None = None,
) -> None:
    """Write pred_{idx}.png (the predicted masks) and {idx}.png (the true ones) for each batch."""
    classes = model_classes(model)
    config = model_config(model)
    threshold = logit_threshold(config)
    run_network = functools.partial(_float_logits, model)
    with _evaluating(model, device):
        for idx, (images, masks) in enumerate(loader):
            if idx == max_batches:
                break
            images, masks = to_device(images, masks, model)
            with autocast(model):
                logits = picture_logits(run_network, images, config)
            predicted = predict_mask(logits, threshold)
            _save_grid(predicted, classes, Path(folder) / f"pred_{idx}.png")
            _save_grid(masks, classes, Path(folder) / f"{idx}.png")


def _save_grid(masks: torch.Tensor, classes: Classes, path: Path) -> None:
    """Write masks, (B, H, W) or (B, 1, H, W), side by side."""
    from torchvision.utils import make_grid  # takes a second

    masks = masks.reshape(-1, *masks.shape[-2:]).cpu()
    if classes.single:  # true masks are soft
        pictures = masks[:, None].float()
    else:
        colors = torch.from_numpy(classes.mask_colors()[masks])
        pictures = colors.permute(0, 3, 1, 2) / 255
    grid = make_grid(pictures).mul(255).round().to(torch.uint8)
    with replacing(path) as temporary:
        write_image(Image.fromarray(grid.permute(1, 2, 0).cpu().numpy()), temporary)
