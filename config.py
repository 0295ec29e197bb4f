"""Every knob of the project. Edit a value here, or override it for one run:

    python train.py --preset small --num-epochs 10 --load-model true

The command line goes over the preset, the preset over this file. The comment behind a constant says
why it is there; brackets give the values it can take and their unit (whole numbers where
the bounds are whole), and are enforced.
"""

# data: made by prepare_data.py
TRAIN_IMG_DIR = "data/train_images/"  # photographs to learn from [path]
TRAIN_MASK_DIR = (
    "data/train_masks/"  # their masks: NAME_mask.gif, NAME_mask.png, NAME.gif or NAME.png [path]
)
VAL_IMG_DIR = "data/val_images/"  # photographs to be judged by, of other cars [path]
VAL_MASK_DIR = "data/val_masks/"  # their masks [path]
MASK_SUFFIX = "_mask"  # between a photograph's name and its mask's; "" where they are the same
GROUP_REGEX = "([0-9a-f]{12})_(0[1-9]|1[0-6])"  # of a name without its ending, what stays on one side of a split: its first bracket; here Carvana's car
CLASSES = [
    "car"
]  # one: it against all else; several, as in background road sky: a mask's value i is the i-th of them [list of names]
PALETTE = []  # the classes' colours where masks are coloured, such as #000000 #ff8000; one more is that of pixels to ignore [list of #rrggbb, or empty]
IGNORE_INDEX = (
    255  # with several classes: the value of pixels that are neither learnt nor scored [0..255]
)
CACHE = True  # decode each file once and keep what the network needs of it, 150 KB a pair at 160x240 [true | false]
CACHE_DIR = "data/.cache/"  # where to; a fast disk with room [path]
NUM_WORKERS = -1  # processes that read and augment; -1: as the machine needs, 0: the training process itself [-1..256]
PIN_MEMORY = True  # faster copies to a GPU; of no effect without one [true | false]

# what the network sees
IMAGE_HEIGHT = 160  # finer outlines with more, at a cost that grows with the area [1..16384 pixels]
IMAGE_WIDTH = 240  # Carvana's photographs are 1918x1280, 3 : 2 [1..16384 pixels]
IN_CHANNELS = 3  # colour or grey [1 | 3]
MEAN = [0.0]  # subtracted from levels in 0 to 1; one value, or one a channel [list of -10.0..10.0]
STD = [1.0]  # divided by after that; one value, or one a channel [list of 1e-6..1000.0]
MASK_RESIZE = "area"  # area keeps the outline where it is; nearest is what older scores were measured with [area | nearest]

# augmentation, drawn anew for each epoch and image
SCALE_JITTER = 0.0  # wider or narrower, and higher or lower, by up to so much each [0.0..0.9 share]
COLOR_JITTER = (
    0.0  # brightness, contrast and saturation, each times 1 +- up to so much [0.0..0.9 share]
)
ROTATE = 35  # turn by up to so much either way [0.0..180.0 degrees]
ROTATE_FILL = "reflect"  # what comes into view then; black corners, the older way, occur in no photograph and unsettle BatchNorm [reflect | black]
HORIZONTAL_FLIP = 0.5  # a car seen from its other side [0.0..1.0 probability]
VERTICAL_FLIP = 0.1  # rarely useful for cars, kept from the recipe this one descends from [0.0..1.0 probability]

