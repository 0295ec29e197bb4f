"""train.ipynb and finetune.ipynb, from top to bottom."""

import json

import nbformat
import pytest
from helpers import ROOT, tiny_options
from nbclient import NotebookClient

from carvana.rendering import render_set


def run_notebook(name, options, folder, monkeypatch):
    """Run a notebook in a folder with other options; return its outputs as text, and its images."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("IPYTHONDIR", str(folder / "ipython"))
    book = nbformat.read(ROOT / name, 4)
    cell = next(cell for cell in book.cells if "OPTIONS = " in cell.source)
    lines = cell.source.split("\n")
    (number,) = (i for i, line in enumerate(lines) if line.startswith("OPTIONS = "))
    lines[number] = f"OPTIONS = {options!r}"
    cell.source = "\n".join(lines)
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(book, timeout=300, kernel_name="python3", resources=resources).execute()
    outputs = [output for cell in book.cells for output in cell.get("outputs", [])]
    kinds = [kind for output in outputs for kind in output.get("data", {})]
    return json.dumps(outputs), sum(kind.startswith("image/") for kind in kinds)


@pytest.mark.parametrize("name", ["train.ipynb", "finetune.ipynb"])
def test_notebook_is_stored_without_outputs(name):
    book = nbformat.read(ROOT / name, 4)
    for cell in book.cells:
        assert not cell.get("outputs")
        assert not cell.get("execution_count")
    assert (ROOT / name).stat().st_size < 20_000


def test_notebook_runs(tmp_path, monkeypatch):
    render_set(tmp_path / "data/demo", cars=4, val_cars=2, angles=2, size=(48, 72))
    options = ["--preset", "demo", *tiny_options(NUM_EPOCHS=1, BATCHNORM_IMAGES=8)]
    text, images = run_notebook("train.ipynb", options, tmp_path, monkeypatch)
    for phrase in ("4 pairs to train on, 4 to validate on", "Dice 0.", "epoch 2/2", "epoch 1/1"):
        assert phrase in text, phrase
    assert images >= 5
    assert (tmp_path / "saved_images/index.html").exists()


def test_notebook_of_fine_tuning_runs(tmp_path, monkeypatch):
    folder = tmp_path / "data/twenty"
    render_set(folder, cars=6, val_cars=2, angles=1, size=(48, 72))
    render_set(folder / "more", cars=3, val_cars=3, angles=1, size=(48, 72), seed=1)
    for name in ("images", "masks"):
        (folder / f"more/val_{name}").rename(folder / f"test_{name}")
    features = [16, 32, 64, 128, 128, 128]  # of the weights that it starts from
    tiny = tiny_options(NUM_EPOCHS=1, BATCHNORM_IMAGES=4, FEATURES=features)
    options = " ".join(["--preset", "quality", *tiny])
    text, images = run_notebook("finetune.ipynb", options, tmp_path, monkeypatch)
    for phrase in ("3 photographs in data/twenty/test_images", "weights of ", "epoch 1/1"):
        assert phrase in text, phrase
    assert "but not: " not in text  # all weights were taken over
    assert text.count(" before, ") == 2 and " apart before, " in text
    assert images >= 2
    assert (tmp_path / "saved_images/finetuned/index.html").exists()
