"""README.md, docs/ and the other documents: what they link to, how they read, what they run.

A block of commands or Python is run here, in a folder with small stand-ins for what documents
assume. What nothing runs has the reason in a line directly above it: <!-- not run: REASON -->.
"""

import argparse
import os
import re
import shlex
import shutil
import textwrap
import zipfile
from typing import NamedTuple
from unittest import mock

import numpy as np
import pytest
from helpers import (
    BEST,
    LAST,
    ROOT,
    ramp,
    run_script,
    scene,
    split_folders,
    tiny_options,
    working_folder,
    write_pairs,
)
from PIL import Image
from torch.distributed.run import get_args_parser

import config
from carvana import export_formats, exporting, options
from carvana.errors import UserError
from carvana.rendering import render_set

GUIDES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md"))
DOCUMENTS = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "weights/README.md", *GUIDES]
WRITTEN_SCRIPTS = ("exports/predict.py",)  # by export.py; tests/test_export.py runs it
MAX_WORDS = 60  # of a paragraph, a list item, a summary
MAX_SUMMARY_LINES = 3
LANGUAGES = {"bash", "python", "text", "json"}
NOT_RUN = re.compile("<!-- not run: (.*) -->")
# Commands in blocks that no test runs, as they are no scripts of the project.
FOREIGN = {"pip", "pytest", "ruff", "mypy", "git", "cd", "jupyter", "tensorboard", ".ci/run"}
# Sections whose blocks other tests run, with files that fit them.
SECTIONS_ELSEWHERE = {
    ("docs/your-data.md", "An example from folder to model"): (
        "tests/test_your_data.py::test_document_is_right"
    ),
    ("docs/your-data.md", "Many classes in scenes"): (
        "tests/test_your_data.py::test_scenes_of_your_own_are_trained_on_as_documented"
    ),
    ("docs/your-data.md", "Small things in large pictures"): (
        "tests/test_tiles.py::test_small_things_are_trained_on_as_documented"
    ),
    ("docs/your-data.md", "More than three channels"): (
        "tests/test_channels.py::test_document_on_channels_is_right"
    ),
    ("docs/your-data.md", "Rendered street scenes"): (
        "tests/test_rendering.py::test_scenes_are_trained_on_as_documented"
    ),
    ("docs/your-data.md", "From elsewhere"): (
        "tests/test_layouts.py::test_document_is_right_about"
    ),
}
# What needs a page that is being served: a script, and Python that begins with this.
PAGE_SCRIPT, PAGE_CLIENT = "app.py", "from gradio_client"
PAGE_TEST = "tests/test_app.py::test_example_of_the_documents_runs"
# What stands for a word in capitals where 1 does not fit.
STAND_INS = {"SHARE": "0.5", "F": "0.5", "T": "0.5", "RATE": "0.5", "NAME": "small"}
ELIDED = ("...", "…", "OPTIONS")
COMMAND = re.compile(r"(python \S+\.py|torchrun|pip install)\b")
PATH = re.compile(r"(?:tests|tools|docs|carvana|weights)/[\w.*/-]*\.\w+")


# ---------------------------------------------------------------- reading documents


class Piece(NamedTuple):
    """A paragraph, heading, table, quotation, list item, comment or fenced block."""

    kind: str
    where: str  # file:line
    text: str
    section: str  # the heading of the second level that it stands below
    language: str = ""  # of a fenced block
    reason: str | None = None  # why a fenced block is not run


def read_pieces(path):
    """Return the pieces of a document, in order."""
    lines = path.read_text(encoding="utf-8").splitlines()
    pieces = []
    section = ""
    end = 0
    while end < len(lines):
        start, kind = end, kind_of(lines[end])
        end = end_of_piece(lines, start, kind)
        text = "\n".join(lines[start:end])
        where = f"{name_of(path)}:{start + 1}"
        if text.startswith("## "):
            section = text.removeprefix("## ").strip()
        if kind == "fence":
            reason = NOT_RUN.fullmatch(lines[start - 1].strip()) if start else None
            inside = textwrap.dedent("\n".join(lines[start + 1 : end - 1]))
            language = lines[start].strip().strip("`").strip()
            pieces.append(Piece(kind, where, inside, section, language, reason and reason[1]))
        elif kind:
            pieces.append(Piece(kind, where, text, section))
    return pieces


