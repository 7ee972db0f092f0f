"""Bad requests of every kind: each gets a clean refusal, and none costs memory."""

import base64
import contextlib
import http.client
import io
import json
import re
import socket
import struct
import zlib
from pathlib import Path

import ensemble_kit
import http_kit
import httpx
import pytest
from PIL import Image

from pipelines.models.limits import MOST_VALUES
from pipelines.serving.guards import read_body
from pipelines.serving.limits import parse_json

pytestmark = pytest.mark.slow

PROMPT = "a frog and a rocket"
LIMITS = {"body_bytes": 1_000_000, "upload_pixels": 10_000, "prompt_chars": 100, "phrases": 3}
GROWTH_BYTES = 48 * 2**20
"""Growth of the process's peak that is no leak: arenas and caches. The bombs ask for gigabytes."""


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    return http_kit.PlainEngine(ensemble_kit.make(tmp_path_factory.mktemp("http_bad")))


@pytest.fixture(scope="module")
def url(engine):
    with http_kit.running(engine, limits=LIMITS) as url:
        yield url


def file_of(image, format="PNG", **options):
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def text_of(data):
    return base64.b64encode(data).decode()


def png_header(width, height):
    """A PNG that claims a size, with almost no data."""

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(b"\0" * 1000)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


GOOD = file_of(Image.effect_noise((64, 64), 50).convert("RGB"))
JPEG = file_of(Image.effect_noise((64, 64), 50), "JPEG")
LARGE = file_of(Image.new("L", (3000, 3000)))

