"""A spec's GPUs, priorities and time limits are checked and reach the nodes."""

import pytest
import yaml
from paths import SMOKE

from pipelines.dag import sources
from pipelines.dag.nodes import nodes_of
from pipelines.spec import loading


@pytest.fixture
def load(tmp_path):
    """``load(change)`` → the smoke spec after ``change(its data)``."""

    def call(change):
        raw = yaml.safe_load(SMOKE.read_text())
        change(raw)
        path = tmp_path / "changed.yaml"
        path.write_text(yaml.safe_dump(raw))
        return loading.load(path)

    return call


def on_gpus(raw, gpus=2.0):
    raw["gpus"] = gpus
    raw["embedding"] |= {"t5": {"actors": 3, "gpus": 0.5}, "clip": {"gpus": 0.5}}
    raw["stages"]["base"] |= {
        "workers": {"count": 2, "gpus": 1.0, "labels": {"ediffi-group": "base"}},
        "priority": 1,
        "max_hours": 2.0,
    }
    raw["evaluate"] |= {"gpus": 0.5, "labels": {"ediffi-group": "sr"}}


def test_a_nodes_resources_are_those_of_all_its_processes(load):
    loaded = load(on_gpus)
    nodes = {n.id: n for n in nodes_of(loaded, sources.identify_all(loaded))}
    trained = nodes["train/base/E1_1"]
    assert (trained.resources, trained.priority) == ({"cpus": 2, "gpus": 2}, 1)
    assert trained.runtime["limit_hours"] == 2.0
    assert nodes["embed/train"].resources == {"cpus": 2, "gpus": 2}
    assert nodes["train/sr32/E0_0"].resources == {"cpus": 1, "gpus": 0}
    assert nodes["evaluate/base/root"].resources == {"cpus": 1, "gpus": 0.5}
    groups = {i: n.labels.get("ediffi-group") for i, n in nodes.items()}
    assert groups["train/base/E1_1"] == "base" and groups["evaluate/base/root"] == "sr"
    assert groups["train/sr32/E0_0"] is groups["embed/train"] is None
    assert nodes["train/sr32/E0_0"].priority == 0


def test_how_it_is_run_changes_no_result(load):
    plain = load(lambda raw: None)
    found = [
        {n.id: n.settings for n in nodes_of(each, sources.identify_all(each))}
        for each in (plain, load(on_gpus))
    ]
    assert found[0] == found[1]


def test_a_stage_that_needs_more_gpus_than_the_run_may_use_is_a_mistake(load):
    with pytest.raises(ValueError, match=r"base: 2 workers need 2 GPUs at once, .*`gpus: 2`"):
        load(lambda raw: on_gpus(raw, 1.0))
    with pytest.raises(ValueError, match=r"`embedding:` needs 1.5 GPUs at once"):
        load(lambda raw: raw.update(embedding={"t5": {"actors": 3, "gpus": 0.5}}))
    with pytest.raises(ValueError, match=r"`evaluate.gpus: 1` is more than `gpus:` allows \(0\)"):
        load(lambda raw: raw["evaluate"].update(gpus=1.0))
