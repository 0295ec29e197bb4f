"""A run that is ended anywhere goes on as if it never had been."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT
from test_train import SMALL, result, same

import train
import utils
from interrupts import Signals, Stretch
from pictures import UserError

LEARNT = ("state_dict", "optimizer", "scaler", "epoch", "best", "random")


def learnt(filename="my_checkpoint.pth.tar"):
    """All of result() but the losses of the training steps, whose sums are rounded otherwise where an epoch is resumed."""
    state = result(filename)
    return {name: state[name] for name in LEARNT} | {
        "scores": [(row["dice"], row["full_dice"], row["val_loss"]) for row in state["history"]]
    }


@pytest.fixture
def ended_after(monkeypatch):
    """ended_after(n): the next training gets SIGTERM in its n-th step."""

    def arrange(steps, number=signal.SIGTERM):
        done, to_device = [0], train.to_device

        def counted(*args):
            done[0] += 1
            if done[0] == steps:
                os.kill(os.getpid(), number)
            return to_device(*args)

        monkeypatch.setattr(train, "to_device", counted)

    return arrange


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"OPTIMIZER": "muon", "SCHEDULE": "linear", "BATCHNORM_IMAGES": 0},
        {
            "EMA": 0.9,
            "ACCUMULATE": 2,
            "CLIP_GRADIENT": 1.0,
            "LOSS": "bce_dice",
            "WEIGHT_DECAY": 0.01,
            "SCHEDULE": "cosine",
            "COLOR_JITTER": 0.2,
            "SCALE_JITTER": 0.2,
            "RESOLUTIONS": [0.5, 1.0],
            "PATIENCE": 9,
        },
    ],
)
def test_ended_at_any_step_it_goes_on_to_the_same_bits(
    settings, ended_after, capsys, workers, changes
):
    changes = changes | {
        "NUM_EPOCHS": 2,
        "NUM_WORKERS": workers,
        "BATCH_SIZE": 5,
    }  # 3 steps an epoch, the last of 2 images
    train.main(settings(**changes))
    straight, best = learnt(), learnt("best_checkpoint.pth.tar")
    for number, step in (
        (signal.SIGTERM, 1),
        (signal.SIGINT, 2),
        (signal.SIGTERM, 3),
        (signal.SIGTERM, 4),
        (signal.SIGTERM, 6),
    ):
        ended_after(step, number)
        with pytest.raises(SystemExit) as exit:
            train.main(settings(**changes))
        assert exit.value.code == 128 + number
        said = capsys.readouterr()
        assert "ending after this step" in said.err and "--load-model true" in said.out
        state = utils.read_checkpoint("my_checkpoint.pth.tar")
        done = 3 * state["epoch"] + -(-state["part"]["images"] // 5)
        assert (
            done == step or "ACCUMULATE" in changes and step < done <= step + 1
        )  # a step is not cut in half
        ended_after(0)
        train.main(settings(LOAD_MODEL=True, **changes))
        assert same(straight, learnt()) and same(best, learnt("best_checkpoint.pth.tar")), (
            number,
            step,
        )
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ended_again_and_again(settings, ended_after):
    train.main(settings(NUM_EPOCHS=2, BATCH_SIZE=5))
    straight = learnt()
    load = False
    for _ in range(4):
        ended_after(1)
        with pytest.raises(SystemExit):
            train.main(settings(NUM_EPOCHS=2, BATCH_SIZE=5, LOAD_MODEL=load))
        load = True
    ended_after(0)
    train.main(settings(NUM_EPOCHS=2, BATCH_SIZE=5, LOAD_MODEL=True))
    assert same(straight, learnt())


def test_the_clock_writes_checkpoints_too(settings, monkeypatch):
    written, save = [], utils.save_checkpoint
    monkeypatch.setattr(
        utils,
        "save_checkpoint",
        lambda state, filename: (written.append(state["part"]["images"]), save(state, filename)),
    )
    train.main(settings(NUM_EPOCHS=1))
    plain, straight = written[:], learnt()
    written.clear()
    train.main(settings(NUM_EPOCHS=1, CHECKPOINT_MINUTES=1e-9))
    assert plain == [0, 0] and written == [4, 8, 12, 0, 0]
    assert same(straight, learnt())


def test_other_data_starts_the_epoch_anew(settings, data, ended_after):
    ended_after(2)
    with pytest.raises(SystemExit):
        train.main(settings(NUM_EPOCHS=1))
    ended_after(0)
    for folder, name in (
        ("train_images", "000000000003_02.jpg"),
        ("train_masks", "000000000003_02_mask.gif"),
    ):
        (data / "data" / folder / name).unlink()
    train.main(settings(NUM_EPOCHS=1, LOAD_MODEL=True))
    assert result()["epoch"] == 1


def test_a_worker_that_dies_leaves_a_checkpoint(settings, monkeypatch):
    """Killed for want of memory, say."""
    train.main(settings(NUM_EPOCHS=2, BATCH_SIZE=2))
    straight, main_process = learnt(), os.getpid()
    from dataset import CarvanaDataset

    get = CarvanaDataset.__getitem__

    def dying(self, key):
        if (
            os.getpid() != main_process and isinstance(key, tuple) and key[0] == 1
        ):  # in the second epoch
            os.kill(os.getpid(), signal.SIGKILL)
        return get(self, key)

    with monkeypatch.context() as patch:
        patch.setattr(CarvanaDataset, "__getitem__", dying)
        with pytest.raises(RuntimeError, match="killed by signal|exited unexpectedly"):
            train.main(settings(NUM_EPOCHS=2, BATCH_SIZE=2, NUM_WORKERS=1))
    assert utils.read_checkpoint("my_checkpoint.pth.tar")["epoch"] == 1
    train.main(settings(NUM_EPOCHS=2, BATCH_SIZE=2, LOAD_MODEL=True))
    assert same(straight, learnt())


def test_a_validation_file_that_goes_bad_costs_no_epoch(settings, data, monkeypatch):
    train.main(settings(NUM_EPOCHS=2))
    straight, path = learnt(), data / "data/val_masks/000000000064_01_mask.gif"
    good, check, calls = path.read_bytes(), utils.check_accuracy, []

    def spoil(*of, **how):
        calls.append(of)
        if len(calls) == 2:
            path.write_bytes(good[:100])
        return check(*of, **how)

    monkeypatch.setattr(utils, "check_accuracy", spoil)
    with pytest.raises(UserError, match="000000000064_01_mask.gif: cannot be read"):
        train.main(settings(NUM_EPOCHS=2))
    state = utils.read_checkpoint("my_checkpoint.pth.tar")
    assert state["epoch"] == 1 and state["part"]["images"] == state["part"]["of"] == 12
    path.write_bytes(good)
    train.main(settings(NUM_EPOCHS=2, LOAD_MODEL=True))
    assert same(straight, learnt())


def test_a_file_that_goes_bad_in_the_middle_is_named_and_nothing_is_lost(settings, data):
    train.main(settings(NUM_EPOCHS=2, BATCH_SIZE=2, CACHE=False))
    straight = learnt()
    path = data / "data/train_images/000000000003_02.jpg"
    good = path.read_bytes()
    train_fn, calls = train.train_fn, []

    def spoil(*args):
        calls.append(args)
        if len(calls) == 2:
            path.write_bytes(good[:500])
        return train_fn(*args)

    train.train_fn = spoil
    try:
        with pytest.raises(UserError, match="000000000003_02.jpg: cannot be read"):
            train.main(settings(NUM_EPOCHS=2, BATCH_SIZE=2, CACHE=False))
    finally:
        train.train_fn = train_fn
    path.write_bytes(good)
    train.main(settings(NUM_EPOCHS=2, BATCH_SIZE=2, CACHE=False, LOAD_MODEL=True))
    assert same(straight, learnt())


@pytest.mark.parametrize("keep", [0, 0.5, 0.99])
def test_for_a_damaged_checkpoint_the_good_ones_are_offered(settings, data, keep):
    train.main(settings(NUM_EPOCHS=1))
    (data / "notes.pth.tar").write_text("not one either")
    path = data / "my_checkpoint.pth.tar"
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(
        UserError,
        match=r"my_checkpoint.pth.tar is not a checkpoint .*over it, or name one: best_checkpoint.pth.tar$",
    ):
        train.main(settings(NUM_EPOCHS=2, LOAD_MODEL=True))
    (data / "best_checkpoint.pth.tar").replace(path)
    train.main(settings(NUM_EPOCHS=2, LOAD_MODEL=True))
    assert result()["epoch"] == 2


def test_a_second_signal_ends_at_once():
    with pytest.raises(KeyboardInterrupt):
        with Signals() as signals:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)
            assert signals.received == signal.SIGINT
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)


def test_an_error_of_the_step_is_not_taken_for_one_of_reading():
    class Loader(list):
        dataset, batch_size = range(4), 2
        sampler = type("Sampler", (), {})()

    stretch = Stretch(Loader([torch.zeros(2), torch.zeros(2)]), 0, 0)
    with pytest.raises(ZeroDivisionError):
        for _ in stretch:
            1 / 0
    assert stretch.error is None and stretch.done == 0


def test_what_cannot_be_read_leaves_whole_steps():
    class Loader:
        dataset, batch_size, sampler = range(20), 2, type("Sampler", (), {})()

        def __iter__(self):
            yield from range(5)
            raise OSError("gone")

    stretch = Stretch(Loader(), 0, 4, accumulate=2)
    assert (
        list(stretch) == list(range(5))
        and stretch.done == 4 + 2 * 2 * 2
        and isinstance(stretch.error, OSError)
    )


def test_the_first_epochs_end_is_the_best_yet_whatever_its_middle_scored(
    settings, ended_after, monkeypatch
):
    ended_after(2)
    with pytest.raises(SystemExit):
        train.main(settings(NUM_EPOCHS=1))
    ended_after(0)
    check, seen = utils.check_accuracy, []

    def falling(*args, **how):
        scores = check(*args, **how)
        seen.append(scores["dice"])
        return scores | {"dice": 0.9 / len(seen)}

    monkeypatch.setattr(utils, "check_accuracy", falling)
    train.main(settings(NUM_EPOCHS=1, LOAD_MODEL=True))
    assert len(seen) == 2 and result("best_checkpoint.pth.tar")["best"] == 0.45


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_as_a_command(data, run, number, status):
    """The whole process group gets the signal, as from a terminal: workers leave it to the training."""
    words = [*SMALL, "--num-epochs", 100_000, "--batch-size", 2]
    process = subprocess.Popen(
        [sys.executable, ROOT / "train.py", *map(str, words)],
        cwd=data,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    for line in process.stdout:
        if line.startswith("epoch 2"):
            break
    os.killpg(process.pid, number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == status and "Traceback" not in err, err
    assert "goes on there" in out and "once more ends at once" in err
    epoch = utils.read_checkpoint(data / "my_checkpoint.pth.tar")["epoch"]
    done = run(
        "train.py", *SMALL, "--num-epochs", epoch + 1, "--batch-size", 2, "--load-model", "true"
    )
    assert f"epoch {epoch + 1}/{epoch + 1}" in done.stdout
