"""The studio over the tiny ensemble, and hands to work on its page with."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ensemble_kit
import uvicorn

from pipelines.serving.engine import Order, Status
from pipelines.serving.events import Event
from pipelines.serving.local import LocalEngine
from pipelines.spec.serving import Serving
from pipelines.studio.app import create_studio

PROMPT = "a frog and a rocket, on a pink background"
OTHER_HOST = "studio.test"
"""By this name a page is no secure context, as on a phone that asks another machine by HTTP."""

PATIENCE_S = 120


class Witness:
    """An engine that keeps what its orders were told, and how each ended."""

    def __init__(self, engine: LocalEngine) -> None:
        self.engine = engine
        self.events: list[Event] = []
        self.ended = threading.Event()

    async def draw(self, order: Order) -> AsyncIterator[Event]:
        self.ended.clear()
        try:
            async with contextlib.aclosing(self.engine.draw(order)) as events:
                async for event in events:
                    self.events.append(event)
                    yield event
        finally:
            self.ended.set()

    async def status(self) -> Status:
        return await self.engine.status()


def _wait_for(work: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine in a thread of its own: Playwright keeps this one's event loop busy."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, work).result()


@contextlib.contextmanager
def engine(root: Path) -> Iterator[LocalEngine]:
    """An engine that has loaded the tiny ensemble."""
    ensemble_kit.make(root)
    serving = Serving(
        model=f"{ensemble_kit.NAME}@candidate", storage=str(root), allowed_hosts=[OTHER_HOST]
    )
    local = LocalEngine(serving)
    _wait_for(local.load())
    try:
        yield local
    finally:
        _wait_for(local.close())


@contextlib.contextmanager
def running(local: LocalEngine, token: str | None = None) -> Iterator[tuple[str, Witness]]:
    """The studio's address on a free port, and the witness of its engine."""
    witness = Witness(local)
    app = create_studio(witness, local.serving, token)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until = time.monotonic() + PATIENCE_S
    while not server.started:
        assert thread.is_alive() and time.monotonic() < until, "the server does not start"
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}", witness
    finally:
        server.should_exit = True
        thread.join(PATIENCE_S)


class Hands:
    """Works on an open page as a person does, and looks at it."""

    def __init__(self, page: Any, address: str) -> None:
        self.page, self.address = page, address
        self.messages: list[str] = []
        self.requests: list[Any] = []
        page.set_default_timeout(PATIENCE_S * 1000)
        page.on("console", lambda message: self.messages.append(message.text))
        page.on("pageerror", lambda error: self.messages.append(str(error)))
        page.on("request", self._keep)

    def _keep(self, request: Any) -> None:
        if request.method == "POST":
            self.requests.append(request.post_data_json)

    def open(self) -> Hands:
        self.page.goto(self.address)
        self.page.wait_for_selector("html[data-ready]")
        return self

    def write(self, prompt: str = PROMPT) -> Hands:
        self.page.fill("#prompt", prompt)
        return self

    def choose(self, *words: str) -> Hands:
        """Make a phrase of the words from the first to the last."""
        for word, keys in zip(words, [[], ["Shift"]], strict=False):
            button = self.page.locator("#words").get_by_role("button", name=word, exact=True)
            button.first.click(modifiers=keys)
        return self

    def stroke(self, *points: tuple[float, float]) -> Hands:
        """Draw a line on the canvas through points in its pixels, with the mouse."""
        self.page.locator("#canvas").scroll_into_view_if_needed()
        box = self.page.locator("#canvas").bounding_box()
        places = [
            (box["x"] + x / 256 * box["width"], box["y"] + y / 256 * box["height"])
            for x, y in points
        ]
        self.page.mouse.move(*places[0])
        self.page.mouse.down()
        for place in places[1:]:
            self.page.mouse.move(*place)
        self.page.mouse.up()
        return self

    def slots(self) -> dict[int, int]:
        """Slot → pixels that the canvas shows in its colour; 0 for those without paint."""
        return self._slots(
            "[...new Set(slots)].map((s) => [s, slots.filter((x) => x === s).length])"
        )

    def slot_at(self, x: int, y: int) -> int:
        """Slot of the colour that the canvas shows at a pixel."""
        return self._slots(f"[[0, slots[{y} * 256 + {x}]]]")[0]

    def _slots(self, wanted: str) -> dict[int, int]:
        script = """async () => {
          const { PALETTE } = await import("/page/masks.js");
          const copy = new OffscreenCanvas(256, 256).getContext("2d", { willReadFrequently: true });
          copy.drawImage(document.getElementById("canvas"), 0, 0);
          const { data } = copy.getImageData(0, 0, 256, 256);
          const hex = (i) => "#" + [...data.slice(i, i + 3)].map(
            (v) => v.toString(16).padStart(2, "0")).join("");
          const slots = Array.from({ length: 256 * 256 }, (_, i) =>
            data[4 * i + 3] ? PALETTE.indexOf(hex(4 * i)) : 0);
          return WANTED;
        }"""
        return dict(self.page.evaluate(script.replace("WANTED", wanted)))

    def draw(self) -> Any:
        """Draw, and wait until it is done; returns the request's body."""
        self.page.click("#draw")
        self.page.wait_for_selector("#draw:not([hidden])")
        return self.requests[-1]

    def state(self, expression: str) -> Any:
        """A value of the session, as ``state.prompt``."""
        opened = 'const { state } = await import("/page/main.js");'
        return self.page.evaluate(f"async () => {{ {opened} return {expression}; }}")
