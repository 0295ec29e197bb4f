"""Photographs to masks, overlays and cutouts, at the photographs' own size: python inference.py --img PATH [PATH ...]

python inference.py --img car.jpg                        outputs/car_mask.png and outputs/car_overlay.jpg
python inference.py --img photos --cutout --no-overlay   a folder; the cars without what is around them
python inference.py --img 'photos/*.jpg' --background white
python inference.py --img test_hq --no-save --rle submission.csv   the challenge's submission; the same command goes on where it stopped
"""

import argparse
import contextlib
import csv
import glob
import hashlib
import itertools
import json
import os
import sys
import time
from pathlib import Path

from PIL import ImageColor
from tqdm import tqdm

import config
from pictures import (
    IMAGE_TYPES,
    SHIPPED,
    UserError,
    WriteError,
    attempt,
    colours_of,
    cores,
    in_threads,
    keep_freed_memory,
    labels_of,
    many,
    picture_size,
    printable,
    read_image,
    refuse,
    replacing,
    user_errors,
)

FIELDS = ("img", "rle_mask")  # of the challenge's submission
GLOB = "*?["
ENDINGS = ("mask.png", "overlay.jpg", "cutout.png", "background.jpg")


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.error = refuse
    parser.add_argument(
        "--img",
        nargs="+",
        required=True,
        metavar="PATH",
        help=f"photographs ({' '.join(IMAGE_TYPES)}), folders of them, or patterns such as 'photos/*.jpg'",
    )
    parser.add_argument(
        "--recursive", action="store_true", help="look into the folders' sub-folders too"
    )
    parser.add_argument(
        "--model",
        metavar="M",
        default=SHIPPED,
        help=f"checkpoint, such as {config.BEST_CHECKPOINT_FILE}; by default the weights that come with the project",
    )
    parser.add_argument(
        "--out", metavar="DIR", default="outputs", help="where the files go (default outputs)"
    )
    parser.add_argument(
        "--save",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="write files; --no-save only prints",
    )
    parser.add_argument(
        "--overlay",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="NAME_overlay.jpg: the photograph with the car tinted and outlined",
    )
    parser.add_argument(
        "--cutout",
        action="store_true",
        help="NAME_cutout.png: the car alone, transparent around it",
    )
    parser.add_argument(
        "--background",
        metavar="white|#rrggbb|PHOTO",
        help="NAME_background.jpg: the car on a colour, or on another photograph",
    )
    parser.add_argument(
        "--rle",
        metavar="FILE.csv",
        help="write the masks as the challenge's run lengths; an interrupted run goes on where it stopped",
    )
    parser.add_argument(
        "--gallery",
        action="store_true",
        help=f"index.html in --out: the photographs beside their masks, the {config.GALLERY_MAX} that the model is least sure of",
    )
    parser.add_argument(
        "--threshold",
        type=float,
        metavar="T",
        help="probability above which a pixel is car (default: the model's own)",
    )
    parser.add_argument(
        "--tta",
        action="store_true",
        help="average with the mirror image: twice the time, a little better",
    )
    parser.add_argument(
        "--batch-size",
        type=int,
        default=4,
        metavar="N",
        help="photographs that the network sees at once (default 4)",
    )
    parser.add_argument(
        "--device",
        default="auto",
        choices=("auto", "cuda", "mps", "cpu"),
        help="auto takes the first there is",
    )
    args = parser.parse_args()
    if args.threshold is not None and not 0 < args.threshold < 1:
        raise UserError(
            f"--threshold: expected a probability between 0 and 1, found {args.threshold}"
        )
    if not 1 <= args.batch_size <= 65536:
        raise UserError(f"--batch-size: expected 1..65536 photographs, found {args.batch_size}")
    if not args.save and (args.cutout or args.background):
        raise UserError(
            "--no-save leaves nothing to be written by --cutout or --background; leave one of them away"
        )
    if args.gallery and not config.GALLERY_MAX:
        raise UserError(
            "--gallery: GALLERY_MAX is 0 in config.py, no picture at all; set it to 1..1000"
        )
    args.background = background(args.background)
    if not Path(args.model).is_file():
        raise UserError(
            f"no model {str(args.model)!r}; train one with python train.py, or name another with --model"
        )
    return args


def background(word):
    """A colour (r, g, b) or a photograph uint8 (H, W, 3); None for none."""
    if word is None or Path(word).is_file():
        return word and read_image(word)
    try:
        return ImageColor.getrgb(word)[:3]
    except ValueError:
        raise UserError(
            f"--background: expected a colour such as white or #c0ffee, or a photograph, found {word!r}"
        ) from None


