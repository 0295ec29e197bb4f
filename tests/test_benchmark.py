"""tools/benchmark.py: that it runs and adds up, not how long anything takes."""

import json

import pytest
from helpers import BEST, write_model

PARTS = ("reading", "loader", "step", "epoch", "evaluation", "inference")
QUICK = ("--features", 4, 8, "--batch-size", 2, "--steps", 2, "--rounds", 1)
SIZES = ("--scales", 3, 30, "--files", 5)


def training_flops(pixels):
    """Return those of an image: forward, and twice that backward but for the first layer's input.

    Convolutions of the levels 4 and 8 channels, a multiplication and an addition for each weight.
    """
    kernels_3x3 = (
        3 * 4 + 4 * 4,
        (4 * 8 + 8 * 8) / 4,
        (8 * 16 + 16 * 16) / 16,
        (16 * 8 + 8 * 8) / 4,
        8 * 4 + 4 * 4,
    )
    upsampling = 16 * 8 * 4 / 16 + 8 * 4 * 4 / 4
    last = 4
    forward = 2 * pixels * (9 * sum(kernels_3x3) + upsampling + last)
    return 3 * forward - 2 * 9 * pixels * 3 * 4


def test_benchmark_measures_and_writes_every_part(data, run_process):
    write_model(data / BEST)
    finished = run_process("tools/benchmark.py", *QUICK, *SIZES, "--json", "b.json")
    report = json.loads((data / "b.json").read_text())
    assert set(report["reading"]) == {"plain", "ours", "ours, cached"}
    assert set(report["loader"]) == {"plain", "ours", "ours, cached"}
    assert set(report["step"]) == {"plain", "ours"}
    assert set(report["evaluation"]) == {"plain", "ours", "ours, at full size too"}
    for section in PARTS:
        for name, seconds in report[section].items():
            assert 0 < seconds < 60
            assert f"| {name} | {1000 * seconds:.2f} |" in finished.stdout
    assert [row["images"] for row in report["scaling"]] == [3, 30]
    assert report["flops_per_image"] == pytest.approx(training_flops(160 * 240), rel=0.01)
    flops_per_second = report["flops_per_image"] / report["step"]["ours"]
    assert report["share_of_peak"] == pytest.approx(flops_per_second / report["peak_flops"])
    assert not list((data / "data").glob("tmp*"))


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--parts", "all"], "invalid choice: 'all'"),
        (["--steps", "0"], "--steps"),
        (["--images", "nowhere"], "no folder 'nowhere'"),
        (["--json", "nowhere/b.json"], "no folder 'nowhere'"),
        (["--features", "x"], "invalid int value"),
        (
            ["--parts", "inference"],
            "no checkpoint 'best_checkpoint.pth.tar' for the part inference",
        ),
    ],
)
def test_benchmark_answers_wrong_options(data, run, arguments, message):
    assert message in run("tools/benchmark.py", *arguments, status=2).stderr
