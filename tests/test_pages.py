"""Pages in a real browser: Debian's chromium, without a display. Skipped where there is none."""

import re
import shutil

import numpy as np
import pytest
from conftest import write_pairs
from test_inference import write_model
from test_train import SMALL

import page

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no chromium here")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def look(browser):
    """look(path, width, dark) -> a tab with the page, whose errors and requests fail the test."""
    complaints, tabs = [], []

    def call(path, width=1200, dark=False):
        tab = browser.new_page(
            viewport={"width": width, "height": 900}, color_scheme="dark" if dark else "light"
        )
        tab.on("console", lambda message: complaints.append(message.text))
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.on(
            "request",
            lambda request: (
                None
                if request.url.startswith(("file:", "data:"))
                else complaints.append(request.url)
            ),
        )
        tab.goto(path.absolute().as_uri())
        tabs.append(tab)
        return tab

    yield call
    for tab in tabs:
        tab.close()
    assert complaints == []


@pytest.fixture
def gallery(tmp_path):
    """A page of twelve cards, written in a mixed order."""
    rng = np.random.default_rng(0)
    items = [
        {
            "name": f"{'ab'[i % 2]} <car> & {i:02d}.jpg",
            "facts": f"Dice {0.9 + i / 200:.4f}",
            "dice": 0.9 + i / 200,
            "share": (i * 7 % 12) / 12,
            "pictures": {
                what: page.embedded(rng.integers(0, 255, (80, 120, 3), dtype=np.uint8))
                for what in ("photograph", "overlay", "truth", "prediction", "error")
            },
        }
        for i in rng.permutation(12).tolist()
    ]
    history = [(epoch, 1 / epoch) for epoch in range(1, 9)]
    page.write_page(
        tmp_path / "p/index.html",
        "A <page>",
        "of cards",
        page.section(
            "Curves",
            page.charts(
                page.chart("Loss", {"a": history, "b": history[:3]}),
                page.chart("1 - Dice", {"a": history}, log=True),
                page.chart("nothing", {}),
                page.histogram("Share", [1, 2, 2]),
            ),
        ),
        page.section(
            "Cards", page.cards(items, {"dice": ("lowest Dice", 1), "share": ("largest car", -1)})
        ),
        page.section("Table", page.table([("A", "1"), ("B", "2" * 300)], changed={"B"})),
    )
    return tmp_path / "p/index.html"


def names(tab):
    return tab.locator(".card h3").all_inner_texts()


def test_sorting_and_filtering(gallery, look):
    tab = look(gallery)
    by_dice = [f"{'ab'[i % 2]} <car> & {i:02d}.jpg" for i in range(12)]
    assert names(tab) == by_dice and tab.title() == "A <page>"
    tab.select_option("#sort", label="largest car")
    assert names(tab) == sorted(by_dice, key=lambda name: -(int(name[-6:-4]) * 7 % 12))
    tab.select_option("#sort", label="name")
    assert names(tab) == sorted(by_dice)
    tab.fill("#filter", "B <C")
    assert names(tab) == sorted(by_dice)[6:] and tab.locator("#count").inner_text() == "6 of 12"
    tab.fill("#filter", "nothing like it")
    assert names(tab) == []
    tab.fill("#filter", "")
    assert len(names(tab)) == 12


def test_enlarging_by_mouse_and_by_keys(gallery, look):
    tab = look(gallery)
    dialog = tab.locator("dialog")
    assert not dialog.is_visible()
    tab.locator(".card button").nth(2).click()
    assert (
        dialog.is_visible()
        and "a <car> & 02.jpg" in dialog.locator("strong").inner_text()
        and dialog.locator("img").count() == 5
    )
    tab.keyboard.press("ArrowRight")
    assert (
        "03.jpg" in dialog.locator("strong").inner_text()
        and dialog.locator("output").inner_text() == "4 of 12"
    )
    for _ in range(4):
        tab.keyboard.press("ArrowLeft")
    assert "11.jpg" in dialog.locator("strong").inner_text()
    tab.keyboard.press("Escape")
    assert not dialog.is_visible()
    assert (
        tab.evaluate("document.activeElement.getAttribute('aria-label')")
        == "enlarge b <car> & 11.jpg"
    )
    tab.keyboard.press("Enter")
    assert dialog.is_visible()


@pytest.mark.parametrize("width", [360, 800, 1900])
@pytest.mark.parametrize("dark", [False, True])
def test_nothing_is_cut_off(gallery, look, width, dark):
    tab = look(gallery, width, dark)
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert all(
        image["w"] > 0 and image["h"] > 0
        for image in tab.evaluate(
            "[...document.images].slice(0, 5).map(i => ({w: i.clientWidth, h: i.clientHeight}))"
        )
    )
    boxes = tab.evaluate(
        "[...document.querySelectorAll('.card')].map(c => { const b = c.getBoundingClientRect(); return [b.left, b.top, b.right, b.bottom] })"
    )
    assert not any(
        a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
        for i, a in enumerate(boxes)
        for b in boxes[:i]
    )
    ink, ground = (
        sum(
            map(
                int, re.findall(r"\d+", tab.evaluate(f"getComputedStyle(document.body).{what}"))[:3]
            )
        )
        for what in ("color", "backgroundColor")
    )
    assert ink > ground + 300 if dark else ground > ink + 300
    assert all(alt for alt in tab.evaluate("[...document.images].map(i => i.alt)"))


def test_a_training_leaves_a_page(data, run, look):
    done = run("train.py", *SMALL, "--num-epochs", 2, "--gallery-max", 4)
    assert done.stdout.rstrip().endswith("now look at saved_images/index.html")
    path = data / "saved_images/index.html"
    tab = look(path)
    dices = [
        float(re.search(r"Dice ([\d.]+)", facts)[1])
        for facts in tab.locator(".facts").all_inner_texts()
    ]
    assert (
        len(dices) == 4
        and dices == sorted(dices)
        and "6 validation images of data/val_images/, the worst 4 of them below" in tab.content()
    )
    assert (
        tab.locator("tr.changed").all_inner_texts()
        and "FEATURES\t4 8" in tab.locator("tr.changed").all_inner_texts()
    )
    assert (
        not any(row.startswith("ROTATE\t") for row in tab.locator("tr.changed").all_inner_texts())
        and tab.locator("svg").count() == 5
        and path.stat().st_size < 500_000
    )
    (data / "saved_images/index.html").unlink()
    assert (
        "now look at saved_images/overview.png"
        in run(
            "train.py", *SMALL, "--num-epochs", 2, "--gallery-max", 0, "--load-model", "true"
        ).stdout
        and not path.exists()
    )


def test_pages_of_explore_and_inference(tmp_path, run, look):
    write_pairs(tmp_path / "photos", tmp_path / "labels", cars=6)
    write_model(tmp_path / "a.pth.tar")
    run("explore.py", "--images", "photos", "--masks", "labels", "--out", "e/explore.html")
    run("inference.py", "--img", "photos", "--model", "a.pth.tar", "--gallery", "--out", "i")
    for path, label in (
        (tmp_path / "e/explore.html", "least agreement"),
        (tmp_path / "i/index.html", "least sure"),
    ):
        for width in (360, 1200):
            tab = look(path, width, dark=width == 360)
            assert len(names(tab)) == 12 and tab.locator("#sort option").first.inner_text() == label
            assert tab.evaluate("document.documentElement.scrollWidth") <= width
    unsure = [
        float(re.search(r"about ([\d.]+)", facts)[1])
        for facts in tab.locator(".facts").all_inner_texts()
    ]
    assert unsure == sorted(unsure, reverse=True) and len(set(unsure)) > 1
