"""Candidate and champion: promotion, rollback, refusals, and an append-only history."""

import json
import threading
from pathlib import Path

import pytest

from pipelines.models import champions
from pipelines.models.champions import Entry
from pipelines.store.artifacts import Store

A, B, C = (letter * 16 for letter in "abc")


def entry(fingerprint, by="run smoke-1"):
    return Entry(fingerprint=fingerprint, folder=f"nodes/promote/m-{fingerprint}", why="new", by=by)


@pytest.fixture
def store(tmp_path):
    """A store with three finished ensembles."""
    return with_ensembles(Store.at(str(tmp_path)))


@pytest.fixture(params=["folder", "bucket"])
def either(request, tmp_path):
    """The same in a folder and in a bucket."""
    if request.param == "folder":
        return with_ensembles(Store.at(str(tmp_path / "store")))
    request.getfixturevalue("s3")
    return with_ensembles(Store.at(f"s3://bucket/{tmp_path.name}/store"))


def with_ensembles(made):
    for fingerprint in (A, B, C):
        made.write_json(f"{entry(fingerprint).folder}/ensemble.json", {})
    return made


@pytest.fixture
def filled(store):
    """Three ensembles, each added and promoted in turn."""
    for fingerprint in (A, B, C):
        champions.add_candidate(store, "m", entry(fingerprint))
        champions.promote(store, "m", fingerprint, "better", by="run smoke-1")
    return store


def champion(store):
    return champions.read(store, "m").champion.fingerprint


def test_the_newest_ensemble_is_the_candidate(store):
    assert champions.read(store, "m") == champions.Registry()
    champions.add_candidate(store, "m", entry(A))
    registry = champions.add_candidate(store, "m", entry(B))
    assert registry == champions.read(store, "m")
    assert registry.candidate.fingerprint == B and registry.champion is None
    assert [e.fingerprint for e in registry.history] == [A, B]


def test_adding_and_promoting_twice_changes_no_byte(filled):
    path = Path(filled.full("registry/m.json"))
    before = path.read_bytes()
    champions.add_candidate(filled, "m", entry(C, by="run smoke-2"))
    champions.promote(filled, "m", C, "again", by="run smoke-2")
    champions.promote(filled, "m", C, "again")
    assert path.read_bytes() == before


def test_the_file_is_json_of_four_keys(filled):
    raw = json.loads(Path(filled.full("registry/m.json")).read_text())
    assert set(raw) == {"candidate", "champion", "history", "seals"}
    assert raw["champion"]["by"] == "run smoke-1" and raw["champion"]["why"] == "better"
    assert raw["champion"]["folder"] == f"nodes/promote/m-{C}"
    assert champions.models(filled) == ["m"]


def test_a_gates_numbers_are_kept(store):
    champions.add_candidate(store, "m", entry(A))
    registry = champions.promote(store, "m", A, "better", by="run smoke-1", numbers={"gain": 0.25})
    assert champions.read(store, "m").champion.numbers == {"gain": 0.25}
    assert registry.champion.what == "promoted"


def test_rollbacks_go_back_one_champion_each(filled):
    champions.roll_back(filled, "m")
    assert champion(filled) == B
    registry = champions.roll_back(filled, "m", "B draws no greens")
    assert registry.champion.fingerprint == A and registry.champion.why == "B draws no greens"
    with pytest.raises(ValueError, match="cannot be rolled back: only aaaaaaaa was its champion"):
        champions.roll_back(filled, "m")
    assert champion(filled) == A
    assert registry.candidate.fingerprint == C


def test_a_rollback_skips_what_was_rolled_back_before(filled):
    champions.roll_back(filled, "m")  # C → B
    champions.promote(filled, "m", A, "after all")
    champions.roll_back(filled, "m")
    assert champion(filled) == B


def test_without_a_champion_there_is_nothing_to_roll_back(store):
    champions.add_candidate(store, "m", entry(A))
    with pytest.raises(ValueError, match="it has no champion"):
        champions.roll_back(store, "m")


def test_a_refused_rollback_leaves_nothing_behind(tmp_path):
    with pytest.raises(ValueError, match="it has no champion"):
        champions.roll_back(Store.at(str(tmp_path / "mistyped")), "m")
    assert not (tmp_path / "mistyped").exists()


def test_history_only_grows(filled):
    before = champions.read(filled, "m").history
    champions.roll_back(filled, "m")
    champions.promote(filled, "m", A, "the old one after all")
    after = champions.read(filled, "m").history
    assert after[: len(before)] == before
    assert [e.what for e in after[len(before) :]] == ["rolled back to", "promoted"]


def test_a_rerun_does_not_undo_a_persons_choice(filled):
    champions.roll_back(filled, "m")
    champions.promote(filled, "m", C, "better", by="run smoke-2")
    assert champion(filled) == B
    champions.promote(filled, "m", C, "I looked at its pictures")
    assert champion(filled) == C


def test_an_unknown_ensemble_cannot_be_promoted(filled):
    with pytest.raises(ValueError, match=r"m has no ensemble 'ffff'; .* `ediffi models m`"):
        champions.promote(filled, "m", "ffff", "better")


