"""train.ipynb, from top to bottom."""

import json

import nbformat
from helpers import ROOT, tiny_options
from nbclient import NotebookClient

from carvana.rendering import render_set

NOTEBOOK = ROOT / "train.ipynb"


def test_notebook_is_stored_without_outputs():
    book = nbformat.read(NOTEBOOK, 4)
    for cell in book.cells:
        assert not cell.get("outputs")
        assert not cell.get("execution_count")
    assert NOTEBOOK.stat().st_size < 20_000


def test_notebook_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    render_set(tmp_path / "data/demo", cars=4, val_cars=2, angles=2, size=(48, 72))
    book = nbformat.read(NOTEBOOK, 4)
    arguments = ["--preset", "demo", *tiny_options(NUM_EPOCHS=1, BATCHNORM_IMAGES=8)]
    first = next(cell for cell in book.cells if cell.source.startswith("WORDS"))
    _, rest = first.source.split("\n", 1)
    first.source = f"WORDS = {arguments}\n{rest}"
    folder = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(book, timeout=300, kernel_name="python3", resources=folder).execute()
    outputs = [output for cell in book.cells for output in cell.get("outputs", [])]
    text = json.dumps(outputs)
    for phrase in ("4 pairs to train on, 4 to validate on", "Dice 0.", "epoch 2/2", "epoch 1/1"):
        assert phrase in text, phrase
    kinds = [kind for output in outputs for kind in output.get("data", {})]
    assert sum(kind.startswith("image/") for kind in kinds) >= 5
    assert (tmp_path / "saved_images/index.html").exists()
