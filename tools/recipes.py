"""Where the time goes, and how much less of it than the plain recipe takes: python benchmark.py [--parts PART ...]

The plain recipe is what tutorials do: every epoch decodes the full-size files in two workers, and the network computes
in float32 with channels first. It is written below and runs in a process of its own, ours in another. The two take
turns; each figure is the median of --rounds turns. Leave the machine to it meanwhile."""

import argparse
import contextlib
import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from PIL import Image

import config
from pictures import (
    UserError,
    check_folders,
    find_pairs,
    keep_freed_memory,
    refuse,
    replacing,
    user_errors,
)

PARTS = ("reading", "loader", "step", "epoch", "evaluation", "inference", "scaling")
SIZE = (config.IMAGE_HEIGHT, config.IMAGE_WIDTH)
PLAIN_FILES = 32  # photographs in a turn of plain inference
READ = 32  # pairs in a turn of reading


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.error = refuse
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=PARTS,
        default=PARTS,
        metavar="PART",
        help=f"some of {' '.join(PARTS)}; all by default",
    )
    parser.add_argument(
        "--images",
        metavar="DIR",
        default=config.TRAIN_IMG_DIR,
        help="photographs; default %(default)s",
    )
    parser.add_argument(
        "--masks",
        metavar="DIR",
        default=config.TRAIN_MASK_DIR,
        help="their masks; default %(default)s",
    )
    parser.add_argument(
        "--features",
        type=int,
        nargs="+",
        default=config.FEATURES,
        metavar="N",
        help="of the network; default %(default)s",
    )
    parser.add_argument(
        "--batch-size",
        type=int,
        default=config.BATCH_SIZE,
        metavar="N",
        help="images a step; default %(default)s",
    )
    parser.add_argument(
        "--steps", type=int, default=4, metavar="N", help="steps in a turn; default %(default)s"
    )
    parser.add_argument(
        "--rounds", type=int, default=3, metavar="N", help="turns of each; default %(default)s"
    )
    parser.add_argument(
        "--scales",
        type=int,
        nargs="+",
        default=[100, 1000, 10_000],
        metavar="N",
        help="images, for the part scaling; default %(default)s",
    )
    parser.add_argument(
        "--model",
        metavar="CKPT",
        default=config.BEST_CHECKPOINT_FILE,
        help="checkpoint, for the part inference; default %(default)s",
    )
    parser.add_argument(
        "--files",
        type=int,
        default=512,
        metavar="N",
        help="photographs, for the part inference; default %(default)s",
    )
    parser.add_argument(
        "--device",
        default="auto",
        choices=("auto", "cuda", "mps", "cpu"),
        help="auto takes the first there is",
    )
    parser.add_argument("--json", metavar="FILE", help="write all figures there")
    args = parser.parse_args()
    if min(args.batch_size, args.steps, args.rounds, args.files, *args.features, *args.scales) < 1:
        raise UserError(
            "expected --batch-size, --steps, --rounds, --files, --features and --scales of at least 1"
        )
    if not Path(args.model).is_file():
        if args.parts != PARTS and "inference" in args.parts:
            raise UserError(
                f"no checkpoint {args.model!r} for the part inference; train one, or name another with --model"
            )
        args.parts = [part for part in args.parts if part != "inference"]
    if args.json and not Path(args.json).absolute().parent.is_dir():
        raise UserError(
            f"no folder {str(Path(args.json).parent)!r} to write --json {args.json} to; make it first"
        )
    check_folders((args.images, args.masks))
    return args


# ---------------------------------------------------------------- the two sides: a part -> {what: seconds per image}


class PlainDataset:
    def __init__(self, pairs, transform):
        self.pairs, self.transform = pairs, transform

    def __getitem__(self, index):
        image_path, mask_path = self.pairs[index]
        image = np.array(Image.open(image_path).convert("RGB"))
        mask = np.array(Image.open(mask_path).convert("L"), dtype=np.float32)
        mask[mask == 255.0] = 1.0
        item = self.transform(image=image, mask=mask)
        return item["image"], item["mask"]


