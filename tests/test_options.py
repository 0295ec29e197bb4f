"""Constants: what they can be, their help, and how preset and command line override them."""

import argparse
import importlib.util
import re
from pathlib import Path
from typing import Annotated, Literal

import pytest
import torch

import config
from carvana import options
from carvana.classes import Classes
from carvana.errors import UserError
from carvana.losses import make_loss
from carvana.model_config import MODEL_CONSTANTS, TUTORIAL_DEFAULTS
from carvana.optim import learning_rate, make_optimizer
from carvana.schema import MaybeEmpty, Pattern, Range, check, parse, parse_annotation

CONSTANTS = options.read_constants(config)


def import_module(folder, source):
    """Return a module made of this source."""
    path = folder / "edited.py"
    path.write_text(source)
    spec = importlib.util.spec_from_file_location("edited", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# ---------------------------------------------------------------- types


@pytest.mark.parametrize(
    "annotation, value, expected",
    [
        (int, 3, 3),
        (float, 3, 3.0),
        (bool, True, True),
        (str, "", ""),
        (Annotated[int, Range(1, 5)], 5, 5),
        (Annotated[float, Range(0.0, 1.0)], 0, 0.0),
        (Literal["a", "b"], "b", "b"),
        (list[int], (1, 2), [1, 2]),
        (list[Annotated[float, Range(0.0, 9.0)]], [1, 2], [1.0, 2.0]),
        (Annotated[list[str], MaybeEmpty()], [], []),
        (Annotated[str, Pattern("#[0-9a-f]{2}", "#xx")], "#0f", "#0f"),
        (Literal["a", "b"] | list[float], "b", "b"),
        (Literal["a", "b"] | list[float], (1, 2.5), [1.0, 2.5]),
    ],
)
def test_check_returns_a_value_that_fits(annotation, value, expected):
    checked = check(value, parse_annotation(annotation))
    assert checked == expected
    assert type(checked) is type(expected)


@pytest.mark.parametrize(
    "annotation, value, expected",
    [
        (int, 2.5, "expected a whole number, found 2.5"),
        (int, True, "expected a whole number, found True"),
        (float, "fast", "expected a number, found 'fast'"),
        (float, None, "expected a number, found None"),
        (bool, 1, "expected true or false, found 1"),
        (str, 5, "expected a text, found 5"),
        (Annotated[int, Range(1, 5, "pixels")], 0, "expected 1..5 pixels, found 0"),
        (Annotated[float, Range(0.0, 1.0)], float("nan"), "expected 0.0..1.0, found nan"),
        (Literal["a", "b"], "c", "expected a | b, found c"),
        (list[int], 64, "expected a list, found 64"),
        (list[int], [], "expected a list, found []"),
        (list[int], [1, "a"], "expected a whole number, found 'a'"),
        (list[Annotated[int, Range(1, 5)]], [9], "expected 1..5, found 9"),
        (Annotated[str, Pattern("#[0-9a-f]{2}", "#xx")], "red", "expected #xx, found red"),
        (
            Literal["a", "b"] | list[int],
            "c",
            "expected a | b, or a list of a whole number, found 'c'",
        ),
        (
            Literal["a", "b"] | list[int],
            [],
            "expected a | b, or a list of a whole number, found []",
        ),
    ],
)
def test_check_says_what_was_expected_and_found(annotation, value, expected):
    with pytest.raises(ValueError) as error:
        check(value, parse_annotation(annotation))
    assert str(error.value) == expected


@pytest.mark.parametrize(
    "annotation, arguments, expected",
    [
        (bool, "True", True),
        (bool, "yes", "yes"),
        (int, "3", 3),
        (int, "2.5", "2.5"),
        (float, "1e-3", 0.001),
        (str, "3", "3"),
        (list[int], ["1", "a"], [1, "a"]),
        (Literal["a", "b"] | list[int], ["a"], "a"),
        (Literal["a", "b"] | list[int], ["a", "1"], ["a", 1]),
    ],
)
def test_parse_leaves_words_that_do_not_fit(annotation, arguments, expected):
    parsed = parse(arguments, parse_annotation(annotation))
    assert parsed == expected
    assert type(parsed) is type(expected)


# ---------------------------------------------------------------- config.py


def test_constants_are_all_of_config():
    names = {name for name in vars(config) if name.isupper()}
    assert CONSTANTS.keys() == names - {"PRESETS"}
    assert CONSTANTS.keys() == set(config.__annotations__)


@pytest.mark.parametrize("name", CONSTANTS)
def test_constant_fits_its_type_and_has_a_reason(name):
    constant = CONSTANTS[name]
    assert check(constant.value, constant.type) == constant.value
    assert len(constant.reason.split()) >= 2


def test_constants_of_models_have_the_types_of_config():
    for name, constant in MODEL_CONSTANTS.items():
        assert parse_annotation(constant.type) == CONSTANTS[name].type, name
    for name, value in TUTORIAL_DEFAULTS.items():
        assert check(value, CONSTANTS[name].type) == value, name


def test_reason_is_the_comment_behind_or_above(tmp_path):
    source = '''"""Constants."""
# ---------------------------------------------------------------- a heading
BEHIND: int = 1  # its reason
# the first line
# and the second
ABOVE: list[int] = [1, 2]

# far away

NONE: str = "a # b"
LONG: list[int] = [
    1,
]  # behind its end
PRESETS = {}
'''
    reasons = {
        name: constant.reason
        for name, constant in options.read_constants(import_module(tmp_path, source)).items()
    }
    assert reasons == {
        "BEHIND": "its reason",
        "ABOVE": "the first line and the second",
        "NONE": "",
        "LONG": "behind its end",
    }


def test_help_says_of_every_constant_what_it_is_for_and_can_be(run):
    arguments = run("train.py", "--help").stdout.split()
    text = " ".join(arguments).replace("- ", "-")  # lines are broken behind hyphens too
    for name, constant in CONSTANTS.items():
        for expected in (options.option_name(name), constant.reason, f"[{constant.type}]; now "):
            assert " ".join(expected.split()) in text, (name, expected)


SCRIPTS = ("prepare_data", "explore", "train", "evaluate", "inference", "export", "app")


@pytest.mark.parametrize("columns", [80, 300])
@pytest.mark.parametrize("script", SCRIPTS)
def test_help_is_grouped_and_narrow_and_tells_every_value(run, monkeypatch, script, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    text = run(f"{script}.py", "--help").stdout
    lines = text.splitlines()
    usage = lines[: lines.index("")]
    groups = [line for line in lines if re.fullmatch("[a-z][^:]*:", line)]
    assert len(usage) == 1
    assert groups[0] == "options:"
    assert len(groups) >= 4
    assert [line for line in lines if len(line) > options.HELP_COLUMNS] == []
    ends = re.findall(r"\]; now(.*)\n(.*)", text)  # a value can stand in the next line
    empty = [end for end in ends if not end[0].strip() and not re.match(" {10}", end[1])]
    assert empty == []


def test_help_of_train_has_the_sections_of_config_and_the_purpose_of_every_preset(run):
    lines = run("train.py", "--help").stdout.splitlines()
    source = Path(config.__file__).read_text(encoding="utf-8")
    sections = [title.partition(":")[0] for title in re.findall("# -{20,} (.*)", source)]
    titles = [line[:-1] for line in lines if re.fullmatch("[a-z][^:]*:", line)]
    assert titles == ["options", "presets", *sections]
    for name, purpose in options.preset_purposes(config).items():
        assert len(purpose.split()) >= 3, name
        assert any(line.split() == [name, *purpose.split()] for line in lines), name


def test_constants_without_section_are_options_all_the_same(tmp_path):
    module = import_module(tmp_path, "A_NUMBER: int = 1\nPRESETS = dict(own={})\n")
    parser = options.make_parser("")
    options.add_preset_option(parser, module)
    options.add_constants_by_section(parser, options.read_constants(module))
    assert parser.parse_args(["--a-number", "2"]).A_NUMBER == "2"
    assert "own" in parser.format_help()


@pytest.mark.parametrize(
    "edit, expected",
    [
        ('LOAD_MODEL = "False"', "LOAD_MODEL: expected true or false"),
        ("BATCH_SIZE = 16.0", "BATCH_SIZE: expected a whole number"),
        ('BATCH_SIZE = "16"', "BATCH_SIZE: expected a whole number"),
        ("FEATURES = []", "FEATURES: expected a list"),
        ("FEATURES = 64", "FEATURES: expected a list"),
        ("MEAN = [0, 0, 0]", None),
        ("HORIZONTAL_FLIP = 1", None),
        ("FEATURES = (16, 32)", None),
        ("NUM_EPOCHS = 10", None),
    ],
)
@pytest.mark.parametrize("comment", ["", "  # a new reason"])
def test_constants_edited_in_config_are_checked_too(tmp_path, edit, expected, comment):
    name, value = edit.split(" = ")
    source = Path(config.__file__).read_text()
    old_line = re.search(rf"^({name}: .*) = .*$", source, re.MULTILINE)
    edited = source.replace(old_line[0], f"{old_line[1]} = {value}{comment}")
    module = import_module(tmp_path, edited)
    if expected is None:
        assert hasattr(options.load(module, []), name)
    else:
        with pytest.raises(UserError, match=expected):
            options.load(module, [])


def without_annotation(folder, name, value):
    """Return config.py as users may leave it: `NAME = value` in place of a constant."""
    source = Path(config.__file__).read_text()
    line = re.search(rf"^{name}: .*$", source, re.MULTILINE)[0]
    return import_module(folder, source.replace(line, f"{name} = {value}"))


@pytest.mark.parametrize(
    "name, value, expected",
    [
        ("MEAN", "[0, 0, 0]", [0, 0, 0]),
        ("HORIZONTAL_FLIP", "1", 1),
        ("FEATURES", "(16, 32)", [16, 32]),
        ("NUM_EPOCHS", "10", 10),
    ],
)
def test_constant_without_annotation_has_the_type_of_its_value(tmp_path, name, value, expected):
    module = without_annotation(tmp_path, name, value)
    assert getattr(options.load(module, []), name) == expected


def test_constant_without_annotation_still_takes_a_list(tmp_path):
    module = without_annotation(tmp_path, "FEATURES", "[16, 32]")
    assert options.load(module, ["--features", "4", "8", "12"]).FEATURES == [4, 8, 12]
    with pytest.raises(UserError, match="--features: expected a whole number, found 'x'"):
        options.load(module, ["--features", "x"])
    module = without_annotation(tmp_path, "FEATURES", '[16, "x"]')
    with pytest.raises(UserError, match="FEATURES: expected a whole number, found 'x'"):
        options.load(module, [])


# ---------------------------------------------------------------- preset and command line


def test_command_line_overrides_preset_overrides_config():
    assert options.load(config, []).NUM_EPOCHS == 3
    assert options.load(config, ["--preset", "small"]).NUM_EPOCHS == 6
    arguments = ["--preset", "small", "--num-epochs", "9"]
    assert options.load(config, arguments).NUM_EPOCHS == 9
    assert options.load(config, [], base_preset="small").NUM_EPOCHS == 6
    arguments = ["--preset", "gray128"]
    assert options.load(config, arguments, base_preset="small").NUM_EPOCHS == 10


@pytest.mark.parametrize("name", config.PRESETS)
def test_preset_holds_constants_that_fit(name):
    needed = {"scenes": ["--classes", "road", "sky"]}  # it is for several classes
    options.load(config, ["--preset", name, *needed.get(name, [])])
    assert config.PRESETS[name].keys() <= CONSTANTS.keys()


def test_resolve_takes_the_options_that_a_script_has():
    parser = argparse.ArgumentParser()
    options.add_data_options(parser, CONSTANTS)
    args = parser.parse_args(["--mask-suffix", "_seg", "--classes", "a", "b"])
    cfg = options.resolve(config, args)
    assert cfg.MASK_SUFFIX == "_seg"
    assert cfg.CLASSES == ["a", "b"]
    assert cfg.GROUP_REGEX == config.GROUP_REGEX
    assert cfg.NUM_EPOCHS == config.NUM_EPOCHS


def test_load_takes_class_weights_by_word_or_number():
    arguments = ["--classes", "a", "b", "c", "--class-weights"]
    assert options.load(config, [*arguments, "inverse_sqrt"]).CLASS_WEIGHTS == "inverse_sqrt"
    assert options.load(config, [*arguments, "1", "2", "0.5"]).CLASS_WEIGHTS == [1, 2, 0.5]


def test_load_reports_everything_wrong_at_once():
    arguments = ["--batch-size", "0", "--seed", "-1", "--sede", "1"]
    with pytest.raises(UserError) as error:
        options.load(config, arguments)
    for expected in (
        "--batch-size: expected 1..65536 images, found 0",
        "--seed: expected 0..4294967295, found -1",
        "there is no --sede; the nearest is --seed",
    ):
        assert expected in str(error.value)


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (["--classes", "a", "a"], "--classes: expected 1 to 255 different names"),
        (["--palette", "red", "#000000"], "expected #rrggbb, found red"),
        (["--classes", "a", "b", "--palette", "#000000"], "a color for each of 2 classes"),
        (["--palette", "#000000"], "expected none with one class"),
        (["--classes", "a", "b", "--ignore-index", "1"], "1 is the class b; expected 2..255"),
        (["--group-regex", "("], "expected a regular expression"),
        (
            ["--class-weights", "inverse_sqrt"],
            "--class-weights: expected none with one class; its weight is POSITIVE_WEIGHT",
        ),
        (
            ["--classes", "a", "b", "c", "--class-weights", "1", "2"],
            "--class-weights: expected a weight for each of 3 classes, found 2",
        ),
        (
            ["--classes", "a", "b", "--class-weights", "1", "2", "--positive-weight", "3"],
            "--positive-weight: expected 1 with CLASS_WEIGHTS, which holds the weights of all",
        ),
    ],
)
def test_load_refuses_constants_that_do_not_fit_together(arguments, expected):
    with pytest.raises(UserError, match=re.escape(expected)):
        options.load(config, arguments)


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (["--num-epoch", 3], "the nearest is --num-epochs"),
        (["--preset", "smal"], "there is no preset smal; the nearest is small"),
        (["--learning-rate", "fast"], "--learning-rate: expected a number, found 'fast'"),
        (["--learning-rate", "nan"], "--learning-rate: expected 1e-9..10.0, found nan"),
        (["--batch-size", "0"], "--batch-size: expected 1..65536 images, found 0"),
        (["--num-epochs", "2.5"], "--num-epochs: expected a whole number, found '2.5'"),
        (["--load-model", "yes"], "--load-model: expected true or false, found 'yes'"),
        (["--mask-resize", "cubic"], "--mask-resize: expected area | nearest, found cubic"),
        (["--features", "16", "-1"], "found -1"),
        (["50"], "'50' belongs to no option"),
        (["--mean", "0.5", "0.5"], "one value, or one for each of 3 channels, found 2"),
        (["--train-img-dir", "nowhere"], "no folder 'nowhere'"),
        (["--val-mask-dir", "data/train_masks"], "has a mask in 'data/train_masks'"),
        (["--load-model"], "no checkpoint 'my_checkpoint.pth.tar'"),
        (["--load-model", "true"], "no checkpoint 'my_checkpoint.pth.tar'"),
    ],
)
def test_train_answers_wrong_options_in_one_line(data, run, arguments, expected):
    done = run("train.py", *arguments, status=2)
    assert expected in done.stderr
    assert done.stderr.count("\n") == 1
    assert not done.stdout
    assert not list(data.glob("*.tar*"))