def find(args):
    """-> ([(photograph, NAME that its files begin with, its own name in a csv)], what was not found, in words)."""
    photographs, faults, names, csv_names = [], [], set(), set()
    for word in args.img:
        path = Path(word)
        if path.is_dir():
            found = photographs_in(path, args.recursive, Path(args.out).absolute())
            faults += (
                []
                if found
                else [
                    f"{printable(path)}: no photographs in this folder ({' '.join(IMAGE_TYPES)}){'' if args.recursive else '; --recursive looks into its sub-folders'}"
                ]
            )
            found = [(file, file.relative_to(path)) for file in found]
        elif not path.exists() and any(letter in word for letter in GLOB):
            found = [
                (Path(file), Path(Path(file).name))
                for file in sorted(glob.glob(word, recursive=True))
                if Path(file).suffix.lower() in IMAGE_TYPES
            ]
            faults += [] if found else [f"{printable(word)}: no photograph fits this pattern"]
        else:
            found = [(path, Path(path.name))]
        for file, relative in found:
            stem = str(relative.with_suffix(""))
            name = next(
                name
                for name in itertools.chain([stem], (f"{stem}_{n}" for n in itertools.count(2)))
                if name.lower() not in names
            )
            names.add(name.lower())  # Windows and macOS take upper and lower case for the same
            if args.rle and relative.as_posix() in csv_names:
                faults.append(
                    f"{printable(file)}: a second {relative.as_posix()}, which a csv could not tell from the first; run it alone"
                )
                continue
            csv_names.add(relative.as_posix())
            photographs.append((file, name, relative.as_posix()))
    return photographs, faults


def photographs_in(folder, recursive, out):
    """Sorted photographs of a folder, less those that earlier runs wrote to `out`."""
    found = []
    for where, folders, files in os.walk(folder):
        folders[:] = sorted(
            name
            for name in folders
            if recursive and not name.startswith(".") and Path(where, name).absolute() != out
        )
        found += [
            Path(where, name)
            for name in sorted(files)
            if Path(name).suffix.lower() in IMAGE_TYPES and not name.startswith(".")
        ]
    return found


def main(args):
    photographs, failed = find(args)
    if not photographs:
        raise UserError("; ".join(failed))
    if args.save:
        inputs = {photograph[0].absolute() for photograph in photographs}
        clash = [
            path
            for _, name, _ in photographs
            for ending in ENDINGS
            if (path := Path(args.out, f"{name}_{ending}").absolute()) in inputs
        ]
        if clash:
            raise UserError(
                f"{printable(clash[0])} is one of the photographs, and would be overwritten; choose another folder with --out"
            )
        Path(args.out).mkdir(parents=True, exist_ok=True)
    run = args.rle and {
        "model": hashlib.sha256(Path(args.model).read_bytes()).hexdigest(),
        "threshold": args.threshold,
        "tta": args.tta,
    }
    if args.rle and Path(args.rle).exists() and earlier_run(args.rle) != run:
        raise UserError(
            f"{args.rle} is there already, and not of this model, --threshold and --tta; remove it, or name another file"
        )
    import device  # torch takes seconds to import; what is wrong with the arguments is known by now
    import parallel

    with parallel.together(device.find_device(args.device)) as found:
        predict_part(args, photographs, failed, found, run)


