import copy
import csv
import shutil

import numpy as np
import pytest
import torch
from conftest import scene, write_mask, write_pairs
from PIL import Image

import config
import device
import recipe
import train
import utils
from dataset import CarvanaDataset, train_transform, val_transform
from model import UNET
from pictures import UserError, user_errors


def same(a, b):
    """Equal to the last bit: nested dicts, lists and tensors."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def result(filename="my_checkpoint.pth.tar"):
    """What a run ended with, less the seconds it took."""
    state = utils.read_checkpoint(filename)
    timed = ("seconds", "images_per_second", "peak_memory_mb")
    history = [
        {name: value for name, value in row.items() if name not in timed}
        for row in state["history"]
    ]
    return {
        name: state[name]
        for name in ("state_dict", "optimizer", "scaler", "epoch", "best", "random")
    } | {"history": history}


# ---------------------------------------------------------------- the same, whatever happens


def test_resuming_and_workers_change_nothing(settings, data):
    results = {}
    for workers in (0, 2):
        train.main(settings(NUM_EPOCHS=3, NUM_WORKERS=workers))
        results["straight", workers] = result()
        train.main(settings(NUM_EPOCHS=2, NUM_WORKERS=workers))
        train.main(settings(NUM_EPOCHS=3, NUM_WORKERS=workers, LOAD_MODEL=True))
        results["resumed", workers] = result()
    first = results["straight", 0]
    assert first["epoch"] == 3 and [row["epoch"] for row in first["history"]] == [1, 2, 3]
    for key, other in results.items():
        assert same(first, other), key
    train.main(settings(NUM_EPOCHS=3, SEED=7))
    assert not same(first["state_dict"], result()["state_dict"])
    assert (data / "my_checkpoint_4.pth.tar").exists()  # no run overwrote another's


def test_going_on_with_an_earlier_run_leaves_the_later_ones_best_alone(settings, data):
    train.main(settings(NUM_EPOCHS=1))
    train.main(settings(NUM_EPOCHS=1, SEED=7))
    later = (data / "best_checkpoint.pth.tar").read_bytes()
    train.main(settings(NUM_EPOCHS=9, LOAD_MODEL=True, CHECKPOINT_FILE="my_checkpoint_1.pth.tar"))
    assert later in [path.read_bytes() for path in data.glob("best_checkpoint*.pth.tar")]
    assert utils.read_checkpoint(data / "my_checkpoint_1.pth.tar")["epoch"] == 9


def test_augmentations_differ_over_epochs_and_images_and_agree_over_runs(data):
    def items(seed, epochs=(0, 1)):
        dataset = CarvanaDataset(
            data / "data/train_images",
            data / "data/train_masks",
            train_transform(),
            size=(32, 48),
            seed=seed,
        )
        return [dataset[epoch, index][0] for epoch in epochs for index in range(12)]

    one = items(1)
    assert all(map(torch.equal, one, items(1)))
    assert not any(map(torch.equal, one[:12], one[12:])) and not any(
        map(torch.equal, one, items(2))
    )


def test_masks_turn_with_their_images():
    """The mask of a white car on black ground is the picture itself, whatever is drawn."""
    mask = scene(3)[1].astype(np.float32)
    image = np.repeat((mask * 255).astype(np.uint8)[..., None], 3, axis=2)
    pipeline = train_transform(rotate=35, horizontal_flip=0.5, vertical_flip=0.5)
    for seed in range(20):
        pipeline.set_random_seed(seed)
        item = pipeline(image=image, mask=mask)
        assert item["image"].dtype == torch.uint8 and item["mask"].dtype == torch.float32
        assert (item["image"][0] / 255 - item["mask"]).abs().max() < 0.02


def test_epochs_are_permutations(data):
    loader, _ = utils.get_loaders(
        *folders(data), 4, train_transform(), val_transform(), 0, False, size=(32, 48)
    )
    epochs = [[key for key in loader.sampler] for _ in range(3)]
    assert [{epoch for epoch, _ in keys} for keys in epochs] == [{0}, {1}, {2}]
    orders = [[index for _, index in keys] for keys in epochs]
    assert (
        all(sorted(order) == list(range(12)) for order in orders)
        and orders[0] != orders[1] != orders[2]
    )
    loader.sampler.epoch = 1
    assert [key for key in loader.sampler] == epochs[1]


def folders(data):
    return [
        data / "data" / f"{part}_{kind}"
        for part in ("train", "val")
        for kind in ("images", "masks")
    ]


# ---------------------------------------------------------------- it learns


def test_one_batch_can_be_overfitted(tmp_path):
    write_pairs(tmp_path / "images", tmp_path / "masks", cars=4, height=64, width=96)
    pair = (tmp_path / "images", tmp_path / "masks")
    loader, _ = utils.get_loaders(
        *pair, *pair, 8, val_transform(), val_transform(), 0, False, size=(64, 96)
    )
    torch.manual_seed(0)
    model = UNET(features=[16, 32, 64])
    optimizer, scaler = (
        torch.optim.Adam(model.parameters(), 0.005),
        torch.amp.GradScaler("cpu", enabled=False),
    )
    for _ in range(160):
        train.train_fn(loader, model, optimizer, torch.nn.BCEWithLogitsLoss(), scaler)
    utils.settle_batchnorm(model, loader, 8)
    assert utils.check_accuracy(loader, model, "cpu", full_size=True)["dice"] > 0.99


def test_predicting_nothing_is_warned_about(settings, capsys):
    train.main(settings(NUM_EPOCHS=1, LEARNING_RATE=1e-9, THRESHOLD=0.999))
    assert "0.00 % of all pixels are predicted as car" in capsys.readouterr().out


@pytest.mark.parametrize(
    "changes",
    [
        {"IN_CHANNELS": 1},
        {"PRECISION": "bf16"},
        {"MEAN": [0.5, 0.4, 0.3], "STD": [0.2]},
        {"MASK_RESIZE": "nearest"},
        {"IMAGE_HEIGHT": 33, "IMAGE_WIDTH": 47},
    ],
)
def test_other_constants_train_and_evaluate_alike(settings, data, changes):
    train.main(settings(NUM_EPOCHS=1, **changes))
    model = utils.load_model(data / "my_checkpoint.pth.tar", "cpu")
    cfg = device.config_of(model)
    dataset = CarvanaDataset(
        *folders(data)[2:],
        val_transform(),
        size=(cfg["IMAGE_HEIGHT"], cfg["IMAGE_WIDTH"]),
        channels=cfg["IN_CHANNELS"],
        mask_resize=cfg["MASK_RESIZE"],
    )
    scores = utils.check_accuracy(utils.make_loader(dataset, 4), model, "cpu")
    assert (
        scores["dice"]
        == utils.read_checkpoint(data / "my_checkpoint.pth.tar")["history"][0]["dice"]
    )


# ---------------------------------------------------------------- as commands

SMALL = [
    "--image-height",
    32,
    "--image-width",
    48,
    "--features",
    4,
    8,
    "--learning-rate",
    0.01,
    "--batch-size",
    4,
    "--num-workers",
    1,
]


def test_few_pixels_are_remarked_on(capsys):
    class Masks(list):
        def small_mask(self, index):
            return self[index]

    few = np.zeros((40, 50), np.uint8)
    few[:2, :10] = 255
    train.remark_on_few(Masks([few] * 3), ["car"])
    assert capsys.readouterr().out.startswith("car: 1.00 % of the pixels of 3 training masks; ")
    train.remark_on_few(Masks([few // 255] * 200), ["a", "b"])
    assert capsys.readouterr().out.startswith("b: 1.00 % of the pixels of 50 training masks; ")
    train.remark_on_few(Masks([few, np.full_like(few, 255)]), ["car"])
    assert capsys.readouterr().out == ""


def history(data):
    with open(data / "saved_images/history.csv") as file:
        return list(csv.DictReader(file))


def test_train_resume_and_evaluate_as_commands(data, run):
    done = run("train.py", *SMALL, "--num-epochs", 2, "--batch-size", 2)
    lines = [line for line in done.stdout.splitlines() if line.startswith("epoch ")]
    assert len(lines) == 2 and all(
        word in lines[0]
        for word in (
            "train loss",
            "val loss",
            "accuracy",
            "1-Dice ",
            " Dice ",
            " at 32x48, ",
            " at full size ",
            " s ",
            "images/s",
            "GB",
        )
    )
    assert done.stdout.count("Got ") == 2 and done.stdout.count("Dice score: 0.") == 2
    assert done.stdout.count("an epoch, ") == done.stderr.count("an epoch, ") + 1 == 1
    assert "images/s" in done.stderr and "loss=" in done.stderr
    rows = history(data)
    assert [row["epoch"] for row in rows] == ["1", "2"] and tuple(rows[0]) == train.COLUMNS
    assert f"Dice {float(rows[1]['dice']):.4f}" in lines[1]
    pictures = {p.name for p in (data / "saved_images").iterdir()}
    assert pictures == {
        "0.png",
        "1.png",
        "2.png",
        "pred_0.png",
        "pred_1.png",
        "pred_2.png",
        "batch.png",
        "overview.png",
        "history.csv",
        "index.html",
        "curves.png",
        "learning.gif",
    }
    assert np.asarray(Image.open(data / "saved_images/overview.png")).std() > 20

    before = {
        name: (data / name).read_bytes()
        for name in ("my_checkpoint.pth.tar", "best_checkpoint.pth.tar")
    }
    shutil.rmtree(data / "saved_images")
    done = run("train.py", *SMALL, "--num-epochs", 2, "--batch-size", 2, "--load-model", "true")
    assert (
        "2 of 2 epochs done" in done.stdout
        and "Dice score:" in done.stdout
        and "epoch 3" not in done.stdout
    )
    assert (data / "saved_images/overview.png").exists()
    assert before == {name: (data / name).read_bytes() for name in before}

    done = run(
        "train.py",
        *SMALL,
        "--num-epochs",
        3,
        "--batch-size",
        2,
        "--learning-rate",
        0.001,
        "--load-model",
        "true",
    )
    assert (
        "LEARNING_RATE: 0.01 in the checkpoint, 0.001 from now on" in done.stdout
        and "epoch 3/3" in done.stdout
    )
    assert (
        utils.read_checkpoint(data / "my_checkpoint.pth.tar")["optimizer"]["param_groups"][0]["lr"]
        == 0.001
    )
    done = run(
        "train.py",
        *SMALL,
        "--features",
        4,
        4,
        "--image-width",
        64,
        "--load-model",
        "true",
        status=2,
    )
    assert "--image-width 48 --features 4 8" in done.stderr

    done = run("evaluate.py", "--model", "my_checkpoint.pth.tar", "--json", "scores.json")
    import json

    scores = json.loads((data / "scores.json").read_text())
    rows = history(data)
    assert scores["dice"] == float(rows[2]["dice"]) and scores["full_dice"] == float(
        rows[2]["full_dice"]
    )
    for word in (
        "dice",
        "iou",
        "accuracy",
        "precision",
        "recall",
        "32x48",
        "average symmetric surface distance",
        "worst",
    ):
        assert word in done.stdout
    assert (
        len(scores["images"]) == 6
        and scores["images"][0]["name"].endswith(".jpg")
        and scores["full_boundary"] > 0
    )


@pytest.mark.parametrize("with_optimizer", [True, False])
def test_a_lineage_checkpoint_is_epoch_0(settings, data, capsys, with_optimizer):
    model = UNET(features=[4, 8])
    optimizer = (
        {"optimizer": torch.optim.Adam(model.parameters(), 1e-3).state_dict()}
        if with_optimizer
        else {}
    )
    torch.save({"state_dict": model.state_dict()} | optimizer, "my_checkpoint.pth.tar")
    train.main(settings(NUM_EPOCHS=1, LOAD_MODEL=True))
    assert "0 of 1 epochs done" in capsys.readouterr().out
    assert (data / "my_checkpoint_1.pth.tar").exists() and result()["epoch"] == 1


@pytest.mark.parametrize(
    "name",
    [
        "cpu",
        pytest.param(
            "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
        ),
    ],
)
def test_a_lineage_optimizer_goes_on_where_it_was(name):
    """Its moments lie in memory as the lineage's weights do; the next step is the one that it would have made."""
    torch.manual_seed(0)
    theirs, ours = (
        UNET(features=[4, 8]).to(name),
        UNET(features=[4, 8]).to(name, memory_format=torch.channels_last),
    )
    images, masks = (
        torch.rand(2, 3, 16, 24, device=name),
        (torch.rand(2, 1, 16, 24, device=name) > 0.5).float(),
    )

    def step(model, optimizer):
        optimizer.zero_grad()
        torch.nn.functional.binary_cross_entropy_with_logits(model(images), masks).backward()
        optimizer.step()

    adam = torch.optim.Adam(theirs.parameters(), 1e-3)
    for _ in range(5):
        step(theirs, adam)
    mine, scaler = (
        recipe.make_optimizer("adam", ours.parameters(), 1e-3, torch.device(name)),
        torch.amp.GradScaler(name, enabled=False),
    )
    utils.restore(
        {"state_dict": theirs.state_dict(), "optimizer": copy.deepcopy(adam.state_dict())},
        ours,
        mine,
        scaler,
    )
    step(theirs, adam), step(ours, mine)
    assert all(
        (a - b).abs().max() < 1e-4
        for a, b in zip(theirs.parameters(), ours.parameters(), strict=True)
    )


