"""The program that a CronJob's pod runs, against a server that answers as Kubernetes does."""

import importlib.util
import json
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
        meta = {"name": name, "annotations": {"ediffi/tick": tick}}
        self.jobs[name] = {"metadata": meta, "status": {"jobDeploymentStatus": state}}
        self.ways[name] = []


class Answer(BaseHTTPRequestHandler):
    server: Kubernetes

    def log_message(self, *_):
        pass

    def answer(self, code, body):
        self.send_response(code)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def name(self):
        assert self.path.startswith(ROOT)
        self.server.tokens.add(self.headers["Authorization"])
        self.server.calls.append(self.command)
        return self.path.removeprefix(ROOT).strip("/")

    def do_GET(self):
        job = self.server.further(self.name())
        self.answer(200 if job else 404, job or {"reason": "NotFound"})

    def do_POST(self):
        assert self.name() == ""
        job = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        name = job["metadata"]["name"]
        if name in self.server.jobs:
            return self.answer(409, {"reason": "AlreadyExists"})
        self.server.jobs[name] = job
        self.server.ways[name] = list(self.server.way)
        self.answer(201, job)

    def do_DELETE(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert body == {"propagationPolicy": "Foreground"}
        self.answer(200, self.server.jobs.pop(self.name()))


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
    token = tmp_path / "token"
    token.write_text("first")
    jobs = start.RayJobs(f"http://127.0.0.1:{kubernetes.server_port}", "ediffi", token, None)

    def run(name, with_token="first"):
        token.write_text(with_token)
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
