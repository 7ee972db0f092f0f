"""The program that a CronJob's pod runs, against a server that answers as Kubernetes does."""

import importlib.util
import itertools
import json
import re
from http.server import BaseHTTPRequestHandler

import pytest
import web_server
from manifests import K8S, find

NAME, TEMPLATE = "ediffi-retrain", "ediffi-retrain-template"
ROOT = "/apis/ray.io/v1/namespaces/ediffi/rayjobs"


class Kubernetes(web_server.Server):
    """Keeps RayJobs; a job comes one state further each time somebody looks at it."""

    def __init__(self):
        super().__init__(Answer)
        self.jobs = {TEMPLATE: find("RayJob", TEMPLATE, "retrain")}
        self.ways = {}  # name → states to come
        self.way = ["", "Initializing", "Running", "Complete"]
        self.result = "SUCCEEDED"
        self.calls = []
        self.created, self.deleted = [], []
        self.faults = {}  # method → faults of its next requests
        self.uids = itertools.count()
        self.tokens = set()

    def further(self, name):
        job = self.jobs.get(name)
        if job and self.ways.get(name):
            now = self.ways[name].pop(0)
            job["status"] = {"jobDeploymentStatus": now} if now else {}
            if now in ("Complete", "Failed"):
                job["status"] |= {"jobStatus": self.result, "message": "said by Ray"}
        return job

    def put(self, name, state, tick):
        meta = {"name": name, "annotations": {"ediffi/tick": tick}, "uid": f"uid-{next(self.uids)}"}
        self.jobs[name] = {"metadata": meta, "status": {"jobDeploymentStatus": state}}
        self.ways[name] = []


class Answer(BaseHTTPRequestHandler):
    server: Kubernetes

    def log_message(self, *_):
        pass

    def answer(self, code, body):
        if self.fault == "not confirmed":
            return
        self.send_response(code)
        if self.fault == "cut off":
            self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(body if isinstance(body, bytes) else json.dumps(body).encode())

    def begin(self):
        """The name that is asked for; None if the request ends in a fault before it is done."""
        assert self.path.startswith(ROOT)
        self.server.tokens.add(self.headers["Authorization"])
        self.server.calls.append(self.command)
        self.body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        faults = self.server.faults.get(self.command)
        self.fault = faults.pop(0) if faults else None
        if isinstance(self.fault, tuple):
            self.answer(*self.fault)
            return None
        if self.fault == "silent":
            self.connection.recv(1)  # until the client leaves
            return None
        return self.path.removeprefix(ROOT).strip("/")

    def do_GET(self):
        if (name := self.begin()) is not None:
            job = self.server.further(name)
            self.answer(200 if job else 404, job or {"reason": "NotFound"})

    def do_POST(self):
        if self.begin() is None:
            return
        job = json.loads(self.body)
        name = job["metadata"]["name"]
        if name in self.server.jobs:
            return self.answer(409, {"reason": "AlreadyExists"})
        job["metadata"]["uid"] = f"uid-{next(self.server.uids)}"
        self.server.jobs[name] = job
        self.server.created.append(name)
        self.server.ways[name] = list(self.server.way)
        self.answer(201, job)

    def do_DELETE(self):
        if (name := self.begin()) is None:
            return
        body = json.loads(self.body)
        uid = body.pop("preconditions")["uid"]
        assert body == {"propagationPolicy": "Foreground"}
        if name not in self.server.jobs:
            return self.answer(404, {"reason": "NotFound"})
        if self.server.jobs[name]["metadata"]["uid"] != uid:
            return self.answer(409, {"reason": "Conflict"})
        self.server.deleted.append(name)
        self.answer(200, self.server.jobs.pop(name))


@pytest.fixture
def kubernetes():
    with Kubernetes().running() as server:
        yield server


@pytest.fixture
def tick(kubernetes, tmp_path, monkeypatch):
    """Runs the program for a tick; → its exit status."""
    loaded = importlib.util.spec_from_file_location("start", K8S / "retrain" / "start.py")
    start = importlib.util.module_from_spec(loaded)
    loaded.loader.exec_module(start)
    monkeypatch.setattr(start, "LOOK_EVERY_S", 0.0)
    monkeypatch.setattr(start, "FIRST_PAUSE_S", 0.001)
    token = tmp_path / "token"
    token.write_text("first")
    address = f"http://127.0.0.1:{kubernetes.server_port}"

    def run(name, with_token="first", patience_s=start.PATIENCE_S, timeout_s=30.0):
        monkeypatch.setattr(start, "TIMEOUT_S", timeout_s)
        token.write_text(with_token)
        jobs = start.RayJobs(address, "ediffi", token, None, patience_s)
        return start.start(jobs, TEMPLATE, NAME, name)

    return run


@pytest.mark.slow
def test_a_job_is_made_of_the_template_and_waited_for(kubernetes, tick, capsys):
    assert tick("monday") == 0
    template, job = kubernetes.jobs[TEMPLATE], kubernetes.jobs[NAME]
    assert job["spec"] == template["spec"] | {"suspend": False}
    assert job["metadata"]["labels"] == template["metadata"]["labels"]
    assert job["metadata"]["annotations"] == {"ediffi/tick": "monday"}
    assert capsys.readouterr().out.splitlines() == [
        f"{NAME} is started",
        f"{NAME}: New",
        f"{NAME}: Initializing",
        f"{NAME}: Running",
        f"{NAME}: Complete said by Ray",
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("way", "result"), [("Failed", "FAILED"), ("Complete", "STOPPED")])
def test_a_job_that_did_not_end_well_fails_the_tick(kubernetes, tick, way, result):
    kubernetes.way, kubernetes.result = ["Running", way], result
    assert tick("monday") == 1


@pytest.mark.slow
def test_the_job_of_the_last_time_is_cleared_away(kubernetes, tick):
    kubernetes.put(NAME, "Failed", "last monday")
    assert tick("monday") == 0
    assert kubernetes.calls.count("DELETE") == kubernetes.calls.count("POST") == 1


@pytest.mark.slow
def test_a_pod_that_is_started_again_finds_its_job_and_starts_no_second(kubernetes, tick):
    kubernetes.put(NAME, "Running", "monday")
    kubernetes.ways[NAME] = ["Running", "Complete"]
    assert tick("monday") == 0
    kubernetes.put(NAME, "Failed", "monday")
    assert tick("monday") == 1
    assert set(kubernetes.calls) == {"GET"}


@pytest.mark.slow
def test_a_job_that_still_runs_from_before_is_waited_for(kubernetes, tick, capsys):
    kubernetes.put(NAME, "Running", "last monday")
    kubernetes.ways[NAME] = ["Running", "Complete"]
    assert tick("monday") == 0
    assert "POST" not in kubernetes.calls
    assert "earlier tick" in capsys.readouterr().out


@pytest.mark.slow
def test_a_job_that_somebody_deletes_is_said_to_be_gone(kubernetes, tick, capsys, monkeypatch):
    kubernetes.way = [""] * 50
    later = kubernetes.further

    def gone(name):
        if kubernetes.calls.count("GET") > 6:
            kubernetes.jobs.pop(NAME, None)
        return later(name)

    monkeypatch.setattr(kubernetes, "further", gone)
    assert tick("monday") == 1
    assert "deleted" in capsys.readouterr().out


def test_without_a_template_it_says_what_to_apply(kubernetes, tick):
    del kubernetes.jobs[TEMPLATE]
    with pytest.raises(SystemExit, match="infra/k8s/retrain"):
        tick("monday")


@pytest.mark.slow
def test_the_token_is_read_anew(kubernetes, tick):
    """Kubernetes replaces it within the hour; a retraining takes longer."""
    assert tick("monday") == 0
    assert tick("tuesday", with_token="second") == 0
    assert kubernetes.tokens == {"Bearer first", "Bearer second"}


BUSY = (503, {"reason": "ServiceUnavailable"})
STARTING = (404, b"404 page not found")
PASSING = {
    "busy": BUSY,
    "asks for patience": (429, {"reason": "TooManyRequests"}),
    "a token just replaced": (401, {"reason": "Unauthorized"}),
    "no RayJobs yet": STARTING,
    "a proxy": (502, b"<html>Bad Gateway</html>"),
    "silent": "silent",
    "cut off": "cut off",
    "not confirmed": "not confirmed",
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", PASSING.values(), ids=PASSING)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_trouble_that_passes_is_waited_for(kubernetes, tick, capsys, method, fault):
    """Also that after which Kubernetes has done what was asked: nothing is done twice."""
    kubernetes.put(NAME, "Failed", "last monday")
    kubernetes.faults[method] = [None, fault, fault] if method == "GET" else [fault, fault]
    assert tick("monday", timeout_s=0.1 if fault == "silent" else 30.0) == 0
    assert kubernetes.deleted == kubernetes.created == [NAME]
    assert kubernetes.jobs[NAME]["metadata"]["annotations"] == {"ediffi/tick": "monday"}
    out = capsys.readouterr().out
    assert f"{NAME} is started" in out and "earlier tick" not in out
    assert re.search(rf"^{method} rayjobs.*; it is tried again$", out, re.M)


@pytest.mark.slow
def test_a_quota_that_two_change_at_once_does_not_end_it(kubernetes, tick):
    kubernetes.faults["POST"] = [(409, {"reason": "Conflict", "message": "resourcequotas"})]
    assert tick("monday") == 0
    assert kubernetes.calls.count("POST") == 2


def test_it_waits_as_long_as_it_is_told(kubernetes, tick, capsys):
    kubernetes.faults["GET"] = [BUSY] * 1000
    with pytest.raises(SystemExit, match=r"503 .*ServiceUnavailable.*; tried for 0 s"):
        tick("monday", patience_s=0.05)
    assert 1 < kubernetes.calls.count("GET") < 1000
    assert capsys.readouterr().out.count("tried again") == 1


@pytest.mark.parametrize("code", [400, 403, 422])
def test_a_refusal_ends_it_at_once(kubernetes, tick, code):
    kubernetes.faults["POST"] = [(code, {"reason": "Forbidden", "message": "by the policy"})]
    with pytest.raises(SystemExit, match=f"POST rayjobs: {code} .*by the policy"):
        tick("monday")
    assert kubernetes.calls.count("POST") == 1


@pytest.mark.slow
def test_a_job_that_another_pod_starts_meanwhile_is_not_cleared_away(kubernetes, tick, monkeypatch):
    """The deletion was done but never confirmed, and another pod was faster."""
    kubernetes.put(NAME, "Failed", "last monday")
    further = kubernetes.further

    def overtaken(name):
        if name == NAME and "DELETE" in kubernetes.calls and NAME not in kubernetes.jobs:
            kubernetes.put(NAME, "Running", "sunday")
            kubernetes.ways[NAME] = ["Running", "Complete"]
        return further(name)

    kubernetes.faults["DELETE"] = ["not confirmed"]
    monkeypatch.setattr(kubernetes, "further", overtaken)
    assert tick("monday") == 0
    assert kubernetes.jobs[NAME]["metadata"]["annotations"] == {"ediffi/tick": "sunday"}
    assert "POST" not in kubernetes.calls