def name_of(path):
    """Return how messages call a document."""
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name


def kind_of(line):
    """Return what a line begins; "" for an empty one."""
    text = line.strip()
    starts = {"```": "fence", "|": "table", ">": "quote", "<!--": "comment"}
    for start, kind in starts.items():
        if text.startswith(start):
            return kind
    if re.match("#{1,6} ", line):
        return "heading"
    if re.match(r"([-*+]|\d+[.)]) ", text):
        return "item"
    return "paragraph" if text else ""


def end_of_piece(lines, start, kind):
    """Return the index of the first line that is no part of the piece that begins at start."""
    end = start + 1
    if kind == "fence":
        while end < len(lines) and kind_of(lines[end]) != "fence":
            end += 1
        return end + 1
    if kind == "comment":
        while "-->" not in lines[end - 1] and end < len(lines):
            end += 1
        return end
    goes_on = {"table": "table", "quote": "quote", "paragraph": "paragraph", "item": "paragraph"}
    while end < len(lines) and kind in goes_on and kind_of(lines[end]) == goes_on[kind]:
        end += 1
    return end


def prose(path):
    """Return the pieces of a document that are neither blocks nor comments."""
    return [piece for piece in read_pieces(path) if piece.kind not in ("fence", "comment")]


def code_spans(piece):
    """Return what stands between backticks in a piece, each in one line."""
    text = piece.text.replace("\n", " ").replace("\\|", "|")
    return [" ".join(span.split()) for span in re.findall("`([^`]+)`", text)]


def count_words(text):
    """Return the number of words that a reader sees, without pictures and the targets of links."""
    text = re.sub(r"!\[[^\]]*\]\([^)]*\)", "", text)
    text = re.sub(r"\]\([^)]*\)", "]", text)
    text = re.sub(r"^\s*([-*+>]|\d+[.)]) ", "", text, flags=re.MULTILINE)
    return len(text.split())


def check(faults):
    """Fail with all faults, one a line."""
    assert not faults, "\n".join(faults)


# ---------------------------------------------------------------- links and names


def anchors(path):
    """Return the anchors of a document's headings, by GitHub's rules, and those of its own."""
    found = set()
    for piece in prose(path):
        found |= set(re.findall(r'<a (?:id|name)="([^"]+)"', piece.text))
        if piece.kind != "heading":
            continue
        title = piece.text.lstrip("#").strip().lower()
        title = re.sub(r"\]\([^)]*\)", "]", title)
        slug = re.sub(r"[^\w\- ]", "", title).replace(" ", "-")
        name, count = slug, 0
        while name in found:
            count += 1
            name = f"{slug}-{count}"
        found.add(name)
    return found


def link_targets(piece):
    """Return where the links and pictures of a piece lead."""
    text = re.sub("`[^`]*`", "code", piece.text)
    targets = re.findall(r"\]\(\s*<?([^)\s>]+)", text)
    targets += re.findall(r"^\[[^\]]+\]:\s*(\S+)", text, re.MULTILINE)
    return targets + re.findall(r'(?:src|href)="([^"]+)"', text)


def broken_links(path):
    """Return the relative links of a document that lead nowhere."""
    faults = []
    for piece in prose(path):
        for target in link_targets(piece):
            if re.match("[a-z]+:", target):
                continue
            name, _, anchor = target.partition("#")
            file = path.parent / name if name else path
            if not file.exists():
                faults.append(f"{piece.where}: no file {target}")
            elif anchor and anchor not in anchors(file):
                faults.append(f"{piece.where}: no heading {target}")
    return faults


def missing_names(path):
    """Return the files and tests of the project that a document names and that do not exist."""
    tests = {
        name
        for file in (ROOT / "tests").glob("*.py")
        for name in re.findall(r"^def (test_\w+)", file.read_text(encoding="utf-8"), re.MULTILINE)
    }
    faults = []
    for piece in read_pieces(path):
        texts = code_spans(piece)
        if piece.kind == "fence" and piece.language == "bash":
            texts = [piece.text]
        for word in " ".join(texts).split():
            name, _, test = word.partition("::")
            if PATH.fullmatch(name) and not list(ROOT.glob(name)):
                faults.append(f"{piece.where}: no file {name}")
            if re.fullmatch(r"test_[a-z\d]+_\w+", name):  # but not the folder test_hq
                test = name
            if test and test not in tests:
                faults.append(f"{piece.where}: no test {test}")
    return faults


