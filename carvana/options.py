"""Constants on the command line: a preset overrides config.py, the command line overrides both."""

import argparse
import ast
import difflib
import re
import shlex
import shutil
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple, NoReturn

from carvana.errors import UserError, one_line, warn
from carvana.model_config import (
    MODEL_CONSTANTS,
    channel_faults,
    class_faults,
    size_faults,
)
from carvana.naming import AFFIX_CONSTANTS
from carvana.schema import (
    ValueType,
    check,
    option_name,
    parse,
    parse_annotation,
    plain_annotation,
)
from carvana.shipped import SHIPPED_MODELS, find_model
from carvana.synonyms import describe_unknown

DATA_CONSTANTS = {  # of files of photographs and masks, by the heading of their options
    "names and values of masks": (
        "CLASSES",
        "PALETTE",
        "MASK_VALUES",
        "MASK_THRESHOLD",
        "IGNORE_INDEX",
    ),
    "names of files": (*AFFIX_CONSTANTS, "GROUP_REGEX"),
    "levels and channels of photographs": (
        "IN_CHANNELS",
        "IMAGE_LEVELS",
        "IMAGE_RANGE",
        "MAX_MEGAPIXELS",
    ),
}
HELP_COLUMNS = 100  # at most, however wide the terminal is
DEVICES = ("auto", "cuda", "mps", "cpu")
OPTION = re.compile("--?[A-Za-z]")
HEADING = re.compile("# -{8,} (.+)")  # of a section of config.py


class Constant(NamedTuple):
    """A constant of config.py."""

    value: Any
    type: ValueType
    reason: str  # its comment
    section: str = ""  # the heading that it stands below

    @property
    def help(self) -> str:
        """Return the reason, what it can be, and its value, for --help."""
        value = self.value
        if isinstance(value, list | tuple):
            value = " ".join(map(str, value)) or "empty"
        return f"{self.reason} [{self.type}]; now {shown(value)}"


def shown(value: Any) -> str:
    """Return a constant's value in words; an empty text is seen."""
    return '""' if value == "" else str(value)


# ---------------------------------------------------------------- reading config.py


def read_constants(config: ModuleType) -> dict[str, Constant]:
    """Return {name: Constant} of the config module, in its order, without PRESETS."""
    comments = _comments(Path(str(config.__file__)).read_text(encoding="utf-8"))
    constants = ByName()
    for name, value in vars(config).items():
        if name.isupper() and name != "PRESETS":
            reason, section = comments.get(name, ("", ""))
            constants[name] = Constant(value, _type_of(config, name, value), reason, section)
    return constants


def _type_of(config: ModuleType, name: str, value: Any) -> ValueType:
    """Return what a constant can be: as config.py says, or models, or else like its value."""
    if name in config.__annotations__:
        return parse_annotation(config.__annotations__[name])
    if name in MODEL_CONSTANTS:
        return parse_annotation(MODEL_CONSTANTS[name].type)
    presets = [preset[name] for preset in config.PRESETS.values() if name in preset]
    if isinstance(value, int) and any(isinstance(other, float) for other in presets):
        value = float(value)  # 35 in place of 35.0
    return parse_annotation(plain_annotation(name, value))


def preset_purposes(config: ModuleType) -> dict[str, str]:
    """Return {preset: the first sentence of its comment} of the config module."""
    source = Path(str(config.__file__)).read_text(encoding="utf-8")
    lines = source.splitlines()
    purposes = dict.fromkeys(config.PRESETS, "")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and isinstance(value, ast.Dict):
                    comment = _comment(lines, key.lineno - 1, (value.end_lineno or key.lineno) - 1)
                    purposes[key.value] = re.split(r"\.(?: |$)", comment)[0]
    return {name: purposes[name] for name in config.PRESETS}


def default_values(config: ModuleType) -> dict[str, Any]:
    """Return {name: value} of the config module's constants."""
    return {name: constant.value for name, constant in read_constants(config).items()}


def _comments(source: str) -> dict[str, tuple[str, str]]:
    """Return {constant: (its comment, the heading that it stands below)}."""
    lines = source.splitlines()
    headings = {
        index: match[1] for index, line in enumerate(lines) if (match := HEADING.match(line))
    }
    comments = {}
    for statement in ast.parse(source).body:
        if not isinstance(statement, ast.AnnAssign | ast.Assign):
            continue
        target = statement.target if isinstance(statement, ast.AnnAssign) else statement.targets[0]
        first = statement.lineno - 1
        above = [heading for index, heading in headings.items() if index < first]
        comment = _comment(lines, first, (statement.end_lineno or statement.lineno) - 1)
        comments[ast.unparse(target)] = (comment, above[-1] if above else "")
    return comments


