"""What a training run may have besides the plain step: schedules, averages, early ends."""

import functools
from types import SimpleNamespace

import pytest
import torch
from helpers import LAST, is_same, no_scaler, run_result
from torch.nn.modules.module import register_module_forward_pre_hook

import train
import utils
from carvana import startup
from carvana.augmentation import val_transform
from carvana.checkpoint import read_checkpoint
from carvana.errors import UserError
from dataset import CarvanaDataset
from model import UNET


def history(filename=LAST):
    return read_checkpoint(filename)["history"]


# ---------------------------------------------------------------- schedules and early ends


def test_schedule_continues_where_it_stopped(settings):
    changes = {
        "NUM_EPOCHS": 4,
        "SCHEDULE": "linear",
        "OPTIMIZER": "muon",
        "LEARNING_RATE": 0.1,
        "BATCH_SIZE": 2,
        "THRESHOLD": 0.2,
    }
    train.main(settings(**changes))
    straight = run_result()
    rates = [row["learning_rate"] for row in straight["history"]]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 0.005
    # The schedule spans NUM_EPOCHS: stopped after two of four epochs, not after two of two.
    reached = min(row["dice"] for row in straight["history"][:2])
    train.main(settings(STOP_AT_DICE=reached, LOOKS_PER_EPOCH=1, **changes))
    stopped = run_result()
    assert stopped["epoch"] < 4
    assert stopped["history"] == straight["history"][: stopped["epoch"]]
    train.main(settings(LOAD_MODEL=True, **changes))
    assert is_same(straight, run_result())


def test_stop_at_dice_ends_the_run_at_that_score(settings, capsys):
    changes = {"BATCH_SIZE": 2, "LEARNING_RATE": 0.06, "OPTIMIZER": "muon", "GALLERY_MAX": 0}
    train.main(settings(NUM_EPOCHS=50, STOP_AT_DICE=0.8, LOOKS_PER_EPOCH=3, **changes))
    lines = capsys.readouterr().out.splitlines()
    state = read_checkpoint(LAST)
    assert state["epoch"] < 50
    *earlier, last = [row["dice"] for row in state["history"]]
    assert last >= 0.8
    assert all(dice < 0.8 for dice in earlier)
    line = next(line for line in lines if "STOP_AT_DICE" in line)
    assert float(line.split()[1]) >= 0.8
    assert "s after the start of the process" in line
    scores = [float(line.split()[-1]) for line in lines if line.startswith("Dice score")]
    *earlier, at_look, end_of_epoch = scores  # the last two with the same weights
    assert all(score < 0.8 for score in earlier)
    assert at_look == end_of_epoch


def test_stop_at_dice_gives_up_early_and_never_wrongly(settings, capsys):
    train.main(settings(NUM_EPOCHS=1))
    folders = [folder for pair in startup.data_folders(settings()) for folder in pair]
    _, loader = utils.get_loaders(*folders, 2, None, val_transform(), 0, False, size=(32, 48))
    model = utils.load_model(LAST, "cpu")
    check = functools.partial(utils.check_accuracy, loader, model, "cpu")
    dice = check()["dice"]
    capsys.readouterr()
    for at_least in (dice - 1e-9, dice - 0.1):
        assert check(at_least=at_least)["dice"] == dice
    assert capsys.readouterr().out.count("Dice score") == 2
    for at_least in (dice + 1e-9, 0.9999):
        assert dice <= check(at_least=at_least)["dice"] < at_least
    assert "Dice score" not in capsys.readouterr().out


def test_run_without_stop_at_dice_is_scored_once_an_epoch(settings, capsys):
    train.main(settings(NUM_EPOCHS=2))
    assert capsys.readouterr().out.count("Dice score") == 2


class Scripted:
    """check_accuracy with a Dice of the test's own in place of the true one."""

    def __init__(self, dices):
        self.dices = iter(dices)

    def __call__(self, *args, **options):
        return utils.check_accuracy(*args, **options) | {"dice": next(self.dices)}


