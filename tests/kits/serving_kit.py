"""Engines over the kit's tiny ensemble, or over a model whose drawing a test controls."""

from __future__ import annotations

import base64
import contextlib
import io
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import ensemble_kit
import numpy as np
from PIL import Image

from pipelines.models import champions
from pipelines.models.rows import Options, Row
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


def champion(store: Store) -> None:
    """Make ``tiny``'s candidate its champion."""
    champions.promote(store, "tiny", ensemble_kit.FINGERPRINT, "first")


def another(store: Store, fingerprint: str, change: Callable[[dict[str, Any]], None]) -> None:
    """Promote a copy of ``tiny`` whose manifest is changed."""
    manifest = store.read_json(f"{ensemble_kit.FOLDER}/ensemble.json")
    change(manifest)
    folder = f"nodes/promote/tiny-{fingerprint}"
    store.write(f"{folder}/ensemble.json", json.dumps(manifest).encode())
    known = champions.read(store, "tiny").candidate
    assert known is not None
    entry = replace(known, fingerprint=fingerprint, folder=folder)
    champions.add_candidate(store, "tiny", entry)
    champions.promote(store, "tiny", fingerprint, "newer")


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