@pytest.mark.parametrize("document", DOCUMENTS)
def test_document_links_to_what_exists(document):
    check(broken_links(ROOT / document))


@pytest.mark.parametrize("document", DOCUMENTS)
def test_document_names_files_and_tests_that_exist(document):
    check(missing_names(ROOT / document))


# ---------------------------------------------------------------- style


def summary_faults(path):
    """Return what is wrong with the beginning of a guide: title, then a short quotation."""
    title, summary, *_ = [*read_pieces(path), None, None]
    if title is None or title.kind != "heading" or not title.text.startswith("# "):
        return [f"{name_of(path)}: the first line is no title"]
    if summary is None or summary.kind != "quote":
        return [f"{name_of(path)}: no summary (> ...) below the title"]
    lines = summary.text.count("\n") + 1
    words = count_words(summary.text)
    if lines > MAX_SUMMARY_LINES or words > MAX_WORDS:
        return [f"{summary.where}: a summary of {lines} lines, {words} words"]
    return []


def long_pieces(path):
    """Return the paragraphs and list items of a document that are too long."""
    counts = [(p, count_words(p.text)) for p in prose(path) if p.kind in ("paragraph", "item")]
    return [f"{piece.where}: {words} words" for piece, words in counts if words > MAX_WORDS]


def block_faults(path):
    """Return the blocks of no or of a wrong language, and reasons without a block below them."""
    pieces = read_pieces(path)
    blocks = [piece for piece in pieces if piece.kind == "fence"]
    faults = [
        f"{block.where}: a block of language {block.language!r}, expected {sorted(LANGUAGES)}"
        for block in blocks
        if block.language not in LANGUAGES
    ]
    faults += [
        f"{block.where}: commands in a block of language text, expected bash"
        for block in blocks
        if block.language == "text" and COMMAND.match(block.text)
    ]
    comments = [piece for piece in pieces if "not run" in piece.text and piece.kind == "comment"]
    reasons = [block.reason for block in blocks if block.reason is not None]
    if len(comments) != len(reasons) or not all(reason.strip() for reason in reasons):
        found = f"{len(comments)} comments not run, of {len(reasons)} blocks"
        faults.append(f"{name_of(path)}: {found}")
    return faults


@pytest.mark.parametrize("document", GUIDES)
def test_guide_begins_with_a_title_and_a_summary(document):
    check(summary_faults(ROOT / document))


@pytest.mark.parametrize("document", [name for name in DOCUMENTS if name != "CHANGELOG.md"])
def test_document_has_short_paragraphs(document):
    check(long_pieces(ROOT / document))


@pytest.mark.parametrize("document", DOCUMENTS)
def test_document_says_the_language_of_every_block(document):
    check(block_faults(ROOT / document))


# ---------------------------------------------------------------- commands


class Command(NamedTuple):
    """One command of a block or of a text."""

    where: str
    environment: dict[str, str]
    words: list[str]

    @property
    def shown(self):
        return f"{self.where}: {shlex.join(self.words)}"


def split_commands(text, where):
    """Return the commands of shell text, without comments and where their output goes."""
    commands = []
    text = re.sub(r"\$\([^()]*\)", "1", text.replace("\\\n", " "))
    for line in text.splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="&;|<>")
        lexer.whitespace_split = True
        words = []
        for word in [*lexer, ";"]:
            if not word or word.strip("&;|"):
                words.append(word)
                continue
            while ">" in words:
                del words[words.index(">") : words.index(">") + 2]
            first = 0
            while first < len(words) and re.match("[A-Z_]+=", words[first]):
                first += 1
            if words[first:]:
                environment = dict(word.split("=", 1) for word in words[:first])
                commands.append(Command(where, environment, words[first:]))
            words = []
    return commands


