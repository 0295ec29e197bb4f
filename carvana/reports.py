"""Pages to look at in a browser: a training run, predictions, a data set.

A page is one file that works from file://, without a network: styles, script and pictures are
inlined. Templates are in carvana/templates/.
"""

import base64
import functools
import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import cv2
import numpy as np
from markupsafe import Markup
from PIL import Image

from carvana import curves, learning_gif
from carvana.byproducts import Byproducts
from carvana.classes import Classes
from carvana.drawing import (
    PairedDataset,
    color_key,
    difference,
    display_size,
    mask_image,
    overlay,
    read_shown,
    save_picture,
    validation_overview,
)
from carvana.errors import plural
from carvana.files import replacing
from carvana.images import Pixels, read_hard_mask, read_rgb
from carvana.model_config import describe_size
from carvana.pairs import Pair
from carvana.survey import FACTS, PairFacts, Survey, mean_masks
from carvana.templating import render
from carvana.threads import map_in_threads

THUMBNAIL = 240  # pixels high, in the pages of training and predictions
SMALL_THUMBNAIL = 160  # pixels high, in the page of a data set
CONTACT_SHEET = 24  # pictures
MAX_ROWS = 200  # of a table of oddities or duplicates
LAST = 1e9  # sorts a card without a value behind all others
SHOWN_SCORES = {  # of check_accuracy, of all classes and of each
    "dice": "Dice, mean over images",
    "iou": "IoU, mean over images",
    "set_dice": "Dice of all pixels together",
    "set_iou": "IoU of all pixels together",
}


@dataclass(frozen=True)
class Card:
    """A card of pictures that can be sorted, filtered by name, and enlarged."""

    name: str
    facts: str  # one line
    pictures: dict[str, Markup]  # caption -> data URI
    sort_values: dict[str, float]  # what the page's SortOrders sort by


class SortOrder(NamedTuple):
    """A way to sort cards."""

    key: str  # of Card.sort_values
    label: str
    direction: int  # 1: smallest first, -1: largest first


# ---------------------------------------------------------------- any page


def write_page(path: str | Path, template: str, **values: Any) -> None:
    """Write a page from a template in carvana/templates/; every text is escaped.

    Raises:
        UserError: it cannot be written.
    """
    text = render(template, escape=True, **values)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _picture_uri(picture: np.ndarray) -> Markup:
    """Return uint8 (H, W, 3) as the data URI of a JPEG."""
    return _data_uri(Image.fromarray(picture), "JPEG", quality=80)


def _mask_uri(mask: np.ndarray, classes: Classes) -> Markup:
    """Return a hard mask, uint8 (H, W), as the data URI of a PNG."""
    return _data_uri(mask_image(mask, classes), "PNG", compress_level=6)


def _data_uri(image: Image.Image, image_format: str, **options: Any) -> Markup:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    data = base64.b64encode(buffer.getvalue()).decode()
    return Markup(f"data:image/{image_format.lower()};base64,{data}")


def _thumbnails(photograph: np.ndarray, mask: np.ndarray, classes: Classes) -> dict[str, Markup]:
    """Return a photograph, uint8 (H, W, 3), the same with its mask, and the hard mask."""
    return {
        "photograph": _picture_uri(photograph),
        "overlay": _picture_uri(overlay(photograph, mask, classes.tint_colors())),
        "mask": _mask_uri(mask, classes),
    }


# ---------------------------------------------------------------- training


def write_training_report(
    cfg: SimpleNamespace,
    defaults: dict[str, Any],
    history: list[dict],
    dataset: PairedDataset,
    scores: dict,
    byproducts: Byproducts,
) -> None:
    """Write overview.png, index.html and learning.gif into SAVED_IMAGES_DIR.

    Args:
        cfg: the constants of the run.
        defaults: {constant: value} of config.py.
        history: the rows of history.csv.
        dataset: the validation set.
        scores: what check_accuracy returned for it.
        byproducts: what fails becomes one of its warnings.
    """
    folder = Path(cfg.SAVED_IMAGES_DIR)
    overview = folder / "overview.png"
    with byproducts.writing(overview):
        save_picture(validation_overview(dataset, scores), overview)
    if cfg.GALLERY_MAX:
        with byproducts.writing(folder / "index.html"):
            training_page(cfg, defaults, history, dataset, scores)
    # Scores that are not the last epoch's belong to an epoch that has only begun.
    if history and history[-1]["dice"] == scores["dice"]:
        animation = folder / "learning.gif"
        with byproducts.writing(animation):
            learning_gif.add_epoch(animation, dataset, scores, _last_epoch(history))


def _last_epoch(history: list[dict]) -> int:
    """Return the number of the last epoch; 0 if none is complete."""
    return history[-1]["epoch"] if history else 0


