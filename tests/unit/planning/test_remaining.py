"""The remaining time follows from the speeds of what runs and from the store's history."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from plan_kit import finish, spec

from pipelines.dag import plan
from pipelines.planning.remaining import Durations, durations_in, estimate
from pipelines.planning.training_cost import START_S
from pipelines.store.artifacts import Store

NOW = datetime(2026, 1, 1, 1, 0, 0, tzinfo=UTC)
ROOT, HIGH, LOW = (f"train/base/{name}" for name in ("E0_0", "E1_1", "E1_0"))


def waiting(made, *names):
    """The part of a run's record of these nodes; all others count as done."""
    return {i: {"state": "waiting" if i in names else "done"} for i in made.verdicts}


def running(rate, done=64, of=256):
    since = (NOW - timedelta(seconds=30)).isoformat()
    record = {"state": "running", "since": since, "done": done, "of": of, "unit": "images"}
    return record | ({"rate": rate} if rate else {})


@pytest.fixture
def store(tmp_path):
    return Store.at(str(tmp_path))


def plan_of(store, cpus=2):
    return plan.make(spec(lambda raw: raw.update(cpus=cpus)), store, {})


def timed(store, made, node, seconds, trained_now=0):
    """As if an earlier run had built the node in so many seconds, of other settings."""
    verdict = replace(made.verdicts[node], fingerprint=f"{len(store.files('executions')):016x}")
    info = {"trained_now": trained_now}
    kind, name = verdict.node.kind, verdict.node.name
    finish(store, verdict, seconds=seconds, info=info, kind=kind, name=name)
    record = {"nodes": {node: {"state": "done", "folder": verdict.folder}}}
    count = len(store.files("executions"))
    store.write_json(f"executions/other-20260101-000000-{count:06}.json", record)


def test_a_node_that_runs_goes_on_at_its_own_speed(store):
    made = plan_of(store)
    nodes = waiting(made) | {ROOT: running(rate=12.8, done=64, of=256)}
    found = estimate(made, nodes, Durations(), NOW)
    assert found == {"seconds": 15.0, "unknown": [], "grows": False}


def test_the_experts_that_wait_go_at_the_roots_speed_side_by_side_where_there_are_cpus(store):
    """Each of the two trains 128 images on one CPU."""

    def seconds(cpus):
        made = plan_of(store, cpus)
        nodes = waiting(made, HIGH, LOW) | {ROOT: running(rate=16.0, done=128, of=256)}
        return estimate(made, nodes, Durations(), NOW)["seconds"]

    assert seconds(1) == pytest.approx(8 + 2 * (START_S + 8), abs=0.1)
    assert seconds(2) == pytest.approx(8 + START_S + 8, abs=0.1)


def test_experts_on_one_gpu_train_one_after_another_whatever_the_cpus(store):
    def on_gpus(raw):
        raw.update(cpus=8, gpus=1)
        raw["stages"]["base"]["workers"] = {"gpus": 1}

    made = plan.make(spec(on_gpus), store, {})
    nodes = waiting(made, HIGH, LOW) | {ROOT: running(rate=16.0, done=128, of=256)}
    seconds = estimate(made, nodes, Durations(), NOW)["seconds"]
    assert seconds == pytest.approx(8 + 2 * (START_S + 8), abs=0.1)


def test_a_node_that_fits_nowhere_stops_no_estimate(store):
    made = plan_of(store)
    cramped = replace(made, spec=made.spec.model_copy(update={"cpus": 0}))
    nodes = waiting(made) | {ROOT: running(rate=12.8)}
    assert estimate(cramped, nodes, Durations(), NOW)["seconds"] == 15.0


def test_history_of_the_store_times_what_waits(store):
    made = plan_of(store)
    timed(store, made, "evaluate/base/ensemble", 40.0)
    timed(store, made, ROOT, START_S + 10.0, trained_now=1280)
    durations = durations_in(store, made)
    assert durations.seconds(made, made.verdicts["evaluate/base/ensemble"].node) == 40.0
    assert durations.seconds(made, made.verdicts["evaluate/sr32/ensemble"].node) == 40.0  # its kind
    speed = 128.0
    for name, images in ((ROOT, 256), (HIGH, 128)):
        expected = START_S + images / speed
        found = durations.seconds(made, made.verdicts[name].node)
        assert found == pytest.approx(expected)
    sr = made.verdicts["train/sr32/E0_0"].node  # another network
    assert durations.seconds(made, sr) is None


def test_the_same_node_counts_before_its_kind(store):
    made = plan_of(store)
    for node, seconds in (("evaluate/base/ensemble", 40.0), ("evaluate/base/single", 90.0)):
        timed(store, made, node, seconds)
    durations = durations_in(store, made)
    assert durations.seconds(made, made.verdicts["evaluate/base/single"].node) == 90.0
    assert (
        durations.seconds(made, made.verdicts["evaluate/base/root"].node) == 65.0
    )  # both stand in


def test_a_node_without_a_speed_yet_takes_the_rest_of_its_usual_time(store):
    made = plan_of(store)
    timed(store, made, "evaluate/base/ensemble", 40.0)
    record = {"state": "running", "since": (NOW - timedelta(seconds=30)).isoformat()}
    nodes = waiting(made) | {"evaluate/base/ensemble": record}
    assert estimate(made, nodes, durations_in(store, made), NOW)["seconds"] == 10.0


def test_what_was_never_timed_is_named(store):
    made = plan_of(store)
    nodes = waiting(made, HIGH)
    assert estimate(made, nodes, Durations(), NOW) == {
        "seconds": 0.0,
        "unknown": [HIGH],
        "grows": False,
    }


def test_a_damaged_record_of_another_run_does_no_harm(store):
    made = plan_of(store)
    timed(store, made, "evaluate/base/ensemble", 40.0)
    store.write("executions/other-20260102-000000-000000.json", b"{ half")
    store.write("nodes/data/train-bad/manifest.json", b"{ half")
    broken = {"nodes": {"data/train": {"state": "done", "folder": "nodes/data/train-bad"}}}
    store.write_json("executions/other-20260103-000000-000000.json", broken)
    durations = durations_in(store, made)
    assert durations.seconds(made, made.verdicts["evaluate/base/ensemble"].node) == 40.0