def _comment(lines: Sequence[str], first: int, last: int) -> str:
    """Return the comment of lines[first] to lines[last]: the one behind, else the lines above."""
    trailing = re.search(r"  # (.*)$", lines[last])
    if trailing:
        return trailing[1]
    start = first
    while start > 0 and re.match(r"\s*# (?!----)", lines[start - 1]):
        start -= 1
    return " ".join(line.strip().removeprefix("# ") for line in lines[start:first])


# ---------------------------------------------------------------- parsers


class OptionParser(argparse.ArgumentParser):
    """A parser that answers wrong options with a UserError instead of a page of usage."""

    def error(self, message: str) -> NoReturn:
        _, _, rest = message.partition("unrecognized arguments: ")
        words = rest.split()
        _, _, required = message.partition("arguments are required: ")
        if required:  # perhaps one of them is misspelled, or left out
            words = self._left_over()
        unknown = [word for word in words if OPTION.match(word)]
        if unknown:
            options = [name for name in self._option_string_actions if name.startswith("--")]
            answers = [describe_unknown(word, options) for word in unknown]
            message = "; ".join(answers)
        elif words and required:
            message = f"{words[0]!r} belongs to no option; put {required} before it"
        raise UserError(f"{one_line(message)}; --help lists the options")

    def _left_over(self) -> list[str]:
        """Return the words of the command line that belong to no option."""
        for action in self._actions:
            action.required = False
        return self.parse_known_args()[1]


def make_parser(description: str | None, **settings: Any) -> OptionParser:
    """Return a parser that shows the description as it is written. Options are typed in full."""
    columns = min(shutil.get_terminal_size().columns, HELP_COLUMNS) - 2
    return OptionParser(
        description=description,
        allow_abbrev=False,
        formatter_class=partial(argparse.RawDescriptionHelpFormatter, width=columns),
        **settings,
    )


def option_words(constant: str, value: Any) -> str:
    """Return what to type for a constant's value: CLASSES, ["a", "b c"] -> --classes a 'b c'."""
    values = value if isinstance(value, list | tuple) else [value]
    return " ".join([option_name(constant), *(shlex.quote(str(item)) for item in values)])


def add_constants(
    parser: argparse._ActionsContainer, constants: dict[str, Constant], names: Iterable[str]
) -> None:
    """Give a parser, or a group of its options, one for each of the named constants."""
    for name in names:
        constant = constants[name]
        nargs = None
        if constant.type.is_list:
            nargs = "*" if constant.type.may_be_empty else "+"
        elif constant.type.kind is bool:
            nargs = "?"  # --load-model is --load-model true
        parser.add_argument(
            option_name(name),
            dest=name,
            nargs=nargs,
            const="true" if nargs == "?" else None,
            metavar=constant.type.kind.__name__.upper(),
            help=constant.help.replace("%", "%%"),
        )


def add_data_options(parser: argparse.ArgumentParser, constants: dict[str, Constant]) -> None:
    """Give a parser the constants that say what files of photographs and masks are."""
    for heading, names in DATA_CONSTANTS.items():
        add_constants(parser.add_argument_group(heading), constants, names)


def add_constants_by_section(
    parser: argparse.ArgumentParser, constants: dict[str, Constant]
) -> None:
    """Give a parser an option for each constant, below the headings of config.py."""
    for section in dict.fromkeys(constant.section for constant in constants.values()):
        names = [name for name, constant in constants.items() if constant.section == section]
        title, _, description = section.partition(": ")
        group = parser.add_argument_group(title or None, description or None)
        add_constants(group, constants, names)


def add_preset_option(parser: argparse.ArgumentParser, config: ModuleType) -> None:
    """Give a parser --preset, with what each preset is for."""
    purposes = preset_purposes(config)
    width = max(map(len, purposes)) + 2
    lines = [f"{name:{width}}{purpose}".rstrip() for name, purpose in purposes.items()]
    group = parser.add_argument_group("presets", "\n".join(lines))
    group.add_argument("--preset", metavar="NAME", help="one of these sets of constants")


def add_model_option(parser: argparse._ActionsContainer, description: str) -> None:
    """Give a parser --model; what comes with the project has a name, and one is the default."""
    shipped = " or ".join(f"{name} ({model.purpose})" for name, model in SHIPPED_MODELS.items())
    parser.add_argument(
        "--model",
        metavar="|".join(["FILE", *SHIPPED_MODELS]),
        type=find_model,
        default="anywhere",
        help=f"{description}; or, from the project, {shipped}; default: %(default)s",
    )


