"""What `ediffi gc` keeps after a year of retrainings, and that it may be killed or run beside."""

import json
import os
import shutil

import pytest
from year_kit import FAILED, INTERRUPTED, MODEL, Year

from pipelines.dag.champion import Champion
from pipelines.models import champions
from pipelines.runs import collect as collecting
from pipelines.runs.claims import Claims
from pipelines.runs.collect import (
    check_present,
    collect,
    find_garbage,
    is_collecting,
    removed_versions,
)
from pipelines.runs.execution import by_id, latest
from pipelines.runs.lease import LeaseLost, only_driver
from pipelines.runs.needed import Policy
from pipelines.store.artifacts import Store
from pipelines.store.dataset import Version

pytestmark = pytest.mark.slow

WEEKS = 30


@pytest.fixture
def store(folder_or_bucket):
    return folder_or_bucket


@pytest.fixture(scope="module")
def year(tmp_path_factory):
    """The store that :func:`folder` copies."""
    made = tmp_path_factory.mktemp("year")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)  # no power is lost here, and it takes minutes
        Year(Store.at(str(made))).run(WEEKS)
    return made


@pytest.fixture
def folder(year, tmp_path):
    """A year's store in a folder."""
    return Store.at(str(shutil.copytree(year, tmp_path / "store")))


def ancestors(store, folder):
    """Every node that one was made from, by the manifests alone."""
    manifest = json.loads(store.read(f"{folder}/manifest.json"))
    found = {folder}
    for made in manifest["inputs"].values():
        found |= ancestors(store, f"nodes/{made['node']}-{made['fingerprint']}")
    return found


def line_of(store):
    return champions.succession(champions.read(store, MODEL).history)


def everything(store):
    return {path: store.read(path) for path in store.files("")}


def test_what_the_last_champions_need_stays_complete(store):
    weeks = WEEKS if store.is_local else 6
    Year(store).run(weeks)
    needed = [ancestors(store, entry.folder) for entry in line_of(store)[-3:]]
    before = store.files("")
    garbage = collect(store, Policy(champions=2, runs=1))
    after = store.files("")
    assert garbage.removed["nodes"] and garbage.removed["shards"] and garbage.removed["runs"]
    removed = {path for of in garbage.files.values() for path in of}
    assert before.keys() - after.keys() == removed
    assert after == {path: size for path, size in before.items() if path not in removed}
    for node in set().union(*needed):
        assert store.manifest(node) is not None, node
        if node.startswith("nodes/embed/"):
            assert Version.open(store, node).missing() == []
    for back in range(3):
        entry = champions.read(store, MODEL).champion
        assert Champion.load(store, MODEL, entry.folder, entry.fingerprint).manifest["weights"]
        assert by_id(store, entry.by.removeprefix("run ")) or back
        if back < 2:
            champions.roll_back(store, MODEL)


def test_ensembles_beyond_those_kept_go_and_cannot_be_restored(folder):
    line = line_of(folder)
    gone = [e for e in line[:-2] if e.folder not in ancestors(folder, line[-1].folder)]
    collect(folder, Policy(champions=1))
    assert all(folder.manifest(entry.folder) is None for entry in gone)
    assert len(gone) > 3
    champions.roll_back(folder, MODEL)
    with pytest.raises(ValueError, match="is no longer in"):
        champions.roll_back(folder, MODEL)


def test_removed_versions_are_those_without_an_ensemble(folder):
    garbage = collect(folder, Policy())
    book = champions.read(folder, MODEL)
    without = [f for f, e in book.versions.items() if folder.manifest(e.folder) is None]
    assert sorted(removed_versions(folder, garbage)[MODEL]) == sorted(without)
    assert len(without) > WEEKS // 2


def test_looking_changes_nothing(folder):
    before = everything(folder)
    found = find_garbage(folder, Policy())
    assert everything(folder) == before
    assert found.amount("nodes").bytes > 0
    assert sum(found.amount(kind).files for kind in collecting.KINDS) == len(
        {path for of in found.files.values() for path in of}
    )


def test_a_second_collection_finds_nothing(folder):
    collect(folder, Policy())
    before = everything(folder)
    assert not any(collect(folder, Policy()).removed.values())
    assert everything(folder) == before


def test_more_is_kept_with_higher_numbers(folder):
    kept = [
        find_garbage(folder, Policy(champions=champions, runs=runs)).kept["nodes"].count
        for champions, runs in ((0, 1), (4, 1), (4, 10), (1000, 1000))
    ]
    assert kept == sorted(set(kept))
    assert not find_garbage(folder, Policy(champions=0, runs=1000)).removed["nodes"]


