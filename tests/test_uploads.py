"""What the page of app.py makes of photographs: the same as inference.py."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
from helpers import BEST, OWN_MODEL, picture_width_height
from PIL import Image

import utils
from carvana.drawing import save_picture
from carvana.errors import UserError
from carvana.uploads import (
    KINDS,
    MAX_UPLOADS,
    PREVIEW_SIDE,
    Choices,
    mask_uploads,
    zip_results,
)

CHOICES = {  # what inference.py is asked for -> what the page is
    ("--cutout",): Choices(),
    ("--cutout", "--shadow", "--trim", "--margin", "0.1"): Choices(
        shadow=True, framing="trim", margin=0.1
    ),
    ("--background", "#c0ffee"): Choices("background", "#c0ffee"),
    ("--background", "behind.png", "--fit", "90x70", "--shadow"): Choices(
        "background", background="behind.png", shadow=True, framing="fit", canvas="90x70"
    ),
    ("--overlay", "--threshold", "0.3"): Choices("overlay", threshold=0.3),
    (): Choices("mask"),
}


@pytest.fixture
def model(work, monkeypatch):
    monkeypatch.chdir(work)
    return utils.load_model(BEST, "cpu")


@pytest.fixture
def results(tmp_path):
    folder = tmp_path / "results"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("options", CHOICES)
def test_results_are_those_of_inference(work, run, model, results, options):
    save_picture(np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8), "behind.png")
    photographs = sorted(Path("photos").iterdir())
    choices = CHOICES[options]
    masked, failures = mask_uploads(photographs, choices, model, results)
    one_at_a_time = ("--batch-size", 1)  # sums are rounded in another way in larger batches
    run("inference.py", "--img", "photos", "--no-overlay", *options, *OWN_MODEL, *one_at_a_time)
    for photograph, result in zip(photographs, masked, strict=True):
        assert f"_{choices.kind}." in result.file.name
        assert result.file.read_bytes() == Path("outputs", result.file.name).read_bytes()
        assert result.line.startswith(f"{photograph.name}: car ")
        assert picture_width_height(result.before) == picture_width_height(result.after)
    assert failures == []


def test_files_that_cannot_be_read_are_said_as_inference_says_it(work, run, model, results):
    Path("photos/broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 cut off")
    Path("photos/notes.txt").write_bytes(b"no picture")
    uploads = [*sorted(Path("photos").iterdir()), Path("photos/missing.png")]
    progress = []
    masked, failures = mask_uploads(uploads, Choices(), model, results, progress.append)
    assert len(masked) == 6
    finished = run("inference.py", "--img", *uploads, *OWN_MODEL, status=1)
    said = {line.strip().replace("photos/", "") for line in finished.stderr.splitlines()}
    assert len(failures) == 3
    assert set(failures) <= said
    assert progress[-1] == (9, 9)


def test_uploads_of_one_name_are_told_apart(work, model, results):
    name = next(Path("photos").iterdir()).name
    Path("others").mkdir()
    Path("others", name).write_bytes(Path("photos", name).read_bytes())
    masked, _ = mask_uploads([f"photos/{name}", f"others/{name}"], Choices("mask"), model, results)
    archive = results / "masks.zip"
    zip_results(masked, archive)
    with zipfile.ZipFile(archive) as opened:
        assert opened.namelist() == [result.file.name for result in masked]
        assert len(set(opened.namelist())) == 2
        assert opened.testzip() is None


@pytest.mark.parametrize("kind", KINDS)
def test_previews_are_upright_and_small(work, model, results, kind):
    exif = Image.Exif()
    exif[0x112] = 6  # turned by a quarter
    Image.new("RGB", (2 * PREVIEW_SIDE, PREVIEW_SIDE), "teal").save("turned.jpg", exif=exif)
    (result,), _ = mask_uploads(["turned.jpg"], Choices(kind), model, results)
    for path in (result.before, result.after):
        assert picture_width_height(path) == (PREVIEW_SIDE // 2, PREVIEW_SIDE)
    assert picture_width_height(result.file) == (PREVIEW_SIDE, 2 * PREVIEW_SIDE)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        (Choices(framing="fit", canvas="huge"), "canvas: expected width and height in pixels"),
        (Choices(framing="trim", margin=0.9), "--margin: expected a share of each side"),
        (Choices("background", "reddish"), "background: expected a color such as white"),
        (Choices("background", background="secret/notes.txt"), "^notes.txt: cannot be read"),
    ],
)
def test_wrong_choices_are_refused(work, model, results, choices, message):
    with pytest.raises(UserError, match=message):
        mask_uploads(sorted(Path("photos").iterdir()), choices, model, results)


def test_color_is_never_a_file_of_the_server(work, model, results):
    photograph = str(next(Path("photos").iterdir()))
    with pytest.raises(UserError, match="background: expected a color"):
        mask_uploads([photograph], Choices("background", photograph), model, results)


def test_too_many_photographs_are_refused(model, results):
    with pytest.raises(UserError, match="expected up to 50 photographs at once, found 51"):
        mask_uploads(["a.jpg"] * (MAX_UPLOADS + 1), Choices(), model, results)
