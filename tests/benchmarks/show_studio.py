"""The README's pictures of the studio: two painted words at 1280 pixels, and at 390.

Needs a finished demo (``make demo``), in the store ``EDIFFI_STORE``, and Chromium.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "tests" / "kits"))
import kit  # noqa: E402
from studio_kit import Hands  # noqa: E402

PROMPT = "a strawberry and a penguin, on a pink background"
STROKES = {
    "penguin": [(40, 60), (40, 190), (84, 190), (84, 60)],
    "strawberry": [(172, 60), (172, 190), (216, 190), (216, 60)],
}


def paint(hands: Hands) -> None:
    """Two words, each in its half, strongly; then a picture of them."""
    hands.write(PROMPT)
    hands.page.get_by_role("button", name="64 pixels").click()
    for thing, strokes in STROKES.items():
        hands.choose(thing)
        hands.page.get_by_label(f"Strength of {thing}").fill("2")
        hands.stroke(*strokes)
    hands.page.fill("#seed", "5")
    hands.draw()
    hands.page.mouse.move(0, 0)


def save(shot: bytes, name: str) -> None:
    """Of 256 colours."""
    image = Image.open(io.BytesIO(shot)).convert("RGB")
    image.quantize(256).save(ROOT / ".github" / name, optimize=True)


def show(browser: Any, address: str, width: int, height: int, name: str) -> None:
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme="light")
    paint(Hands(page, address).open())
    page.evaluate("scrollTo(0, 0)")
    save(page.screenshot(), name)


def main() -> None:
    storage = Path(os.environ.get("EDIFFI_STORE", "ediffi-store")).absolute()
    log = Path(tempfile.mkdtemp()) / "log"
    program = (kit.EDIFFI, "studio", "--port", "0")
    with kit.driver("emoji-scenes", storage, log, program) as running, sync_playwright() as play:
        address = running.until(lambda: re.search(r" is at (\S+)", running.text()), "the page")[1]
        browser = play.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        show(browser, address, 1280, 1130, "studio.png")
        show(browser, address, 390, 1640, "studio-390.png")
        browser.close()


if __name__ == "__main__":
    main()
