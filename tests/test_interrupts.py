"""A run that is stopped anywhere continues as if it had never been stopped."""

import copy
import functools
import multiprocessing
import os
import re
import shlex
import signal
import subprocess
import time
from types import SimpleNamespace

import pytest
import torch
from helpers import (
    BEST,
    LAST,
    is_same,
    learned,
    run_result,
    script_command,
    tiny_options,
    wait_for_end,
)

import train
from carvana import distributed, interrupts, system
from carvana.checkpoint import read_checkpoint
from carvana.epochs import PartialEpoch
from carvana.errors import UserError
from carvana.interrupts import Signals
from carvana.sampling import EpochSampler
from dataset import CarvanaDataset

MAIN_PROCESS = os.getpid()
ALL_OPTIONS = {
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
}


class Counted:
    """A function that is called as before; at its n-th call, action() comes first."""

    def __init__(self, function, number, action):
        self.function = function
        self.number = number
        self.action = action
        self.calls = 0

    def __call__(self, *args, **options):
        self.calls += 1
        if self.calls == self.number:
            self.action()
        return self.function(*args, **options)


@pytest.fixture
def stop_at(monkeypatch):
    """stop_at(n): trainings get SIGTERM in their n-th step from now on; 0: in none."""
    return functools.partial(send_signal_at, monkeypatch, train.to_device)


def send_signal_at(monkeypatch, to_device, step, number=signal.SIGTERM):
    counted = Counted(to_device, step, lambda: signal.raise_signal(number))
    monkeypatch.setattr(train, "to_device", counted)


