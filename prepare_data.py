"""Make data/ ready for training: every pair checked, the cars split into training, validation and test.

python prepare_data.py train.zip train_masks.zip        Kaggle's two files
python prepare_data.py carvana-image-masking-challenge.zip   its one outer file, or the folder unpacked from it
python prepare_data.py --images DIR --masks DIR         any two folders
python prepare_data.py --demo                           no photographs yet: render some cars into data/demo
python prepare_data.py --check                          only check what is in place
"""

import argparse
import contextlib
import errno
import filecmp
import shutil
import signal
import sys
import time
import zipfile
from pathlib import Path, PurePosixPath

import config
import demo_data
from pictures import (
    IMAGE_TYPES,
    MASK_TYPES,
    UserError,
    brief,
    check_pair,
    group_of,
    in_threads,
    is_picture_or_file,
    keep_freed_memory,
    labels_of,
    listed,
    many,
    pair_folders,
    pair_names,
    refuse,
    printable,
    split_groups,
    told,
    user_errors,
)

PARTS = ("val", "test", "train")  # in the order in which split_groups deals them
FOLDERS = [f"{part}_{kind}" for part in PARTS for kind in ("images", "masks")]
PICTURE_BYTES = 1 << 30  # of a file in a zip; what unpacks to more was made to fill disks
OURS = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
)  # errors of where it is written to, not of what is read


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.error = refuse
    parser.add_argument(
        "source", nargs="*", help="TRAIN_ZIP MASKS_ZIP, or one outer zip, or a folder with either"
    )
    parser.add_argument("--images", metavar="DIR", help="folder of photographs")
    parser.add_argument(
        "--masks",
        metavar="DIR",
        help="folder of masks, NAME_mask.png or NAME.png (gif, bmp and tif as well)",
    )
    parser.add_argument(
        "--val-fraction",
        type=share,
        default=0.1,
        metavar="F",
        help="share of the cars to validate on (default 0.1)",
    )
    parser.add_argument(
        "--test-fraction",
        type=share,
        default=0.0,
        metavar="F",
        help="share of the cars to set aside for a final test (default 0)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="another seed deals the cars differently (default 0)"
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        help="where the folders go (default data, of --demo data/demo, with --parts data/parts)",
    )
    parser.add_argument(
        "--demo", action="store_true", help="render cars instead of reading photographs"
    )
    parser.add_argument(
        "--cars", type=int, default=28, metavar="N", help="with --demo: how many (default 28)"
    )
    parser.add_argument(
        "--angles",
        type=int,
        default=10,
        metavar="N",
        choices=range(1, 17),
        help="with --demo: photographs of each, 1 to 16 (default 10)",
    )
    parser.add_argument(
        "--size",
        type=int,
        nargs=2,
        default=(320, 480),
        metavar=("H", "W"),
        help="with --demo: pixels (default 320 480)",
    )
    parser.add_argument(
        "--parts",
        action="store_true",
        help=f"with --demo: masks of {len(demo_data.PARTS)} classes, {' '.join(demo_data.PARTS)}",
    )
    parser.add_argument("--check", action="store_true", help="only check what is in place")
    parser.add_argument(
        "--skip-bad", action="store_true", help="leave bad files out instead of stopping"
    )
    parser.add_argument("--force", action="store_true", help="replace what is in place")
    config.add_data_options(parser)
    args = parser.parse_args()
    cfg = config.checked(args)
    args.labels, args.suffix, args.group = (
        labels_of(vars(cfg)),
        cfg.MASK_SUFFIX,
        lambda name: group_of(name, cfg.GROUP_REGEX),
    )
    ways = sum(map(bool, (args.source, args.images or args.masks, args.demo, args.check)))
    if ways != 1 or len(args.source) > 2 or bool(args.images) != bool(args.masks):
        parser.error(
            "give one or two zips (or one folder), or both --images DIR and --masks DIR, or --demo, or --check"
        )
    if args.val_fraction + args.test_fraction >= 1:
        parser.error(
            "--val-fraction and --test-fraction leave nothing to train on; together they must stay under 1"
        )
    if args.parts and not args.demo:
        parser.error("--parts goes with --demo; for masks of your own name their --classes")
    if not args.demo and any(
        getattr(args, name) != parser.get_default(name) for name in ("cars", "angles", "size")
    ):
        parser.error(
            "--cars, --angles and --size go with --demo, which renders cars; photographs are taken as they are"
        )
    height, width = args.size
    if args.demo and (
        args.cars < 2
        or min(args.size) < 16
        or height * width > 1280 * 1918
        or args.seed < 0
        or args.test_fraction
    ):
        parser.error(
            "--demo takes --cars of at least 2, a --size from 16 16 to the area of 1280 1918, a --seed of at least 0, and no --test-fraction"
        )
    return args