class Plain:
    """What tutorials do."""

    def __init__(self, args, device):
        import albumentations as A
        import torch
        from albumentations.pytorch import ToTensorV2

        from model import UNET

        transform = A.Compose(
            [
                A.Resize(*SIZE),
                A.Rotate(limit=35, p=1.0),
                A.HorizontalFlip(p=0.5),
                A.VerticalFlip(p=0.1),
                A.Normalize(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), max_pixel_value=255.0),
                ToTensorV2(),
            ]
        )
        self.dataset, self.device, self.images = (
            PlainDataset(find_pairs(args.images, args.masks), transform),
            device,
            args.batch_size * args.steps,
        )
        self.model = UNET(features=args.features).to(device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-4)
        self.loss_fn = torch.nn.BCEWithLogitsLoss()
        order = [i % len(self.dataset.pairs) for i in range(self.images)]
        self.batches = torch.utils.data.DataLoader(
            self.dataset,
            args.batch_size,
            sampler=order,
            num_workers=2,
            pin_memory=device.type == "cuda",
        )
        self.ready = [next(iter(self.batches))] * args.steps
        self.train(self.ready[:1])

    def train(self, batches):
        self.model.train()
        for images, masks in batches:
            images, masks = images.to(self.device), masks.unsqueeze(1).to(self.device)
            loss = self.loss_fn(self.model(images), masks)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            loss.item()  # as their progress bars do

    def evaluate(self):
        import torch

        self.model.eval()
        with torch.no_grad():
            for images, masks in self.batches:
                predicted = (torch.sigmoid(self.model(images.to(self.device))) > 0.5).float()
                masks = masks.unsqueeze(1).to(self.device)
                (2 * (predicted * masks).sum() / (predicted + masks).sum()).item()

    def reading(self):
        return {
            "plain": timed(lambda: [self.dataset[i % len(self.dataset.pairs)] for i in range(READ)])
            / READ
        }

    def loader(self):
        return {"plain": timed(lambda: list(self.batches)) / self.images}

    def step(self):
        return {"plain": timed(lambda: self.train(self.ready)) / self.images}

    def epoch(self):
        return {"plain": timed(lambda: self.train(self.batches)) / self.images}

    def evaluation(self):
        return {"plain": timed(self.evaluate) / self.images}


