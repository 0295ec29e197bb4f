"""index.html of a training run in saved_images/, and of inference.py --gallery."""

import os

import cv2
import numpy as np

import draw
import page
from pictures import UserError, in_threads, printable, read_image


def training_page(cfg, defaults, history, dataset, scores):
    """Write index.html: curves, constants, and the validation images, the worst first. defaults: {constant: value} of config.py; scores: what check_accuracy returned."""
    if not cfg.GALLERY_MAX:
        return
    size = f"{cfg.IMAGE_HEIGHT}x{cfg.IMAGE_WIDTH}"
    order = np.argsort([row["dice"] for row in scores["images"]], kind="stable")[: cfg.GALLERY_MAX]
    items = in_threads(
        lambda index: card(dataset, scores, index), order.tolist(), "drawing the page", " images"
    )
    rows = [(name, words(value)) for name, value in vars(cfg).items()]
    changed = {name for name, value in vars(cfg).items() if value != defaults.get(name)}
    count = len(scores["images"])
    page.write_page(
        os.path.join(cfg.SAVED_IMAGES_DIR, "index.html"),
        f"Dice {scores['dice']:.4f} at {size} after {len(history)} of {cfg.NUM_EPOCHS} epochs",
        f"{count} validation images of {cfg.VAL_IMG_DIR}"
        + (f", the worst {len(order)} of them below" if count > len(order) else "")
        + ".",
        page.section("Curves", page.charts(*curves(history, size))),
        *(
            [
                page.section(
                    "Classes",
                    page.table(
                        class_rows(scores),
                        (
                            "class",
                            f"Dice at {size}",
                            "IoU",
                            *(["Dice at full size", "IoU"] if "full_classes" in scores else []),
                        ),
                    ),
                ),
                page.section(
                    "Confusion",
                    "<p>Pixels in millions: a row is a true class, a column what it was taken for.</p>",
                    page.table(confusion_rows(scores), ("", *scores["classes"])),
                ),
            ]
            if "classes" in scores
            else []
        ),
        page.section(
            "Validation images",
            f"<p>Error: {page.escape(draw.key(dataset.reading['labels']))}. A click enlarges; arrow keys step.</p>",
            page.cards(
                list(items),
                {
                    "dice": ("lowest Dice", 1),
                    "best": ("highest Dice", 1),
                    "share": ("largest object", -1),
                },
            ),
        ),
        page.section(
            "Constants",
            "<p>Those that differ from config.py's stand out.</p>",
            page.table(rows, changed=changed),
        ),
    )


def class_rows(scores):
    """[(class, Dice, IoU, and both at full size)] in words; "-" where a class is in no image."""
    kinds = ["classes"] + ["full_classes"] * ("full_classes" in scores)
    return [
        (
            name,
            *(
                "-" if (value := scores[kind][name][score]) is None else f"{value:.4f}"
                for kind in kinds
                for score in ("dice", "iou")
            ),
        )
        for name in scores["classes"]
    ]


def confusion_rows(scores):
    return [
        (name, *(f"{count / 1e6:.3f}" for count in row))
        for name, row in zip(scores["classes"], scores["confusion"])
    ]


def words(value):
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def curves(history, size):
    def of(name):
        return [(row["epoch"], row.get(name)) for row in history]

    dices = {f"at {size}": "dice", "at full size": "full_dice"}
    return (
        page.chart("Loss", {"training": of("train_loss"), "validation": of("val_loss")}),
        page.chart("Dice", {label: of(name) for label, name in dices.items()}),
        page.chart(
            "1 - Dice",
            {
                label: [(x, None if y is None else 1 - y) for x, y in of(name)]
                for label, name in dices.items()
            },
            log=True,
        ),
        page.chart("Learning rate", {"learning rate": of("learning_rate")}),
        page.chart("Images a second", {"images a second": of("images_per_second")}),
    )


def card(dataset, scores, index):
    """One validation image for page.cards."""
    row, labels, colours = (
        scores["images"][index],
        dataset.reading["labels"],
        draw.colours_for(dataset),
    )
    try:
        size = draw.shown_at(dataset.pairs[index][0], page.THUMBNAIL)
        photograph, truth = read_image(dataset.pairs[index][0], size), dataset.mask(index, size)
    except UserError:  # it has gone since it was scored
        size = scores["size"]
        photograph, truth = (
            np.zeros((*size, 3), np.uint8),
            np.zeros(size, np.uint8 if labels else bool),
        )
    predicted = draw.predicted_mask(scores, index, size)
    share = ((truth > 0) & (truth != (labels.ignore if labels else 2))).mean()
    full = f", {row['full_dice']:.4f} at full size" if "full_dice" in row else ""
    pictures = {
        "photograph": photograph,
        "overlay": draw.overlay(photograph, predicted, colours),
        "truth": flat(truth, colours),
        "prediction": flat(predicted, colours),
        "error": draw.wrong(dataset, photograph, truth, predicted),
    }
    return {
        "name": printable(row["name"]),
        "facts": f"Dice {row['dice']:.4f}{full}, {object_words(labels)} {100 * share:.1f} %",
        "dice": row["dice"],
        "best": -row["dice"],
        "share": share,
        "pictures": {caption: page.embedded(picture) for caption, picture in pictures.items()},
    }


def flat(mask, colours):
    """A mask for page.embedded: uint8 (H, W), or of several classes (H, W, 3)."""
    return mask.view(np.uint8) * np.uint8(255) if colours is None else colours[mask]


def object_words(labels):
    return "foreground" if labels is None else f"not {labels.names[0]}"


def prediction_card(path, name, mask, shares, unsure, colours=None):
    """One photograph of inference.py's for page.cards: mask as utils.decided returns it, (H, W), shares of it in words, and that whose probability is neither under 0.1 nor over 0.9."""
    size = draw.shown_at(path, page.THUMBNAIL)
    photograph, small = (
        read_image(path, size),
        cv2.resize(mask.view(np.uint8), size[::-1], interpolation=cv2.INTER_NEAREST),
    )
    small = small.view(mask.dtype)
    pictures = {
        "photograph": photograph,
        "overlay": draw.overlay(photograph, small, colours),
        "mask": flat(small, colours),
    }
    share = (mask > 0).mean()
    return {
        "name": printable(name),
        "facts": f"{shares}, unsure about {100 * unsure:.2f} %",
        "share": share,
        "unsure": unsure,
        "pictures": {caption: page.embedded(picture) for caption, picture in pictures.items()},
    }


def predictions_page(path, cards, count, model):
    """-> path of the page that is written."""
    page.write_page(
        path,
        f"{count:,} photographs, masked by {model}",
        f"The {len(cards)} that the model is least sure of."
        if count > len(cards)
        else "Those that the model is least sure of come first.",
        page.section(
            "Masks",
            "<p>Unsure: pixels whose probability is between 0.1 and 0.9. A click enlarges; arrow keys step.</p>",
            page.cards(cards, {"unsure": ("least sure", -1), "share": ("largest object", -1)}),
        ),
    )
    return path