# network and training
FEATURES = [
    64,
    128,
    256,
    512,
]  # channels a level, twice the last in the bottleneck; 16 32 64 128 is 16 times smaller [list of 1..8192 channels]
UNSHUFFLE = 1  # pixels a side turned into channels before the first level and back after the last; 2: four times the pixels for the same work [1..8 pixels]
OPTIMIZER = (
    "adam"  # muon learns in a third of the steps, at a LEARNING_RATE of about 0.03 [adam | muon]
)
LEARNING_RATE = 1e-4  # the highest of the run; smaller networks bear more [1e-9..10.0]
SCHEDULE = "constant"  # the others rise over WARMUP, then fall to 0 at the end of the last epoch [constant | linear | quadratic | cosine]
WARMUP = 0.1  # of all steps, over which the learning rate rises, unless SCHEDULE is constant [0.0..1.0 share]
WEIGHT_DECAY = 0.0  # of all weights, times the learning rate, at each step [0.0..10.0]
LOSS = "bce"  # cross entropy; dice weighs small objects as much as large ones; edge counts the pixels at outlines five times [bce | dice | bce_dice | edge]
POSITIVE_WEIGHT = 1.0  # how many times a pixel of car (or of any class but the first) counts in bce and bce_dice; more where they are few [0.01..10000.0]
CLIP_GRADIENT = 0.0  # the longest that the gradient of a step may be; 0: any length [0.0..1e6]
EMA = 0.0  # judge and keep a running average of the weights, of which this share stays at each step, such as 0.99; 0: the weights themselves [0.0..0.99999]
INIT_WEIGHTS = ""  # a checkpoint whose weights to start from, for photographs of one's own; empty: random ones [path]
BATCH_SIZE = 16  # halve it where the GPU's memory is too small [1..65536 images]
ACCUMULATE = 1  # batches to a step: the effect of larger ones where memory is short [1..65536]
RESOLUTIONS = [
    1.0
]  # shares of the image's size to train at, each for an equal part of the run; 0.5 1.0 saves time, its scores are low until the second half [list of 0.05..1.0]
NUM_EPOCHS = 3  # passes over the training set; the scores still rise after these [0..100000]
BATCHNORM_IMAGES = 128  # of each epoch, over which BatchNorm's statistics are averaged anew before judging it; 0: its running averages [0..100000]
PATIENCE = 0  # end after so many epochs without a better validation Dice; 0: never [0..100000]
STOP_AT_DICE = (
    0.0  # end as soon as validation at IMAGE_HEIGHT x IMAGE_WIDTH reaches it; 0: off [0.0..1.0]
)
LOOKS_PER_EPOCH = 4  # evaluations in each epoch, to notice STOP_AT_DICE in time [1..1000]
SEED = 42  # start weights, order and augmentations all follow from it [0..4294967295]
DEVICE = "auto"  # auto takes the first there is of cuda, mps and cpu [auto | cuda | mps | cpu]
PRECISION = "auto"  # auto: bf16 where the device computes in it, else fp16 on CUDA, else fp32 [auto | bf16 | fp16 | fp32]
COMPILE = "auto"  # torch.compile: a minute first, faster steps then; auto: on CUDA, once over five minutes lie ahead [auto | true | false]

# what is kept
LOAD_MODEL = (
    False  # go on from CHECKPOINT_FILE; where all epochs are done, only evaluate [true | false]
)
CHECKPOINT_MINUTES = 10.0  # between checkpoints within an epoch; Ctrl-C and SIGTERM write one as well [0.001..100000.0]
CHECKPOINT_FILE = "my_checkpoint.pth.tar"  # the last epoch's; all that resuming needs [path]
BEST_CHECKPOINT_FILE = (
    "best_checkpoint.pth.tar"  # that of the epoch with the best validation Dice [path]
)
SAVED_IMAGES_DIR = "saved_images/"  # index.html, curves.png, learning.gif, overview.png, batch.png, predictions, history.csv [path]

# evaluation
THRESHOLD = 0.5  # above this probability a pixel is car; of several classes the likeliest counts [0.001..0.999]
FULL_RES_EVERY = (
    1  # epochs between scores at the photographs' own size; 0: after the last only [0..100000]
)
GALLERY_MAX = 200  # validation images in index.html, the worst ones where there are more; 0: no such page [0..1000]
SAVE_IMAGES_MAX = 4  # validation batches written as pred_0.png, 0.png and so on [0..100000]