class Ours:
    """The same with what train.py is made of."""

    def __init__(self, args, device):
        import torch

        import train  # what is measured is train_fn itself
        import utils
        from dataset import CarvanaDataset, train_transform, val_transform
        from device import amp_dtype
        from model import UNET
        from recipe import make_optimizer

        torch.backends.cudnn.benchmark = True
        self.images, self.device, self.dtype = (
            args.batch_size * args.steps,
            device,
            amp_dtype(device),
        )
        sets = {"ours": None, "ours, cached": config.CACHE_DIR}
        sets = {
            what: CarvanaDataset(
                args.images, args.masks, train_transform(), size=SIZE, cache_dir=folder
            )
            for what, folder in sets.items()
        }
        val = CarvanaDataset(
            args.images, args.masks, val_transform(), size=SIZE, cache_dir=config.CACHE_DIR
        )
        if val.cache is None:
            raise UserError(
                f"no cache could be made in {config.CACHE_DIR}; set CACHE_DIR to a disk with room"
            )
        val.pairs = val.pairs[: self.images]
        order = [(0, i % len(val.pairs)) for i in range(self.images)]
        self.sets = sets
        self.loaders = {
            what: utils.make_loader(dataset, args.batch_size, -1, True, order)
            for what, dataset in sets.items()
        }
        self.val_loader = utils.make_loader(val, args.batch_size, -1, True)
        self.ready = Batches([next(iter(self.loaders["ours, cached"]))] * args.steps)
        self.model = UNET(features=args.features).to(device, memory_format=torch.channels_last)
        optimizer = make_optimizer("adam", self.model.parameters(), 1e-4, device)
        scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)
        loss_fn = torch.nn.BCEWithLogitsLoss()
        self.train = lambda loader: train.train_fn(loader, self.model, optimizer, loss_fn, scaler)
        self.evaluate = lambda full_size: utils.check_accuracy(
            self.val_loader, self.model, device, loss_fn, full_size=full_size
        )
        self.train(self.ready)

    def reading(self):
        def read(dataset):
            for i in range(READ):
                dataset[0, i % len(dataset)]

        return {what: timed(lambda: read(dataset)) / READ for what, dataset in self.sets.items()}

    def loader(self):
        return {
            what: timed(lambda: list(loader)) / self.images for what, loader in self.loaders.items()
        }

    def step(self):
        return {"ours": timed(lambda: self.train(self.ready)) / self.images}

    def epoch(self):
        alone = {"ours, step alone": timed(lambda: self.train(self.ready)) / self.images}
        return alone | {
            what: timed(lambda: self.train(loader)) / self.images
            for what, loader in self.loaders.items()
        }

    def evaluation(self):
        count = len(self.val_loader.dataset)
        return {
            "ours": timed(lambda: self.evaluate(False)) / count,
            "ours, at full size too": timed(lambda: self.evaluate(True)) / count,
        }

    def peak(self):
        """FLOP/s of a large square matrix product in the precision that the network computes in: the best of ten."""
        import torch

        n = 8192 if self.device.type == "cuda" else 2048
        a, b = (torch.randn(n, n, device=self.device).to(self.dtype) for _ in range(2))

        def multiply():
            (a @ b)[0, 0].item()  # waits for a GPU

        return 2 * n**3 / min(timed(multiply) for _ in range(10))

    def flops(self):
        """Floating-point operations of a training step, per image, by torch's counter."""
        import torch
        from torch.utils.flop_counter import FlopCounterMode

        with FlopCounterMode(display=False) as counter:
            self.model(torch.zeros(1, 3, *SIZE, device=self.device)).sum().backward()
        return counter.get_total_flops()


class Batches(list):
    """Batches at hand, as a loader for train_fn."""

    @property
    def dataset(self):
        return range(sum(len(images) for images, _ in self))


def timed(work):
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def serve(connection, side, args, start_method):
    """A process of one side: receives the names of methods, sends what they return."""
    multiprocessing.set_start_method(
        start_method, force=True
    )  # of loaders' workers: the system's own, as in a training
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        try:
            if side is Ours:
                keep_freed_memory()
            from device import find_device

            worker = side(args, find_device(args.device))
            connection.send(None)
            while name := connection.recv():
                connection.send(getattr(worker, name)())
        except Exception as error:
            connection.send(error)


class Process:
    """call(name) -> what the side's method returns."""

    def __init__(self, side, args):
        self.connection, theirs = multiprocessing.get_context("spawn").Pipe()
        multiprocessing.get_context("spawn").Process(
            target=serve, args=(theirs, side, args, multiprocessing.get_start_method())
        ).start()
        theirs.close()
        self.answer()

    def answer(self):
        result = self.connection.recv()
        if isinstance(result, Exception):
            raise result
        return result

    def call(self, name):
        self.connection.send(name)
        return self.answer()


# ---------------------------------------------------------------- inference.py as a command


class PlainInference:
    """As tutorials predict: a photograph at a time, decoded whole, float32, the mask resized by Pillow."""

    def __init__(self, args, device):
        import albumentations as A
        import torch
        from albumentations.pytorch import ToTensorV2

        import utils
        from device import config_of

        self.model, self.device = (
            utils.load_model(args.model, str(device)).to(memory_format=torch.contiguous_format),
            device,
        )
        trained = config_of(self.model)
        self.mode = {1: "L", 3: "RGB"}[trained["IN_CHANNELS"]]
        mean, std = ((trained[name] * 3)[: trained["IN_CHANNELS"]] for name in ("MEAN", "STD"))
        self.transform = A.Compose(
            [
                A.Resize(trained["IMAGE_HEIGHT"], trained["IMAGE_WIDTH"]),
                A.Normalize(mean=mean, std=std),
                ToTensorV2(),
            ]
        )
        self.paths = [image for image, _ in find_pairs(args.images, args.masks)][:PLAIN_FILES]

    def inference(self):
        import torch

        with tempfile.TemporaryDirectory() as out, torch.no_grad():

            def predict():
                for path in self.paths:
                    photograph = Image.open(path).convert(self.mode)
                    image = self.transform(image=np.atleast_3d(photograph))["image"][None].to(
                        self.device
                    )
                    mask = (torch.sigmoid(self.model(image)) > 0.5)[0, 0].cpu().numpy()
                    Image.fromarray(mask.astype(np.uint8) * 255).resize(photograph.size).save(
                        f"{out}/{path.stem}.png"
                    )

            return {"plain": timed(predict) / len(self.paths)}


