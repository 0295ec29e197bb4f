"""Masks as others make them: what each file is read as, and what every script says of a set."""

import re
import shlex
from typing import NamedTuple

import numpy as np
import pytest
from helpers import run_script, scene, tiny_options, write_model
from PIL import Image

from carvana import images
from carvana.classes import SINGLE, Classes
from carvana.errors import UserError
from carvana.images import read_hard_mask, read_target
from carvana.mask_values import MaskFacts, find_ignored_class, judge_set
from carvana.model_config import TUTORIAL_DEFAULTS, class_faults

RED = (255, 0, 0)
SIZE = (48, 72)


def truth_of(number):
    """Return a mask of 0 and 1 that has both, also at its border only 0."""
    return scene(number, *SIZE)[1]


# ---------------------------------------------------------------- ways to store a mask


def gray(*values, dtype=np.uint8):
    """Return store(mask): an image of one level for 0 and another for 1."""
    return lambda mask: Image.fromarray(np.array(values, dtype)[mask])


def colors(background, foreground):
    return lambda mask: Image.fromarray(np.array([background, foreground], np.uint8)[mask])


def palette(background, foreground, indices=(0, 1)):
    """Return store(mask): a palette's picture with these indices, in these colors."""

    def store(mask):
        image = Image.fromarray(np.array(indices, np.uint8)[mask]).convert("L")
        image = Image.frombytes("P", image.size, image.tobytes())
        table = [0, 0, 0] * 256
        table[3 * indices[0] : 3 * indices[0] + 3] = background
        table[3 * indices[1] : 3 * indices[1] + 3] = foreground
        image.putpalette(table)
        return image

    return store


def with_alpha(store, background, foreground):
    """Return store(mask) with an alpha channel of one level for 0 and another for 1."""

    def store_with_alpha(mask):
        image = store(mask)
        image.putalpha(gray(background, foreground)(mask))
        return image

    return store_with_alpha


def bits(mask):
    return Image.fromarray(mask * np.uint8(255)).convert("1")


def transparent_gif(mask):
    image = palette((255, 255, 255), (255, 255, 255))(mask)
    image.info["transparency"] = 0
    return image


def noisy(mask):
    """Return black and white that compression has moved by up to 7 levels."""
    noise = np.random.default_rng(0).integers(0, 8, mask.shape, dtype=np.uint8)
    return Image.fromarray(np.where(mask, 255 - noise, noise).astype(np.uint8))


def soft(mask):
    """Return a mask with soft edges, whose middle is where the hard one's edge is."""
    large = Image.fromarray(mask * np.uint8(255)).resize((720, 480), Image.Resampling.BILINEAR)
    return large.resize(mask.shape[::-1], Image.Resampling.BOX)


def inner_border(mask, values):
    """Return a mask with other values for background, object, and the rim of the object."""
    inner = mask.copy()
    for axis in (0, 1):
        for step in (-1, 1):
            inner &= np.roll(mask, step, axis)
    return Image.fromarray(np.array(values, np.uint8)[2 * mask - inner])


def void(*values):
    return lambda mask: inner_border(mask, values)


def floating(mask):
    return Image.fromarray(mask.astype(np.float32))


