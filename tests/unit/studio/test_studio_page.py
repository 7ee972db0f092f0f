"""The studio's page in a browser: prompt, phrases, painting, settings and drawing."""

import base64
import io
import shutil

import httpx
import numpy as np
import pytest
import studio_kit
from PIL import Image
from studio_kit import PROMPT, Hands

from pipelines.models.painting import STRENGTH
from pipelines.spec.serving import Limits

CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium"),
]

RADIUS = 16
"""Of the brush that is chosen at first."""


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    with studio_kit.engine(tmp_path_factory.mktemp("store")) as engine:
        yield engine


@pytest.fixture(scope="module")
def served(engine):
    with studio_kit.running(engine) as served:
        yield served


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        named = f"--host-resolver-rules=MAP {studio_kit.OTHER_HOST} 127.0.0.1"
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", named])
        yield browser
        browser.close()


@pytest.fixture
def hands(browser, served):
    """A page of a new visitor; at its end, the browser must have said nothing."""
    context = browser.new_context(viewport={"width": 1280, "height": 1000})
    hands = Hands(context.new_page(), served[0]).open()
    yield hands
    context.close()
    assert hands.messages == []


def pixels_of(picture):
    """RGB of a picture in base64."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB"))


def mask_of(painted):
    """The pixels of a phrase's ``where`` that are white."""
    pixels = pixels_of(painted["where"])
    assert set(np.unique(pixels)) <= {0, 255}
    return pixels[..., 0] > 127


def disc_around(a, b, radius):
    """Pixels within a distance of a line on the square."""
    y, x = np.mgrid[:256, :256] + 0.5
    a, b = np.array(a), np.array(b)
    along = ((x - a[0]) * (b - a)[0] + (y - a[1]) * (b - a)[1]) / ((b - a) @ (b - a))
    along = along.clip(0, 1)
    return np.hypot(x - a[0] - along * (b - a)[0], y - a[1] - along * (b - a)[1]) <= radius


def test_the_page_names_what_is_served_and_takes_its_defaults(hands):
    assert "tiny" in hands.page.inner_text("#served")
    assert hands.page.get_attribute("#guidance", "placeholder") == "2"
    assert hands.page.get_attribute("#steps", "placeholder") == "4"
    assert hands.page.locator("#stage option").all_inner_texts() == ["base (8 px)", "sr16 (16 px)"]
    assert hands.page.locator("#draw").is_disabled(), "there is no prompt yet"


def test_what_is_painted_is_sent_as_a_mask_for_each_phrase(hands):
    hands.write().choose("frog").stroke((60, 60), (60, 180))
    hands.choose("rocket", "pink").stroke((200, 100), (170, 100))
    frog, rocket = hands.draw()["paint"]
    assert frog["phrase"] == "frog"
    assert rocket["phrase"] == "rocket, on a pink"
    for painted, line in ((frog, ((60, 60), (60, 180))), (rocket, ((200, 100), (170, 100)))):
        mask = mask_of(painted)
        assert mask[disc_around(*line, RADIUS - 2)].all()
        assert not mask[~disc_around(*line, RADIUS + 2)].any()


def test_words_are_joined_by_dragging_over_them(hands):
    hands.write()
    words = hands.page.locator("#words button")
    first, last = words.nth(3).bounding_box(), words.nth(4).bounding_box()
    hands.page.mouse.move(first["x"] + 9, first["y"] + 9)
    hands.page.mouse.down()
    hands.page.mouse.move(last["x"] + 9, last["y"] + 9, steps=4)
    hands.page.mouse.up()
    assert hands.state("state.phrases.map((p) => p.text)") == ["a rocket"]


def test_a_wider_phrase_keeps_the_paint_of_the_words_in_it(hands):
    hands.write().choose("frog").stroke((60, 60), (60, 90))
    before = hands.slots()
    hands.choose("frog", "rocket")
    assert hands.state("state.phrases.map((p) => p.text)") == ["frog and a rocket"]
    assert hands.slots() == before


def test_a_phrase_that_the_prompt_lost_is_told_and_not_sent(hands):
    hands.write().choose("frog").stroke((60, 60), (60, 90))
    hands.choose("rocket").stroke((180, 60), (180, 90))
    hands.write("a frogman and a Rocket")
    assert "not sent" in hands.page.inner_text("#phrases li:first-child")
    assert [painted["phrase"] for painted in hands.draw()["paint"]] == ["rocket"]
    hands.write()
    assert [p["phrase"] for p in hands.draw()["paint"]] == ["frog", "rocket"]


def test_a_removed_phrase_takes_its_paint_along_and_undo_brings_both_back(hands):
    hands.write().choose("frog").stroke((60, 60), (60, 90))
    before = hands.slots()
    hands.page.get_by_label("Remove frog").click()
    assert hands.slots() == {0: 256 * 256}
    hands.page.click("#undo")
    assert hands.slots() == before
    assert hands.state("state.phrases.map((p) => p.text)") == ["frog"]


