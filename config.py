"""Every knob of the project. Edit a value here, or override it for one run:

    python train.py --preset small --num-epochs 10 --load-model true

The command line goes over the preset, the preset over this file. The comment behind a constant says
why it is there; brackets give its unit and the values it can take, and both are enforced.
"""

# data: made by prepare_data.py
TRAIN_IMG_DIR = "data/train_images/"  # photographs to learn from
TRAIN_MASK_DIR = "data/train_masks/"  # their masks: NAME_mask.gif, NAME_mask.png, NAME.gif or NAME.png
VAL_IMG_DIR = "data/val_images/"  # photographs to be judged by, of other cars
VAL_MASK_DIR = "data/val_masks/"  # their masks
NUM_WORKERS = 2  # processes that read and augment; 0 does it in the training process [0..256]
PIN_MEMORY = True  # faster copies to a GPU; of no effect without one

# what the network sees
IMAGE_HEIGHT = 160  # finer outlines with more, at a cost that grows with the area [1..16384 pixels]
IMAGE_WIDTH = 240  # Carvana's photographs are 1918x1280, 3 : 2 [1..16384 pixels]
IN_CHANNELS = 3  # colour or grey [1 | 3]
MEAN = [0.0]  # subtracted from levels in 0 to 1; one value, or one a channel [-10..10]
STD = [1.0]  # divided by after that; one value, or one a channel [1e-6..1000]
MASK_RESIZE = "area"  # area keeps the outline where it is; nearest is what older scores were measured with [area | nearest]

# augmentation, drawn anew for each epoch and image
ROTATE = 35  # turn by up to so much either way [0..180 degrees]
ROTATE_FILL = "reflect"  # what comes into view then; black corners, the older way, occur in no photograph and unsettle BatchNorm [reflect | black]
HORIZONTAL_FLIP = 0.5  # a car seen from its other side [0..1 probability]
VERTICAL_FLIP = 0.1  # rarely useful for cars, kept from the recipe this one descends from [0..1 probability]

# network and training
FEATURES = [64, 128, 256, 512]  # channels a level, the bottleneck has twice the last; [16, 32, 64, 128] is 16 times smaller [1..8192]
LEARNING_RATE = 1e-4  # of Adam; smaller networks bear more [1e-9..10]
BATCH_SIZE = 16  # halve it where the GPU's memory is too small [1..65536 images]
NUM_EPOCHS = 3  # passes over the training set; the scores still rise after these [0..100000]
BATCHNORM_IMAGES = 128  # of each epoch, over which BatchNorm's statistics are averaged anew before judging it; 0: its running averages [0..100000]
SEED = 42  # start weights, order and augmentations all follow from it [0..4294967295]
DEVICE = "auto"  # auto takes the first there is of cuda, mps and cpu [auto | cuda | mps | cpu]
PRECISION = "auto"  # auto: bf16 where the device computes in it, else fp16 on CUDA, else fp32 [auto | bf16 | fp16 | fp32]

# what is kept
LOAD_MODEL = False  # go on from CHECKPOINT_FILE; where all epochs are done, only evaluate
CHECKPOINT_FILE = "my_checkpoint.pth.tar"  # the last epoch's; all that resuming needs
BEST_CHECKPOINT_FILE = "best_checkpoint.pth.tar"  # that of the epoch with the best validation Dice
SAVED_IMAGES_DIR = "saved_images/"  # predictions, overview.png, batch.png, history.csv

# evaluation
THRESHOLD = 0.5  # from this probability on a pixel is car [0.001..0.999]
FULL_RES_EVERY = 1  # epochs between scores at the photographs' own size; 0: after the last only [0..100000]
SAVE_IMAGES_MAX = 4  # validation batches written as pred_0.png, 0.png and so on [0..100000]

PRESETS = {
    "classic": {},  # the constants as they stand above
    "demo": {  # rendered cars, in a minute; its checkpoints are kept apart from those of photographs
        "TRAIN_IMG_DIR": "data/demo/train_images/", "TRAIN_MASK_DIR": "data/demo/train_masks/", "VAL_IMG_DIR": "data/demo/val_images/",
        "VAL_MASK_DIR": "data/demo/val_masks/", "CHECKPOINT_FILE": "demo_checkpoint.pth.tar", "BEST_CHECKPOINT_FILE": "demo_best_checkpoint.pth.tar",
        "FEATURES": [8, 16, 32, 64], "LEARNING_RATE": 5e-3, "BATCH_SIZE": 8, "NUM_EPOCHS": 8, "ROTATE": 10, "VERTICAL_FLIP": 0.0},
    "small": {"FEATURES": [16, 32, 64, 128], "LEARNING_RATE": 3e-3, "NUM_EPOCHS": 6},  # minutes on a laptop instead of an hour
}

