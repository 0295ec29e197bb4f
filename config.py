"""Every setting of the project. Edit a value here, or override it for one run:

    python train.py --preset small --num-epochs 10 --load-model true

The command line overrides the preset, the preset overrides this file. The annotation says what a
constant can be, the comment why it is there; `python train.py --help` prints both.
"""

import carvana  # noqa: F401  first of all, as it refuses a Python that is too old

# isort: split
from typing import Annotated, Literal

from carvana.schema import (
    ByteValue,
    ChannelCount,
    ChannelMeans,
    ChannelStds,
    ClassNames,
    ClassWeights,
    Count,
    FilePath,
    Fraction,
    ImageLevels,
    ImageRange,
    MaskResize,
    MaskThreshold,
    MaskValues,
    Megapixels,
    Palette,
    PixelBlock,
    Precision,
    Probability,
    Range,
    ScaleRange,
    Side,
    Threshold,
    TileOverlap,
)

# ---------------------------------------------------------------- data: made by prepare_data.py
TRAIN_IMG_DIR: FilePath = "data/train_images/"  # photographs to train on
# their masks: NAME_mask.gif, NAME_mask.png, NAME.gif or NAME.png
TRAIN_MASK_DIR: FilePath = "data/train_masks/"
VAL_IMG_DIR: FilePath = "data/val_images/"  # photographs of other cars, to score on
VAL_MASK_DIR: FilePath = "data/val_masks/"  # their masks
# ends a mask's name, after the photograph's; "" if both have the same name
MASK_SUFFIX: str = "_mask"
MASK_PREFIX: str = ""  # begins a mask's name, such as mask_
IMAGE_SUFFIX: str = ""  # ends a photograph's name, such as _sat
IMAGE_PREFIX: str = ""  # begins a photograph's name
# regular expression for names without ending; photographs with the same first group (Carvana: the
# car) go to the same side of a split
GROUP_REGEX: str = "([0-9a-f]{12})_(0[1-9]|1[0-6])"
# one class against everything else, or several, such as background road sky: a mask's value is the
# position in this list
CLASSES: ClassNames = ["car"]
# the classes' colors if masks are colored, such as #000000 #ff8000; one further color marks pixels
# to ignore
PALETTE: Palette = []
# with several classes: the value of pixels that are neither trained on nor scored; if it is 0, the
# classes count from 1
IGNORE_INDEX: ByteValue = 255
# the values in mask files, one for each of CLASSES, if they are not 0, 1, 2 and so on; with one
# class two: background and foreground
MASK_VALUES: MaskValues = []
# with one class, for soft masks and JPEG: levels above this, of 255, are foreground, such as 127;
# -1: off, as other values may mean other things
MASK_THRESHOLD: MaskThreshold = -1
# refuse larger pictures, as a crafted file can fill the memory; raise it for 200 MP phones
MAX_MEGAPIXELS: Megapixels = 179
# decode each file once and keep what the network needs of it: 150 KB a pair at 160x240
CACHE: bool = True
CACHE_DIR: FilePath = "data/.cache/"  # folder of the cache, on a fast disk with room
# processes that read and augment; -1: chosen for the machine, 0: only the training process
NUM_WORKERS: Annotated[int, Range(-1, 256)] = -1
PIN_MEMORY: bool = True  # faster copies to a GPU; no effect without one

# ---------------------------------------------------------------- what the network sees
# pictures are scaled to this; larger gives finer outlines, at a cost that grows with the area. 0
# for both: each picture keeps its size, in parts of CROP_HEIGHT and TILE
IMAGE_HEIGHT: Side = 160
IMAGE_WIDTH: Side = 240  # Carvana's photographs are 1918x1280, 3 : 2
# train on parts of this size, drawn anew each epoch, for small things in large pictures; 0: on
# whole pictures
CROP_HEIGHT: Side = 0
CROP_WIDTH: Side = 0  # set both, or neither
# share of the crops drawn around a pixel of any class but the largest in its picture
CROP_RARE_SHARE: Fraction = 0.5
CROPS_PER_IMAGE: Annotated[int, Range(1, 10_000)] = 1  # crops of a picture in an epoch
# score and mask with a square window of this side that slides over a picture; 0: whole pictures
TILE: Side = 0
# share of a window that the next one overlaps; there the two are blended
TILE_OVERLAP: TileOverlap = 0.25
# 1: gray, 3: color, whatever the files hold; any other number: files with exactly that many
# channels, as stored, such as 4 for color and depth or 13 for satellite images
IN_CHANNELS: ChannelCount = 3
# the level that is white in 16-bit photographs: 4095 if they hold 12 bits, 1023 if 10
IMAGE_LEVELS: ImageLevels = 65535
# the values that are black and white in TIFF files of floating-point (or signed) values, such as
# 0 1 for reflectances; empty: such files are refused
IMAGE_RANGE: ImageRange = []
MEAN: ChannelMeans = [0.0]  # subtracted from levels in 0 to 1; one value, or one per channel
STD: ChannelStds = [1.0]  # divides them after that; one value, or one per channel
# area keeps the outline in place; nearest is what the tutorials' scores were measured with
MASK_RESIZE: MaskResize = "area"