def script_of(words):
    """Return the script that a command runs and its arguments; None if it is no file.

    Raises:
        ValueError: torchrun does not know its own options.
    """
    if words[0] == "srun":
        words = words[1:]
    if words[0] == "torchrun":
        try:
            args = get_args_parser().parse_args(words[1:])
        except SystemExit:
            raise ValueError(f"torchrun refuses {shlex.join(words)}") from None
        return args.training_script, args.training_script_args
    if words[0] == "python" and len(words) > 1 and words[1].endswith(".py"):
        return words[1], words[2:]
    return None


def documented_commands(path):
    """Yield the commands of scripts in blocks of bash, and those between backticks."""
    for piece in read_pieces(path):
        if piece.kind == "fence":
            if piece.language == "bash":
                yield from split_commands(piece.text, piece.where)
            continue
        for span in code_spans(piece):
            if re.match(r"(python|torchrun) .*\.py\b", span):
                yield from split_commands(span, piece.where)


class Parsed(BaseException):
    """Ends a script once its options are parsed; nothing catches it."""


class Parsing:
    """Stands for ArgumentParser.parse_known_args: parses, then ends the script."""

    parse_known_args = argparse.ArgumentParser.parse_known_args

    def __init__(self, is_elided):
        self.is_elided = is_elided

    def __get__(self, parser, _):
        """Return what is called as the parser's method."""
        return lambda *arguments: self.parse(parser, *arguments)

    def parse(self, parser, *arguments):
        for action in parser._actions:
            action.required = action.required and not self.is_elided
        args, unknown = Parsing.parse_known_args(parser, *arguments)
        if unknown:
            raise UserError(f"unknown: {shlex.join(unknown)}")
        if self.is_elided and getattr(args, "preset", "") in config.PRESETS:
            args.preset = None  # what it asks for may stand in the part that is left out
        options.resolve(config, args)
        raise Parsed


def complaint(script, words):
    """Return what the script's own parser says against the words; "" if it takes them."""
    if script in WRITTEN_SCRIPTS:
        return ""
    if not (ROOT / script).is_file():
        return f"no script {script}"
    if "--help" in words:
        return ""
    parsing = Parsing(not words or not set(words).isdisjoint(ELIDED))
    words = [word for word in words if word not in ELIDED]
    with mock.patch.object(argparse.ArgumentParser, "parse_known_args", parsing):
        try:
            return run_script(ROOT, script, *words, status=2).stderr
        except Parsed:
            return ""


def fill_in(word):
    """Return what can stand for a word in capitals, such as S or CHECKPOINT; other words as is."""
    if re.fullmatch("[A-Z][A-Z_]*", word) and word not in ELIDED:
        return STAND_INS.get(word, "1")
    return word


def refused_commands(path):
    """Return the commands of a document that the scripts' parsers refuse."""
    faults = []
    for command in documented_commands(path):
        try:
            script = script_of([fill_in(word) for word in command.words])
            answer = complaint(*script) if script else ""
        except ValueError as error:
            answer = error
        if answer:
            faults.append(f"{command.shown}: {answer}")
    return faults


@pytest.mark.parametrize("document", DOCUMENTS)
def test_document_has_commands_that_scripts_accept(document):
    check(refused_commands(ROOT / document))


# ---------------------------------------------------------------- blocks that are run


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory):
    """A folder with what documents assume: photographs, archives, data sets and checkpoints."""
    folder = tmp_path_factory.mktemp("stand_ins")
    Image.fromarray(scene(1, 96, 144)[0]).save(folder / "car.jpg")
    write_pairs(folder / "photos", folder / "labels", cars=4)
    for path in (folder / "labels").iterdir():  # of one class, or of several as their numbers
        with Image.open(path) as mask:
            Image.fromarray(np.array(mask)).save(path.with_name(f"{path.stem}.png"))
        path.unlink()
    write_archives(folder)
    for name in ("backgrounds", "test_hq"):
        (folder / name).mkdir()
    for number in range(3):
        Image.fromarray(ramp(60 + number)).save(folder / f"backgrounds/{number}.jpg")
        Image.fromarray(scene(number)[0]).save(folder / f"test_hq/{number:012x}_01.jpg")
    shutil.copy(folder / "backgrounds/0.jpg", folder / "street.jpg")
    train_images, train_masks, val_images, val_masks = split_folders(folder)
    write_pairs(train_images, train_masks, cars=4)
    write_pairs(val_images, val_masks, cars=2, first=100)
    write_pairs(folder / "data/test_images", folder / "data/test_masks", cars=2, first=200)
    for name, kind in (("demo", "cars"), ("parts", "parts")):
        size = {"cars": 4, "val_cars": 2, "angles": 2, "size": (48, 72)}
        render_set(folder / "data" / name, **size, kind=kind)
    run_script(folder, "train.py", *tiny_options(NUM_EPOCHS=1, GALLERY_MAX=2))
    for name in (BEST, LAST):
        shutil.copy(folder / name, folder / f"demo_{name.removeprefix('my_')}")
    return folder