def predict(args, count):
    """Seconds of inference.py, as a command from its start to its end, for `count` photographs to their masks."""
    paths = [image.resolve() for image, _ in find_pairs(args.images, args.masks)]
    with tempfile.TemporaryDirectory() as folder:
        os.mkdir(f"{folder}/photographs")
        for i in range(count):
            os.symlink(paths[i % len(paths)], f"{folder}/photographs/{i:06d}.jpg")
        words = [
            sys.executable,
            Path(__file__).parent / "inference.py",
            "--img",
            f"{folder}/photographs",
            "--no-overlay",
            "--out",
            f"{folder}/out",
            "--model",
            args.model,
            "--device",
            args.device,
        ]
        return timed(lambda: subprocess.run(words, check=True, stdout=subprocess.DEVNULL))


# ---------------------------------------------------------------- how time and memory grow


def grow(args, count, connection):
    """Decode, load and evaluate `count` pairs in a process of its own -> seconds and bytes."""
    keep_freed_memory()
    import torch

    import utils
    from dataset import CarvanaDataset, EpochSampler, train_transform
    from device import find_device
    from model import UNET

    device, highest, ended = find_device(args.device), [0], threading.Event()

    def watch():
        while not ended.wait(0.02):
            highest[0] = max(highest[0], private_memory())

    pairs = find_pairs(args.images, args.masks)
    with (
        tempfile.TemporaryDirectory(dir=Path(args.images).parent) as folder,
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
    ):
        for kind, at in (("images", 0), ("masks", 1)):
            os.mkdir(f"{folder}/{kind}")
            for i in range(count):
                path = pairs[i % len(pairs)][at].resolve()
                os.symlink(path, f"{folder}/{kind}/{i // len(pairs):04d}_{path.name}")
        threading.Thread(target=watch, daemon=True).start()
        dataset = []
        find = timed(lambda: find_pairs(f"{folder}/images", f"{folder}/masks"))
        decode = timed(
            lambda: dataset.append(
                CarvanaDataset(
                    f"{folder}/images",
                    f"{folder}/masks",
                    train_transform(),
                    size=SIZE,
                    cache_dir=f"{folder}/cache",
                )
            )
        )
        loader = utils.make_loader(dataset[0], args.batch_size, -1, True, EpochSampler(count))
        model = UNET(features=[4, 8]).to(device, memory_format=torch.channels_last)
        load = timed(lambda: [None for _ in loader])
        evaluate = timed(lambda: utils.check_accuracy(loader, model, device))
        ended.set()
    connection.send(
        {
            "images": count,
            "find_s": find,
            "decode_s": decode,
            "load_s": load,
            "evaluate_s": evaluate,
            "private_mb": highest[0] / 1e6,
        }
    )


