"""A running service under load: callers, cancellations, kills, a change of champion, bad requests.

For the benchmark and for the soak test.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
import random
import re
import shutil
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import kit
import numpy as np
import yaml
from PIL import Image

from pipelines.models import champions
from pipelines.models.champions import Entry
from pipelines.models.text_to_image import TextToImage
from pipelines.store.artifacts import Store

NEXT = "fedcba9876543210"
"""Fingerprint of the ensemble that becomes champion under load."""

ALONE = (sys.executable, Path(__file__))
"""Serves without Ray: this file, run as a program."""

Body = dict[str, Any]


def own_store(source: Path, to: Path, model: str) -> Store:
    """A store with another's ensemble as champion, and with one of more steps as candidate.

    Weights and encoders are links into ``source``, which stays as it is.
    """
    for node in (source / "nodes").iterdir():
        there = to / "nodes" / node.name
        if node.name == "promote":
            shutil.copytree(node, there)
        else:
            there.parent.mkdir(parents=True, exist_ok=True)
            there.symlink_to(node.absolute())
    shutil.copytree(source / "registry", to / "registry")
    store = Store.at(str(to))
    now = champions.read(store, model).find(model, "candidate")
    champions.promote(store, model, now.fingerprint, "by hand")
    manifest = store.read_json(f"{now.folder}/{champions.MANIFEST}")
    for stage in manifest["stages"]:
        stage["sampling"]["steps"] = stage["sampling"].get("steps", 25) + 2
    folder = now.folder.replace(now.fingerprint, NEXT)
    store.write(f"{folder}/{champions.MANIFEST}", json.dumps(manifest).encode())
    entry = Entry(fingerprint=NEXT, folder=folder, why="finished", by="run next-1")
    champions.add_candidate(store, model, entry)
    return store


def champion_of(store: Store, model: str) -> str:
    """Fingerprint of the champion."""
    return champions.read(store, model).find(model, "champion").fingerprint


@dataclass
class Service:
    """A running service, and the ensembles that it may draw with."""

    model: str
    store: Store
    running: kit.Driver
    loaded: dict[str, TextToImage] = field(default_factory=dict)

    @property
    def url(self) -> str:
        found = re.search(r"is served at (\S+)", self.running.text())
        assert found, self.running.text()
        return found[1]

    def ensemble(self, fingerprint: str) -> TextToImage:
        """One that drew a picture, loaded in this process."""
        if fingerprint not in self.loaded:
            file = f"nodes/promote/{self.model}-{fingerprint}/{champions.MANIFEST}"
            self.loaded[fingerprint] = TextToImage.load(self.store.local(file), "all",
                                                        self.store.root)  # fmt: skip
        return self.loaded[fingerprint]

    def painters(self) -> list[int]:
        """Processes that draw, if the service is Ray's."""
        below = self.running.look()
        return [pid for pid in below if "ServeReplica:ediffi:Painter" in kit.title(pid)]

    def promote_next(self) -> None:
        """Make the candidate champion."""
        champions.promote(self.store, self.model, NEXT, "by hand")

    def resident_bytes(self) -> int:
        """Memory of all processes that draw or answer, shared pages counted in each."""
        pids = [p for p in self.running.look() if "ServeReplica" in kit.title(p)]
        pages = (
            int(Path(f"/proc/{p}/statm").read_text().split()[1]) for p in pids or [self.running.pid]
        )
        return 4096 * sum(pages)