WHITE, BLACK = (255, 255, 255), (0, 0, 0)
RIGHT = {  # read as 0 and 1 without any setting: name -> (ending, how it is stored)
    "0 255": ("png", gray(0, 255)),
    "0 254": ("png", gray(0, 254)),
    "0 1": ("png", gray(0, 1)),
    "100 200": ("png", gray(100, 200)),
    "1 bit": ("png", bits),
    "1 bit TIFF": ("tif", bits),
    "16 bits": ("png", gray(0, 65535, dtype=np.uint16)),
    "16 bits 0 1": ("tif", gray(0, 1, dtype=np.uint16)),
    "palette": ("gif", palette(BLACK, WHITE)),
    "palette, swapped": ("png", palette(BLACK, WHITE, (1, 0))),
    "palette of dark red": ("png", palette(BLACK, (128, 0, 0))),
    "palette with gaps": ("png", palette(BLACK, WHITE, (3, 200))),
    "RGB 0 1": ("png", colors((0, 0, 0), (1, 1, 1))),
    "RGB 0 255": ("bmp", colors(BLACK, WHITE)),
    "opaque RGBA": ("png", with_alpha(colors(BLACK, WHITE), 255, 255)),
    "half transparent RGBA": ("png", with_alpha(colors(BLACK, WHITE), 99, 99)),
    "opaque LA": ("png", with_alpha(gray(0, 255), 255, 255)),
    "alpha of black": ("png", with_alpha(colors(BLACK, BLACK), 0, 255)),
    "alpha of white": ("tif", with_alpha(colors(WHITE, WHITE), 0, 255)),
    "alpha of red": ("png", with_alpha(colors(RED, RED), 0, 255)),
    "alpha of gray": ("png", with_alpha(gray(70, 70), 0, 255)),
    "alpha and colors": ("png", with_alpha(colors(BLACK, WHITE), 0, 255)),
    "transparent index": ("gif", transparent_gif),
    "0 to 7 and 248 to 255": ("png", noisy),
}


@pytest.mark.parametrize("name", RIGHT)
def test_mask_is_read_right(tmp_path, name):
    ending, store = RIGHT[name]
    mask = truth_of(1)
    path = tmp_path / f"a.{ending}"
    store(mask).save(path)
    assert np.array_equal(read_hard_mask(path, SINGLE), mask)


