"""Engines over the kit's tiny ensemble, or over a model whose drawing a test controls."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import ensemble_kit
import numpy as np
from PIL import Image

from ediffi_core.checkpoint import read, to_bytes
from pipelines.models import champions
from pipelines.models.champions import Entry
from pipelines.models.rows import Options, Row
from pipelines.models.watch import Abandoned, StepDone
from pipelines.serving.engine import Order
from pipelines.serving.events import Finished
from pipelines.serving.local import LocalEngine
from pipelines.spec.serving import Serving
from pipelines.store.artifacts import Store

SIDE = ensemble_kit.SIDES["sr16"]


def serving(store: Store, **changes: Any) -> Serving:
    """Settings for the champion of a store's ``tiny``."""
    given = {"model": "tiny@champion", "storage": store.root, "refresh_s": 0.05, **changes}
    return Serving.model_validate(given)


def promote(store: Store, fingerprint: str = ensemble_kit.FINGERPRINT) -> None:
    """Make an ensemble the champion of ``tiny``."""
    champions.promote(store, "tiny", fingerprint, "tested")


def newer(store: Store, fingerprint: str, factor: float) -> Path:
    """Add a candidate, ``tiny`` with one expert's weights multiplied; returns their file.

    Args:
        fingerprint: 16 hexadecimal digits.
    """
    manifest = store.read_json(f"{ensemble_kit.FOLDER}/ensemble.json")
    slot = manifest["weights"]["base/E1_1"]
    weights, card = read(store.local(slot["path"]))
    changed = {name: factor * value for name, value in weights.items()}
    data, slot["sha256"] = to_bytes(changed, card)
    slot["path"] = f"nodes/train/base/E1_1-{fingerprint}.safetensors"
    store.write(slot["path"], data)
    folder = f"nodes/promote/tiny-{fingerprint}"
    store.write_json(f"{folder}/ensemble.json", manifest)
    entry = Entry(fingerprint=fingerprint, folder=folder, why="newer", by="promote")
    champions.add_candidate(store, "tiny", entry)
    return store.local(slot["path"])


def order(*prompts: str, seed: int = 0, **more: Any) -> Order:
    """An order of one picture a prompt, with seeds that count up."""
    options = more.pop("options", Options())
    rows = [
        Row(prompt=prompt, seed=seed + i, paint=[], options=options)
        for i, prompt in enumerate(prompts)
    ]
    return Order(rows=rows, **more)


async def events(engine: LocalEngine, wanted: Order) -> list[Any]:
    """All events of an order."""
    async with contextlib.aclosing(engine.draw(wanted)) as found:
        return [event async for event in found]


async def pictures(engine: LocalEngine, wanted: Order) -> list[np.ndarray[Any, Any]]:
    """The pictures of an order, in its order, uint8 [R, R, 3]."""
    done = [event for event in await events(engine, wanted) if isinstance(event, Finished)]
    return [pixels(event.png) for event in sorted(done, key=lambda event: event.picture)]


def pixels(png: str) -> np.ndarray[Any, Any]:
    """A picture from base64, uint8 [R, R, 3]."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(png))))


@contextlib.asynccontextmanager
async def running(settings: Serving, **more: Any) -> AsyncIterator[LocalEngine]:
    """An engine that has loaded its model, and ends with the block."""
    engine = LocalEngine(settings, **more)
    try:
        await engine.load()
        yield engine
    finally:
        await engine.close(0)


def counts(engine: LocalEngine) -> dict[str, float]:
    """Pictures by outcome, of all models."""
    found: dict[str, float] = {}
    for metric in engine.meters.registry.collect():
        if metric.name == "ediffi_serve_pictures":
            for sample in metric.samples:
                if sample.name.endswith("_total"):
                    name = sample.labels["outcome"]
                    found[name] = found.get(name, 0) + sample.value
    return found


class Easel:
    """A model that draws plain pictures, a step each time the test allows one."""

    def __init__(self, steps: int = 2) -> None:
        self.steps, self.stages = steps, []
        self.calls: list[list[str]] = []
        """The prompts of each batch, in order."""

        self.left: list[str] = []
        """Prompts that were no longer wanted in some step."""

        self.allowed = threading.Semaphore(0)
        self.begun = threading.Semaphore(0)
        """Released when a batch begins."""

        self.fails: Callable[[list[str]], Exception | None] = lambda prompts: None

    def __call__(self, place: Path, residency: str, storage: str | None) -> Any:
        return self

    def free(self) -> None:
        """Allow all steps from now on."""
        self.allowed.release(100_000)

    def sample(self, prompts: list[str], *, seed: Any, watch: Any = None, **options: Any) -> Any:
        if watch is None:  # the first picture after loading
            return np.zeros((1, SIDE, SIDE, 3), np.uint8)
        if attention := options.get("attention"):
            attention.start(prompts, {})
        self.calls.append(list(prompts))
        self.begun.release()
        for step in range(self.steps):
            self.allowed.acquire()
            wanted = watch.wanted()
            self.left += [p for p, is_wanted in zip(prompts, wanted) if not is_wanted]
            if not any(wanted):
                raise Abandoned
            if error := self.fails(list(prompts)):
                raise error
            watch.step(
                StepDone(
                    stage="base",
                    step=step,
                    steps=self.steps,
                    sigma=80.0 / (step + 1),
                    expert="E0_0",
                    seconds=0.01,
                    pictures=lambda: np.zeros((len(prompts), SIDE, SIDE, 3), np.uint8),
                )
            )
        return np.stack([np.full((SIDE, SIDE, 3), each % 256, np.uint8) for each in seed])


async def begun(easel: Easel) -> None:
    """Wait until the next batch begins."""
    await asyncio.to_thread(easel.begun.acquire)


async def until(reached: Callable[[], bool]) -> None:
    """Wait until a condition holds; the test's own time limit ends a wait in vain."""
    while not reached():
        await asyncio.sleep(0.005)