BAD_PICTURES = {
    "path": "/etc/passwd",
    "file address": "file:///etc/passwd",
    "web address": "http://127.0.0.1/picture.png",
    "data address": "data:image/png;base64," + text_of(GOOD),
    "empty": "",
    "not base64": "ä" * 20,
    "base64 of text": text_of(b"no picture at all"),
    "unpadded": text_of(GOOD)[:-3],
    "garbage amid base64": text_of(GOOD)[:80] + "!!" + text_of(GOOD)[80:],
    "truncated PNG": text_of(GOOD[: len(GOOD) // 2]),
    "truncated JPEG": text_of(JPEG[: len(JPEG) // 2]),
    "only a signature": text_of(GOOD[:8]),
    "large by its header": text_of(png_header(60_000, 60_000)),
    "very large by its header": text_of(png_header(2**31 - 1, 2**31 - 1)),
    "large and real": text_of(LARGE),
    "less data than its header says": text_of(png_header(90, 90)),
    "GIF": text_of(file_of(Image.new("P", (8, 8)), "GIF")),
    "TIFF": text_of(file_of(Image.new("L", (8, 8)), "TIFF")),
    "PostScript": text_of(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"),
    "SVG": text_of(b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
    "number": 3,
    "list": [text_of(GOOD)],
    "null in it": "\0",
}

BAD_BOXES = [
    *([0, 0, 0, 1], [0, 0, 1], [0, 0, 1, 1, 1], [0.5, 0, 0.2, 1], [-1, 0, 1, 1], [0, 0, 2, 1]),
    *(["a", 0, 1, 1], [[0], 0, 1, 1], {}, 7, None, "0,0,0,1", "0,0,x,1", [], [10**30, 0, 1, 1]),
]

BAD_FIELDS = {
    "prompt": ["", " ", "\n", 3, None, [], {}, True, "x" * 101, "a\0frog", "a\x1b[31m", "\x7f"],
    "n": [0, -1, 9, 2**31, 2**62, 10**40, 1.5, "2", True, [1]],
    "seed": [-1, 2**53 + 1, 2**64, 1.5, "3", True, [3]],
    "seeds": [[], [1] * 9, [-1], [2**60], ["1"], [True], 3, "1,2", [[1]]],
    "negative": [3, "x" * 101, "\0", ["a"]],
    "sampling": [
        *([], "steps=3", 3, {"steps": 0}, {"steps": 201}, {"steps": 2**62}, {"steps": "9"}),
        *({"steps": 1.5}, {"stepps": 3}, {"": 3}, {".": 3}, {"sr16.": 3}, {"sr16.steps": 999}),
        *({"solver": "magic"}, {"solver": 3}, {"guidance": -1}, {"guidance": 101}, {"rho": 0}),
        *({"guidance": {"scale": 1, "x": 2}}, {"guidance.experts": {"E1_0": 999}}, {"x.y.z": 1}),
        *({"x" * 500_000: 1}, {"solver": "x" * 500_000}, {"guidance": {"x" * 500_000: 1}}),
        *({"sigma_min": 0}, {"sigma_min": 90}, {"churn": 3}, {"sigma_max": 10**300}),
        *({"ema_length": 0.1}, {"precision": "float16"}, {"sr16.tile": 4}, {"tile": 8}),
    ],
    "stage": ["sr1024", "", 3, ["base"]],
    "paint": [
        "a frog",
        {"phrase": "a frog", "where": [0, 0, 1, 1]},
        [{}],
        [{"phrase": "a frog"}],
        [{"where": [0, 0, 1, 1]}],
        [{"phrase": "a cat", "where": [0, 0, 1, 1]}],
        [{"phrase": "fro", "where": [0, 0, 1, 1]}],
        [{"phrase": "", "where": [0, 0, 1, 1]}],
        [{"phrase": "a frog", "where": [0, 0, 1, 1], "strength": -1}],
        [{"phrase": "a frog", "where": [0, 0, 1, 1], "strength": "1"}],
        [{"phrase": "a frog", "where": [0, 0, 1, 1], "colour": "red"}],
        [{"phrase": "a frog", "where": [0, 0, 1, 1]}] * 4,
        [{"phrase": "a " * 200_000, "where": [0, 0, 1, 1]}],
    ],
    "style": [
        text_of(GOOD),
        [text_of(GOOD)],
        [{"weight": 1}],
        [{"image": text_of(GOOD), "weight": 0}],
        [{"image": text_of(GOOD), "weight": -1}],
        [{"image": text_of(GOOD), "file": "/etc/passwd"}],
        [{"image": text_of(GOOD)}] * 5,
    ],
    "sigma": [1.0, "1", -1],
    "mask": [text_of(GOOD)],
    "switch": [0.5],
    "switch_sigma": [0.5],
    "then": ["a cat", 3, "\0"],
    "deadline_s": [0, -1, 121, 1e300, "9", True],
    "model": [3, "", "other", "tiny@3", "../tiny", "/etc/passwd", "tiny@candidate"],
    "stream": ["yes", 1],
    "previews": ["yes"],
    "attention": [1],
    "promt": ["a frog"],
    "__class__": [{}],
}


def bodies():
    """Name → a body, as JSON or as bytes."""
    for field, values in BAD_FIELDS.items():
        for i, value in enumerate(values):
            yield f"{field} {i}", {"prompt": PROMPT, field: value}
    for name, picture in BAD_PICTURES.items():
        for field in ("image", "variation"):
            yield f"{field}: {name}", {"prompt": PROMPT, field: picture}
        yield f"style: {name}", {"prompt": PROMPT, "style": [{"image": picture}]}
        painted = [{"phrase": "a frog", "where": picture}]
        yield f"paint: {name}", {"prompt": PROMPT, "paint": painted}
    for i, box in enumerate(BAD_BOXES):
        painted = [{"phrase": "a frog", "where": box}]
        yield f"box {i}", {"prompt": PROMPT, "paint": painted}
    image, other = text_of(GOOD), text_of(file_of(Image.new("L", (9, 9), 255)))
    yield "mask of another size", {"prompt": PROMPT, "image": image, "mask": other}
    yield "variation and style", {"prompt": "", "variation": image, "style": [{"image": image}]}
    yield "seed and seeds", {"prompt": PROMPT, "seed": 1, "seeds": [1]}
    yield "n unlike seeds", {"prompt": PROMPT, "n": 2, "seeds": [1]}
    deep = 100_000
    yield from {
        "empty": b"",
        "no JSON": b"a frog",
        "no object": b"[]",
        "half an object": b'{"prompt": "a frog"',
        "two objects": b'{"prompt": "a frog"}{}',
        "NaN": b'{"prompt": "a frog", "sigma": NaN}',
        "Infinity": b'{"prompt": "a frog", "sigma": Infinity}',
        "infinite by its exponent": b'{"prompt": "a frog", "sigma": 1e999}',
        "very many digits": b'{"prompt": "a frog", "seed": ' + b"9" * 100_000 + b"}",
        "deep lists": b'{"prompt": ' + b"[" * deep + b"]" * deep + b"}",
        "deep objects": b'{"a":' * deep + b"1" + b"}" * deep,
        "deep within few": b'{"sampling": ' + b"[" * 900 + b"]" * 900 + b"}",
        "very many values": b'{"seeds": [' + b"1," * 400_000 + b"1]}",
        "lone surrogate": b'{"prompt": "a frog \\ud800"}',
        "no UTF-8": b'{"prompt": "a fr\xffg"}',
        "UTF-16": json.dumps({"prompt": PROMPT}).encode("utf-16"),
        "byte order mark": b"\xef\xbb\xbf" + json.dumps({"prompt": PROMPT}).encode(),
        "too large": b'{"prompt": "' + b"x" * 1_000_000 + b'"}',
    }.items()


JSON = "application/json"


def post(client, body):
    if isinstance(body, bytes):
        return client.post("/v1/ediffi/sample", content=body, headers={"Content-Type": JSON})
    return client.post("/v1/ediffi/sample", json=body)


def test_every_bad_request_is_refused_and_nothing_is_drawn(engine, url):
    asked = dict(bodies())
    assert len(asked) >= 200
    with httpx.Client(base_url=url, timeout=60) as client:
        warm = [post(client, body) for body in list(asked.values())[::7]]
        before = peak_bytes(anew=True)
        engine.orders.clear()
        answers = {name: post(client, body) for name, body in asked.items()}
        growth = peak_bytes() - before
        assert client.get("/readyz").status_code == 200
    assert warm and engine.orders == []
    wrong = {n: (a.status_code, a.text) for n, a in answers.items() if not is_clean(a)}
    assert wrong == {}
    print(f"{len(asked)} bad requests: peak {growth / 2**20:.1f} MiB higher")
    assert growth < GROWTH_BYTES


def peak_bytes(*, anew=False):
    """The most memory that this process has had, or from now on: then what it has now."""
    if anew:
        Path("/proc/self/clear_refs").write_text("5")
    [peak] = re.findall(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.M)
    return int(peak) * 1024


def is_clean(answer):
    """Whether an answer is a refusal with a sentence, in the one shape."""
    if not 400 <= answer.status_code < 500:
        return False
    error = answer.json()["error"]
    return (
        {*error} == {"message", "type", "param", "code"}
        and 10 < len(error["message"]) < 500
        and error["type"] == "invalid_request_error"
        and "Traceback" not in answer.text
    )


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "/v1/ediffi/sample", {}, 405),
        ("DELETE", "/v1/models", {}, 405),
        ("POST", "/v1/ediffi/nothing", {}, 404),
        ("GET", "/v1/ediffi/sample/", {}, 404),
        ("GET", "/docs", {}, 404),
        ("GET", "/v1/models/..%2f..%2fetc%2fpasswd", {}, 404),
        ("POST", "/v1/ediffi/sample", {}, 415),
        ("POST", "/v1/ediffi/sample", {"Content-Type": "text/plain"}, 415),
        ("POST", "/v1/ediffi/sample", {"Content-Type": "multipart/form-data; boundary=x"}, 415),
        ("POST", "/v1/ediffi/sample", {"Content-Type": JSON, "Content-Encoding": "gzip"}, 415),
        ("POST", "/v1/images/generations", {"Content-Type": JSON}, 400),
    ],
)
def test_wrong_paths_methods_and_types(url, method, path, headers, status):
    answer = httpx.request(method, url + path, headers=headers, content=b"{}")
    assert answer.status_code == status
    assert {*answer.json()["error"]} == {"message", "type", "param", "code"}


@pytest.mark.parametrize("declared", [True, False])
def test_a_large_body_is_not_read_to_its_end(url, declared):
    """The service answers and closes while the caller has gigabytes left to send."""
    address = httpx.URL(url)
    length = b"Content-Length: 9000000000" if declared else b"Transfer-Encoding: chunked"
    with socket.create_connection((address.host, address.port), timeout=60) as connection:
        connection.sendall(
            b"POST /v1/ediffi/sample HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: application/json\r\n" + length + b"\r\n\r\n"
        )
        chunk = b"x" * 65536 if declared else b"10000\r\n" + b"x" * 65536 + b"\r\n"
        sent = 0
        try:
            while sent < 1000:
                connection.sendall(chunk)
                sent += 1
        except OSError:
            pass
        assert sent < 1000
        head = b""
        try:
            while part := connection.recv(65536):
                head += part
        except OSError:
            pass
    assert head.startswith(b"HTTP/1.1 413") and b"request_too_large" in head


@pytest.mark.parametrize("declared", [True, False])
@pytest.mark.parametrize("size", [LIMITS["body_bytes"] + 1, 20_000_000])
def test_a_caller_that_sends_all_before_it_reads_gets_the_answer(url, size, declared):
    """As most clients do: the connection is not reset while they send."""
    address = httpx.URL(url)
    with contextlib.closing(http.client.HTTPConnection(address.host, address.port)) as connection:
        parts = (b"x" * min(65536, size - i) for i in range(0, size, 65536))
        length = {"Content-Length": str(size)} if declared else {"Transfer-Encoding": "chunked"}
        headers = {"Content-Type": JSON, **length}
        connection.request("POST", "/v1/ediffi/sample", parts, headers, encode_chunked=not declared)
        answer = connection.getresponse()
        assert answer.status == 413 and answer.headers["Connection"] == "close"
        assert "1,000,000 bytes" in json.load(answer)["error"]["message"]


def test_a_caller_that_asks_before_it_sends_is_spared_the_sending(url):
    address = httpx.URL(url)
    with socket.create_connection((address.host, address.port), timeout=60) as connection:
        connection.sendall(
            b"POST /v1/ediffi/sample HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\n"
            b"Content-Type: application/json\r\nContent-Length: 2000000\r\n\r\n"
        )
        assert connection.recv(65536).startswith(b"HTTP/1.1 413")


def test_values_take_memory_in_proportion_to_the_body():
    import tracemalloc

    body = b'{"a": [' + b"[]," * (MOST_VALUES // 2 - 10) + b"[]]}"
    tracemalloc.start()
    parse_json(body)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4_000_000


def test_a_slow_body_is_given_up(monkeypatch):
    import asyncio

    from starlette.requests import Request

    from pipelines.serving import guards
    from pipelines.serving.http_errors import BodyTimeout

    async def never():
        await asyncio.Event().wait()

    monkeypatch.setattr(guards, "BODY_S", 0.01)
    request = Request({"type": "http", "headers": [], "method": "POST"}, never)
    with pytest.raises(BodyTimeout):
        asyncio.run(read_body(request, 100))
