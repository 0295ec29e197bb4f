"""From photographs to masks, overlays and cutouts."""

import json
import os
import re
import shutil
import subprocess

import numpy as np
import pytest
import torch
from helpers import (
    BEST,
    LAST,
    OWN_MODEL,
    csv_rows,
    picture_width_height,
    reference_logits,
    run_with_small_files,
    scene,
    script_command,
    write_model,
    write_pairs,
)
from PIL import Image

import utils
from carvana.errors import UserError
from carvana.images import picture_size, read_image
from carvana.photographs import ENDINGS
from model import UNET


def read_png(path):
    return np.asarray(Image.open(path))


def dice(mask, truth):
    return 2 * (mask & truth).sum() / (mask.sum() + truth.sum())


# ---------------------------------------------------------------- what is predicted


def test_inference_masks_a_folder(work, run):
    arguments = ("--img", "photos", "--rle", "all.csv", "--cutout", "--background", "#00ff00")
    stdout = run("inference.py", *OWN_MODEL, *arguments).stdout
    names = sorted(path.stem for path in (work / "photos").iterdir())
    written = {path.name for path in (work / "outputs").iterdir()}
    assert written == {f"{name}_{ending}" for name in names for ending in ENDINGS}
    assert re.search(r"best_checkpoint.pth.tar: 0\.\d\d M parameters at 32x48 on", stdout)
    totals = r"6 photographs in [\d.]+ s, [\d.]+ images/s; all.csv holds 6 rows"
    assert re.search(totals, stdout)
    masks = {}
    for name in names:
        mask = read_png(work / f"outputs/{name}_mask.png")
        assert mask.shape == (48, 72)
        assert mask.dtype == np.uint8
        assert set(np.unique(mask)) == {0, 255}
        share = 100 * (mask > 0).mean()
        assert f"photos/{name}.jpg: car {share:.1f} % -> outputs/{name}_mask.png" in stdout
        assert picture_width_height(work / f"outputs/{name}_overlay.jpg") == (72, 48)
        assert picture_width_height(work / f"outputs/{name}_background.jpg") == (72, 48)
        cutout = read_png(work / f"outputs/{name}_cutout.png")
        assert cutout.shape == (48, 72, 4)
        assert not cutout[cutout[..., 3] == 0].any()
        masks[f"{name}.jpg"] = mask > 0

    folders = ("--images", "photos", "--masks", "masks")
    run("evaluate.py", *OWN_MODEL, *folders, "--json", "scores.json")
    for row in json.loads((work / "scores.json").read_text())["images"]:
        stem = row["name"].removesuffix(".jpg")
        with Image.open(work / f"masks/{stem}_mask.gif") as gif:
            truth = np.asarray(gif.convert("L")) > 0
        assert dice(masks[row["name"]], truth) == pytest.approx(row["full_dice"], abs=1e-6)


def test_inference_and_predict_agree(work, run):
    arguments = ("--img", "photos", "--no-overlay", "--threshold", 0.6, "--batch-size", 5)
    run("inference.py", *OWN_MODEL, *arguments)
    model = utils.load_model(work / BEST, "cpu")
    paths = sorted((work / "photos").iterdir())
    images = [read_image(path) for path in paths]
    images += [scene(1, 31, 90)[0], scene(2, 200, 100)[0][..., 0]]
    probabilities = utils.predict(model, images)
    for probability, image in zip(probabilities, images, strict=True):
        assert probability.dtype == np.float32
        assert probability.shape == image.shape[:2]
        assert 0 <= probability.min() < probability.max() <= 1
    for probability, path in zip(probabilities, paths, strict=False):
        mask = read_png(work / f"outputs/{path.stem}_mask.png") > 0
        assert ((probability > 0.6) != mask).mean() < 1e-3


def test_predict_says_nothing_of_logits_far_below_zero(work):
    model = utils.load_model(work / BEST, "cpu")
    with torch.no_grad():
        model.final_conv.bias -= 200  # the exponential of 89 is infinite in float32
    (probability,) = utils.predict(model, [scene(5, 64, 96)[0]])
    assert probability.max() == 0


