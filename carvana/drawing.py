"""Pictures to look at: what the network sees, and where it is wrong. uint8 RGB arrays in and out."""

import contextlib
import os

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from device import device_of
from pictures import (
    UserError,
    colours_of,
    picture_size,
    printable,
    read_image,
    replacing,
    write_picture,
)
from utils import save_predictions_as_imgs

# Colours that are told apart with any kind of colour vision (Okabe and Ito, 2008).
ORANGE, BLUE, PINK = (230, 159, 0), (0, 114, 178), (204, 121, 167)
BACKGROUND, INK, MUTED = (255, 255, 255), (20, 20, 20), (110, 110, 110)
MARGIN, TITLE = 8, 26  # pixels
JPEG_SIDE = 65500  # pixels, the most that libjpeg writes


def overlay(image, mask, colours=None):
    """A picture (H, W, 3) with a bool mask (H, W) tinted and outlined; or of a mask uint8 (H, W) of indices each class but the first, in its colour of uint8 (256, 3)."""
    tinted, width = image.copy(), max(1, round(max(mask.shape) / 400))
    for index in (True,) if colours is None else np.unique(mask[mask > 0]):
        part, colour = (
            (mask == index).view(np.uint8),
            ORANGE if colours is None else tuple(colours[index].tolist()),
        )
        tinted = cv2.copyTo(
            cv2.addWeighted(image, 0.6, np.full_like(image, colour), 0.4, 0), part, tinted
        )
        contours, _ = cv2.findContours(part, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(tinted, contours, -1, colour, width)
    return tinted


def matte(photograph, logits, scale):
    """Photograph uint8 (H, W, 3) and logits float32 (H, W) -> colours uint8 (H, W, 3) of the object alone, alpha uint8 (H, W), soft at its edge.

    scale: how many times larger than the network's picture the photograph is. Logits that rise over a pixel of
    the one rise over `scale` of the other, which looks like fog; they are made as much steeper, less the two pixels that
    an edge in a photograph has. Where the edge is soft the old background shines through; its share is taken out by the
    blur fusion of Forte, Approximate Fast Foreground Colour Estimation, ICIP 2021, in two passes."""
    alpha = 1 / (
        1 + np.exp(np.minimum(-max(1, scale / 2) * logits, 80))
    )  # more would be over what float32 holds
    colours = cv2.copyTo(photograph, (alpha > 0.002).view(np.uint8))
    edge = (alpha > 0.002) & (alpha < 0.998)
    rows, columns = (np.flatnonzero(edge.any(axis)) for axis in (1, 0))
    if len(rows):
        window = np.s_[
            max(rows[0] - 30, 0) : rows[-1] + 31, max(columns[0] - 30, 0) : columns[-1] + 31
        ]
        image, weight, edge = photograph[window].astype(np.float32), alpha[window], edge[window]
        foreground, background, share = image, image, cv2.merge([weight] * 3)
        for size in ((30, 30), (6, 6)):
            foreground = cv2.blur(foreground * share, size) / (cv2.blur(share, size) + 1e-5)
            background = cv2.blur(background * (1 - share), size) / (
                cv2.blur(1 - share, size) + 1e-5
            )
            foreground += share * (image - share * foreground - (1 - share) * background)
        colours[window][edge] = np.clip(np.round(foreground[edge]), 0, 255)
    return colours, np.round(255 * alpha).astype(np.uint8)


def on_background(colours, alpha, background):
    """The result of matte() on a colour (r, g, b), or on a photograph uint8 (h, w, 3) that is scaled to cover all and cropped."""
    height, width = alpha.shape
    if isinstance(background, np.ndarray):
        scale = max(height / background.shape[0], width / background.shape[1])
        background = cv2.resize(
            background,
            None,
            fx=scale,
            fy=scale,
            interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC,
        )
        top, left = (background.shape[0] - height) // 2, (background.shape[1] - width) // 2
        background = background[max(top, 0) :, max(left, 0) :][:height, :width]
    share = alpha[..., None] / np.float32(255)
    return np.round(
        colours * share + np.broadcast_to(np.float32(background), colours.shape) * (1 - share)
    ).astype(np.uint8)


def difference(image, truth, predicted, ignore=255):
    """A picture, greyed, with what was missed in blue and what was wrongly taken in orange; of several classes one taken for another in pink, what is to be ignored left out."""
    grey = image.mean(axis=2, keepdims=True) * 0.35 + 160
    shown = np.repeat(grey, 3, axis=2).astype(np.uint8)
    wrong = (truth != predicted) & (truth.astype(np.uint8) != ignore)
    shown[wrong] = PINK
    shown[wrong & (predicted == 0)] = BLUE
    shown[wrong & (truth == 0)] = ORANGE
    return shown


def as_picture(mask, colours=None):
    """A mask, bool (H, W) in black and white or uint8 (H, W) in the colours of its indices, as (H, W, 3)."""
    return (
        np.repeat((mask * np.uint8(255))[..., None], 3, axis=2)
        if colours is None
        else colours[mask]
    )


def key(labels):
    """What the colours of difference() mean, in words."""
    return (
        "orange: wrongly taken   blue: missed"
        if labels is None
        else f"orange: wrongly not {labels.names[0]}   blue: wrongly {labels.names[0]}   pink: one class for another"
    )


def sheet(rows, heads=(), foot=""):
    """Rows of (title, pictures of one height) under column heads -> one picture. A title may be empty."""
    font = ImageFont.load_default(15)
    width = max(sum(p.shape[1] + MARGIN for p in pictures) for _, pictures in rows) + MARGIN
    height = sum(
        pictures[0].shape[0] + MARGIN + (TITLE if title else 0) for title, pictures in rows
    )
    height += MARGIN + TITLE * bool(heads) + TITLE * bool(foot)
    page = Image.new("RGB", (width, height), BACKGROUND)
    draw = ImageDraw.Draw(page)
    y = MARGIN
    for head, x in zip(heads, np.cumsum([MARGIN] + [p.shape[1] + MARGIN for p in rows[0][1]])):
        draw.text((int(x), y), head, MUTED, font)
    y += TITLE * bool(heads)
    for title, pictures in rows:
        if title:
            draw.text((MARGIN, y + 2), title, INK, font)
            y += TITLE
        x = MARGIN
        for picture in pictures:
            page.paste(Image.fromarray(picture), (x, y))
            x += picture.shape[1] + MARGIN
        y += pictures[0].shape[0] + MARGIN
    if foot:
        draw.text((MARGIN, y), foot, MUTED, font)
    return np.asarray(page)


def save(picture, path, colours=None):
    """Write a picture, uint8 (H, W), (H, W, 3) or (H, W, 4), to a .png or .jpg. colours: uint8 (256, 3) of the indices in (H, W), which become a palette PNG.

    Raises UserError where it cannot be written."""
    if str(path).endswith(".jpg") and max(picture.shape) > JPEG_SIDE:
        raise UserError(
            f"{printable(path)} cannot be written: {picture.shape[1]}x{picture.shape[0]} pixels, a JPEG holds {JPEG_SIDE:,} a side; leave it away, with --no-overlay or without --background"
        )
    with replacing(path) as temporary:
        if str(path).endswith(".png"):  # fast, and for masks as small as Pillow's best
            how = {"compress_level": 1} | ({"compress_type": 3} if picture.ndim == 2 else {})
        else:
            how = {"quality": 92}
        image = Image.fromarray(picture)
        if colours is not None:
            image.putpalette(colours.tobytes())
        write_picture(image, temporary, **how)


def batch(loader, images):
    """What the network sees of the epoch's first training batch, with the outlines of its masks."""
    dataset, epoch = loader.dataset, loader.sampler.epoch
    colours, pictures = colours_for(dataset), []
    for index in loader.sampler.order(epoch)[: min(16, images)]:
        image, mask = dataset[epoch, index]
        image = np.ascontiguousarray(
            np.broadcast_to(image.permute(1, 2, 0).numpy(), (*mask.shape, 3))
        )
        pictures.append(
            overlay(image, mask.numpy() if colours is not None else mask.numpy() >= 0.5, colours)
        )
    return sheet([("", pictures[i : i + 4]) for i in range(0, len(pictures), 4)])


def colours_for(dataset):
    """The colours that a data set's masks are drawn in: uint8 (256, 3), None of a single class."""
    return colours_of(dataset.reading["labels"]) if dataset.reading["labels"] else None


def shown_at(path, height):
    """(height, width) of a picture at another height, no wider than four times that."""
    rows, columns = picture_size(path)
    return height, max(1, min(4 * height, round(height * columns / rows)))


def compare(dataset, index, scores, height=240):
    """Photograph, truth, prediction and their difference of one item, as pictures `height` pixels high. scores: of check_accuracy."""
    size, colours = shown_at(dataset.pairs[index][0], height), colours_for(dataset)
    photograph, truth, predicted = (
        read_image(dataset.pairs[index][0], size),
        dataset.mask(index, size),
        predicted_mask(scores, index, size),
    )
    return [
        photograph,
        as_picture(truth, colours),
        as_picture(predicted, colours),
        wrong(dataset, photograph, truth, predicted),
    ]


def wrong(dataset, photograph, truth, predicted):
    """difference() of an item's masks."""
    return difference(
        photograph,
        truth,
        predicted,
        dataset.reading["labels"].ignore if dataset.reading["labels"] else 255,
    )


def validation_pictures(loader, model, scores, folder, max_batches):
    """pred_{idx}.png and {idx}.png, and overview.png with the worst, the median and the best images of a loader.

    scores: of check_accuracy, with that loader."""
    save_predictions_as_imgs(loader, model, folder, device_of(model), max_batches)
    dices = [row["dice"] for row in scores["images"]]
    ranks = {
        "worst": range(3),
        "median": range(len(dices) // 2 - 1, len(dices) // 2 + 2),
        "best": range(len(dices) - 3, len(dices)),
    }
    order, shown, rows = np.argsort(dices, kind="stable"), set(), []
    for word, places in ranks.items():
        for index in [
            order[place]
            for place in places
            if 0 <= place < len(order) and order[place] not in shown
        ]:
            shown.add(index)
            rows.append(
                (
                    f"{word}: {printable(loader.dataset.pairs[index][0].name)}   Dice {dices[index]:.4f}",
                    compare(loader.dataset, index, scores),
                )
            )
    page = sheet(
        rows,
        ("photograph", "truth", "prediction", "difference"),
        key(loader.dataset.reading["labels"]),
    )
    save(page, os.path.join(folder, "overview.png"))


def curves(history, size, path):
    """curves.png: the history's losses, 1 - Dice, learning rate and speed over its epochs. size: "HxW" of the network's picture."""
    from matplotlib.figure import Figure  # takes half a second
    from matplotlib.ticker import MaxNLocator

    panels = (
        ("loss", {"training": "train_loss", "validation": "val_loss"}, "log"),
        ("1 - Dice of validation", {f"at {size}": "dice", "at full size": "full_dice"}, "log"),
        ("learning rate", {"": "learning_rate"}, "linear"),
        ("images a second", {"": "images_per_second"}, "linear"),
    )
    figure = Figure(figsize=(10, 6.4), layout="constrained")
    for axes, (title, lines, scale) in zip(figure.subplots(2, 2).flat, panels):
        for colour, (label, name) in zip((BLUE, ORANGE), lines.items()):
            points = [
                (row["epoch"], 1 - row[name] if "dice" in name else row[name])
                for row in history
                if row.get(name) is not None
            ]
            axes.plot(
                *zip(*points),
                "o-",
                markersize=3,
                label=label,
                color=[level / 255 for level in colour],
            ) if points else None
        axes.set(
            title=title,
            yscale=scale
            if all(y > 0 for line in axes.lines for y in line.get_ydata())
            else "linear",
        )
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend() if len(axes.lines) > 1 else None
        axes.set_ylim(bottom=0) if scale == "linear" else None
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110)


def learning(dataset, scores, epoch, path, cars=4, height=160, most=60):
    """learning.gif: what is right and wrong about a few validation images, a frame an epoch; more epochs than `most` are thinned out.

    scores: of check_accuracy after this epoch. The file itself is the memory: its frames of earlier epochs, which its comment
    numbers, are kept where epoch is not 1."""
    indices = [
        round(i * (len(dataset) - 1) / max(1, cars - 1)) for i in range(min(cars, len(dataset)))
    ]
    pictures = []
    for index in indices:
        size = shown_at(dataset.pairs[index][0], height)
        pictures.append(
            wrong(
                dataset,
                read_image(dataset.pairs[index][0], size),
                dataset.mask(index, size),
                predicted_mask(scores, index, size),
            )
        )
    title = f"epoch {epoch}   Dice {scores['dice']:.4f} of all validation images   {key(dataset.reading['labels'])}"
    frames = {
        **(_frames(path) if epoch > 1 else {}),
        epoch: _frame(Image.fromarray(sheet([(title, pictures)]))),
    }
    frames = {number: frame for number, frame in sorted(frames.items()) if number <= epoch}
    while len(frames) > most:
        frames = {
            number: frame
            for i, (number, frame) in enumerate(frames.items())
            if i % 2 == 0 or number == epoch
        }
    durations = [400] * (len(frames) - 1) + [2000]  # milliseconds
    with replacing(path) as temporary:
        first, *rest = frames.values()
        write_picture(
            first,
            temporary,
            save_all=True,
            append_images=rest,
            duration=durations,
            loop=0,
            comment=" ".join(map(str, frames)).encode(),
        )


def _frames(path):
    """{epoch: frame} of an earlier learning.gif, as far as there is one."""
    frames = {}
    with contextlib.suppress(Exception), Image.open(path, formats=["GIF"]) as image:
        for number in image.info["comment"].split():
            image.seek(len(frames))
            frames[int(number)] = _frame(image.convert("RGB"))
    return frames


def _frame(picture):
    """In the 64 colours that all frames share: what difference() marks, and greys. A palette of its own would blend the few marks of a late epoch into them."""
    palette = Image.new("P", (1, 1))
    palette.putpalette(
        [
            *ORANGE,
            *BLUE,
            *PINK,
            *(
                level
                for grey in (*range(4, 160, 13), *range(160, 256, 2), 255)
                for level in 3 * [grey]
            ),
        ]
    )
    return picture.quantize(palette=palette, dither=Image.Dither.NONE)


def predicted_mask(scores, index, size):
    """The mask of one image, of check_accuracy's scores, at another size (H, W): bool, or of several classes uint8."""
    rows, columns = scores["size"]
    mask = scores["masks"][index]
    if "classes" in scores:
        return cv2.resize(mask.reshape(rows, columns), size[::-1], interpolation=cv2.INTER_NEAREST)
    mask = np.unpackbits(mask, count=rows * columns).reshape(rows, columns)
    return cv2.resize(mask * np.uint8(255), size[::-1], interpolation=cv2.INTER_LINEAR) > 127