def predict_part(args, photographs, failed, where, run):
    """Everything about the photographs that are this process's part."""
    import torch

    import device
    import parallel
    import utils

    failed = failed if parallel.FIRST else []
    model = utils.load_model(args.model, where)
    if labels_of(device.config_of(model)) and (args.rle or args.threshold):
        raise UserError(
            f"{printable(args.model)} tells {len(device.config_of(model)['CLASSES'])} classes apart; --rle and --threshold are for models of one"
        )
    with contextlib.ExitStack() as stack:
        rows = stack.enter_context(Submission(args.rle, run)) if args.rle else None
        if rows:
            photographs = [one for one in photographs if one[2] not in rows.done]
        photographs = [photographs[index] for index in parallel.part(len(photographs))]
        before, done, cards, started = len(rows.done) if rows else 0, 0, [], time.perf_counter()
        for photograph, result in zip(photographs, results(args, photographs, model)):
            if isinstance(result, UserError):
                failed.append(str(result))
                continue
            shares, written, runs, card = result
            if rows:
                rows.add(photograph[2], runs)
            tqdm.write(
                f"{printable(photograph[0])}: {shares}{' -> ' if written else ''}{', '.join(printable(path) for path in written)}"
            )
            done += 1
            cards = (
                sorted([*cards, card], key=lambda card: -card["unsure"])[: config.GALLERY_MAX]
                if card
                else cards
            )
        done = parallel.summed(torch.tensor(done)).item()  # here all wait for the last
        seconds = time.perf_counter() - started
    found = parallel.merged({parallel.RANK: (failed, cards)})
    failed, cards = (
        [one for rank in sorted(found) for one in found[rank][kind]] for kind in (0, 1)
    )
    cards = sorted(cards, key=lambda card: -card["unsure"])[: config.GALLERY_MAX]
    if not parallel.FIRST:
        return
    print(
        f"{many(range(done), 'photograph')} in {seconds:.1f} s, {done / max(seconds, 1e-9):.1f} images/s"
        + (f"; {args.rle} holds {many(range(before + done), 'row')}" if rows else "")
    )
    if cards:
        import gallery

        print(
            f"now look at {gallery.predictions_page(Path(args.out, 'index.html'), cards, done, args.model)}"
        )
    if failed:
        print(f"{len(failed)} failed:\n  " + "\n  ".join(failed), file=sys.stderr)
        sys.exit(1)


