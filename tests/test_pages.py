"""Pages in a real browser: Debian's chromium, without a display. Skipped where there is none."""

import itertools
import re

import numpy as np
import pytest
from helpers import open_browser, tiny_options, write_model, write_pairs
from markupsafe import Markup

from carvana import curves, reports

PICTURES = ("photograph", "overlay", "truth", "prediction", "error")
NAMES = [f"{'ab'[i % 2]} <car> & {i:02d}.jpg" for i in range(12)]  # in the order of their Dice
SIZES = "[...document.images].slice(0, 5).map(i => [i.clientWidth, i.clientHeight])"
BOXES = """[...document.querySelectorAll('.card')].map(card => {
  const box = card.getBoundingClientRect();
  return [box.left, box.top, box.right, box.bottom];
})"""


@pytest.fixture(scope="module")
def browser():
    with open_browser() as browser:
        yield browser


class Tabs:
    """Opens pages, and notes what they complain about and ask the network for."""

    def __init__(self, browser):
        self.browser = browser
        self.tabs = []
        self.complaints = []

    def __call__(self, path, width=1200, dark=False):
        """Return a tab with the page."""
        scheme = "dark" if dark else "light"
        viewport = {"width": width, "height": 900}
        tab = self.browser.new_page(viewport=viewport, color_scheme=scheme)
        tab.on("console", lambda message: self.complaints.append(message.text))
        tab.on("pageerror", lambda error: self.complaints.append(str(error)))
        tab.on("request", self.note_request)
        tab.goto(path.absolute().as_uri())
        self.tabs.append(tab)
        return tab

    def note_request(self, request):
        if not request.url.startswith(("file:", "data:")):
            self.complaints.append(request.url)


@pytest.fixture
def open_page(browser):
    """look(path, width, dark): a tab, whose errors and requests fail the test."""
    tabs = Tabs(browser)
    yield tabs
    for tab in tabs.tabs:
        tab.close()
    assert tabs.complaints == []


def make_card(i, rng):
    pictures = {}
    for caption in PICTURES:
        noise = rng.integers(0, 255, (80, 120, 3), dtype=np.uint8)
        pictures[caption] = reports._picture_uri(noise)
    dice = 0.9 + i / 200
    sort_values = {"dice": dice, "share": (i * 7 % 12) / 12}
    return reports.Card(NAMES[i], f"Dice {dice:.4f}", pictures, sort_values)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A page with everything in it, and twelve cards in a mixed order."""
    path = tmp_path_factory.mktemp("page") / "p/index.html"
    rng = np.random.default_rng(0)
    history = [{"epoch": epoch, "train_loss": 1 / epoch} for epoch in range(1, 9)]
    history[0]["val_loss"] = 0.5
    reports.write_page(
        path,
        "training.html",
        title="A <page>",
        intro="of cards",
        curves=Markup(curves.training_curves(history, "32x48").to_svg()),
        score_rows=[["Dice, mean over images", "0.9"]],
        score_heads=["", "at 32x48"],
        class_rows=[["ground", "0.9"], ["thing", "-"]],
        class_heads=["class", "Dice"],
        confusion_rows=[["ground", "1.000", "0.000"]],
        confusion_heads=["", "ground", "thing"],
        color_key="orange = wrongly included, blue = missed",
        cards=[make_card(i, rng) for i in rng.permutation(12).tolist()],
        orders=[
            reports.SortOrder("dice", "lowest Dice", 1),
            reports.SortOrder("share", "largest car", -1),
        ],
        constants=[("A", "1"), ("B", "2" * 300)],
        changed={"B"},
    )
    return path


def card_names(tab):
    return tab.locator(".card h3").all_inner_texts()


def share_rank(name):
    return -(int(name[-6:-4]) * 7 % 12)


# ---------------------------------------------------------------- any page


def test_page_sorts_and_filters_cards(page, open_page):
    tab = open_page(page)
    assert card_names(tab) == NAMES
    assert tab.title() == "A <page>"
    tab.select_option("#sort", label="largest car")
    assert card_names(tab) == sorted(NAMES, key=share_rank)
    tab.select_option("#sort", label="name")
    assert card_names(tab) == sorted(NAMES)
    tab.fill("#filter", "B <C")
    assert card_names(tab) == sorted(NAMES)[6:]
    assert tab.locator("#count").inner_text() == "6 of 12"
    tab.fill("#filter", "nothing like it")
    assert card_names(tab) == []
    tab.fill("#filter", "")
    assert len(card_names(tab)) == 12


def test_page_enlarges_cards_by_mouse_and_keys(page, open_page):
    expect = pytest.importorskip("playwright.sync_api").expect  # waits, as keys take their time
    tab = open_page(page)
    dialog = tab.locator("dialog")
    title = dialog.locator("strong")
    expect(dialog).not_to_be_visible()
    tab.locator(".card button").nth(2).click()
    expect(dialog).to_be_visible()
    expect(title).to_contain_text("a <car> & 02.jpg")
    expect(dialog.locator("img")).to_have_count(5)
    tab.keyboard.press("ArrowRight")
    expect(title).to_contain_text("03.jpg")
    expect(dialog.locator("output")).to_have_text("4 of 12")
    for _ in range(4):
        tab.keyboard.press("ArrowLeft")
    expect(title).to_contain_text("11.jpg")
    tab.keyboard.press("Escape")
    expect(dialog).not_to_be_visible()
    expect(tab.get_by_label("enlarge b <car> & 11.jpg")).to_be_focused()
    tab.keyboard.press("Enter")
    expect(dialog).to_be_visible()


def overlap(box, neighbor):
    left, top, right, bottom = box
    return left < neighbor[2] and neighbor[0] < right and top < neighbor[3] and neighbor[1] < bottom


def brightness(tab, style):
    """Return the sum of a color's three levels."""
    color = tab.evaluate(f"getComputedStyle(document.body).{style}")
    return sum(map(int, re.findall(r"\d+", color)[:3]))