def test_unreadable_files_are_named_at_once_without_a_cache(data, run):
    bad = [
        data / "data/train_images/000000000001_01.jpg",
        data / "data/train_images/000000000003_02.jpg",
        data / "data/val_masks/000000000065_02_mask.gif",
    ]
    for path in bad:
        path.write_bytes(path.read_bytes()[:-40])
    for words in (["--cache", "false"], []):
        done = run(
            "train.py", "--features", 4, "--image-height", 32, "--image-width", 48, *words, status=2
        )
        assert all(path.name in done.stderr for path in bad) and "1/3" not in done.stdout
    (data / "data/val_images/000000000064_01.jpg").write_bytes(
        (data / "data/val_images/000000000064_02.jpg").read_bytes()[:-40]
    )
    done = run("evaluate.py", status=2)
    assert "000000000065_02_mask.gif" in done.stderr and "000000000064_01.jpg" in done.stderr


def test_by_another_measure_the_best_is_found_anew(settings, data):
    train.main(settings(NUM_EPOCHS=1))
    state = utils.read_checkpoint("my_checkpoint.pth.tar")
    torch.save(state | {"best": 0.999}, "my_checkpoint.pth.tar")
    train.main(settings(NUM_EPOCHS=2, LOAD_MODEL=True))
    assert result()["best"] == 0.999
    torch.save(state | {"best": 0.999}, "my_checkpoint.pth.tar")
    train.main(settings(NUM_EPOCHS=2, LOAD_MODEL=True, MASK_RESIZE="nearest"))
    assert (
        result()["best"] < 0.999
        and utils.read_checkpoint("best_checkpoint.pth.tar")["best"] == result()["best"]
    )