def test_predict_averages_mirrored_predictions(work):
    model = utils.load_model(work / BEST, "cpu")
    image = scene(5, 64, 96)[0]
    images = [image, image[:, ::-1].copy()]
    plain, mirrored = utils.predict(model, images)
    mirrored = mirrored[:, ::-1]
    average, average_of_mirrored = utils.predict(model, images, tta=True)
    assert np.allclose(average, average_of_mirrored[:, ::-1], atol=1e-4)
    assert not np.allclose(plain, mirrored, atol=1e-2)
    assert (average >= np.minimum(plain, mirrored) - 1e-3).all()
    assert (average <= np.maximum(plain, mirrored) + 1e-3).all()


@pytest.mark.parametrize("bare", [True, False])
@pytest.mark.parametrize("channels", [1, 3])
def test_inference_with_a_tutorials_checkpoint(tmp_path, run, bare, channels):
    """Its network and its preprocessing as plain function calls: 160x240, mean 0, deviation 1."""
    torch.manual_seed(3)
    model = UNET(channels, 1, [6, 10])
    write_pairs(tmp_path / "photos", tmp_path / "masks", cars=1, height=320, width=480)
    path = min((tmp_path / "photos").iterdir())
    levels = read_image(path, (160, 240), channels)
    image = torch.from_numpy(levels).permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        for _ in range(30):
            model(image)  # BatchNorm learns what it looks like
    weights = model.state_dict()
    weights["final_conv.bias"] -= reference_logits(image, weights, 2).median()
    logits = reference_logits(image, weights, 2)
    state = weights if bare else {"state_dict": weights, "optimizer": {}}
    torch.save(state, tmp_path / LAST)
    run("inference.py", "--img", path, "--model", LAST, "--no-overlay")
    mask = read_png(tmp_path / f"outputs/{path.stem}_mask.png") > 0
    whole = torch.nn.functional.interpolate(logits, size=mask.shape, mode="bilinear")
    expected = whole[0, 0].numpy()
    sure = abs(expected) > 0.25 * expected.std()  # what bfloat16 does not turn over
    assert np.array_equal(mask[sure], expected[sure] > 0)
    assert sure.mean() > 0.6
    assert 0.2 < mask.mean() < 0.8


def test_inference_cuts_out_what_it_masks(work, run):
    arguments = ("--img", "photos", "--no-overlay", "--cutout", "--threshold", 0.7)
    run("inference.py", *OWN_MODEL, *arguments)
    for path in (work / "outputs").glob("*_mask.png"):
        mask = read_png(path) > 0
        alpha = read_png(str(path).replace("_mask", "_cutout"))[..., 3]
        undecided = abs(alpha.astype(int) - 127.5) < 2
        assert undecided[(alpha > 127) != mask].all()
        assert 0 < mask.mean() < 1


def test_model_of_too_many_channels_is_refused(tmp_path):
    write_model(tmp_path / "many.pth.tar", channels=129)
    with pytest.raises(UserError, match="images of 129 channels"):
        utils.load_model(tmp_path / "many.pth.tar", "cpu")


# ---------------------------------------------------------------- which photographs


