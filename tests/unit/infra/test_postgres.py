"""MLflow before PostgreSQL with an S3 behind it, set up as the manifests say."""

import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import postgres_kit
import postgres_worker
import pytest
from manifests import find

from pipelines.lineage import quiet_mlflow

pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(
        postgres_kit.programs() is None, reason="PostgreSQL is missing: apt-get install postgresql"
    ),
]
pytest.importorskip("psycopg", reason="psycopg is not installed")
DRIVERS, PATIENCE_S = 3, 400


def free_ports(n):
    import socket

    probes = [socket.socket() for _ in range(n)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


@pytest.fixture(scope="module")
def servers(s3_server, tmp_path_factory):
    """The addresses of as many servers as the Deployment has, on one database."""
    deployment = find("Deployment", "mlflow")["spec"]
    pod = deployment["template"]["spec"]
    [tables], [server] = pod["initContainers"], pod["containers"]
    port, *ports = free_ports(1 + deployment["replicas"])
    [uri] = [e["value"] for e in server["env"] if e["name"] == "MLFLOW_BACKEND_STORE_URI"]
    assert uri == f"postgresql://{postgres_kit.USER}:$(POSTGRES_PASSWORD)@postgres:5432/mlflow"
    here = uri.replace("$(POSTGRES_PASSWORD)", postgres_kit.PASSWORD)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "AWS_"))}
    env = kept | s3_server.environment
    env |= {
        "MLFLOW_BACKEND_STORE_URI": here.replace("postgres:5432", f"127.0.0.1:{port}"),
        "MLFLOW_S3_ENDPOINT_URL": s3_server.environment["AWS_ENDPOINT_URL"],
        "MLFLOW_DISABLE_TELEMETRY": "true",
        **{e["name"]: e["value"] for e in server["env"] if "value" in e and "$" not in e["value"]},
    }
    folder = tmp_path_factory.mktemp("servers")
    s3_server.faults.__init__()  # which tests before this one may have left
    with postgres_kit.running(port):
        make_tables(tables, env, deployment["replicas"])
        processes = []
        try:
            for one in ports:
                log = folder / f"{one}.log"
                arguments = [a for a in server["args"] if not a.startswith(("--port", "--host"))]
                arguments = [a.replace("s3://ediffi/", "s3://bucket/") for a in arguments]
                arguments = [
                    f"{a},127.0.0.1:{one}" if a.startswith("--allowed-hosts") else a
                    for a in arguments
                ]
                command = [Path(sys.executable).with_name("mlflow"), *server["command"][1:]]
                processes.append(
                    subprocess.Popen(
                        [*command, *arguments, f"--port={one}", "--host=127.0.0.1"],
                        env=env,
                        stdout=log.open("wb"),
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
                )
            for one, process in zip(ports, processes):
                wait_for(f"http://127.0.0.1:{one}/health", process, folder / f"{one}.log")
            yield [f"http://127.0.0.1:{one}" for one in ports]
        finally:
            for process in processes:
                process.terminate()
            for process in processes:
                process.wait()


def make_tables(container, env, at_once):
    """As Kubernetes does it: one that fails is started again, all that are left at once."""
    left, tries = at_once, 0
    while left:
        tries += 1
        assert tries < 5
        command = [sys.executable, *container["command"][1:], *container["args"]]
        made = [subprocess.Popen(command, env=env, stderr=subprocess.PIPE) for _ in range(left)]
        said = [p.communicate()[1].decode() for p in made]
        left = sum(p.returncode != 0 for p in made)
        assert left < at_once or tries > 1, said


def wait_for(url, process, log):
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                assert answer.status == 200
                return
        except OSError:
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)


def test_drivers_that_write_at_once_have_everything_recorded_once(servers, tmp_path, monkeypatch):
    """Through several servers; each item is written twice."""
    names = [f"pipeline-{i}" for i in range(DRIVERS)]
    workers = [
        subprocess.Popen(
            [
                sys.executable,
                postgres_worker.__file__,
                servers[i % len(servers)],
                name,
                str(tmp_path / name),
            ]
        )
        for i, name in enumerate(names)
    ]
    assert [w.wait() for w in workers] == [0] * DRIVERS
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    client = quiet_mlflow().MlflowClient(tracking_uri=servers[0])
    found = {e.name: e.experiment_id for e in client.search_experiments()}
    assert set(found) == {"Default", *names}
    for name in names:
        runs = {r.data.tags.get("ediffi.node", ""): r for r in client.search_runs([found[name]])}
        assert len(client.search_runs([found[name]])) == len(runs) == 1 + postgres_worker.NODES
        whole = runs.pop("")
        for run in runs.values():
            assert run.info.status == "FINISHED"
            assert run.data.tags["mlflow.parentRunId"] == whole.info.run_id
            curve = client.get_metric_history(run.info.run_id, "loss")
            assert sorted(m.step for m in curve) == list(range(postgres_worker.POINTS))
            [last] = client.get_metric_history(run.info.run_id, "final/loss")
            assert last.value == 0.5
            [file] = client.list_artifacts(run.info.run_id, "train")
            place = client.download_artifacts(run.info.run_id, file.path, str(tmp_path))
            assert Path(place).read_bytes() == name.encode()
