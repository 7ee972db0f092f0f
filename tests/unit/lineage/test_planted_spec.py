"""The secrets of a spec and of an MLflow server's login reach those they are for, and no record."""

import logging
from pathlib import Path

import planted
import pytest
from kit import call, spec_with
from planted import SECRET
from record_kit import runs_of

from pipelines.executor import notify
from pipelines.jobs import client as jobs
from pipelines.jobs import submit
from pipelines.spec.loading import load

LOGIN = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")


def with_secrets(raw):
    raw["notify"] = {
        "webhook": f"http://127.0.0.1:9/{SECRET}?token={SECRET}",
        "slack": f"http://127.0.0.1:9/services/{SECRET}",
        "email": {
            "to": ["a@b.example"],
            "sender": "c@d.example",
            "server": "127.0.0.1",
            "port": 9,
            "user": "me",
        },
    }
    raw["s3"] = {"endpoint_url": "http://127.0.0.1:9", "key": SECRET, "secret": SECRET}


@pytest.fixture
def spec(tmp_path):
    return spec_with(tmp_path / "spec.yaml", with_secrets)


@pytest.fixture
def environment(monkeypatch):
    for name in LOGIN:  # what is set meanwhile goes with the test
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    for name, value in planted.environment().items():
        if name not in LOGIN:
            monkeypatch.setenv(name, value)
    monkeypatch.setattr(notify, "FIRST_WAIT_S", 0.0)


@pytest.mark.slow
def test_a_record_through_a_login_has_no_secret(
    driver, server, spec, environment, tmp_path, capfd, caplog
):
    caplog.set_level(logging.INFO)
    server.start()
    one = driver(server.uri.replace("//", f"//me:{SECRET}@"), spec)
    one.start()
    one.report(1, loss=0.5)
    one.execution.state = "failed"
    notify.send(one.plan.spec.notify, one.execution, {"train/x": "no"}, one.said.append)
    one.close("failed")
    assert len(runs_of(server.uri)) == 2, "the record is there"
    assert sum("could not notify" in line for line in one.said) == 3
    store = one.store.root
    for verb in (["status", "--json"], ["status"], ["plan", str(spec)], ["diff", str(spec)]):
        assert call(*verb, "--storage", store) in (0, 2)
    shown = capfd.readouterr()
    texts = [*one.said, shown.out, shown.err, repr(one.plan), repr(one.execution), caplog.text]
    assert "smoke" in shown.out
    assert planted.traces([Path(store), tmp_path / "server"], *texts) == []


class Recording:
    """A job server that keeps what it is sent."""

    def __init__(self):
        self.sent = []

    def list_jobs(self):
        return []

    def submit_job(self, **job):
        folder = job["runtime_env"]["working_dir"]
        files = sorted(p for p in Path(folder).rglob("*") if p.is_file())
        self.sent.append(repr(job) + "".join(p.read_text() for p in files))


@pytest.fixture
def recording(monkeypatch):
    monkeypatch.setattr(jobs, "is_local_cluster", lambda _: True)
    return Recording()


def send(client, file, credentials=False):
    submit.submit(
        client, load(file), file, "s3://b/s", verb="run", working_dir=None, credentials=credentials
    )


def test_a_job_has_no_secret_of_the_environment(recording, environment, tmp_path, monkeypatch):
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    send(recording, spec_with(tmp_path / "plain.yaml", lambda raw: None))
    assert len(recording.sent) == 1 and planted.traces([], *recording.sent) == []


@pytest.mark.parametrize("key", ["notify", "s3"])
def test_a_job_is_refused_whose_spec_has_a_secret(
    recording, environment, tmp_path, key, monkeypatch
):
    monkeypatch.delenv("AWS_ENDPOINT_URL")

    def change(raw):
        full = {}
        with_secrets(full)
        raw[key] = full[key]

    file = spec_with(tmp_path / "spec.yaml", change)
    with pytest.raises(ValueError, match=rf"`{key}\..*--pass-credentials") as refused:
        send(recording, file)
    assert not recording.sent and planted.traces([], str(refused.value)) == []
    send(recording, file, credentials=True)
    assert planted.traces([], *recording.sent) == recording.sent