def test_strokes_are_undone_and_redone_one_by_one(hands):
    hands.write().choose("frog")
    seen = [hands.slots()]
    for y in (40, 120, 200):
        seen.append(hands.stroke((40, y), (90, y)).slots())
    for expected in reversed(seen[:3]):
        hands.page.keyboard.press("Control+z")
        assert hands.slots() == expected
    hands.page.keyboard.press("Control+Shift+z")
    hands.page.click("#redo")
    assert hands.slots() == seen[2]
    hands.stroke((200, 200), (220, 200))
    assert hands.page.locator("#redo").is_disabled(), "a new stroke ends what could be redone"


def test_eraser_fill_and_clear(hands):
    hands.write().choose("frog").stroke((10, 128), (246, 128))
    hands.page.click("#tool-eraser")
    hands.stroke((128, 100), (128, 156))
    assert hands.slot_at(128, 128) == 0
    assert hands.slot_at(60, 128) == hands.slot_at(200, 128) == 1

    hands.choose("rocket")
    hands.page.click("#tool-fill")
    hands.stroke((60, 128))
    assert (hands.slot_at(60, 128), hands.slot_at(200, 128)) == (2, 1), "only what is connected"
    hands.stroke((5, 5))
    assert hands.slot_at(250, 250) == hands.slot_at(128, 128) == 2
    hands.page.click("#clear")
    assert hands.slots() == {0: 256 * 256}


def test_a_saved_painting_is_loaded_as_the_same_sketch(hands, tmp_path):
    hands.write().choose("frog").stroke((60, 60), (100, 180))
    hands.choose("rocket").stroke((180, 60), (200, 90))
    before = hands.slots()
    with hands.page.expect_download() as download:
        hands.page.click("#save")
    download.value.save_as(tmp_path / "painting.png")
    hands.page.click("#clear")
    hands.page.set_input_files("#sketch-file", tmp_path / "painting.png")
    hands.page.wait_for_selector("#clear:enabled")
    assert hands.slots() == before


def test_a_sketch_gives_each_pixel_to_the_nearest_colour(hands, tmp_path):
    hands.write().choose("frog").choose("rocket")
    sketch = Image.new("RGB", (64, 64), (250, 250, 250))
    sketch.paste((190, 80, 90), (0, 0, 32, 32))  # near the first colour
    sketch.paste((30, 40, 160), (32, 32, 64, 64))  # near the second
    sketch.save(tmp_path / "sketch.png")
    hands.page.set_input_files("#sketch-file", tmp_path / "sketch.png")
    hands.page.wait_for_selector("#clear:enabled")
    assert hands.slots() == {0: 2 * 128**2, 1: 128**2, 2: 128**2}
    assert (hands.slot_at(10, 10), hands.slot_at(200, 200)) == (1, 2)


def test_painting_with_the_keyboard_alone(hands):
    hands.write().choose("frog").choose("rocket")
    hands.page.focus("#canvas")
    keyboard = hands.page.keyboard
    keyboard.press("1")
    keyboard.press("[")
    keyboard.down("Space")
    for _ in range(3):
        keyboard.press("Shift+ArrowLeft")
    keyboard.up("Space")
    assert hands.slot_at(128 - 48, 128) == hands.slot_at(128, 128) == 1
    assert hands.slot_at(128, 128 + 12) == 0, "the brush has become smaller"
    keyboard.press("e")
    keyboard.press("Space")
    assert (hands.slot_at(128 - 48, 128), hands.slot_at(128, 128)) == (0, 1)
    assert hands.page.inner_text("#canvas-status") == "Eraser"
    keyboard.press("Control+z")
    assert hands.slot_at(128 - 48, 128) == 1


def test_settings_are_sent_and_those_left_alone_are_the_models(hands):
    hands.write()
    hands.page.fill("#seed", "7")
    plain = hands.draw()
    assert not {"sampling", "negative", "stage", "model", "paint", "style"} & set(plain)
    assert (plain["seed"], plain["n"]) == (7, 1)
    hands.page.fill("#negative", "a green frog")
    hands.page.select_option("#n", "2")
    hands.page.select_option("#stage", "base")
    hands.page.fill("#guidance", "3.5")
    hands.page.fill("#steps", "3")
    hands.page.keyboard.press("Control+Enter")  # the field of the last number is not left before
    hands.page.wait_for_selector("#draw:not([hidden])")
    changed = hands.requests[-1]
    assert changed["sampling"] == {"guidance": 3.5, "steps": 3}
    assert (changed["negative"], changed["stage"], changed["n"]) == ("a green frog", "base", 2)
    results = hands.state("state.results.map(({seed, number}) => [seed, number])")
    assert results == [[7, 0], [7, 0], [7, 1]]