def private_memory():
    """Bytes that belong to this process alone: what is mapped from the cache is the system's to take back. Linux only, else 0."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    return 0


# ---------------------------------------------------------------- the report


def machine(device):
    import torch

    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        name = next(
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        )
    if device.type == "cuda":
        name = f"{torch.cuda.get_device_name(device)}, {name}"
    return f"{name}, {os.cpu_count()} cores; Python {platform.python_version()}, torch {torch.__version__}"


def show(part, times, note=""):
    """A table of what takes how long, as multiples of the last row."""
    print(f"\n| {part} | ms per image | images/s | times ours |\n|---|---:|---:|---:|")
    *_, last = times.values()
    for what, seconds in times.items():
        print(f"| {what} | {1000 * seconds:.2f} | {1 / seconds:.1f} | {seconds / last:.2f} |")
    if note:
        print(f"\n{note}")


def main(args):
    from device import find_device

    device = find_device(args.device)
    os.environ["TQDM_DISABLE"] = "1"  # in the processes started from here
    report = {
        "machine": machine(device),
        "features": args.features,
        "batch_size": args.batch_size,
        "size": SIZE,
        "steps": args.steps,
        "rounds": args.rounds,
    }
    print(
        f"{report['machine']}\nfeatures {' '.join(map(str, args.features))}, batches of {args.batch_size} at {SIZE[0]}x{SIZE[1]}, "
        f"medians of {args.rounds} turns of {args.steps} steps"
    )
    parts = [part for part in args.parts if part not in ("inference", "scaling")]
    sides = [Process(side, args) for side in (Plain, Ours)] if parts else []
    for part in parts:
        rounds, peaks = [], []
        for _ in range(args.rounds):
            if part == "step":
                peaks.append(sides[1].call("peak"))
            rounds.append(sides[0].call(part) | sides[1].call(part))
        times = {what: statistics.median(one[what] for one in rounds) for what in rounds[0]}
        report[part] = times
        note = ""
        if part == "step":
            report["flops_per_image"], report["peak_flops"] = sides[1].call("flops"), max(peaks)
            report["share_of_peak"] = (
                report["flops_per_image"] / times["ours"] / report["peak_flops"]
            )
            note = (
                f"{report['flops_per_image'] / 1e9:.1f} GFLOP per image; ours reaches {100 * report['share_of_peak']:.0f} % of the "
                f"{report['peak_flops'] / 1e9:,.0f} GFLOP/s of a large matrix product"
            )
        if part == "epoch":
            report["epoch_to_step"] = times["ours, cached"] / times["ours, step alone"]
            note = f"An epoch with a warm cache takes {report['epoch_to_step']:.3f} times its steps alone; the plain recipe takes {times['plain'] / times['ours, cached']:.2f} times ours."
        show(part, times, note)
    for side in sides:
        side.connection.send(None)
    if "inference" in args.parts:
        plain, rounds = Process(PlainInference, args), []
        for _ in range(args.rounds):
            rounds.append(
                plain.call("inference")
                | {"ours, the whole command": predict(args, args.files) / args.files}
            )
        plain.connection.send(None)
        report["inference"] = {
            what: statistics.median(one[what] for one in rounds) for what in rounds[0]
        }
        first, torch_alone = (
            statistics.median(timed(work) for _ in range(args.rounds))
            for work in (
                lambda: predict(args, 1),
                lambda: subprocess.run([sys.executable, "-c", "import torch"], check=True),
            )
        )
        report["first_mask_s"], report["import_torch_s"] = first, torch_alone
        show(
            f"photograph to mask, {args.files} files",
            report["inference"],
            f"The first mask is there {first:.1f} s after the start of the process, {torch_alone:.1f} s of which `import torch` takes.",
        )
    if "scaling" in args.parts:
        print(
            "\n| images | finding and pairing, s | decoding into the cache, s | loading an epoch, s | evaluation, s | private memory, MB |\n"
            + 6 * "|---:"
            + "|"
        )
        report["scaling"] = []
        context = multiprocessing.get_context("spawn")
        for count in args.scales:
            ours, theirs = context.Pipe()
            context.Process(target=grow, args=(args, count, theirs)).start()
            theirs.close()
            row = ours.recv()
            report["scaling"].append(row)
            print(
                f"| {count:,} | {row['find_s']:.1f} | {row['decode_s']:.1f} | {row['load_s']:.1f} | {row['evaluate_s']:.1f} | {row['private_mb']:.0f} |"
            )
    if args.json:
        with replacing(args.json) as temporary:
            temporary.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    with user_errors():
        main(arguments())