# ---------------------------------------------------------------- augmentation, anew each epoch
# stretch or squeeze width and height, each by up to this much
SCALE_JITTER: Annotated[float, Range(0.0, 0.9, "share")] = 0.0
# vary brightness, contrast and, with three channels, saturation, each by up to this much
COLOR_JITTER: Annotated[float, Range(0.0, 0.9, "share")] = 0.0
ROTATE: Annotated[float, Range(0.0, 180.0, "degrees")] = 35  # turn by up to this much either way
# how to fill exposed corners; black ones never occur in photographs and disturb BatchNorm
ROTATE_FILL: Literal["reflect", "black"] = "reflect"
# photographs to paste the objects onto, cut out by their masks: for scenes that your own
# photographs do not show; empty: none
BACKGROUNDS_DIR: FilePath = ""
BACKGROUND_SHARE: Fraction = 0.7  # share of the images that get another background
# how much of the frame such an object fills, in its longer direction, from and to; above 1 it is
# cut off
OBJECT_SCALE: ScaleRange = [0.35, 1.2]
# vary the strength of each of an object's channels: standard deviation of its logarithm
OBJECT_TINT: Annotated[float, Range(0.0, 1.0)] = 0.05
# probability of another, smaller object behind, which the mask leaves out
BYSTANDERS: Probability = 0.0
# each of these but GRAY affects half of the images; all are off at their defaults
GAMMA: Annotated[float, Range(0.0, 0.9, "share")] = 0.0  # vary the exponent of levels by up to this
# vary the strength of each channel by up to this
WHITE_BALANCE: Annotated[float, Range(0.0, 0.9, "share")] = 0.0
GRAY: Probability = 0.0  # remove the colors, with three channels
# largest standard deviation of a defocus blur, or half the length of a motion blur
BLUR: Annotated[float, Range(0.0, 50.0, "pixels")] = 0.0
# largest standard deviation of sensor noise
NOISE: Annotated[float, Range(0.0, 128.0, "levels of 255")] = 0.0
# scale down to this share of width and height, or less far, then back up
DOWNSCALE: Annotated[float, Range(0.05, 1.0, "share")] = 1.0
# compress at this quality or better; with one or three channels
JPEG_QUALITY: Annotated[int, Range(1, 100)] = 100
HORIZONTAL_FLIP: Probability = 0.5  # a car seen from its other side
VERTICAL_FLIP: Probability = 0.1  # rarely useful for cars; kept from the tutorials' recipe