def test_settled_statistics_are_those_of_all_images_alike(data):
    """A last batch of one image weighs as much as one image."""
    loader, _ = utils.get_loaders(
        *folders(data), 11, val_transform(), val_transform(), 0, size=(32, 48)
    )
    model = UNET(features=[4])
    images = (
        torch.stack(
            [
                image
                for image, _ in CarvanaDataset(*folders(data)[:2], val_transform(), size=(32, 48))
            ]
        ).float()
        / 255
    )
    loader.sampler.epoch = 1
    with torch.no_grad():
        expected = model.downs[0].conv[0](images).mean((0, 2, 3))
    model.config = {"PRECISION": "fp32"}
    utils.settle_batchnorm(model, loader, 12)
    assert torch.allclose(model.downs[0].conv[1].running_mean, expected, atol=1e-6)
    assert model.downs[0].conv[1].momentum == 0.1


@pytest.mark.parametrize(
    "words, said",
    [
        (["--num-epoch", 3], "the nearest is --num-epochs"),
        (["--preset", "smal"], "there is no preset smal; the nearest is small"),
        (["--learning-rate", "fast"], "--learning-rate: expected a number, found 'fast'"),
        (["--learning-rate", "nan"], "--learning-rate: expected 1e-9..10.0, found nan"),
        (["--batch-size", "0"], "--batch-size: expected 1..65536 images, found 0"),
        (["--num-epochs", "2.5"], "--num-epochs: expected a whole number, found '2.5'"),
        (["--load-model", "yes"], "--load-model: expected true or false, found 'yes'"),
        (["--mask-resize", "cubic"], "--mask-resize: expected area | nearest, found cubic"),
        (["--features", "16", "-1"], "found -1"),
        (
            ["--batch-size", "0", "--seed", "-1", "--sede", "1"],
            "--batch-size: expected 1..65536 images, found 0",
        ),
        (["50"], "'50' belongs to no option"),
        (
            ["--mean", "0.5", "0.5"],
            "--mean: expected one value, or one for each of 3 channels, found 2",
        ),
        (["--train-img-dir", "nowhere"], "no folder 'nowhere'"),
        (["--val-mask-dir", "data/train_masks"], "has a mask in 'data/train_masks'"),
        (["--load-model", "true"], "no checkpoint 'my_checkpoint.pth.tar'"),
    ],
)
def test_wrong_words(data, run, words, said):
    done = run("train.py", *words, status=2)
    assert said in done.stderr and done.stderr.count("\n") == 1 and not done.stdout
    assert not list(data.glob("*.tar*"))


