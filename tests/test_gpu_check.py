"""tools/gpu_check.py in its small form, on a CPU: that all parts run, and that faults are found."""

import json
import math
from types import SimpleNamespace

import pytest
import torch

from tools.gpu_check import (
    PARTS,
    Check,
    check_precision,
    check_processes,
    check_resuming,
    largest_difference,
    measure_inference,
)

FOLDERS = ("--images", "data/train_images", "--masks", "data/train_masks", "--device", "cpu")


def run_parts(data, run_process, *parts):
    """Run some parts, none of which must find a fault; return their figures."""
    words = (*FOLDERS, "--json", "check.json", "--parts", *parts)
    finished = run_process("tools/gpu_check.py", *words)
    report = json.loads((data / "check.json").read_text())
    assert f"verdict: all is well ({', '.join(parts)})" in finished.stdout
    assert report["faults"] == []
    return report


def test_gpu_check_measures_precisions_and_speed(data, run_process):
    report = run_parts(data, run_process, "precision", "memory", "speed", "inference")
    assert [row["name"] for row in report["precision"]] == ["fp32", "fp16", "bf16"]
    (speed,) = report["speed"]
    assert min(speed[name] for name in ("loader", "step", "epoch", "evaluation")) > 0
    assert report["inference"]["masks"]["per_second"] > 0


@pytest.mark.slow
def test_gpu_check_goes_through_all_parts(data, run_process):
    report = run_parts(data, run_process, *PARTS)
    assert report["resuming"]["auto, deterministic"]["difference"] == 0
    assert len(report["processes"]) == 2
    assert len(report["exports"]) == 2


def finish(status, err):
    """Return what Check.command does."""
    return SimpleNamespace(status=status, out="", err=err, seconds=1.0)


@pytest.mark.parametrize(
    "part, fault",
    [
        (check_precision, "fp32: error: no memory"),
        (check_resuming, "resuming, auto, deterministic: error: no memory"),
        (check_processes, "processes: error: no memory"),
        (measure_inference, "inference, masks: error: no memory"),
    ],
)
def test_gpu_check_notes_commands_that_fail(data, tmp_path, monkeypatch, part, fault):
    folders = {"images": data / FOLDERS[1], "masks": data / FOLDERS[3]}
    args = SimpleNamespace(device="cpu", **folders)
    check = Check(args, tmp_path / "work")
    check.folder.mkdir()
    monkeypatch.setattr(check, "command", lambda *_, **__: finish(2, "usage\nerror: no memory\n"))
    part(check)
    assert check.faults[0] == fault


def test_largest_difference_is_of_floats_and_nan_if_there_is_one():
    weights = {"a": torch.zeros(3), "n": torch.tensor(1)}
    changed = {"a": torch.tensor([0, -0.25, 0.125]), "n": torch.tensor(2)}
    assert largest_difference(weights, weights) == 0
    assert largest_difference(weights, changed) == 0.25
    broken = weights | {"a": torch.tensor([0, math.nan, 0]), "b": torch.zeros(1)}
    assert math.isnan(largest_difference(broken, broken))


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--parts", "all"], "invalid choice: 'all'"),
        (["--images", "data/train_images"], "--images and --masks go together"),
        (["--images", "nowhere", "--masks", "data/train_masks"], "no folder 'nowhere'"),
        (["--json", "nowhere/b.json"], "no folder 'nowhere'"),
    ],
)
def test_gpu_check_answers_wrong_options(data, run, arguments, message):
    assert message in run("tools/gpu_check.py", *arguments, status=2).stderr
