"""Look at a data set before training on it: python explore.py [--images DIR --masks DIR]

Prints counts, sizes, formats, brightness, the foreground's share, duplicates and oddities, and writes them with pictures
to one HTML page.
"""

import argparse
import hashlib
import os
import re
from collections import Counter
from pathlib import Path

import cv2
import numpy as np

import config
import page
from pictures import (
    CAR,
    UserError,
    attempt,
    colours_of,
    few,
    find_pairs,
    group_of,
    in_threads,
    keep_freed_memory,
    labels_of,
    listed,
    many,
    picture_size,
    printable,
    read_image,
    read_target,
    refuse,
    user_errors,
)

HEIGHT = 320  # pixels that edges are compared at
THUMBNAIL = 160  # pixels high, of the pictures in the page
MEAN_SIZE = (80, 120)  # of the mean masks
REACH = 15  # pixels around the outline whose edges the outline's are compared with
ALIKE = 1.0  # levels that two pictures, scaled to 24x16, may be apart on average where one counts as the other's double
ODD = 6.0  # robust standard deviations from the median
CONTACT_SHEET = 24  # pictures
CLEAR_REACH, CLEAR, CLEAR_LEVELS = (
    6,
    4.0,
    30.0,
)  # a clear edge: pixels across the outline, times as steep as others, levels a pixel
FACTS = {
    "share": "foreground, % of the pixels",
    "brightness": "brightness, 0 to 255",
    "contrast": "contrast, standard deviation of the levels",
    "agreement": "edges at the outline, times those around it",
}


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.error = refuse
    parser.add_argument(
        "--images",
        metavar="DIR",
        default=config.TRAIN_IMG_DIR,
        help="photographs (default %(default)s)",
    )
    parser.add_argument(
        "--masks",
        metavar="DIR",
        default=config.TRAIN_MASK_DIR,
        help="their masks (default %(default)s)",
    )
    parser.add_argument(
        "--out",
        metavar="FILE.html",
        default=os.path.join(config.SAVED_IMAGES_DIR, "explore.html"),
        help="the page (default %(default)s)",
    )
    parser.add_argument(
        "--most",
        type=int,
        default=200,
        metavar="N",
        help="pictures in the page, those whose outline agrees least with the photograph first (default 200)",
    )
    parser.add_argument(
        "--noise",
        action="store_true",
        help="measure, at full size, how far the masks' outlines lie from the photographs' edges where these are clear, and what Dice that allows",
    )
    config.add_data_options(parser)
    args = parser.parse_args()
    args.cfg = config.checked(args)
    args.labels = labels_of(vars(args.cfg))
    if not 1 <= args.most <= 1000:
        raise UserError(f"--most: expected 1..1000 pictures, found {args.most}")
    if Path(args.out).suffix != ".html":
        raise UserError(f"--out: expected a name that ends in .html, found {args.out!r}")
    return args


def look(pair, labels=None):
    """A pair of files -> a dict of what there is to say of it, "mean" (its small mask) and "small" (the picture itself) among it."""
    height, width = picture_size(pair[0])
    size = (HEIGHT, max(1, round(HEIGHT * width / height)))
    grey, mask = read_image(pair[0], size, 1)[..., 0], read_target(pair[1], labels)
    counts = None if labels is None else np.bincount(mask.ravel(), minlength=256)
    if labels:
        mask = ((mask > 0) & (mask != labels.ignore)).view(np.uint8) * np.uint8(255)
    return {
        "name": pair[0].name,
        "size": f"{width}x{height}",
        "format": f"{pair[0].suffix.lower()[1:]} with {pair[1].suffix.lower()[1:]}",
        "share": 100 * (mask > 127).mean(),
        "brightness": grey.mean(),
        "contrast": grey.std(),
        "agreement": agreement(
            grey, cv2.resize(mask, size[::-1], interpolation=cv2.INTER_AREA) > 127
        ),
        "mean": cv2.resize(mask, MEAN_SIZE[::-1], interpolation=cv2.INTER_AREA),
        "small": cv2.resize(
            grey.astype(np.float32), (24, 16), interpolation=cv2.INTER_AREA
        ).ravel(),
        "counts": counts,
        "bytes": hashlib.sha256(pair[0].read_bytes()).digest(),
    }


