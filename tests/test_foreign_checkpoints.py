"""Checkpoints that others saved, of the same network, are read whatever is around their weights."""

from collections import OrderedDict

import numpy as np
import pytest
import torch
from helpers import BEST, LAST, OWN_MODEL, tiny_options, write_model

import utils
from model import UNET


class Wrapper(torch.nn.Module):
    """A network as Lightning's modules hold theirs, beside a loss with a weight."""

    def __init__(self):
        super().__init__()
        self.model = UNET(features=[4, 8])
        self.loss = torch.nn.BCEWithLogitsLoss(pos_weight=torch.ones(1))


OTHERS = {  # what others save, and around which dict of weights
    "torch's tutorial": lambda wrapper: {
        "epoch": 5,
        "model_state_dict": wrapper.model.state_dict(),
        "optimizer_state_dict": torch.optim.Adam(wrapper.model.parameters()).state_dict(),
        "loss": np.float32(0.1),
    },
    "model": lambda wrapper: {"model": wrapper.model.state_dict(), "history": {"loss": [1.0]}},
    "net": lambda wrapper: {"net": wrapper.model.state_dict(), "acc": np.float64(0.9)},
    "lightning": lambda wrapper: {
        "state_dict": wrapper.state_dict(),
        "epoch": 3,
        "hyper_parameters": {"lr": 1e-3},
    },
    "numpy scores": lambda wrapper: {
        "state_dict": wrapper.model.state_dict(),
        "best": np.float64(3.5),
        "epoch": np.int64(7),
        "good": np.bool_(True),
    },
    "compiled": lambda wrapper: torch.nn.Sequential(
        OrderedDict(_orig_mod=wrapper.model)
    ).state_dict(),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_checkpoint_of_others_is_read(kind, data, run, capsys):
    torch.manual_seed(0)
    wrapper = Wrapper()
    torch.save(OTHERS[kind](wrapper), data / LAST)
    model = utils.load_model(data / LAST)
    for name, tensor in wrapper.model.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor)
    finished = run("train.py", *tiny_options(NUM_EPOCHS=1), "--load-model", "true")
    assert f"{LAST}: 0 of 1 epochs done" in finished.stdout
    assert "epoch 1/1" in finished.stdout


def test_checkpoint_of_another_network_names_its_entries(data, run):
    torch.save({"model": {"encoder.conv1.weight": torch.ones(3)}, "epoch": 3}, data / LAST)
    stderr = run("evaluate.py", "--model", LAST, status=2).stderr
    assert "no weights of a UNET (its entries: 'model' with 'encoder.conv1.weight'; 'ep" in stderr
    assert "names ending in final_conv.weight, as they are or under state_dict or mod" in stderr


def test_training_starts_from_levels_of_other_names(data, run):
    weights = UNET(features=[4, 8]).state_dict()
    weights["downs.first.conv.0.weight"] = weights.pop("downs.0.conv.0.weight")
    weights["downs.7.conv.0.weight"] = torch.ones(())
    torch.save(weights, data / "other.pth")
    arguments = tiny_options(NUM_EPOCHS=0)
    finished = run("train.py", *arguments, "--init-weights", "other.pth")
    assert "weights of other.pth, but not: downs.0.conv.0.weight" in finished.stdout


def test_training_starts_from_a_whole_network(data, run):
    """export.py's .pth; a graph has no weights by name."""
    write_model(data / BEST)
    run("export.py", *OWN_MODEL, "--formats", "pth", "torchscript")
    arguments = ("train.py", *tiny_options(NUM_EPOCHS=0), "--init-weights")
    finished = run(*arguments, "exports/unet_model.pth")
    assert "weights of exports/unet_model.pth" in finished.stdout
    assert "but not" not in finished.stdout
    stderr = run(*arguments, "exports/unet_model_torchjit.pth", status=2).stderr
    assert "is a network's graph, which has no weights by name" in stderr