# ---------------------------------------------------------------- a config.py that was edited


def edited(folder, *changes):
    """Return config.py as a module, with each (old line's beginning, new line) changed."""
    source = Path(config.__file__).read_text(encoding="utf-8")
    for beginning, line in changes:
        source, count = re.subn(rf"(?m)^{beginning}.*$", line, source)
        assert count == 1
    return import_module(folder, source)


@pytest.mark.parametrize(
    "name, line, message",
    [
        ("BATCH_SIZE:", "BATCH_SIZE = None", "BATCH_SIZE: expected a whole number, a number, true"),
        ("CACHE:", 'CACHE = "False"', "CACHE: expected true or false, found 'False'"),
        ("MEAN:", "MEAN = [123, 117, 104]", r"MEAN: expected -10.0..10.0, found 123"),
        ("MASK_RESIZE:", 'MASK_RESIZE = "nearst"', "MASK_RESIZE: expected area | nearest"),
        ("IMAGE_WIDTH:", "WIDTH = 240", "config.py has no constant IMAGE_WIDTH"),
        ("GROUP_REGEX:", "", "config.py has no constant GROUP_REGEX"),
        ("PALETTE:", "", "config.py has no constant PALETTE"),
        ("SEED:", "SEEDS = [1]", "config.py has no constant SEED; did you mean SEEDS?"),
        ('    "demo": {', '    "own": {"LERNING_RATE": 1},\n    "demo": {', "LEARNING_RATE?"),
    ],
)
def test_edited_constants_are_checked(tmp_path, name, line, message):
    with pytest.raises(UserError) as raised:
        options.load(edited(tmp_path, (name, line)), []).SEED  # noqa: B018
    assert message in str(raised.value)