def write_curves(cfg: SimpleNamespace, history: list[dict]) -> None:
    """Write curves.png, the curves of the page as a picture, into SAVED_IMAGES_DIR."""
    chart = curves.training_curves(history, describe_size(vars(cfg)))
    chart.save_png(Path(cfg.SAVED_IMAGES_DIR, "curves.png"))


def training_page(
    cfg: SimpleNamespace,
    defaults: dict[str, Any],
    history: list[dict],
    dataset: PairedDataset,
    scores: dict,
) -> None:
    """Write index.html: curves, constants, and the validation images, the worst first.

    For the arguments see write_training_report.
    """
    size = describe_size(vars(cfg))
    count = len(scores["images"])
    worst = np.argsort([row["dice"] for row in scores["images"]], kind="stable")
    worst = worst[: cfg.GALLERY_MAX].tolist()
    intro = f"{count} validation images of {cfg.VAL_IMG_DIR}"
    if len(worst) < count:
        intro += f", the worst {len(worst)} of them below"
    draw_card = functools.partial(_training_card, dataset, scores)
    class_tables: dict[str, list] = {"class_rows": []}
    if "classes" in scores:
        class_tables = _class_tables(scores, size)
    write_page(
        Path(cfg.SAVED_IMAGES_DIR, "index.html"),
        "training.html",
        title=f"Dice {scores['dice']:.4f} at {size} after {_last_epoch(history)} of "
        f"{cfg.NUM_EPOCHS} epochs",
        intro=f"{intro}.",
        curves=Markup(curves.training_curves(history, size).to_svg()),
        **_score_table(scores, size),
        color_key=color_key(dataset.reading.classes),
        cards=list(map_in_threads(draw_card, worst, "drawing the page", " images")),
        orders=[
            SortOrder("dice", "lowest Dice", 1),
            SortOrder("dice", "highest Dice", -1),
            SortOrder("share", "largest object", -1),
        ],
        constants=[(name, _constant_text(value)) for name, value in vars(cfg).items()],
        changed={name for name, value in vars(cfg).items() if value != defaults.get(name)},
        **class_tables,
    )


def _constant_text(value: Any) -> str:
    """Return a constant as it is typed on the command line."""
    if isinstance(value, list):
        return " ".join(map(str, value))
    return str(value)


def _score_table(scores: dict, size: str) -> dict[str, list]:
    """Return rows and heads of the table of scores."""
    prefixes = {"": f"at {size}"}
    if "full_dice" in scores:
        prefixes["full_"] = "at full size"
    rows = []
    for key, label in SHOWN_SCORES.items():
        values = [scores[prefix + key] for prefix in prefixes]
        rows.append([label, *map(_score_text, values)])
    return {"score_rows": rows, "score_heads": ["", *prefixes.values()]}


def _class_tables(scores: dict, size: str) -> dict[str, list]:
    """Return rows and heads of the tables of classes and of confusions."""
    kinds = {"classes": f"at {size}"}
    if "full_classes" in scores:
        kinds["full_classes"] = "at full size"
    heads = [f"{label} {place}" for place in kinds.values() for label in SHOWN_SCORES.values()]
    class_rows = []
    for name in scores["classes"]:
        values = [scores[kind][name][key] for kind in kinds for key in SHOWN_SCORES]
        class_rows.append([name, *map(_score_text, values)])
    confusion_rows = []
    for name, pixels in zip(scores["classes"], scores["confusion"], strict=True):
        confusion_rows.append([name, *(f"{count / 1e6:.3f}" for count in pixels)])
    return {
        "class_rows": class_rows,
        "class_heads": ["class", *heads],
        "confusion_rows": confusion_rows,
        "confusion_heads": ["", *scores["classes"]],
    }


def _score_text(value: float | None) -> str:
    """Return a score in words; None: the class is in no image."""
    return "-" if value is None else f"{value:.4f}"


def _training_card(dataset: PairedDataset, scores: dict, index: int) -> Card:
    """Return one validation image as a card."""
    row = scores["images"][index]
    classes = dataset.reading.classes
    masks = scores["masks"]
    photograph, truth = read_shown(dataset, index, THUMBNAIL, masks.size(index))
    prediction = masks.resized(index, truth.shape)
    error = difference(photograph, truth, prediction, classes.ignore)
    share = classes.foreground(truth).mean()
    facts = f"Dice {row['dice']:.4f}"
    if "full_dice" in row:
        facts += f", {row['full_dice']:.4f} at full size"
    return Card(
        name=row["name"],
        facts=f"{facts}, {classes.foreground_name} {100 * share:.1f} %",
        pictures={
            "photograph": _picture_uri(photograph),
            "overlay": _picture_uri(overlay(photograph, prediction, classes.tint_colors())),
            "truth": _mask_uri(truth, classes),
            "prediction": _mask_uri(prediction, classes),
            "error": _picture_uri(error),
        },
        sort_values={"dice": row["dice"], "share": share},
    )


# ---------------------------------------------------------------- predictions