def test_the_menu_of_pictures_and_the_strength_are_the_service_s(hands):
    def offered():
        return hands.page.locator("#n option").all_inner_texts()

    def told(change):
        hands.state(f"state.set({{info: {{...state.info, {change}}}}})")

    assert offered() == [str(n) for n in range(1, Limits().pictures + 1)]
    hands.page.select_option("#n", "5")
    told("limits: {...state.info.limits, pictures: 3}")
    assert offered() == ["1", "2", "3"] and hands.page.input_value("#n") == "3"
    hands.write().choose("frog")
    told("defaults: {...state.info.defaults, strength: 0.25}")
    hands.choose("rocket").stroke((10, 10), (20, 20))
    assert hands.state("state.phrases.map((phrase) => phrase.strength)") == [STRENGTH, 0.25]
    request = hands.state("state.request()")
    assert request["n"] == 3 and request["paint"][0]["strength"] == 0.25


def test_an_unlocked_seed_is_new_for_each_picture(hands):
    hands.write()
    first, second = hands.draw()["seed"], hands.draw()["seed"]
    hands.page.click("#lock")
    assert first != second
    assert [hands.draw()["seed"], hands.draw()["seed"]] == [second, second]


def test_reference_pictures_of_style_have_weights_beside_others(hands, tmp_path):
    hands.write()
    for name, color in (("one.png", "red"), ("two.png", "blue")):
        Image.new("RGB", (700, 300), color).save(tmp_path / name)
        count = hands.page.locator("#styles li").count()
        hands.page.set_input_files("#style-file", tmp_path / name)
        hands.page.wait_for_selector(f"#styles li:nth-child({count + 1})")
    hands.page.get_by_label("Weight of reference 2").fill("0.25")
    style = hands.draw()["style"]
    assert [s["weight"] for s in style] == [1, 0.25]
    pixels = pixels_of(style[1]["image"])
    assert (pixels == (0, 0, 255)).all()
    assert max(pixels.shape) == 512, "larger than any encoder reads"


def test_the_picture_forms_with_the_expert_at_work(hands, served):
    _, witness = served
    witness.events.clear()
    hands.page.evaluate("""() => {
      window.lit = [];
      const note = () => {
        const at = document.querySelector(".segment.works");
        const name = at && at.closest("[data-stage]").dataset.stage + "/" + at.dataset.expert;
        if (name && lit.at(-1) !== name) lit.push(name);
      };
      new MutationObserver(note).observe(document.getElementById("experts"),
        { subtree: true, attributes: true });
    }""")
    hands.write()
    hands.draw()
    steps = [e for e in witness.events if e.type == "step"]
    experts = [f"{e.stage}/{e.expert}" for e in steps]
    assert all(e.preview for e in steps)
    assert hands.page.evaluate("lit") == list(dict.fromkeys(experts))
    assert len(set(experts)) == 3
    [finished] = [e for e in witness.events if e.type == "finished"]
    shown = hands.page.get_attribute("#pictures img", "src")
    assert shown == hands.state("state.results[0].png")
    assert (pixels_of(shown.split(",")[1]) == pixels_of(finished.png)).all()


def test_stop_takes_the_order_out_of_the_engine(hands, served):
    _, witness = served
    witness.events.clear()
    hands.write()
    hands.page.fill("#steps", "200")
    hands.page.click("#draw")
    hands.page.wait_for_selector(".segment.works")
    hands.page.click("#stop")
    hands.page.wait_for_selector("#draw:not([hidden])")
    assert witness.ended.wait(studio_kit.PATIENCE_S)
    assert not [e for e in witness.events if e.type == "finished"]
    assert hands.state("state.results") == []
    assert hands.page.locator("#alert").is_hidden(), "to stop is no error"


def test_a_refusal_is_told_with_its_reason(browser, served):
    context = browser.new_context()
    hands = Hands(context.new_page(), served[0]).open().write()
    hands.page.fill("#steps", "5000")
    hands.draw()
    told = hands.page.get_by_role("alert").inner_text()
    assert "5,000" in told and "200" in told
    assert all("400" in message for message in hands.messages), "only the browser's own note"
    hands.page.fill("#steps", "2")
    hands.draw()
    assert hands.page.locator("#alert").is_hidden()
    context.close()


def test_a_reload_keeps_the_session(hands):
    hands.write().choose("frog").stroke((60, 60), (60, 180))
    hands.page.get_by_label("Strength of frog").fill("1.2")
    hands.page.fill("#negative", "a house")
    hands.page.fill("#steps", "3")
    hands.page.fill("#seed", "11")
    request = hands.draw()
    before = hands.slots(), hands.state("state.results")
    hands.open()
    assert (hands.slots(), hands.state("state.results")) == before
    assert hands.draw() == request
    assert request["paint"][0]["strength"] == 1.2


