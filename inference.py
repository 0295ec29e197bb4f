"""Turn photographs into masks, overlays and cutouts, at the photographs' own size.

python inference.py --img car.jpg                                   its mask and overlay
python inference.py --img photos --cutout --no-overlay              cars on transparency
python inference.py --img 'photos/*.jpg' --background white --shadow --fit 1200x800
python inference.py --img test_hq --no-save --rle submission.csv    the challenge's submission

Files go to outputs/. After an interruption, the last of these continues where it stopped.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import config
from carvana import options
from carvana.errors import UserError, bullet_list, user_errors, warn
from carvana.files import check_not_inputs
from carvana.framing import LARGEST_MARGIN, MARGIN, Framing, check_framing, parse_size
from carvana.matting import parse_background
from carvana.model_config import check_image_levels, check_windows
from carvana.opening import IMAGE_TYPES, set_max_megapixels
from carvana.photographs import ENDINGS, FORMATS, Photograph, find_photographs, in_format
from carvana.submission_settings import run_settings, settings_of
from carvana.threads import keep_freed_memory

MAX_BATCH_SIZE = 65536


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all options."""
    parser = options.make_parser(__doc__, usage="%(prog)s --img PATH [PATH ...] [option ...]")
    add_photograph_options(parser.add_argument_group("which photographs"))
    add_output_options(parser.add_argument_group("what is written"))
    add_cutout_options(parser.add_argument_group("what cutouts and backgrounds look like"))
    add_prediction_options(parser.add_argument_group("how masks are predicted"))
    add_machine_options(parser.add_argument_group("where it runs"))
    return parser


def add_photograph_options(group: argparse._ArgumentGroup) -> None:
    """Add the options that say which photographs are masked."""
    group.add_argument(
        "--img",
        nargs="+",
        required=True,
        metavar="PATH",
        help=f"photographs ({' '.join(IMAGE_TYPES)}), folders of them, or patterns such as "
        "'photos/*.jpg'",
    )
    group.add_argument(
        "--recursive", action="store_true", help="look into the folders' subfolders too"
    )


def add_output_options(group: argparse._ArgumentGroup) -> None:
    """Add the options that say what is written."""
    group.add_argument(
        "--out", metavar="DIR", default="outputs", help="where the files go; default %(default)s"
    )
    group.add_argument(
        "--save",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="write pictures; --no-save writes none",
    )
    group.add_argument(
        "--overlay",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="NAME_overlay.jpg: the photograph with the car tinted and outlined",
    )
    group.add_argument(
        "--cutout",
        action="store_true",
        help="NAME_cutout.png: the car alone, transparent around it",
    )
    group.add_argument(
        "--background",
        metavar="white|#rrggbb|PHOTO",
        help="NAME_background.jpg: the car on a color, or on another photograph",
    )
    group.add_argument(
        "--format",
        choices=FORMATS,
        help="of all pictures but masks, which are PNG; default: png for cutouts, else jpg",
    )
    group.add_argument(
        "--rle",
        metavar="FILE.csv",
        help="write the masks as the challenge's run lengths; an interrupted run continues",
    )
    group.add_argument(
        "--gallery",
        action="store_true",
        help=f"index.html in --out, with the {config.GALLERY_MAX} photographs that the model is "
        "least sure of beside their masks",
    )


def add_cutout_options(group: argparse._ArgumentGroup) -> None:
    """Add the options that say what --cutout and --background show."""
    group.add_argument(
        "--shadow",
        action="store_true",
        help="keep the car's shadow where the ground is plain, or draw one",
    )
    group.add_argument(
        "--fit",
        metavar="WxH",
        help="put the car on a canvas of W times H pixels, such as 1200x800: centered, on "
        "the same ground line and equally large in all photographs of it",
    )
    group.add_argument(
        "--trim", action="store_true", help="crop to the car, and its shadow if there is one"
    )
    group.add_argument(
        "--margin",
        type=float,
        metavar="SHARE",
        help=f"share of width and height, 0..{LARGEST_MARGIN}, left free on each side; default: "
        f"{MARGIN} with --fit, 0 with --trim",
    )


def add_prediction_options(group: argparse._ArgumentGroup) -> None:
    """Add the options that say how masks are predicted."""
    options.add_model_option(
        group, f"checkpoint, such as {config.BEST_CHECKPOINT_FILE}, or exported model"
    )
    group.add_argument(
        "--threshold",
        type=float,
        metavar="T",
        help="probability above which a pixel is car; default: the model's own",
    )
    group.add_argument(
        "--tta",
        action="store_true",
        help="average with the mirror image: 1.7 times the time, a little better",
    )
    options.add_window_options(group)
    options.add_levels_option(group)


def add_machine_options(group: argparse._ArgumentGroup) -> None:
    """Add the options that say where masks are predicted, and in what memory."""
    options.add_device_option(group)
    group.add_argument(
        "--batch-size",
        type=int,
        metavar="N",
        help="photographs that the network sees at once; default 1 on a CPU, 4 on a GPU",
    )
    options.add_constants(group, options.read_constants(config), ["MAX_MEGAPIXELS"])


