"""docs/unet.svg is what tools/draw_unet.py draws, and shows what a forward pass returns."""

import xml.etree.ElementTree

import pytest
from helpers import ROOT, load_tool

from model import UNET

TEXT = "{http://www.w3.org/2000/svg}text"


@pytest.fixture(scope="module")
def draw_unet():
    return load_tool("draw_unet")


def test_picture_is_the_default_networks(draw_unet):
    picture = (ROOT / "docs/unet.svg").read_text(encoding="utf-8")
    assert picture == draw_unet.draw(UNET(), (160, 240))


def test_picture_shows_what_a_forward_pass_returns(draw_unet):
    picture = draw_unet.draw(UNET(1, 1, [4, 6, 8], unshuffle=2), (50, 61))
    texts = [element.text for element in xml.etree.ElementTree.fromstring(picture).iter(TEXT)]
    down = ["50×61", "32×32", "16×16", "8×8"]
    assert [text for text in texts if "×" in text] == [*down, "4×4", *reversed(down)]
    down = ["1", "4", "6", "8"]
    assert [text for text in texts if text.isdigit()] == [*down, "16", *reversed(down)]
