"""Two drivers at once: of one pipeline, of which one works; of two that share what they make."""

import json
import signal

import mlflow
import pytest
from kit import SMOKE, call, driver, kill, spec_with

pytestmark = pytest.mark.slow

NODE = "train/base/E1_1"


def stopped(running, pause):
    running.process.send_signal(signal.SIGSTOP if pause else signal.SIGCONT)


@pytest.mark.soak
def test_one_works_and_what_two_pipelines_share_is_trained_once(smoke, tmp_path, capsys):
    """The first is paused while it trains, until the others have come upon it."""
    store = smoke.copy(tmp_path / "store", NODE)
    other = spec_with(tmp_path / "other.yaml", lambda raw: raw.update(name="other"))
    with driver(SMOKE, store, tmp_path / "log1") as first:
        first.until(lambda: f"{NODE} started" in first.text(), "the start of E1_1")
        stopped(first, pause=True)
        assert call("run", SMOKE, "--storage", store) == 2
        second = capsys.readouterr().err
        assert "ediffi: pipeline smoke is already running (" in second
        assert f", process {first.pid}, last heartbeat " in second
        with driver(other, store, tmp_path / "log2") as third:
            waits = f"{NODE} is being built by pipeline smoke ("
            third.until(lambda: waits in third.text(), "waiting for the first")
            stopped(first, pause=False)
            assert first.finish() == 0, first.text()
            assert third.finish() == 0, third.text()
            assert third.text().count(waits) == 1
            assert f"{NODE} reused: another pipeline has built it in the meantime" in third.text()
            assert f"{NODE} started" not in third.text()
    execution = json.loads(next(store.glob("executions/other-*[0-9].json")).read_text())
    assert execution["state"] == "done" and execution["nodes"][NODE]["state"] == "reused"
    check_record(store)


def check_record(store):
    """Each pipeline's own experiment has the node: trained in one, reused from there in other."""
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{store}/mlflow.db")
    states = {}
    for name in ("smoke", "other"):
        experiment = client.get_experiment_by_name(name).experiment_id
        runs = client.search_runs([experiment], max_results=1000)
        assert {run.info.status for run in runs} == {"FINISHED"}
        [node] = [run for run in runs if run.data.tags.get("ediffi.node") == NODE]
        states[name] = node.data.tags["ediffi.state"]
    assert states == {"smoke": "done", "other": "reused"}


@pytest.mark.soak
def test_a_waiting_pipeline_takes_over_when_the_other_dies(smoke, tmp_path):
    store = smoke.copy(tmp_path / "store", NODE)
    other = spec_with(tmp_path / "other.yaml", lambda raw: raw.update(name="other"))
    with driver(SMOKE, store, tmp_path / "log1") as first:
        first.until(lambda: f"{NODE} started" in first.text(), "the start of E1_1")
        stopped(first, pause=True)
        with driver(other, store, tmp_path / "log2") as second:
            waits = f"{NODE} is being built by pipeline smoke ("
            second.until(lambda: waits in second.text(), "waiting for the first")
            kill(first.pid, *first.look())
            first.process.wait()
            assert second.finish() == 0, second.text()
            assert f"{NODE} done in " in second.text()