# ---------------------------------------------------------------- network and training
# channels per level, twice the last in the bottleneck; 16 32 64 128 is 16 times smaller
FEATURES: list[Annotated[int, Range(1, 8192, "channels")]] = [64, 128, 256, 512]
# fold blocks of this many pixels a side into channels; 2 handles four times the pixels for the same
# work
UNSHUFFLE: PixelBlock = 1
# muon needs a third of the steps, at a LEARNING_RATE of about 0.03
OPTIMIZER: Literal["adam", "muon"] = "adam"
LEARNING_RATE: Annotated[float, Range(1e-9, 10.0)] = 1e-4  # peak; smaller networks tolerate more
# all but constant rise over WARMUP, then fall to 0 at the end of the last epoch
SCHEDULE: Literal["constant", "linear", "quadratic", "cosine"] = "constant"
WARMUP: Fraction = 0.1  # share of all steps over which the learning rate rises
# weights shrink by this times the learning rate at each step
WEIGHT_DECAY: Annotated[float, Range(0.0, 10.0)] = 0.0
# bce: cross entropy; dice weights small objects as much as large ones; edge counts the pixels at
# outlines up to five times
LOSS: Literal["bce", "dice", "bce_dice", "edge"] = "bce"
# weight of a pixel of car (or of any class but the first) in bce and bce_dice; raise it if such
# pixels are few
POSITIVE_WEIGHT: Annotated[float, Range(0.01, 10_000.0)] = 1.0
# weight of each of several classes in any LOSS: a list such as 1 2 5, or computed from the pixels
# of the training masks by median_frequency (the strongest, up to 50) or inverse_sqrt;
# POSITIVE_WEIGHT, the weight with a single class, must then be 1
CLASS_WEIGHTS: ClassWeights = "none"
CLIP_GRADIENT: Annotated[float, Range(0.0, 1e6)] = 0.0  # largest gradient norm; 0: no limit
# decay of the weights' moving average, which is evaluated and saved, such as 0.99; 0: no average
EMA: Annotated[float, Range(0.0, 0.99999)] = 0.0
# a checkpoint whose weights to start from, for fine-tuning; anywhere, studio and studio-full are of
# the project; empty: random weights
INIT_WEIGHTS: FilePath = ""
BATCH_SIZE: Annotated[int, Range(1, 65536, "images")] = 16  # halve it if the GPU runs out of memory
# batches per optimizer step: the effect of larger batches where memory is short
ACCUMULATE: Annotated[int, Range(1, 65536)] = 1
# shares of the image size to train at, each for an equal part of the run; 0.5 1.0 saves time, but
# scores stay low until the second half
RESOLUTIONS: list[Annotated[float, Range(0.05, 1.0)]] = [1.0]
NUM_EPOCHS: Count = 3  # passes over the training set; scores still rise with more
# measure BatchNorm's statistics again on this many training images before each evaluation; 0 keeps
# its running averages
BATCHNORM_IMAGES: Count = 128
PATIENCE: Count = 0  # stop after this many epochs without a better validation Dice; 0: never
# stop as soon as validation at IMAGE_HEIGHT x IMAGE_WIDTH reaches this; 0: off
STOP_AT_DICE: Fraction = 0.0
LOOKS_PER_EPOCH: Annotated[int, Range(1, 1000)] = 4  # evaluations an epoch, for STOP_AT_DICE
# decides the initial weights, the order of images and all augmentations
SEED: Annotated[int, Range(0, 4294967295)] = 42
DEVICE: Literal["auto", "cuda", "mps", "cpu"] = "auto"  # auto: the first available one
# auto: bf16 where the device computes in it, else fp16 on CUDA, else fp32. bf16 is fp16 on a GPU
# without it; on Ampere and later, convolutions in fp32 round factors to TF32, as torch does
PRECISION: Precision = "auto"
# auto: on one CUDA GPU record the network's kernels once and start them together, which helps small
# networks; not with ACCUMULATE or RESOLUTIONS. true: torch.compile, a minute at first, on any
# device; false: neither
COMPILE: Literal["auto", "true", "false"] = "auto"
# use GPU kernels that give the same bits each time, where torch has them; slower. Resuming was then
# exact on an H100 (LOSS bce, one class); torch has no such kernels for LOSS edge or several classes
DETERMINISTIC: bool = False

# ---------------------------------------------------------------- what is kept
LOAD_MODEL: bool = False  # resume from CHECKPOINT_FILE; only evaluate if all epochs are done
# minutes between checkpoints within an epoch; Ctrl-C and SIGTERM also write one
CHECKPOINT_MINUTES: Annotated[float, Range(0.001, 100_000.0)] = 10.0
# checkpoint of the last epoch, with all that resuming needs
CHECKPOINT_FILE: FilePath = "my_checkpoint.pth.tar"
# checkpoint of the epoch with the best validation Dice
BEST_CHECKPOINT_FILE: FilePath = "best_checkpoint.pth.tar"
# index.html, curves.png, learning.gif, overview.png, batch.png, predictions, history.csv
SAVED_IMAGES_DIR: FilePath = "saved_images/"
# folder for TensorBoard, such as runs/: the figures of history.csv and the worst validation images,
# each run in its own subfolder; empty: none
TENSORBOARD_DIR: FilePath = ""

# ---------------------------------------------------------------- evaluation
# above this probability a pixel is car; with several classes the most probable one counts
THRESHOLD: Threshold = 0.5
# epochs between scores at the photographs' own size; 0: after the last of NUM_EPOCHS only
FULL_RES_EVERY: Count = 1
# validation images in index.html, the worst ones if there are more; 0: no such page
GALLERY_MAX: Annotated[int, Range(0, 1000)] = 200
SAVE_IMAGES_MAX: Count = 4  # validation batches written as pred_0.png, 0.png and so on

