"""Candidate and champion: what each step does, what is refused, that nothing is forgotten."""

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
    """Where the nodes of three ensembles are finished."""
    made = Store.at(str(tmp_path))
    for fingerprint in (A, B, C):
        made.write_json(f"{entry(fingerprint).folder}/ensemble.json", {})
    return made


@pytest.fixture
def filled(store):
    """Three ensembles, offered and crowned one after the other."""
    for fingerprint in (A, B, C):
        champions.offer(store, "m", entry(fingerprint))
        champions.crown(store, "m", fingerprint, "better", by="run smoke-1")
    return store


def champion(store):
    return champions.read(store, "m").champion.fingerprint


def test_the_newest_offer_is_the_candidate(store):
    assert champions.read(store, "m") == champions.Book()
    champions.offer(store, "m", entry(A))
    book = champions.offer(store, "m", entry(B))
    assert book == champions.read(store, "m")
    assert book.candidate.fingerprint == B and book.champion is None
    assert [e.fingerprint for e in book.history] == [A, B]


def test_offering_and_crowning_again_changes_no_byte(filled):
    place = Path(filled.full("registry/m.json"))
    before = place.read_bytes()
    champions.offer(filled, "m", entry(C, by="run smoke-2"))
    champions.crown(filled, "m", C, "again", by="run smoke-2")
    champions.crown(filled, "m", C, "again")
    assert place.read_bytes() == before


def test_the_file_is_json_of_three_keys(filled):
    raw = json.loads(Path(filled.full("registry/m.json")).read_text())
    assert set(raw) == {"candidate", "champion", "history"}
    assert raw["champion"]["by"] == "run smoke-1" and raw["champion"]["why"] == "better"
    assert raw["champion"]["folder"] == f"nodes/promote/m-{C}"
    assert champions.models(filled) == ["m"]


def test_a_gates_numbers_are_kept(store):
    champions.offer(store, "m", entry(A))
    book = champions.crown(store, "m", A, "better", by="run smoke-1", numbers={"gain": 0.25})
    assert champions.read(store, "m").champion.numbers == {"gain": 0.25}
    assert book.champion.what == "crowned"


def test_rollbacks_go_back_one_champion_each(filled):
    champions.roll_back(filled, "m")
    assert champion(filled) == B
    book = champions.roll_back(filled, "m", "B draws no greens")
    assert book.champion.fingerprint == A and book.champion.why == "B draws no greens"
    with pytest.raises(ValueError, match="cannot be rolled back: only aaaaaaaa was its champion"):
        champions.roll_back(filled, "m")
    assert champion(filled) == A
    assert book.candidate.fingerprint == C


def test_a_rollback_skips_what_was_rolled_back_before(filled):
    champions.roll_back(filled, "m")  # C → B
    champions.crown(filled, "m", A, "after all")
    champions.roll_back(filled, "m")
    assert champion(filled) == B


def test_without_a_champion_there_is_nothing_to_roll_back(store):
    champions.offer(store, "m", entry(A))
    with pytest.raises(ValueError, match="it has no champion"):
        champions.roll_back(store, "m")


def test_a_refused_rollback_leaves_nothing_behind(tmp_path):
    with pytest.raises(ValueError, match="it has no champion"):
        champions.roll_back(Store.at(str(tmp_path / "mistyped")), "m")
    assert not (tmp_path / "mistyped").exists()


def test_history_only_grows(filled):
    before = champions.read(filled, "m").history
    champions.roll_back(filled, "m")
    champions.crown(filled, "m", A, "the old one after all")
    after = champions.read(filled, "m").history
    assert after[: len(before)] == before
    assert [e.what for e in after[len(before) :]] == ["rolled back to", "crowned"]


def test_a_rerun_does_not_undo_a_persons_choice(filled):
    champions.roll_back(filled, "m")
    champions.crown(filled, "m", C, "better", by="run smoke-2")
    assert champion(filled) == B
    champions.crown(filled, "m", C, "I looked at its pictures")
    assert champion(filled) == C


def test_what_was_never_offered_cannot_be_crowned(filled):
    with pytest.raises(ValueError, match=r"m has no ensemble 'ffff'; .* `ediffi models m`"):
        champions.crown(filled, "m", "ffff", "better")


def test_what_was_removed_from_the_store_does_not_become_champion(filled):
    filled.remove(f"{entry(B).folder}/ensemble.json")
    for step in (champions.roll_back, lambda s, m: champions.crown(s, m, B, "better")):
        with pytest.raises(ValueError, match=r"ensemble bbbbbbbb is no longer in .*; run its spec"):
            step(filled, "m")
    assert champion(filled) == C


def test_ensembles_are_found_by_version_alias_and_fingerprint(filled):
    champions.roll_back(filled, "m")
    champions.offer(filled, "m", entry(B[:8] + "0" * 8))
    book = champions.read(filled, "m")
    names = ("1", "3", A[:4], "champion", "candidate")
    assert [book.find("m", n).fingerprint for n in names] == [A, C, A, B, B[:8] + "0" * 8]
    for wrong in ("0", "5", "aaa", "", "zzzz"):
        with pytest.raises(ValueError, match="no ensemble"):
            book.find("m", wrong)
    with pytest.raises(ValueError, match="2 ensembles 'bbbb'"):
        book.find("m", "bbbb")


def test_an_alias_that_nothing_has_says_what_gives_it(store):
    with pytest.raises(ValueError, match="m has no candidate yet; `ediffi run` makes one"):
        champions.read(store, "m").find("m", "candidate")
    book = champions.offer(store, "m", entry(A))
    with pytest.raises(ValueError, match="m has no champion yet; `ediffi promote` makes one"):
        book.find("m", "champion")


def test_a_file_of_another_kind_is_named(store):
    store.write_json("registry/m.json", {"candidate": None})
    with pytest.raises(ValueError, match=r"registry/m\.json is no registry file"):
        champions.read(store, "m")


def test_writers_at_once_lose_no_word_of_each_other(store):
    marks = [f"{i:016x}" for i in range(16)]
    threads = [
        threading.Thread(target=champions.offer, args=(store, "m", entry(mark))) for mark in marks
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(e.fingerprint for e in champions.read(store, "m").history) == marks
