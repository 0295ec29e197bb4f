"""benchmark.py as a command; that it runs and adds up, not how long anything takes."""

import json

import pytest
from test_inference import write_model


def test_every_part_is_measured_and_written_down(data, run):
    write_model(data / "best_checkpoint.pth.tar")
    done = run(
        "benchmark.py",
        "--features",
        4,
        8,
        "--batch-size",
        2,
        "--steps",
        2,
        "--rounds",
        1,
        "--scales",
        3,
        30,
        "--files",
        5,
        "--json",
        "b.json",
    )
    report = json.loads((data / "b.json").read_text())
    assert set(report["reading"]) == set(report["loader"]) == {"plain", "ours", "ours, cached"}
    assert set(report["step"]) == {"plain", "ours"} and set(report["evaluation"]) == {
        "plain",
        "ours",
        "ours, at full size too",
    }
    for part in ("reading", "loader", "step", "epoch", "evaluation", "inference"):
        assert all(0 < seconds < 60 for seconds in report[part].values())
        for what, seconds in report[part].items():
            assert f"| {what} | {1000 * seconds:.2f} |" in done.stdout
    assert [row["images"] for row in report["scaling"]] == [3, 30]
    # two 3x3 convolutions and a 1x1, and so on: forward, and twice that backward less the first layer's input
    pixels = 160 * 240
    forward = (
        2
        * 9
        * pixels
        * (
            3 * 4
            + 4 * 4
            + (4 * 8 + 8 * 8) / 4
            + (8 * 16 + 16 * 16) / 16
            + (16 * 8 + 8 * 8) / 4
            + 8 * 4
            + 4 * 4
        )
    )
    forward += 2 * pixels * (16 * 8 * 4 / 16 + 8 * 4 * 4 / 4 + 4)
    assert report["flops_per_image"] == pytest.approx(
        3 * forward - 2 * 9 * pixels * 3 * 4, rel=0.01
    )
    assert report["share_of_peak"] == pytest.approx(
        report["flops_per_image"] / report["step"]["ours"] / report["peak_flops"]
    )
    assert not list((data / "data").glob("tmp*"))


@pytest.mark.parametrize(
    "words, said",
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
def test_wrong_words(data, run, words, said):
    assert said in run("benchmark.py", *words, status=2).stderr
