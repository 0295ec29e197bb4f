"""What more there is to gain: by averaging models, and by a perfect hand near the outline.

python tools/gains.py --models studio best_checkpoint.pth.tar

Prints the mean Dice at the photographs' own size: of each model, with its mirror image, when every
pixel within a distance of its outline is as the true mask has it, and of the averaged
probabilities of all models. Then the share of thin parts, such as antennas, that each model finds.
"""

import argparse
import sys
from collections import Counter, defaultdict
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import nn
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent.parent))

import utils
from carvana import metrics, options
from carvana.classes import SINGLE
from carvana.errors import user_errors
from carvana.images import read_hard_mask, read_image
from carvana.pairs import Pair, find_pairs
from carvana.shipped import find_model

DISTANCES = (1, 2, 4, 8)  # pixels
THIN = 9  # pixels; what is narrower is a thin part
LEAST_THIN = 60  # pixels of such a part; smaller ones are corners


def parse_args() -> argparse.Namespace:
    """Return the command line's options."""
    parser = options.make_parser(__doc__)
    parser.add_argument("--models", nargs="+", type=find_model, required=True, metavar="FILE")
    options.add_pair_folders(parser, "data/val_images/", "data/val_masks/")
    parser.add_argument("--every", type=int, default=1, help="take each Nth pair only")
    return parser.parse_args()


def dice(predicted: np.ndarray, target: np.ndarray) -> float:
    """Return the Dice of two masks, uint8 (H, W) of 0 and 1."""
    masks = [torch.from_numpy(mask)[None] for mask in (predicted, target)]
    matrices = metrics.confusion_matrices(*masks, SINGLE)
    return metrics.image_scores(matrices, "dice", SINGLE).item()


def to_mask(probability: np.ndarray) -> np.ndarray:
    """Return uint8 (H, W) of 0 and 1."""
    return (probability > 0.5).view(np.uint8)


def correct_near_outline(predicted: np.ndarray, target: np.ndarray, distance: float) -> np.ndarray:
    """Return a mask that is right within a distance, in pixels, of its own outline."""
    inside, outside = (
        cv2.distanceTransform(mask, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        for mask in (predicted, 1 - predicted)
    )
    return np.where(inside + outside <= distance, target, predicted)


def find_thin_parts(mask: np.ndarray) -> np.ndarray:
    """Return what a disk of THIN pixels does not fit into, uint8 (H, W) of 0 and 1."""
    disk = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (THIN, THIN))
    narrow = mask - cv2.morphologyEx(mask, cv2.MORPH_OPEN, disk)
    _, labels, statistics, _ = cv2.connectedComponentsWithStats(narrow)
    is_part = statistics[:, cv2.CC_STAT_AREA] >= LEAST_THIN
    is_part[0] = False  # of all that is not narrow
    return is_part[labels].view(np.uint8)


def score_pair(pair: Pair, models: dict[str, nn.Module], found: Counter) -> dict[str, float]:
    """Return the Dice of a photograph's masks, by what was done to make them.

    Args:
        found: pixels of thin parts by model, and of all as "true"; the photograph's are added.
    """
    photograph = read_image(pair[0])
    target = read_hard_mask(pair[1], SINGLE)
    thin = find_thin_parts(target)
    found["true"] += int(thin.sum())
    scores = {}
    sums = defaultdict(float)
    for name, model in models.items():
        once = utils.predict(model, [photograph])[0]
        twice = utils.predict(model, [photograph], tta=True)[0]
        scores[name] = dice(to_mask(once), target)
        found[name] += int((thin & to_mask(once)).sum())
        scores[f"{name}, with the mirror image"] = dice(to_mask(twice), target)
        for distance in DISTANCES:
            corrected = correct_near_outline(to_mask(once), target, distance)
            key = f"{name}, perfect within {distance} pixels of its outline"
            scores[key] = dice(corrected, target)
        sums["all"] += once / len(models)
        sums["all, with mirror images"] += twice / len(models)
    if len(models) > 1:
        scores |= {name: dice(to_mask(mean), target) for name, mean in sums.items()}
    return scores


def main() -> None:
    """Print the table."""
    args = parse_args()
    models = {Path(path).name: utils.load_model(path) for path in args.models}
    pairs = find_pairs(args.images, args.masks)[:: args.every]
    found: Counter = Counter()
    rows = [score_pair(pair, models, found) for pair in tqdm(pairs, "masking", unit=" pairs")]
    print(f"{len(pairs)} photographs; mean Dice at their own size\n\n| | Dice |\n|---|---:|")
    for name in rows[0]:
        print(f"| {name} | {np.mean([row[name] for row in rows]):.5f} |")
    total = found.pop("true")
    print(f"\nthin parts, {total} pixels, that are found:")
    for name, pixels in found.items():
        print(f"  {name}: {pixels / max(total, 1):.3f}")


if __name__ == "__main__":
    with user_errors():
        main()