def share(word):
    value = float(word)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"expected a share from 0 to under 1, found {word}")
    return value


def main(args):
    out = Path(args.out or ("data/parts" if args.parts else "data/demo" if args.demo else "data"))
    if args.check:
        return check(out, args)
    staging = out / ".preparing"  # beside the folders, so that moving into place is a rename
    try:
        undo(staging, out)  # of a run that was killed
        staging.mkdir(parents=True)
        if args.demo:
            render(args, staging, out)
        else:
            prepare(args, staging, out)
    except OSError as error:
        raise UserError(f"{told(error)}; {out} is as it was") from error
    finally:
        clear(staging)


def prepare(args, staging, out):
    sources = find_sources(args, staging)
    pairs, problems = pair_names(sources["images"], sources["masks"], args.suffix)
    if not pairs:
        raise UserError(listed("no image with a mask was found", problems))
    pairs, faults, warnings = copy_and_check(pairs, sources, staging / "all", args.labels)
    problems += faults
    report_problems(problems, warnings, args.skip_bad)
    if not pairs:
        raise UserError("no good pair is left")
    cars = split_groups(
        [args.group(image) for image, _ in pairs],
        (args.val_fraction, args.test_fraction),
        args.seed,
    )
    dealt = {
        part: [pair for pair in pairs if args.group(pair[0]) in groups]
        for part, groups in zip(PARTS, cars)
    }
    if not dealt["train"]:
        raise UserError(
            f"{len(pairs)} pairs are too few to split; add some, or set --val-fraction 0"
        )
    for part, chosen in dealt.items():
        for kind, names in zip(("images", "masks"), zip(*chosen)):
            (staging / "new" / f"{part}_{kind}").mkdir(parents=True)
            for name in names:
                (staging / "all" / kind / name).rename(staging / "new" / f"{part}_{kind}" / name)
    put_in_place(staging, out, args.force)
    for part in sorted(PARTS):
        if dealt[part]:
            print(
                f"{part:5}  {len({args.group(image) for image, _ in dealt[part]}):5} cars  {len(dealt[part]):6} pairs"
            )


def render(args, staging, out):
    refuse_other_data(out, args.force)  # before the seconds that rendering takes
    val_cars = min(max(1, round(args.cars * args.val_fraction)), args.cars - 1)
    demo_data.render_set(
        staging / "new", args.cars, val_cars, args.angles, tuple(args.size), args.seed, args.parts
    )
    put_in_place(staging, out, args.force)
    print(
        f"{args.cars - val_cars} cars to train on and {val_cars} to validate on, {args.angles} photographs of each, in {out}"
    )


# ---------------------------------------------------------------- where the files come from


