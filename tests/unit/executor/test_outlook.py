"""The numbers of a run that Ray exports, and how often they are brought up to date."""

import pytest
from plan_kit import spec

from pipelines.dag import plan
from pipelines.executor import outlook as module
from pipelines.executor.outlook import METRICS, Outlook
from pipelines.runs.execution import begin
from pipelines.runs.lease import only_driver
from pipelines.runs.ray_meters import RayMeters
from pipelines.store.artifacts import Store

ROOT = "train/base/E0_0"


class Recorder(RayMeters):
    """Hands on to Ray, and keeps the last value of each series."""

    def __init__(self):
        super().__init__(METRICS)
        self.last = {}

    def set(self, name, value, **labels):
        super().set(name, value, **labels)
        self.last[(name, *(labels[label] for label in METRICS[name].labels[1:]))] = value


@pytest.fixture
def watched(tmp_path, monkeypatch):
    """An outlook on a run of the smoke spec whose root trains, its clock, and the run's plan."""
    store = Store.open(str(tmp_path))
    made = plan.make(spec(), store, {})
    execution = begin(made, store)
    execution.nodes = {i: {"state": "waiting"} for i in made.verdicts}
    execution.nodes[ROOT] = {
        "state": "running",
        "since": "2026-01-01T00:00:00+00:00",
        **{"done": 64, "of": 256, "unit": "images", "rate": 8.0},
    }
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    with only_driver(store, "smoke") as lease:
        found = Outlook(store, made, execution, lease)
        found.meters = Recorder()
        yield found, now, made


@pytest.mark.slow
def test_all_numbers_are_handed_to_ray(watched):
    outlook, _, made = watched
    outlook.refresh(made)
    last = outlook.meters.last
    assert last["ediffi_run_nodes", "waiting"] == len(made.verdicts) - 1
    assert last["ediffi_run_nodes", "running"] == 1
    assert last["ediffi_run_node_progress", ROOT] == 0.25
    assert last["ediffi_run_node_rate", ROOT, "images"] == 8.0
    assert last["ediffi_run_left_seconds",] == outlook.execution.left["seconds"] > 24.0
    beat = outlook.lease.holder.beat
    assert last["ediffi_run_lease_renewed_timestamp_seconds",] == beat
    outlook.failed(made.verdicts[ROOT])
    assert {name for name, *_ in last} | {"ediffi_run_failures"} == set(METRICS)


@pytest.mark.slow
def test_a_node_that_has_ended_has_no_speed_and_its_state_no_nodes(watched):
    outlook, now, made = watched
    outlook.refresh(made)
    outlook.execution.nodes[ROOT]["state"] = "done"
    outlook.refresh(made)  # not due yet
    assert outlook.meters.last["ediffi_run_node_rate", ROOT, "images"] == 8.0
    now[0] += module.EVERY_S
    outlook.refresh(made)
    assert outlook.meters.last["ediffi_run_node_rate", ROOT, "images"] == 0.0
    assert outlook.meters.last["ediffi_run_nodes", "running"] == 0
    assert outlook.meters.last["ediffi_run_nodes", "done"] == 1