def write_archives(folder):
    """Write train.zip and train_masks.zip as Kaggle's are, and the zip that holds both."""
    write_pairs(folder / "unpacked/train", folder / "unpacked/train_masks", cars=6)
    for name in ("train", "train_masks"):
        shutil.make_archive(str(folder / name), "zip", folder / "unpacked", name)
    shutil.rmtree(folder / "unpacked")
    with zipfile.ZipFile(folder / "carvana-image-masking-challenge.zip", "w") as outer:
        for name in ("train.zip", "train_masks.zip"):
            outer.write(folder / name, name)


@pytest.fixture
def folder(tmp_path, stand_ins, monkeypatch):
    """A working folder of the test's own with the stand-ins."""
    shutil.copytree(stand_ins, tmp_path, dirs_exist_ok=True)
    monkeypatch.setattr(exporting, "TURNS", 1)  # of measuring latency, which takes seconds
    return tmp_path


def less_work(script, words):
    """Return the words of a command with further ones that make it small."""
    if "--help" in words:
        return words
    if script == "train.py":
        return [*words, *less_training(words)]
    if script == "prepare_data.py":
        return [*words, *less_rendering(words)]
    if script == "export.py":
        return [*words, *less_export(words)]
    return words


def less_training(words):
    """Return options for a training that takes a second, of the same kind."""
    cfg = options.load(config, words)
    changes = {"NUM_EPOCHS": 1, "SAVE_IMAGES_MAX": 1, "GALLERY_MAX": 2, "BATCHNORM_IMAGES": 8}
    if cfg.INIT_WEIGHTS:  # which belong to a network, one with deep levels
        changes |= {"FEATURES": cfg.FEATURES, "IMAGE_HEIGHT": 64, "IMAGE_WIDTH": 96}
    if not cfg.IMAGE_HEIGHT:  # each picture at its own size
        changes |= {"IMAGE_HEIGHT": 0, "IMAGE_WIDTH": 0, "CROPS_PER_IMAGE": 1}
    return tiny_options(**changes)


def less_rendering(words):
    """Return options that replace what is in place and, of a demo, render little."""
    if "--check" in words:
        return []
    if "--demo" not in words:
        return ["--force"]
    count = ["--scenes", "4"] if "--scenes" in words else ["--cars", "4", "--angles", "2"]
    return ["--force", "--size", "48", "72", *count]


def less_export(words):
    """Return options that export a small network in few formats."""
    formats = [] if "--formats" in words else ["--formats", "onnx", "int8"]
    return ["--model", BEST, *formats]


def run_command(folder, command):
    """Run a command of a block if it is a script's; skip it if it is foreign.

    Raises:
        AssertionError: the script ends with an error, or nothing is known of the command.
    """
    words = command.words
    script = script_of(words)
    if script is None:
        is_foreign = words[0] in FOREIGN or words[:2] in (["python", "-m"], ["python", "-c"])
        assert is_foreign, f"{command.shown}: no script and not in FOREIGN; say why it is not run"
        return
    assert words[0] == "python", f"{command.shown}: say why it is not run"
    name, arguments = script
    if name == PAGE_SCRIPT:
        return
    try:
        with mock.patch.dict(os.environ, command.environment):
            run_script(folder, name, *less_work(name, arguments))
    except (AssertionError, UserError) as error:
        raise AssertionError(f"{command.shown}: {error}") from error


