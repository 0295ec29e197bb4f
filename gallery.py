"""index.html of a training run in saved_images/, and of inference.py --gallery."""

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


def thumbnail(path):
    """(height, width) that a photograph is shown at."""
    height, width = picture_size(path)
    return page.THUMBNAIL, max(1, min(4 * page.THUMBNAIL, round(page.THUMBNAIL * width / height)))


def card(pair, scores, index):
    """One validation image for page.cards."""
    row = scores["images"][index]
    size = thumbnail(pair[0])
    predicted = draw.predicted_mask(scores, index, size)
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


def prediction_card(path, name, mask, share, unsure):
    """One photograph of inference.py's for page.cards: mask bool (H, W), the share of it that is car, and that whose probability is neither under 0.1 nor over 0.9."""
    size = thumbnail(path)
    photograph, small = read_image(path, size), cv2.resize(mask.view(np.uint8) * np.uint8(255), size[::-1], interpolation=cv2.INTER_AREA)
    pictures = {"photograph": photograph, "overlay": draw.overlay(photograph, small > 127), "mask": small}
    return {"name": printable(name), "facts": f"car {100 * share:.1f} %, unsure about {100 * unsure:.2f} %", "share": share, "unsure": unsure,
            "pictures": {caption: page.embedded(picture) for caption, picture in pictures.items()}}


def predictions_page(path, cards, count, model):
    """-> path of the page that is written."""
    page.write_page(path, f"{count:,} photographs, masked by {model}", f"The {len(cards)} that the model is least sure of." if count > len(cards) else "Those that the model is least sure of come first.",
                    page.section("Masks", "<p>Unsure: pixels whose probability to be car is between 0.1 and 0.9. A click enlarges; arrow keys step.</p>",
                                 page.cards(cards, {"unsure": ("least sure", -1), "share": ("largest car", -1)})))
    return path
