"""Trees of more than 1,000 runs are complete: MLflow's client returns 1,000 at most."""

import sqlite3
from contextlib import closing

import pytest
from mlflow_kit import search_on_page
from record_kit import runs_of

from pipelines.lineage import quiet_mlflow, registry
from pipelines.lineage.pages import every
from pipelines.lineage.writer import Writer
from pipelines.models.champions import Entry
from pipelines.store.artifacts import Store

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

COUNT = 1100
EXECUTION = "smoke-20260101-000000-000001"
LAST = ("train/base/E9_0", "train/base/E9_1")
"""The oldest runs, which are on a search's last page, have not ended."""


@pytest.fixture
def tree(fresh_database, tmp_path):
    """Client, address, store and experiment of an execution with 1,100 nodes."""
    path = tmp_path / "mlflow.db"
    path.write_bytes(fresh_database.read_bytes())
    uri = f"sqlite:///{path}"
    client = quiet_mlflow().MlflowClient(tracking_uri=uri, registry_uri=uri)
    experiment = client.create_experiment("smoke", artifact_location=f"file://{tmp_path}/files")
    top = client.create_run(
        experiment, tags={"ediffi.execution": EXECUTION, "ediffi.state": "running"}, start_time=1
    )
    with closing(sqlite3.connect(path)) as db, db:
        names = [i[1] for i in db.execute("pragma table_info(runs)")]
        [model] = db.execute("select * from runs where run_uuid = ?", [top.info.run_id])
        for at in range(COUNT):
            node = LAST[at] if at < len(LAST) else f"train/base/E11_{at}"
            status = "RUNNING" if at < len(LAST) else "FINISHED"
            of = {"run_uuid": f"{at:032x}", "name": node, "start_time": at + 2, "status": status}
            row = [{**dict(zip(names, model)), **of}[name] for name in names]
            db.execute(f"insert into runs values ({','.join('?' * len(names))})", row)
            tags = {
                "ediffi.execution": EXECUTION,
                "ediffi.node": node,
                "ediffi.kind": "train",
                "ediffi.state": status.lower(),
                "ediffi.path": f"base/E0_0/E1_1/{node.rpartition('/')[2]}",
                "ediffi.fingerprint": f"{at:016x}",
            }
            db.executemany(
                "insert into tags (key, value, run_uuid) values (?, ?, ?)",
                [(key, value, of["run_uuid"]) for key, value in tags.items()],
            )
    return client, uri, Store.open(str(tmp_path / "store")), experiment


def test_the_writer_knows_every_run(tree):
    _, uri, store, _ = tree
    writer = Writer(uri, "smoke", EXECUTION, store)
    assert len(writer.runs) == COUNT + 1 and "" in writer.runs
    assert len(writer.ended) == COUNT - len(LAST)
    assert sum(len(found) for found in runs_of(uri).values()) == COUNT + 1


def test_a_cancellation_reaches_the_last_page(tree):
    client, uri, store, experiment = tree
    Writer(uri, "smoke", EXECUTION, store).cancel()
    states = {r.data.tags.get("ediffi.node"): r for r in every(client.search_runs, [experiment])}
    assert {states[node].info.status for node in (None, *LAST)} == {"KILLED"}
    assert {r.info.status for r in states.values()} == {"KILLED", "FINISHED"}


def test_the_run_that_made_an_ensemble_is_found(tree):
    client, _, _, experiment = tree
    entry = Entry(fingerprint="0", folder="", why="", by=f"run {EXECUTION}")
    [run] = registry._runs(client, experiment, entry)
    assert "ediffi.node" not in client.get_run(run).data.tags


def test_the_searches_of_the_page_return_every_run(tree):
    client, _, _, experiment = tree
    for question in ("Which experts does the tree have?", "What is below E1_1?"):
        found = {
            r.info.run_id for r in every(client.search_runs, [experiment], search_on_page(question))
        }
        assert len(found) == COUNT