def add_window_options(parser: argparse._ActionsContainer) -> None:
    """Give a parser --tile and --tile-overlap."""
    parser.add_argument(
        "--tile",
        type=int,
        metavar="N",
        help="side of the windows that slide over a picture, in pixels; 0: the whole picture at "
        "once; default: as the model was trained",
    )
    parser.add_argument(
        "--tile-overlap",
        type=float,
        metavar="SHARE",
        help="share of a window that the next one overlaps, 0..0.9; default: as the model was "
        "trained",
    )


def add_levels_option(parser: argparse._ActionsContainer) -> None:
    """Give a parser --image-levels."""
    parser.add_argument(
        "--image-levels",
        type=int,
        metavar="INT",
        help="the level that is white in 16-bit photographs, such as 4095 if they hold 12 "
        "bits; default: as the model was trained",
    )


def add_pair_folders(parser: argparse._ActionsContainer, image_dir: str, mask_dir: str) -> None:
    """Give a parser --images and --masks with these defaults."""
    for name, default, description in (
        ("--images", image_dir, "photographs"),
        ("--masks", mask_dir, "their masks"),
    ):
        parser.add_argument(
            name, metavar="DIR", default=default, help=f"{description}; default %(default)s"
        )


def add_device_option(parser: argparse._ActionsContainer) -> None:
    """Give a parser --device."""
    parser.add_argument(
        "--device", default="auto", choices=DEVICES, help="auto: the first available one"
    )


def check_model_file(path: str | Path) -> None:
    """Raise UserError if there is no such file."""
    if not Path(path).is_file():
        raise UserError(
            f"no model {str(path)!r}; train one with python train.py, or name another with --model"
            f": a file, {' or '.join(SHIPPED_MODELS)}"
        )


def check_json_folder(path: str | None) -> None:
    """Raise UserError if the folder of --json is not there."""
    if path and not Path(path).absolute().parent.is_dir():
        folder = str(Path(path).parent)
        raise UserError(f"no folder {folder!r} to write --json {path} to; make it first")


# ---------------------------------------------------------------- values


def load(
    config: ModuleType,
    argv: Sequence[str] | None = None,
    description: str | None = None,
    base_preset: str | None = None,
) -> SimpleNamespace:
    """Return a namespace with every constant, from config.py, preset and command line.

    Args:
        config: the module of constants and PRESETS.
        argv: the command line's words; None for those of this process.
        description: printed by --help.
        base_preset: a preset below the one that the command line may name.

    Raises:
        UserError: with everything that is wrong.
    """
    constants = read_constants(config)
    parser = make_parser(
        description,
        usage="%(prog)s [--preset NAME] [--any-constant VALUE ...]",
    )
    add_preset_option(parser, config)
    add_constants_by_section(parser, constants)
    args, unknown = parser.parse_known_args(argv)
    options = [option_name(name) for name in constants] + ["--preset"]
    problems = [describe_unknown(word, options) for word in unknown if OPTION.match(word)]
    if unknown and not problems:
        problems.append(
            f"{' '.join(unknown)!r} belongs to no option; set a constant by --its-name value"
        )
    return resolve(config, args, base_preset, problems)


def resolve(
    config: ModuleType,
    args: argparse.Namespace,
    base_preset: str | None = None,
    problems: Sequence[str] = (),
) -> SimpleNamespace:
    """Return a namespace with every constant, those of a parser with add_constants overriding.

    Args:
        args: what the parser returned; a constant that it was not given is None or missing.
        problems: already known; they are reported together with the others.

    Raises:
        UserError: with everything that is wrong.
    """
    constants = read_constants(config)
    given = vars(args)
    problems = list(problems)
    preset = given.get("preset")
    if preset is not None and preset not in config.PRESETS:
        nearest = difflib.get_close_matches(preset, config.PRESETS, n=1, cutoff=0.0)[0]
        problems.append(f"there is no preset {preset}; the nearest is {nearest}")
    problems += _preset_faults(config, constants)
    if base_preset is None:  # else it has been said
        _warn_of_untyped(config, constants)
    values = ByName({name: constant.value for name, constant in constants.items()})
    values |= config.PRESETS.get(base_preset, {}) | config.PRESETS.get(preset, {})
    for name, constant in constants.items():
        shown_name = name
        if given.get(name) is not None:
            shown_name = option_name(name)
            values[name] = parse(given[name], constant.type)
        try:
            values[name] = check(values[name], constant.type)
        except ValueError as error:
            problems.append(f"{shown_name}: {error}")
    if not problems:
        faults = _faults_together(values, trains="CLASS_WEIGHTS" in given)
        problems = [_by_option(fault, given) for fault in faults]
    if problems:
        raise UserError(one_line("; ".join(problems)))
    return Constants(**values)


