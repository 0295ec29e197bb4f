"""Look at a data set before training on it.

python explore.py                                          data/train_images, data/train_masks
python explore.py --images photos --masks labels           any two folders
python explore.py --images photos --masks labels --classes background road sky
python explore.py --noise                                  how exact the masks' outlines are

Prints counts, sizes, formats, brightness, the share of the foreground, duplicates and oddities,
and writes them with pictures to one HTML page.
"""

import argparse
import functools
import itertools
import os
from pathlib import Path

import config
from carvana.classes import Classes
from carvana.errors import UserError, user_errors
from carvana.files import PAIR_FILE, check_not_inputs
from carvana.images import Pixels
from carvana.naming import Naming
from carvana.opening import set_max_megapixels
from carvana.options import (
    add_data_options,
    add_pair_folders,
    make_parser,
    read_constants,
    resolve,
)
from carvana.outlines import describe_noise, outline_noise
from carvana.pairs import find_pairs, warn_of_left_out
from carvana.reports import explore_page
from carvana.survey import survey_pairs
from carvana.threads import keep_freed_memory, map_in_threads
from carvana.two_values import settle_values

MAX_CARDS = 1000


def parse_args() -> argparse.Namespace:
    """Return the command line's options. Raises UserError for wrong ones."""
    parser = make_parser(__doc__, usage="%(prog)s [--images DIR --masks DIR] [option ...]")
    group = parser.add_argument_group("which photographs and masks")
    add_pair_folders(group, config.TRAIN_IMG_DIR, config.TRAIN_MASK_DIR)
    _add_page_options(parser.add_argument_group("what is shown"))
    add_data_options(parser, read_constants(config))
    args = parser.parse_args()
    if not 1 <= args.most <= MAX_CARDS:
        raise UserError(f"--most: expected 1..{MAX_CARDS} pairs, found {args.most}")
    if Path(args.out).suffix != ".html":
        raise UserError(f"--out: expected a name that ends in .html, found {args.out!r}")
    return args


def _add_page_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--out",
        metavar="FILE.html",
        default=os.path.join(config.SAVED_IMAGES_DIR, "explore.html"),
        help="the page (default %(default)s)",
    )
    group.add_argument(
        "--most",
        type=int,
        default=200,
        metavar="N",
        help="pairs shown on the page, those whose outline agrees least with the photograph "
        "first (default %(default)s)",
    )
    group.add_argument(
        "--noise",
        action="store_true",
        help="measure at full size how far the masks' outlines lie from the photographs' edges "
        "where these are clear, and what Dice that allows",
    )


def main() -> None:
    """Look at the data set that the command line names, and report."""
    args = parse_args()
    constants = resolve(config, args)
    set_max_megapixels(constants.MAX_MEGAPIXELS)
    classes = Classes.from_constants(vars(constants))
    pairs = find_pairs(args.images, args.masks, Naming.from_constants(vars(constants)))
    warn_of_left_out(args.images, args.masks)
    inputs = {PAIR_FILE: itertools.chain(*pairs)}
    check_not_inputs([args.out], inputs, "name another file with --out")
    pixels = Pixels.from_constants(vars(constants))
    classes = settle_values([mask for _, mask in pairs], classes)
    survey = survey_pairs(pairs, classes, constants.GROUP_REGEX, pixels)
    if args.noise:
        measure = functools.partial(outline_noise, classes=classes, pixels=pixels)
        noises = list(map_in_threads(measure, pairs, "measuring"))
        survey.lines.append(("outlines", describe_noise(noises)))
    for subject, text in survey.lines:
        print(f"{subject}: {text}")
    explore_page(args.out, survey, args.images, args.masks, args.most)
    print(f"now look at {args.out}")


if __name__ == "__main__":
    keep_freed_memory()
    with user_errors():
        main()
