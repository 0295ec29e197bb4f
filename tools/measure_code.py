"""Measure how the product code reads, tests apart: sizes, complexity, nesting, imports.

python tools/measure_code.py                the working tree
python tools/measure_code.py HEAD~20 HEAD   commits, side by side

Every tree is formatted by ruff at 100 columns first, so that figures compare.
"""

import argparse
import ast
import collections
import io
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WORKING_TREE = "working tree"
LINE_LENGTH = 100
MAX_FUNCTION = 50  # lines
MAX_COMPLEXITY = 12
MAX_PARAMETERS = 6
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
IMPORTS = (ast.Import, ast.ImportFrom)
Trees = dict[str, ast.Module]  # module name -> its syntax


# ---------------------------------------------------------------- trees


def check_out(revision: str, folder: Path) -> None:
    """Put the product code of a commit, or of the working tree, into a folder, formatted."""
    if revision == WORKING_TREE:
        command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"]
        for name in _run(command, ROOT).decode().split():
            if (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / name, folder / name)
    else:
        archive = _run(["git", "archive", revision], ROOT)
        with tarfile.open(fileobj=io.BytesIO(archive)) as files:
            files.extractall(folder, filter="data")
    shutil.rmtree(folder / "tests", ignore_errors=True)
    (folder / "pyproject.toml").unlink(missing_ok=True)
    _run(["ruff", "format", "--quiet", "--line-length", str(LINE_LENGTH), "."], folder)


def _run(command: list[str], folder: Path) -> bytes:
    return subprocess.run(command, cwd=folder, check=True, stdout=subprocess.PIPE).stdout


