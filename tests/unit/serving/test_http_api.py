"""The service over HTTP: what callers get, what they are refused, and what the log has."""

import json
import logging
import socket

import ensemble_kit
import http_kit
import httpx
import numpy as np
import openai
import pytest
from PIL import Image

from pipelines.models import metadata
from pipelines.serving import service
from pipelines.serving.app import create_app
from pipelines.serving.errors import DrawingFailed, QueueFull
from pipelines.spec.serving import Serving

pytestmark = pytest.mark.slow

PROMPT = "a frog and a rocket, on a pink background"
TOKEN = "a long secret"


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return ensemble_kit.make(tmp_path_factory.mktemp("http_api"))


@pytest.fixture(scope="module")
def shared(store):
    return http_kit.PlainEngine(store)


@pytest.fixture
def engine(shared):
    shared.ready, shared.error, shared.hold, shared.orders = True, None, False, []
    return shared


def sample(url, **body):
    return httpx.post(f"{url}/v1/ediffi/sample", json=body, timeout=60)


def events_of(text):
    """Server-sent events as pairs of a name and data."""
    blocks = [block for block in text.split("\n\n") if block and not block.startswith(":")]
    lines = (block.split("\n") for block in blocks)
    return [(n.removeprefix("event: "), json.loads(d.removeprefix("data: "))) for n, d in lines]


# -- pictures ------------------------------------------------------------------------------------


def test_pictures_are_those_of_the_model(engine):
    with http_kit.running(engine) as url:
        got = sample(url, prompt=PROMPT, seeds=[3, 8], sampling={"steps": 3, "guidance": 1}).json()
    wanted = engine.model.sample([PROMPT] * 2, seed=[3, 8], sampling={"steps": 3, "guidance": 1})
    drawn = [http_kit.pixels_of(one["b64_png"]) for one in got["data"]]
    assert np.array_equal(drawn, wanted)
    assert [(one["seed"], one["number"]) for one in got["data"]] == [(3, 0), (8, 0)]


def test_n_pictures_have_one_seed_and_consecutive_numbers(engine):
    with http_kit.running(engine) as url:
        given = sample(url, prompt=PROMPT, n=3, seed=5).json()["data"]
        drawn = sample(url, prompt=PROMPT, n=2).json()["data"]
    assert [(one["seed"], one["number"]) for one in given] == [(5, 0), (5, 1), (5, 2)]
    assert [row.number for row in engine.orders[0].rows] == [0, 1, 2]
    assert drawn[0]["seed"] == drawn[1]["seed"]  # drawn at random, and told


def test_every_option_reaches_the_model(engine):
    picture = http_kit.upload(Image.new("RGB", (32, 32), "green"))
    mask = http_kit.upload(Image.linear_gradient("L").resize((32, 32)))
    body = {
        "prompt": PROMPT,
        "seed": 1,
        "negative": "a rocket",
        "paint": [{"phrase": "a frog", "where": [0, 0, 0.5, 1], "strength": 1.5}],
        "style": [{"image": picture, "weight": 2.0}, {"image": mask}],
        "image": picture,
        "mask": mask,
        "sigma": 3.0,
        "then": "a rocket",
        "switch": 0.5,
        "stage": "base",
    }
    with http_kit.running(engine) as url:
        answer = sample(url, **body)
    assert answer.status_code == 200, answer.text
    [order] = engine.orders
    [row] = order.rows
    options = row.options
    assert (row.negative, row.then, row.paint[0].strength) == ("a rocket", "a rocket", 1.5)
    assert (options.style, options.style_weights) == ((picture, mask), (2.0, 1.0))
    assert (options.image, options.mask, options.sigma) == (picture, mask, 3.0)
    assert (options.switch, order.stage) == (0.5, "base")
    assert http_kit.pixels_of(answer.json()["data"][0]["b64_png"]).shape == (8, 8, 3)


def test_a_picture_says_how_it_was_drawn(engine, tmp_path):
    import base64

    with http_kit.running(engine) as url:
        got = sample(url, prompt=PROMPT, seed=3, sampling={"steps": 3}).json()["data"][0]
    file = tmp_path / "served.png"
    file.write_bytes(base64.b64decode(got["b64_png"]))
    request = metadata.read(file).request
    assert (request.pictures[0].prompt, request.pictures[0].seed) == (PROMPT, 3)
    assert {name: one.steps for name, one in request.sampling.items()} == {"base": 3, "sr16": 4}


