"""Gallery, comparison, attention, and champion against candidate on the studio's page."""

import base64
import contextlib
import itertools
import json
import re
import shutil
import threading
from collections import Counter
from io import BytesIO
from pathlib import Path

import matplotlib
import numpy as np
import panel_kit
import pytest
from PIL import Image
from playwright.sync_api import expect, sync_playwright

from pipelines.serving.errors import QueueFull

CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium"),
]
CHAMPION = panel_kit.model("tiny@champion", "champion", version=1)
CANDIDATE = panel_kit.model("tiny@candidate", "candidate", version=2)


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def studio(browser):
    """Opens the page over a service of its own; nothing may be said on its console."""
    said = []
    with contextlib.ExitStack() as ending:

        def start(models=(CHAMPION,), draw=None, width=1280):
            service = panel_kit.Service(list(models), draw)
            ending.enter_context(service.running())
            page = browser.new_page(viewport={"width": width, "height": 900})
            ending.callback(page.close)
            page.set_default_timeout(30_000)
            page.on("console", lambda message: said.append(message.text))
            page.on("pageerror", lambda error: said.append(str(error)))
            page.goto(service.url)
            page.wait_for_selector("[data-ready]", state="attached")
            return page, service

        yield start
    assert said == []


def draw(page, prompt, seed=0):
    """Draw one picture from the page's controls."""
    before = page.locator(".thumbnail").count()
    page.fill("#prompt", prompt)
    if page.locator("#lock").get_attribute("aria-pressed") == "false":
        page.click("#lock")
    page.fill("#seed", str(seed))
    page.click("#draw")
    expect(page.locator(".thumbnail")).to_have_count(before + 1)


def prompts(page):
    return page.locator(".thumbnail .prompt").all_inner_texts()


def compare(page, left, right):
    """Compare two thumbnails, by their places in the gallery."""
    for place in (left, right):
        page.locator(".thumbnail").nth(place).focus()
        page.keyboard.press("c")


def decode(png):
    """Pixels of a PNG in base64, uint8 [H, W, 3]."""
    return np.asarray(Image.open(BytesIO(base64.b64decode(png))).convert("RGB"))


def pixels(canvas):
    """Pixels of a canvas of the page."""
    return decode(canvas.evaluate("canvas => canvas.toDataURL().split(',')[1]"))


def plain(colours):
    """Draws a picture of one colour, chosen by the request's seed."""

    def drawn(request, number):
        image = np.full((16, 16, 3), colours[request["seed"]], np.uint8)
        finished = panel_kit.noise(request, number, [CHAMPION])
        return [finished.model_copy(update={"png": panel_kit.encode(image)})]

    return drawn


RELOAD_AT = """(count) => {
  const watched = new MutationObserver(() => {
    if (document.querySelectorAll(".thumbnail").length < count) return;
    watched.disconnect();
    location.reload();
  });
  watched.observe(document.querySelector("#gallery"), { childList: true, subtree: true });
}"""


def test_pictures_that_are_shown_outlive_a_reload_at_once(studio):
    page, _ = studio()
    page.fill("#prompt", "a frog")
    page.select_option("#n", "4")
    for shown in (4, 8, 12, 16):
        page.evaluate(RELOAD_AT, shown)
        with page.expect_navigation():
            page.click("#draw")
        expect(page.locator(".thumbnail")).to_have_count(shown)


def test_used_settings_draw_the_same_request(studio):
    page, service = studio()
    page.fill("#prompt", "a frog and a rocket")
    page.locator("#words button", has_text="frog").click()
    page.locator("#canvas").focus()
    page.keyboard.press("Space")
    page.fill("#guidance", "3.5")
    page.fill("#steps", "7")
    page.fill("#negative", "a tree")
    page.select_option("#n", "2")
    page.check("#attention-on")
    page.click("#draw")
    expect(page.locator(".thumbnail")).to_have_count(2)
    [first] = service.requests
    assert first["paint"][0]["phrase"] == "frog"

    page.reload()
    page.fill("#guidance", "1")
    page.fill("#negative", "")
    page.click("#clear")
    page.select_option("#n", "1")
    draw(page, "something else", seed=9)
    page.locator(".thumbnail").nth(1).click()
    page.get_by_role("button", name="Use these settings again").click()
    expect(page.locator("#prompt")).to_have_value("a frog and a rocket")
    expect(page.locator("#negative")).to_have_value("a tree")
    page.click("#draw")
    expect(page.locator(".thumbnail")).to_have_count(5)
    assert service.requests[-1] == first