def test_inference_takes_names_folders_and_patterns(work, run):
    for folder in ("photos/sub", "photos/.hidden", "other"):
        (work / folder).mkdir()
        Image.fromarray(scene(7)[0]).save(work / folder / "000000000000_01.jpg")
    Image.fromarray(scene(8)[0]).save(work / "photos/000000000000_01.png")
    Image.fromarray(scene(8)[0]).save(work / "photos/a[1].jpg")
    (work / "photos/notes.txt").write_text("not a photograph")
    arguments = ("photos", "other", "photos/a[1].jpg", "other/*.jpg", "--recursive")
    arguments += ("--out", "photos/out", "--no-overlay")
    finished = run("inference.py", *OWN_MODEL, "--img", *arguments)
    out = work / "photos/out"
    cars = {f"00000000000{car}_0{angle}_mask.png" for car in range(3) for angle in (1, 2)}
    assert {str(path.relative_to(out)) for path in out.rglob("*.png")} == cars | {
        "000000000000_01_2_mask.png",
        "000000000000_01_3_mask.png",
        "000000000000_01_4_mask.png",
        "a[1]_mask.png",
        "a[1]_2_mask.png",
        "sub/000000000000_01_mask.png",
    }
    assert "12 photographs" in finished.stdout
    # Its own outputs are not among the photographs of the next run.
    assert "12 photographs" in run("inference.py", *OWN_MODEL, "--img", *arguments).stdout


def test_inference_takes_photographs_of_every_kind(work, run):
    upright = Image.fromarray(scene(1, 60, 90)[0])
    exif = Image.Exif()
    exif[0x0112] = 6
    kinds = work / "kinds"
    kinds.mkdir()
    upright.transpose(Image.Transpose.ROTATE_90).save(kinds / "turned.jpg", exif=exif, quality=98)
    upright.convert("L").save(kinds / "gray.png")
    upright.convert("CMYK").save(kinds / "cmyk.jpg")
    Image.fromarray(scene(1)[0][..., 0].astype(np.uint16) * 257).save(kinds / "deep.png")
    upright.resize((1, 1)).save(kinds / "one.png")
    upright.resize((2000, 7)).save(kinds / "flat.webp")
    upright.save(kinds / "имя с пробелом\nи строкой.jpg")
    arguments = ("--cutout", "--background", "photos/000000000000_01.jpg", "--rle", "a.csv")
    finished = run("inference.py", *OWN_MODEL, "--img", "kinds", *arguments)
    assert len(list((work / "outputs").iterdir())) == 7 * 4
    assert "имя с пробелом\\nи строкой.jpg: car" in finished.stdout
    for path in kinds.iterdir():
        written = [work / f"outputs/{path.stem}_{ending}" for ending in ENDINGS]
        assert set(map(picture_width_height, written)) == {picture_size(path)[::-1]}, path.name
    assert picture_width_height(work / "outputs/turned_mask.png") == (90, 60)
    names = {row[0] for row in csv_rows(work / "a.csv")[1:]}
    assert names == {path.name for path in kinds.iterdir()}


def test_inference_writes_nothing_with_no_save(work, run):
    before = sorted(os.listdir(work))
    finished = run("inference.py", *OWN_MODEL, "--img", "photos", "--no-save")
    assert finished.stdout.count("car ") == 6
    assert sorted(os.listdir(work)) == before


# ---------------------------------------------------------------- what goes wrong


def test_inference_lists_what_fails_and_does_the_rest(work, run):
    photos = work / "photos"
    good = photos / "000000000000_01.jpg"
    (work / "empty").mkdir()
    (photos / "bad.jpg").write_bytes(good.read_bytes()[:700])
    (photos / "text.jpg").write_text("no")
    header = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\1\0\0\0\1\0\0\x08\2\0\0\0"
    (photos / "bomb.png").write_bytes(header + np.uint32(0).tobytes())
    arguments = ("--img", "nowhere.jpg", "photos", "empty", "none*.jpg")
    arguments += ("--rle", "a.csv", "--batch-size", 3)
    finished = run("inference.py", *OWN_MODEL, *arguments, status=1)
    assert "6 photographs in" in finished.stdout
    assert len(list((work / "outputs").glob("*_mask.png"))) == 6
    assert len(csv_rows(work / "a.csv")) == 7
    lines = finished.stderr[finished.stderr.index("6 failed:") :].splitlines()
    assert len(lines) == 7
    assert "Traceback" not in finished.stderr
    for fault in (
        "empty: no photographs in this folder",
        "none*.jpg: no photograph matches this pattern",
        "nowhere.jpg: cannot be read (No such file",
        "bad.jpg: cannot be read (",
        "text.jpg: cannot be read (not a picture",
        "bomb.png: cannot be read (",
    ):
        assert sum(fault in line for line in lines) == 1, fault
    shutil.copy(good, photos / "bad.jpg")
    finished = run("inference.py", *OWN_MODEL, "--img", "photos", "--rle", "a.csv", status=1)
    assert "continuing after 6 rows" in finished.stdout
    assert "1 photograph in" in finished.stdout
    assert "2 failed" in finished.stderr
    assert csv_rows(work / "a.csv")[-1][0] == "bad.jpg"