def agreement(grey, mask):
    """How much stronger the edges of a picture, uint8 (H, W), are at the outline of a bool mask (H, W) than within REACH of it; nan without an outline.

    About 1 where the mask has nothing to do with the picture, or lies beside what it should cover."""
    edges = cv2.dilate(
        cv2.magnitude(*(cv2.Sobel(grey, cv2.CV_32F, *way) for way in ((1, 0), (0, 1)))),
        np.ones((3, 3), np.uint8),
    )
    mask = mask.astype(np.uint8)
    outline = cv2.morphologyEx(mask, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
    near = cv2.morphologyEx(mask, cv2.MORPH_GRADIENT, np.ones((2 * REACH + 1,) * 2, np.uint8)) > 0
    return edges[outline].mean() / max(1e-6, edges[near].mean()) if outline.any() else np.nan


def outline_noise(pair, labels=None):
    """-> (distances in pixels of the mask's outline from the strongest edge of the photograph across it, float (n,), the outline's length over the mask's area in 1 / pixels).

    At points of the outline whose edge is clear: within CLEAR_REACH pixels along the normal one place is CLEAR times as steep as any that is more than two
    pixels away from it, and at least CLEAR_LEVELS."""
    grey, mask = (
        read_image(pair[0], None, 1)[..., 0].astype(np.float32),
        read_target(pair[1], labels),
    )
    mask = (mask > 0) & (mask != labels.ignore) if labels else mask > 0
    soft = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 3)
    down, right = cv2.Sobel(soft, cv2.CV_32F, 0, 1), cv2.Sobel(soft, cv2.CV_32F, 1, 0)
    contours = [
        contour[:, 0]
        for contour in cv2.findContours(
            mask.view(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE
        )[0]
        if len(contour) > 200
    ]
    if not contours:
        return np.empty(0), np.nan
    length = sum(cv2.arcLength(contour, True) for contour in contours)
    points = np.concatenate([contour[::8] for contour in contours])
    x, y = points.T
    normal = np.stack((right[y, x], down[y, x]), 1)
    normal /= np.maximum(
        np.linalg.norm(normal, axis=1, keepdims=True), 1e-9
    )  # inwards; the outline itself runs half a pixel out of the contour's centres
    along = np.arange(-CLEAR_REACH, CLEAR_REACH + 0.01, 0.5)
    at = (points[:, None] + normal[:, None] * (along[:, None] - 0.5)).astype(
        np.float32
    )  # (points, places, 2)
    steep = abs(
        np.gradient(
            cv2.GaussianBlur(
                cv2.remap(
                    grey, at[..., 0], at[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
                ),
                (5, 1),
                1.0,
            ),
            0.5,
            axis=1,
        )
    )
    best = steep.argmax(1)
    others = np.where(abs(along - along[best][:, None]) > 2, steep, 0).max(1)
    height, width = grey.shape
    clear = (
        (steep.max(1) > CLEAR_LEVELS)
        & (steep.max(1) > CLEAR * others)
        & ((points > CLEAR_REACH) & (points < np.array([width, height]) - CLEAR_REACH)).all(1)
    )
    return along[best[clear]], length / mask.sum()


def noise_words(found):
    """What outline_noise found of all pairs, in words. A mask whose outline is off by d everywhere differs in d * length pixels, and has Dice 1 - d * length / (2 * area)."""
    distances = np.concatenate([one for one, _ in found])
    if len(distances) < 100:
        return "too few clear edges at the outlines to measure"
    ratio = np.nanmedian([ratio for _, ratio in found])
    off, shift = abs(distances - np.median(distances)), np.median(distances)
    return (
        f"{off.mean():.2f} pixels off on average, half of them within {np.median(off):.2f}, around a median of {abs(shift):.2f} {'outside' if shift < 0 else 'inside'}, at {len(distances):,} points "
        f"with a clear edge; a mask that is right but for as much everywhere scores Dice {1 - off.mean() * ratio / 2:.4f} ({1 - np.median(off) * ratio / 2:.4f} by the half)"
    )


def doubles(rows):
    """-> ([names of files with the same bytes], [pairs of names of files that look alike])."""
    same = {}
    for row in rows:
        same.setdefault(row["bytes"], []).append(row["name"])
    firsts = {names[0] for names in same.values()}
    firsts = sorted(
        (row for row in rows if row["name"] in firsts), key=lambda row: row["small"].mean()
    )
    small, alike = np.stack([row["small"] for row in firsts]), []
    means = small.mean(1)
    for i, end in enumerate(
        np.searchsorted(means, means + ALIKE, "right")
    ):  # means further apart: the pictures are too
        apart = abs(small[i + 1 : end] - small[i]).mean(1)
        alike += [
            tuple(sorted((firsts[i]["name"], firsts[i + 1 + j]["name"])))
            for j in np.flatnonzero(apart <= ALIKE)
        ]
    return [names for names in same.values() if len(names) > 1], alike


def oddities(rows):
    """[(name, why)]: what lies more than ODD robust standard deviations (1.4826 times the median distance) off the others' median."""
    found = []
    for fact, words in FACTS.items():
        values = np.array([row[fact] for row in rows])
        middle = np.nanmedian(values)
        spread = max(1e-9, 1.4826 * np.nanmedian(abs(values - middle)))
        found += [
            (rows[i]["name"], f"{words}: {values[i]:.3g}, the median is {middle:.3g}")
            for i in np.flatnonzero(abs(values - middle) > ODD * spread)
        ]
    found += [(row["name"], "nothing in its mask") for row in rows if row["share"] == 0] + [
        (row["name"], "all of its mask is foreground") for row in rows if row["share"] == 100
    ]
    return found


def angle(name):
    """The angle of a Carvana name, such as "07"; "all" of any other."""
    match = re.fullmatch(CAR, Path(name).stem)
    return match[2] if match else "all"


def mean_masks(rows):
    """{angle: mean mask uint8}."""
    found = {}
    for row in rows:
        found.setdefault(angle(row["name"]), []).append(row["mean"])
    return {
        name: np.mean(masks, axis=0).round().astype(np.uint8)
        for name, masks in sorted(found.items())
    }


def thumbnails(pair, labels):
    """Photograph, the same with its mask, and the mask."""
    import draw  # takes seconds

    size = draw.shown_at(pair[0], THUMBNAIL)
    mask, photograph = read_target(pair[1], labels, size), read_image(pair[0], size)
    colours = labels and colours_of(labels)
    overlay = draw.overlay(photograph, mask if labels else mask > 127, colours)
    return {
        "photograph": page.embedded(photograph),
        "overlay": page.embedded(overlay),
        "mask": page.embedded(colours[mask] if labels else mask),
    }


def counted(values):
    return ", ".join(
        f"{printable(value)} ({count:,})" for value, count in Counter(values).most_common(5)
    )


def class_shares(rows, labels):
    """[(class, its share of all pixels, in how many images it is)] in words."""
    counts = np.stack([row["counts"] for row in rows])
    return [
        (
            name,
            f"{100 * counts[:, i].sum() / counts.sum():.2f} %",
            f"{(counts[:, i] > 0).sum():,} of {len(rows):,}",
        )
        for i, name in [
            *enumerate(labels.names),
            *([(labels.ignore, "to be ignored")] if counts[:, labels.ignore].any() else []),
        ]
    ]


def summary(rows, same, alike, odd, args):
    """[(what, in words)] for the terminal and the page."""
    angles = Counter(angle(row["name"]) for row in rows)
    groups = Counter(group_of(row["name"], args.cfg.GROUP_REGEX) for row in rows)
    per = Counter(groups.values()).most_common(1)[0][0]
    lines = [
        ("pairs", f"{len(rows):,}"),
        ("sizes", counted(row["size"] for row in rows)),
        ("formats", counted(row["format"] for row in rows)),
        (
            "groups",
            f"{len(groups):,} by GROUP_REGEX, most with {many(range(per), 'photograph')}"
            + (f"; angles {', '.join(sorted(angles))}" if angles.keys() != {"all"} else ""),
        ),
    ]
    lines += (
        [
            (
                "classes",
                "; ".join(
                    f"{printable(name)} {share} of the pixels, in {images} images"
                    for name, share, images in class_shares(rows, args.labels)
                ),
            )
        ]
        if args.labels
        else []
    )
    for fact, words in FACTS.items():
        values = np.array([row[fact] for row in rows])
        lines.append(
            (
                words,
                "least {:.3g}, a quarter below {:.3g}, half below {:.3g}, three quarters below {:.3g}, most {:.3g}".format(
                    *np.nanquantile(values, (0, 0.25, 0.5, 0.75, 1))
                ),
            )
        )
    return lines + [
        ("same bytes", few([" = ".join(map(printable, names)) for names in same], 5) or "none"),
        ("look alike", few([" ~ ".join(map(printable, names)) for names in alike], 5) or "none"),
        ("odd ones out", few([f"{printable(name)} ({why})" for name, why in odd], 5) or "none"),
    ]


def main(args):
    pairs = find_pairs(args.images, args.masks, args.cfg.MASK_SUFFIX)
    rows = list(in_threads(lambda pair: attempt(look, pair, args.labels), pairs, "looking"))
    if faults := [str(row) for row in rows if isinstance(row, UserError)]:
        raise UserError(
            listed(
                f"{many(faults, 'file')} of {args.images} and {args.masks} cannot be read:", faults
            )
        )
    same, alike, odd = *doubles(rows), oddities(rows)
    lines = summary(rows, same, alike, odd, args)
    if args.noise:
        lines.append(
            (
                "outlines",
                noise_words(
                    list(
                        in_threads(
                            lambda pair: outline_noise(pair, args.labels),
                            pairs,
                            "measuring",
                            " pairs",
                        )
                    )
                ),
            )
        )
    for what, words in lines:
        print(f"{what}: {words}")
    worst = np.argsort([row["agreement"] for row in rows])[: args.most]  # nan comes last
    chosen = sorted(np.random.default_rng(0).permutation(len(pairs))[:CONTACT_SHEET])
    drawn = dict(
        zip(
            [*worst, *chosen],
            in_threads(
                lambda pair: thumbnails(pair, args.labels),
                [pairs[i] for i in (*worst, *chosen)],
                "drawing",
                " pairs",
            ),
        )
    )
    cards = [
        {
            "name": printable(rows[i]["name"]),
            "facts": f"foreground {rows[i]['share']:.1f} %, brightness {rows[i]['brightness']:.0f}, agreement {rows[i]['agreement']:.2f}",
            "agreement": np.nan_to_num(rows[i]["agreement"], nan=1e9),
            "share": rows[i]["share"],
            "brightness": rows[i]["brightness"],
            "pictures": drawn[i],
        }
        for i in worst
    ]
    means = mean_masks(rows)
    page.write_page(
        args.out,
        f"{many(pairs, 'pair')} of {args.images}",
        f"Photographs in {args.images}, masks in {args.masks}.",
        page.section("In numbers", page.table(lines)),
        page.section(
            "Spread",
            page.charts(
                *(
                    page.histogram(words, [row[fact] for row in rows if np.isfinite(row[fact])])
                    for fact, words in FACTS.items()
                )
            ),
        ),
        page.section(
            "Mean mask" + (" of each angle" if len(means) > 1 else ""),
            page.figures({name: page.embedded(mask) for name, mask in means.items()}),
        ),
        page.section(
            "Contact sheet",
            "<p>Chosen at random.</p>",
            page.figures({printable(rows[i]["name"]): drawn[i]["overlay"] for i in chosen}),
        ),
        *(
            [
                page.section(
                    "Odd ones out",
                    page.table([(name, why) for name, why in odd[:200]], ("file", "why")),
                )
            ]
            if odd
            else []
        ),
        *(
            [
                page.section(
                    "Doubles",
                    page.table(
                        [(" = ".join(names),) for names in same]
                        + [(" ~ ".join(names),) for names in alike[:200]]
                    ),
                )
            ]
            if same or alike
            else []
        ),
        page.section(
            "Outlines that agree least with the photograph",
            "<p>Agreement: how much stronger the photograph's edges are at the mask's outline than around it. A mask that lies beside its object has about 1.</p>",
            page.cards(
                cards,
                {
                    "agreement": ("least agreement", 1),
                    "share": ("smallest object", 1),
                    "brightness": ("darkest", 1),
                },
            ),
        ),
    )
    print(f"now look at {args.out}")


if __name__ == "__main__":
    keep_freed_memory()
    with user_errors():
        main(arguments())
