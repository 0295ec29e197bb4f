"""Draw what the project does, from a photograph to a cutout, to docs/steps.jpg.

python tools/draw_steps.py --model MODEL --img PHOTOGRAPH
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from PIL import Image, ImageOps

import utils
from carvana import options
from carvana.errors import user_errors
from carvana.files import replacing
from carvana.images import read_image

PICTURE = Path(__file__).resolve().parent.parent / "docs" / "steps.jpg"
WIDTH, HEIGHT = 460, 300  # pixels of each of the four panels
GAP = 8
CHECK = 10  # pixels a side of the squares that show transparency
WALL, FLOOR = (236, 183, 128), (150, 104, 74)  # colors of the other background
HORIZON = 0.45  # of the height, from the top


def draw_backdrop() -> Image.Image:
    """Return a wall and a floor that run into each other."""
    rows = np.linspace(0, 1, HEIGHT)
    floor = 1 / (1 + np.exp((HORIZON - rows) / 0.03))
    light = 1.06 - 0.3 * abs(rows - HORIZON)
    colors = light[:, None] * np.stack([1 - floor, floor], axis=1) @ np.array([WALL, FLOOR])
    column = Image.fromarray(colors.clip(0, 255).astype(np.uint8)[:, None])
    return column.resize((WIDTH, HEIGHT))


def draw_checks() -> Image.Image:
    """Return the squares that stand for transparency."""
    odd = np.indices((HEIGHT // CHECK, WIDTH // CHECK)).sum(0) % 2
    squares = Image.fromarray((200 + 35 * odd).astype(np.uint8)).convert("RGB")
    return squares.resize((WIDTH, HEIGHT), Image.Resampling.NEAREST)


def draw_panels(model_file: str, image_file: str) -> list[Image.Image]:
    """Return the photograph, its mask, its cutout, and the car before another background."""
    model = utils.load_model(model_file, "cpu")
    photograph = read_image(image_file)
    mask = Image.fromarray((utils.predict(model, [photograph])[0] > 0.5).astype(np.uint8) * 255)
    panels = [Image.fromarray(photograph), mask.convert("RGB"), draw_checks(), draw_backdrop()]
    panels = [ImageOps.fit(panel, (WIDTH, HEIGHT)) for panel in panels]
    for panel, shadow in ((panels[2], False), (panels[3], True)):
        cutout = utils.cutout(model, photograph, shadow, fit=(HEIGHT, WIDTH), margin=0.03)
        picture = Image.fromarray(cutout)
        panel.paste(picture, mask=picture)
    return panels


def draw_sheet(panels: list[Image.Image]) -> Image.Image:
    """Return the panels side by side, on white."""
    sheet = Image.new("RGB", (len(panels) * (WIDTH + GAP) - GAP, HEIGHT), "white")
    for index, panel in enumerate(panels):
        sheet.paste(panel, (index * (WIDTH + GAP), 0))
    return sheet


if __name__ == "__main__":
    with user_errors():
        parser = options.make_parser(__doc__)
        options.add_model_option(parser, "checkpoint or exported model")
        parser.add_argument("--img", required=True, help="the photograph")
        args = parser.parse_args()
        sheet = draw_sheet(draw_panels(args.model, args.img))
        with replacing(PICTURE) as file:
            sheet.save(file, "JPEG", quality=80)
        print(f"now look at {PICTURE}")
