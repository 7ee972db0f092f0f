"""Failures that are not kills: bad rows, and a node that fails while its siblings go on."""

import json

import pytest
from kit import call, ediffi, spec_with, strict_json

from pipelines.demo.make import write_parquet

pytestmark = pytest.mark.slow


def spoil(file, rows, change, column="image"):
    """Changes a column of some rows of a Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(file).to_pylist()
    for i in rows:
        table[i][column] = change(table[i][column])
    pq.write_table(pa.Table.from_pylist(table), file)


@pytest.mark.soak
def test_bad_rows_are_quarantined_and_counted_but_a_split_of_nothing_else_is_a_mistake(
    smoke, tmp_path
):
    """Parquet of the user's own, with bad rows in training and only bad ones beside it."""
    train, validation = tmp_path / "train", tmp_path / "validation"
    shards = write_parquet(train, split="train", count=12, shards=2, quiet=True)
    [other] = write_parquet(validation, split="validation", count=4, shards=1, quiet=True)
    spoil(shards[1], [3], lambda _: b"no picture at all")
    spoil(shards[1], [4], lambda caption: caption.replace(" ", "\0", 1), "caption")
    spoil(shards[0], [0, 5], lambda whole: whole[: len(whole) // 2])
    spoil(other, range(4), lambda whole: whole[: len(whole) // 2])

    def change(raw):
        tiny = smoke.folder("encoders/tiny")
        raw |= {"name": "own", "cpus": 1, "encoders": {k: str(tiny / k) for k in ("t5", "clip")}}
        raw["data"] = {"train": {"path": str(train)}, "validation": {"path": str(validation)}}
        raw["stages"]["base"] |= {"experts": {"E0_0": {"images": 16}}, "ensemble": ["E0_0"]}
        del raw["stages"]["base"]["single"]

    store = tmp_path / "store"
    end = ediffi("run", spec_with(tmp_path / "own.yaml", change), "--storage", store)
    assert "embed/train done" in end.stdout
    told = "1 (caption has control characters), 2 (image is damaged or cut short), 1 (image is of"
    assert f"8 rows; quarantined {told} no known format)" in end.stdout
    [manifest] = [
        json.loads(m.read_text()) for m in store.glob("nodes/embed/train-*/manifest.json")
    ]
    metrics = manifest["metrics"]
    assert (metrics["read"], metrics["rows"], metrics["quarantined"]) == (12, 8, 4)
    assert manifest["info"]["quarantined"] == {
        "caption has control characters": 1,
        "image is damaged or cut short": 2,
        "image is of no known format": 1,
    }
    [rows] = (store / manifest["info"]["pool"]).glob(f"{shards[1].stem}-*.json")
    assert [
        (f["key"], f["source"], f["reason"]) for f in json.loads(rows.read_text())["faults"]
    ] == [
        ("train-000009", shards[1].name, "image is of no known format"),
        ("train-000010", shards[1].name, "caption has control characters"),
    ]

    assert end.returncode == 2
    [line] = end.stderr.splitlines()
    assert line.startswith("ediffi: embed/validation: no row of")
    assert "(4 × image is damaged or cut short); see `faults` in" in line
    assert "Traceback" not in end.stdout


def test_a_node_that_fails_stops_only_what_needs_it(smoke, tmp_path, capsys):
    """E1_1 cannot write its weights: its sibling E1_0 ends, the ensemble of both is skipped.

    E1_1 is not tried again, which test_notice.py has.
    """

    def change(raw):
        raw["stages"]["base"]["workers"] = {"retries": {"bugs": 0}}

    store = smoke.copy(
        tmp_path / "store",
        "train/base/E1_",
        "adopt/base",
        "evaluate/base/ensemble",
        "evaluate/sr32",
        "promote",
    )
    blocked = store / "nodes/train/base" / smoke.folder("train/base/E1_1").name / "ema.safetensors"
    (blocked / "in the way").mkdir(parents=True)

    spec = spec_with(tmp_path / "smoke.yaml", change)
    end = ediffi("run", spec, "--storage", store)
    assert end.returncode == 1, end.stdout
    assert "Traceback" not in end.stdout + end.stderr
    [line] = [x for x in end.stderr.splitlines() if x.startswith("ediffi: ")]
    assert line.startswith("ediffi: train/base/E1_1: ") and "Is a directory" in line
    [trace] = store.glob("executions/*/train/base/E1_1.txt")
    assert str(trace) in end.stdout and "Traceback" in trace.read_text()
    capsys.readouterr()
    assert call("status", "--json", "--storage", store) == 0
    status = strict_json(capsys.readouterr().out)
    assert status["state"] == "failed"
    by_state = {}
    for node, record in status["nodes"].items():
        by_state.setdefault(record["state"], set()).add(node)
    assert by_state.pop("failed") == {"train/base/E1_1"}
    skipped = {"adopt/base", "evaluate/base/ensemble", "evaluate/sr32/ensemble", "promote/smoke"}
    assert by_state.pop("skipped") == skipped
    assert by_state.pop("done") == {"train/base/E1_0"}
    assert by_state.keys() == {"reused"}
    assert list(store.glob("nodes/train/base/E1_0-*/manifest.json"))
    assert not list(store.glob("nodes/train/base/E1_1-*/manifest.json"))
    check_record(store)


def check_record(store):
    """MLflow says the same, with the reason."""
    import mlflow

    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{store}/mlflow.db")
    experiment = client.get_experiment_by_name("smoke").experiment_id
    runs = client.search_runs([experiment], "attributes.status = 'FAILED'")
    failed = {r.data.tags.get("ediffi.node"): r for r in runs}
    assert failed.keys() == {"train/base/E1_1", None}  # the node's, and the execution's
    assert "ema.safetensors" in failed["train/base/E1_1"].data.tags["ediffi.error"]