def test_settings_of_a_picture_come_back_with_its_paint(hands):
    hands.write().choose("frog").stroke((60, 60), (60, 180))
    hands.choose("a", "rocket").stroke((200, 60), (200, 180))
    hands.page.fill("#guidance", "1.5")
    request = hands.draw()
    hands.write("a house")
    hands.page.click("#clear")
    hands.page.fill("#guidance", "")
    hands.state("state.use(state.results[0].request)")
    assert hands.draw() == request


def test_a_token_is_asked_for_and_kept(engine, browser):
    context = browser.new_context()
    with studio_kit.running(engine, token="a-long-random-text") as (address, _):
        paths = ("/v1/ediffi/model", "/v1/models", "/page/main.js", "/", "/page/%2e%2e/app.py")
        statuses = [httpx.get(address + path).status_code for path in paths]
        assert statuses == [401, 401, 200, 200, 404]
        hands = Hands(context.new_page(), address).open()
        assert hands.page.locator("#draw").is_disabled()
        hands.page.fill("#token", "wrong")
        hands.page.click("text=Use token")
        hands.page.wait_for_selector("#alert:not([hidden])")
        hands.page.fill("#token", "a-long-random-text")
        hands.page.click("text=Use token")
        hands.page.wait_for_selector("#token-form", state="hidden")
        hands.write().draw()
        assert len(hands.state("state.results")) == 1
        hands.open()
        assert hands.page.locator("#token-form").is_hidden()
    context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_all_without_scrolling_sideways(browser, served, scheme):
    context = browser.new_context(
        viewport={"width": 390, "height": 844}, color_scheme=scheme, has_touch=True
    )
    hands = Hands(context.new_page(), served[0]).open()
    hands.write(PROMPT + ", incomprehensibilities of extraordinarily").choose("frog", "pink")
    hands.page.fill("#seed", "4294967295")
    hands.draw()
    assert hands.page.evaluate("document.documentElement.scrollWidth") == 390
    small = hands.page.evaluate("""() => [...document.querySelectorAll("button, select, input")]
      .filter((e) => e.checkVisibility() && e.type !== "checkbox")
      .map((e) => [e.id || e.textContent, e.getBoundingClientRect().width,
                   e.getBoundingClientRect().height])
      .filter(([, width, height]) => width < 40 || height < 40)""")
    assert small == []
    assert hands.page.locator("#draw").is_visible()
    assert hands.messages == []
    context.close()


def test_a_finger_paints_without_scrolling(browser, served):
    context = browser.new_context(viewport={"width": 390, "height": 844}, has_touch=True)
    hands = Hands(context.new_page(), served[0]).open().write()
    hands.page.locator("#words button").nth(1).tap()
    hands.page.locator("#canvas").scroll_into_view_if_needed()
    box = hands.page.locator("#canvas").bounding_box()
    touch = context.new_cdp_session(hands.page)
    for kind, part in (("Start", 0.3), ("Move", 0.5), ("Move", 0.7)):
        point = {"x": box["x"] + box["width"] / 2, "y": box["y"] + part * box["height"]}
        touch.send("Input.dispatchTouchEvent", {"type": f"touch{kind}", "touchPoints": [point]})
    touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    assert hands.slot_at(128, 90) == hands.slot_at(128, 128) == hands.slot_at(128, 170) == 1
    assert hands.page.locator("#canvas").bounding_box() == box
    context.close()


def test_pictures_are_kept_on_a_page_of_another_machine(browser, served):
    context = browser.new_context()
    address = served[0].replace("127.0.0.1", studio_kit.OTHER_HOST)
    hands = Hands(context.new_page(), address).open().write()
    assert not hands.page.evaluate("isSecureContext")
    hands.page.select_option("#n", "2")
    hands.draw()
    assert hands.page.locator("#alert").is_hidden()
    before = hands.state("state.results")
    hands.open()
    assert len({result["id"] for result in before}) == 2
    assert hands.state("state.results") == before
    assert hands.messages == []
    context.close()


def test_draw_brings_the_picture_into_sight_from_wherever_it_is_asked_for(browser, served):
    context = browser.new_context(viewport={"width": 390, "height": 844})
    hands = Hands(context.new_page(), served[0]).open().write()
    for below in ("#prompt", "#style-add", "#versus"):
        hands.page.locator(below).scroll_into_view_if_needed()
        hands.draw()
        box = hands.page.locator("#pictures").bounding_box()
        assert box["y"] >= 0 and box["y"] + box["height"] <= 844
    context.close()
