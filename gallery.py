"""saved_images/index.html: a training run to look at."""

import os

import cv2
import numpy as np

import config
import draw
import page
from pictures import UserError, in_threads, picture_size, printable, read_image, read_mask


def training_page(cfg, history, dataset, scores):
    """Write index.html: curves, constants, and the validation images, the worst first. scores: what check_accuracy returned."""
    if not cfg.GALLERY_MAX:
        return
    size = f"{cfg.IMAGE_HEIGHT}x{cfg.IMAGE_WIDTH}"
    order = np.argsort([row["dice"] for row in scores["images"]], kind="stable")[:cfg.GALLERY_MAX]
    items = in_threads(lambda index: card(dataset.pairs[index], scores, index), order.tolist(), "drawing the page", " images")
    defaults = {name: value for name, (value, _) in config.constants().items()}
    rows = [(name, words(value)) for name, value in vars(cfg).items()]
    changed = {name for name, value in vars(cfg).items() if value != defaults.get(name)}
    count = len(scores["images"])
    page.write_page(
        os.path.join(cfg.SAVED_IMAGES_DIR, "index.html"), f"Dice {scores['dice']:.4f} at {size} after {len(history)} of {cfg.NUM_EPOCHS} epochs",
        f"{count} validation images of {cfg.VAL_IMG_DIR}" + (f", the worst {len(order)} of them below" if count > len(order) else "") + ".",
        page.section("Curves", page.charts(*curves(history, size))),
        page.section("Validation images", "<p>Error: orange was wrongly taken as car, blue was missed. A click enlarges; arrow keys step.</p>",
                     page.cards(list(items), {"dice": ("lowest Dice", 1), "best": ("highest Dice", 1), "share": ("largest car", -1)})),
        page.section("Constants", "<p>Those that differ from config.py's stand out.</p>", page.table(rows, changed=changed)))


def words(value):
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def curves(history, size):
    def of(name):
        return [(row["epoch"], row.get(name)) for row in history]

    dices = {f"at {size}": "dice", "at full size": "full_dice"}
    return (page.chart("Loss", {"training": of("train_loss"), "validation": of("val_loss")}),
            page.chart("Dice", {label: of(name) for label, name in dices.items()}),
            page.chart("1 - Dice", {label: [(x, None if y is None else 1 - y) for x, y in of(name)] for label, name in dices.items()}, log=True),
            page.chart("Learning rate", {"learning rate": of("learning_rate")}),
            page.chart("Images a second", {"images a second": of("images_per_second")}))


def card(pair, scores, index):
    """One validation image for page.cards."""
    row = scores["images"][index]
    height, width = picture_size(pair[0])
    size = (page.THUMBNAIL, max(1, min(4 * page.THUMBNAIL, round(page.THUMBNAIL * width / height))))
    rows, columns = scores["size"]
    predicted = np.unpackbits(scores["masks"][index], count=rows * columns).reshape(rows, columns)
    predicted = cv2.resize(predicted * np.uint8(255), size[::-1], interpolation=cv2.INTER_LINEAR) > 127
    try:
        photograph, truth = read_image(pair[0], size), read_mask(pair[1], size) > 127
    except UserError:  # it has gone since it was scored
        photograph, truth = np.zeros((*size, 3), np.uint8), np.zeros(size, bool)
    share = truth.mean()
    full = f", {row['full_dice']:.4f} at full size" if "full_dice" in row else ""
    pictures = {"photograph": photograph, "overlay": draw.overlay(photograph, predicted), "truth": truth.view(np.uint8) * np.uint8(255),
                "prediction": predicted.view(np.uint8) * np.uint8(255), "error": draw.difference(photograph, truth, predicted)}
    return {"name": printable(row["name"]), "facts": f"Dice {row['dice']:.4f}{full}, car {100 * share:.1f} %", "dice": row["dice"], "best": -row["dice"], "share": share,
            "pictures": {caption: page.embedded(picture) for caption, picture in pictures.items()}}