def test_inference_with_a_photograph_wider_than_a_jpeg_can_be(work, run):
    Image.new("RGB", (65600, 2)).save(work / "photos/wide.png")
    stderr = run("inference.py", *OWN_MODEL, "--img", "photos", status=1).stderr
    expected = "wide_overlay.jpg cannot be written: 65600x2 pixels, a JPEG holds 65,500 a side"
    assert expected in stderr
    assert "1 failed" in stderr
    assert (work / "outputs/wide_mask.png").exists()
    assert len(list((work / "outputs").glob("*_overlay.jpg"))) == 6
    finished = run("inference.py", *OWN_MODEL, "--img", "photos", "--no-overlay")
    assert "7 photographs in" in finished.stdout


PHOTOS = ("--img", "photos")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--img", "nowhere"], r"error: nowhere: cannot be read \(No such file or directory\)"),
        ([*PHOTOS, "--model", "nowhere"], r"no model 'nowhere'; train one"),
        ([], r"arguments are required: --img"),
        (["photos"], r"error: 'photos' belongs to no option; put --img before it; --help"),
        (
            [*PHOTOS, "--threshold", "nan"],
            r"--threshold: expected a probability between 0 and 1, found nan",
        ),
        ([*PHOTOS, "--threshold", "1"], r"between 0 and 1"),
        ([*PHOTOS, "--batch-size", "0"], r"--batch-size: expected 1..65536"),
        (
            [*PHOTOS, "--background", "whitish"],
            r"expected a color such as white or #c0ffee, or a photograph, found 'whitish'",
        ),
        ([*PHOTOS, "--background", "masks"], r"found 'masks'"),
        ([*PHOTOS, "--background", BEST], r"best_checkpoint.pth.tar: cannot be read"),
        ([*PHOTOS, "--out", BEST], r"best_checkpoint.pth.tar: File exists"),
        ([*PHOTOS, "--out", f"{BEST}/x"], r"Not a directory"),
        ([*PHOTOS, "--no-save", "--cutout"], r"--no-save leaves nothing"),
        (
            [*PHOTOS, "--rle", "masks"],
            r"masks already exists, and what it was written with is not known",
        ),
        ([*PHOTOS, "--device", "tpu"], r"--device"),
        (
            ["--img", "clash", "--out", "clash"],
            r"clash/a_mask.png is one of the photographs, and would be overwritten",
        ),
        (["--img", "empty"], r"empty: no photographs in this folder"),
        (
            [*PHOTOS, "--model", "photos/000000000000_01.jpg"],
            r"is not a checkpoint that can be read",
        ),
    ],
)
def test_inference_answers_wrong_options(work, run, arguments, message):
    (work / "empty").mkdir()
    (work / "clash").mkdir()
    for name in ("a.png", "a_mask.png"):
        Image.fromarray(scene(1)[0]).save(work / "clash" / name)
    finished = run("inference.py", *OWN_MODEL, *arguments, status=2)
    assert re.search(message, finished.stderr)
    assert not list(work.glob("outputs/*"))


def test_inference_ends_when_the_disk_is_full(work):
    arguments = (*OWN_MODEL, "--img", "photos")
    finished = run_with_small_files(work, 200, "inference.py", *arguments)
    assert finished.returncode == 2
    assert "Traceback" not in finished.stderr
    assert "cannot be written (File too large); free some space" in finished.stderr
    for path in (work / "outputs").iterdir():
        assert path.suffix == ".png"
        picture_width_height(path)


