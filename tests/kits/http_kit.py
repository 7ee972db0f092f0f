"""The HTTP service over the tiny ensemble: an engine that draws at once, and a real server."""

import asyncio
import base64
import contextlib
import io
import threading
import time
from pathlib import Path

import serving_kit
import uvicorn
from PIL import Image

from pipelines.lineage.lookup import identify
from pipelines.models import rows
from pipelines.models.painting import encode_png
from pipelines.models.text_to_image import TextToImage
from pipelines.serving.app import create_app
from pipelines.serving.engine import ExpertInfo, ModelInfo, StageInfo, Status
from pipelines.serving.events import Finished, Queued, Started, Step
from pipelines.serving.local import LocalEngine
from pipelines.spec.serving import Serving

PATIENCE_S = 120


class PlainEngine:
    """Draws every picture of an order alone, in a thread; no queue.

    ``hold`` makes orders wait for :meth:`release`, so that a test can end them before.
    """

    def __init__(self, store, *, hold=False):
        import ensemble_kit

        manifest = Path(store.root) / ensemble_kit.FOLDER / "ensemble.json"
        self.model, self.id = TextToImage.load(manifest), identify(manifest, store.root)
        self.ready, self.error, self.hold = True, None, hold
        self.orders, self.ended = [], threading.Semaphore(0)
        self.lock = threading.Lock()

    async def status(self):
        stages = [
            StageInfo(
                name=stage.name,
                resolution=stage.resolution,
                experts=[ExpertInfo(name="E0_0", sigma=(0.0, 1e9))],
                sampling=self.model.sampling[stage.name].settings(),
            )
            for stage in self.model.stages
        ]
        info = ModelInfo(name=self.id.name, id=self.id, aliases=[], stages=stages, loaded=True)
        return Status(ready=self.ready, waiting=0, drawing=0, models=[info] if self.ready else [])

    async def draw(self, order):
        self.orders.append(order)
        try:
            if self.error:
                raise self.error
            yield Queued(ahead=0)
            while self.hold:
                await asyncio.sleep(0.01)
            for picture, row in enumerate(order.rows):
                yield Started(picture=picture, model=self.id, batch=1)
                pixels = await asyncio.to_thread(self._pixels, row, order.stage)
                png = encode_png(pixels)
                for stage in [s.name for s in self.model.stages]:
                    for step in range(4):
                        yield Step(
                            picture=picture,
                            stage=stage,
                            step=step,
                            steps=4,
                            sigma=1.0,
                            expert="E0_0",
                            seconds=0.1,
                            preview=png if order.previews else None,
                        )
                    if stage == order.stage:
                        break
                yield Finished(
                    picture=picture,
                    png=png,
                    model=self.id,
                    prompt=row.prompt,
                    seed=row.seed,
                    number=row.number,
                    seconds=0.5,
                    waited=0.0,
                )
        finally:
            self.ended.release()

    def _pixels(self, row, stage):
        with self.lock:
            return rows.draw(self.model, [row], stage)[0]


@contextlib.contextmanager
def running(engine, *, token=None, **settings):
    """A real server on a free port of loopback; → its URL."""
    serving = settings.pop("serving", None) or Serving(model="tiny", **settings)
    config = uvicorn.Config(
        create_app(engine, serving, token=token), host="127.0.0.1", port=0, log_config=None
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + PATIENCE_S
    while not server.started:
        assert thread.is_alive() and time.monotonic() < deadline
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(PATIENCE_S)


@contextlib.contextmanager
def running_local(store, **settings):
    """The same with a :class:`LocalEngine` of a store's champion; → the engine and the URL."""
    serving = serving_kit.serving(store, **settings)
    engine = LocalEngine(serving)
    asyncio.run(engine.load())
    try:
        with running(engine, serving=serving) as url:
            yield engine, url
    finally:
        asyncio.run(engine.close())


def pixels_of(b64_png):
    """uint8 [H, W, 3] of a PNG in base64."""
    import numpy as np

    return np.asarray(Image.open(io.BytesIO(base64.b64decode(b64_png))).convert("RGB"))


def upload(image):
    """A picture in base64."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def wait_for(condition):
    """Wait until something holds that another thread brings about."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