# ---------------------------------------------------------------- signals and the clock


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    "changes",
    [{}, {"OPTIMIZER": "muon", "SCHEDULE": "linear", "BATCHNORM_IMAGES": 0}, ALL_OPTIONS],
    ids=["defaults", "muon", "all options"],
)
def test_interruptions_at_any_step_change_no_bit(
    settings, stop_at, no_report, capfd, workers, changes
):
    # 3 steps an epoch, the last of 2 images
    changes = changes | {"NUM_EPOCHS": 2, "NUM_WORKERS": workers, "BATCH_SIZE": 5}
    train.main(settings(**changes))
    straight = learned()
    best = learned(BEST)
    for number, step in (
        (signal.SIGTERM, 1),
        (signal.SIGINT, 2),
        (signal.SIGTERM, 3),
        (signal.SIGTERM, 4),
        (signal.SIGTERM, 6),
    ):
        stop_at(step, number)
        with pytest.raises(SystemExit) as exit:
            train.main(settings(**changes))
        assert exit.value.code == 128 + number
        printed = capfd.readouterr()
        assert "stopping after this step" in printed.err
        assert "--load-model true" in printed.out
        state = read_checkpoint(LAST)
        done = 3 * state["epoch"] + -(-state["part"]["images"] // 5)
        # A step of several batches is not cut in half.
        assert done == step or ("ACCUMULATE" in changes and step < done <= step + 1)
        stop_at(0)
        train.main(settings(LOAD_MODEL=True, **changes))
        assert is_same(straight, learned()), (number, step)
        assert is_same(best, learned(BEST)), (number, step)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_interruptions_again_and_again_change_no_bit(settings, stop_at):
    changes = {"NUM_EPOCHS": 2, "BATCH_SIZE": 5}
    train.main(settings(**changes))
    straight = learned()
    for attempt in range(4):
        stop_at(1)
        with pytest.raises(SystemExit):
            train.main(settings(LOAD_MODEL=attempt > 0, **changes))
    stop_at(0)
    train.main(settings(LOAD_MODEL=True, **changes))
    assert is_same(straight, learned())


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_interruption_by_a_second_ctrl_c_ends_at_once(first):
    with pytest.raises(KeyboardInterrupt), Signals() as signals:
        signal.raise_signal(first)
        time.sleep(0.01)
        assert signals.received == first
        signal.raise_signal(signal.SIGINT)
        time.sleep(1)


@pytest.mark.parametrize("second", ["SIGTERM", "SIGHUP"])
def test_interruption_by_a_signal_that_is_sent_twice_is_one(second):
    """By systemd to all processes, by torchrun to those that the terminal has told already."""
    with Signals() as signals:
        for name in ("SIGTERM", second):
            signal.raise_signal(signal.Signals[name])
            time.sleep(0.01)
        assert signals.received == signal.SIGTERM


def test_interruption_by_ctrl_c_comes_twice_under_a_launcher(monkeypatch):
    monkeypatch.setattr(distributed, "LAUNCHED", True)
    with Signals() as signals:
        for _ in range(2):
            signal.raise_signal(signal.SIGINT)
            time.sleep(0.01)
        assert signals.received == signal.SIGINT


def test_interruption_by_a_signal_that_is_ignored_is_none():
    """nohup has a closed terminal's SIGHUP ignored."""
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with Signals() as signals:
        signal.raise_signal(signal.SIGHUP)
        time.sleep(0.01)
        assert not signals.received
    assert signal.signal(signal.SIGHUP, previous) is signal.SIG_IGN


@pytest.mark.parametrize("name, status", [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_interruption_of_the_command_is_resumed_by_the_next(data, run, name, status):
    """The whole process group gets the signal, as from a terminal; workers leave it to train.py."""
    if name == "SIGHUP" and system.start_method() == "spawn":
        pytest.skip("Python's own process that counts shared memory prints a traceback")
    arguments = tiny_options(NUM_WORKERS=1, BATCH_SIZE=2, PRECISION="auto")
    process = subprocess.Popen(
        script_command("train.py", *arguments, "--num-epochs", 100_000),
        cwd=data,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    for line in process.stdout:
        if line.startswith("epoch 2"):
            break
    os.killpg(process.pid, signal.Signals[name])
    out, err = process.communicate(timeout=60)
    assert process.returncode == status, err
    assert "Traceback" not in err
    assert "run the same command with --load-model true to continue" in out
    assert "stopping after this step, with a checkpoint" in err
    epoch = read_checkpoint(data / LAST)["epoch"]
    finished = run("train.py", *arguments, "--num-epochs", epoch + 1, "--load-model", "true")
    assert f"epoch {epoch + 1}/{epoch + 1}" in finished.stdout


def start_training(data, *arguments, **streams):
    """Start a training as a command; return it when it has trained for two epochs."""
    process = subprocess.Popen(
        script_command("train.py", *tiny_options(BATCH_SIZE=2, GALLERY_MAX=0), *arguments),
        cwd=data,
        text=True,
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams,
    )
    for line in process.stdout:
        if line.startswith("epoch 2"):
            break
    return process


def test_training_goes_on_when_nobody_reads_its_output(data):
    """python train.py 2>&1 | head"""
    process = start_training(data, "--num-epochs", 8, stderr=subprocess.STDOUT)
    process.stdout.close()
    assert wait_for_end(process) == 0
    assert read_checkpoint(data / LAST)["epoch"] == 8


def test_training_stops_in_order_when_its_terminal_is_closed(data):
    """Its output is lost, and SIGHUP comes."""
    terminal, its_side = os.openpty()
    process = start_training(data, "--num-epochs", 100_000, stderr=its_side)
    os.close(its_side)
    os.close(terminal)
    process.stdout.close()
    process.send_signal(signal.SIGHUP)
    assert wait_for_end(process) == 128 + signal.SIGHUP
    assert read_checkpoint(data / LAST)["epoch"] >= 2


class Recorder:
    """save_checkpoint, and a list of the images that were done of the epoch at each call."""

    def __init__(self):
        self.save_checkpoint = train.save_checkpoint
        self.images = []

    def __call__(self, state, filename):
        self.images.append(state["part"]["images"])
        self.save_checkpoint(state, filename)


def test_checkpoints_are_written_by_the_clock_too(settings, monkeypatch):
    recorder = Recorder()
    monkeypatch.setattr(train, "save_checkpoint", recorder)
    train.main(settings(NUM_EPOCHS=1))
    straight = learned()
    assert recorder.images == [0, 0]
    recorder.images.clear()
    train.main(settings(NUM_EPOCHS=1, CHECKPOINT_MINUTES=1e-9))
    assert recorder.images == [4, 8, 12, 0, 0]
    assert is_same(straight, learned())


def test_interrupted_epoch_starts_again_when_the_data_has_changed(settings, data, stop_at):
    stop_at(2)
    with pytest.raises(SystemExit):
        train.main(settings(NUM_EPOCHS=1))
    stop_at(0)
    (data / "data/train_images/000000000003_02.jpg").unlink()
    (data / "data/train_masks/000000000003_02_mask.gif").unlink()
    train.main(settings(NUM_EPOCHS=1, LOAD_MODEL=True))
    assert run_result()["epoch"] == 1


def note_model(models, function, loader, model, *arguments):
    models.append(copy.deepcopy(model.state_dict()))
    return function(loader, model, *arguments)


def test_interrupted_epoch_is_scored_and_shown_with_settled_statistics(
    settings, stop_at, monkeypatch, capfd
):
    """Those of the last steps are none to score with, and stay what training goes on with."""
    stop_at(2)
    with pytest.raises(SystemExit):
        train.main(settings(NUM_EPOCHS=1))
    stop_at(0)
    state = torch.load(LAST)
    scores = []
    shown = []
    noting = functools.partial(note_model, shown, train.save_predictions_as_imgs)
    monkeypatch.setattr(train, "save_predictions_as_imgs", noting)
    for shift in (0.0, 50.0):
        for name, values in state["state_dict"].items():
            if name.endswith("running_mean"):
                values += shift
        torch.save(state, LAST)
        capfd.readouterr()
        train.main(settings(NUM_EPOCHS=1, LOAD_MODEL=True))
        scores.append(re.search(r"Dice (0\.\d+) at full size", capfd.readouterr().out)[1])
    assert scores[0] == scores[1]
    at_once, _, at_once_too, _ = shown  # each resumed run shows its start and its end
    assert is_same(at_once, at_once_too)


def check_with_dice(dices, check_accuracy, *args, **options):
    return check_accuracy(*args, **options) | {"dice": next(dices)}


def test_interrupted_first_epoch_is_the_best_at_its_end_whatever_its_middle_scored(
    settings, stop_at, monkeypatch
):
    stop_at(2)
    with pytest.raises(SystemExit):
        train.main(settings(NUM_EPOCHS=1))
    stop_at(0)
    dices = iter([0.9, 0.45])
    falling = functools.partial(check_with_dice, dices, train.check_accuracy)
    monkeypatch.setattr(train, "check_accuracy", falling)
    train.main(settings(NUM_EPOCHS=1, LOAD_MODEL=True))
    assert next(dices, None) is None
    assert run_result(BEST)["best"] == 0.45


# ---------------------------------------------------------------- files and workers that fail


class DyingDataset(CarvanaDataset):
    """The worker that reads an item of the second epoch kills itself."""

    def __getitem__(self, key):
        if os.getpid() != MAIN_PROCESS and isinstance(key, tuple) and key[0] == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(key)


def test_worker_that_is_killed_leaves_a_checkpoint(settings, monkeypatch):
    changes = {"NUM_EPOCHS": 2, "BATCH_SIZE": 2}
    train.main(settings(**changes))
    straight = learned()
    with monkeypatch.context() as patch:
        patch.setattr("dataset.CarvanaDataset", DyingDataset)
        with pytest.raises(RuntimeError, match="exited unexpectedly"):
            train.main(settings(NUM_WORKERS=1, **changes))
    assert read_checkpoint(LAST)["epoch"] == 1
    train.main(settings(LOAD_MODEL=True, **changes))
    assert is_same(straight, learned())


def kill_worker(index):
    """Kill one of the processes that read for this one, in the order of their start."""
    workers = sorted(multiprocessing.active_children(), key=lambda child: child.pid)
    workers[index].kill()


@pytest.mark.parametrize(
    "place, index",
    [("to_device", 0), ("to_device", -1), ("check_accuracy", -1), ("save_checkpoint", 1)],
)
def test_worker_that_is_killed_anywhere_leaves_a_checkpoint(
    settings, monkeypatch, no_report, place, index
):
    """Of the training's loader (0, 1) or the validation's (-1): in a step, before an evaluation,
    before a file is written."""
    changes = {"NUM_EPOCHS": 10, "BATCH_SIZE": 2, "SAVE_IMAGES_MAX": 0}
    train.main(settings(**changes))
    straight = learned()
    with monkeypatch.context() as patch:
        killing = Counted(getattr(train, place), 7, functools.partial(kill_worker, index))
        patch.setattr(train, place, killing)
        with pytest.raises(RuntimeError, match="exited unexpectedly") as error:
            train.main(settings(NUM_WORKERS=2, **changes))
    assert "cannot be read" not in str(error.value)
    state = read_checkpoint(LAST)
    assert (state["epoch"], state["part"]["images"]) > (0, 0)
    train.main(settings(LOAD_MODEL=True, **changes))
    assert is_same(straight, learned())


def test_workers_leave_sigterm_to_the_training(settings, monkeypatch, no_report):
    """SLURM, systemd and docker send it to all processes at once."""
    changes = {"NUM_EPOCHS": 2, "BATCH_SIZE": 2, "NUM_WORKERS": 2}
    train.main(settings(**changes))
    straight = learned()
    with monkeypatch.context() as patch:
        patch.setattr(train, "to_device", Counted(train.to_device, 9, terminate_all))
        with pytest.raises(SystemExit):
            train.main(settings(**changes))
    assert not multiprocessing.active_children()
    train.main(settings(LOAD_MODEL=True, **changes))
    assert is_same(straight, learned())


def terminate_all():
    for worker in multiprocessing.active_children():
        os.kill(worker.pid, signal.SIGTERM)
    time.sleep(0.3)
    signal.raise_signal(signal.SIGTERM)


def test_worker_ends_by_itself_a_while_after_sigterm():
    """Nothing waits forever for one that its training process has forgotten."""
    process = multiprocessing.get_context("fork").Process(target=wait_as_worker)
    process.start()
    time.sleep(0.5)
    process.terminate()
    process.join(0.5)
    assert process.is_alive()
    process.join(5)
    assert process.exitcode == -signal.SIGALRM


def wait_as_worker():
    interrupts.WORKER_GRACE = 1
    interrupts.leave_signals_alone(0)
    time.sleep(0.8)
    time.sleep(60)


def test_validation_file_that_goes_bad_costs_no_epoch(settings, data, monkeypatch):
    train.main(settings(NUM_EPOCHS=2))
    straight = learned()
    path = data / "data/val_masks/000000000064_01_mask.gif"
    good = path.read_bytes()
    spoiling = Counted(train.check_accuracy, 2, lambda: path.write_bytes(good[:100]))
    monkeypatch.setattr(train, "check_accuracy", spoiling)
    with pytest.raises(UserError, match="000000000064_01_mask.gif: cannot be read"):
        train.main(settings(NUM_EPOCHS=2))
    state = read_checkpoint(LAST)
    assert state["epoch"] == 1
    assert state["part"]["images"] == state["part"]["of"] == 12
    path.write_bytes(good)
    train.main(settings(NUM_EPOCHS=2, LOAD_MODEL=True))
    assert is_same(straight, learned())


def test_training_file_that_goes_bad_is_named_and_nothing_is_lost(settings, data, monkeypatch):
    changes = {"NUM_EPOCHS": 2, "BATCH_SIZE": 2, "CACHE": False}
    train.main(settings(**changes))
    straight = learned()
    path = data / "data/train_images/000000000003_02.jpg"
    good = path.read_bytes()
    with monkeypatch.context() as patch:
        spoiling = Counted(train.train_fn, 2, lambda: path.write_bytes(good[:500]))
        patch.setattr(train, "train_fn", spoiling)
        with pytest.raises(UserError, match="000000000003_02.jpg: cannot be read"):
            train.main(settings(**changes))
    path.write_bytes(good)
    train.main(settings(LOAD_MODEL=True, **changes))
    assert is_same(straight, learned())


@pytest.mark.parametrize("keep", [0, 0.5, 0.99])
def test_damaged_checkpoint_is_answered_with_the_good_ones(settings, data, keep):
    train.main(settings(NUM_EPOCHS=1))
    (data / "notes.pth.tar").write_text("not one either")
    path = data / LAST
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    expected = f"{LAST} is not a checkpoint .*over it, or name one: {BEST}$"
    with pytest.raises(UserError, match=expected):
        train.main(settings(NUM_EPOCHS=2, LOAD_MODEL=True))
    (data / BEST).replace(path)
    train.main(settings(NUM_EPOCHS=2, LOAD_MODEL=True))
    assert run_result()["epoch"] == 2


# ---------------------------------------------------------------- weights that are not finite


class PoisonedLoss:
    """A loss that stays finite; in its n-th step its gradient is not."""

    def __init__(self, loss_fn, step):
        self.loss_fn = loss_fn
        self.step = step
        self.calls = 0

    def __call__(self, logits, masks):
        loss = self.loss_fn(logits, masks)
        if not logits.requires_grad:
            return loss
        self.calls += 1
        if self.calls != self.step:
            return loss
        return loss + (logits - logits.detach()).abs().sum().sqrt()  # 0, of slope 0 / 0


@pytest.mark.parametrize(
    "step, changes",
    [
        (6, {}),  # the last of the second epoch
        (6, {"EMA": 0.9}),
        (5, {"CHECKPOINT_MINUTES": 1e-9}),
        (6, {"STOP_AT_DICE": 0.99, "LOOKS_PER_EPOCH": 3}),
    ],
    ids=["epoch", "epoch with EMA", "clock", "look"],
)
def test_weights_that_are_not_finite_replace_no_checkpoint(settings, monkeypatch, step, changes):
    settings_of_both = functools.partial(settings, NUM_EPOCHS=2, **changes)
    train.main(settings_of_both())
    straight = learned()
    make_loss = train.make_loss
    with monkeypatch.context() as patch:
        poisoned = PoisonedLoss(make_loss("bce"), step)
        patch.setattr(train, "make_loss", lambda *_: poisoned)
        with pytest.raises(UserError, match="weights are not finite .* lower LEARNING_RATE"):
            train.main(settings_of_both())
    state = read_checkpoint(LAST)  # which refuses weights that are not finite
    assert state["epoch"] == 1
    train.main(settings_of_both(LOAD_MODEL=True))
    assert is_same(straight, learned())


def test_weights_that_are_not_finite_are_not_saved_at_a_signal(settings, monkeypatch, stop_at):
    poisoned = PoisonedLoss(train.make_loss("bce"), 5)
    monkeypatch.setattr(train, "make_loss", lambda *_: poisoned)
    stop_at(5)
    with pytest.raises(UserError, match="weights are not finite after 8 of 12 images of epoch 2"):
        train.main(settings(NUM_EPOCHS=2))
    assert read_checkpoint(LAST)["epoch"] == 1


class OverflowingSettle:
    """settle_batchnorm, whose n-th call measures a variance that is infinite."""

    def __init__(self, call):
        self.settle = train.settle_batchnorm
        self.left = call

    def __call__(self, model, batches):
        self.settle(model, batches)
        self.left -= 1
        if not self.left:
            model.downs[0].conv[1].running_var.fill_(float("inf"))


def test_statistics_that_are_not_finite_are_not_saved(settings, monkeypatch):
    monkeypatch.setattr(train, "settle_batchnorm", OverflowingSettle(2))
    with pytest.raises(UserError, match="weights are not finite after"):
        train.main(settings(NUM_EPOCHS=3))
    assert read_checkpoint(LAST)["epoch"] == 1
    assert read_checkpoint(BEST)["epoch"] == 1


def save_all_but_the_best(save_checkpoint, state, filename):
    if filename == BEST:
        raise UserError(f"{BEST} could not be written")
    save_checkpoint(state, filename)


def test_best_checkpoint_that_cannot_be_written_costs_no_epoch(settings, monkeypatch):
    """It may be on another disk."""
    failing = functools.partial(save_all_but_the_best, train.save_checkpoint)
    monkeypatch.setattr(train, "save_checkpoint", failing)
    with pytest.raises(UserError, match=f"{BEST} could not be written"):
        train.main(settings(NUM_EPOCHS=2))
    state = read_checkpoint(LAST)
    assert state["epoch"] == 1
    assert state["best"] == -1


@pytest.mark.parametrize("closed", ["1>&-", "2>&-", "0<&- 1>&- 2>&-"])
def test_training_does_without_output_that_is_closed(data, closed):
    """As a service may be started; the first SIGTERM stops it in order."""
    words = script_command("train.py", *tiny_options(BATCH_SIZE=2, NUM_EPOCHS=100_000))
    process = subprocess.Popen(
        ["sh", "-c", f"exec {shlex.join(words)} {closed}"],
        cwd=data,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not (data / LAST).exists():
        assert process.poll() is None
        time.sleep(0.1)
    process.terminate()
    assert wait_for_end(process) == 128 + signal.SIGTERM
    assert read_checkpoint(data / LAST)["epoch"] >= 1


# ---------------------------------------------------------------- parts of epochs


class Batches(list):
    """Batches in place of a loader's; reading fails after the last one."""

    def __init__(self, batches, images, error=None):
        super().__init__(batches)
        self.dataset = range(images)
        self.batch_size = 2
        self.sampler = SimpleNamespace(length=images)
        self.error = error

    def __iter__(self):
        yield from super().__iter__()
        if self.error:
            raise self.error


def test_partial_epoch_does_not_take_an_error_of_the_step_for_one_of_reading():
    epoch = PartialEpoch(Batches([torch.zeros(2), torch.zeros(2)], images=4), 0, 0)
    with pytest.raises(ZeroDivisionError):
        for _ in epoch:
            _ = 1 / 0
    assert epoch.error is None
    assert epoch.done == 0


def test_partial_epoch_ends_with_whole_steps_when_reading_fails():
    epoch = PartialEpoch(Batches(range(5), 20, OSError("gone")), 0, 4, accumulate=2)
    assert list(epoch) == list(range(5))
    assert epoch.done == 4 + 2 * 2 * 2
    assert isinstance(epoch.error, OSError)


def test_reading_that_fails_within_a_step_of_many_batches_changes_no_bit(settings, data):
    """BatchNorm's statistics have moved by then, the weights have not."""
    changes = {"NUM_EPOCHS": 2, "BATCH_SIZE": 2, "ACCUMULATE": 3, "CACHE": False, "SEED": 1}
    train.main(settings(**changes))
    straight = learned()
    order = EpochSampler(12, seed=1).order(1)
    names = sorted(path.stem for path in (data / "data/train_images").iterdir())
    path = data / f"data/train_images/{names[order[9]]}.jpg"  # in the second batch of a step
    good = path.read_bytes()
    spoiling = Counted(train.train_fn, 2, lambda: path.write_bytes(good[:500]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "train_fn", spoiling)
        with pytest.raises(UserError, match="cannot be read"):
            train.main(settings(**changes))
    path.write_bytes(good)
    assert read_checkpoint(LAST)["part"]["images"] == 6
    train.main(settings(LOAD_MODEL=True, **changes))
    assert is_same(straight, learned())
