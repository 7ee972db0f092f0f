"""A plan says why a node must run, and compares it only with a result of the same data."""

import pytest
from planning_kit import edited

from pipelines.dag import plan
from pipelines.dag.sources import assumed, identify_all
from pipelines.executor.commit import commit
from pipelines.runs.context import Result
from pipelines.store.artifacts import Store

OWN = {
    "data": {"train": {"path": "/a"}, "validation": {"path": "/b"}},
    "encoders": {"t5": "t5-small", "clip": "ViT-B-32"},
}
ENCODERS = {"t5": "t5-small", "clip": "ViT-B-32", "scorer": "ViT-B-32"}


def own_data(identity, encoders=None):
    split = assumed(100) | {"identity": identity}
    return {"train": split, "validation": split, "encoders": encoders or ENCODERS}


@pytest.fixture
def store(tmp_path):
    return Store.at(str(tmp_path))


def built(store, spec, sources):
    manifests = {}
    for v in plan.make(spec, store, sources).verdicts.values():
        manifests[v.node.id] = commit(store, v, Result(files=[]), manifests, 1.0)


def reasons(store, spec, sources):
    verdicts = plan.make(spec, store, sources).verdicts.values()
    return {v.node.id: v.why for v in verdicts if not v.cached}


def test_another_pipelines_results_are_not_compared(store):
    built(store, edited(), {})
    found = reasons(store, edited(**OWN), own_data("x"))
    assert set(found.values()) <= {plan.NOT_BUILT, "never done here"}
    assert found["embed/train"] == found["train/base/E0_0"] == plan.NOT_BUILT
    built(store, edited(**OWN), own_data("x"))
    other = own_data("y", dict.fromkeys(ENCODERS, "another"))
    assert reasons(store, edited(**OWN), other)["train/base/E0_0"] == plan.NOT_BUILT


def test_changes_of_the_same_pipeline_are_listed(store):
    built(store, edited(**OWN), own_data("x"))
    found = reasons(store, edited(**OWN), own_data("y"))
    assert found["embed/train"] == "its data changed"
    assert found["train/base/E0_0"] == "input embed/train changed"
    found = reasons(store, edited(**OWN, seed=9), own_data("x"))
    assert found["train/base/E0_0"].startswith("seed: ")


def test_settings_that_mostly_differ_are_not_listed():
    was = {"a": 1, "b": {"c": 2, "d": 3}, "e": 4}
    assert plan._mostly_differ(was, {"a": 9, "b": {"c": 9, "d": 9}, "e": 4})
    assert not plan._mostly_differ(was, {"a": 9, "b": {"c": 9, "d": 3}, "e": 4})
    assert not plan._mostly_differ({"a": 1}, {"a": 2})


def test_assuming_names_the_missing_pairs():
    with pytest.raises(ValueError, match=r"`data.train.pairs:` is missing.*/nowhere"):
        spec = edited(
            **OWN | {"data": {"train": {"path": "/nowhere"}, "validation": {"path": "/b"}}}
        )
        identify_all(spec, assume=True)