class Constants(SimpleNamespace):
    """The constants of a run, by their names."""

    def __getattr__(self, name: str) -> NoReturn:
        """Answer for a constant that is missing.

        Raises:
            MissingConstant: its line in config.py was removed, or its name misspelled there.
            AttributeError: it is no name of a constant.
        """
        if not name.isupper():
            raise AttributeError(name)
        raise MissingConstant(_describe_missing(name, vars(self)))


class ByName(dict):
    """What belongs to constants, by their names. For a missing one it raises MissingConstant."""

    def __missing__(self, name: str) -> NoReturn:
        raise MissingConstant(_describe_missing(name, self))


class MissingConstant(UserError, AttributeError):
    """A constant that is asked for is not in config.py."""


def _describe_missing(name: str, names: Iterable[str]) -> str:
    """Return that a constant is not among those that there are, and which one is like it."""
    return f"config.py has no constant {name}{_did_you_mean(name.upper(), names)}"


def _did_you_mean(name: str, names: Iterable[str]) -> str:
    """Return a question with the name that is most like another one; "" if none is."""
    nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.85)
    return f"; did you mean {nearest[0]}?" if nearest else ""


def _preset_faults(config: ModuleType, constants: dict[str, Constant]) -> list[str]:
    """Return what presets set that is no constant, in words."""
    presets: dict[str, list[str]] = {}
    for preset, values in config.PRESETS.items():
        for name in values.keys() - constants.keys():
            presets.setdefault(name, []).append(preset)
    return [
        f"preset {', '.join(presets[name])}: {_describe_missing(name, constants)}"
        for name in sorted(presets)
    ]


def _warn_of_untyped(config: ModuleType, constants: dict[str, Constant]) -> None:
    """Print which lines of config.py say no more what their constant can be."""
    typed = config.__annotations__
    for name, constant in constants.items():
        if name in typed or name in MODEL_CONSTANTS or constant.type.kind is bool:
            continue
        warn(
            f"warning: {name} has lost its type in config.py, as in SEED: int = 42, so its value "
            f"is hardly checked{_did_you_mean(name, typed)}"
        )


def _faults_together(values: dict[str, Any], trains: bool) -> list[str]:
    """Return what does not go together, in words.

    Args:
        trains: of a script that does not train, CLASSES may be others than CLASS_WEIGHTS.
    """
    faults = size_faults(values) + channel_faults(values) + class_faults(values)
    faults += _regex_faults(values) + _scale_faults(values) + _background_faults(values)
    return faults + _weight_faults(values) if trains else faults


def _regex_faults(constants: dict[str, Any]) -> list[str]:
    """Return what is wrong with GROUP_REGEX, in words."""
    try:
        re.compile(constants["GROUP_REGEX"])
    except re.error as error:
        regex = constants["GROUP_REGEX"]
        return [f"GROUP_REGEX: expected a regular expression, found {regex!r} ({error})"]
    return []


def _scale_faults(constants: dict[str, Any]) -> list[str]:
    """Return what is wrong with OBJECT_SCALE, in words."""
    scale = constants["OBJECT_SCALE"]
    if len(scale) == 2 and scale[0] <= scale[1]:
        return []
    shown = " ".join(map(str, scale))
    return [f"OBJECT_SCALE: expected two shares, the smaller one first, found {shown}"]


def _weight_faults(constants: dict[str, Any]) -> list[str]:
    """Return what is wrong with CLASS_WEIGHTS, in words."""
    weights = constants["CLASS_WEIGHTS"]
    if weights == "none":
        return []
    classes = len(constants["CLASSES"])
    if classes == 1:
        return [
            "CLASS_WEIGHTS: expected none with one class; its weight is POSITIVE_WEIGHT, such as "
            "--positive-weight 3"
        ]
    if isinstance(weights, list) and len(weights) != classes:
        return [
            f"CLASS_WEIGHTS: expected a weight for each of {classes} classes, found {len(weights)}"
        ]
    if constants["POSITIVE_WEIGHT"] != 1:
        return [
            "POSITIVE_WEIGHT: expected 1 with CLASS_WEIGHTS, which holds the weights of all "
            f"classes, found {constants['POSITIVE_WEIGHT']:g}"
        ]
    return []


def _background_faults(constants: dict[str, Any]) -> list[str]:
    """Return why photographs cannot be backgrounds, in words."""
    channels = constants["IN_CHANNELS"]
    if channels in (1, 3) or not constants["BACKGROUNDS_DIR"]:
        return []
    return [
        f"BACKGROUNDS_DIR: expected none with IN_CHANNELS {channels}: other photographs are gray "
        "or of three channels"
    ]


def _by_option(fault: str, given: dict[str, Any]) -> str:
    """Return a constant's fault under the name that the user has typed."""
    name, colon, description = fault.partition(":")
    if given.get(name) is None:
        return fault
    return option_name(name) + colon + description
