"""The models that come with the project: named, small, and of use at once."""

from pathlib import Path

import numpy as np
import pytest
from helpers import scene
from PIL import Image

import utils
from carvana.shipped import SHIPPED_MODELS, describe_model, find_model


@pytest.mark.parametrize(
    "name, parameters", [("anywhere", 4e6), ("studio", 2e6), ("studio-full", 2.5e6)]
)
def test_shipped_models_are_small(name, parameters):
    path = SHIPPED_MODELS[name].path
    assert path.stat().st_size < 16e6
    model = utils.load_model(path)
    assert sum(weights.numel() for weights in model.parameters()) < parameters


def test_shipped_models_have_names_unless_files_have_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = find_model("studio")
    assert Path(path).name == "carvana.pth.tar"
    assert describe_model(path) == "studio, for cars in Carvana's studio"
    Path("studio").write_bytes(b"a file of one's own")
    assert find_model("studio") == describe_model("studio") == "studio"
    assert find_model("my_checkpoint.pth.tar") == "my_checkpoint.pth.tar"


@pytest.mark.parametrize(
    "options, said, least_overlap",
    [
        ((), "model: anywhere, for cars in any photograph", 0.95),
        (("--model", "studio"), "model: studio, for cars in Carvana's studio", 0.69),
    ],
)
def test_first_command_of_the_readme_finds_a_car(tmp_path, run, options, said, least_overlap):
    """Nothing was trained on rendered cars; they are found all the same."""
    photograph, truth = scene(3, 320, 480)
    Image.fromarray(photograph).save(tmp_path / "car.jpg")
    finished = run("inference.py", "--img", "car.jpg", *options)
    assert said in finished.stdout
    mask = np.asarray(Image.open(tmp_path / "outputs/car_mask.png")) > 0
    overlap = (mask & (truth > 0)).sum() / (mask | (truth > 0)).sum()
    assert overlap > least_overlap
