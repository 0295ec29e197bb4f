"""Make data/ ready for training: check every pair, split the cars, put the files in place.

python prepare_data.py train.zip train_masks.zip              Kaggle's two files
python prepare_data.py carvana-image-masking-challenge.zip    its outer zip, or its unpacked folder
python prepare_data.py --images DIR --masks DIR               any two folders
python prepare_data.py --demo                                 no photographs yet: render cars
python prepare_data.py --demo --scenes 300                    render street scenes of 8 classes
python prepare_data.py --check                                only check what is in place

The cars are split into training, validation and, with --test-fraction, test.
"""

import argparse
import signal
import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import NoReturn

import config
from carvana.classes import Classes
from carvana.errors import UserError, one_line, user_errors
from carvana.files import is_inside
from carvana.images import Pixels
from carvana.naming import Naming
from carvana.opening import set_max_megapixels
from carvana.options import (
    Constant,
    add_data_options,
    make_parser,
    read_constants,
    resolve,
)
from carvana.preparing import FOLDERS, DataOptions, check, prepare, prepare_demo
from carvana.rendering import ANGLES, PARTS, SCENE_CLASSES, SCENE_SIZE, Kind, SetOptions
from carvana.sources import open_sources
from carvana.threads import keep_freed_memory

MAX_DEMO_PIXELS = 1280 * 1918  # Carvana's own size


def parse_args(constants: dict[str, Constant]) -> argparse.Namespace:
    """Return the command line's options.

    Args:
        constants: those of config.py, some of which are options too.

    Raises:
        UserError: options are wrong or do not go together.
    """
    parser = make_parser(
        __doc__,
        usage="%(prog)s SOURCE [SOURCE] | --images PATH --masks PATH | --demo | --check "
        "[option ...]",
    )
    _add_source_options(parser.add_argument_group("which photographs and masks"))
    _add_split_options(parser.add_argument_group("how they are split"))
    _add_output_options(parser.add_argument_group("what is written"))
    _add_demo_options(parser.add_argument_group("rendered cars and street scenes"))
    add_data_options(parser, constants)
    args = parser.parse_args()
    _check_source(parser, args)
    _check_fractions(parser, args)
    _check_demo(parser, args)
    return args


def _add_source_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "source",
        nargs="*",
        help="photographs and masks, or one archive or folder that holds both, in any of the usual "
        "layouts; archives are .zip, .tar.gz and the like",
    )
    group.add_argument("--images", metavar="PATH", help="folder or archive of photographs")
    group.add_argument(
        "--masks",
        metavar="PATH",
        help="folder or archive of masks, NAME_mask.png or NAME.png (gif, bmp and tif as well); or "
        "annotations: COCO's .json, LabelMe's, CVAT's or Pascal VOC's",
    )
    group.add_argument(
        "--recursive",
        action="store_true",
        help="look into the folders' subfolders too, which must be the same ones for photographs "
        "and masks; a file is then named after its folders",
    )
    group.add_argument(
        "--missing-mask",
        choices=("error", "empty"),
        default="error",
        help="empty: a photograph without a mask shows nothing but background (default error)",
    )
    group.add_argument(
        "--skip-bad", action="store_true", help="leave bad files out instead of stopping"
    )


def _add_output_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--out",
        metavar="DIR",
        help="where the folders go (default data; data/demo with --demo; data/parts with --parts; "
        "data/scenes with --scenes)",
    )
    group.add_argument("--force", action="store_true", help="replace what is in place")
    group.add_argument("--check", action="store_true", help="only check what is in place")


def _add_split_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--val-fraction",
        type=_parse_fraction,
        default=0.1,
        metavar="F",
        help="share of the cars to validate on (default %(default)s)",
    )
    group.add_argument(
        "--test-fraction",
        type=_parse_fraction,
        default=0.0,
        metavar="F",
        help="share of the cars to set aside for a final test (default %(default)s)",
    )
    group.add_argument(
        "--seed",
        type=int,
        default=0,
        help="another seed splits the cars differently (default %(default)s)",
    )


def _add_demo_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--demo", action="store_true", help="render cars instead of reading photographs"
    )
    group.add_argument(
        "--parts",
        action="store_true",
        help=f"with --demo: masks of {len(PARTS)} classes, {' '.join(PARTS)}",
    )
    group.add_argument(
        "--scenes",
        type=int,
        metavar="N",
        help="with --demo: this many street scenes instead of cars, one photograph of each, masks "
        f"of {len(SCENE_CLASSES)} classes, {' '.join(SCENE_CLASSES)}",
    )
    group.add_argument(
        "--cars",
        type=int,
        default=SetOptions.cars,
        metavar="N",
        help="with --demo: number of cars (default %(default)s)",
    )
    group.add_argument(
        "--angles",
        type=int,
        default=SetOptions.angles,
        metavar="N",
        choices=range(1, ANGLES + 1),
        help=f"with --demo: photographs of each car, 1 to {ANGLES} (default %(default)s)",
    )
    height, width = SetOptions.size
    scene_height, scene_width = SCENE_SIZE
    group.add_argument(
        "--size",
        type=int,
        nargs=2,
        metavar=("H", "W"),
        help=f"with --demo: height and width in pixels (default {height} {width}; of scenes "
        f"{scene_height} {scene_width})",
    )