def test_wrong_files(data, run):
    """All found before the first step, in one go."""
    train_images, train_masks = folders(data)[:2]
    names = sorted(p.stem for p in train_images.iterdir())
    (train_masks / f"{names[0]}_mask.gif").unlink()
    (train_images / f"{names[1]}.jpg").unlink()
    (train_images / f"{names[2]}.jpg").write_text("no picture")
    write_mask(train_masks / f"{names[3]}_mask.gif", np.ones((10, 10), bool))
    done = run("train.py", *SMALL, status=2)
    for words in (
        f"{names[0]}.jpg: image without",
        f"{names[1]}_mask.gif: mask without",
        f"{names[2]}.jpg: cannot be read",
        f"{names[3]}.jpg: 72x48 pixels, its mask {names[3]}_mask.gif 10x10",
        "4 problems",
    ):
        assert words in done.stderr
    (data / "data/val_masks" / min(p.name for p in (data / "data/val_masks").iterdir())).unlink()
    done = run("train.py", *SMALL, status=2)
    assert "4 problems" in done.stderr and "1 problem in 'data/val_images/'" in done.stderr
    for path in train_images.iterdir():
        path.unlink()
    assert "no images in" in run("train.py", *SMALL, status=2).stderr


@pytest.mark.parametrize("cache", ["true", "false"])
def test_a_file_that_breaks_off_is_named(data, run, cache):
    path = next((data / "data/train_images").iterdir())
    path.write_bytes(path.read_bytes()[:1000])
    said = run("train.py", *SMALL, "--cache", cache, status=2).stderr
    assert f"{path.name}: cannot be read" in said and said.count("error: ") == 1


