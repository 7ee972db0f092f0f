"""The HTTP service over the engine itself: batches of callers, a full queue, callers that go."""

import re
from concurrent.futures import ThreadPoolExecutor

import ensemble_kit
import http_kit
import httpx
import numpy as np
import pytest
import serving_kit

pytestmark = pytest.mark.slow

PROMPT = "a frog and a rocket, on a pink background"


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    store = ensemble_kit.make(tmp_path_factory.mktemp("http_engine"))
    serving_kit.promote(store)
    return store


def sample(url, **body):
    return httpx.post(f"{url}/v1/ediffi/sample", json={"prompt": PROMPT, **body}, timeout=120)


def test_callers_get_the_model_s_pictures_and_the_metrics_count_them(store):
    with (
        http_kit.running_local(store, batching={"pictures": 4, "wait_ms": 50}) as (engine, url),
        ThreadPoolExecutor(6) as callers,
    ):
        answers = list(callers.map(lambda seed: sample(url, seed=seed, n=2), range(6)))
        model = engine.models.get("served").model
        text = httpx.get(f"{url}/metrics").text
        listed = httpx.get(f"{url}/v1/ediffi/model").json()
    wanted = model.sample([PROMPT] * 12, seed=[s for s in range(6) for _ in "ab"], first=[0, 1] * 6)
    drawn = [http_kit.pixels_of(p["b64_png"]) for a in answers for p in a.json()["data"]]
    assert np.array_equal(drawn, wanted)
    finished = r'^ediffi_serve_pictures_total\{.*outcome="finished".*\} (\S+)'
    assert float(re.search(finished, text, re.M)[1]) == 12
    assert [stage["name"] for stage in listed["models"][0]["stages"]] == ["base", "sr16"]
    assert listed["ready"] and listed["limits"]["pictures"] == 8


def test_the_model_answers_to_its_names(store):
    with http_kit.running_local(store) as (_, url):
        for name in ("tiny", "tiny@champion", "champion"):
            assert sample(url, model=name).status_code == 200
        refused = sample(url, model="tiny@2")
    assert (refused.status_code, refused.json()["error"]["code"]) == (404, "model_not_found")


def test_a_full_queue_says_when_to_come_again(store):
    with http_kit.running_local(store, queue={"pictures": 2}) as (_, url):
        too_many = sample(url, n=3)
        with ThreadPoolExecutor(12) as callers:
            answers = list(callers.map(lambda _: sample(url, n=2), range(12)))
    assert too_many.status_code == 400
    statuses = {answer.status_code for answer in answers}
    assert statuses == {200, 429}
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert int(refused.headers["retry-after"]) >= 1
    assert refused.json()["error"]["type"] == "rate_limit_error"


def test_a_late_picture_is_given_up(store):
    with http_kit.running_local(store) as (engine, url):
        late = sample(url, deadline_s=0.001)
        http_kit.wait_for(lambda: not engine.queue.waiting)
        assert sample(url).status_code == 200
    assert (late.status_code, late.json()["error"]["code"]) == (504, "deadline_exceeded")


def test_callers_that_go_leave_the_queue_and_the_batch(store):
    with http_kit.running_local(store) as (engine, url):
        body = {"prompt": PROMPT, "n": 8, "stream": True, "sampling": {"steps": 200}}
        with httpx.stream("POST", f"{url}/v1/ediffi/sample", json=body, timeout=120) as answer:
            assert next(answer.iter_lines()) == "event: queued"
        http_kit.wait_for(lambda: not (engine.queue.waiting or engine.queue.drawing))
        text = engine.prometheus()
    cancelled = r'^ediffi_serve_pictures_total\{.*outcome="cancelled".*\} (\S+)'
    assert float(re.search(cancelled, text, re.M)[1]) == 8