# ---------------------------------------------------------------- reading the above

import argparse  # noqa: E402  (the knobs come first)
import difflib  # noqa: E402
import math  # noqa: E402
import re  # noqa: E402
from pathlib import Path  # noqa: E402
from types import SimpleNamespace  # noqa: E402

from pictures import UserError  # noqa: E402


def constants():
    """{name: (value, why)} in the order above, the whys read from this file's own comments."""
    lines = Path(__file__).read_text(encoding="utf-8").splitlines()
    found = (re.fullmatch(r"([A-Z][A-Z_]*) = .*?  # (.*)", line) for line in lines)
    return {match[1]: (globals()[match[1]], match[2]) for match in found if match}


def load(argv=None, description=None, base=None):
    """Constants, preset and command line -> a namespace with every constant, types and ranges checked.

    argv: list of words, None for the command line's. base: a preset below the one that the words may name.
    Raises UserError, with everything that is wrong."""
    known = constants()
    parser = argparse.ArgumentParser(description=description, usage="%(prog)s [--preset NAME] [--any-constant VALUE ...]",
                                     formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.error = _fail
    parser.add_argument("--preset", metavar="NAME", help=f"a named set of constants: {', '.join(PRESETS)}")
    for name, (value, why) in known.items():
        shown = " ".join(map(str, value)) if isinstance(value, list) else value
        parser.add_argument(option(name), dest=name, nargs="+" if isinstance(value, list) else None,
                            metavar=type(value[0] if isinstance(value, list) else value).__name__.upper(),
                            help=f"{why}. Now {shown}".replace("%", "%%"))
    args, unknown = parser.parse_known_args(argv)
    problems = [_unknown(word, [option(name) for name in known] + ["--preset"]) for word in unknown if word.startswith("--")]
    if unknown and not problems:
        problems.append(f"{' '.join(unknown)!r} belongs to no option; a constant is given as --its-name value")
    if args.preset is not None and args.preset not in PRESETS:
        problems.append(_unknown(args.preset, list(PRESETS), "preset "))
    values = {name: value for name, (value, _) in known.items()} | PRESETS.get(base, {}) | PRESETS.get(args.preset, {})
    for name, (default, why) in known.items():
        given = getattr(args, name)
        try:
            if given is not None:
                values[name] = [_parse(word, default[0]) for word in given] if isinstance(default, list) else _parse(given, default)
            _check(values[name], default, why)
        except ValueError as error:
            problems.append(f"{option(name) if given is not None else name}: {error}")
    if problems:
        raise UserError("; ".join(problems))
    return SimpleNamespace(**values)


def option(name):
    """The command line's word for a constant: NUM_EPOCHS -> --num-epochs."""
    return "--" + name.lower().replace("_", "-")


def _fail(message):
    raise UserError(f"{message}; --help lists what there is")


def _unknown(word, names, what=""):
    near = difflib.get_close_matches(word.split("=")[0], names, n=1, cutoff=0.0)
    return f"there is no {what}{word}; the nearest is {near[0]}"


def _parse(word, default):
    """A word of the command line -> a value of the default's type. Raises ValueError."""
    if isinstance(default, bool):
        if word.lower() not in ("true", "false"):
            raise ValueError(f"expected true or false, found {word!r}")
        return word.lower() == "true"
    try:
        return type(default)(word)
    except ValueError:
        expected = {int: "a whole number", float: "a number"}[type(default)]
        raise ValueError(f"expected {expected}, found {word!r}") from None


def _check(value, default, why):
    """Raises ValueError where a value has not the default's type or is outside the brackets of its comment."""
    if isinstance(default, list):
        if not isinstance(value, (list, tuple)) or not value:
            raise ValueError(f"expected a list such as {default}, found {value!r}")
        for one in value:
            _check(one, default[0], why)
        return
    kinds = (int, float) if isinstance(default, float) else type(default)
    if not isinstance(value, kinds) or isinstance(value, bool) != isinstance(default, bool):
        raise ValueError(f"expected {type(default).__name__}, found {value!r}")
    limits = re.search(r"\[([^]]*)\]$", why)
    if limits and ".." in limits[1]:
        low, high = map(float, re.match(r"(\S+)\.\.(\S+)", limits[1]).groups())
        if math.isnan(value) or not low <= value <= high:
            raise ValueError(f"expected {limits[1]}, found {value}")
    elif limits and str(value) not in limits[1].split(" | "):
        raise ValueError(f"expected {limits[1]}, found {value}")
