"""Scripts as processes of their own; most other tests run them inside of pytest."""

import os
import subprocess
import sys

import pytest
from helpers import ROOT, run_process

SCRIPTS = ("prepare_data", "explore", "train", "evaluate", "inference", "export", "app")
RUN_AND_TELL = """
import runpy, sys
sys.argv = [sys.argv[1], "--nope"]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as exit:
    print(exit.code, "torch" in sys.modules)
"""


@pytest.mark.parametrize("script", SCRIPTS)
def test_script_answers_wrong_options_without_importing_torch(script, tmp_path):
    """Importing it takes seconds."""
    command = [sys.executable, "-c", RUN_AND_TELL, ROOT / f"{script}.py"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout == "2 False\n"
    assert done.stderr.startswith("error: ")
    assert "--nope" in done.stderr or "required" in done.stderr
    assert not list(tmp_path.iterdir())


def test_explore_runs_as_a_process(data):
    done = run_process(data, "explore.py", "--out", "explore.html")
    assert done.stdout.startswith("pairs: 12\n")
    assert done.stderr == ""
    assert (data / "explore.html").exists()
