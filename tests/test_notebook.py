"""train.ipynb, from top to bottom."""

import json
import os

import nbformat
from conftest import ROOT
from nbclient import NotebookClient

import demo_data

TINY = [
    "--preset",
    "demo",
    "--num-epochs",
    "1",
    "--image-height",
    "32",
    "--image-width",
    "48",
    "--features",
    "4",
    "8",
    "--batchnorm-images",
    "8",
]


def test_the_notebook_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    demo_data.render_set(tmp_path / "data/demo", cars=4, val_cars=2, angles=2, size=(48, 72))
    book = nbformat.read(ROOT / "train.ipynb", 4)
    assert (
        not any(cell.get("outputs") or cell.get("execution_count") for cell in book.cells)
        and os.path.getsize(ROOT / "train.ipynb") < 20_000
    )
    constants = next(cell for cell in book.cells if cell.source.startswith("WORDS"))
    constants.source = f"WORDS = {TINY}\n" + constants.source.split("\n", 1)[1]
    NotebookClient(
        book, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    outputs = [output for cell in book.cells for output in cell.get("outputs", [])]
    text = json.dumps(outputs)
    assert (
        "4 pairs to train on, 4 to validate on" in text
        and "Dice 0." in text
        and "epoch 2/2" in text
        and "epoch 1/1" in text
    )
    assert (
        sum(kind.startswith("image/") for output in outputs for kind in output.get("data", {})) >= 5
    )
    assert (tmp_path / "saved_images/index.html").exists()