def is_run_elsewhere(document, piece):
    """Return whether another test runs a block."""
    elsewhere = (document, piece.section) in SECTIONS_ELSEWHERE
    return elsewhere or piece.text.startswith(PAGE_CLIENT)


def run_blocks(path, folder, document=""):
    """Run the blocks of a document in order, Python's in one namespace."""
    namespace = {"__name__": "__main__"}
    for piece in read_pieces(path):
        if piece.reason is not None or is_run_elsewhere(document, piece):
            continue
        if "weights/" in piece.text:
            shutil.copytree(ROOT / "weights", folder / "weights", dirs_exist_ok=True)
        if piece.language == "bash":
            for command in split_commands(piece.text, piece.where):
                run_command(folder, command)
        elif piece.language == "python":
            with working_folder(folder):
                exec(compile(piece.text, piece.where, "exec"), namespace)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_document_has_blocks_that_run(document, folder):
    text = (ROOT / document).read_text(encoding="utf-8")
    if "\npython export.py" in text and export_formats.beyond_torch(["onnx"]):
        pytest.skip("this torch is too old to write ONNX")
    run_blocks(ROOT / document, folder, document)


def test_blocks_that_run_elsewhere_and_their_tests_exist():
    for document, section in SECTIONS_ELSEWHERE:
        assert any(piece.section == section for piece in read_pieces(ROOT / document)), section
    for test in {*SECTIONS_ELSEWHERE.values(), PAGE_TEST}:
        file, _, name = test.partition("::")
        assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8"), test


# ---------------------------------------------------------------- documents that are wrong


def write(folder, text):
    """Write a document, and another one for it to link to."""
    other = "# Other\n\n## A `code` heading: two\n\n## Twice\n\n## Twice\n"
    (folder / "other.md").write_text(other)
    path = folder / "made.md"
    path.write_text(textwrap.dedent(text), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "link",
    ["other.md", "other.md#a-code-heading-two", "other.md#twice-1", "#here", "https://a.b/c#d"],
)
def test_links_that_lead_somewhere_are_no_faults(tmp_path, link):
    assert broken_links(write(tmp_path, f"# Here\n\nA [link]({link}).\n")) == []


@pytest.mark.parametrize(
    "text, fault",
    [
        ("[a](missing.md)", "made.md:3: no file missing.md"),
        ("![a](missing.png)", "made.md:3: no file missing.png"),
        ('<img src="missing.png">', "made.md:3: no file missing.png"),
        ("[a](#nowhere)", "made.md:3: no heading #nowhere"),
        ("[`a`](other.md#twice-2)", "made.md:3: no heading other.md#twice-2"),
        ("| [a](other.md#Twice) |", "made.md:3: no heading other.md#Twice"),
    ],
)
def test_broken_links_are_found(tmp_path, text, fault):
    assert broken_links(write(tmp_path, f"# Here\n\n{text}\n")) == [fault]


@pytest.mark.parametrize(
    "text, fault",
    [
        ("`tests/test_missing.py`", "made.md:1: no file tests/test_missing.py"),
        ("`pytest carvana/missing_*.py`", "made.md:1: no file carvana/missing_*.py"),
        ("```bash\npython tools/missing.py\n```", "made.md:1: no file tools/missing.py"),
        ("`test_of_nothing_at_all`", "made.md:1: no test test_of_nothing_at_all"),
        ("`tests/helpers.py::test_no`", "made.md:1: no test test_no"),
    ],
)
def test_names_of_what_is_missing_are_found(tmp_path, text, fault):
    assert missing_names(write(tmp_path, text)) == [fault]


@pytest.mark.parametrize(
    "text, fault",
    [
        ("No title.\n", "the first line is no title"),
        ("# Title\n\nNo summary.\n", "no summary"),
        ("# Title\n\n> a\n> b\n> c\n> d\n", "a summary of 4 lines, 4 words"),
        (f"# Title\n\n> {'a ' * 61}\n", "a summary of 1 lines, 61 words"),
    ],
)
def test_guides_without_a_short_summary_are_found(tmp_path, text, fault):
    (found,) = summary_faults(write(tmp_path, text))
    assert fault in found