def test_patience_ends_a_run_also_after_resuming(settings, monkeypatch, capsys):
    check = Scripted([0.5, 0.6, 0.55, 0.58, 0.59, 0.4])
    monkeypatch.setattr(train, "check_accuracy", check)
    train.main(settings(NUM_EPOCHS=50, PATIENCE=2))
    assert [row["dice"] for row in history()] == [0.5, 0.6, 0.55, 0.58]
    assert "no better Dice for PATIENCE = 2 epochs" in capsys.readouterr().out
    train.main(settings(NUM_EPOCHS=50, PATIENCE=2, LOAD_MODEL=True))
    assert read_checkpoint(LAST)["epoch"] == 4


# ---------------------------------------------------------------- steps


class Batches(list):
    """Batches of (images, masks) in place of a loader."""

    dataset = range(8)
    batch_size = 2
    sampler = None


def test_accumulated_batches_are_one_step_of_a_larger_one():
    images = torch.rand(8, 3, 5, 7)
    masks = torch.rand(8, 5, 7).round()
    weights = []
    for sizes, accumulate, expected_steps in (((2, 2, 2, 2), 3, [3, 4]), ((6, 2), 1, [1, 2])):
        torch.manual_seed(0)
        model = torch.nn.Conv2d(3, 1, 3, padding=1)
        model.config = {"PRECISION": "fp32"}
        optimizer = torch.optim.SGD(model.parameters(), 0.5)
        steps = []
        batches = Batches(zip(images.split(sizes), masks.split(sizes), strict=True))
        options = train.StepOptions(accumulate=accumulate, after_step=steps.append)
        loss_fn = torch.nn.BCEWithLogitsLoss()
        train.train_fn(batches, model, optimizer, loss_fn, no_scaler(), options)
        weights.append(model.weight.detach().clone())
        assert steps == expected_steps
    assert torch.allclose(*weights, atol=1e-6)


def steep_loss(logits, _):
    return 1000 * logits.mean()


def test_gradients_are_clipped():
    model = torch.nn.Conv2d(3, 1, 1)
    model.config = {"PRECISION": "fp32"}
    before = model.weight.detach().clone()
    batches = Batches([(torch.rand(2, 3, 5, 7), torch.ones(2, 5, 7))])
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    options = train.StepOptions(clip=0.01)
    train.train_fn(batches, model, optimizer, steep_loss, no_scaler(), options)
    assert 0 < (model.weight - before).norm() <= 0.0101


def test_average_of_the_weights_is_scored_and_kept(settings):
    train.main(settings(NUM_EPOCHS=2, EMA=0.95))
    state = read_checkpoint(LAST)
    name = "downs.0.conv.0.weight"
    assert state["state_dict"].keys() == state["trained"].keys()
    assert not torch.equal(state["state_dict"][name], state["trained"][name])
    model = utils.load_model(LAST, "cpu")
    assert torch.equal(model.state_dict()[name], state["state_dict"][name])
    dataset = CarvanaDataset("data/val_images", "data/val_masks", val_transform(), size=(32, 48))
    scores = utils.check_accuracy(utils.make_loader(dataset, 4), model, "cpu")
    assert scores["dice"] == state["history"][-1]["dice"]


class TrainedSizes(list):
    """A hook that notes the size of each batch that a UNET is trained on."""

    def __call__(self, module, inputs):
        if isinstance(module, UNET) and module.training:
            self.append(tuple(inputs[0].shape[2:]))


def test_resolutions_begin_with_smaller_images(settings):
    sizes = TrainedSizes()
    hook = register_module_forward_pre_hook(sizes)
    train.main(settings(NUM_EPOCHS=2, RESOLUTIONS=[0.5, 1.0], BATCHNORM_IMAGES=0))
    hook.remove()
    assert sizes == 3 * [(16, 32)] + 3 * [(32, 48)]  # 24 is no multiple of 16


