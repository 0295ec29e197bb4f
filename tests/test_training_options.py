"""Optimizers and schedules, and the run that ends at a score."""

import itertools

import numpy as np
import pytest
import torch
from conftest import scene
from test_train import result, same

import device
import recipe
import train
import utils
from dataset import CarvanaDataset, val_transform
from model import UNET
from pictures import UserError


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 16, 144), (2, 64, 9), (1, 5, 1000)])
def test_orthogonal_is_near_the_orthogonal_factor(shape):
    torch.manual_seed(0)
    matrices = torch.randn(shape) * 1e-3
    u, _, vh = torch.linalg.svd(matrices, full_matrices=False)
    ours = recipe.orthogonal(matrices)
    assert ours.dtype == torch.float32 and ours.shape == shape
    alike = (ours * (u @ vh)).sum((1, 2)) / (ours.norm(dim=(1, 2)) * (u @ vh).norm(dim=(1, 2)))
    assert alike.min() > 0.95
    assert torch.isfinite(recipe.orthogonal(torch.zeros(shape))).all()


def test_muon_follows_adam_where_there_is_no_kernel():
    torch.manual_seed(0)
    ours, theirs = (torch.nn.Parameter(torch.ones(7)) for _ in range(2))
    muon, adam = recipe.Muon([ours], 0.02), torch.optim.Adam([theirs], 0.02 * recipe.ADAM_SHARE)
    for _ in range(20):
        ours.grad = torch.randn(7)
        theirs.grad = ours.grad.clone()
        muon.step()
        adam.step()
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_a_kernel_moves_by_the_learning_rate_in_every_direction():
    kernel = torch.nn.Parameter(torch.zeros(8, 4, 3, 3))
    kernel.grad = torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(0)) * 1e-6
    recipe.Muon([kernel], 0.1).step()
    moved = torch.linalg.svdvals(kernel.detach().flatten(1))
    assert moved.max() < 0.13 and moved.min() > 0.03


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_muon_learns_and_its_state_resumes(memory_format, tmp_path):
    def start():
        torch.manual_seed(0)
        model = UNET(features=[4, 8]).to(memory_format=memory_format)
        return model, recipe.make_optimizer("muon", model.parameters(), 0.02, torch.device("cpu"))

    generator = torch.Generator().manual_seed(0)
    images = torch.rand(4, 3, 16, 24, generator=generator)
    masks = (images[:, :1] > 0.5).float()

    def steps(model, optimizer, count):
        for _ in range(count):
            loss = torch.nn.functional.binary_cross_entropy_with_logits(model(images), masks)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return loss.item()

    model, optimizer = start()
    first = steps(model, optimizer, 1)
    steps(model, optimizer, 9)
    torch.save(
        {"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "state"
    )
    assert steps(model, optimizer, 30) < 0.6 * first
    other, resumed = start()
    state = torch.load(tmp_path / "state", weights_only=True)
    other.load_state_dict(state["model"])
    resumed.load_state_dict(state["optimizer"])
    steps(other, resumed, 30)
    assert same(model.state_dict(), other.state_dict()) and same(
        optimizer.state_dict(), resumed.state_dict()
    )


def test_learning_rates():
    assert {recipe.learning_rate("constant", 0.1, 0.3, p / 10) for p in range(10)} == {0.1}
    for schedule, warmup in itertools.product(("linear", "quadratic"), (0.0, 0.1, 1.0)):
        rates = [recipe.learning_rate(schedule, 0.1, warmup, p / 1000) for p in range(1000)]
        assert all(0 < rate <= 0.1 for rate in rates) and max(rates) == pytest.approx(0.1, rel=0.01)
        top = rates.index(max(rates))
        assert abs(top - 1000 * warmup) <= 1 and rates == sorted(rates[:top]) + sorted(
            rates[top:], reverse=True
        )
        assert warmup == 1.0 or rates[-1] < 0.0002


def test_a_schedule_goes_on_where_it_stopped(settings):
    changes = {
        "SCHEDULE": "linear",
        "OPTIMIZER": "muon",
        "LEARNING_RATE": 0.1,
        "BATCH_SIZE": 2,
        "THRESHOLD": 0.2,
    }
    train.main(settings(NUM_EPOCHS=4, **changes))
    straight = result()
    rates = [row["learning_rate"] for row in straight["history"]]
    assert rates == sorted(rates, reverse=True) and rates[-1] < 0.005
    # the schedule spans NUM_EPOCHS: stopped after two of four epochs, not after two of two
    train.main(
        settings(
            NUM_EPOCHS=4,
            STOP_AT_DICE=min(row["dice"] for row in straight["history"][:2]),
            LOOKS_PER_EPOCH=1,
            **changes,
        )
    )
    stopped = result()
    assert stopped["epoch"] < 4 and stopped["history"] == straight["history"][: stopped["epoch"]]
    train.main(settings(NUM_EPOCHS=4, LOAD_MODEL=True, **changes))
    assert same(straight, result())


def test_it_stops_at_the_score_that_was_asked_for(settings, capsys):
    train.main(
        settings(
            NUM_EPOCHS=50,
            BATCH_SIZE=2,
            LEARNING_RATE=0.02,
            OPTIMIZER="muon",
            STOP_AT_DICE=0.8,
            LOOKS_PER_EPOCH=3,
        )
    )
    said = capsys.readouterr().out
    state = utils.read_checkpoint("my_checkpoint.pth.tar")
    assert state["epoch"] < 50 and state["history"][-1]["dice"] >= 0.8
    assert all(row["dice"] < 0.8 for row in state["history"][:-1])
    line = next(line for line in said.splitlines() if "STOP_AT_DICE" in line)
    assert float(line.split()[1]) >= 0.8 and "s after the start of the process" in line
    scores = [
        float(line.split()[-1]) for line in said.splitlines() if line.startswith("Dice score")
    ]
    assert (
        all(score < 0.8 for score in scores[:-2]) and scores[-1] == scores[-2]
    )  # the last look, and the epoch's end with the same weights


def test_a_score_out_of_reach_is_given_up_early_and_never_wrongly(settings, data, capsys):
    train.main(settings(NUM_EPOCHS=1))
    loader = utils.get_loaders(
        *train.folders(settings()), 2, None, val_transform(), 0, False, size=(32, 48)
    )[1]
    model = utils.load_model("my_checkpoint.pth.tar", "cpu")
    dice = utils.check_accuracy(loader, model, "cpu")["dice"]
    capsys.readouterr()
    for at_least in (dice - 1e-9, dice - 0.1):
        assert utils.check_accuracy(loader, model, "cpu", at_least=at_least)["dice"] == dice
    assert capsys.readouterr().out.count("Dice score") == 2
    for at_least in (dice + 1e-9, 0.9999):
        assert (
            dice <= utils.check_accuracy(loader, model, "cpu", at_least=at_least)["dice"] < at_least
        )
    assert "Dice score" not in capsys.readouterr().out


def test_without_stop_nothing_is_looked_at_within_an_epoch(settings, capsys):
    train.main(settings(NUM_EPOCHS=2))
    assert capsys.readouterr().out.count("Dice score") == 2


def test_compiling_pays_on_cuda_in_long_runs_only():
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    assert device.compiling_pays("auto", cuda, 3600) and not device.compiling_pays(
        "auto", cuda, 100
    )
    assert not device.compiling_pays("auto", cpu, 10**6) and not device.compiling_pays(
        "false", cuda, 10**6
    )
    assert device.compiling_pays("true", cpu, 0)


@pytest.mark.slow
def test_a_compiled_run_writes_an_ordinary_checkpoint(settings, monkeypatch):
    compile_model = torch.compile
    with monkeypatch.context() as patch:
        patch.setattr(
            torch, "compile", lambda model: compile_model(model, backend="eager")
        )  # traced, but without a C++ compiler
        train.main(settings(NUM_EPOCHS=2, COMPILE="true"))
    compiled = result()
    assert not any(name.startswith("_orig_mod") for name in compiled["state_dict"])
    train.main(settings(NUM_EPOCHS=2, COMPILE="false"))
    assert all(
        torch.allclose(a, b, atol=1e-5)
        for a, b in zip(compiled["state_dict"].values(), result()["state_dict"].values())
    )


def test_workers_are_chosen_from_the_machine():
    assert device.choose_workers(torch.device("cpu"), cached=True) == 0
    assert device.choose_workers(torch.device("cpu"), cached=False) in (1, 2)
    assert 1 <= device.choose_workers(torch.device("cuda"), cached=True) <= 8


def test_another_optimizer_does_not_go_on_with_this_ones_state(settings):
    train.main(settings(NUM_EPOCHS=1))
    with pytest.raises(UserError, match="other OPTIMIZER; to go on with it, add --optimizer adam"):
        train.main(settings(NUM_EPOCHS=2, OPTIMIZER="muon", LOAD_MODEL=True))


# ---------------------------------------------------------------- losses, and what else a recipe may have


def test_losses_are_their_formulas():
    logits = torch.tensor([[[[2.0, -1.0], [0.5, -3.0]]], [[[1.0, 1.0], [-2.0, 0.0]]]])
    masks = torch.tensor([[[[1.0, 0.0], [0.5, 0.0]]], [[[0.0, 1.0], [0.0, 0.0]]]])
    p = 1 / (1 + np.exp(-logits.numpy().astype(float)))
    t = masks.numpy()
    bce = -(t * np.log(p) + (1 - t) * np.log(1 - p)).mean()
    dice = np.mean(
        [1 - (2 * (p[i] * t[i]).sum() + 1) / (p[i].sum() + t[i].sum() + 1) for i in (0, 1)]
    )
    for name, expected in (("bce", bce), ("dice", dice), ("bce_dice", bce + dice)):
        assert recipe.make_loss(name)(logits, masks).item() == pytest.approx(expected, rel=1e-5)
    even = torch.zeros(1, 1, 64, 96)
    assert recipe.make_loss("edge")(even + 1, even).item() == pytest.approx(
        recipe.make_loss("bce")(even + 1, even).item(), rel=1e-5
    )


@pytest.mark.parametrize("name", ["bce", "dice", "bce_dice", "edge"])
def test_losses_are_least_for_the_truth(name):
    masks = torch.from_numpy(scene(3, 64, 96)[1])[None, None].float()
    loss = recipe.make_loss(name)
    truth = (20 * (2 * masks - 1)).requires_grad_()
    assert loss(truth, masks).item() < 1e-3 < loss(-truth, masks).item()
    for empty in (torch.zeros(1, 1, 8, 8), torch.ones(1, 1, 8, 8)):
        logits = torch.zeros(1, 1, 8, 8, requires_grad=True)
        loss(logits, empty).backward()
        assert logits.grad.isfinite().all() and ((logits.grad > 0) == (empty == 0)).all()


@pytest.mark.parametrize("size, reach", [((5, 7), 1), ((9, 4), 20), ((64, 96), 5), ((1, 3000), 90)])
def test_means_around_are_means(size, reach):
    values = torch.rand(2, 1, *size)
    wanted = torch.nn.functional.avg_pool2d(
        values, (1, 2 * reach + 1), 1, (0, reach), count_include_pad=False
    )
    assert torch.allclose(recipe.means_around(values, reach), wanted, atol=1e-5)


def test_errors_at_the_outline_cost_more_in_the_edge_loss():
    masks = torch.zeros(1, 1, 64, 96)
    masks[..., :48] = 1
    at, far = (20 * (2 * masks - 1)).clone(), (20 * (2 * masks - 1)).clone()
    at[..., 47] *= -1
    far[..., 10] *= -1
    assert recipe.edge_loss(at, masks) > 3 * recipe.edge_loss(far, masks)
    assert recipe.make_loss("bce")(at, masks) == pytest.approx(
        recipe.make_loss("bce")(far, masks).item()
    )


class Given(list):
    """Batches of (images, masks) as a loader."""

    dataset, batch_size, sampler = range(8), 2, None


def test_accumulated_batches_are_one_step_of_a_larger_one():
    images, masks = torch.rand(8, 3, 5, 7), torch.rand(8, 5, 7).round()
    results = []
    for sizes, accumulate in (((2, 2, 2, 2), 3), ((6, 2), 1)):
        torch.manual_seed(0)
        model = torch.nn.Conv2d(3, 1, 3, padding=1)
        optimizer, steps = torch.optim.SGD(model.parameters(), 0.5), []
        model.config = {"PRECISION": "fp32"}
        batches = Given(zip(images.split(sizes), masks.split(sizes)))
        train.train_fn(
            batches,
            model,
            optimizer,
            torch.nn.BCEWithLogitsLoss(),
            torch.amp.GradScaler("cpu", enabled=False),
            accumulate=accumulate,
            after_step=steps.append,
        )
        results.append(model.weight.detach().clone())
        assert steps == ([3, 4] if accumulate == 3 else [1, 2])
    assert torch.allclose(*results, atol=1e-6)


def test_gradients_are_clipped():
    model = torch.nn.Conv2d(3, 1, 1)
    before, model.config = model.weight.detach().clone(), {"PRECISION": "fp32"}
    batches = Given([(torch.rand(2, 3, 5, 7), torch.ones(2, 5, 7))])
    train.train_fn(
        batches,
        model,
        torch.optim.SGD(model.parameters(), 1.0),
        lambda logits, masks: 1000 * logits.mean(),
        torch.amp.GradScaler("cpu", enabled=False),
        clip=0.01,
    )
    assert 0 < (model.weight - before).norm() <= 0.0101


def test_the_average_is_judged_and_kept(settings, data):
    train.main(settings(NUM_EPOCHS=2, EMA=0.95))
    state = utils.read_checkpoint("my_checkpoint.pth.tar")
    name = "downs.0.conv.0.weight"
    assert state["state_dict"].keys() == state["trained"].keys() and not torch.equal(
        state["state_dict"][name], state["trained"][name]
    )
    model = utils.load_model("my_checkpoint.pth.tar", "cpu")
    assert torch.equal(model.state_dict()[name], state["state_dict"][name])
    dataset = CarvanaDataset("data/val_images", "data/val_masks", val_transform(), size=(32, 48))
    assert (
        utils.check_accuracy(utils.make_loader(dataset, 4), model, "cpu")["dice"]
        == state["history"][-1]["dice"]
    )


def test_the_average_is_one():
    """Weights that stay what they are have themselves as average; of others the average lies between, near the last at first."""
    model, average = UNET(features=[2]), UNET(features=[2])
    for steps in range(1, 400):
        recipe.average_weights(average, model, 0.9, steps)
        if steps == 1:
            assert torch.allclose(average.final_conv.bias, model.final_conv.bias, atol=0.3)
    assert all(
        torch.allclose(one, other, atol=1e-6)
        for one, other in zip(average.state_dict().values(), model.state_dict().values())
    )


def test_patience_ends_a_run_and_resuming_does_not_outwit_it(settings, monkeypatch, capsys):
    dices = iter([0.5, 0.6, 0.55, 0.58, 0.59, 0.4])
    check = utils.check_accuracy
    monkeypatch.setattr(
        utils, "check_accuracy", lambda *args, **how: check(*args, **how) | {"dice": next(dices)}
    )
    train.main(settings(NUM_EPOCHS=50, PATIENCE=2))
    assert [row["dice"] for row in utils.read_checkpoint("my_checkpoint.pth.tar")["history"]] == [
        0.5,
        0.6,
        0.55,
        0.58,
    ]
    assert "no better Dice for PATIENCE = 2 epochs" in capsys.readouterr().out
    train.main(settings(NUM_EPOCHS=50, PATIENCE=2, LOAD_MODEL=True))
    assert utils.read_checkpoint("my_checkpoint.pth.tar")["epoch"] == 4


def test_smaller_images_come_first(settings, monkeypatch):
    seen, forward = [], UNET.forward
    monkeypatch.setattr(
        UNET,
        "forward",
        lambda self, x: (
            seen.append(tuple(x.shape[2:])) if self.training else None,
            forward(self, x),
        )[1],
    )
    train.main(settings(NUM_EPOCHS=2, RESOLUTIONS=[0.5, 1.0], BATCHNORM_IMAGES=0))
    assert seen == 3 * [(16, 32)] + 3 * [(32, 48)]  # 24 is no multiple of 16


def test_weights_to_start_from(settings, data, capsys):
    train.main(settings(NUM_EPOCHS=3))
    (data / "my_checkpoint.pth.tar").rename(data / "mine.pth.tar")
    loss = utils.read_checkpoint("mine.pth.tar")["history"][-1]["val_loss"]
    train.main(settings(NUM_EPOCHS=1, INIT_WEIGHTS="mine.pth.tar", LEARNING_RATE=1e-9))
    assert utils.read_checkpoint("my_checkpoint.pth.tar")["history"][-1][
        "val_loss"
    ] == pytest.approx(loss, rel=0.02)
    train.main(settings(NUM_EPOCHS=1, LEARNING_RATE=1e-9))
    assert utils.read_checkpoint("my_checkpoint.pth.tar")["history"][-1][
        "val_loss"
    ] != pytest.approx(loss, rel=0.1)
    assert "weights of mine.pth.tar\n" in capsys.readouterr().out
    train.main(settings(NUM_EPOCHS=1, INIT_WEIGHTS="mine.pth.tar", IN_CHANNELS=1))
    assert (
        "weights of mine.pth.tar, but not: downs.0.conv.0.weight (4, 1, 3, 3), there (4, 3, 3, 3)\n"
        in capsys.readouterr().out
    )