def _parse_fraction(text: str) -> float:
    """Return a number of the command line from 0 to under 1."""
    expectation = f"expected a share from 0 to under 1, found {text}"
    try:
        fraction = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(expectation) from None
    if not 0 <= fraction < 1:
        raise argparse.ArgumentTypeError(expectation)
    return fraction


def _check_source(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Raise a UserError unless the options name one source of data, completely."""
    sources = [args.source, args.images or args.masks, args.demo, args.check]
    is_one_source = sum(map(bool, sources)) == 1
    is_half_pair = bool(args.images) != bool(args.masks)
    if not is_one_source or len(args.source) > 2 or is_half_pair:
        parser.error(
            "give one or two zips (or one folder), or both --images DIR and --masks DIR, "
            "or --demo, or --check"
        )


def _check_fractions(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Raise a UserError unless the split leaves something to train on."""
    if args.val_fraction + args.test_fraction >= 1:
        parser.error(
            "--val-fraction and --test-fraction leave nothing to train on; "
            "together they must stay under 1"
        )


def _check_demo(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Raise a UserError for options of --demo that are given without it or out of range."""
    if not args.demo:
        if args.parts:
            parser.error("--parts goes with --demo; for masks of your own name their --classes")
        options = vars(args)
        names = ("scenes", "cars", "angles", "size")
        if any(options[name] != parser.get_default(name) for name in names):
            parser.error(
                "--scenes, --cars, --angles and --size go with --demo, which renders cars; "
                "photographs are taken as they are"
            )
        return
    if args.scenes is not None:
        _check_scenes(parser, args)
    height, width = _choose_size(args)
    is_size_allowed = min(height, width) >= 16 and height * width <= MAX_DEMO_PIXELS
    if args.cars < 2 or not is_size_allowed or args.seed < 0 or args.test_fraction:
        parser.error(
            "--demo takes --cars of at least 2, a --size from 16 16 to the area of 1280 1918, "
            "a --seed of at least 0, and no --test-fraction"
        )


def _check_scenes(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Raise a UserError for too few --scenes, or options that are about cars in a studio."""
    if args.scenes < 2:
        parser.error("--scenes takes at least 2: one to train on and one to validate on")
    options = vars(args)
    if any(options[name] != parser.get_default(name) for name in ("parts", "cars", "angles")):
        parser.error(
            "--scenes goes without --parts, --cars and --angles: each scene has its own cars, and "
            "one photograph; omit these, or --scenes"
        )


def main() -> None:
    """Do what the command line says."""
    args = parse_args(read_constants(config))
    constants = resolve(config, args)
    set_max_megapixels(constants.MAX_MEGAPIXELS)
    out = Path(args.out or _choose_folder(args))
    if args.demo:
        prepare_demo(out, _read_demo_options(args), args.force)
        return
    options = DataOptions(
        naming=Naming.from_constants(vars(constants)),
        group_regex=constants.GROUP_REGEX,
        classes=Classes.from_constants(vars(constants)),
        pixels=Pixels.from_constants(vars(constants)),
        val_fraction=args.val_fraction,
        test_fraction=args.test_fraction,
        seed=args.seed,
        skip_bad=args.skip_bad,
        force=args.force,
        empty_masks=args.missing_mask == "empty",
    )
    check_sources_stay([*args.source, args.images, args.masks], out)
    if args.check:
        check(out, options)
    else:
        paths = args.source or [args.images, args.masks]
        sources = partial(open_sources, paths, naming=options.naming, recursive=args.recursive)
        prepare(out, sources, options)


def check_sources_stay(sources: Iterable[str | None], out: Path) -> None:
    """Raise UserError if a source is in a folder that --force would replace."""
    for source in filter(None, sources):
        for name in FOLDERS:
            if is_inside(source, out / name):
                raise UserError(
                    f"{one_line(source)} is in {one_line(out / name)}, which would be replaced; "
                    "move it elsewhere first, or choose another folder with --out"
                )


def _choose_folder(args: argparse.Namespace) -> str:
    if args.scenes:
        return "data/scenes"
    if args.parts:
        return "data/parts"
    if args.demo:
        return "data/demo"
    return "data"


def _choose_size(args: argparse.Namespace) -> tuple[int, int]:
    """Return (H, W) of the pictures to render."""
    if args.size:
        height, width = args.size
        return height, width
    return SCENE_SIZE if args.scenes else SetOptions.size


def _read_demo_options(args: argparse.Namespace) -> SetOptions:
    """Return what to render; at least one car or scene is for training and one for validation."""
    count = args.scenes or args.cars
    val_count = max(1, round(count * args.val_fraction))
    return SetOptions(
        cars=count,
        val_cars=min(val_count, count - 1),
        angles=1 if args.scenes else args.angles,
        size=_choose_size(args),
        seed=args.seed,
        kind=_choose_kind(args),
    )


def _choose_kind(args: argparse.Namespace) -> Kind:
    if args.scenes:
        return "scenes"
    return "parts" if args.parts else "cars"


def _exit_on_sigterm(signal_number: int, frame: FrameType | None) -> NoReturn:
    """End as sys.exit does, so that what was begun is cleared away."""
    sys.exit(143)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _exit_on_sigterm)
    with user_errors():
        keep_freed_memory()
        main()