# ---------------------------------------------------------------- compiling, weights to start from


@pytest.mark.slow
def test_compiled_run_writes_an_ordinary_checkpoint(settings, monkeypatch):
    with monkeypatch.context() as patch:  # traced, but without a C++ compiler
        patch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
        train.main(settings(NUM_EPOCHS=2, COMPILE="true"))
    compiled = run_result()["state_dict"]
    assert not any(name.startswith("_orig_mod") for name in compiled)
    train.main(settings(NUM_EPOCHS=2, COMPILE="false"))
    plain = run_result()["state_dict"]
    weights = zip(compiled.values(), plain.values(), strict=True)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in weights)


def test_optimizer_does_not_continue_with_another_ones_state(settings):
    train.main(settings(NUM_EPOCHS=1))
    expected = "other OPTIMIZER; to continue with it, add --optimizer adam"
    with pytest.raises(UserError, match=expected):
        train.main(settings(NUM_EPOCHS=2, OPTIMIZER="muon", LOAD_MODEL=True))


SCORED = {"history": [{}], "best": 0.5, "stop_reason": "", "epochs_left": 0}  # a Progress


def test_weights_that_training_made_worse_are_named(settings, data, capsys, monkeypatch):
    train.main(settings(NUM_EPOCHS=12, LEARNING_RATE=0.02, POSITIVE_WEIGHT=10.0))
    (data / LAST).rename(data / "mine.pth.tar")
    dice = history("mine.pth.tar")[-1]["dice"]
    assert dice > 0.3
    train.main(settings(NUM_EPOCHS=1, INIT_WEIGHTS="mine.pth.tar", LEARNING_RATE=3.0))
    expected = f"warning: the weights to start from score higher, {dice:.4f}; keep these, or lower"
    assert expected in capsys.readouterr().err
    monkeypatch.setattr(train.distributed, "FIRST", False)  # another process of the same run
    train.conclude(settings(), SimpleNamespace(**SCORED), start_dice=0.9)
    assert capsys.readouterr().err == ""


def test_weights_of_other_levels_are_named(settings, data, capsys):
    train.main(settings(NUM_EPOCHS=1))
    (data / LAST).rename(data / "mine.pth.tar")
    capsys.readouterr()
    train.main(settings(NUM_EPOCHS=1, INIT_WEIGHTS="mine.pth.tar", FEATURES=[4, 8, 8]))
    printed = capsys.readouterr()
    assert "fit in part only; they are of FEATURES 4 8 and UNSHUFFLE 1: set these" in printed.err
    assert "before training" not in printed.out


def test_init_weights_are_what_training_starts_from(settings, data, capsys):
    train.main(settings(NUM_EPOCHS=3))
    (data / LAST).rename(data / "mine.pth.tar")
    loss = history("mine.pth.tar")[-1]["val_loss"]
    train.main(settings(NUM_EPOCHS=1, INIT_WEIGHTS="mine.pth.tar", LEARNING_RATE=1e-9))
    assert history()[-1]["val_loss"] == pytest.approx(loss, rel=0.02)
    train.main(settings(NUM_EPOCHS=1, LEARNING_RATE=1e-9))
    assert history()[-1]["val_loss"] != pytest.approx(loss, rel=0.1)
    printed = capsys.readouterr()
    assert "weights of mine.pth.tar\n" in printed.out
    dice = history("mine.pth.tar")[-1]["dice"]
    assert f"before training: Dice {dice:.4f} at 32x48\n" in printed.out
    assert "warning: the weights to start from" not in printed.err
    train.main(settings(NUM_EPOCHS=1, INIT_WEIGHTS="mine.pth.tar", IN_CHANNELS=1))
    assert (
        "weights of mine.pth.tar, but not: downs.0.conv.0.weight (4, 1, 3, 3), there (4, 3, 3, 3)\n"
        in capsys.readouterr().out
    )
