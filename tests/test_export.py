"""A model in other formats: equal, small, and usable as their README says."""

import filecmp
import json
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from helpers import (
    BEST,
    OWN_MODEL,
    Payload,
    needs_onnx,
    picture_width_height,
    run_process,
    run_script,
    run_with_small_files,
    write_model,
    write_pairs,
)
from PIL import Image

import utils
from carvana import __version__, export_formats, exporting, onnx_writers
from carvana.errors import UserError
from carvana.images import read_image
from carvana.worker_process import WorkerError, WorkerProcess
from model import UNET

FILES = {
    "weights": "unet_weights.pth.tar",
    "pth": "unet_model.pth",
    "torchscript": "unet_model_torchjit.pth",
    "onnx": "unet_model_onnx.onnx",
    "fp16": "unet_model_fp16.onnx",
    "int8": "unet_model_int8.onnx",
    "pt2": "unet_model.pt2",
}
OMITTED = export_formats.beyond_torch(FILES)
FILES = {name: file for name, file in FILES.items() if name not in OMITTED}
CONSTANTS = {
    "MEAN": [0.4, 0.5, 0.3],
    "STD": [0.2, 0.3, 0.25],
    "THRESHOLD": 0.4,
    "UNSHUFFLE": 2,
}
ONNX_FORMATS = [name for name in ("onnx", "fp16", "int8") if name in FILES]
PHOTOGRAPHS = "data/val_images"
LINE_LENGTH = 100
LARGEST_DIFFERENCES = {"fp16": 0.05, "int8": 20}  # of logits; others equal the checkpoint


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with pairs, a checkpoint, all its exports and the checkpoint's own masks.

    Attributes: folder, exports, finished (what export.py ended with).
    """
    folder = tmp_path_factory.mktemp("made")
    write_pairs(folder / "data/train_images", folder / "data/train_masks", cars=6)
    write_pairs(folder / PHOTOGRAPHS, folder / "data/val_masks", cars=2, first=100)
    write_model(folder / BEST, **CONSTANTS)
    # A process: what its own ones write to stderr is seen too.
    finished = run_process(folder, "export.py", *OWN_MODEL)
    run_script(folder, "inference.py", *OWN_MODEL, "--img", PHOTOGRAPHS, "--no-overlay")
    return SimpleNamespace(folder=folder, exports=folder / "exports", finished=finished)


@pytest.fixture
def model(made):
    return utils.load_model(made.folder / BEST, "cpu")


@pytest.fixture
def one_turn(monkeypatch):
    """Latency is measured in one turn instead of several, which takes seconds."""
    monkeypatch.setattr(exporting, "TURNS", 1)


def read_mask_file(path):
    with Image.open(path) as image:
        return np.asarray(image) > 0


# ---------------------------------------------------------------- what is written


def test_export_writes_every_format_and_a_table(made):
    written = {path.name for path in made.exports.iterdir()}
    scripts = {"predict.py"} if ONNX_FORMATS else set()
    assert written == {*FILES.values(), "README.md", *scripts}
    assert made.finished.stderr == ""
    text = (made.exports / "README.md").read_text()
    for name, file in FILES.items():
        cells = r"\| ([\d.]+) \| ([\d.]+) \| (\S+) \| (\S+) \| ([\d.]+) \|"
        row = re.search(rf"\| {name} \| {file} {cells}", text)
        size, latency, largest, mean, dice = map(float, row.groups())
        assert size == pytest.approx((made.exports / file).stat().st_size / 1e6, abs=0.006)
        assert latency > 0
        assert row[0] in made.finished.stdout
        assert mean <= largest
        assert largest < LARGEST_DIFFERENCES.get(name, 1e-3)
        assert 0 < dice < 1
    assert "| PyTorch, bfloat16 |" in text
    assert ("In int8 " in text) == ("int8" in FILES)
    assert "4 photographs of data/val_images/" in text


@pytest.mark.parametrize("name", FILES)
def test_export_prints_snippets_that_run(made, model, name, monkeypatch):
    text = (made.exports / "README.md").read_text()
    snippet = re.search(rf"## {FILES[name]}\n\n```python\n(.*?)```", text, re.DOTALL)[1]
    images = np.random.default_rng(0).normal(size=(3, 3, 24, 40)).astype(np.float32)
    names = {"images": images}
    monkeypatch.chdir(made.exports)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(snippet, names)
    with torch.no_grad():
        expected = model(torch.from_numpy(images)).numpy()
    allowed = LARGEST_DIFFERENCES.get(name, 1e-4)
    if name == "int8":
        allowed = 0.3 * expected.std() + 0.3
    assert np.abs(names["logits"] - expected).max() < allowed


@pytest.mark.parametrize("name", FILES)
def test_inference_takes_every_format(made, name, tmp_path, run):
    arguments = ("--img", made.folder / PHOTOGRAPHS, "--no-overlay")
    run("inference.py", *arguments, "--model", made.exports / FILES[name])
    expected_masks = sorted((made.folder / "outputs").iterdir())
    assert len(expected_masks) == 4
    for path in expected_masks:
        expected = read_mask_file(path)
        mask = read_mask_file(tmp_path / "outputs" / path.name)
        assert (mask != expected).mean() < (0.4 if name == "int8" else 1e-3)
        assert 0.01 < expected.mean() < 0.99


@needs_onnx
@pytest.mark.parametrize(
    "arguments",
    [[], ["unet_model_onnx.onnx"], ["unet_model_fp16.onnx"]],
    ids=["int8", "onnx", "fp16"],
)
def test_predict_script_needs_no_torch(made, model, tmp_path, arguments):
    photograph = tmp_path / "car.jpg"
    shutil.copy(min((made.folder / PHOTOGRAPHS).iterdir()), photograph)
    code = (
        f"import runpy, sys; sys.modules['torch'] = None; "
        f"sys.argv = {['predict.py', str(photograph), *arguments]}; runpy.run_path('predict.py')"
    )
    finished = subprocess.run(
        [sys.executable, "-c", code], cwd=made.exports, capture_output=True, text=True
    )
    assert finished.returncode == 0, finished.stderr
    assert "foreground" in finished.stdout
    probability = utils.predict(model, [read_image(photograph)])[0]
    mask = read_mask_file(tmp_path / "car_mask.png")
    assert (mask != (probability > 0.4)).mean() < 0.01
    assert picture_width_height(tmp_path / "car_mask.png") == picture_width_height(photograph)


@needs_onnx
def test_predict_script_is_short(made):
    lines = (made.exports / "predict.py").read_text().splitlines()
    assert len(lines) <= 45
    assert max(map(len, lines)) <= LINE_LENGTH


def check_opset(path, opset, ir_version):
    """Check that a file is of these versions, and uses nothing later."""
    content = onnx.load(path, load_external_data=False)
    onnx.checker.check_model(content)
    assert [(item.domain, item.version) for item in content.opset_import] == [("", opset)]
    assert content.ir_version == ir_version
    assert not any(node.metadata_props for node in content.graph.node)


@needs_onnx
@pytest.mark.parametrize("opset, ir_version", [(19, 9), (20, 9), (21, 10)])
def test_export_of_a_later_opset(made, tmp_path, one_turn, opset, ir_version):
    arguments = (*OWN_MODEL, "--formats", *ONNX_FORMATS, "--out", tmp_path, "--opset", opset)
    run_script(made.folder, "export.py", *arguments)
    for name in ONNX_FORMATS:
        check_opset(tmp_path / FILES[name], opset, ir_version)
    first = export_formats.OPSETS[opset]
    expected = f"are of opset {opset}: ONNX Runtime {first} and later load them"
    assert expected in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize("name", ONNX_FORMATS)
def test_onnx_files_say_what_they_take(made, name):
    path = made.exports / FILES[name]
    check_opset(path, opset=18, ir_version=8)
    content = onnx.load(path, load_external_data=False)
    assert not any(tensor.external_data for tensor in content.graph.initializer)
    session = onnxruntime.InferenceSession(path)
    (images,) = session.get_inputs()
    (logits,) = session.get_outputs()
    assert (images.name, images.shape) == ("input", ["batch", 3, "height", "width"])
    assert logits.name == "output"
    assert (images.type, logits.type) == ("tensor(float)", "tensor(float)")
    metadata = session.get_modelmeta().custom_metadata_map
    facts = {key: json.loads(value) for key, value in metadata.items()}
    assert facts["IMAGE_HEIGHT"] == 32
    assert facts["MEAN"] == [0.4, 0.5, 0.3]
    assert facts["THRESHOLD"] == 0.4
    assert facts["FEATURES"] == [4, 8]
    assert facts["DICE"] == 0.5
    assert facts["VERSION"] == f"carvana-unet {__version__}, torch {torch.__version__}"


@needs_onnx
def test_export_tells_of_the_files_of_an_earlier_one(made, tmp_path, run, one_turn):
    shutil.copytree(made.exports, tmp_path / "exports")
    write_model(tmp_path / "other.pth.tar")
    stdout = run("export.py", "--model", "other.pth.tar", "--formats", "onnx").stdout
    expected = "of an earlier export, perhaps of another model: unet_weights.pth.tar, "
    assert expected in stdout
    assert "unet_model_int8.onnx" in stdout
    assert '"unet_model_onnx.onnx"' in (tmp_path / "exports/predict.py").read_text()
    int8 = (tmp_path / "exports/unet_model_int8.onnx").read_bytes()
    assert int8 == (made.exports / "unet_model_int8.onnx").read_bytes()


@needs_onnx
def test_export_of_a_gray_network_is_scored_on_rendered_cars(tmp_path, run, one_turn):
    write_model(tmp_path / "gray.pth.tar", channels=1)
    arguments = ("--model", "gray.pth.tar", "--formats", "int8", "torchscript")
    assert "on rendered cars" not in run("export.py", *arguments).stderr
    assert "40 rendered cars" in (tmp_path / "exports/README.md").read_text()
    session = onnxruntime.InferenceSession(tmp_path / "exports/unet_model_int8.onnx")
    (logits,) = session.run(None, {"input": np.zeros((2, 1, 17, 9), np.float32)})
    assert logits.shape == (2, 1, 17, 9)


def test_export_holds_fewer_images_where_they_are_large(tmp_path, run, one_turn, monkeypatch):
    monkeypatch.setattr(exporting, "HELD_PIXELS", 11 * 32 * 48 + 1)
    write_model(tmp_path / BEST)
    run("export.py", *OWN_MODEL, "--formats", "torchscript")
    assert "11 rendered cars" in (tmp_path / "exports/README.md").read_text()


@needs_onnx
def test_export_that_loses_dice_says_on_what_and_what_to_do(tmp_path, run, one_turn, monkeypatch):
    monkeypatch.setattr(exporting, "INT8_MAX_LOSS", -0.5)
    write_model(tmp_path / BEST)
    stderr = run("export.py", *OWN_MODEL, "--formats", "int8", status=2).stderr
    assert "and allowed is -0.5 less. It was scored on 40 images; if they are few" in stderr


def test_export_of_a_size_that_is_no_multiple(tmp_path, run, one_turn):
    write_model(tmp_path / BEST, IMAGE_HEIGHT=30, IMAGE_WIDTH=45)
    names = [name for name in ("pt2", "torchscript", "weights") if name in FILES]
    run("export.py", *OWN_MODEL, "--formats", *names)
    assert f"| {names[0]} | {FILES[names[0]]} |" in (tmp_path / "exports/README.md").read_text()
    finished = run("export.py", *OWN_MODEL, "--calibration", "typo", status=2)
    assert "no folder 'typo'" in finished.stderr


# ---------------------------------------------------------------- what goes wrong


def test_export_keeps_no_format_that_differs(made, tmp_path, monkeypatch, one_turn):
    out = tmp_path / "out"
    out.mkdir()
    (out / "unet_model_torchjit.pth").write_bytes(b"an earlier one")
    monkeypatch.setattr(exporting, "TOLERANCE", -1.0)
    arguments = (*OWN_MODEL, "--formats", "torchscript", "--out", out)
    stderr = run_script(made.folder, "export.py", *arguments, status=2).stderr
    assert re.search(
        "unet_model_torchjit.pth is not the model: its logits differ by up to .*; it was not kept",
        stderr,
    )
    assert [path.read_bytes() for path in out.iterdir()] == [b"an earlier one"]
    for process in multiprocessing.active_children():
        process.join(timeout=60)
        assert process.exitcode == 0


def write_useless_onnx(path, model, facts, opset):
    path.write_bytes(b"no model")


@needs_onnx
def test_export_describes_what_it_keeps_if_a_format_fails(made, tmp_path, monkeypatch, one_turn):
    out = tmp_path / "out"
    shutil.copytree(made.exports, out)
    monkeypatch.setattr(onnx_writers, "write_onnx", write_useless_onnx)
    write_model(tmp_path / "other.pth.tar", seed=5)
    arguments = ("--model", tmp_path / "other.pth.tar", "--formats", "onnx", "weights")
    finished = run_script(made.folder, "export.py", *arguments, "--out", out, status=2)
    assert "unet_model_onnx.onnx cannot be loaded and run" in finished.stderr
    earlier = finished.stdout.split("of an earlier export, perhaps of another model: ")[1]
    assert "unet_model_onnx.onnx" in earlier
    assert "unet_weights.pth.tar" not in earlier
    text = (out / "README.md").read_text()
    assert text.startswith("# other.pth.tar in other formats")
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == ["unet_weights.pth.tar"]
    assert "unet_model_onnx.onnx" not in text
    changed = [
        name for name in FILES.values() if not filecmp.cmp(out / name, made.exports / name, False)
    ]
    assert changed == ["unet_weights.pth.tar"]


class FailingOnce:
    """An object for a WorkerProcess."""

    def fail(self):
        raise ValueError("an example")

    def end(self):
        os._exit(1)


@pytest.mark.parametrize("method", ["fail", "end"])
def test_worker_process_that_has_ended_says_so(method):
    process = WorkerProcess(FailingOnce)
    with pytest.raises(WorkerError, match="ValueError: an example|its process ended"):
        process.call(method)
    for _ in range(3):
        with pytest.raises(WorkerError, match="its process ended"):
            process.call(method)
    process.close()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--formats", "tflite"], "invalid choice: 'tflite'"),
        (["--model", "nowhere"], "no model 'nowhere'"),
        (["--model", f"{PHOTOGRAPHS}/000000000064_01.jpg"], "is not a checkpoint that can be read"),
        (["--images", PHOTOGRAPHS], "--images and --masks go together"),
        (["--images", "nowhere", "--masks", "data/val_masks"], "no folder 'nowhere'"),
        (["--out", BEST], "best_checkpoint.pth.tar: File exists"),
        (["--opset", "17"], "--opset is 17, expected 18 to 21"),
        (["--opset", "22"], "leave it out for 18, which ONNX Runtime 1.14 and later load"),
        (["--opset", "new"], "invalid int value: 'new'"),
        (["--opset", "20", "--formats", "pth"], "--opset is for onnx, fp16 and int8"),
    ],
)
def test_export_answers_wrong_options(made, arguments, message):
    before = sorted(made.folder.rglob("*"))
    stderr = run_script(made.folder, "export.py", *OWN_MODEL, *arguments, status=2).stderr
    assert message in stderr
    assert sorted(made.folder.rglob("*")) == before


@needs_onnx
def test_export_keeps_no_format_whose_weights_are_too_large_for_it(made, tmp_path, one_turn):
    state = torch.load(made.folder / BEST)
    state["state_dict"]["final_conv.weight"] *= 1e6
    torch.save(state, tmp_path / "large.pth.tar")
    arguments = ("--model", tmp_path / "large.pth.tar", "--formats", "fp16", "--out", tmp_path)
    stderr = run_script(made.folder, "export.py", *arguments, status=2).stderr
    assert "unet_model_fp16.onnx is not the model: its logits differ by up to" in stderr
    assert not (tmp_path / "unet_model_fp16.onnx").exists()


def test_export_with_an_old_torch_names_the_one_that_a_format_needs(made, tmp_path, monkeypatch):
    monkeypatch.setattr(export_formats, "torch_version", lambda: (2, 6))
    arguments = (*OWN_MODEL, "--formats", "weights", "pt2")
    stderr = run_script(made.folder, "export.py", *arguments, status=2).stderr
    assert re.search(
        r"format pt2 needs torch 2\.\d+ or later; this is 2\.\S+: pip install -U torch, or "
        r"--formats weights pth torchscript",
        stderr,
    )


def test_export_with_an_old_torch_leaves_formats_out(made, tmp_path, monkeypatch, one_turn):
    monkeypatch.setattr(export_formats, "torch_version", lambda: (2, 6))
    arguments = (*OWN_MODEL, "--out", tmp_path)
    stdout = run_script(made.folder, "export.py", *arguments).stdout
    assert re.search(r"left out: .*pt2 needs torch 2\.\d+ or later; this is 2\.\S+", stdout)
    assert "unet_model_torchjit.pth" in {path.name for path in tmp_path.iterdir()}
    assert "unet_model.pt2" not in {path.name for path in tmp_path.iterdir()}


def find_spec_without_onnxruntime(name):
    return None if name == "onnxruntime" else object()


@needs_onnx
def test_export_without_onnxruntime_says_what_to_install(made, monkeypatch):
    monkeypatch.setattr(export_formats, "find_spec", find_spec_without_onnxruntime)
    stderr = run_script(made.folder, "export.py", *OWN_MODEL, status=2).stderr
    assert (
        "onnxruntime is not installed, for onnx fp16 int8; pip install onnxruntime, "
        "or leave them out of --formats"
    ) in stderr


def test_export_leaves_nothing_half_written_on_a_full_disk(made, tmp_path):
    names = [name for name in ("pth", "torchscript", "onnx", "pt2") if name in FILES]
    arguments = (*OWN_MODEL, "--formats", *names, "--out", tmp_path / "out")
    finished = run_with_small_files(made.folder, 3000, "export.py", *arguments)
    assert finished.returncode == 2
    assert "Traceback" not in finished.stderr
    assert "cannot be written" in finished.stderr
    assert list((tmp_path / "out").iterdir()) == []


# ---------------------------------------------------------------- loading exported files


@pytest.mark.parametrize("name", [name for name in FILES if name != "weights"])
@pytest.mark.parametrize("keep, content", [(0.5, b""), (0, b""), (0, b"no model")], ids=str)
def test_exported_file_that_is_damaged_is_named(made, tmp_path, name, keep, content):
    path = tmp_path / FILES[name]
    good = (made.exports / FILES[name]).read_bytes()
    path.write_bytes(good[: int(keep * len(good))] + content)
    with pytest.raises(UserError, match=rf"{FILES[name]} is no model that export.py wrote"):
        utils.load_model(path, "cpu")


def test_exported_model_with_a_payload_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = UNET(features=[4])
    model.extra = Payload()
    torch.save(model, "unet_model.pth")
    with pytest.raises(UserError, match="is no model that export.py wrote"):
        utils.load_model("unet_model.pth", "cpu")
    assert not Path("touched").exists()


def test_exported_model_may_have_no_constants_but_no_absurd_ones(tmp_path):
    """One that a tutorial saved has none."""
    path = tmp_path / "model.pth"
    model = UNET(features=[4])
    torch.save(model, path)
    photograph = np.zeros((9, 7, 3), np.uint8)
    (probability,) = utils.predict(utils.load_model(path, "cpu"), [photograph])
    assert probability.shape == (9, 7)
    model.config = {"IMAGE_HEIGHT": -5}
    torch.save(model, path)
    with pytest.raises(UserError, match="IMAGE_HEIGHT is -5"):
        utils.load_model(path, "cpu")


@needs_onnx
def test_predict_script_explains_itself_and_overwrites_nothing(made, tmp_path):
    photograph = tmp_path / "car.jpg"
    shutil.copy(min((made.folder / PHOTOGRAPHS).iterdir()), photograph)
    for arguments in ([], ["--help"], ["a.jpg", "b.onnx", "c.jpg"]):
        finished = predict_by_script(made, *arguments)
        assert finished.returncode == 1
        assert "python predict.py PHOTOGRAPH [FILE.onnx]" in finished.stderr
    assert predict_by_script(made, photograph).returncode == 0
    mask = (tmp_path / "car_mask.png").read_bytes()
    finished = predict_by_script(made, photograph)
    assert "car_mask.png is there already; move it away first" in finished.stderr
    assert (tmp_path / "car_mask.png").read_bytes() == mask


def predict_by_script(made, *arguments):
    return subprocess.run(
        [sys.executable, "predict.py", *map(str, arguments)],
        cwd=made.exports,
        capture_output=True,
        text=True,
    )


@needs_onnx
def test_export_of_an_exported_model_is_refused_at_once(made, run):
    model = made.exports / FILES["onnx"]
    stderr = run("export.py", "--model", model, status=2).stderr
    assert "is an exported model; name the checkpoint that it was made of" in stderr