def test_a_stream_has_every_event_and_the_picture(engine):
    with http_kit.running(engine) as url:
        plain = sample(url, prompt=PROMPT, seed=3).json()["data"][0]["b64_png"]
        answer = sample(url, prompt=PROMPT, seed=3, stream=True, previews=True)
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = events_of(answer.text)
    assert [name for name, _ in events] == [
        *("queued", "started"),
        *["step"] * 8,
        *("finished", "done"),
    ]
    assert events[2][1]["preview"] and events[-2][1]["png"] == plain


def test_heartbeats_keep_a_stream_open(engine, monkeypatch):
    monkeypatch.setattr(service, "HEARTBEAT_S", 0.02)
    engine.hold = True
    with http_kit.running(engine) as url:
        body = {"prompt": PROMPT, "stream": True}
        with httpx.stream("POST", f"{url}/v1/ediffi/sample", json=body) as answer:
            lines = answer.iter_lines()
            assert next(line for line in lines if line.startswith(":"))
            engine.hold = False
            assert "event: done" in lines


# -- OpenAI's client -----------------------------------------------------------------------------


@pytest.fixture
def client(engine):
    with http_kit.running(engine, token=TOKEN) as url:
        yield openai.OpenAI(base_url=f"{url}/v1", api_key=TOKEN, max_retries=0)


def test_openais_client_lists_models_and_draws(client, engine):
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "ediffi"
    got = client.images.generate(
        model="tiny", prompt=PROMPT, n=2, size="16x16", extra_body={"seed": 3}
    )
    wanted = engine.model.sample([PROMPT], seed=[3])[0]
    assert len(got.data) == 2
    assert np.array_equal(http_kit.pixels_of(got.data[0].b64_json), wanted)
    small = client.images.generate(prompt=PROMPT, size="8x8")
    assert http_kit.pixels_of(small.data[0].b64_json).shape == (8, 8, 3)


def test_openais_client_streams_partial_images(client):
    events = list(client.images.generate(prompt=PROMPT, stream=True, partial_images=3))
    kinds = [event.type.removeprefix("image_generation.") for event in events]
    assert kinds == ["partial_image"] * 3 + ["completed"]
    assert [event.partial_image_index for event in events[:-1]] == [0, 1, 2]
    assert http_kit.pixels_of(events[-1].b64_json).shape == (16, 16, 3)
    [only] = client.images.generate(prompt=PROMPT, stream=True)
    assert only.type == "image_generation.completed"


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"response_format": "url"}, "response_format"),
        ({"output_format": "jpeg"}, "output_format"),
        ({"quality": "hd"}, "quality"),
        ({"style": "vivid"}, "style"),
        ({"background": "transparent"}, "background"),
        ({"size": "1024x1024"}, "size"),
        ({"output_compression": 50}, "output_compression"),
        ({"n": 2, "stream": True}, "n"),
    ],
)
def test_openais_client_is_told_what_is_not_offered(client, given, param):
    with pytest.raises(openai.BadRequestError) as caught:
        client.images.generate(prompt=PROMPT, **given)
    assert caught.value.param == param
    assert caught.value.type == "invalid_request_error"


def test_openais_client_knows_the_errors(client, engine):
    with pytest.raises(openai.NotFoundError, match="there are tiny"):
        client.images.generate(prompt=PROMPT, model="gpt-image-2")
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="another").models.list()
    engine.error = QueueFull("64 pictures wait", retry_after_s=7.2)
    with pytest.raises(openai.RateLimitError) as full:
        client.images.generate(prompt=PROMPT)
    assert full.value.response.headers["retry-after"] == "8"
    engine.error = DrawingFailed("values are not finite")
    with pytest.raises(openai.InternalServerError, match="not finite"):
        client.images.generate(prompt=PROMPT, stream=True)


# -- callers that go away ------------------------------------------------------------------------