def test_constants_without_a_type_are_taken_like_their_values(tmp_path, capsys):
    changes = [
        ("SEED:", "SEED = 7\nNUM_EPOCH = 9"),
        ("LOAD_MODEL:", "LOAD_MODEL = True"),
        ("COMPILE:", 'COMPILE = "false"'),
        ("ROTATE:", "ROTATE = 20"),
        ("MASK_VALUES:", "MASK_VALUES = [0, 60]"),
    ]
    cfg = options.load(edited(tmp_path, *changes), ["--preset", "small", "--num-epochs", "5"])
    assert (cfg.SEED, cfg.NUM_EPOCHS, cfg.MASK_VALUES) == (7, 5, [0, 60])
    assert (cfg.LOAD_MODEL, cfg.COMPILE) == (True, "false")
    assert getattr(cfg, "MY_OWN", 3) == 3
    assert isinstance(cfg.ROTATE, float)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4
    assert "warning: ROTATE has lost its type in config.py, as in SEED: int = 42, so" in lines[0]
    assert lines[2].endswith("so its value is hardly checked; did you mean NUM_EPOCHS?")
    options.load(edited(tmp_path, *changes), [], base_preset="demo")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("script", ["evaluate.py", "export.py", "inference.py --img a.jpg"])
def test_scripts_name_a_constant_that_is_missing(tmp_path, run, monkeypatch, script):
    monkeypatch.delattr(config, "MAX_MEGAPIXELS")
    assert (
        "error: config.py has no constant MAX_MEGAPIXELS" in run(*script.split(), status=2).stderr
    )


def test_scripts_name_a_folder_that_is_missing(run, monkeypatch):
    monkeypatch.delattr(config, "VAL_IMG_DIR")
    stderr = run("evaluate.py", status=2).stderr
    assert stderr == "error: config.py has no constant VAL_IMG_DIR; put its line back\n"


@pytest.mark.parametrize(
    "choose, message",
    [
        (
            lambda: make_loss("BCE", Classes(("car",))),
            "LOSS: expected bce | dice | bce_dice | edge",
        ),
        (lambda: learning_rate("cosin", 1.0, 0.0, 0.5), "SCHEDULE: expected constant | linear"),
        (
            lambda: make_optimizer("sgd", [], 1.0, torch.device("cpu")),
            "OPTIMIZER: expected adam | muon",
        ),
    ],
)
def test_unknown_choices_are_named(choose, message):
    with pytest.raises(UserError, match=re.escape(message)):
        choose()
