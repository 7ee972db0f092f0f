"""``models``, ``promote`` and ``rollback``: names, reasons, questions, dry runs, exit codes."""

import json

import kit
import pytest

from pipelines.lineage import sync
from pipelines.models import champions
from pipelines.models.champions import Entry
from pipelines.store.artifacts import Store

ONE, TWO, THREE = ("1" * 16, "2" * 16, "3" * 16)


@pytest.fixture
def store(tmp_path):
    """Three ensembles, of which the first two were champion in turn."""
    made = Store.open(str(tmp_path / "store"))
    for fingerprint in (ONE, TWO, THREE):
        folder = f"nodes/promote/demo-{fingerprint}"
        made.write_json(f"{folder}/ensemble.json", {})
        entry = Entry(fingerprint=fingerprint, folder=folder, why="finished", by="run demo-1")
        champions.add_candidate(made, "demo", entry)
    for fingerprint in (ONE, TWO):
        champions.promote(made, "demo", fingerprint, "better")
    return made


@pytest.fixture
def told(monkeypatch):
    """The models that MLflow was told of."""
    names = []
    monkeypatch.setattr(sync, "sync_model", lambda store, model: names.append(model) or "uri")
    return names


@pytest.fixture
def ediffi(store, told, monkeypatch, capsys):
    """``ediffi(*words)`` → exit code, stdout and stderr on that store."""
    monkeypatch.delenv("EDIFFI_DEBUG", raising=False)

    def call(*words):
        capsys.readouterr()
        return kit.call(*words, "--storage", store.root), *capsys.readouterr()

    return call


def champion(store):
    return champions.read(store, "demo").champion


@pytest.mark.parametrize("words", [["demo"], ["demo", "candidate"], ["demo@3"], ["demo@3333"]])
def test_an_ensemble_is_promoted_by_whichever_name(ediffi, store, words):
    said = ediffi("promote", *words)
    assert said == (
        0,
        "demo: version 3 (33333333) is the champion instead of version 2 (22222222)\n",
        "",
    )
    assert (champion(store).fingerprint, champion(store).why) == (THREE, "by hand")


def test_two_names_are_one_too_many(ediffi, store):
    code, _, err = ediffi("promote", "demo@3", "2")
    assert code == 2 and "both name an ensemble" in err and champion(store).fingerprint == TWO


def test_a_reason_that_is_not_recorded_is_told(ediffi, store):
    before = champions.read(store, "demo")
    code, out, err = ediffi("promote", "demo", "2", "--why", "greener frogs")
    assert (code, out) == (0, "demo: version 2 (22222222) is the champion already\n")
    assert err == "note: nothing changes, so --why is not recorded\n"
    assert ediffi("promote", "demo", "2")[2] == ""
    assert champions.read(store, "demo") == before


def test_a_reason_is_recorded(ediffi, store):
    ediffi("promote", "demo", "--why", "greener frogs")
    assert champion(store).why == "greener frogs"
    ediffi("rollback", "demo", "--why", "cacti")
    assert (champion(store).fingerprint, champion(store).why) == (TWO, "cacti")


def test_a_dry_run_says_it_and_changes_nothing(ediffi, store, told):
    before = champions.read(store, "demo")
    out = ediffi("promote", "demo", "--dry-run")[1]
    assert out == (
        "demo: version 3 (33333333) would be the champion instead of version 2 (22222222)\n"
    )
    out = ediffi("rollback", "demo", "--dry-run")[1]
    assert out == "demo: version 1 (11111111) would be the champion again\n"
    assert champions.read(store, "demo") == before and told == []
    store.remove(f"nodes/promote/demo-{THREE}/ensemble.json")
    assert "is no longer in" in ediffi("promote", "demo", "--dry-run")[2]


def test_both_answer_as_json(ediffi, store):
    planned = json.loads(ediffi("promote", "demo", "--dry-run", "--json")[1])
    found = json.loads(ediffi("promote", "demo", "--json")[1])
    assert found["champion"]["version"] == 3 and found["champion"]["what"] == "promoted"
    assert found["before"]["fingerprint"] == TWO and found["changed"] and not found["dry_run"]
    when = {"when": planned["champion"].pop("when"), **found["champion"]}
    assert planned["dry_run"] and planned["champion"].items() <= when.items()
    again = json.loads(ediffi("promote", "demo", "--json")[1])
    assert not again["changed"] and again["champion"] == found["champion"]
    back = json.loads(ediffi("rollback", "demo", "--json")[1])
    assert (back["champion"]["fingerprint"], back["before"]["fingerprint"]) == (TWO, THREE)


@pytest.mark.parametrize(("verb", "becomes"), [("promote", THREE), ("rollback", ONE)])
def test_a_terminal_is_asked_and_a_script_is_not(ediffi, store, told, terminal, verb, becomes):
    terminal("n\n")
    assert ediffi(verb, "demo")[:2] == (1, "") and champion(store).fingerprint == TWO
    terminal("\n")
    assert ediffi(verb, "demo")[0] == 1 and champion(store).fingerprint == TWO and told == []
    terminal("y\n")
    assert ediffi(verb, "demo")[0] == 0 and champion(store).fingerprint == becomes


@pytest.mark.parametrize("option", ["--yes", "-y", "--dry-run"])
def test_a_terminal_is_not_asked_what_is_settled(ediffi, store, terminal, option):
    """Nothing is typed, so a question would wait for ever."""
    terminal()
    assert ediffi("rollback", "demo", option)[0] == 0


def test_who_became_champion_meanwhile_is_not_replaced(ediffi, store, terminal, monkeypatch):
    import typer

    def slow_answer(*asked, **how):
        champions.promote(store, "demo", ONE, "in another shell")
        return True

    terminal()
    monkeypatch.setattr(typer, "confirm", slow_answer)
    for verb in ("promote", "rollback"):
        champions.promote(store, "demo", TWO, "again")
        assert ediffi(verb, "demo")[0] == 2
        assert champion(store).why == "in another shell"


@pytest.mark.parametrize("which", ["champion", "2", "2222"])
def test_one_ensemble_of_a_model_is_shown_by_its_name(ediffi, store, which):
    out = ediffi("models", f"demo@{which}")[1]
    assert "22222222" in out and "11111111" not in out and "history" in out
    found = json.loads(ediffi("models", f"demo@{which}", "--json")[1])["demo"]
    assert [v["version"] for v in found["versions"]] == [2]
    assert {e["fingerprint"] for e in found["history"]} == {TWO}


@pytest.mark.parametrize(
    ("name", "why"),
    [("demo@9", "has no ensemble '9'"), ("nobody@champion", "'nobody' has no ensemble"),
     ("Demo@1", "is no name of a model")],
)  # fmt: skip
def test_what_there_is_not_is_said(ediffi, name, why):
    code, out, err = ediffi("models", name)
    assert (code, out) == (2, "") and why in err


def test_a_failed_copy_to_mlflow_fails(ediffi, store, monkeypatch, told):
    assert ediffi("models", "--sync")[0] == 0 and told == ["demo"]

    def away(store, model):
        raise ConnectionError("refused")

    champions.add_candidate(
        store, "other", Entry(fingerprint=ONE, folder="x", why="", by="run other-1")
    )
    monkeypatch.setattr(sync, "sync_model", away)
    code, out, err = ediffi("models", "--sync")
    assert code == 1 and "demo" in out and err.count("MLflow could not be updated") == 2
    assert ediffi("promote", "demo")[0] == 0, "the store has it, and the next run tells MLflow"