def prediction_card(
    image: np.ndarray, name: str, mask: np.ndarray, facts: str, unsure: float, classes: Classes
) -> Card:
    """Return a predicted photograph as a card.

    Args:
        image: the photograph at display_size(path, THUMBNAIL), uint8 (h, w, 3).
        name: on the card.
        mask: uint8 (H, W) of class indices, as predicted.
        facts: the classes' shares of it, in words.
        unsure: share of the pixels whose probability is between 0.1 and 0.9.
    """
    small = cv2.resize(mask, image.shape[1::-1], interpolation=cv2.INTER_NEAREST)
    return Card(
        name=name,
        facts=f"{facts}, unsure about {100 * unsure:.2f} %",
        pictures=_thumbnails(image, small, classes),
        sort_values={"unsure": unsure, "share": (mask > 0).mean()},
    )


def least_sure(cards: Iterable[Card], limit: int) -> list[Card]:
    """Return the cards that the model is least sure of, most unsure first."""
    return sorted(cards, key=lambda card: -card.sort_values["unsure"])[:limit]


def predictions_page(path: str | Path, cards: list[Card], count: int, model: str | Path) -> None:
    """Write the page of predictions.

    Args:
        cards: of least_sure().
        count: how many photographs were predicted; cards may show fewer of them.
        model: file of the checkpoint that predicted them.
    """
    intro = "Those that the model is least sure of come first."
    if count > len(cards):
        intro = f"The {len(cards)} that the model is least sure of."
    write_page(
        path,
        "predictions.html",
        title=f"{plural(count, 'photograph')}, masked by {model}",
        intro=intro,
        cards=cards,
        orders=[
            SortOrder("unsure", "least sure", -1),
            SortOrder("share", "largest object", -1),
        ],
    )


# ---------------------------------------------------------------- a data set


def explore_page(
    path: str | Path, survey: Survey, image_dir: str, mask_dir: str, limit: int
) -> None:
    """Write the page of a data set.

    Args:
        image_dir: the folder of photographs, as text.
        mask_dir: the folder of masks, as text.
        limit: how many pairs get a card, those whose outline agrees least first.
    """
    facts = survey.facts
    worst = np.argsort([row.agreement for row in facts])[:limit].tolist()  # NaN comes last
    order = np.random.default_rng(0).permutation(len(facts))
    contact = sorted(order[:CONTACT_SHEET].tolist())
    thumbnails = _pair_thumbnails(survey, [*worst, *contact])
    titles = {label: [getattr(row, name) for row in facts] for name, label in FACTS.items()}
    means = mean_masks(facts).items()
    write_page(
        path,
        "explore.html",
        title=f"{plural(len(facts), 'pair')} of {image_dir}",
        intro=f"Photographs in {image_dir}, masks in {mask_dir}.",
        summary=survey.lines,
        histograms=Markup(curves.histograms(titles).to_svg()),
        mean_masks={angle: _data_uri(Image.fromarray(mask), "PNG") for angle, mask in means},
        contact_sheet={facts[i].name: thumbnails[i]["overlay"] for i in contact},
        oddities=survey.oddities[:MAX_ROWS],
        duplicates=_duplicate_rows(survey),
        cards=[_pair_card(facts[index], thumbnails[index]) for index in worst],
        orders=[
            SortOrder("agreement", "least agreement", 1),
            SortOrder("share", "smallest object", 1),
            SortOrder("brightness", "darkest", 1),
        ],
    )


def _pair_thumbnails(survey: Survey, indices: list[int]) -> dict[int, dict[str, Markup]]:
    """Return {index: photograph, overlay and mask} of these pairs."""
    indices = list(dict.fromkeys(indices))
    read = functools.partial(_pair_pictures, survey.classes, survey.pixels)
    pairs = [survey.pairs[index] for index in indices]
    return dict(zip(indices, map_in_threads(read, pairs, "drawing"), strict=True))


def _pair_pictures(classes: Classes, pixels: Pixels, pair: Pair) -> dict[str, Markup]:
    size = display_size(pair[0], SMALL_THUMBNAIL)
    image = read_rgb(pair[0], size, pixels)
    return _thumbnails(image, read_hard_mask(pair[1], classes, size), classes)


def _pair_card(facts: PairFacts, pictures: dict[str, Markup]) -> Card:
    """Return a pair of a data set as a card."""
    return Card(
        name=facts.name,
        facts=f"foreground {facts.share:.1f} %, brightness {facts.brightness:.0f}, "
        f"agreement {facts.agreement:.2f}",
        pictures=pictures,
        sort_values={
            "agreement": np.nan_to_num(facts.agreement, nan=LAST),
            "share": facts.share,
            "brightness": facts.brightness,
        },
    )


def _duplicate_rows(survey: Survey) -> list[tuple[str]]:
    """Return the rows of the table of duplicates."""
    rows = [(" = ".join(names),) for names in survey.same_bytes]
    return rows + [(" ~ ".join(names),) for names in survey.look_alikes[:MAX_ROWS]]
