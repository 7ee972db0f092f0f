"""A pipeline as a job of a real Ray cluster, through its job server."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from kit import PATIENCE_S, SMOKE, descendants, ediffi, environment, kill, spec_with

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]

BIN = Path(sys.executable).parent


def free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for one in sockets:
        one.close()
    return ports


@pytest.fixture(scope="module")
def cluster():
    """A cluster on this machine; → the address of its job server."""
    gcs, dashboard, agent, client = free_ports(4)
    folder = tempfile.mkdtemp(prefix="ray-")  # short: sockets lie in it
    log = Path(folder, "start.log")
    options = {
        "port": gcs,
        "dashboard-port": dashboard,
        "dashboard-agent-listen-port": agent,
        "ray-client-server-port": client,
        "temp-dir": folder,
        "num-cpus": 4,
        "object-store-memory": 200 * 2**20,
        "include-dashboard": "true",
    }
    with log.open("w") as out:
        head = subprocess.Popen(
            [
                BIN / "ray",
                "start",
                "--head",
                "--block",
                *(f"--{k}={v}" for k, v in options.items()),
            ],
            stdout=out,
            stderr=subprocess.STDOUT,
            env=environment(
                RAY_AUTH_MODE="disabled",
                RAY_USAGE_STATS_ENABLED="0",
                PATH=f"{BIN}{os.pathsep}{os.environ['PATH']}",
            ),
        )
    address = f"http://127.0.0.1:{dashboard}"
    try:
        until(lambda: head.poll() is not None or answers(address), log.read_text)
        assert head.poll() is None, log.read_text()
        yield address
        assert head.poll() is None, f"the cluster died meanwhile: {log.read_text()}"
    finally:
        kill(head.pid, *descendants(head.pid))
        head.wait()
        shutil.rmtree(folder, ignore_errors=True)


def answers(address):
    import requests

    try:
        return requests.get(f"{address}/api/jobs/").ok
    except requests.ConnectionError:
        return False


def until(reached, what):
    deadline = time.monotonic() + PATIENCE_S
    while not (found := reached()):
        assert time.monotonic() < deadline, what()
        time.sleep(0.2)
    return found


def test_a_pipeline_is_sent_watched_stopped_and_sent_again(cluster, smoke, tmp_path):
    store = smoke.copy(tmp_path / "store", "promote")
    done = set(store.glob("nodes/train/sr32/*"))

    def asked(verb, *args, code=0, **env):
        ended = ediffi(verb, *args, "--address", cluster, RAY_AUTH_MODE="disabled", **env)
        assert ended.returncode == code, ended.stdout + ended.stderr
        return ended.stdout + ended.stderr

    def send(spec, *args, **more):
        return asked("submit", spec, "--storage", store, *args, **more)

    assert "no pipelines" in asked("jobs")

    # One that would train for hours.
    endless = spec_with(
        tmp_path / "smoke.yaml",
        lambda raw: raw["stages"]["sr32"]["experts"].update(E0_0={"images": 16_000_000}),
    )
    assert "job smoke-1" in send(endless)
    endless.unlink()  # the job has its own
    assert "already job smoke-1" in send(SMOKE, code=2)
    until(
        lambda: {p.parent for p in store.glob("nodes/train/sr32/*/progress.json")} - done,
        lambda: asked("logs", "smoke-1"),
    )
    [row] = json.loads(asked("jobs", "--json"))
    assert (row["job"], row["state"], row["storage"]) == ("smoke-1", "running", str(store))

    assert "stopped" in asked("stop", "smoke-1")
    said = asked("logs", "smoke-1")
    assert "train/sr32/E0_0 started" in said
    assert "interrupted; run the same command again to continue" in said
    [execution] = [json.loads(p.read_text()) for p in store.glob("executions/smoke-*[0-9].json")]
    assert execution["state"] == "interrupted"
    assert "ended already" in asked("stop", "smoke-1", code=2)

    # One of which all but the end is done; the secret in this environment goes nowhere.
    regional = spec_with(endless, lambda raw: raw.update(s3={"region": "eu-central-1"}))
    said = send(regional, "--wait", AWS_SECRET_ACCESS_KEY="hush")
    assert "train/base/E0_0 reused" in said and "job smoke-2: succeeded" in said
    assert list(store.glob("nodes/promote/smoke-*/manifest.json"))
    assert "hush" not in asked("jobs", "smoke-2", "--json") + said

    # One that cannot be: the exit code is the driver's.
    said = ediffi("submit", SMOKE, "--storage", "/proc/none", "--wait", "--address", cluster)
    assert said.returncode == 2
    assert "cannot be written" in said.stdout