# ---------------------------------------------------------------- what is never overwritten


def link(target, path):
    path.symlink_to(target)


def hard_link(target, path):
    path.hardlink_to(target)


@pytest.mark.parametrize("make_link", [link, hard_link])
@pytest.mark.parametrize(
    "target, kind",
    [
        ("photos/000000000000_01.jpg", "one of the photographs"),
        (BEST, "the model"),
        ("paper.png", "the photograph of --background"),
    ],
)
def test_inference_overwrites_no_input_under_another_name(work, run, target, kind, make_link):
    Image.fromarray(scene(1)[0]).save(work / "paper.png")
    (work / "outputs").mkdir()
    make_link(work / target, work / "outputs/000000000002_02_overlay.jpg")
    before = (work / target).read_bytes()
    arguments = ("--img", "photos", "--background", "paper.png")
    stderr = run("inference.py", *OWN_MODEL, *arguments, status=2).stderr
    assert f"outputs/000000000002_02_overlay.jpg is {kind}, and would be overwritten" in stderr
    assert (work / target).read_bytes() == before
    assert len(os.listdir(work / "outputs")) == 1


@pytest.mark.parametrize(
    "photographs, out",
    [("link", "clash"), ("clash", "link"), ("link/*.png", "clash"), ("clash", "photos/../clash")],
)
def test_inference_overwrites_no_photograph_of_a_linked_folder(work, run, photographs, out):
    (work / "clash").mkdir()
    (work / "link").symlink_to("clash")
    for name in ("a.png", "a_mask.png"):
        Image.fromarray(scene(1)[0]).save(work / "clash" / name)
    before = (work / "clash/a_mask.png").read_bytes()
    arguments = ("--img", photographs, "--out", out)
    stderr = run("inference.py", *OWN_MODEL, *arguments, status=2).stderr
    assert "a_mask.png is one of the photographs, and would be overwritten" in stderr
    assert (work / "clash/a_mask.png").read_bytes() == before
    assert len(os.listdir(work / "clash")) == 2


def test_inference_tells_files_apart_where_the_disk_does_not_tell_cases(work, run, monkeypatch):
    """A disk of Windows or macOS: every spelling of A_MASK.png leads to it."""
    (work / "clash").mkdir()
    for name in ("a.png", "A_MASK.png"):
        Image.fromarray(scene(1)[0]).save(work / "clash" / name)
    stat = os.stat

    def stat_of_any_case(path, *args, **kwargs):
        if str(path).endswith("clash/a_mask.png"):
            path = str(path).replace("a_mask", "A_MASK")
        return stat(path, *args, **kwargs)

    monkeypatch.setattr(os, "stat", stat_of_any_case)
    arguments = ("--img", "clash", "--out", "clash")
    stderr = run("inference.py", *OWN_MODEL, *arguments, status=2).stderr
    assert "clash/a_mask.png is one of the photographs" in stderr


def test_inference_replaces_links_that_lead_nowhere(work, run):
    outputs = work / "outputs"
    outputs.mkdir()
    names = sorted(path.stem for path in (work / "photos").iterdir())
    (outputs / f"{names[0]}_mask.png").symlink_to("nowhere.png")
    (outputs / f"{names[1]}_mask.png").symlink_to(f"{names[1]}_mask.png")  # in a circle
    run("inference.py", *OWN_MODEL, "--img", "photos", "--no-overlay")
    for name in names:
        assert not (outputs / f"{name}_mask.png").is_symlink()
        picture_width_height(outputs / f"{name}_mask.png")
    assert not (work / "nowhere.png").exists()


def test_inference_leaves_out_its_own_outputs_by_any_path(work, run):
    (work / "photos/out").mkdir()
    (work / "link").symlink_to("photos/out")
    arguments = ("--img", "photos", "--recursive", "--out", "link")
    for _ in range(2):
        assert "6 photographs" in run("inference.py", *OWN_MODEL, *arguments).stdout


