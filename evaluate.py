"""Score a trained model on pairs of photographs and masks.

python evaluate.py --model best_checkpoint.pth.tar                       on data/val_images
python evaluate.py --model studio --images photos --masks labels         on any two folders
python evaluate.py --model best_checkpoint.pth.tar --json scores.json    all scores, image by image
"""

import argparse
import itertools
import json
from typing import Any

import config
from carvana import options
from carvana.errors import one_line, user_errors
from carvana.files import PAIR_FILE, check_not_inputs, replacing
from carvana.model_config import check_image_levels, check_windows
from carvana.naming import AFFIX_CONSTANTS, Naming
from carvana.opening import set_max_megapixels
from carvana.pairs import find_pairs, warn_of_left_out
from carvana.shipped import describe_model
from carvana.threads import keep_freed_memory

WORST = 5  # files that are listed


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all options."""
    parser = options.make_parser(
        __doc__, usage="%(prog)s [--model FILE] [--images DIR --masks DIR] [option ...]"
    )
    constants = options.read_constants(config)
    group = parser.add_argument_group("what is scored")
    options.add_model_option(
        group, "checkpoint or exported model; sizes, channels and threshold come from it"
    )
    options.add_pair_folders(group, config.VAL_IMG_DIR, config.VAL_MASK_DIR)
    group.add_argument("--json", metavar="FILE", help="write all scores there, image by image")
    group = parser.add_argument_group("names of files, and values of masks")
    options.add_constants(group, constants, AFFIX_CONSTANTS)
    _add_mask_options(group)
    group = parser.add_argument_group("how masks are predicted")
    options.add_window_options(group)
    options.add_levels_option(group)
    group = parser.add_argument_group("where it runs")
    options.add_device_option(group)
    options.add_constants(group, constants, ["BATCH_SIZE", "NUM_WORKERS", "MAX_MEGAPIXELS"])
    return parser


def parse_args() -> argparse.Namespace:
    """Return the options, checked, with all constants as `cfg`."""
    args = make_parser().parse_args()
    args.cfg = options.resolve(config, args)
    set_max_megapixels(args.cfg.MAX_MEGAPIXELS)
    check_image_levels(args.image_levels)
    args.windows = check_windows(args.tile, args.tile_overlap)
    options.check_model_file(args.model)
    options.check_json_folder(args.json)
    pairs = find_pairs(args.images, args.masks, Naming.from_constants(vars(args.cfg)))
    warn_of_left_out(args.images, args.masks)
    if args.json:
        inputs = {"the model": [args.model], PAIR_FILE: itertools.chain(*pairs)}
        check_not_inputs([args.json], inputs, "name another file with --json")
    return args


def _add_mask_options(group: argparse._ArgumentGroup) -> None:
    """Add what masks can hold; a model is not bound to those it was trained on."""
    group.add_argument(
        "--mask-values",
        type=int,
        nargs="+",
        metavar="INT",
        help="values in the mask files, one for each class; with one class two: background and "
        "foreground (default: those that the model was trained with)",
    )
    group.add_argument(
        "--mask-threshold",
        type=int,
        metavar="INT",
        help="for soft masks of one class: levels above this, of 255, are foreground, such as 127",
    )


def main() -> None:
    """Score a model as the options say."""
    args = parse_args()
    # torch takes seconds to import; what is wrong with the options has been reported by now.
    import utils

    cfg = args.cfg
    mask_constants = {"MASK_VALUES": args.mask_values, "MASK_THRESHOLD": args.mask_threshold}
    given = {name: value for name, value in mask_constants.items() if value is not None}
    loading = utils.Loading(
        Naming.from_constants(vars(cfg)),
        cfg.BATCH_SIZE,
        cfg.NUM_WORKERS,
        given,
        args.image_levels,
        args.windows,
    )
    scores = utils.evaluate(args.model, args.images, args.masks, loading, args.device)
    if scores is None:  # of several processes the first one reports
        return
    print(f"\nmodel: {describe_model(args.model)}")
    print_scores(scores)
    if args.json:
        content = {"model": str(args.model), "images_dir": args.images} | scores
        del content["masks"], content["size"]
        with replacing(args.json) as temporary:
            temporary.write_text(json.dumps(content, indent=1))


def print_scores(scores: dict[str, Any]) -> None:
    """Print the scores at both resolutions, those of each class, and the worst images."""
    count = len(scores["images"])
    print(f"{count} images       network's {scores['size']}   photographs' own size")
    print("means over images")
    first_image = scores["images"][0]
    for name in (name for name in first_image if f"full_{name}" in first_image):
        print(f"{name:10} {scores[name]:22.6f} {scores['full_' + name]:23.6f}")
    print(f"{'1 - dice':10} {1 - scores['dice']:22.6f} {1 - scores['full_dice']:23.6f}")
    over_classes = ", means over the classes" if "classes" in scores else ""
    print(f"of all pixels together{over_classes}")
    for label, name in (("set dice", "set_dice"), ("set iou", "set_iou")):
        print(f"{label:10} {scores[name]:22.6f} {scores['full_' + name]:23.6f}")
    print(
        f"mean distance of the outlines {scores['full_boundary']:27.2f} pixels "
        "(average symmetric surface distance)"
    )
    print(
        f"1 - dice, ignoring errors within 2 pixels of the true outline {scores['full_beyond']:.6f}"
    )
    if "full_classes" in scores:
        _print_classes(scores["full_classes"])
    print("\nworst by full-size Dice")
    for row in sorted(scores["images"], key=lambda row: row["full_dice"])[:WORST]:
        print(f"  {row['full_dice']:.4f}  {one_line(row['name'])}")


def _print_classes(classes: dict[str, dict[str, float | None]]) -> None:
    """Print the scores of each class at the photographs' own size."""
    print("each class at the photographs' own size, as a mean over its images and of all pixels")
    for name, values in classes.items():
        text = "in no image, left out of the means"
        if values["dice"] is not None:
            text = (
                f"Dice {values['dice']:.4f}  IoU {values['iou']:.4f}  "
                f"set Dice {values['set_dice']:.4f}  set IoU {values['set_iou']:.4f}"
            )
        print(f"  {one_line(name):20} {text}")


if __name__ == "__main__":
    keep_freed_memory()
    with user_errors():
        main()
