"""Export a checkpoint to other formats, each checked against it.

python export.py                                    the weights that come with the project
python export.py --model best_checkpoint.pth.tar    your own
python export.py --formats onnx int8                some formats
python export.py --formats onnx --opset 20          for a program that asks for this version of ONNX

The formats, their files in exports/, and what each is for:

weights      unet_weights.pth.tar     weights and constants without the optimizer, for this project
pth          unet_model.pth           the whole model; torch.load runs code in such a file: use it
                                      for your own files only
torchscript  unet_model_torchjit.pth  needs torch, but not this project; torch deprecates it
onnx         unet_model_onnx.onnx     needs ONNX Runtime, no torch
fp16         unet_model_fp16.onnx     weights in 16 bits: half the size; float32 in and out
int8         unet_model_int8.onnx     the same in 8 bits: a quarter of the size, and faster
pt2          unet_model.pt2           torch.export, which replaces TorchScript
"""

import argparse
from pathlib import Path

import config
from carvana import options
from carvana.errors import UserError, one_line, user_errors
from carvana.export_formats import (
    FORMATS,
    OPSET,
    OPSETS,
    beyond_torch,
    installed_torch,
    missing_modules,
)
from carvana.files import check_not_inputs
from carvana.naming import AFFIX_CONSTANTS, Naming
from carvana.opening import set_max_megapixels
from carvana.pairs import check_folders
from carvana.threads import keep_freed_memory


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all options."""
    parser = options.make_parser(
        __doc__, usage="%(prog)s [--model FILE] [--formats FORMAT ...] [option ...]"
    )
    group = parser.add_argument_group("what is exported")
    options.add_model_option(group, "checkpoint")
    _add_format_options(group)
    _add_photograph_options(parser.add_argument_group("which photographs and masks"))
    group = parser.add_argument_group("names and sizes of their files")
    constants = options.read_constants(config)
    options.add_constants(group, constants, [*AFFIX_CONSTANTS, "MAX_MEGAPIXELS"])
    return parser


def parse_args() -> argparse.Namespace:
    """Return the options, checked, with `naming` among them."""
    args = make_parser().parse_args()
    constants = options.resolve(config, args)
    set_max_megapixels(constants.MAX_MEGAPIXELS)
    args.naming = Naming.from_constants(vars(constants))
    if bool(args.images) != bool(args.masks):
        raise UserError("--images and --masks go together; give both, or neither")
    check_opset(args)
    args.formats = choose_formats(args.formats)
    check_files(args)
    return args


def _add_format_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--formats",
        nargs="+",
        choices=FORMATS,
        metavar="FORMAT",
        help=f"some of {' '.join(FORMATS)}; default: all",
    )
    group.add_argument(
        "--out", metavar="DIR", default="exports", help="where the files go; default %(default)s"
    )
    group.add_argument(
        "--opset",
        type=int,
        metavar="N",
        default=OPSET,
        help=f"version of ONNX's operators, {min(OPSETS)} to {max(OPSETS)}; default %(default)s, "
        f"which ONNX Runtime {OPSETS[OPSET]} and later load",
    )


def _add_photograph_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--images",
        metavar="DIR",
        help=f"photographs to score on; default {config.VAL_IMG_DIR}, or rendered ones if there "
        "are none",
    )
    group.add_argument("--masks", metavar="DIR", help="their masks")
    group.add_argument(
        "--calibration",
        metavar="DIR",
        default=config.TRAIN_IMG_DIR,
        help="photographs from which int8's ranges come; default %(default)s, or rendered ones",
    )
    group.add_argument(
        "--calibration-masks",
        metavar="DIR",
        default=config.TRAIN_MASK_DIR,
        help="their masks; default %(default)s",
    )


def choose_formats(chosen: list[str] | None) -> list[str]:
    """Return the formats to write; by default all that the installed torch can.

    Raises:
        UserError: a chosen one needs a newer torch.
    """
    formats = chosen or list(FORMATS)
    beyond = beyond_torch(formats)
    if not beyond:
        return formats
    rest = [name for name in FORMATS if name not in beyond_torch(FORMATS)]
    installed = installed_torch()
    needs = {name: "{}.{}".format(*FORMATS[name].torch) for name in beyond}
    if chosen:
        described = ", ".join(f"format {name} needs torch {needs[name]}" for name in beyond)
        raise UserError(
            f"{described} or later; this is {installed}: pip install -U torch, or "
            f"--formats {' '.join(rest)}"
        )
    described = ", ".join(f"{name} needs torch {needs[name]}" for name in beyond)
    print(f"left out: {described} or later; this is {installed}")
    return rest


def check_opset(args: argparse.Namespace) -> None:
    """Raise UserError if there is no such opset, or nothing to use it for."""
    if args.opset not in OPSETS:
        raise UserError(
            f"--opset is {args.opset}, expected {min(OPSETS)} to {max(OPSETS)}; leave it out for "
            f"{OPSET}, which ONNX Runtime {OPSETS[OPSET]} and later load"
        )
    formats = args.formats or FORMATS
    if args.opset != OPSET and not any(FORMATS[name].is_onnx for name in formats):
        raise UserError("--opset is for onnx, fp16 and int8; add one to --formats, or leave it out")


def check_files(args: argparse.Namespace) -> None:
    """Raise UserError if a file or module is missing, or the model would be overwritten."""
    options.check_model_file(args.model)
    outputs = [Path(args.out, FORMATS[name].file) for name in args.formats]
    inputs = {"the model": [args.model]}
    check_not_inputs(outputs, inputs, "choose another folder with --out")
    missing = missing_modules(args.formats)
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        names = [name for name in args.formats if FORMATS[name].modules]
        raise UserError(
            f"{' and '.join(missing)} {verb} not installed, for {' '.join(names)}; "
            f"pip install {' '.join(missing)}, or leave them out of --formats"
        )
    check_folders(*named_folders(args), naming=args.naming)


def named_folders(args: argparse.Namespace) -> list[tuple[str, str]]:
    """Return the (images, masks) that the user has named."""
    folders = []
    if args.images:
        folders.append((args.images, args.masks))
    calibration = (args.calibration, args.calibration_masks)
    if calibration != (config.TRAIN_IMG_DIR, config.TRAIN_MASK_DIR):
        folders.append(calibration)
    return folders


def main() -> None:
    """Export a checkpoint as the options say."""
    args = parse_args()
    scored = None
    if args.images:
        scored = (args.images, args.masks)
    elif Path(config.VAL_IMG_DIR).is_dir():
        scored = (config.VAL_IMG_DIR, config.VAL_MASK_DIR)
    calibration = (args.calibration, args.calibration_masks)
    if not all(Path(folder).is_dir() for folder in calibration):
        calibration = None
    # torch takes seconds to import; what is wrong with the options has been reported by now.
    import utils
    from carvana import exporting
    from carvana.exported import is_exported

    export_options = exporting.ExportOptions(
        args.model, args.out, args.formats, scored, calibration, args.naming, args.opset
    )
    if is_exported(args.model):
        raise UserError(
            f"{one_line(args.model)} is an exported model; name the checkpoint that it was made of"
        )
    model = utils.load_model(args.model, "cpu")
    exporting.export(model, export_options)


if __name__ == "__main__":
    keep_freed_memory()
    with user_errors():
        main()