@pytest.mark.parametrize("name", ["photos/000000000000_01.jpg", "outputs/car_mask.png"])
def test_inference_writes_no_csv_where_a_picture_goes(work, run, name):
    arguments = ("--img", "photos", "--rle", name)
    stderr = run("inference.py", *OWN_MODEL, *arguments, status=2).stderr
    assert "--rle: expected a name such as submission.csv" in stderr


def test_inference_writes_no_csv_over_an_input(work, run):
    run("inference.py", *OWN_MODEL, "--img", "photos", "--rle", "a.csv", "--no-save")
    (work / "a.csv").unlink()
    (work / "a.csv").hardlink_to(work / BEST)
    before = (work / BEST).read_bytes()
    arguments = ("--img", "photos", "--rle", "a.csv", "--no-save")
    stderr = run("inference.py", *OWN_MODEL, *arguments, status=2).stderr
    assert "a.csv is the model, and would be overwritten; name another file with --rle" in stderr
    assert (work / BEST).read_bytes() == before


def test_inference_takes_brackets_in_the_names_of_folders_as_they_are(work, run):
    (work / "photos").rename(work / "cars [2020]")
    for pattern in ("cars [2020]/*.jpg", "cars [2020]/0*_0[12].jpg", "cars [[]2020]/*.jpg"):
        finished = run("inference.py", *OWN_MODEL, "--img", pattern, "--no-save")
        assert "6 photographs in" in finished.stdout


@pytest.mark.parametrize(
    "word, message",
    [
        ("https://a.b/car.jpg", "an address cannot be read; download the photograph first"),
        ("-", "photographs are read from files, not from standard input"),
        ("nowhere.jpg", "nowhere.jpg: cannot be read (No such file or directory)"),
    ],
)
def test_inference_says_what_is_not_there_before_the_model_is_loaded(work, word, message):
    command = script_command("inference.py", *OWN_MODEL, "--img", word, "photos", "--no-save")
    process = subprocess.run(
        command, cwd=work, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.returncode == 1
    assert process.stdout.startswith("6 photographs, but not:\n  " + word + ": ")
    assert message in process.stdout
    assert process.stdout.index(message) < process.stdout.index("parameters at")


@pytest.mark.parametrize(
    "pictures, message",
    [
        (
            np.zeros((40, 60, 3), np.uint8),
            r"expected a list of pictures, found one of \(40, 60, 3\)",
        ),
        (np.zeros((40, 60), np.uint8), r"write predict\(model, \[picture\]\)\[0\]"),
        (Image.new("RGB", (4, 4)), r"expected a list of pictures, found Image"),
        (None, r"expected a list of pictures, found None"),
        ([None], r"uint8 \(H, W, 3\) or \(H, W\), found None"),
        (["car.jpg"], r"found str"),
        ([Image.new("RGB", (4, 4))], r"found Image"),
        ([np.zeros((4, 4, 3), np.float32)], r"found float32 \(4, 4, 3\)"),
    ],
)
def test_predict_answers_what_are_no_pictures(work, pictures, message):
    model = utils.load_model(work / BEST, "cpu")
    with pytest.raises(UserError, match=message):
        utils.predict(model, pictures)
    if isinstance(pictures, list):
        with pytest.raises(UserError, match=message):
            utils.cutout(model, pictures[0])


def test_predict_takes_arrays_of_several_pictures(work):
    model = utils.load_model(work / BEST, "cpu")
    assert utils.predict(model, []) == []
    pictures = np.stack([scene(number)[0] for number in range(2)])
    for batch in (pictures, pictures[..., 0]):
        assert [item.shape for item in utils.predict(model, batch)] == [batch.shape[1:3]] * 2


def test_shipped_models_are_loaded_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert utils.load_model("anywhere", "cpu").config["IMAGE_WIDTH"] == 960