def find_sources(args, staging):
    """-> {"images": {name: function that writes the file to a path}, "masks": likewise}."""
    if args.images:
        return {"images": folder_files(args.images), "masks": folder_files(args.masks)}
    if len(args.source) == 2:
        return {
            "images": any_files(args.source[0], staging),
            "masks": any_files(args.source[1], staging),
        }
    source = Path(args.source[0])
    if source.is_dir():
        return {
            kind: any_files(
                next(
                    (source / name for name in names if (source / name).exists()), source / names[0]
                ),
                staging,
            )
            for kind, names in (
                ("images", ("train.zip", "train")),
                ("masks", ("train_masks.zip", "train_masks")),
            )
        }
    files = zip_files(source, staging)
    missing = {"train.zip", "train_masks.zip"} - files.keys()
    if missing:
        raise UserError(
            f"{source} holds no {' and no '.join(sorted(missing))}; give two zips (images, masks), or Kaggle's outer zip"
        )
    for name in ("train.zip", "train_masks.zip"):
        try:
            files[name](staging / name)
        except Exception as error:
            if getattr(error, "errno", None) in OURS:
                raise
            raise UserError(
                f"{name} in {source} is damaged ({brief(error)}); download it again"
            ) from error
    return {
        "images": any_files(staging / "train.zip", staging),
        "masks": any_files(staging / "train_masks.zip", staging),
    }


def any_files(path, staging):
    return folder_files(path) if Path(path).is_dir() else zip_files(path, staging)


def folder_files(path):
    path = Path(path)
    if not path.is_dir():
        raise UserError(f"no file or folder {str(path)!r}; check the path")
    return {
        p.name: lambda target, p=p: shutil.copyfile(p, target)
        for p in path.iterdir()
        if not p.name.startswith(".") and is_picture_or_file(p)
    }


def open_zip(path):
    try:
        return zipfile.ZipFile(path)
    except FileNotFoundError:
        raise UserError(f"no file {str(path)!r}; check the path") from None
    except Exception as error:
        raise UserError(
            f"{path} is not a zip that can be read ({brief(error)}); download it again"
        ) from error


def zip_files(path, staging):
    """The files of a zip, whatever folder they are in; hidden ones and those of __MACOSX are left out."""
    archive = open_zip(path)
    files, problems, unpacked = {}, [], 0
    for info in archive.infolist():
        inside = PurePosixPath(info.filename.replace("\\", "/"))
        if (
            inside.is_absolute()
            or ".." in inside.parts
            or inside.parts[:1]
            and ":" in inside.parts[0]
        ):
            problems.append(f"{printable(info.filename)}: leads outside the zip")
        elif info.flag_bits & 1:
            problems.append(f"{printable(info.filename)}: encrypted")
        elif info.is_dir() or inside.name.startswith(".") or "__MACOSX" in inside.parts:
            continue
        elif inside.name in files:
            problems.append(f"{printable(info.filename)}: a second file of that name")
        elif inside.suffix.lower() in IMAGE_TYPES + MASK_TYPES and info.file_size > PICTURE_BYTES:
            problems.append(
                f"{printable(info.filename)}: unpacks to {info.file_size / 1e6:,.0f} MB, a picture to {PICTURE_BYTES / 1e6:,.0f} MB at most"
            )
        files[inside.name] = zip_writer(archive, info)
        unpacked += info.file_size
    if unpacked > (free := shutil.disk_usage(staging).free):
        problems.append(f"it unpacks to {unpacked / 1e9:,.1f} GB, {free / 1e9:,.1f} GB are free")
    if problems:
        raise UserError(listed(f"{path} is refused; make or download another:", problems))
    return files


def zip_writer(archive, info):
    def write(target):
        with archive.open(info) as source, open(target, "wb") as file:
            shutil.copyfileobj(source, file, 1 << 20)

    return write


# ---------------------------------------------------------------- from there to data/


def copy_and_check(pairs, sources, folder, labels):
    """Copy all pairs into folder/images and folder/masks and read them -> (good pairs, faults, warnings)."""
    for kind in sources:
        (folder / kind).mkdir(parents=True)

    def one(pair):
        for name, kind in zip(pair, sources):
            try:
                sources[kind][name](folder / kind / name)
            except Exception as error:  # a hostile zip can raise nearly anything
                if getattr(error, "errno", None) in OURS:
                    raise
                return [f"{printable(name)}: cannot be read ({brief(error)})"], []
        return check_pair(folder / "images" / pair[0], folder / "masks" / pair[1], labels)

    good, faults, warnings = [], [], []
    with contextlib.closing(
        in_threads(one, pairs, "checking")
    ) as results:  # no thread outlives an interruption
        for pair, (bad, odd) in zip(pairs, results):
            faults += bad
            warnings += odd
            if not bad:
                good.append(pair)
    return good, faults, warnings