def test_an_ensemble_removed_from_the_store_cannot_become_champion(filled):
    filled.remove(f"{entry(B).folder}/ensemble.json")
    for step in (champions.roll_back, lambda s, m: champions.promote(s, m, B, "better")):
        with pytest.raises(ValueError, match=r"ensemble bbbbbbbb is no longer in .*; run its spec"):
            step(filled, "m")
    assert champion(filled) == C


def test_ensembles_are_found_by_version_alias_and_fingerprint(filled):
    champions.roll_back(filled, "m")
    champions.add_candidate(filled, "m", entry(B[:8] + "0" * 8))
    registry = champions.read(filled, "m")
    names = ("1", "3", A[:4], "champion", "candidate")
    assert [registry.find("m", n).fingerprint for n in names] == [A, C, A, B, B[:8] + "0" * 8]
    for wrong in ("0", "5", "aaa", "", "zzzz"):
        with pytest.raises(ValueError, match="no ensemble"):
            registry.find("m", wrong)
    with pytest.raises(ValueError, match="2 ensembles 'bbbb'"):
        registry.find("m", "bbbb")


def test_a_missing_alias_says_how_to_get_one(store):
    with pytest.raises(ValueError, match="m has no candidate yet; `ediffi run` makes one"):
        champions.read(store, "m").find("m", "candidate")
    registry = champions.add_candidate(store, "m", entry(A))
    with pytest.raises(ValueError, match="m has no champion yet; `ediffi promote` makes one"):
        registry.find("m", "champion")


def test_a_file_of_another_kind_is_refused(store):
    store.write_json("registry/m.json", {"candidate": None})
    with pytest.raises(ValueError, match=r"registry/m\.json is not a registry file"):
        champions.read(store, "m")


def test_concurrent_writers_lose_no_entry(store):
    fingerprints = [f"{i:016x}" for i in range(16)]
    threads = [
        threading.Thread(target=champions.add_candidate, args=(store, "m", entry(fingerprint)))
        for fingerprint in fingerprints
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(e.fingerprint for e in champions.read(store, "m").history) == fingerprints


def test_a_registry_of_version_0_1_0_is_read(store):
    entry = {"fingerprint": "f" * 16, "folder": "nodes/promote/m-f", "why": "better", "by": "run r"}
    entry |= {"when": "2026-11-27T00:00:00+00:00", "what": "crowned", "numbers": {}}
    raw = {"candidate": entry, "champion": entry, "history": [entry | {"what": "offered"}, entry]}
    store.write_json(champions.registry_path("m"), raw)
    found = champions.read(store, "m")
    assert found.champion.what == "promoted"
    assert [e.what for e in found.history] == ["offered", "promoted"]


def test_a_choice_made_amid_another_change_is_kept(either, monkeypatch):
    """A person promotes while a run offers its ensemble: neither vanishes, nor does any history."""
    champions.add_candidate(either, "m", entry(A))
    swap, choices = champions.compare_and_swap, [B, C]

    def overtaken(store, path, seen, data):
        if choices:
            chosen = choices.pop()
            champions.add_candidate(store, "m", entry(chosen))
            champions.promote(store, "m", chosen, "I looked at its pictures")
        return swap(store, path, seen, data)

    monkeypatch.setattr(champions, "compare_and_swap", overtaken)
    monkeypatch.setattr(champions.time, "sleep", lambda _: None)
    late = f"{1:016x}"
    champions.add_candidate(either, "m", entry(late, by="run smoke-7"))
    book = champions.read(either, "m")
    assert not choices and book.candidate.fingerprint == late
    assert book.champion is not None
    assert {e.fingerprint for e in book.history} == {A, B, C, late}
    promoted = [e.fingerprint for e in book.history if e.what == "promoted"]
    assert sorted(promoted) == [B, C] and book.champion.fingerprint == promoted[-1]


def test_a_gates_decision_holds_for_the_champion_that_it_saw(either):
    for fingerprint in (A, B, C):
        champions.add_candidate(either, "m", entry(fingerprint))
    champions.promote(either, "m", A, "first", instead_of=None)
    champions.promote(either, "m", B, "by hand")
    before = champions.read(either, "m")
    with pytest.raises(champions.ChampionChanged, match="bbbbbbbb is the champion now"):
        champions.promote(either, "m", C, "beats A", by="run smoke-3", instead_of=A)
    with pytest.raises(champions.ChampionChanged, match="compared with none"):
        champions.promote(either, "m", C, "first", by="run smoke-3", instead_of=None)
    assert champions.read(either, "m") == before
    champions.promote(either, "m", C, "beats B", by="run smoke-3", instead_of=B)
    assert champion(either) == C
    champions.promote(either, "m", C, "beats B", by="run smoke-3", instead_of=B)  # told twice
    assert champion(either) == C


def test_a_registry_that_never_rests_is_an_error(store, monkeypatch):
    monkeypatch.setattr(champions, "compare_and_swap", lambda *_: False)
    monkeypatch.setattr(champions.time, "sleep", lambda _: None)
    with pytest.raises(OSError, match="was changed by others 50 times"):
        champions.add_candidate(store, "m", entry(A))
