"""People paint with words in ``ediffi studio`` on the finished demo, in a browser.

Needs a finished demo (``make demo``), in the store ``EDIFFI_STORE``. What pictures show is read by
the demo's scorer. One test, in parts: the studio loads the demo once.
"""

import base64
import io
import os
import re
import shutil
from pathlib import Path

import kit
import numpy as np
import pytest
from PIL import Image
from studio_kit import Hands

from pipelines.demo.drawings import CONCEPTS
from pipelines.demo.scenes import GROUNDS, PLACES
from pipelines.demo.scorer import EmojiScenes

STORE = Path(os.environ.get("EDIFFI_STORE", "ediffi-store")).absolute()
SCORERS = list(STORE.glob("nodes/metric/emoji-scenes-*/judge.safetensors"))
CHROMIUM = shutil.which("chromium")

pytestmark = [
    pytest.mark.soak,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium"),
    pytest.mark.skipif(not SCORERS, reason=f"{STORE} has no finished demo; `make demo` makes one"),
]

PROMPT = "a strawberry and a snowman, on a pink background"
COUNT = 4
"""Pictures of a request; half of them must show what is asked, which chance hardly does."""

HALVES = {
    "left": [(32, 20), (32, 236), (90, 236), (90, 20)],
    "right": [(166, 20), (166, 236), (224, 236), (224, 20)],
}
"""Strokes of the largest brush that paint a half, and leave a gap between the two."""


@pytest.fixture(scope="module")
def scorer():
    newest = max(SCORERS, key=lambda file: file.stat().st_mtime)
    scorer = EmojiScenes()
    scorer.open(newest.parent)
    return scorer


@pytest.fixture
def address(tmp_path):
    program = (kit.EDIFFI, "studio", "--port", "0")
    with kit.driver("emoji-scenes", STORE, tmp_path / "log", program, EDIFFI_TOKEN="") as running:
        yield running.until(lambda: re.search(r" is at (\S+)", running.text()), "the page")[1]


@pytest.fixture
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Seen:
    """What the scorer reads from the pictures of the last request."""

    def __init__(self, scorer, hands):
        pngs = hands.state(f"state.results.slice(-{COUNT}).map(({{ png }}) => png)")
        files = [io.BytesIO(base64.b64decode(png.split(",")[1])) for png in pngs]
        pictures = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])
        assert pictures.shape == (COUNT, 64, 64, 3)
        self.reading = scorer.read(pictures)

    def share_with(self, left, right):
        """Share of the pictures with both things in their halves."""
        names = [concept.name for concept in CONCEPTS]
        places = [PLACES.index(place) for place in HALVES]
        is_there = self.reading.concepts[:, places] == [names.index(left), names.index(right)]
        return is_there.all(axis=1).mean()

    def share_on(self, ground):
        return (self.reading.grounds == list(GROUNDS).index(ground)).mean()


def test_painting_with_words(address, browser, scorer):
    desk = {"width": 1280, "height": 1000}
    hands = Hands(browser.new_page(viewport=desk), address).open()
    things_are_where_they_are_painted(hands, scorer)
    swapped_colours_swap_the_things(hands, scorer)
    undo_brings_the_colours_back(hands)
    a_reload_keeps_the_session(hands)
    attention_follows_the_paint(hands)
    a_style_reference_gives_its_ground(hands, scorer)
    assert hands.messages == []

    phone = {"width": 390, "height": 844}
    hands = Hands(browser.new_page(viewport=phone, has_touch=True), address).open()
    things_are_where_they_are_painted(hands, scorer)
    assert hands.page.evaluate("document.documentElement.scrollWidth") == 390
    assert hands.messages == []


def things_are_where_they_are_painted(hands, scorer):
    page = hands.page
    hands.write(PROMPT)
    page.get_by_role("button", name="64 pixels").click()
    for thing, half in (("strawberry", "left"), ("snowman", "right")):
        hands.choose(thing)
        page.get_by_label(f"Strength of {thing}").fill("2")
        hands.stroke(*HALVES[half])
    page.select_option("#n", str(COUNT))
    page.fill("#seed", "1")
    hands.draw()
    seen = Seen(scorer, hands)
    assert seen.share_with("strawberry", "snowman") >= 0.5
    assert seen.share_with("snowman", "strawberry") == 0
    assert seen.share_on("pink") > 0.5


def swapped_colours_swap_the_things(hands, scorer):
    before = hands.requests[-1]
    hands.page.click("#tool-fill")
    for thing, half in (("snowman", "left"), ("strawberry", "right")):
        hands.choose(thing)
        hands.stroke(HALVES[half][0])
    request = hands.draw()
    assert [p["where"] for p in request["paint"]] == [p["where"] for p in before["paint"]][::-1]
    assert {**request, "paint": None} == {**before, "paint": None}
    seen = Seen(scorer, hands)
    assert seen.share_with("snowman", "strawberry") >= 0.5
    assert seen.share_with("strawberry", "snowman") == 0


def undo_brings_the_colours_back(hands):
    first = hands.requests[-2]
    hands.page.click("#undo")
    hands.page.click("#undo")
    assert hands.draw() == first
    older, newer = (
        hands.state(f"state.results.slice({start}, {end}).map(({{ png }}) => png)")
        for start, end in ((0, COUNT), (-COUNT, "undefined"))
    )
    assert newer == older


def a_reload_keeps_the_session(hands):
    request, results = hands.requests[-1], hands.state("state.results")
    hands.open()
    assert hands.state("state.results") == results
    assert hands.page.locator("#gallery li").count() == len(results) == 3 * COUNT
    assert hands.draw() == request


def attention_follows_the_paint(hands):
    hands.page.check("#attention-on")
    hands.draw()
    hands.page.uncheck("#attention-on")
    assert hands.page.locator("#attention .chip").count() == len(PROMPT.split())
    for found in hands.state(f"state.results.slice(-{COUNT}).map((r) => r.attention)"):
        base = [words for words in found["ranges"] if words["stage"] == "base"]
        for thing, half in (("strawberry", 0), ("snowman", 1)):
            for words in base:
                seen = map_of(words["maps"][found["words"].index(thing)])
                assert np.split(seen, 2, axis=1)[half].mean() > seen.mean()


def map_of(png):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(png))), np.float64)


def a_style_reference_gives_its_ground(hands, scorer):
    page = hands.page
    page.click("#clear")
    hands.write("a sunflower, on a purple background").draw()
    assert Seen(scorer, hands).share_on("purple") > 0.5
    hands.write("a snowman").draw()
    without = Seen(scorer, hands).share_on("purple")
    page.locator("#gallery li button").nth(COUNT).click()
    page.get_by_role("button", name="Use as style").click()
    request = hands.draw()
    assert request["prompt"] == "a snowman" and len(request["style"]) == 1
    assert Seen(scorer, hands).share_on("purple") > max(without, 0.5)
