"""A model in other formats: equal, small, usable as their README says."""

import importlib.util
import json
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import ROOT, write_pairs
from PIL import Image
from test_bad_input import Payload, command
from test_inference import OURS, size_of, write_model

import pictures
import utils
from model import UNET
from pictures import UserError

FILES = {
    "weights": "unet_weights.pth.tar",
    "pth": "unet_model.pth",
    "torchscript": "unet_model_torchjit.pth",
    "onnx": "unet_model_onnx.onnx",
    "int8": "unet_model_int8.onnx",
    "pt2": "unet_model.pt2",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with pairs, a checkpoint and all its exports -> folder, what export.py printed."""
    folder = tmp_path_factory.mktemp("made")
    write_pairs(folder / "data/train_images", folder / "data/train_masks", cars=6)
    write_pairs(folder / "data/val_images", folder / "data/val_masks", cars=2, first=100)
    write_model(
        folder / "best_checkpoint.pth.tar",
        MEAN=[0.4, 0.5, 0.3],
        STD=[0.2, 0.3, 0.25],
        THRESHOLD=0.4,
        UNSHUFFLE=2,
    )
    done = subprocess.run(
        [sys.executable, ROOT / "export.py", *OURS], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return folder, done


@pytest.fixture
def model(made):
    return utils.load_model(made[0] / "best_checkpoint.pth.tar", "cpu")


def test_files_and_table(made):
    folder, done = made
    assert {path.name for path in (folder / "exports").iterdir()} == {
        *FILES.values(),
        "README.md",
        "predict.py",
    } and done.stderr == ""
    text = (folder / "exports/README.md").read_text()
    for name, file in FILES.items():
        row = re.search(
            rf"\| {name} \| {file} \| ([\d.]+) \| ([\d.]+) \| (\S+) \| (\S+) \| ([\d.]+) \|", text
        )
        size, latency, largest, mean, dice = map(float, row.groups())
        assert (
            size == pytest.approx((folder / "exports" / file).stat().st_size / 1e6, abs=0.006)
            and latency > 0
            and row[0] in done.stdout
        )
        assert mean <= largest and (name == "int8" or largest < 1e-3) and 0 < dice < 1
    assert (
        "| PyTorch, bfloat16 |" in text
        and "In int8 " in text
        and "4 photographs of data/val_images/" in text
    )


@pytest.mark.parametrize("name", FILES)
def test_snippets_run_as_printed(made, model, name, tmp_path):
    folder, _ = made
    text = (folder / "exports/README.md").read_text()
    snippet = re.search(rf"## {FILES[name]}\n\n```python\n(.*?)```", text, re.DOTALL)[1]
    images = np.random.default_rng(0).normal(size=(3, 3, 24, 40)).astype(np.float32)
    np.save(tmp_path / "images.npy", images)
    code = f"import numpy as np, warnings\nwarnings.simplefilter('ignore')\nimages = np.load(r'{tmp_path / 'images.npy'}')\n{snippet}\nnp.save(r'{tmp_path / 'logits.npy'}', logits)"
    subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder / "exports",
        check=True,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
    )
    with torch.no_grad():
        expected = model(torch.from_numpy(images)).numpy()
    assert np.abs(np.load(tmp_path / "logits.npy") - expected).max() < (
        0.3 * expected.std() + 0.3 if name == "int8" else 1e-4
    )


@pytest.mark.parametrize("name", FILES)
def test_inference_takes_them(made, name, tmp_path, run):
    folder, _ = made
    run(
        "inference.py",
        "--img",
        folder / "data/val_images",
        "--no-overlay",
        "--model",
        folder / "best_checkpoint.pth.tar",
        "--out",
        "a",
    )
    run(
        "inference.py",
        "--img",
        folder / "data/val_images",
        "--no-overlay",
        "--model",
        folder / "exports" / FILES[name],
        "--out",
        "b",
    )
    for path in (tmp_path / "a").iterdir():
        masks = [np.asarray(Image.open(tmp_path / out / path.name)) > 0 for out in "ab"]
        assert (masks[0] != masks[1]).mean() < (0.4 if name == "int8" else 1e-3) and 0.01 < masks[
            0
        ].mean() < 0.99


@pytest.mark.parametrize("words", [[], ["unet_model_onnx.onnx"]])
def test_predict_needs_no_torch(made, tmp_path, words):
    folder, _ = made
    photograph = tmp_path / "car.jpg"
    shutil.copy(min((folder / "data/val_images").iterdir()), photograph)
    code = f"import sys\nsys.modules['torch'] = None\nsys.argv = {['predict.py', str(photograph), *words]}\nimport runpy\nrunpy.run_path(r'{folder / 'exports/predict.py'}')"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder / "exports", capture_output=True, text=True
    )
    assert done.returncode == 0 and "foreground" in done.stdout, done.stderr
    model = utils.load_model(folder / "best_checkpoint.pth.tar", "cpu")
    probability = utils.predict(model, [pictures.read_image(photograph)])[0]
    with Image.open(tmp_path / "car_mask.png") as mask:
        assert ((np.asarray(mask) > 0) != (probability > 0.4)).mean() < 0.01
    lines = (folder / "exports/predict.py").read_text().splitlines()
    assert len(lines) <= 32 and size_of(tmp_path / "car_mask.png") == size_of(photograph)


def test_onnx_files_say_what_they_take(made):
    for name in ("onnx", "int8"):
        path = made[0] / "exports" / FILES[name]
        content = onnx.load(path, load_external_data=False)
        onnx.checker.check_model(content)
        assert [(one.domain, one.version) for one in content.opset_import if one.domain == ""] == [
            ("", 20)
        ]
        assert not any(tensor.external_data for tensor in content.graph.initializer)
        session = onnxruntime.InferenceSession(path)
        (given,), (returned,) = session.get_inputs(), session.get_outputs()
        assert (given.name, given.shape, returned.name) == (
            "input",
            ["batch", 3, "height", "width"],
            "output",
        )
        facts = {
            key: json.loads(value)
            for key, value in session.get_modelmeta().custom_metadata_map.items()
        }
        assert (
            facts["IMAGE_HEIGHT"] == 32
            and facts["MEAN"] == [0.4, 0.5, 0.3]
            and facts["THRESHOLD"] == 0.4
            and facts["FEATURES"] == [4, 8]
            and facts["DICE"] == 0.5
            and "torch" in facts["VERSION"]
        )


def test_another_models_files_are_told_and_not_used(made, tmp_path, run):
    folder, _ = made
    shutil.copytree(folder / "exports", tmp_path / "exports")
    write_model(tmp_path / "other.pth.tar")
    done = run("export.py", "--model", "other.pth.tar", "--formats", "onnx")
    assert (
        "of an earlier export, perhaps of another model: unet_weights.pth.tar, " in done.stdout
        and "unet_model_int8.onnx" in done.stdout
    )
    assert '"unet_model_onnx.onnx"' in (tmp_path / "exports/predict.py").read_text()
    assert (tmp_path / "exports/unet_model_int8.onnx").read_bytes() == (
        folder / "exports/unet_model_int8.onnx"
    ).read_bytes()


def test_a_format_that_does_not_match_is_not_kept(made, tmp_path, monkeypatch, capsys):
    import export

    folder, _ = made
    (tmp_path / "out").mkdir()
    (tmp_path / "out/unet_model_torchjit.pth").write_bytes(b"an earlier one")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(
        sys,
        "argv",
        ["export.py", *OURS, "--formats", "torchscript", "--out", str(tmp_path / "out")],
    )
    monkeypatch.setattr(export, "TOLERANCE", -1.0)
    with pytest.raises(
        UserError,
        match="unet_model_torchjit.pth is not the model: its logits differ by up to .*; it was not kept",
    ):
        export.main(export.arguments())
    assert [path.read_bytes() for path in (tmp_path / "out").iterdir()] == [b"an earlier one"]


@pytest.mark.parametrize(
    "words, said",
    [
        (["--formats", "tflite"], "invalid choice: 'tflite'"),
        (["--model", "nowhere"], "no checkpoint 'nowhere'"),
        (
            ["--model", "data/val_images/000000000064_01.jpg"],
            "is not a checkpoint that can be read",
        ),
        (["--images", "data/val_images"], "--images and --masks go together"),
        (["--images", "nowhere", "--masks", "data/val_masks"], "no folder 'nowhere'"),
        (["--out", "best_checkpoint.pth.tar"], "best_checkpoint.pth.tar: File exists"),
    ],
)
def test_wrong_words(made, monkeypatch, capsys, words, said):
    folder, _ = made
    before = sorted(path for path in folder.rglob("*"))
    assert command(monkeypatch, folder, ["export.py", *OURS, *words]) == 2
    assert said in capsys.readouterr().err and sorted(path for path in folder.rglob("*")) == before


def test_without_onnxruntime(made, monkeypatch, capsys):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "onnxruntime" else find_spec(name, *rest),
    )
    assert command(monkeypatch, made[0], ["export.py", *OURS]) == 2
    assert (
        "onnxruntime is not installed, which onnx and int8 need; pip install onnxruntime, or leave them out of --formats"
        in capsys.readouterr().err
    )


def test_a_full_disk(made, tmp_path):
    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))

    done = subprocess.run(
        [
            sys.executable,
            ROOT / "export.py",
            *OURS,
            "--formats",
            "pth",
            "onnx",
            "--out",
            tmp_path / "out",
        ],
        cwd=made[0],
        capture_output=True,
        text=True,
        preexec_fn=limit,
    )
    assert (
        done.returncode == 2
        and "Traceback" not in done.stderr
        and "cannot be written" in done.stderr
        and list((tmp_path / "out").iterdir()) == []
    )


@pytest.mark.parametrize("name", [name for name in FILES if name != "weights"])
@pytest.mark.parametrize(
    "spoil", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"no model"]
)
def test_damaged_exports_are_named(made, tmp_path, name, spoil):
    path = tmp_path / FILES[name]
    path.write_bytes(spoil((made[0] / "exports" / FILES[name]).read_bytes()))
    with pytest.raises(UserError, match=rf"{FILES[name]} is no model that export.py wrote"):
        utils.load_model(path, "cpu")


def test_a_whole_model_with_a_payload_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = UNET(features=[4])
    model.extra = Payload()
    torch.save(model, "unet_model.pth")
    with pytest.raises(UserError, match="is no model that export.py wrote"):
        utils.load_model("unet_model.pth", "cpu")
    assert not Path("touched").exists()


def test_a_grey_network(tmp_path, run):
    """Rendered cars stand in where there are no photographs."""
    write_model(tmp_path / "grey.pth.tar", channels=1)
    done = run("export.py", "--model", "grey.pth.tar", "--formats", "int8", "torchscript")
    assert (
        "on rendered cars" not in done.stderr
        and "40 rendered cars" in (tmp_path / "exports/README.md").read_text()
    )
    session = onnxruntime.InferenceSession(tmp_path / "exports/unet_model_int8.onnx")
    assert session.run(None, {"input": np.zeros((2, 1, 17, 9), np.float32)})[0].shape == (
        2,
        1,
        17,
        9,
    )


def test_a_size_that_is_no_multiple(tmp_path, run):
    write_model(tmp_path / "best_checkpoint.pth.tar", IMAGE_HEIGHT=30, IMAGE_WIDTH=45)
    run("export.py", *OURS, "--formats", "pt2", "weights")
    assert "| pt2 | unet_model.pt2 |" in (tmp_path / "exports/README.md").read_text()
    assert "no folder 'typo'" in run("export.py", *OURS, "--calibration", "typo", status=2).stderr


def test_a_whole_model_with_other_constants(tmp_path):
    """One that the lineage saved has none; one with absurd ones is refused."""
    model = UNET(features=[4])
    torch.save(model, tmp_path / "model.pth")
    assert utils.predict(
        utils.load_model(tmp_path / "model.pth", "cpu"), [np.zeros((9, 7, 3), np.uint8)]
    )[0].shape == (9, 7)
    model.config = {"IMAGE_HEIGHT": -5}
    torch.save(model, tmp_path / "model.pth")
    with pytest.raises(UserError, match="IMAGE_HEIGHT is -5"):
        utils.load_model(tmp_path / "model.pth", "cpu")
