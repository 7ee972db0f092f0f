"""``ediffi serve`` on a Ray of its own, with two replicas of the kit's tiny ensemble.

One test, in parts: a start takes as long as all that is asked of it.
"""

import asyncio
import base64
import io
import json
import re
import signal

import ensemble_kit
import httpx
import kit
import numpy as np
import pytest
import yaml
from PIL import Image

from pipelines.models import champions
from pipelines.models.champions import Entry
from pipelines.models.text_to_image import TextToImage

NEXT = "fedcba9876543210"
STEPS = 60
"""Of a request that is to last until something happens to it."""

CONFIG = {
    "queue": {"pictures": 16, "deadline_s": 120},
    "batching": {"pictures": 4, "wait_ms": 5},
    "replicas": {"min": 2, "max": 2},
    "refresh_s": 0.5,
}


class Service:
    """A running service, and the ensembles that it may draw with."""

    def __init__(self, store, running):
        self.store, self.running = store, running
        self.url = re.search(r"is served at (\S+)", running.text())[1]
        self.models = {}

    async def gather(self, *bodies):
        """The answers to requests that are sent at once."""
        async with httpx.AsyncClient(base_url=self.url, timeout=kit.PATIENCE_S) as client:
            return await asyncio.gather(
                *(client.post("/v1/ediffi/sample", json=body) for body in bodies)
            )

    def ask(self, *bodies):
        return asyncio.run(self.gather(*bodies))

    def expected(self, fingerprint, **given):
        """What `TextToImage.sample` draws, uint8 [R, R, 3]."""
        if fingerprint not in self.models:
            folder = ensemble_kit.FOLDER.replace(ensemble_kit.FINGERPRINT, fingerprint)
            file = self.store.local(f"{folder}/ensemble.json")
            self.models[fingerprint] = TextToImage.load(file)
        return self.models[fingerprint].sample(
            [given["prompt"]], seed=given["seed"], sampling=given.get("sampling", {})
        )[0]

    def check(self, body, answer):
        """One picture, bit-equal to the one of the ensemble that the answer names."""
        assert answer.status_code == 200, answer.text
        content = answer.json()
        [picture] = content["data"]
        with Image.open(io.BytesIO(base64.b64decode(picture["b64_png"]))) as image:
            pixels = np.asarray(image.convert("RGB"))
        fingerprint = content["model"]["fingerprint"]
        np.testing.assert_array_equal(pixels, self.expected(fingerprint, **body))
        return fingerprint

    def painters(self):
        return [
            pid
            for pid in kit.descendants(self.running.pid)
            if "ServeReplica:ediffi:Painter" in kit.title(pid)
        ]


def body(seed, **more):
    return {"prompt": ensemble_kit.CAPTIONS[seed % 3], "seed": seed, **more}


def lasting(seed):
    return body(seed, sampling={"base.steps": STEPS})


@pytest.fixture
def store(tmp_path):
    """Version 1 of the ensemble as champion; version 2, with more steps, is a candidate."""
    store = ensemble_kit.make(tmp_path / "store")
    champions.promote(store, ensemble_kit.NAME, ensemble_kit.FINGERPRINT, "by hand")
    manifest = store.read_json(f"{ensemble_kit.FOLDER}/ensemble.json")
    for stage in manifest["stages"]:
        stage["sampling"]["steps"] = 6
    folder = ensemble_kit.FOLDER.replace(ensemble_kit.FINGERPRINT, NEXT)
    store.write(f"{folder}/ensemble.json", json.dumps(manifest).encode())
    entry = Entry(fingerprint=NEXT, folder=folder, why="finished", by="run tiny-2")
    champions.add_candidate(store, ensemble_kit.NAME, entry)
    return store


@pytest.mark.slow
def test_a_service_loses_nothing(store, tmp_path):
    config = tmp_path / "serve.yaml"
    config.write_text(yaml.safe_dump(CONFIG))
    program = (kit.EDIFFI, "serve", "--config", config, "--port", "0")
    with kit.driver(
        f"{ensemble_kit.NAME}@champion", store.root, tmp_path / "log", program, OMP_NUM_THREADS="1"
    ) as running:
        running.until(lambda: "is served at" in running.text(), "requests")
        service = Service(store, running)
        pictures_are_those_of_sample(service)
        callers_share_the_replicas(service)
        a_full_queue_says_when_to_come_again(service)
        a_killed_replica_loses_no_request(service)
        a_new_champion_loses_no_request(service)
        metrics_are_exported(service)
        what_is_taken_on_is_finished_before_the_end(service)


def pictures_are_those_of_sample(service):
    asked = body(3)
    [answer] = service.ask(asked)
    assert service.check(asked, answer) == ensemble_kit.FINGERPRINT


def callers_share_the_replicas(service):
    asked = [body(seed) for seed in range(8)]
    for one, answer in zip(asked, service.ask(*asked)):
        service.check(one, answer)


def a_full_queue_says_when_to_come_again(service):
    """Of more than both replicas hold, some are refused; the others are drawn."""
    answers = service.ask(*(lasting(seed) for seed in range(70)))
    refused = [a for a in answers if a.status_code == 429]
    assert refused and all(int(a.headers["Retry-After"]) >= 1 for a in refused)
    assert {a.json()["error"]["code"] for a in refused} == {"rate_limit_exceeded"}
    assert {a.status_code for a in answers} == {200, 429}


def a_killed_replica_loses_no_request(service):
    asked = [lasting(seed) for seed in range(12)]

    async def kill_amid():
        drawing = asyncio.create_task(service.gather(*asked))
        await asyncio.sleep(0.3)
        kit.kill(service.painters()[0])
        assert not drawing.done()
        return await drawing

    for one, answer in zip(asked, asyncio.run(kill_amid())):
        service.check(one, answer)


def a_new_champion_loses_no_request(service):
    champions.promote(service.store, ensemble_kit.NAME, NEXT, "by hand")
    drew, seed = [], 0
    while not drew or drew[-1] != {NEXT}:
        asked = [body(seed + i) for i in range(6)]
        answers = service.ask(*asked)
        drew.append({service.check(one, answer) for one, answer in zip(asked, answers)})
        seed += len(asked)
        assert service.running.process.poll() is None
    assert set().union(*drew) <= {ensemble_kit.FINGERPRINT, NEXT}


def metrics_are_exported(service):
    address = re.search(r"Prometheus: (\S+)", service.running.text())[1]
    service.running.until(
        lambda: "ray_ediffi_serve_pictures_total{" in httpx.get(address).text, "metrics"
    )
    assert "ray_ediffi_serve_step_seconds_bucket" in httpx.get(address).text


def what_is_taken_on_is_finished_before_the_end(service):
    asked = [lasting(seed) for seed in range(6)]

    async def stop_amid():
        drawing = asyncio.create_task(service.gather(*asked))
        await asyncio.sleep(0.3)
        assert not drawing.done()
        service.running.process.send_signal(signal.SIGTERM)
        return await drawing

    for one, answer in zip(asked, asyncio.run(stop_amid())):
        service.check(one, answer)
    assert service.running.finish() == 0
    said = service.running.text()
    assert "Traceback" not in said and said.rstrip().endswith("finishes those it has")