def test_a_download_has_the_bytes_that_were_served(studio):
    served = []

    def drawn(request, number):
        served.append(panel_kit.noise(request, number, [CHAMPION]))
        return served[-1:]

    page, _ = studio(draw=drawn)
    draw(page, "a frog", seed=3)
    page.reload()
    page.locator(".thumbnail").click()
    with page.expect_download() as download:
        page.get_by_role("link", name="Download").click()
    assert download.value.suggested_filename == "a-frog-3-0.png"
    data = Path(download.value.path()).read_bytes()
    assert data == base64.b64decode(served[0].png)
    assert json.loads(Image.open(BytesIO(data)).text["ediffi"])["prompt"] == "a frog"


def test_a_picture_becomes_a_reference_of_style(studio):
    page, service = studio()
    draw(page, "a frog")
    page.locator(".thumbnail").click()
    page.get_by_role("button", name="Use as style").click()
    draw(page, "a rocket")
    [style] = service.requests[-1]["style"]
    assert style["image"] == panel_kit.noise(service.requests[0], 0, [CHAMPION]).png


def test_the_gallery_is_used_by_keyboard_and_kept_over_a_reload(studio):
    page, _ = studio()
    for seed, prompt in enumerate(["first", "second", "third"]):
        draw(page, prompt, seed)
    page.locator(".thumbnail").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    view = page.get_by_role("dialog")
    expect(view.locator("dd").first).to_have_text("second")
    page.keyboard.press("ArrowRight")
    expect(view.locator("dd").first).to_have_text("first")
    page.keyboard.press("Escape")
    expect(page.locator(".thumbnail").nth(2)).to_be_focused()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Delete")
    expect(page.locator(".thumbnail")).to_have_count(2)
    expect(page.locator(".thumbnail").nth(1)).to_be_focused()
    expect(page.get_by_text("The picture is removed.")).to_be_visible()
    page.reload()
    expect(page.locator(".thumbnail")).to_have_count(2)
    assert prompts(page) == ["third", "first"]

    page.get_by_role("button", name="Clear all").click()
    page.get_by_role("button", name="Keep", exact=True).click()
    expect(page.locator(".thumbnail")).to_have_count(2)
    page.get_by_role("button", name="Clear all").click()
    page.get_by_role("button", name="Remove all").click()
    expect(page.locator(".thumbnail")).to_have_count(0)
    expect(page.get_by_text("The gallery is empty.")).to_be_visible()
    page.reload()
    page.wait_for_selector("[data-ready]", state="attached")
    assert prompts(page) == []


def test_the_gallery_keeps_200_pictures_and_says_that_older_ones_go(studio):
    page, service = studio()
    draw(page, "a frog")
    page.evaluate(
        """async (count) => {
          const { Pictures } = await import(new URL("page/storage.js", document.baseURI));
          const pictures = await Pictures.open();
          const [result] = await pictures.results();
          for (let i = 1; i <= count; i++) {
            const request = { ...result.request, prompt: `older ${i}` };
            const finishedAt = result.finishedAt - 1000 * i;
            await pictures.putResult({ ...result, id: `older-${i}`, request, finishedAt });
          }
        }""",
        204,
    )
    page.reload()
    expect(page.locator(".thumbnail")).to_have_count(200)
    kept = ["a frog", *(f"older {i}" for i in range(1, 200))]
    assert prompts(page) == kept
    expect(page.locator("#gallery [role=status]")).to_contain_text("200")

    page.reload()
    expect(page.locator(".thumbnail")).to_have_count(200)
    page.fill("#prompt", "newest")
    page.click("#draw")
    expect(page.locator(".thumbnail .prompt").first).to_have_text("newest")
    assert prompts(page) == ["newest", *kept[:-1]]
    assert len(service.requests) == 2


def test_the_slider_is_moved_by_keys_and_pointer(studio):
    red, blue = (255, 0, 0), (0, 0, 255)
    page, _ = studio(draw=plain([red, blue]))
    draw(page, "a frog", seed=0)
    draw(page, "a frog", seed=1)
    compare(page, 1, 0)
    slider = page.get_by_role("slider", name="Share of the left picture")
    expect(slider).to_be_focused()

    def colours():
        """At 12 % and 88 % of the width, away from the handle."""
        shot = Image.open(BytesIO(page.locator(".compared").screenshot())).convert("RGB")
        return [shot.getpixel((int(shot.width * x), shot.height // 4)) for x in (0.12, 0.88)]

    assert colours() == [red, blue]
    page.keyboard.press("ArrowRight")
    expect(slider).to_have_attribute("aria-valuenow", "51")
    page.keyboard.press("End")
    expect(slider).to_have_attribute("aria-valuetext", "100 % left picture, 0 % right picture")
    page.keyboard.press("ArrowRight")
    expect(slider).to_have_attribute("aria-valuenow", "100")
    assert colours() == [red, red]
    page.keyboard.press("Home")
    assert colours() == [blue, blue]
    box = page.locator(".compared").bounding_box()
    page.mouse.move(box["x"] + 5, box["y"] + 50)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.75 * box["width"], box["y"] + 50)
    page.mouse.up()
    expect(slider).to_have_attribute("aria-valuenow", "75")


def test_a_comparison_shows_what_differs_and_nothing_else(studio):
    page, service = studio()
    draw(page, "a frog", seed=1)
    page.fill("#guidance", "2")  # the model's own
    draw(page, "a frog", seed=2)
    page.fill("#guidance", "5")
    draw(page, "a frog", seed=2)
    compare(page, 1, 2)
    rows = page.locator("#compare tbody tr")
    assert rows.all_inner_texts() == ["Seed\t2\t1"]
    page.get_by_text("Difference × 4").click()
    pair = [panel_kit.noise(request, 0, [CHAMPION]).png for request in service.requests[:2]]
    a, b = (decode(png).astype(int) for png in pair)
    expect(page.locator("#compare canvas + p")).to_contain_text(f"largest is {abs(a - b).max()}")
    wanted = np.minimum(4 * abs(a - b), 255)
    assert np.array_equal(pixels(page.locator("#compare canvas")), wanted)

    compare(page, 0, 1)
    expect(rows).to_have_count(1)
    assert rows.all_inner_texts() == ["Guidance\t5\t2"]
    page.get_by_text("Difference × 4").click()
    expect(page.locator("#compare canvas + p")).to_contain_text("equal in every pixel")


def test_heat_maps_are_the_served_maps_in_viridis(studio):
    prompt = "a 🐸 left of a rocket"
    maps = np.random.default_rng(0).integers(0, 256, (3, 6, 8, 8))
    served = panel_kit.attention(prompt, list(maps))
    page, _ = studio(
        draw=lambda request, number: [served, panel_kit.noise(request, number, [CHAMPION])]
    )
    draw(page, prompt)
    section = page.locator("#attention")
    assert section.locator("fieldset").text_content() == f"Word of the prompt{prompt}"
    large = section.locator("canvas[role=img]")
    colours = matplotlib.colormaps["viridis"](np.arange(256), bytes=True)[:, :3]
    for word, number in itertools.product((1, 5), (0, 2)):
        section.locator(".chip").nth(word).click()
        section.locator(".multiples button").nth(number).click()
        about = re.compile(
            f"“{prompt.split()[word]}” in base, σ {served.ranges[number].sigma[0]:g}"
        )
        expect(large).to_have_attribute("aria-label", about)
        grey, shown = maps[number, word], pixels(large)
        assert np.array_equal(shown, colours[grey])
        brightest = np.argmax(shown @ [0.2126, 0.7152, 0.0722])
        assert grey.flat[brightest] == grey.max()
    section.locator("summary").click()
    for row, word in zip(section.locator("tbody tr").all(), range(6), strict=True):
        wanted = [f"{100 * each.shares[word]:.0f} %" for each in served.ranges]
        assert row.locator("td").all_inner_texts() == wanted


def test_attention_is_played_from_high_noise_to_low(studio):
    served = panel_kit.attention("a frog", [np.ones((2, 4, 4)) * 9] * 3)
    page, _ = studio(
        draw=lambda request, number: [served, panel_kit.noise(request, number, [CHAMPION])]
    )
    draw(page, "a frog")
    page.clock.install()
    ranges = page.locator(".multiples button")
    pressed = lambda: [each.get_attribute("aria-pressed") for each in ranges.all()]  # noqa: E731
    ranges.nth(2).click()
    page.get_by_role("button", name="Play from high σ to low").click()
    seen = [pressed().index("true")]
    for _ in range(2):
        page.clock.run_for(1200)
        seen.append(pressed().index("true"))
    assert seen == [0, 1, 2]
    page.clock.run_for(1200)
    expect(page.get_by_role("button", name="Play from high σ to low")).to_be_visible()


def test_a_blind_comparison_hides_models_and_counts_choices(studio):
    page, service = studio([CHAMPION, CANDIDATE])
    page.fill("#prompt", "a frog")
    versus = page.locator("#versus")
    versus.get_by_label("Pairs").fill("4")
    versus.get_by_role("button", name="Draw pairs").click()
    pairs = versus.locator(".pairs > li")
    expect(pairs.locator("button")).to_have_count(12)
    hidden = re.sub('data:[^"]*', "", versus.locator(".pairs").inner_html())
    assert not re.search("champion|candidate|version|0\\.3 s", hidden)

    requests = service.requests
    sides = [[r.pop("model") for r in requests[2 * i : 2 * i + 2]] for i in range(4)]
    assert all(set(pair) == {CHAMPION.name, CANDIDATE.name} for pair in sides)
    assert all(requests[2 * i] == requests[2 * i + 1] for i in range(4))
    assert len({r["seed"] for r in requests}) == 4

    choices = ["Left is better", "Right is better", "No difference", "Left is better"]
    for pair, choice in zip(pairs.all(), choices, strict=True):
        pair.get_by_role("button", name=choice).click()
        expect(pair.locator("button:enabled")).to_have_count(0)
    names = {
        CHAMPION.name: "champion: tiny, version 1",
        CANDIDATE.name: "candidate: tiny, version 2",
    }
    for i, pair in enumerate(pairs.all()):
        assert pair.locator("figcaption strong").all_inner_texts() == [names[m] for m in sides[i]]
    won = Counter([names[sides[0][0]], names[sides[1][1]], "No difference", names[sides[3][0]]])
    tally = dict(row.locator("span").all_inner_texts() for row in versus.locator(".tally li").all())
    assert tally == {name: f"{won[name]} of 4" for name in [*names.values(), "No difference"]}


def test_pairs_that_are_stopped_or_refused_leave_those_that_are_drawn(studio):
    asked, going_on = itertools.count(), threading.Event()

    def drawn(request, number):
        which = next(asked)
        if which == 3:
            going_on.wait(60)
        if which == 5:
            raise QueueFull("64 pictures wait; come again")
        return [panel_kit.noise(request, number, [CHAMPION, CANDIDATE])]

    page, service = studio([CHAMPION, CANDIDATE], drawn)
    page.fill("#prompt", "a frog")
    versus = page.locator("#versus")
    versus.get_by_role("button", name="Draw pairs").click()
    expect(versus.locator(".pairs > li")).to_have_count(2)
    expect(versus.locator(".pairs button")).to_have_count(3)
    while len(service.requests) < 4:
        page.wait_for_timeout(10)
    versus.get_by_role("button", name="Stop").click()
    expect(versus.locator(".pairs > li")).to_have_count(1)
    expect(versus.get_by_role("status")).to_have_text("Stopped.")
    expect(versus.get_by_role("alert")).to_have_count(0)
    versus.get_by_role("button", name="No difference").click()
    going_on.set()

    versus.get_by_role("button", name="Draw pairs").click()
    expect(versus.get_by_role("alert")).to_have_text("64 pictures wait; come again")
    expect(versus.locator(".pairs > li")).to_have_count(0)
    expect(versus.locator(".tally li").last).to_contain_text("1 of 1")


def test_one_model_has_nothing_to_be_compared_with(studio):
    twin = panel_kit.model("tiny@candidate", "candidate", manifest=CHAMPION.name)
    page, _ = studio([CHAMPION, twin])
    expect(page.locator("#versus")).to_contain_text("ediffi retrain")
    expect(page.locator("#versus button")).to_have_count(0)


def test_full_panels_fit_390_pixels_whatever_the_prompt(studio):
    prompt = "<img src=x onerror=alert(1)> " + "frog" * 60
    maps = [np.full((len(prompt.split()), 4, 4), 9)] * 6
    page, _ = studio(
        [CHAMPION, CANDIDATE],
        lambda request, number: [
            *([panel_kit.attention(prompt, maps)] if request["attention"] else []),
            panel_kit.noise(request, number, [CHAMPION, CANDIDATE]),
        ],
        width=390,
    )
    page.check("#attention-on")
    draw(page, prompt, seed=1)
    draw(page, prompt + " again", seed=2)
    compare(page, 0, 1)
    page.locator("#versus").get_by_role("button", name="Draw pairs").click()
    expect(page.locator(".pairs button")).to_have_count(6)
    page.locator("#attention summary").click()
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    page.locator(".thumbnail").first.click()
    view = page.get_by_role("dialog")
    assert view.evaluate("e => e.scrollWidth <= e.clientWidth")
    targets = page.locator(
        ":is(#gallery, #attention, #compare, #versus) :is(button, select, a, .chip, summary)"
    )
    heights = [box["height"] for box in (t.bounding_box() for t in targets.all()) if box]
    assert min(heights) >= 40