def parse_args() -> argparse.Namespace:
    """Return the options, checked, with the background's color or photograph."""
    args = make_parser().parse_args()
    set_max_megapixels(options.resolve(config, args).MAX_MEGAPIXELS)
    if args.threshold is not None and not 0 < args.threshold < 1:
        raise UserError(
            f"--threshold: expected a probability between 0 and 1, found {args.threshold}"
        )
    if args.batch_size is not None and not 1 <= args.batch_size <= MAX_BATCH_SIZE:
        raise UserError(
            f"--batch-size: expected 1..{MAX_BATCH_SIZE} photographs, found {args.batch_size}"
        )
    check_image_levels(args.image_levels)
    args.windows = check_windows(args.tile, args.tile_overlap)
    check_cutout_options(args)
    args.framing = parse_framing(args)
    if args.gallery and not config.GALLERY_MAX:
        raise UserError(
            "--gallery: GALLERY_MAX is 0 in config.py, no picture at all; set it to 1..1000"
        )
    if args.rle and Path(args.rle).suffix.lower().removeprefix(".") in FORMATS:
        raise UserError(f"--rle: expected a name such as submission.csv, found {args.rle!r}")
    args.background_file = args.background or ""
    args.background = parse_background(args.background)
    options.check_model_file(args.model)
    return args


def check_cutout_options(args: argparse.Namespace) -> None:
    """Raise UserError for options of cutouts that do not go together."""
    makes_cutouts = args.cutout or args.background
    if not args.save and makes_cutouts:
        raise UserError(
            "--no-save leaves nothing for --cutout or --background to write; omit one of them"
        )
    if args.cutout and args.format == "jpg":
        raise UserError(
            "--format jpg: a JPEG cannot be transparent, as --cutout is; take png or webp, or "
            "--background white in place of --cutout"
        )
    given = {
        "--shadow": args.shadow,
        "--fit": args.fit is not None,
        "--trim": args.trim,
        "--margin": args.margin is not None,
    }
    for option, is_given in given.items():
        if is_given and not makes_cutouts:
            raise UserError(
                f"{option} changes cutouts and backgrounds only; add --cutout or --background white"
            )


def parse_framing(args: argparse.Namespace) -> Framing:
    """Return how cutouts are framed. Raises UserError for options that do not go together."""
    fit = None if args.fit is None else parse_size(args.fit)
    framing = Framing(fit, args.trim, args.margin)
    check_framing(framing)
    return framing


def check_outputs(args: argparse.Namespace, photographs: Sequence[Photograph]) -> None:
    """Raise UserError if an input would be overwritten, or a csv cannot be continued."""
    inputs = {
        "one of the photographs": [photograph.path for photograph in photographs],
        "the model": [args.model],
        "the photograph of --background": [args.background_file],
    }
    if args.save and Path(args.out).is_dir():
        check_not_inputs(
            output_paths(args, photographs), inputs, "choose another folder with --out"
        )
    if args.rle and Path(args.rle).exists():
        check_not_inputs([args.rle], inputs, "name another file with --rle")
        settings = settings_of(args.rle)
        if settings is None:
            raise UserError(
                f"{args.rle} already exists, and what it was written with is not known; remove it, "
                "or name another file"
            )
        expected = run_settings(
            args.model, args.threshold, args.tta, args.image_levels, args.windows
        )
        changed = {name for name in settings | expected if settings.get(name) != expected.get(name)}
        if changed:
            others = "another model, --threshold, --tta or --image-levels"
            if changed <= {"TILE", "TILE_OVERLAP"}:
                others = "another --tile or --tile-overlap"
            if "reader" in changed:
                others = "another version of this program, which reads photographs differently"
            raise UserError(
                f"{args.rle} already exists and was written with {others}; remove it, or name "
                "another file"
            )


def output_paths(args: argparse.Namespace, photographs: Sequence[Photograph]) -> Iterator[Path]:
    """Yield every file that may be written into --out."""
    for photograph in photographs:
        for ending in ENDINGS:
            yield photograph.output_path(args.out, in_format(ending, args.format))


def main() -> None:
    """Mask photographs as the options say."""
    args = parse_args()
    photographs, failures, remarks = find_photographs(
        args.img, args.out, args.recursive, for_csv=bool(args.rle)
    )
    if not photographs:
        raise UserError("; ".join(failures))
    check_outputs(args, photographs)
    for remark in remarks:
        warn(f"warning: {remark}")
    if failures:  # said now, and again at the end
        warn(bullet_list(f"{len(photographs)} photographs, but not:", failures))
    if args.save:
        Path(args.out).mkdir(parents=True, exist_ok=True)
    # torch takes seconds to import; what is wrong with the options has been reported by now.
    import utils
    from carvana.cutouts import CutoutStyle
    from carvana.masking import MaskingOptions, mask_photographs

    masking = MaskingOptions(
        model=args.model,
        out=args.out,
        save=args.save,
        overlay=args.overlay,
        cutout=args.cutout,
        background=args.background,
        style=CutoutStyle(args.shadow, args.framing),
        format=args.format,
        rle=args.rle,
        gallery=config.GALLERY_MAX if args.gallery else 0,
        threshold=args.threshold,
        levels=args.image_levels or 0,
        tta=args.tta,
        windows=args.windows,
        batch_size=args.batch_size,
    )
    mask_photographs(photographs, failures, masking, utils.load_model, args.device)


if __name__ == "__main__":
    keep_freed_memory()
    with user_errors():
        main()
