"""The studio's page over a service whose pictures a test decides."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Iterable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from web_server import Server

import pipelines.studio
from pipelines.models.metadata import ModelId
from pipelines.models.painting import STRENGTH
from pipelines.serving.engine import ExpertInfo, ModelInfo, StageInfo
from pipelines.serving.errors import Refused
from pipelines.serving.events import Attention, Event, Finished, Words
from pipelines.spec.sampling import Sampling
from pipelines.spec.serving import Limits

ROOT = Path(pipelines.studio.__file__).parent
TYPES = {
    ".html": "text/html",
    ".js": "text/javascript",
    ".css": "text/css",
    ".svg": "image/svg+xml",
}
POLICY = "default-src 'self'; img-src 'self' data: blob:"

Draw = Callable[[dict[str, Any], int], Iterable[Event]]


def encode(pixels: np.ndarray, **texts: str) -> str:
    """Pixels as a PNG in base64, with text chunks."""
    info = PngInfo()
    for key, value in texts.items():
        info.add_itxt(key, value)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", pnginfo=info)
    return base64.b64encode(file.getvalue()).decode()


def model(name: str, *aliases: str, version: int = 1, manifest: str | None = None) -> ModelInfo:
    """A model of one stage of two experts."""
    experts = [
        ExpertInfo(name="E1_1", sigma=(0.5, 1e9)),
        ExpertInfo(name="E1_0", sigma=(0.0, 0.5)),
    ]
    sampling = Sampling(guidance=2.0, steps=12, sigma_min=0.02).model_dump(mode="json")
    return ModelInfo(
        name=name,
        id=ModelId(name="tiny", manifest=manifest or name, version=version),
        aliases=list(aliases),
        stages=[StageInfo(name="base", resolution=16, experts=experts, sampling=sampling)],
        loaded=True,
    )


def noise(request: dict[str, Any], number: int, models: list[ModelInfo]) -> Finished:
    """A picture that depends on seed, number and model, and says in a text chunk what it is."""
    drawn_by = next((m for m in models if m.name == request.get("model")), models[0])
    entropy = [request["seed"], number, drawn_by.id.version or 0]
    pixels = np.random.default_rng(entropy).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    return Finished(
        picture=number,
        png=encode(pixels, ediffi=json.dumps({"prompt": request["prompt"], "seed": entropy})),
        model=drawn_by.id,
        prompt=request["prompt"],
        seed=request["seed"],
        number=number,
        seconds=0.25,
        waited=0.0,
    )


def attention(prompt: str, maps: list[np.ndarray], number: int = 0) -> Attention:
    """Attention to the words of a prompt: an array [words, h, w] of grey values for each range."""
    words, spans, start = prompt.split(), [], 0
    for word in words:
        start = prompt.index(word, start)
        spans.append((start, start + len(word)))
        start += len(word)
    edges = np.geomspace(80.0, 0.02, len(maps) + 1).round(2)
    ranges = [
        Words(
            stage="base",
            sigma=(edges[i], edges[i + 1]),
            experts=["E1_1" if i == 0 else "E1_0"],
            maps=[encode(m) for m in each.astype(np.uint8)],
            shares=[float(m.sum() / each.sum()) for m in each],
        )
        for i, each in enumerate(maps)
    ]
    return Attention(picture=number, words=words, spans=spans, ranges=ranges)


class Service(Server):
    """Serves the page, and answers as the service does; keeps the requests that it was sent."""

    def __init__(self, models: list[ModelInfo], draw: Draw | None = None) -> None:
        self.models = models
        self.draw = draw or (lambda request, number: [noise(request, number, models)])
        self.requests: list[dict[str, Any]] = []
        super().__init__(Handler)


class Handler(BaseHTTPRequestHandler):
    server: Service

    def do_GET(self) -> None:
        if self.path == "/v1/ediffi/model":
            models = [m.model_dump(mode="json") for m in self.server.models]
            known = {
                "models": models,
                "limits": Limits().model_dump(mode="json"),
                "defaults": {"n": 1, "strength": STRENGTH, "previews": True},
            }
            return self.answer(json.dumps(known).encode(), "application/json")
        file = ROOT / "page" / ("index.html" if self.path == "/" else self.path.split("/")[-1])
        return self.answer(file.read_bytes(), TYPES[file.suffix])

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append(request)
        lines = []
        try:
            for event in (e for i in range(request["n"]) for e in self.server.draw(request, i)):
                lines.append(f"event: {event.type}\ndata: {event.model_dump_json()}\n\n")
            lines.append("event: done\ndata: {}\n\n")
        except Refused as error:
            said = {"error": {"message": error.message, "code": error.code}}
            lines.append(f"event: error\ndata: {json.dumps(said)}\n\n")
        self.answer("".join(lines).encode(), "text/event-stream")

    def answer(self, body: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Security-Policy", POLICY)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass
