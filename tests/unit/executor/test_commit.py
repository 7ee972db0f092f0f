"""Committing a node: the manifest first, then interim results go."""

import pytest
from planning_kit import edited

from pipelines.dag import plan
from pipelines.executor.commit import commit
from pipelines.runs.context import Result
from pipelines.store.artifacts import Store


@pytest.fixture
def store(tmp_path):
    return Store.at(str(tmp_path))


@pytest.fixture
def verdict(store):
    return next(iter(plan.make(edited(), store, {}).verdicts.values()))


def written(store, verdict):
    for name in ("scores.json", "parts/64/0.json", "parts/64/1.json"):
        store.write_json(f"{verdict.folder}/{name}", {})
    return Result(files=["scores.json"], scratch=["parts"])


def test_interim_results_are_removed(store, verdict):
    manifest = commit(store, verdict, written(store, verdict), {}, 1.0)
    assert set(store.files(verdict.folder)) == {"scores.json", "manifest.json"}
    assert set(manifest["files"]) == {"scores.json"}


def test_they_stay_if_the_manifest_is_not_written(store, verdict, monkeypatch):
    def full_disk(*_, **__):
        raise OSError("no space left")

    monkeypatch.setattr(Store, "commit", full_disk)
    with pytest.raises(OSError, match="no space"):
        commit(store, verdict, written(store, verdict), {}, 1.0)
    assert {"parts/64/0.json", "parts/64/1.json"} <= set(store.files(verdict.folder))