TWO = Classes.from_constants(
    TUTORIAL_DEFAULTS | {"CLASSES": ["background", "car"], "MASK_VALUES": [0, 128]}
)
FROM_1 = Classes.from_constants(
    TUTORIAL_DEFAULTS | {"CLASSES": ["wall", "road"], "IGNORE_INDEX": 0}
)
TRIMAP = Classes.from_constants(
    TUTORIAL_DEFAULTS | {"CLASSES": ["background", "pet"], "MASK_VALUES": [2, 1], "IGNORE_INDEX": 3}
)
SETTINGS = {  # read as these indices: name -> (store, classes, indices of ground, object and rim)
    "red on black": (colors(BLACK, RED), SINGLE._replace(values=(0, 76)), (0, 1, 1)),
    "1 2": (gray(1, 2), SINGLE._replace(values=(1, 2)), (0, 1, 1)),
    "inverted": (gray(255, 0), SINGLE._replace(values=(255, 0)), (0, 1, 1)),
    "palette's indices": (
        palette(BLACK, (0, 128, 0), (0, 2)),
        SINGLE._replace(values=(0, 2)),
        (0, 1, 1),
    ),
    "16 bits": (gray(0, 300, dtype=np.uint16), SINGLE._replace(values=(0, 300)), (0, 1, 1)),
    "inverted bits": (
        lambda mask: bits(1 - mask),
        SINGLE._replace(values=(1, 0)),
        (0, 1, 1),
    ),
    "instances": (void(0, 7, 9), SINGLE._replace(threshold=0), (0, 1, 1)),
    "threshold": (void(0, 128, 127), SINGLE._replace(threshold=127), (0, 1, 0)),
    "palette over a threshold": (
        palette(BLACK, (200, 200, 200)),
        SINGLE._replace(threshold=127),
        (0, 1, 1),
    ),
    "16 bits over a threshold": (
        gray(127 * 257, 127 * 257 + 1, dtype=np.uint16),
        SINGLE._replace(threshold=127),
        (0, 1, 1),
    ),
    "gap and void": (void(0, 128, 255), TWO, (0, 1, 255)),
    "classes from 1": (void(1, 2, 0), FROM_1, (0, 1, 255)),
    "trimap": (void(2, 1, 3), TRIMAP, (0, 1, 3)),
    "bits as classes": (bits, Classes(("ground", "thing")), (0, 1, 1)),
    "alpha": (with_alpha(gray(9, 9), 0, 1), Classes(("ground", "thing")), (0, 1, 1)),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_mask_is_read_as_set(tmp_path, name):
    store, classes, indices = SETTINGS[name]
    mask = truth_of(1)
    store(mask).save(tmp_path / "a.png")
    expected = inner_border(mask, indices)
    assert np.array_equal(read_hard_mask(tmp_path / "a.png", classes), np.asarray(expected))


REFUSED = {  # without a setting: name -> (ending, store, what is said)
    "red on black": ("png", colors(BLACK, RED), "its largest value is 76"),
    "1 2": ("png", gray(1, 2), "its largest value is 2"),
    "128 255": ("png", gray(128, 255), "its values 128 and 255 are both over 127"),
    "0 1 255": ("png", void(0, 255, 1), r"3 different values .*: 0, 1, 255$"),
    "0 38 75": ("png", void(0, 75, 38), r"3 different values .*: 0, 38, 75$"),
    "palette of three": (
        "png",
        lambda mask: Image.merge("RGB", [void(0, 255, 9)(mask)] * 3).quantize(3),
        r"3 different values .*indices of its palette: 0, 1, 2\)$",
    ),
    "JPEG": ("jpg", soft, "different values .*; it is a JPEG, which blends values at edges"),
    "soft": ("png", soft, r"different values .*: 0, \d+, \d+ to 255$"),
    "colors against alpha": (
        "png",
        with_alpha(colors(BLACK, WHITE), 255, 0),
        "its colors and its alpha channel show different masks",
    ),
    "cutout": (
        "png",
        lambda mask: with_alpha(lambda _: Image.fromarray(scene(1, *SIZE)[0]), 0, 255)(mask),
        "different values .*; its alpha channel varies too: save the one that is the mask as gray",
    ),
    "floating point": ("tif", floating, "floating-point levels"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_mask_is_refused(tmp_path, name):
    ending, store, message = REFUSED[name]
    path = tmp_path / f"a.{ending}"
    store(truth_of(1)).save(path)
    with pytest.raises(UserError, match=message):
        read_target(path, SINGLE)


@pytest.mark.parametrize("level, alpha, expected", [(255, 0, 0), (0, 0, 0), (255, 255, 1)])
def test_mask_that_is_all_transparent_is_empty(tmp_path, level, alpha, expected):
    Image.new("LA", (9, 8), (level, alpha)).save(tmp_path / "a.png")
    assert (read_hard_mask(tmp_path / "a.png", SINGLE) == expected).all()


# ---------------------------------------------------------------- sets, and what scripts say


class TwoValuedSet(NamedTuple):
    """Masks of two values that no setting names, and what the scripts say of them."""

    store: object  # of a set's masks
    values: tuple  # of background and foreground
    message: str  # a regular expression


TAKEN = {
    "red on black": TwoValuedSet(
        colors(BLACK, RED),
        (0, 76),
        r"0 is taken for background \(the borders of most masks show it\), 76 for foreground.* "
        'As two classes: --classes background car --palette "#000000" "#ff0000"$',
    ),
    "blue on yellow": TwoValuedSet(
        colors((255, 255, 0), (0, 0, 255)),
        (226, 29),
        r"226 is taken for background .*, 29 for foreground.* "
        '--palette "#ffff00" "#0000ff"$',
    ),
    "dark on light": TwoValuedSet(
        gray(90, 30),
        (90, 30),
        r"90 is taken for background \(the borders of most masks show it\), 30 for foreground; "
        "if it is the other way round, add --mask-values 30 90$",
    ),
    "1 2": TwoValuedSet(gray(1, 2), (1, 2), "1 is taken for background"),
    "0 2": TwoValuedSet(gray(0, 2), (0, 2), "0 is taken for background"),
    "0 127": TwoValuedSet(gray(0, 127), (0, 127), "0 is taken for background"),
    "128 255": TwoValuedSet(gray(128, 255), (128, 255), "128 is taken for background"),
    "16 bits": TwoValuedSet(gray(0, 300, dtype=np.uint16), (0, 300), "300 for foreground"),
    "palette's indices": TwoValuedSet(
        palette(BLACK, (0, 128, 0), (0, 2)), (0, 2), "0 is taken for background"
    ),
    "red on white, of a palette": TwoValuedSet(
        palette(WHITE, RED), (0, 1), "0 is taken for background"
    ),
    "white on red, of a palette": TwoValuedSet(
        palette(RED, WHITE, (5, 3)), (5, 3), "5 is taken for background"
    ),
    "red on white": TwoValuedSet(colors(WHITE, RED), (255, 76), "255 is taken for background"),
    "alpha": TwoValuedSet(with_alpha(gray(9, 9), 0, 100), (0, 100), "100 for foreground"),
}


class MaskSet(NamedTuple):
    """Masks stored in one way, and what the scripts say of them."""

    store: object
    message: str  # a regular expression; all scripts refuse the set with it
    typed: str  # options in the message, with which all scripts take the set
    indices: tuple  # of ground, object and rim, that the masks are read as then
    options: str = ""  # that the scripts were given before
    ending: str = "png"


TWO_CLASSES = "--classes background car"
SETS = {
    "soft": MaskSet(soft, "their edges are soft", "--mask-threshold 127", None),
    "JPEG": MaskSet(
        soft, "JPEG and WebP blend values at edges", "--mask-threshold 127", None, ending="jpg"
    ),
    "void around 1": MaskSet(
        void(0, 1, 255),
        "if 255 marks pixels to ignore",
        "--classes background car --ignore-index 255",
        (0, 1, 255),
    ),
    "void of 128": MaskSet(
        void(0, 255, 128),
        "if 128 marks pixels to ignore",
        "--classes background car --mask-values 0 255 --ignore-index 128",
        (0, 1, 128),
    ),
    "three classes with gaps": MaskSet(
        void(0, 38, 75),
        "the masks hold 3 values: for several classes",
        "--classes background name1 name2 --mask-values 0 38 75",
        (0, 1, 2),
    ),
    "trimap": MaskSet(
        void(2, 1, 3),
        "if 3 marks pixels to ignore",
        "--classes background car --mask-values 2 1 --ignore-index 3",
        (0, 1, 3),
    ),
    "three colors": MaskSet(
        lambda mask: Image.merge("RGB", [void(90, 0, 9)(mask), *[void(0, 0, 99)(mask)] * 2]),
        "the masks hold 3 colors",
        '--classes background name1 name2 --palette "#5a0000" "#000000" "#096363"',
        (0, 1, 2),
    ),
    "instances": MaskSet(
        void(0, 7, 9), "if all but 0 is foreground", "--mask-threshold 0", (0, 1, 1)
    ),
    "0 255 as two classes": MaskSet(
        gray(0, 255),
        "car: in no mask, but 255, which IGNORE_INDEX says is to be ignored, is in 4 of 4 masks",
        "--mask-values 0 255",
        (0, 1, 1),
        TWO_CLASSES,
    ),
    "0 255 named twice": MaskSet(
        gray(0, 255), "name that one class only", "--classes car", (0, 1, 1), TWO_CLASSES
    ),
    "classes with a gap": MaskSet(
        gray(0, 128),
        "as many values as CLASSES has names",
        "--mask-values 0 128",
        (0, 1, 1),
        TWO_CLASSES,
    ),
    "classes from 1": MaskSet(
        void(1, 2, 0),
        "one value more than CLASSES has names: if 0 marks pixels to ignore",
        "--mask-values 1 2 --ignore-index 0",
        (0, 1, 255),
        TWO_CLASSES,
    ),
}
FOLDERS = ("--images", "images", "--masks", "masks")
TRAIN = (
    "train.py",
    *("--train-img-dir", "images", "--train-mask-dir", "masks"),
    *("--val-img-dir", "images", "--val-mask-dir", "masks"),
    *tiny_options(NUM_EPOCHS=1, GALLERY_MAX=0),
)
SCRIPTS = {
    "prepare_data.py": ("prepare_data.py", *FOLDERS, "--force"),
    "explore.py": ("explore.py", *FOLDERS),
    "train.py": TRAIN,
    "train.py without a cache": (*TRAIN, "--cache", "false"),
}


def write_set(folder, store, ending="png", count=4):
    for kind in ("images", "masks"):
        (folder / kind).mkdir()
    for number in range(count):
        Image.fromarray(scene(number, *SIZE)[0]).save(folder / f"images/{number}.png")
        store(truth_of(number)).save(folder / f"masks/{number}.{ending}")


@pytest.mark.parametrize("name", TAKEN)
def test_two_values_are_taken_and_said_once(tmp_path, name, no_report):
    row = TAKEN[name]
    write_set(tmp_path, row.store)
    row.store(np.zeros(SIZE, np.uint8)).save(tmp_path / "masks/0.png")  # the first shows nothing
    printed = {name: run_script(tmp_path, *words) for name, words in SCRIPTS.items()}
    printed["evaluate.py"] = run_script(
        tmp_path, "evaluate.py", "--model", "best_checkpoint.pth.tar", *FOLDERS
    )
    for script in [name for name in printed if name != "evaluate.py"]:
        lines = [line for line in printed[script].stderr.splitlines() if "two values" in line]
        assert len(lines) == 1, printed[script].stderr
        assert re.search(row.message, lines[0]), lines[0]
    # The checkpoint names the values already.
    assert "two values" not in printed["evaluate.py"].stderr
    background, foreground = row.values
    assert f"MASK_VALUES = [{background}, {foreground}]" in printed["prepare_data.py"].stdout
    classes = SINGLE._replace(values=row.values)
    mask = read_hard_mask(tmp_path / "masks/1.png", classes)
    assert np.array_equal(mask, truth_of(1))


def test_evaluation_takes_two_values_that_a_model_was_not_trained_on(tmp_path, no_report):
    write_set(tmp_path, gray(0, 255))
    run_script(tmp_path, *TRAIN)
    evaluate = ("evaluate.py", "--model", "best_checkpoint.pth.tar", *FOLDERS)
    usual = run_script(tmp_path, *evaluate)
    for number in range(4):
        colors(BLACK, RED)(truth_of(number)).save(tmp_path / f"masks/{number}.png")
    red = run_script(tmp_path, *evaluate)
    assert red.stderr.count("76 for foreground") == 1
    assert red.stdout == usual.stdout


def test_run_on_two_values_resumes_and_its_data_are_checked(tmp_path, no_report):
    write_set(tmp_path, colors(BLACK, RED))
    run_script(tmp_path, "prepare_data.py", *FOLDERS, "--val-fraction", "0.25")
    checked = run_script(tmp_path, "prepare_data.py", "--check")
    assert checked.stderr.count("76 for foreground") == 1
    train = ("train.py", *tiny_options(GALLERY_MAX=0))
    run_script(tmp_path, *train, "--num-epochs", "1")
    resumed = run_script(tmp_path, *train, "--num-epochs", "2", "--load-model", "true")
    assert "MASK_VALUES" not in resumed.stderr + resumed.stdout


def test_third_value_is_refused_after_two_were_taken(tmp_path, no_report, monkeypatch):
    monkeypatch.setattr(images, "MOST_ADVISERS", 2)
    write_set(tmp_path, gray(0, 76), count=12)
    gray(0, 200)(truth_of(1)).save(tmp_path / "masks/1.png")  # not among those looked at first
    for script in SCRIPTS.values():
        stderr = run_script(tmp_path, *script, status=2).stderr
        assert "MASK_VALUES has 0 for background and 76 for foreground" in stderr


@pytest.mark.parametrize("name", SETS)
def test_set_is_refused_with_what_to_type(tmp_path, name, no_report):
    row = SETS[name]
    write_set(tmp_path, row.store, row.ending)
    given = shlex.split(row.options)
    for script in SCRIPTS.values():
        stderr = run_script(tmp_path, *script, *given, status=2).stderr
        assert re.search(row.message, stderr), stderr
        assert row.typed in stderr, stderr
    assert not (tmp_path / "data/train_images").exists()
    typed = shlex.split(row.typed)
    if "--classes" not in typed:
        typed += given
    for script in SCRIPTS.values():
        run_script(tmp_path, *script, *typed)
    done = run_script(tmp_path, "evaluate.py", "--model", "best_checkpoint.pth.tar", *FOLDERS)
    assert "4 images" in done.stdout


@pytest.mark.parametrize("name", [name for name in SETS if SETS[name].indices])
def test_set_is_read_as_typed(tmp_path, name):
    row = SETS[name]
    write_set(tmp_path, row.store, row.ending, count=1)
    words = shlex.split(row.typed)
    if "--classes" not in words:
        words = shlex.split(row.options) + words
    constants = TUTORIAL_DEFAULTS | parse_options(words)
    assert class_faults(constants) == []
    mask = read_hard_mask(tmp_path / f"masks/0.{row.ending}", Classes.from_constants(constants))
    assert np.array_equal(mask, np.asarray(inner_border(truth_of(0), row.indices)))


def parse_options(words):
    """Return {constant: value} of the words of a command line."""
    lists = {}
    for word in words:
        if word.startswith("--"):
            name = word[2:].upper().replace("-", "_")
            lists[name] = []
        else:
            lists[name].append(int(word) if word.isdigit() else word)
    single = {"IGNORE_INDEX", "MASK_THRESHOLD"}
    return {name: value[0] if name in single else value for name, value in lists.items()}


@pytest.mark.parametrize("name", RIGHT)
def test_set_is_taken_by_prepare_and_explore_alike(tmp_path, name, run):
    ending, store = RIGHT[name]
    write_set(tmp_path, store, ending)
    done = run("prepare_data.py", *FOLDERS)
    assert done.stderr == ""
    assert "warning" not in run("explore.py", *FOLDERS).stdout


def test_set_of_photographs_is_said_to_be_exchanged(tmp_path, no_report):
    write_set(tmp_path, lambda mask: Image.fromarray(scene(int(mask.sum()) % 9, *SIZE)[0]))
    for script in SCRIPTS.values():
        stderr = run_script(tmp_path, *script, status=2).stderr
        assert "are the folders of photographs and masks exchanged?" in stderr


def test_set_of_many_classes_is_not_taken_for_photographs(tmp_path, run):
    def blocks(mask):
        values = np.random.default_rng(0).integers(0, 151, (6, 9), dtype=np.uint8)
        return Image.fromarray(values.repeat(8, 0).repeat(8, 1))

    write_set(tmp_path, blocks)
    stderr = run("explore.py", *FOLDERS, status=2).stderr
    assert re.search(r"the masks hold \d+ values: name the class of each with --classes", stderr)


def test_set_with_one_wrong_mask_gets_no_advice_for_all(tmp_path, run):
    write_set(tmp_path, gray(0, 255), count=12)
    void(0, 128, 255)(truth_of(3)).save(tmp_path / "masks/3.png")
    for script in (*SCRIPTS.values(),):
        stderr = run(*script, status=2).stderr
        assert "3.png: 3 different values in the mask" in stderr
        assert "the masks hold" not in stderr


def test_model_is_scored_on_masks_of_other_values(tmp_path, run):
    write_set(tmp_path, gray(1, 2))
    model = ("--model", write_model(tmp_path / "a.pth.tar"))
    settled = run("evaluate.py", *model, *FOLDERS)
    assert "1 is taken for background" in settled.stderr
    named = run("evaluate.py", *model, *FOLDERS, "--mask-values", 1, 2)
    assert "taken" not in named.stderr
    assert named.stdout == settled.stdout
    assert "4 images" in run("evaluate.py", *model, *FOLDERS, "--mask-threshold", 1).stdout
    stderr = run("evaluate.py", *model, *FOLDERS, "--mask-values", 1, status=2).stderr
    assert "MASK_VALUES: expected 2 values, of background and foreground, found 1" in stderr
    stderr = run("evaluate.py", *model, *FOLDERS, "--mask-threshold", 255, status=2).stderr
    assert "MASK_THRESHOLD: expected -1..254 levels, found 255" in stderr


def test_classes_in_jpeg_are_refused_with_the_format(tmp_path, run):
    write_set(tmp_path, lambda mask: soft(mask * np.uint8(2)), "jpg")
    stderr = run("explore.py", *FOLDERS, *TWO_CLASSES.split(), status=2).stderr
    assert "it is a JPEG, which blends values at edges" in stderr
    assert "save the masks as PNG where they come from" in stderr


ODD = {
    "inverted": (gray(255, 0), "the borders of 4 of 4 masks are foreground; .* exchanged"),
    "in part inverted": (
        lambda mask: Image.fromarray(255 * (mask if mask.sum() % 2 else 1 - mask)),
        "the borders of 3 of 4 masks are foreground, and those of most others are not",
    ),
    "empty": (gray(0, 0), "all 4 masks are empty"),
    "full": (gray(255, 255), "all 4 masks are foreground everywhere"),
}


@pytest.mark.filterwarnings("ignore:All-NaN slice encountered")
@pytest.mark.parametrize("name", ODD)
def test_set_that_is_odd_is_warned_of(tmp_path, name, no_report):
    store, warning = ODD[name]
    write_set(tmp_path, store)
    for script in SCRIPTS.values():
        done = run_script(tmp_path, *script)
        assert re.search(f"warning: .*{warning}", done.stdout + done.stderr), script
    if name == "full":
        done = run_script(tmp_path, *SCRIPTS["prepare_data.py"])
        assert "warning: 0.png: all of the mask is foreground" in done.stderr


@pytest.mark.parametrize("borders, is_odd", [([0.1] * 8, True), ([0.1] * 6 + [0.5] * 2, False)])
def test_masks_that_fill_the_frame_are_odd_where_others_do_not_touch_its_border(borders, is_odd):
    """Tiles of fields and lakes do either; photographs of whole cars do not."""
    counts = np.bincount([0, 1], minlength=256)
    facts = [MaskFacts(counts, border) for border in [*borders, 1.0, 1.0]]
    assert bool(judge_set(facts, SINGLE)) == is_odd
    assert judge_set(facts[:9] + facts[:2], SINGLE) == []  # one close-up among many


def test_cache_of_other_settings_is_another(tmp_path, run, no_report):
    write_set(tmp_path, noisy)
    run(*TRAIN)
    first = set((tmp_path / "data/.cache").iterdir())
    run(*TRAIN, "--mask-threshold", 3)
    assert first < set((tmp_path / "data/.cache").iterdir())


# ---------------------------------------------------------------- classes that are ignored


def pixels(*indices):
    """Return the pixels of each index in a mask that holds these, evenly."""
    return np.bincount(indices, minlength=256)


@pytest.mark.parametrize(
    "masks, names, while_training, while_scoring",
    [
        ([(0, 255)] * 4, "ab", True, True),
        ([(0, 255)] + [(0,)] * 4, "ab", False, False),  # some ignored pixels are no sign
        ([(0, 1, 255)] * 4, "abc", True, False),  # a small set may lack a class
        ([(0, 1, 255)] * 4, "abcd", False, False),
        ([(0, 1, 2, 255)] * 4, "abc", False, False),
        ([(0, 1)] * 4, "abc", False, False),
    ],
)
def test_ignored_class_is_found(masks, names, while_training, while_scoring):
    counts = [pixels(*indices) for indices in masks]
    classes = Classes(tuple(names))
    assert bool(find_ignored_class(counts, classes, True)) == while_training
    assert bool(find_ignored_class(counts, classes, False)) == while_scoring


@pytest.mark.parametrize(
    "constants, fault",
    [
        ({"MASK_VALUES": [0]}, "expected 2 values, of background and foreground, found 0"),
        ({"MASK_VALUES": [7, 7]}, "expected 2 values"),
        ({"CLASSES": ["a", "b", "c"], "MASK_VALUES": [0, 1]}, "expected 3 values, of 3 classes"),
        ({"CLASSES": ["a", "b"], "MASK_VALUES": [0, 9], "IGNORE_INDEX": 9}, "9 is IGNORE_INDEX"),
        ({"CLASSES": ["a", "b"], "IGNORE_INDEX": 1}, "IGNORE_INDEX: 1 is the class b"),
        ({"CLASSES": ["a", "b"], "MASK_THRESHOLD": 9}, "MASK_THRESHOLD: expected -1"),
        ({"MASK_VALUES": [0, 9], "MASK_THRESHOLD": 9}, "MASK_THRESHOLD: expected -1"),
        (
            {
                "CLASSES": ["a", "b"],
                "PALETTE": ["#000000", "#ffffff"],
                "MASK_VALUES": [0, 9],
            },
            "MASK_VALUES: expected none with PALETTE",
        ),
    ],
)
def test_constants_that_contradict_each_other_are_refused(constants, fault):
    (found,) = class_faults(TUTORIAL_DEFAULTS | constants)
    assert fault in found