@pytest.mark.parametrize(
    "content, said",
    [
        (b"", "is not a checkpoint"),
        (b"text", "is not a checkpoint"),
        ({"a": 1}, "holds no weights"),
        ([1], "holds no weights"),
    ],
)
@pytest.mark.parametrize("script", ["train.py", "evaluate.py"])
def test_files_that_are_no_checkpoints(data, run, content, said, script):
    if isinstance(content, bytes):
        (data / "my_checkpoint.pth.tar").write_bytes(content)
    else:
        torch.save(content, data / "my_checkpoint.pth.tar")
    words = (
        [*SMALL, "--load-model", "true"]
        if script == "train.py"
        else ["--model", "my_checkpoint.pth.tar"]
    )
    assert said in run(script, *words, status=2).stderr


@pytest.mark.parametrize(
    "words, said",
    [
        (["--model", "no.pth.tar"], "no checkpoint 'no.pth.tar'"),
        (["--images", "nowhere"], "no folder 'nowhere'"),
        (["--batch-size", "0"], "--batch-size of at least 1"),
        (["--json", "nowhere/scores.json"], "no folder 'nowhere'"),
    ],
)
def test_wrong_words_of_evaluate(data, run, words, said):
    (data / "best_checkpoint.pth.tar").write_text("")
    assert said in run("evaluate.py", *words, status=2).stderr