def report_problems(problems, warnings, skip_bad):
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if problems and not skip_bad:
        raise UserError(
            listed(
                f"{many(problems, 'problem')}; nothing was changed. Put them right, or leave these files out with --skip-bad:",
                problems,
            )
        )
    for problem in problems:
        print(f"left out: {problem}", file=sys.stderr)


def refuse_other_data(out, force):
    occupied = [
        f"{out / name}: {len(files)} files" for name in FOLDERS if (files := visible(out / name))
    ]
    if occupied and not force:
        raise UserError(
            listed(
                f"{out} holds data already, which was left alone; replace it with --force, or choose another "
                "folder with --out:",
                occupied,
            )
        )


def put_in_place(staging, out, force):
    """Move the folders in staging/new to out, all or none; exactly the same files in place already are left there."""
    new, old = staging / "new", staging / "old"
    if all(same_files(new / name, out / name) for name in FOLDERS):
        print(f"{out} holds exactly this already; nothing to do")
        return
    refuse_other_data(out, force)
    fresh = [name for name in FOLDERS if (new / name).exists()]
    old.mkdir()
    try:
        for name in FOLDERS:
            if (out / name).exists():
                (out / name).rename(old / name)
        for name in fresh:
            (new / name).rename(out / name)
    except BaseException:
        for name in fresh:
            if not (new / name).exists():
                (out / name).rename(new / name)
        undo(staging, out)
        raise
    old.rename(staging / "replaced")  # from here on it is not to be put back


def undo(staging, out):
    """Put back what a run that did not finish had moved from out to staging/old, and clear staging away."""
    for folder in list((staging / "old").iterdir()) if (staging / "old").exists() else ():
        shutil.rmtree(out / folder.name, ignore_errors=True)
        folder.rename(out / folder.name)
    clear(staging)


def clear(folder):
    """Remove a folder; again where a thread, whose start an interruption cut off from its pool, was still writing its last file."""
    for _ in range(100):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.05)


def visible(folder):
    """{name: path} of what is in a folder, hidden files left out; nothing where there is no folder."""
    return (
        {p.name: p for p in folder.iterdir() if not p.name.startswith(".")}
        if folder.is_dir()
        else {}
    )


def same_files(one, other):
    ours, theirs = visible(one), visible(other)
    return ours.keys() == theirs.keys() and all(
        filecmp.cmp(ours[name], theirs[name], shallow=False) for name in ours
    )


def check(out, args):
    """Read every pair in place, and see that no car is on two sides."""
    problems, cars = [], {}
    for part in sorted(PARTS):
        if part == "test" and not visible(out / "test_images"):
            continue
        try:
            pairs, faults = pair_folders(out / f"{part}_images", out / f"{part}_masks", args.suffix)
        except UserError as error:
            problems.append(str(error))
            continue
        problems += faults
        with contextlib.closing(
            in_threads(lambda pair: check_pair(*pair, args.labels), pairs, f"checking {part}")
        ) as results:
            for faults, warnings in results:
                problems += faults
                for warning in warnings:
                    print(f"warning: {warning}", file=sys.stderr)
        groups = {args.group(image.name) for image, _ in pairs}
        problems += [
            f"car {car} is in {part} and in {other}"
            for other, there in cars.items()
            for car in sorted(groups & there)
        ]
        cars[part] = groups
        print(f"{part:5}  {len(groups):5} cars  {len(pairs):6} pairs")
    if problems:
        raise UserError(listed(f"{many(problems, 'problem')} in {out}:", problems))


if __name__ == "__main__":
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(143)
    )  # so that what was begun is cleared away
    with user_errors():
        keep_freed_memory()
        main(arguments())
