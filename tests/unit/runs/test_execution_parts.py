"""The record of a large run: a change writes little, and readers see all of it."""

import json

import pytest

from pipelines.planning.remaining import _built_lately
from pipelines.reports import status
from pipelines.runs.collect import _run_of
from pipelines.runs.execution import PART, Execution, by_id, latest, part_path
from pipelines.runs.needed import Policy, find_needed
from pipelines.store.artifacts import Store

ID = "large-20260101-000000-000000"


@pytest.fixture
def store(tmp_path):
    return Store.open(str(tmp_path))


def run_of(count):
    made = Execution(id=ID, pipeline="large", fingerprint="f", attempt=1, started="2026-01-01")
    for at in range(count):
        folder = f"nodes/train/base/E{at}-{at:016x}"
        made.nodes[f"train/base/E{at}"] = {"state": "done", "folder": folder}
    return made


def content(store):
    return {path: store.read(f"executions/{path}") for path in store.files("executions")}


def saved(store, run):
    """Paths of the files that a save changes."""
    before = content(store)
    run.save(store)
    return {path for path, data in content(store).items() if before.get(path) != data}


def test_a_small_run_is_one_file(store):
    run = run_of(PART)
    assert saved(store, run) == {f"{ID}.json", "large.latest.json"}
    record = store.read_json(f"executions/{ID}.json")
    assert len(record["nodes"]) == PART and "parts" not in record
    assert by_id(store, ID) == run == latest(store)


def test_a_change_of_a_large_run_writes_the_part_of_its_node(store):
    run = run_of(10 * PART)
    run.save(store)
    run.nodes["train/base/E0"] = {"state": "failed"}
    run.touch("train/base/E0")
    assert saved(store, run) == {f"{ID}/nodes-00000.json"}
    run.state = "done"
    assert saved(store, run) == {f"{ID}.json"}
    assert len(store.read(f"executions/{ID}.json")) < 1000
    assert by_id(store, ID) == run and len(run.nodes) == 10 * PART


def test_a_run_that_continues_finds_its_parts(store):
    run_of(3 * PART).save(store)
    again = by_id(store, ID)
    last = f"train/base/E{3 * PART - 1}"
    again.nodes[last]["state"] = "reused"
    again.touch(last)
    again.nodes["train/base/new"] = {"state": "waiting"}
    assert saved(store, again) == {f"{ID}.json", f"{ID}/nodes-00002.json", f"{ID}/nodes-00003.json"}
    assert by_id(store, ID) == again


def test_a_run_that_grows_beyond_one_file_is_parted(store):
    run = run_of(PART)
    run.save(store)
    run.nodes["train/base/new"] = {"state": "waiting"}
    run.touch("train/base/new")
    run.save(store)
    assert store.read_json(f"executions/{ID}.json")["nodes"] == {}
    assert by_id(store, ID) == run


def test_a_large_record_of_an_earlier_version_is_read_and_continued(store):
    run = run_of(3 * PART)
    record = {k: v for k, v in vars(run).items() if k[0] != "_" and k != "parts"}
    store.write(f"executions/{ID}.json", json.dumps(record).encode())
    again = by_id(store, ID)
    assert again == run
    again.save(store)
    assert by_id(store, ID) == again


def test_a_part_that_is_lost_is_named(store):
    run_of(2 * PART).save(store)
    store.remove(part_path(ID, 1))
    with pytest.raises(ValueError, match=r"nodes-00001\.json is missing, a part of the record"):
        by_id(store, ID)


def test_a_collection_and_an_estimate_see_the_nodes_of_parts(store):
    run = run_of(2 * PART)
    run.save(store)
    folders = {record["folder"] for record in run.nodes.values()}
    files = {f"executions/{path}": 1 for path in store.files("executions")}
    assert find_needed(store, Policy(), files).nodes.keys() == folders
    assert set(_built_lately(store)) == folders
    assert {_run_of(path) for path in files if not path.endswith("latest.json")} == {ID}


def test_its_status_is_json_without_what_only_saving_needs(store):
    run = run_of(1)
    run.touch("train/base/E0")
    shown = json.loads(json.dumps(status.data(store, run)))
    assert shown["nodes"] == run.nodes
    assert not {k for k in shown if k.startswith("_")} and "parts" not in shown
