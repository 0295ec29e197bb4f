"""How a model's masks suffer from what cameras and web sites do to photographs.

python tools/damage.py --images data/test_images --masks data/test_masks
python tools/damage.py --model best_checkpoint.pth.tar --json damage.json

Each photograph is damaged, saved as JPEG, and scored at its own new size as evaluate.py does.
"""

import argparse
import contextlib
import functools
import io
import json
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFilter

sys.path.insert(0, str(Path(__file__).parent.parent))

import utils
from carvana import options
from carvana.classes import SINGLE
from carvana.errors import user_errors
from carvana.files import replacing
from carvana.images import read_hard_mask, read_image
from carvana.pairs import Pair, find_pairs
from carvana.threads import map_in_threads

SEED = 0  # of the noise


class Damage(NamedTuple):
    """What happens to a photograph before it is saved."""

    width: int = 0  # pixels that it is reduced to; 0: none
    quality: int = 95  # of the JPEG
    noise: float = 0.0  # levels of 255, standard deviation
    blur: float = 0.0  # pixels, standard deviation of a Gaussian
    light: float = 1.0  # share of it that is left


DAMAGES = {
    "none": Damage(),
    "640 pixels wide, quality 75": Damage(width=640, quality=75),
    "480 pixels wide, quality 60": Damage(width=480, quality=60),
    "320 pixels wide, quality 75": Damage(width=320, quality=75),
    "quality 30": Damage(quality=30),
    "noise of 16 levels": Damage(noise=16),
    "blur of 4 pixels": Damage(blur=4),
    "a quarter of the light": Damage(light=0.25),
}


def parse_args() -> argparse.Namespace:
    """Return the command line's options."""
    parser = options.make_parser(__doc__)
    options.add_model_option(parser, "checkpoint or exported model")
    options.add_pair_folders(parser, "data/test_images/", "data/test_masks/")
    parser.add_argument("--json", metavar="FILE", help="write the scores there")
    args = parser.parse_args()
    options.check_json_folder(args.json)
    return args


def damaged(image: Image.Image, damage: Damage, rng: np.random.Generator) -> Image.Image:
    """Return a photograph after what a camera does to it."""
    if damage.light != 1:
        image = image.point([round(level * damage.light) for level in range(256)] * 3)
    if damage.blur:
        image = image.filter(ImageFilter.GaussianBlur(damage.blur))
    if damage.noise:
        noise = rng.normal(0, damage.noise, (image.height, image.width, 3))
        levels = np.clip(np.asarray(image) + noise, 0, 255)
        image = Image.fromarray(levels.round().astype(np.uint8))
    if damage.width:
        height = round(image.height * damage.width / image.width)
        image = image.resize((damage.width, height), Image.Resampling.LANCZOS)
    return image


def write_damaged(pair: Pair, damage: Damage, folder: Path) -> None:
    """Write a damaged photograph, and its mask at the same size."""
    path, mask_path = pair
    rng = np.random.default_rng([SEED, *path.stem.encode()])
    image = damaged(Image.fromarray(read_image(path)), damage, rng)
    image.save(folder / "images" / f"{path.stem}.jpg", quality=damage.quality)
    mask = Image.fromarray(read_hard_mask(mask_path, SINGLE) * np.uint8(255))
    mask = mask.resize(image.size, Image.Resampling.BOX)
    mask = mask.point([255 * (level > 127) for level in range(256)])
    mask.save(folder / "masks" / f"{path.stem}.png")


def score(model: str, pairs: list[Pair], damage: Damage) -> list[float]:
    """Return the Dice of each photograph, damaged, at its own size."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for kind in ("images", "masks"):
            (folder / kind).mkdir()
        write = functools.partial(write_damaged, damage=damage, folder=folder)
        for _ in map_in_threads(write, pairs, "damaging"):
            pass
        with contextlib.redirect_stdout(io.StringIO()):
            scores = utils.evaluate(model, folder / "images", folder / "masks")
    return [row["full_dice"] for row in scores["images"]]


def main() -> None:
    """Print the Dice under each kind of damage."""
    args = parse_args()
    pairs = find_pairs(args.images, args.masks)
    print(f"{len(pairs)} photographs; Dice at the size they are saved with\n")
    print("| damage | mean | worst |\n|---|---:|---:|")
    table = {}
    for name, damage in DAMAGES.items():
        table[name] = score(args.model, pairs, damage)
        print(f"| {name} | {np.mean(table[name]):.4f} | {np.min(table[name]):.4f} |")
    if args.json:
        with replacing(args.json) as temporary:
            temporary.write_text(json.dumps(table, indent=1), encoding="utf-8")


if __name__ == "__main__":
    with user_errors():
        main()
