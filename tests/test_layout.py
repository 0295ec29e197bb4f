"""Rules of the layout: who imports whom, and what code looks like."""

import ast
import graphlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT

SCRIPTS = {"prepare_data", "explore", "evaluate", "inference", "export", "app", "train"}
MAX_ROOT_FILES = 12
MAX_FUNCTION_LINES = 50
ROOT_FILES = sorted(ROOT.glob("*.py"))
PACKAGE_FILES = sorted((ROOT / "carvana").rglob("*.py"))
PRODUCT_FILES = [*ROOT_FILES, *PACKAGE_FILES, *sorted((ROOT / "tools").glob("*.py"))]
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
SYSTEM = ROOT / "carvana/system.py"
SYSTEM_QUESTIONS = re.compile(  # that only SYSTEM asks
    r"sys\.platform|\bos\.name\b|platform\.system|hasattr\((os|signal|sys),|/proc\b|/dev/shm"
    r"|\bctypes\b|\bimport (resource|fcntl|msvcrt|winreg)\b|sched_[gs]etaffinity|os\.sysconf"
    r"|os\.fork|setpgrp|SIG(HUP|CHLD|ALRM|KILL|BREAK)|os\.symlink|winerror"
)
DEVICE_QUESTIONS = re.compile(r"device\S*\.type (==|!=|in|not) |\btorch\.(cuda|mps|backends)\b")
DEVICE_FILES = ("carvana/device.py", "carvana/distributed.py")  # that alone ask these
ASCII_FILES = {  # what these read and write as text is ASCII on every system
    *("carvana/history.py", "carvana/submission.py", "carvana/submission_settings.py"),
    "evaluate.py",
}


def module_name(path: Path) -> str:
    """Return the name by which a file of the project is imported."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in PRODUCT_FILES}
MODULES = {module_name(path) for path in PRODUCT_FILES}


def project_imports(path):
    """Return the names of the project's modules that a file imports, also inside functions."""
    imported = set()
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                imported.add(submodule if submodule in MODULES else node.module)
    return imported & MODULES


def nodes(kind):
    """Yield (where, node) of all nodes of a kind in product code."""
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, kind):
                yield f"{path.relative_to(ROOT)}:{node.lineno}", node


def contains(node, kind):
    return any(isinstance(inner, kind) for inner in ast.walk(node) if inner is not node)


def test_package_imports_nothing_of_the_root():
    outside = {
        (module_name(path), name)
        for path in PACKAGE_FILES
        for name in project_imports(path)
        if not name.startswith("carvana")
    }
    assert outside == set()


def test_package_imports_have_no_cycles():
    graph = {module_name(path): project_imports(path) for path in PACKAGE_FILES}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError


def test_scripts_do_not_import_each_other():
    assert {module_name(path) for path in ROOT_FILES} >= SCRIPTS
    for path in ROOT_FILES:
        others = SCRIPTS - {module_name(path)}
        assert not project_imports(path) & others, path


def test_only_one_file_asks_for_the_system():
    questions = [
        f"{path.relative_to(ROOT)}: {match[0]}"
        for path in PRODUCT_FILES
        for match in SYSTEM_QUESTIONS.finditer(path.read_text(encoding="utf-8"))
        if path != SYSTEM
    ]
    assert questions == []


def test_only_two_files_ask_what_the_device_is():
    others = [*ROOT_FILES, *PACKAGE_FILES]
    questions = [
        f"{path.relative_to(ROOT)}: {match[0]}"
        for path in others
        for match in DEVICE_QUESTIONS.finditer(path.read_text(encoding="utf-8"))
        if path.relative_to(ROOT).as_posix() not in DEVICE_FILES
    ]
    assert questions == []


def is_text_without_encoding(call):
    """Return whether a call opens, reads or writes a text file in the system's own encoding."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    keywords = {keyword.arg for keyword in call.keywords}
    if name in ("read_text", "write_text"):
        return "encoding" not in keywords
    if name != "open" or not isinstance(call.func, ast.Name):
        return False
    mode = call.args[1].value if len(call.args) > 1 else "r"
    is_null_device = ast.unparse(call.args[0]) == "os.devnull"
    return "b" not in mode and "encoding" not in keywords and not is_null_device


def test_text_files_are_opened_with_their_encoding():
    """That of Windows is not UTF-8."""
    without = {
        where.split(":")[0] for where, call in nodes(ast.Call) if is_text_without_encoding(call)
    }
    assert without <= ASCII_FILES


def test_buffers_are_not_viewed():
    """Python 3.12.1 crashes at its end if a traceback has held the view: io.BytesIO.getbuffer."""
    calls = [where for where, node in nodes(ast.Attribute) if node.attr == "getbuffer"]
    assert calls == []


def test_root_has_few_files():
    assert len(ROOT_FILES) <= MAX_ROOT_FILES


def test_functions_fit_a_screen():
    long = [
        where
        for where, node in nodes(FUNCTIONS)
        if node.end_lineno - node.lineno + 1 > MAX_FUNCTION_LINES
    ]
    assert long == []


def test_functions_are_not_nested():
    assert [where for where, node in nodes(FUNCTIONS) if contains(node, FUNCTIONS)] == []


def test_conditional_expressions_are_not_chained():
    assert [where for where, node in nodes(ast.IfExp) if contains(node, ast.IfExp)] == []


def test_design_lists_every_file():
    text = (ROOT / "docs/design.md").read_text(encoding="utf-8")
    files = text[text.index("## Rooms") : text.index("## Walks")]
    names = [path.stem for path in PRODUCT_FILES if path.parent.name != "rendering"]
    missing = [name for name in names if name != "__init__" and f"`{name}" not in files]
    assert [name for name in missing if f"/{name}" not in files] == []


OLDER_PYTHON = """
import runpy, sys
sys.version_info = (3, 9)
sys.argv = sys.argv[1:]
sys.path.insert(0, "")
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("script", sorted(SCRIPTS))
def test_older_python_is_refused_in_a_line(script):
    command = [sys.executable, "-c", OLDER_PYTHON, f"{script}.py", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: Python 3.10 or newer is needed, this is ")
    assert done.stderr.count("\n") == 1
    # Older ones read these files as a whole before they run the first line.
    for path in (f"{script}.py", "config.py", "carvana/__init__.py"):
        ast.parse((ROOT / path).read_text(encoding="utf-8"), feature_version=(3, 7))
