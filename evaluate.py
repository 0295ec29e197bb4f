"""Score a trained model on pairs of photographs and masks: python evaluate.py --model CKPT --images DIR --masks DIR"""

import argparse
import json
from pathlib import Path

import config
from pictures import (
    SHIPPED,
    UserError,
    find_pairs,
    keep_freed_memory,
    labels_of,
    refuse,
    replacing,
    printable,
    user_errors,
)


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.error = refuse
    parser.add_argument(
        "--model",
        metavar="CKPT",
        default=SHIPPED,
        help="checkpoint (the weights that come with the project); sizes, channels and threshold come from it",
    )
    parser.add_argument(
        "--images",
        metavar="DIR",
        default=config.VAL_IMG_DIR,
        help="photographs; default %(default)s",
    )
    parser.add_argument(
        "--masks",
        metavar="DIR",
        default=config.VAL_MASK_DIR,
        help="their masks; default %(default)s",
    )
    config.add_options(parser, ["MASK_SUFFIX"])
    parser.add_argument("--json", metavar="FILE", help="write all scores there, image by image")
    parser.add_argument(
        "--batch-size",
        type=int,
        default=config.BATCH_SIZE,
        metavar="N",
        help="images at once; default %(default)s",
    )
    parser.add_argument(
        "--num-workers",
        type=int,
        default=config.NUM_WORKERS,
        metavar="N",
        help="processes that read; -1, the default: as this machine needs",
    )
    parser.add_argument(
        "--device",
        default="auto",
        choices=("auto", "cuda", "mps", "cpu"),
        help="auto takes the first there is",
    )
    args = parser.parse_args()
    args.suffix = config.checked(args).MASK_SUFFIX
    if not Path(args.model).is_file():
        raise UserError(
            f"no checkpoint {str(args.model)!r}; train one with python train.py, or name another with --model"
        )
    if args.batch_size < 1 or args.num_workers < -1:
        raise UserError(
            f"expected --batch-size of at least 1 and --num-workers of at least -1, found {args.batch_size} and {args.num_workers}"
        )
    if args.json and not Path(args.json).absolute().parent.is_dir():
        raise UserError(
            f"no folder {str(Path(args.json).parent)!r} to write --json {args.json} to; make it first"
        )
    find_pairs(args.images, args.masks, args.suffix)
    return args


def main(args):
    import device  # torch takes seconds to import; what is wrong with the arguments is known by now
    import parallel

    with parallel.together(device.find_device(args.device)) as found:
        score(args, found)


def score(args, found):
    import device
    import metrics
    import parallel
    import utils
    from dataset import CarvanaDataset, val_transform

    model = utils.load_model(args.model, found)
    trained = device.config_of(model)
    size = (trained["IMAGE_HEIGHT"], trained["IMAGE_WIDTH"])
    dataset = CarvanaDataset(
        args.images,
        args.masks,
        val_transform(),
        size=size,
        channels=trained["IN_CHANNELS"],
        mask_resize=trained["MASK_RESIZE"],
        labels=labels_of(trained),
        suffix=args.suffix,
    )
    utils.refuse_unreadable(dataset)
    loader = utils.make_loader(
        dataset,
        args.batch_size,
        args.num_workers,
        sampler=parallel.part(len(dataset)),
        device=found,
    )
    scores = utils.check_accuracy(
        loader, model, device.device_of(model), full_size=True, outlines=True
    )
    if not parallel.FIRST:
        return

    print(f"\n{len(dataset)} images       network's {size[0]}x{size[1]}   photographs' own size")
    for name in ("dice", "iou", "accuracy", "precision", "recall"):
        print(f"{name:10} {scores[name]:22.6f} {scores['full_' + name]:23.6f}")
    print(f"{'1 - dice':10} {1 - scores['dice']:22.6f} {1 - scores['full_dice']:23.6f}")
    print(
        f"mean distance of the outlines {scores['full_boundary']:27.2f} pixels (average symmetric surface distance)"
    )
    print(
        f"1 - dice, of what is wrong over {metrics.BY_HAND} pixels from the true outline {scores['full_beyond']:.6f}"
    )
    for name, found in scores.get("full_classes", {}).items():
        print(
            f"  {printable(name):20} "
            + (
                "in no image"
                if found["dice"] is None
                else f"Dice {found['dice']:.4f}  IoU {found['iou']:.4f} at the photographs' own size"
            )
        )
    print("\nworst by full-size Dice")
    for row in sorted(scores["images"], key=lambda row: row["full_dice"])[:5]:
        print(f"  {row['full_dice']:.4f}  {printable(row['name'])}")
    if args.json:
        with replacing(args.json) as temporary:
            temporary.write_text(
                json.dumps(
                    {"model": str(args.model), "images_dir": args.images}
                    | {
                        name: value
                        for name, value in scores.items()
                        if name not in ("masks", "size")
                    },
                    indent=1,
                )
            )


if __name__ == "__main__":
    keep_freed_memory()
    with user_errors():
        main(arguments())