PRESETS = {
    "classic": {},  # the constants as they stand above
    "demo": {  # rendered cars, in a minute; its checkpoints are kept apart from those of photographs
        "TRAIN_IMG_DIR": "data/demo/train_images/",
        "TRAIN_MASK_DIR": "data/demo/train_masks/",
        "VAL_IMG_DIR": "data/demo/val_images/",
        "VAL_MASK_DIR": "data/demo/val_masks/",
        "CHECKPOINT_FILE": "demo_checkpoint.pth.tar",
        "BEST_CHECKPOINT_FILE": "demo_best_checkpoint.pth.tar",
        "FEATURES": [8, 16, 32, 64],
        "OPTIMIZER": "muon",
        "LEARNING_RATE": 0.03,
        "SCHEDULE": "linear",
        "BATCH_SIZE": 8,
        "NUM_EPOCHS": 6,
        "BATCHNORM_IMAGES": 64,
        "ROTATE": 0.0,
        "VERTICAL_FLIP": 0.0,
    },
    "parts": {  # four classes on the same rendered cars: where body, glass and wheels are
        "TRAIN_IMG_DIR": "data/parts/train_images/",
        "TRAIN_MASK_DIR": "data/parts/train_masks/",
        "VAL_IMG_DIR": "data/parts/val_images/",
        "VAL_MASK_DIR": "data/parts/val_masks/",
        "CHECKPOINT_FILE": "parts_checkpoint.pth.tar",
        "BEST_CHECKPOINT_FILE": "parts_best_checkpoint.pth.tar",
        "CLASSES": ["background", "body", "glass", "wheels"],
        "FEATURES": [8, 16, 32, 64],
        "OPTIMIZER": "muon",
        "LEARNING_RATE": 0.03,
        "SCHEDULE": "linear",
        "BATCH_SIZE": 8,
        "NUM_EPOCHS": 10,
        "BATCHNORM_IMAGES": 64,
        "ROTATE": 0.0,
        "VERTICAL_FLIP": 0.0,
    },
    # The shortest way to 0.98379, the best Dice that the tutorials report, on masks as they reduce them: python train.py --preset fast --stop-at-dice 0.98379
    # took 37.7 s from the start of the process with an empty cache (median of split seeds 1, 2, 3: 37.7, 36.4, 39.9; chosen on seed 0; 1,832 training images,
    # Dice 0.98400, 0.98439, 0.98499 of 200 validation images) on two cores of an AMD EPYC with AVX-512 bf16, torch 2.15.0. See docs/benchmarks.md.
    "fast": {
        "FEATURES": [16, 16, 32, 64, 64],
        "OPTIMIZER": "muon",
        "LEARNING_RATE": 0.05,
        "SCHEDULE": "quadratic",
        "BATCH_SIZE": 8,
        "NUM_EPOCHS": 1,
        "BATCHNORM_IMAGES": 0,
        "LOOKS_PER_EPOCH": 10,
        "MASK_RESIZE": "nearest",
        "ROTATE": 0.0,
        "HORIZONTAL_FLIP": 0.0,
        "VERTICAL_FLIP": 0.0,
    },
    "gray128": {
        "IN_CHANNELS": 1,
        "IMAGE_HEIGHT": 128,
        "IMAGE_WIDTH": 128,
        "FEATURES": [64, 128],
        "NUM_EPOCHS": 10,
    },  # grey and small, for devices with little memory
    "small": {
        "FEATURES": [16, 32, 64, 128],
        "OPTIMIZER": "muon",
        "LEARNING_RATE": 0.03,
        "SCHEDULE": "linear",
        "NUM_EPOCHS": 6,
    },  # minutes on a laptop instead of an hour
    "quality": {  # the best masks that two CPU cores learn in an hour and a half; see docs/accuracy.md
        "IMAGE_HEIGHT": 640,
        "IMAGE_WIDTH": 960,
        "UNSHUFFLE": 2,
        "FEATURES": [16, 32, 64, 128],
        "OPTIMIZER": "muon",
        "LEARNING_RATE": 0.03,
        "SCHEDULE": "linear",
        "WARMUP": 0.05,
        "LOSS": "edge",
        "BATCH_SIZE": 8,
        "NUM_EPOCHS": 24,
        "ROTATE": 0.0,
        "VERTICAL_FLIP": 0.0,
        "SCALE_JITTER": 0.15,
        "COLOR_JITTER": 0.2,
    },
}