def test_help_is_made_of_config_itself(run):
    text = " ".join(run("train.py", "--help").stdout.split())
    for name, (value, why) in config.constants().items():
        assert config.option(name) in text
        assert " ".join(why.split()[:3]) in text
    assert set(config.constants()) == {name for name in vars(config) if name.isupper()} - {
        "PRESETS"
    }


@pytest.mark.parametrize(
    "edit, said",
    [
        ('LOAD_MODEL = "False"', "LOAD_MODEL: expected true or false"),
        ("BATCH_SIZE = 16.0", "BATCH_SIZE: expected a whole number"),
        ('BATCH_SIZE = "16"', "BATCH_SIZE: expected a whole number"),
        ("FEATURES = []", "FEATURES: expected a list"),
        ("FEATURES = 64", "FEATURES: expected a list"),
        ("MEAN = [0, 0, 0]", None),
        ("HORIZONTAL_FLIP = 1", None),
        ("FEATURES = (16, 32)", None),
        ("NUM_EPOCHS = 10", None),
    ],
)
def test_constants_edited_in_config_are_checked_too(tmp_path, edit, said):
    """The file as a user leaves it: the comment kept, or lost with the old value."""
    import importlib.util

    name = edit.split(" = ")[0]
    lines = (config.Path(config.__file__)).read_text().splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith(f"{name} = "))
    for comment in (
        ("  #" + lines[at].split("  #", 1)[1], "")
        if said is None
        else ("  #" + lines[at].split("  #", 1)[1],)
    ):
        (tmp_path / "edited.py").write_text(
            "\n".join([*lines[:at], edit + comment, *lines[at + 1 :]])
        )
        spec = importlib.util.spec_from_file_location("edited", tmp_path / "edited.py")
        edited = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(edited)
        if said is None:
            assert hasattr(edited.load([]), name)
        else:
            with pytest.raises(UserError, match=said):
                edited.load([])


def test_presets_and_precedence():
    assert config.load([]).NUM_EPOCHS == 3 and config.load(["--preset", "small"]).NUM_EPOCHS == 6
    assert config.load(["--preset", "small", "--num-epochs", "9"]).NUM_EPOCHS == 9
    for name in config.PRESETS:
        config.load(["--preset", name])
        assert set(config.PRESETS[name]) <= set(config.constants())


@pytest.mark.parametrize(
    "error, said",
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
            "lower BATCH_SIZE first, then IMAGE_HEIGHT",
        ),
        (
            RuntimeError(
                "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
            ),
            "lower BATCH_SIZE first, then IMAGE_HEIGHT",
        ),
        (RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly"), "lower NUM_WORKERS"),
    ],
)
def test_mishaps_name_the_constants_to_change(error, said, capsys):
    with pytest.raises(SystemExit, match="2"), user_errors():
        raise error
    told = capsys.readouterr().err
    assert told.startswith("error: ") and said in told and str(error) in told
    with pytest.raises(RuntimeError, match="something else"), user_errors():
        raise RuntimeError("something else")


def test_a_loss_that_is_not_finite_names_the_files_and_keeps_the_checkpoint(settings, data):
    train.main(settings(NUM_EPOCHS=1))
    before = (data / "my_checkpoint.pth.tar").read_bytes()
    with pytest.raises(UserError, match=r"not finite; its images: 0000\w+_0[12]\.jpg, "):
        train.main(settings(NUM_EPOCHS=9, LEARNING_RATE=1e30, LOAD_MODEL=True))
    assert (data / "my_checkpoint.pth.tar").read_bytes() == before


def test_a_batch_too_small_for_batchnorm(data, run):
    done = run(
        "train.py", *SMALL, "--image-height", 4, "--image-width", 4, "--batch-size", 11, status=2
    )
    assert "change BATCH_SIZE" in done.stderr