PRESETS = {
    "classic": {},  # config.py as it stands
    # Rendered cars, in a minute. Demo checkpoints have their own names, so that they never
    # overwrite those of a real run.
    "demo": {
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
    # Four classes on the same rendered cars: background, body, glass and wheels.
    "parts": {
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
    # The shortest way to Dice 0.98379, the best that the tutorials report. On masks reduced as
    # theirs are, python train.py --preset fast --stop-at-dice 0.98379 took 32.8 s from the start
    # of the process with an empty cache (median of split seeds 1, 2, 3: 32.0, 32.8, 35.2; chosen
    # on seed 0; 1,832 training images; Dice 0.98396, 0.98444, 0.98478 on 200 validation images)
    # on two cores of an AMD EPYC with AVX-512 bf16, torch 2.15.0. See docs/benchmarks.md.
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
    # Small things in large pictures: cells in microscopy, houses from the air. Trains on parts of
    # pictures at their own size; windows slide over them to score and to mask.
    "tiles": {
        "IMAGE_HEIGHT": 0,
        "IMAGE_WIDTH": 0,
        "CROP_HEIGHT": 256,
        "CROP_WIDTH": 256,
        "CROPS_PER_IMAGE": 16,
        "TILE": 512,
        "FEATURES": [16, 32, 64, 128],
        "OPTIMIZER": "muon",
        "LEARNING_RATE": 0.03,
        "SCHEDULE": "linear",
        "LOSS": "edge",
        "BATCH_SIZE": 8,
        "NUM_EPOCHS": 8,
        "ROTATE": 0.0,
        "VERTICAL_FLIP": 0.5,
        "SCALE_JITTER": 0.15,
        "COLOR_JITTER": 0.2,
    },
    # Many classes in pictures of whole scenes, some of them thin or rare; give CLASSES.
    "scenes": {
        "IMAGE_HEIGHT": 360,
        "IMAGE_WIDTH": 480,
        "UNSHUFFLE": 2,
        "FEATURES": [32, 64, 128, 128, 128],
        "OPTIMIZER": "muon",
        "LEARNING_RATE": 0.03,
        "SCHEDULE": "linear",
        "WARMUP": 0.05,
        "LOSS": "edge",
        "CLASS_WEIGHTS": "inverse_sqrt",
        "BATCH_SIZE": 8,
        "NUM_EPOCHS": 36,
        "ROTATE": 0.0,
        "VERTICAL_FLIP": 0.0,
        "SCALE_JITTER": 0.15,
        "COLOR_JITTER": 0.2,
    },
    # Gray and small, for devices with little memory.
    "gray128": {
        "IN_CHANNELS": 1,
        "IMAGE_HEIGHT": 128,
        "IMAGE_WIDTH": 128,
        "FEATURES": [64, 128],
        "NUM_EPOCHS": 10,
    },
    # Minutes on a laptop instead of an hour.
    "small": {
        "FEATURES": [16, 32, 64, 128],
        "OPTIMIZER": "muon",
        "LEARNING_RATE": 0.03,
        "SCHEDULE": "linear",
        "NUM_EPOCHS": 6,
    },
    # The best masks that two CPU cores learn in an hour and a half; see docs/accuracy.md.
    "quality": {
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
    # The finest outlines of one studio, from all pixels of Carvana's photographs. For a GPU: an
    # epoch of 1,632 pairs took 12 s on an H100, 8.5 minutes on two cores. A cache would hold 9.8 MB
    # per pair.
    "full_size": {
        "IMAGE_HEIGHT": 1280,
        "IMAGE_WIDTH": 1918,
        "UNSHUFFLE": 4,
        "FEATURES": [48, 48, 64, 128, 96],
        "OPTIMIZER": "muon",
        "LEARNING_RATE": 0.03,
        "SCHEDULE": "linear",
        "WARMUP": 0.05,
        "LOSS": "edge",
        "BATCH_SIZE": 8,
        "NUM_EPOCHS": 24,
        "CACHE": False,
        "ROTATE": 0.0,
        "VERTICAL_FLIP": 0.0,
        "SCALE_JITTER": 0.15,
        "COLOR_JITTER": 0.2,
    },
    # Cars in any photograph; give BACKGROUNDS_DIR. Pastes Carvana's cars onto other photographs
    # and adds the faults of cameras and websites.
    "anywhere": {
        "IMAGE_HEIGHT": 640,
        "IMAGE_WIDTH": 960,
        "UNSHUFFLE": 2,
        "FEATURES": [16, 32, 64, 128, 128, 128],
        "OPTIMIZER": "muon",
        "LEARNING_RATE": 0.03,
        "SCHEDULE": "linear",
        "WARMUP": 0.05,
        "LOSS": "edge",
        "BATCH_SIZE": 8,
        "NUM_EPOCHS": 24,
        "RESOLUTIONS": [0.5, 1.0],
        "ROTATE": 0.0,
        "VERTICAL_FLIP": 0.0,
        "SCALE_JITTER": 0.15,
        "OBJECT_TINT": 0.3,
        "BYSTANDERS": 0.35,
        "COLOR_JITTER": 0.3,
        "GAMMA": 0.3,
        "WHITE_BALANCE": 0.1,
        "GRAY": 0.05,
        "BLUR": 4.0,
        "NOISE": 16.0,
        "DOWNSCALE": 0.25,
        "JPEG_QUALITY": 40,
    },
}