@pytest.mark.parametrize("is_streamed", [True, False])
def test_a_caller_that_goes_away_ends_its_order(engine, is_streamed, caplog):
    engine.hold = True
    while engine.ended.acquire(blocking=False):
        pass
    caplog.set_level(logging.INFO, "ediffi.serving")
    with http_kit.running(engine) as url:
        address = httpx.URL(url)
        body = json.dumps({"prompt": PROMPT, "stream": is_streamed}).encode()
        with socket.create_connection((address.host, address.port)) as connection:
            connection.sendall(
                b"POST /v1/ediffi/sample HTTP/1.1\r\nHost: localhost\r\n"
                b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body
            )
            http_kit.wait_for(lambda: engine.orders)
        assert engine.ended.acquire(timeout=http_kit.PATIENCE_S)
        http_kit.wait_for(lambda: "status=499" in caplog.text)


# -- who may ask ---------------------------------------------------------------------------------


def test_a_token_is_wanted_for_all_but_the_probes(engine):
    with http_kit.running(engine, token=TOKEN) as url:
        for path in ("/healthz", "/readyz"):
            assert httpx.get(url + path).status_code == 200
        for path in ("/v1/models", "/v1/ediffi/model", "/nothing"):
            answer = httpx.get(url + path)
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
        for given in (f"Basic {TOKEN}", "Bearer", f"Bearer {TOKEN}x", "Bearer é".encode()):
            refused = httpx.get(f"{url}/v1/models", headers={"Authorization": given})
            assert refused.status_code == 401
        right = {"Authorization": f"bearer {TOKEN}"}
        assert httpx.get(f"{url}/v1/models", headers=right).status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "localhost"}, 200),
        ({"Host": "127.0.0.1:1"}, 200),
        ({"Host": "[::1]:8000"}, 200),
        ({"Host": "pictures.example"}, 200),
        ({"Host": "evil.example"}, 403),
        ({"Host": "localhost.evil.example"}, 403),
        ({"Host": "evil.example@localhost"}, 403),
        ({"Host": "localhost:8000", "Origin": "http://localhost:8000"}, 200),
        ({"Host": "localhost:8000", "Origin": "http://pictures.example"}, 200),
        ({"Host": "localhost:8000", "Origin": "http://localhost:9000"}, 403),
        ({"Host": "localhost", "Origin": "https://evil.example"}, 403),
        ({"Host": "localhost", "Origin": "null"}, 403),
    ],
)
def test_other_names_and_other_sites_are_refused(here, headers, status):
    assert httpx.get(f"{here}/v1/models", headers=headers).status_code == status


@pytest.fixture(scope="module")
def here(shared):
    with http_kit.running(shared, allowed_hosts=["pictures.example"]) as url:
        yield url


def test_other_machines_need_a_token(engine):
    with pytest.raises(ValueError, match="EDIFFI_TOKEN"):
        create_app(engine, Serving(model="tiny", host="0.0.0.0"), token=None)
    with pytest.raises(ValueError, match="empty"):
        create_app(engine, Serving(model="tiny"), token=" ")
    create_app(engine, Serving(model="tiny", host="0.0.0.0"), token=TOKEN)
    create_app(engine, Serving(model="tiny", host="::1"), token=None)


def test_every_answer_has_an_id_and_security_headers(here):
    for answer in (httpx.get(f"{here}/healthz"), httpx.get(f"{here}/nothing")):
        assert len(answer.headers["x-request-id"]) == 32
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["cache-control"] == "no-store"


def test_readiness_is_not_health(engine):
    engine.ready = False
    with http_kit.running(engine) as url:
        assert httpx.get(f"{url}/healthz").status_code == 200
        refused = httpx.get(f"{url}/readyz")
        assert refused.status_code == 503 and refused.headers["retry-after"]
        assert sample(url, prompt=PROMPT).json()["error"]["code"] == "not_ready"


# -- logs and defects ----------------------------------------------------------------------------