@pytest.mark.parametrize("width", [360, 800, 1900])
@pytest.mark.parametrize("dark", [False, True])
def test_page_cuts_nothing_off(page, open_page, width, dark):
    tab = open_page(page, width, dark)
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert all(side > 0 for size in tab.evaluate(SIZES) for side in size)
    boxes = tab.evaluate(BOXES)
    assert len(boxes) == 12
    assert not any(overlap(*pair) for pair in itertools.combinations(boxes, 2))
    ink = brightness(tab, "color")
    ground = brightness(tab, "backgroundColor")
    assert ink > ground + 300 if dark else ground > ink + 300
    assert all(tab.evaluate("[...document.images].map(i => i.alt)"))


# ---------------------------------------------------------------- the scripts' pages


def test_page_of_a_training(data, run, open_page):
    arguments = tiny_options(NUM_EPOCHS=2)
    done = run("train.py", *arguments, "--gallery-max", 4)
    assert done.stdout.rstrip().endswith("now look at saved_images/index.html")
    path = data / "saved_images/index.html"
    assert path.stat().st_size < 500_000
    tab = open_page(path)
    facts = tab.locator(".facts").all_inner_texts()
    dices = [float(re.search(r"Dice ([\d.]+)", line)[1]) for line in facts]
    assert len(dices) == 4
    assert dices == sorted(dices)
    intro = "6 validation images of data/val_images/, the worst 4 of them below"
    assert intro in tab.content()
    changed = tab.locator("tr.changed").all_inner_texts()
    assert "FEATURES\t4 8" in changed
    assert not any(row.startswith("ROTATE\t") for row in changed)
    charts = tab.locator("svg").inner_html()
    for title in ("loss", "1 - Dice of validation", "learning rate", "images per second"):
        assert f">{title}</text>" in charts, title
    path.unlink()
    done = run("train.py", *arguments, "--gallery-max", 0, "--load-model", "true")
    assert "now look at saved_images/overview.png" in done.stdout
    assert not path.exists()


def test_pages_of_explore_and_inference(tmp_path, run, open_page):
    write_pairs(tmp_path / "photos", tmp_path / "labels", cars=6)
    write_model(tmp_path / "a.pth.tar")
    run("explore.py", "--images", "photos", "--masks", "labels", "--out", "e/explore.html")
    run("inference.py", "--img", "photos", "--model", "a.pth.tar", "--gallery", "--out", "i")
    first_orders = {"e/explore.html": "least agreement", "i/index.html": "least sure"}
    for (path, order), width in itertools.product(first_orders.items(), (360, 1200)):
        tab = open_page(tmp_path / path, width, dark=width == 360)
        assert len(card_names(tab)) == 12
        assert tab.locator("#sort option").first.inner_text() == order
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
    facts = tab.locator(".facts").all_inner_texts()
    unsure = [float(re.search(r"about ([\d.]+)", line)[1]) for line in facts]
    assert unsure == sorted(unsure, reverse=True)
    assert len(set(unsure)) > 1