# ---------------------------------------------------------------- reading the above

import argparse  # noqa: E402  (the knobs come first)
import difflib  # noqa: E402
import re  # noqa: E402
from pathlib import Path  # noqa: E402
from types import SimpleNamespace  # noqa: E402

from pictures import UserError, printable, refuse  # noqa: E402


def constants():
    """{name: (value, why)} in the order above, the whys read from this file's own comments."""
    source = Path(__file__).read_text(encoding="utf-8")
    whys = dict(re.findall(r"^([A-Z][A-Z_]*) *=.*?  # *(.*)$", source, re.MULTILINE))
    return {
        name: (value, whys.get(name, ""))
        for name, value in globals().items()
        if name.isupper() and name != "PRESETS"
    }


def load(argv=None, description=None, base=None):
    """Constants, preset and command line -> a namespace with every constant, types and ranges checked.

    argv: list of words, None for the command line's. base: a preset below the one that the words may name.
    Raises UserError, with everything that is wrong."""
    parser = argparse.ArgumentParser(
        description=description,
        usage="%(prog)s [--preset NAME] [--any-constant VALUE ...]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.error = refuse
    parser.add_argument(
        "--preset", metavar="NAME", help=f"a named set of constants: {', '.join(PRESETS)}"
    )
    add_options(parser, constants())
    args, unknown = parser.parse_known_args(argv)
    problems = [
        _unknown(word, [option(name) for name in constants()] + ["--preset"])
        for word in unknown
        if word.startswith("--")
    ]
    if unknown and not problems:
        problems.append(
            f"{' '.join(unknown)!r} belongs to no option; a constant is given as --its-name value"
        )
    return checked(args, base, problems)


def add_options(parser, names):
    """Give a command line an option for each of these constants."""
    for name in names:
        value, why = constants()[name]
        rule, shown = (
            _rule(value, why),
            " ".join(map(str, value)) if isinstance(value, (list, tuple)) else value,
        )
        parser.add_argument(
            option(name),
            dest=name,
            nargs=("*" if rule["empty"] else "+") if rule["list"] else None,
            metavar=rule["kind"].__name__.upper(),
            help=f"{why}. Now {shown}".replace("%", "%%"),
        )


def add_data_options(parser):
    """add_options for the constants that say what files of photographs and masks are."""
    add_options(parser, ("MASK_SUFFIX", "GROUP_REGEX", "CLASSES", "PALETTE", "IGNORE_INDEX"))


def checked(args, base=None, problems=()):
    """What a command line with add_options found -> load()'s namespace. problems: known ones, to be told with the others."""
    known, problems = constants(), list(problems)
    rules = {name: _rule(*of) for name, of in known.items()}
    preset = getattr(args, "preset", None)
    if preset is not None and preset not in PRESETS:
        problems.append(_unknown(preset, list(PRESETS), "preset "))
    values = (
        {name: value for name, (value, _) in known.items()}
        | PRESETS.get(base, {})
        | PRESETS.get(preset, {})
    )
    for name, rule in rules.items():
        given = getattr(args, name, None)
        try:
            if given is not None:
                values[name] = (
                    [_parse(word, rule) for word in given] if rule["list"] else _parse(given, rule)
                )
            values[name] = _checked(values[name], rule)
        except ValueError as error:
            problems.append(f"{option(name) if given is not None else name}: {error}")
    for name in ("MEAN", "STD"):
        if not problems and len(values[name]) not in (1, values["IN_CHANNELS"]):
            problems.append(
                f"{option(name)}: expected one value, or one for each of {values['IN_CHANNELS']} channels, found {len(values[name])}"
            )
    problems += [] if problems else _class_faults(values)
    if problems:
        raise UserError(printable("; ".join(problems)))
    return SimpleNamespace(**values)


def _class_faults(values):
    """What is wrong with the constants that several classes need, in words."""
    names, palette, faults = values["CLASSES"], values["PALETTE"], []
    if len(set(names)) < len(names) or len(names) > 255 or not all(names):
        faults.append(f"CLASSES: expected 1 to 255 different names, found {' '.join(names):.60}")
    strange = [colour for colour in palette if not re.fullmatch("#[0-9a-fA-F]{6}", colour)]
    if strange or len(set(map(str.lower, palette))) < len(palette):
        faults.append(
            f"PALETTE: expected different colours, each as #rrggbb, found {' '.join(strange or palette):.60}"
        )
    elif palette and (len(names) == 1 or len(palette) not in (len(names), len(names) + 1)):
        faults.append(
            f"PALETTE: expected a colour for each of {len(names)} classes (and one for what is to be ignored), found {len(palette)}"
            if len(names) > 1
            else "PALETTE: expected none with one class; name them all, such as --classes background car"
        )
    if len(names) > 1 and values["IGNORE_INDEX"] < len(names):
        faults.append(
            f"IGNORE_INDEX: {values['IGNORE_INDEX']} is the class {names[values['IGNORE_INDEX']]}; expected {len(names)}..255"
        )
    try:
        re.compile(values["GROUP_REGEX"])
    except re.error as error:
        faults.append(
            f"GROUP_REGEX: expected a regular expression, found {values['GROUP_REGEX']!r} ({error})"
        )
    return faults


def option(name):
    """The command line's word for a constant: NUM_EPOCHS -> --num-epochs."""
    return "--" + name.lower().replace("_", "-")


def _unknown(word, names, what=""):
    near = difflib.get_close_matches(word.split("=")[0], names, n=1, cutoff=0.0)
    return f"there is no {what}{word}; the nearest is {near[0]}"


def _rule(value, why):
    """What a constant can be, from the brackets of its comment; without them, whatever has its value's type."""
    found = re.search(r"\[([^]]*)\]$", why)
    text = found[1] if found else ""
    choices = text.split(" | ") if "|" in text else None
    bounds = re.match(r"(?:list of )?(\S+)\.\.(\S+)", text)
    first = value[0] if isinstance(value, (list, tuple)) and value else value
    if choices:
        kind = bool if choices == ["true", "false"] else int if choices[0].isdigit() else str
    else:
        kind = (
            str
            if text == "path" or text.startswith("list of #")
            else type(first)
            if not bounds
            else int
            if all(bound.lstrip("-").isdigit() for bound in bounds.groups())
            else float
        )
    return {
        "text": text,
        "kind": kind,
        "list": text.startswith("list of") or isinstance(value, (list, tuple)),
        "empty": text.endswith("or empty"),
        "choices": choices,
        "bounds": bounds and tuple(map(float, bounds.groups())),
    }


def _parse(word, rule):
    """A word of the command line -> a value of the rule's kind. Raises ValueError."""
    if rule["kind"] is bool:
        return {"true": True, "false": False}.get(word.lower(), word)
    try:
        return rule["kind"](word)
    except ValueError:
        return word


def _checked(value, rule):
    """A value that follows its rule (numbers as the rule's kind); ValueError for any other."""
    if rule["list"]:
        if not isinstance(value, (list, tuple)) or not value and not rule["empty"]:
            raise ValueError(f"expected a list, found {ascii(value):.60}")
        return [_checked(one, rule | {"list": False}) for one in value]
    kinds = (int, float) if rule["kind"] is float else rule["kind"]
    if not isinstance(value, kinds) or isinstance(value, bool) != (rule["kind"] is bool):
        expected = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}[
            rule["kind"]
        ]
        raise ValueError(f"expected {expected}, found {ascii(value):.60}")
    if (
        rule["bounds"] and not rule["bounds"][0] <= value <= rule["bounds"][1]
    ):  # nan is outside of any
        raise ValueError(f"expected {rule['text']}, found {str(value):.60}")
    if rule["choices"] and rule["kind"] is not bool and str(value) not in rule["choices"]:
        raise ValueError(f"expected {rule['text']}, found {str(value):.60}")
    return rule["kind"](value)
