"""What explore.py sees in a data set."""

import shutil

import numpy as np
import pytest
from helpers import scene, write_mask, write_pairs
from PIL import Image

from carvana.classes import SINGLE
from carvana.curves import histograms
from carvana.outlines import OutlineNoise, describe_noise, outline_noise
from carvana.pairs import find_pairs
from carvana.survey import PairFacts, mean_masks, measure_pair

SIZE = (96, 144)
SHIFTED, EMPTY, BLACK = "000000000002_01", "000000000003_01", "000000000004_01"


@pytest.fixture
def faulty(tmp_path):
    """Ten cars with a copy, a copy saved again, and three faults.

    The faults: a mask that lies beside its car, an empty one, and a black photograph.
    """
    images = tmp_path / "photos"
    masks = tmp_path / "labels"
    write_pairs(images, masks, cars=10, angles=2, height=SIZE[0], width=SIZE[1])
    first, second = "000000000000_01", "000000000001_01"
    shutil.copy(masks / f"{first}_mask.gif", masks / "copy_mask.gif")
    shutil.copy(masks / f"{second}_mask.gif", masks / "saved_again_mask.gif")
    shutil.copy(images / f"{first}.jpg", images / "copy.jpg")
    with Image.open(images / f"{second}.jpg") as image:
        image.save(images / "saved_again.jpg", quality=80)
    shifted_mask = np.roll(scene(201, *SIZE)[1], 14, axis=(0, 1))
    write_mask(masks / f"{SHIFTED}_mask.gif", shifted_mask)
    write_mask(masks / f"{EMPTY}_mask.gif", np.zeros(SIZE, bool))
    Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(images / f"{BLACK}.jpg")
    return tmp_path


def test_explore_reports_what_is_wrong(faulty, run):
    done = run("explore.py", "--images", "photos", "--masks", "labels", "--out", "look/a.html")
    lines = dict(line.split(": ", 1) for line in done.stdout.splitlines() if ": " in line)
    assert lines["pairs"] == "22"
    assert lines["sizes"] == "144x96 (22)"
    assert lines["formats"] == "jpg with gif (22)"
    assert lines["same bytes"] == "000000000000_01.jpg = copy.jpg"
    assert lines["look alike"] == "000000000001_01.jpg ~ saved_again.jpg"
    assert f"{EMPTY}.jpg (nothing in its mask)" in lines["odd ones out"]
    assert f"{BLACK}.jpg (brightness, 0 to 255: 0" in lines["odd ones out"]
    assert done.stdout.endswith("now look at look/a.html\n")
    text = (faulty / "look/a.html").read_text()
    namespaces = ("http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink")
    for namespace in namespaces:
        text = text.replace(namespace, "")
    assert "http" not in text
    assert text.count("<li ") == 22
    assert len(text) < 3_000_000


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (["--images", "nowhere"], "no folder 'nowhere'"),
        (["--out", "a.txt"], "ends in .html"),
        (["--most", "0"], "expected 1..1000"),
        (["--imgaes", "x"], "--help lists"),
    ],
)
def test_explore_answers_wrong_options(data, run, arguments, expected):
    assert expected in run("explore.py", *arguments, status=2).stderr


def test_agreement_is_lowest_of_a_mask_beside_its_object(faulty):
    pairs = find_pairs(faulty / "photos", faulty / "labels")
    facts = {pair[0].stem: measure_pair(pair, SINGLE) for pair in pairs}
    assert np.isnan(facts[EMPTY].agreement)
    agreements = {name: row.agreement for name, row in facts.items() if name not in (BLACK, EMPTY)}
    assert np.isfinite(list(agreements.values())).all()
    assert min(agreements, key=agreements.get) == SHIFTED
    expected_share = 100 * scene(502, *SIZE)[1].mean()
    assert facts["000000000005_02"].share == pytest.approx(expected_share, abs=0.01)


def facts_with_mask(name, level):
    """Return facts of which only the name and an even mask matter."""
    mask = np.full((2, 2), level, np.uint8)
    nothing = np.empty(0)
    return PairFacts(name, "", "", 0, 0, 0, 0, mask, nothing, nothing, b"")


def test_mean_masks_are_by_angle():
    facts = [
        facts_with_mask("0123456789ab_01.jpg", 0),
        facts_with_mask("0123456789ac_01.jpg", 200),
        facts_with_mask("0123456789ab_16.jpg", 50),
    ]
    means = {angle: mask.max() for angle, mask in mean_masks(facts).items()}
    assert means == {"01": 100, "16": 50}


def measure_square(folder, name, grow=(0, 0, 0, 0)):
    """Return the outline noise of a dark square whose mask's sides are off by some pixels."""
    top, left, bottom, right = grow
    image = np.full((300, 400), 220, np.uint8)
    image[60:240, 80:320] = 60
    mask = np.zeros((300, 400), bool)
    mask[60 + top : 240 + bottom, 80 + left : 320 + right] = True
    Image.fromarray(image).save(folder / f"{name}.png")
    write_mask(folder / f"{name}.gif", mask)
    return outline_noise((folder / f"{name}.png", folder / f"{name}.gif"), SINGLE)


def test_outline_noise_of_exact_masks_is_half_a_pixel_at_most(tmp_path):
    noise = measure_square(tmp_path, "exact")
    assert abs(noise.distances).max() <= 0.5
    assert len(noise.distances) > 50
    expected = 2 * (180 + 240) / (180 * 240)
    assert noise.length_per_area == pytest.approx(expected, rel=0.02)


def test_outline_noise_of_masks_that_are_off_is_measured(tmp_path):
    rng = np.random.default_rng(0)
    noises = [measure_square(tmp_path, f"{i}", rng.integers(-3, 4, 4)) for i in range(6)]
    distances = abs(np.concatenate([noise.distances for noise in noises]))
    assert 1.2 < distances.mean() < 2.2
    assert "scores Dice 0.9" in describe_noise(noises)
    assert describe_noise([OutlineNoise(np.empty(0), np.nan)]).startswith("too few")


def test_histograms_leave_out_what_is_not_a_number():
    chart = histograms({"some": [1.0, float("nan"), 3.0], "none": [float("nan")]})
    assert chart.description == "Histograms; medians: some 2"


def test_explore_takes_a_set_of_empty_masks(tmp_path, run):
    write_pairs(tmp_path / "photos", tmp_path / "masks", cars=3, angles=1)
    for path in (tmp_path / "masks").iterdir():
        write_mask(path, np.zeros((48, 72)))
    finished = run("explore.py", "--images", "photos", "--masks", "masks")
    assert "Warning" not in finished.stderr
    assert "edges at the outline, times those around it: none" in finished.stdout
