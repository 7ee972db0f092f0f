"""Webhooks and chats on a real server are notified of a run's end, and failures are logged."""

import json
from http.server import BaseHTTPRequestHandler

import dripping_kit
import pytest
import web_server
from pydantic import ValidationError

from pipelines.executor import notify
from pipelines.runs.execution import Execution
from pipelines.spec.notify import Notify

TOKEN = "/hooks/a-token-that-nobody-shall-see"
FAILED = {"train/base/E0_0": "out of memory"}
TRACKING = {"uri": "https://mlflow.example", "run": "r1", "experiment": "7", "nodes": {}}
RECORD = "https://mlflow.example/#/experiments/7/runs/r1?workflowType=machine_learning"


class Server(web_server.Server):
    """Answers with these statuses, then with 200."""

    def __init__(self):
        super().__init__(Handler)
        self.statuses, self.got = [], []
        self.url += TOKEN


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.got.append((self.path, self.headers["Content-Type"], body))
        status = self.server.statuses.pop(0) if self.server.statuses else 200
        self.send_response(status)
        if 300 <= status < 400:
            self.send_header("Location", "/elsewhere")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_GET(self):
        self.server.got.append((self.path, "GET", None))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with Server().running() as server:
        yield server


@pytest.fixture
def send(monkeypatch):
    """``send(url, state)`` → the lines that were logged."""
    monkeypatch.setattr(notify, "FIRST_WAIT_S", 0.0)

    def call(url, state="failed", total_s=notify.TOTAL_S, failed=FAILED, tracking=TRACKING, **more):
        logged = []
        settings = Notify.model_validate({"webhook": url, **more})
        assert TOKEN not in repr(settings)
        execution = Execution(
            id="demo-1",
            pipeline="demo",
            fingerprint="f",
            attempt=2,
            state=state,
            started="2026-01-01T00:00:00+00:00",
            ended="2026-01-01T01:00:00+00:00",
            tracking=tracking,
        )
        notify.send(settings, execution, failed, logged.append, total_s=total_s)
        return logged

    return call


def test_it_gets_one_message(server, send):
    assert send(server.url) == []
    assert server.got == [
        (
            TOKEN,
            "application/json",
            {
                "pipeline": "demo",
                "run": "demo-1",
                "attempt": 2,
                "state": "failed",
                "seconds": 3600.0,
                "failed": FAILED,
                "record": RECORD,
            },
        )
    ]


def test_a_chat_gets_slacks_markup_with_a_link_to_the_record(server, send):
    failed = {"train/base/E0_0": "<!channel> a & b", **{f"n{i}": "it broke" for i in range(11)}}
    assert send(None, slack=server.url, failed=failed) == []
    [(path, kind, body)] = server.got
    assert (path, kind, list(body)) == (TOKEN, "application/json", ["text"])
    lines = body["text"].split("\n")
    assert lines[:3] == [
        "*demo failed after 1:00:00*",
        "run demo-1, attempt 2",
        "train/base/E0_0: &lt;!channel&gt; a &amp; b",
    ]
    assert lines[-2:] == ["2 more nodes failed", f"<{RECORD}|record in MLflow>"]
    assert len(lines) == 3 + 9 + 2


def test_a_record_that_is_no_server_is_named_and_not_linked(server, send):
    database = "sqlite:////data/ediffi-store/mlflow.db"
    assert send(server.url, slack=server.url, tracking={"uri": database}) == []
    by_kind = {"text" in body: body for *_, body in server.got}
    assert by_kind[False]["record"] == database
    assert by_kind[True]["text"].endswith(f"\nrecord: {database}")


@pytest.mark.slow
def test_one_that_cannot_be_notified_does_not_keep_the_other_waiting(server, send):
    with dripping_kit.dripping(b"", b"x") as url:
        logged = send(url + TOKEN, slack=server.url, total_s=5.0)
    assert logged == ["could not notify the webhook at 127.0.0.1 (no answer within 5 s)"]
    assert len(server.got) == 1


def test_a_server_that_is_busy_is_asked_again(server, send):
    server.statuses = [503, 500]
    assert send(server.url) == [] and len(server.got) == 3


def test_one_that_refuses_is_not_and_its_address_stays_secret(server, send):
    server.statuses = [403]
    assert send(server.url) == ["could not notify the webhook at 127.0.0.1 (HTTP 403)"]
    assert len(server.got) == 1
    server.statuses = [500] * 3
    assert send(server.url) == ["could not notify the webhook at 127.0.0.1 (HTTP 500)"]
    assert len(server.got) == 4


def test_a_server_that_is_gone_ends_nothing(server, send):
    server.shutdown()
    server.server_close()
    [line] = send(server.url)
    assert line.startswith("could not notify the webhook at 127.0.0.1 (") and TOKEN not in line


def test_only_ends_that_were_asked_for(server, send):
    assert send(server.url, "done", on=["failed"]) == [] and server.got == []
    assert send(server.url, "failed", on=["failed"]) == [] and len(server.got) == 1
    assert send(None) == []


def test_an_address_that_is_none_is_a_mistake_that_does_not_show_it():
    with pytest.raises(ValidationError, match="write `webhook:` as https://HOST/PATH") as error:
        Notify.model_validate({"webhook": f"hooks.example.com{TOKEN}"})
    assert TOKEN not in str(error.value)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed_and_counts_as_a_failure(server, send, status):
    server.statuses = [status]
    assert send(server.url) == [
        f"could not notify the webhook at 127.0.0.1 (HTTP {status}, a redirect, which is not "
        "followed; write the final address)"
    ]
    assert [path for path, *_ in server.got] == [TOKEN]


@pytest.mark.parametrize("start", [b"", b"HTTP/1.1 200 OK\r\nX-Long: "])
def test_a_server_that_never_ends_its_headers_is_given_up_at_the_deadline(send, start):
    """Each byte comes well before the timeout of a socket."""
    with dripping_kit.dripping(start, b"x") as url:
        assert send(url + TOKEN, total_s=0.2) == [
            "could not notify the webhook at 127.0.0.1 (no answer within 0.2 s)"
        ]


def test_an_answer_without_end_is_not_read(send):
    with dripping_kit.dripping(b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 1000) as url:
        assert send(url + TOKEN) == []


@pytest.mark.parametrize(
    "url",
    [
        "https://user:secret-word@hooks.example.com/x",
        "https://secret-word@hooks.example.com/x",
        "https://@hooks.example.com/secret-word",
        "https://hooks.example.com/a secret-word",
        "https://hooks.example.com/secret-word\n",
        "https://hooks.example.com\\@evil.example/secret-word",
        "https://hooks.example.com:port/secret-word",
        "https://[hooks.example.com/secret-word",
        "https://hooks.example.com/secret-word/é",
        "https:///secret-word",
        "ftp://hooks.example.com/secret-word",
    ],
)
@pytest.mark.parametrize("key", ["webhook", "slack"])
def test_what_would_not_be_sent_as_it_is_written_is_refused_without_showing_it(url, key):
    with pytest.raises(ValidationError, match=f"`{key}:`") as error:
        Notify.model_validate({key: url})
    assert "secret-word" not in str(error.value)