@contextlib.contextmanager
def service(
    model: str, store: Store, folder: Path, *, on_ray: bool, **settings: Any
) -> Iterator[Service]:
    """Serve the champion until the end of the block.

    Args:
        settings: of :class:`~pipelines.spec.serving.Serving`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "serve.yaml"
    config.write_text(yaml.safe_dump(settings))
    start = (kit.EDIFFI, "serve") if on_ray else ALONE
    program = (*start, "--config", config, "--port", "0")
    with kit.driver(f"{model}@champion", store.root, folder / "log", program) as running:
        running.until(lambda: "is served at" in running.text(), "requests")
        yield Service(model, store, running)
        running.process.terminate()
        assert running.finish() == 0, running.text()


def client(service: Service, callers: int = 8) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=callers + 4)
    return httpx.AsyncClient(base_url=service.url, timeout=kit.PATIENCE_S, limits=limits)


def bodies(prompts: Sequence[str], count: int, first: int = 0) -> list[Body]:
    """Requests for a picture each, all different."""
    return [{"prompt": prompts[i % len(prompts)], "seed": first + i} for i in range(count)]


# -- one request ---------------------------------------------------------------------------------


async def ask(http: httpx.AsyncClient, body: Body) -> httpx.Response:
    """The answer to a request that is sent again after ``Retry-After`` while it is put off."""
    while (answer := await http.post("/v1/ediffi/sample", json=body)).status_code in (429, 503):
        assert "Retry-After" in answer.headers, (answer.status_code, answer.text)
        await asyncio.sleep(float(answer.headers["Retry-After"]))
    return answer


async def events(http: httpx.AsyncClient, body: Body) -> AsyncIterator[tuple[str, Any]]:
    """The server-sent events of a request, as (type, data)."""
    whole = {**body, "stream": True}
    async with http.stream("POST", "/v1/ediffi/sample", json=whole) as answer:
        assert answer.status_code == 200, await answer.aread()
        kind = ""
        async for line in answer.aiter_lines():
            if line.startswith("event: "):
                kind = line.removeprefix("event: ")
            elif line.startswith("data: "):
                yield kind, json.loads(line.removeprefix("data: "))


async def times_of(http: httpx.AsyncClient, body: Body) -> tuple[float, float]:
    """Seconds from a request to its first preview, and to its picture."""
    start, preview = time.perf_counter(), None
    async for kind, data in events(http, {**body, "previews": True}):
        assert kind != "error", data
        if kind == "step" and data["preview"] and preview is None:
            preview = time.perf_counter() - start
        if kind == "finished":
            assert preview is not None, "no preview came before the picture"
            return preview, time.perf_counter() - start
    raise AssertionError("the stream ended without a picture")


def pixels_of(answer: httpx.Response) -> np.ndarray[Any, Any]:
    """The one picture of an answer, uint8 [H, W, 3]."""
    [picture] = answer.json()["data"]
    with Image.open(io.BytesIO(base64.b64decode(picture["b64_png"]))) as image:
        return np.asarray(image.convert("RGB"))


# -- many requests -------------------------------------------------------------------------------


@dataclass
class Outcome:
    """What came of many requests."""

    seconds: float = 0.0
    each: list[float] = field(default_factory=list)
    """Seconds from a request to its answer, of those that were answered."""

    answers: dict[int, httpx.Response] = field(default_factory=dict)
    cancelled: set[int] = field(default_factory=set)

    def percentile(self, q: float) -> float:
        return float(np.percentile(self.each, q))

    def lost(self, asked: Sequence[Body]) -> list[str]:
        """Of each request that was not cancelled and got no picture, why."""
        found = []
        for i in range(len(asked)):
            answer = self.answers.get(i)
            if i not in self.cancelled and (answer is None or answer.status_code != 200):
                found.append(f"{i}: {answer.text if answer is not None else 'no answer'}")
        return found

    def drawn_by(self) -> Counter[str]:
        """Fingerprint of an ensemble → pictures."""
        return Counter(a.json()["model"]["fingerprint"] for a in self.answers.values())


async def load(
    service: Service,
    asked: Sequence[Body],
    *,
    callers: int,
    cancelled: Sequence[int] = (),
    at: dict[int, Callable[[], None]] | None = None,
    seed: int = 0,
) -> Outcome:
    """Send requests from callers of which each waits for its picture before it asks again.

    Args:
        cancelled: numbers of the requests whose callers go away, after a random part of a second
            or amid the events of the drawing.
        at: number of a request → what happens when it is sent.
    """
    outcome, rng, numbers = Outcome(), random.Random(seed), iter(range(len(asked)))
    patience = {i: rng.uniform(0, 0.5) for i in cancelled}

    async def caller(http: httpx.AsyncClient) -> None:
        for i in numbers:
            if at and i in at:
                await asyncio.to_thread(at[i])
            start = time.perf_counter()
            if i in patience:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(patience[i]):
                        async for _ in events(http, {**asked[i], "previews": True}):
                            pass
                outcome.cancelled.add(i)
                continue
            outcome.answers[i] = await ask(http, asked[i])
            outcome.each.append(time.perf_counter() - start)

    start = time.perf_counter()
    async with client(service, callers) as http, asyncio.TaskGroup() as group:
        for _ in range(callers):
            group.create_task(caller(http))
    outcome.seconds = time.perf_counter() - start
    return outcome


def check_bits(service: Service, asked: Sequence[Body], outcome: Outcome, count: int) -> int:
    """Compare pictures with those that `TextToImage.sample` draws alone; → how many.

    They are spread over all requests, so that they come from before and after all that happened.
    """
    answered = sorted(outcome.answers)
    chosen = answered[:: max(1, len(answered) // count)][:count]
    for i in chosen:
        answer, body = outcome.answers[i], asked[i]
        model = service.ensemble(answer.json()["model"]["fingerprint"])
        [expected] = model.sample([body["prompt"]], seed=[body["seed"]])
        np.testing.assert_array_equal(pixels_of(answer), expected, str(body))
    return len(chosen)


def kill_painter(service: Service) -> None:
    """SIGKILL to a process that draws, once one is there."""
    while not (found := service.painters()):
        time.sleep(0.1)
    kit.kill(found[0])


# -- bad requests --------------------------------------------------------------------------------


def bad_requests(prompt: str, count: int) -> list[tuple[str, bytes, str]]:
    """Requests that must be refused: (family, body, content type)."""

    def png(size: tuple[int, int]) -> bytes:
        out = io.BytesIO()
        Image.new("1", size).save(out, "PNG")
        return out.getvalue()

    bomb, whole = png((20_000, 20_000)), png((64, 64))
    text = lambda data: base64.b64encode(data).decode()  # noqa: E731
    good = {"prompt": prompt, "seed": 1}
    families: dict[str, Callable[[int], Any]] = {
        "long prompt": lambda i: {**good, "prompt": "a" * (2000 + i)},
        "too many pictures": lambda i: {**good, "n": 1000 + i},
        "wrong type": lambda i: {**good, "seed": [i]},
        "unknown key": lambda i: {**good, f"key{i}": i},
        "unknown phrase": lambda i: {**good, "paint": [{"phrase": f"x{i}", "where": [0, 0, 1, 1]}]},
        "box outside": lambda i: {**good, "paint": [{"phrase": prompt, "where": [0, 0, 2 + i, 1]}]},
        "bomb": lambda i: {**good, "style": [{"image": text(bomb + bytes(i))}]},
        "truncated": lambda i: {**good, "variation": text(whole[: 20 + i])},
        "a path": lambda i: {**good, "variation": f"/etc/passwd{i}"},
        "many steps": lambda i: {**good, "sampling": {"steps": 2**62 - i}},
        "unknown model": lambda i: {**good, "model": f"model-{i}"},
        "unknown stage": lambda i: {**good, "stage": f"sr{i}"},
        "empty": lambda i: {"prompt": " " * i},
        "large": lambda i: {**good, "variation": "A" * (40_000_000 + i)},
        "no JSON": lambda i: b"{" * (i + 1),
        "deep": lambda i: b'{"prompt": ' + b"[" * (100_000 + i),
        "not finite": lambda i: b'{"prompt": "a", "sampling": {"guidance": NaN}, "seed": %d}' % i,
        "not UTF-8": lambda i: b'{"prompt": "\xff%d"}' % i,
    }
    found = []
    for i in range(count):
        family = list(families)[i % len(families)]
        content = families[family](i // len(families))
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        found.append((family, data, "application/json"))
    return found


async def send_bad(service: Service, requests: Sequence[tuple[str, bytes, str]]) -> Counter[int]:
    """Send bad requests one after another; → status → how often. Each must be a clean 4xx.

    Status 0 is a connection that was closed while a body beyond the limit was still being sent.
    """
    statuses: Counter[int] = Counter()
    async with client(service) as http:
        for family, data, kind in requests:
            headers = {"Content-Type": kind}
            try:
                answer = await http.post("/v1/ediffi/sample", content=data, headers=headers)
            except httpx.NetworkError:
                assert family == "large", family
                statuses[0] += 1
                continue
            assert 400 <= answer.status_code < 500, (family, answer.status_code, answer.text)
            assert {"message", "type", "param", "code"} == set(answer.json()["error"]), family
            statuses[answer.status_code] += 1
    return statuses


def serve_alone() -> None:
    """``--config FILE --port N MODEL --storage PATH``: the service in one process, without Ray."""
    import argparse

    from pipelines.executor.stopping import Stop
    from pipelines.serving import access, alone
    from pipelines.serving.app import create_app
    from pipelines.spec.serving import Serving

    parser = argparse.ArgumentParser()
    parser.add_argument("--config", type=Path)
    parser.add_argument("--port", type=int)
    parser.add_argument("model")
    parser.add_argument("--storage")
    given = parser.parse_args()
    settings = yaml.safe_load(given.config.read_text()) or {}
    serving = Serving(model=given.model, storage=given.storage, port=given.port, **settings)

    with access.listening(serving.host, serving.port) as opened, Stop() as stop:
        address = access.address_of(serving.host, opened.getsockname()[1])

        def ready() -> None:
            print(f"{serving.model} is served at {address}", flush=True)

        alone.run(serving, create_app, opened, ready, lambda: stop.signal is not None)


if __name__ == "__main__":
    serve_alone()