@pytest.mark.parametrize("wrong", [{"champions": -1}, {"runs": 0}])
def test_a_policy_that_keeps_too_little_is_refused(wrong):
    with pytest.raises(ValueError, match="write --keep 0 or more and --runs 1 or more"):
        Policy(**wrong)


def test_an_unfinished_run_keeps_its_checkpoints_and_a_failed_one_does_not(folder):
    runs = sorted(path for path in folder.files("executions") if path.count(".") == 1)
    of = {
        week: by_id(folder, runs[week].removesuffix(".json")).nodes["train/base/E1_0"]
        for week in (FAILED, INTERRUPTED)
    }
    collect(folder, Policy())
    assert not folder.files(of[FAILED]["folder"])
    assert folder.files(of[INTERRUPTED]["folder"])
    assert all(folder.manifest(parent) for parent in of[INTERRUPTED]["reads"])


def test_shards_stay_while_an_embedding_is_not_finished(folder):
    run = latest(folder, MODEL)
    run.nodes["embed/train"]["folder"] = unfinished = f"nodes/embed/train-{'e' * 16}"
    run.state = "interrupted"
    run.save(folder)
    garbage = find_garbage(folder, Policy())
    assert not garbage.removed["shards"] and garbage.removed["nodes"]
    assert garbage.notes == (f"all shards stay: {unfinished} is not finished and may need them",)


def test_a_node_that_a_live_driver_builds_stays(folder):
    removed = find_garbage(folder, Policy()).removed["nodes"]
    node = next(folder for folder in removed if folder.startswith("nodes/evaluate/"))
    with only_driver(folder, "other") as lease:
        claims = Claims(folder, "other", lease)
        assert claims.acquire(node) is None
        garbage = collect(folder, Policy())
        assert node not in garbage.removed["nodes"] and folder.files(node)
        assert garbage.notes == (f"{node} stays: pipeline other builds it",)
        claims.check(node)
    assert node in collect(folder, Policy()).removed["nodes"]


@pytest.mark.parametrize("after", [0, 1, 7, 40, 150, 300])
def test_a_killed_collection_leaves_no_half_result_and_the_next_ends_it(folder, monkeypatch, after):
    """Whatever still has a manifest is complete, and every listed shard with a record is there."""
    calls = [0]

    class Kill(BaseException):
        pass

    def dies(of):
        def remove(self, path):
            calls[0] += 1
            if calls[0] > after:
                raise Kill
            of(self, path)

        return remove

    whole = find_garbage(folder, Policy())
    with monkeypatch.context() as patch:
        for name in ("remove", "remove_folder"):
            patch.setattr(Store, name, dies(getattr(Store, name)))
        with pytest.raises(Kill):
            collect(folder, Policy())
    for path in folder.files("nodes"):
        if path.endswith("/manifest.json"):
            assert folder.manifest(f"nodes/{path.removesuffix('/manifest.json')}"), path
    for path in folder.files("embeddings"):
        if path.endswith(".json"):
            assert folder.size(f"embeddings/{path.removesuffix('.json')}.parquet"), path
    collect(folder, Policy())
    after_all = find_garbage(folder, Policy())
    assert after_all.kept == whole.kept and not any(after_all.removed.values())


def test_two_collections_do_not_run_at_once(folder):
    assert not is_collecting(folder)
    with only_driver(folder, collecting.LEASE):
        assert is_collecting(folder)
        with pytest.raises(ValueError, match="another `ediffi gc` collects"):
            collect(folder, Policy())
    assert not is_collecting(folder)


def test_a_collection_that_could_not_renew_its_lease_stops(folder, monkeypatch):
    before = everything(folder)
    monkeypatch.setattr(collecting.Lease, "is_overdue", property(lambda _: True))
    with pytest.raises(LeaseLost, match="nothing more is removed"):
        collect(folder, Policy())
    kept = {k: v for k, v in everything(folder).items() if not k.startswith("leases/")}
    assert kept == {k: v for k, v in before.items() if not k.startswith("leases/")}


def test_a_run_is_told_that_results_it_wanted_to_reuse_are_gone(folder):
    finished = [n for n in find_garbage(folder, Policy()).removed["nodes"] if folder.manifest(n)]
    check_present(folder, {"train/base/E1_0": finished[0]})
    collect(folder, Policy())
    with pytest.raises(ValueError, match="removed the results of train/base/E1_0 while"):
        check_present(folder, {"train/base/E1_0": finished[0], "x": line_of(folder)[-1].folder})
    assert not folder.files(finished[0])