def results(args, photographs, model):
    """For each photograph in order: (shares of the classes in words, paths written, run lengths or None, card of the page or None), or the UserError that it ended with."""
    if not photographs:
        return
    import torch  # takes seconds, and so does what follows

    import device

    trained = device.config_of(model)
    parameters = sum(p.numel() for p in model.parameters())
    print(
        f"{printable(args.model)}: {f'{parameters / 1e6:.2f} M parameters ' if parameters else ''}at {trained['IMAGE_HEIGHT']}x{trained['IMAGE_WIDTH']} on {device.device_of(model)}"
    )
    device.keep_half(model)
    batches = [
        photographs[i : i + args.batch_size] for i in range(0, len(photographs), args.batch_size)
    ]
    # each thread takes its photographs all the way: nothing waits for anything but the disk and the cores
    threads = cores()
    if device.device_of(model).type == "cpu":
        threads = min(threads, len(batches))
        torch.set_num_threads(max(1, cores() // threads))
    with contextlib.closing(
        in_threads(
            lambda batch: masked(batch, model, trained, args),
            batches,
            "predicting",
            " batches",
            threads,
        )
    ) as done:
        for batch in done:
            yield from batch


def masked(batch, model, trained, args):
    """One batch all the way -> a result or a UserError for each photograph."""
    import numpy as np

    import utils

    size = trained["IMAGE_HEIGHT"], trained["IMAGE_WIDTH"]
    found = [attempt(read_image, path, size, trained["IN_CHANNELS"]) for path, _, _ in batch]
    good = [image for image in found if not isinstance(image, UserError)]
    logits = iter(utils.network_logits(model, np.stack(good), args.tta) if good else ())
    trained = trained | ({"THRESHOLD": args.threshold} if args.threshold else {})
    for i, (photograph, image) in enumerate(zip(batch, found)):
        if not isinstance(image, UserError):
            try:
                found[i] = finish(photograph, next(logits), trained, args)
            except WriteError:
                raise
            except UserError as error:
                found[i] = error
    return found


def finish(photograph, logits, trained, args):
    """From a photograph's logits at the network's size to its files."""
    import cv2
    import numpy as np

    import draw
    import utils

    path, name, _ = photograph
    size, labels = picture_size(path), labels_of(trained)
    scale = size[0] / logits.shape[1]
    logits, paint = utils.upsample(logits, size), labels and colours_of(labels)
    if labels is None:
        cut = np.float32(utils.cut_of(trained))
        logits = logits[0] - cut if cut else logits[0]
        mask, margin = logits > 0, abs(logits) if args.gallery else None
        shares = f"{printable(trained['CLASSES'][0])} {100 * cv2.countNonZero(mask.view(np.uint8)) / mask.size:.1f} %"
    else:  # what follows is about all classes but the first, as one
        margin = np.diff(np.partition(logits, -2, axis=0)[-2:], axis=0) if args.gallery else None
        mask, logits = (
            logits.argmax(0).astype(np.uint8),
            np.logaddexp.reduce(logits[1:], 0) - logits[0],
        )
        counts = np.bincount(mask.ravel(), minlength=len(labels.names))
        shares = ", ".join(
            f"{printable(labels.names[i])} {100 * counts[i] / mask.size:.1f} %"
            for i in np.argsort(-counts, kind="stable")
            if counts[i]
        )
    runs = run_lengths(mask) if args.rle else None
    pictures = {}
    if args.save:
        pictures[ENDINGS[0]] = mask.view(np.uint8) * np.uint8(255) if labels is None else mask
        if args.overlay or args.cutout or args.background is not None:
            whole = read_image(path)
        if args.overlay:
            pictures[ENDINGS[1]] = draw.overlay(whole, mask, paint)
        if args.cutout or args.background is not None:
            colours, alpha = draw.matte(whole, logits, scale)
        if args.cutout:
            pictures[ENDINGS[2]] = np.dstack([colours, alpha])
        if args.background is not None:
            pictures[ENDINGS[3]] = draw.on_background(colours, alpha, args.background)
    written = []
    for ending, picture in pictures.items():
        target = Path(args.out, f"{name}_{ending}")
        draw.save(picture, target, paint if ending == ENDINGS[0] else None)
        written.append(target)
    card = None
    if args.gallery:
        import gallery

        card = gallery.prediction_card(path, name, mask, shares, (margin < np.log(9)).mean(), paint)
    return shares, written, runs, card


def run_lengths(mask):
    """bool (H, W) -> "start length start length ...": pixels counted from 1, from left to right, then from top to bottom."""
    import numpy as np

    flat = np.concatenate([[False], mask.reshape(-1), [False]])
    places = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    places[1::2] -= places[::2]
    return " ".join(map(str, places))


class Submission:
    """A csv that grows by a row at a time. What an earlier run of the same model, threshold and --tta wrote to it stays.

    Of several processes the first writes to it, the others to files beside it that are added to it in the end, or by the next run."""

    def __init__(self, path, run):
        import parallel

        self.parallel, self.path, self.run = parallel, Path(path), run
        self.done = set()
        if parallel.FIRST and self.path.exists():
            self.go_on()
        elif parallel.FIRST:
            for path in self.parts():  # of a csv that is gone
                path.unlink()
        self.done = parallel.from_first(lambda: self.done)

    def go_on(self):
        with open(self.path, "rb+") as file:
            file.truncate(whole(file))  # less the row in which the run was ended
        self.add_parts()
        csv.field_size_limit(
            2**31 - 1
        )  # a photograph's run lengths can be longer than the usual limit
        with open(self.path, newline="", encoding="utf-8", errors="surrogateescape") as file:
            self.done = {row[0] for row in itertools.islice(csv.reader(file), 1, None) if row}
        if self.done:
            print(f"{self.path}: going on after {many(self.done, 'row')}")

    def __enter__(self):
        if self.parallel.FIRST:
            with replacing(beside(self.path)) as temporary:
                temporary.write_text(json.dumps(self.run))
        self.file = open(
            self.path
            if self.parallel.FIRST
            else self.path.with_name(f".{self.path.name}.{self.parallel.RANK}"),
            "a",
            newline="",
            encoding="utf-8",
            errors="surrogateescape",
        )
        self.writer = csv.writer(self.file, lineterminator="\n")
        if self.file.tell() == 0 and self.parallel.FIRST:
            self.writer.writerow(FIELDS)
            self.file.flush()
        return self

    def parts(self):
        return sorted(self.path.parent.glob(f".{glob.escape(self.path.name)}.[0-9]*"))

    def add_parts(self):
        """Add what other processes wrote beside the csv to it: whole rows, of photographs that it has not."""
        for path in self.parts():
            with open(self.path, "rb") as file:
                there = {line.rsplit(b",", 1)[0] for line in file}
            with open(path, "rb") as part, open(self.path, "ab") as file:
                file.writelines(
                    line
                    for line in part
                    if line.endswith(b"\n") and line.rsplit(b",", 1)[0] not in there
                )
            path.unlink()

    def add(self, name, runs):
        self.writer.writerow((name, runs))
        self.file.flush()
        self.done.add(name)

    def __exit__(self, failure, *_):
        self.file.close()
        if failure is None and self.parallel.FIRST:
            self.add_parts()


def beside(path):
    """Where a csv's run is written down."""
    return Path(path).with_name(f".{Path(path).name}.run")


def earlier_run(path):
    """Which model and options wrote a csv; None where that is not known."""
    try:
        return json.loads(beside(path).read_text())
    except (OSError, ValueError):
        return None


def whole(file):
    """How many bytes of a file opened for reading bytes are whole lines."""
    return sum(len(line) for line in file if line.endswith(b"\n"))


if __name__ == "__main__":
    keep_freed_memory()
    with user_errors():
        main(arguments())