def parse_modules(folder: Path) -> tuple[Trees, list[str], collections.Counter]:
    """Return the syntax of each module by its dotted name, all lines, and how many of a kind."""
    trees = {}
    lines = []
    kinds = collections.Counter()
    for path in sorted(folder.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        parts = path.relative_to(folder).with_suffix("").parts
        name = ".".join(parts)
        trees[name] = ast.parse(text)
        lines += text.splitlines()
        kinds.update(line_kinds(trees[name], text.splitlines()))
    return trees, lines, kinds


def line_kinds(tree: ast.Module, lines: list[str]) -> Iterator[str]:
    """Yield what each line is: blank, comment, docstring, import, signature or code."""
    kinds = dict.fromkeys(range(1, len(lines) + 1), "code")
    for node in find(tree, (*FUNCTIONS, ast.ClassDef, ast.Module)):
        if isinstance(node, FUNCTIONS):
            kinds.update(dict.fromkeys(range(node.lineno, node.body[0].lineno), "signature"))
        if ast.get_docstring(node) is not None:
            text = node.body[0]
            kinds.update(dict.fromkeys(range(text.lineno, text.end_lineno + 1), "docstring"))
    for node in find(tree, IMPORTS):
        kinds.update(dict.fromkeys(range(node.lineno, node.end_lineno + 1), "import"))
    for number, line in enumerate(lines, 1):
        if not line.strip():
            yield "blank"
        elif line.strip().startswith("#"):
            yield "comment"
        else:
            yield kinds[number]


# ---------------------------------------------------------------- figures


def measure(revision: str) -> dict[str, str]:
    """Return {figure: value} of a commit or of the working tree."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        check_out(revision, folder)
        complex_functions = count_complex(folder)
        trees, lines, kinds = parse_modules(folder)
    functions = [node for tree in trees.values() for node in find(tree, FUNCTIONS)]
    lengths = [function.end_lineno - function.lineno + 1 for function in functions]
    names = {module: len(top_level_names(tree)) for module, tree in trees.items()}
    largest = max(names, key=names.get)
    nodes = sum(1 for tree in trees.values() for _ in ast.walk(tree))
    percentile = statistics.quantiles(lengths, n=20)[-1]
    return {
        "lines": f"{len(lines):,}",
        "of these blank, comments, docstrings": _sum_of(kinds, "blank", "comment", "docstring"),
        "of these imports and signatures": _sum_of(kinds, "import", "signature"),
        "of these other code": _sum_of(kinds, "code"),
        "AST nodes": f"{nodes:,}",
        "modules, of these at the root": f"{len(trees)}, {sum('.' not in m for m in trees)}",
        "import levels": str(import_levels(trees)),
        f"lines over {LINE_LENGTH} columns": str(sum(len(line) > LINE_LENGTH for line in lines)),
        "functions": str(len(functions)),
        "function length, 95th percentile / longest": f"{percentile:.0f} / {max(lengths)}",
        f"functions over {MAX_FUNCTION} lines": str(sum(n > MAX_FUNCTION for n in lengths)),
        f"functions of complexity over {MAX_COMPLEXITY}": str(complex_functions),
        f"functions of over {MAX_PARAMETERS} parameters": str(count_many_parameters(functions)),
        "nested functions": str(count_inside(functions, FUNCTIONS)),
        "imports inside functions": str(count_inside(functions, IMPORTS)),
        "conditional expressions": str(sum(count(tree, ast.IfExp) for tree in trees.values())),
        "chained conditional expressions": str(sum(map(count_chained, trees.values()))),
        "top-level names of the largest module": f"{names[largest]} ({largest})",
    }


def _sum_of(kinds: collections.Counter, *names: str) -> str:
    return f"{sum(kinds[name] for name in names):,}"


def find(tree: ast.AST, kinds: type | tuple[type, ...]) -> Iterator[ast.AST]:
    """Yield the nodes of some kinds."""
    return (node for node in ast.walk(tree) if isinstance(node, kinds))


def count(tree: ast.AST, kinds: type | tuple[type, ...]) -> int:
    """Return how many nodes of some kinds there are."""
    return sum(1 for _ in find(tree, kinds))


def count_complex(folder: Path) -> int:
    """Return how many functions exceed MAX_COMPLEXITY (McCabe, by ruff)."""
    command = ["ruff", "check", "--isolated", "--exit-zero", "--quiet", "--select", "C901"]
    command += ["--config", f"lint.mccabe.max-complexity={MAX_COMPLEXITY}"]
    command += ["--output-format", "concise", "."]
    return len(_run(command, folder).splitlines())


def count_many_parameters(functions: list) -> int:
    """Return how many functions have over MAX_PARAMETERS parameters, self and cls apart."""
    total = 0
    for function in functions:
        arguments = function.args
        names = [a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
        total += len([name for name in names if name not in ("self", "cls")]) > MAX_PARAMETERS
    return total


def count_inside(functions: list, kinds: type | tuple[type, ...]) -> int:
    """Return how many nodes of some kinds stand inside of functions, each counted once."""
    inside = {
        id(node) for function in functions for node in find(function, kinds) if node is not function
    }
    return len(inside)


def count_chained(tree: ast.AST) -> int:
    """Return how many conditional expressions hold another one as a result."""
    return sum(
        isinstance(expression.body, ast.IfExp) or isinstance(expression.orelse, ast.IfExp)
        for expression in find(tree, ast.IfExp)
    )


def top_level_names(tree: ast.Module) -> set[str]:
    """Return the names that a module defines, imports apart."""
    names = set()
    for statement in tree.body:
        if isinstance(statement, (*FUNCTIONS, ast.ClassDef)):
            names.add(statement.name)
        elif isinstance(statement, ast.Assign | ast.AnnAssign):
            names |= {name.id for name in find(statement, ast.Name) if _is_stored(name)}
    return names


def _is_stored(name: ast.Name) -> bool:
    return isinstance(name.ctx, ast.Store)


def import_levels(trees: Trees) -> int:
    """Return the length of the longest chain of imports between modules."""
    imports = {
        module: imported_modules(tree.body, trees) - {module} for module, tree in trees.items()
    }
    levels = collections.Counter()
    for _ in trees:  # each round settles at least one more level
        for module, targets in imports.items():
            levels[module] = 1 + max((levels[target] for target in targets), default=0)
    return min(max(levels.values()), len(trees))


def imported_modules(nodes: Iterable[ast.AST], trees: Trees) -> set[str]:
    """Return which of the project's modules these nodes of a module's syntax import."""
    targets = set()
    for statement in nodes:
        if isinstance(statement, ast.Import):
            targets |= {alias.name for alias in statement.names}
        elif isinstance(statement, ast.ImportFrom) and statement.module:
            targets.add(statement.module)
            targets |= {f"{statement.module}.{alias.name}" for alias in statement.names}
    packages = {f"{target}.__init__" for target in targets}
    return (targets | packages) & trees.keys()


def main() -> None:
    """Print a table with a column for each commit."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("revisions", nargs="*", default=[WORKING_TREE], metavar="COMMIT")
    revisions = parser.parse_args().revisions
    if not shutil.which("ruff"):
        sys.exit("error: ruff is not installed; pip install -r requirements-dev.txt")
    columns = [measure(revision) for revision in revisions]
    print(f"| | {' | '.join(revisions)} |\n|---|{'---:|' * len(revisions)}")
    for figure in columns[0]:
        print(f"| {figure} | {' | '.join(column[figure] for column in columns)} |")


if __name__ == "__main__":
    main()