def test_long_paragraphs_and_items_are_found(tmp_path):
    words = "a `b c`\n  [d](other.md)\n  " * 15  # 60
    long = f"- {words}\n- {words}more\n\n{words}\n\n{words}more\n\n"
    text = f"# Title\n\n{long}| {'word ' * 99} |\n\n<!-- {'word ' * 99} -->\n"
    found = long_pieces(write(tmp_path, text))
    assert [fault.partition(": ")[2] for fault in found] == ["61 words", "61 words"]


@pytest.mark.parametrize(
    "text, fault",
    [
        ("```\na\n```", "language ''"),
        ("```sh\na\n```", "language 'sh'"),
        ("```text\npython train.py\n```", "commands in a block of language text"),
        ("<!-- not run: hours -->\n\n```bash\na\n```", "1 comments not run, of 0 blocks"),
        ("<!-- not run:  -->\n```bash\na\n```", "1 comments not run, of 1 blocks"),
    ],
)
def test_blocks_without_language_or_reason_are_found(tmp_path, text, fault):
    (found,) = block_faults(write(tmp_path, text))
    assert fault in found


@pytest.mark.parametrize(
    "text",
    [
        "`python train.py --preset small --num-epochs N --seed S`",
        "| `python train.py --preset scenes ...` | and `python inference.py` |",
        "`python inference.py --img FOLDER --model CKPT OPTIONS`",
        "`torchrun --nproc-per-node N train.py --batch-size 8`",
        "```bash\nX=1 python evaluate.py --model a.tar | head > b  # --no\npip a && git b\n```",
        "```bash\npython train.py \\\n  --features 4 8  # --no\n```",
        "```text\npython train.py --no\n```",
    ],
)
def test_commands_that_scripts_accept_are_no_faults(tmp_path, text):
    assert refused_commands(write(tmp_path, text)) == []


@pytest.mark.parametrize(
    "text, fault",
    [
        ("`python train.py --epoch 3`", "--epoch"),
        ("`python train.py --num-epochs three`", "expected a whole number"),
        ("`python train.py --preset smal ...`", "there is no preset smal"),
        ("| `python evaluate.py --sede 1` |", "--sede"),
        ("```bash\npip install a && python inference.py --img a --tta 1 --fits\n```", "--fits"),
        ("```bash\npython prepare_data.py a.zip --val-fraction 2\n```", "expected a share"),
        ("`torchrun --processes 4 train.py`", "torchrun refuses"),
        ("`torchrun --nproc-per-node 4 train.py --epoch 3`", "--epoch"),
        ("`python missing.py --a`", "no script missing.py"),
        ("`python tools/damage.py --modell a`", "--modell"),
    ],
)
def test_commands_that_scripts_refuse_are_found(tmp_path, text, fault):
    (found,) = refused_commands(write(tmp_path, text))
    assert fault in found


@pytest.mark.parametrize(
    "text, fault",
    [
        ("```bash\npython evaluate.py --model missing.tar\n```", "no model 'missing.tar'"),
        ("```bash\nunzip a.zip\n```", "no script and not in FOREIGN"),
        ("```bash\ntorchrun --nproc-per-node 2 train.py\n```", "say why it is not run"),
        ("```python\nassert False, 'wrong'\n```", "wrong"),
    ],
)
def test_blocks_that_fail_are_found_unless_they_say_why(tmp_path, text, fault):
    with pytest.raises(AssertionError, match=re.escape(fault)):
        run_blocks(write(tmp_path, text), tmp_path)
    run_blocks(write(tmp_path, f"<!-- not run: it fails -->\n{text}"), tmp_path)


def test_blocks_run_in_order_in_one_folder(folder):
    text = """
    ```bash
    pip install x && python prepare_data.py train.zip train_masks.zip  # first
    python train.py --preset small --num-epochs 9
    ```

    ```python
    from pathlib import Path
    state = Path("best_checkpoint.pth.tar").read_bytes()
    ```

    ```python
    assert len(state) < 1e6 and not Path("data/test_masks").exists()
    Path("done").touch()
    ```
    """
    run_blocks(write(folder, text), folder)
    assert (folder / "done").exists()