@pytest.mark.parametrize("log_prompts", [False, True])
def test_the_log_has_texts_only_if_asked(engine, caplog, log_prompts):
    caplog.set_level(logging.DEBUG)
    secret = "a frog named Xanthippe"
    with http_kit.running(engine, log_prompts=log_prompts) as url:
        answer = sample(url, prompt=secret)
        sample(url, prompt=secret, model="Xanthippe")
        httpx.get(f"{url}/Xanthippe")
        engine.error = RuntimeError(f"failed at {secret}")
        failed = sample(url, prompt=secret)
    ours = [r.getMessage() for r in caplog.records if r.name.startswith("ediffi")]
    assert ("Xanthippe" in "".join(ours)) == log_prompts
    [line] = [one for one in ours if answer.headers["x-request-id"] in one]
    assert "status=200 pictures=1" in line and "model=tiny" in line
    error = failed.json()["error"]
    assert failed.status_code == 500 and error["type"] == "server_error"
    assert failed.headers["x-request-id"] in error["message"]
    assert "Xanthippe" not in error["message"]


def test_an_error_amid_a_stream_is_an_event(engine, monkeypatch):
    def fail(*_):
        raise RuntimeError("a defect")

    monkeypatch.setattr(engine, "_pixels", fail)
    with http_kit.running(engine) as url:
        answer = sample(url, prompt=PROMPT, stream=True)
    name, data = events_of(answer.text)[-1]
    assert (answer.status_code, name) == (200, "error")
    assert data["error"]["code"] == "internal_error" and "a defect" not in answer.text


# -- filters and marks ---------------------------------------------------------------------------

MODULE = "filters_under_test"


@pytest.fixture
def filters(tmp_path, monkeypatch):
    """Entry points of a module of filters."""
    (tmp_path / f"{MODULE}.py").write_text(
        "def words(prompt):\n"
        "    return 'rockets are not drawn here' if 'rocket' in prompt else None\n"
        "def dark(pixels):\n"
        "    assert pixels.dtype == 'uint8' and pixels.ndim == 3\n"
        "    return 'too bright' if pixels.mean() >= 0 else None\n"
        "def broken(_):\n"
        "    raise KeyError('frog')\n"
        "def odd(_):\n"
        "    return False\n"
        "number = 3\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    return lambda *names: [f"{MODULE}:{name}" for name in names]


def test_filters_refuse_prompts_and_pictures(engine, filters):
    with http_kit.running(engine, filters={"prompt": filters("words")}) as url:
        refused = sample(url, prompt="a rocket")
        second = sample(url, prompt="a frog", then="a rocket", switch=0.5)
        assert sample(url, prompt="a frog").status_code == 200
    for answer in (refused, second):
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (400, "content_policy_violation")
        assert error["message"] == "rockets are not drawn here"
    with http_kit.running(engine, filters={"picture": filters("dark")}) as url:
        refused = sample(url, prompt="a frog")
        streamed = sample(url, prompt="a frog", stream=True, previews=True)
    assert (refused.status_code, refused.json()["error"]["message"]) == (400, "too bright")
    assert "too bright" in streamed.text
    assert '"png"' not in streamed.text and '"preview": "' not in streamed.text


@pytest.mark.parametrize("name", ["broken", "odd"])
@pytest.mark.parametrize("kind", ["prompt", "picture"])
def test_a_filter_that_fails_lets_nothing_pass(engine, filters, caplog, kind, name):
    with http_kit.running(engine, filters={kind: filters(name)}) as url:
        answer = sample(url, prompt="a frog")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "filter_failed")
    assert f"{MODULE}:{name}" in caplog.text


@pytest.mark.parametrize(
    "name", ["nowhere:f", "filters", ":f", f"{MODULE}:none", f"{MODULE}:number"]
)
def test_a_filter_that_is_not_there_is_named_at_the_start(engine, filters, name):
    settings = Serving(model="tiny", filters={"prompt": [name]})
    with pytest.raises(ValueError, match=name):
        create_app(engine, settings, token=None)


def test_marks_change_pictures_and_previews(engine):
    body = {"prompt": PROMPT, "seed": 3, "stream": True, "previews": True}
    with http_kit.running(engine) as url:
        plain = events_of(sample(url, **body).text)
    with http_kit.running(engine, marks={"visible": True}) as url:
        marked = events_of(sample(url, **body).text)
    assert plain[-2][1]["png"] != marked[-2][1]["png"]
    steps = [one["preview"] for name, one in marked if name == "step"]
    assert not {one["preview"] for name, one in plain if name == "step"} & {*steps}
