"""The smoke run has a secret in every variable that may hold one, and leaves none anywhere."""

import sqlite3

import planted
import pytest
from kit import SMOKE, said

from pipelines.models import champions
from pipelines.store.artifacts import Store


def test_a_trace_would_be_found(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/log").write_bytes(b"\0" + planted.SECRET.encode() + b"\0")
    (tmp_path / f"{planted.SECRET}.png").touch()
    (tmp_path / "key").write_text(planted.pem())
    (tmp_path / "raw").write_bytes(planted.KEY.private_bytes_raw())
    assert len(planted.traces([tmp_path], "nothing", f"me:{planted.SECRET}@")) == 5


def test_the_variables_are_really_read(smoke):
    """The run had the key: it signed."""
    store = Store.at(str(smoke.store))
    book = champions.read(store, "smoke")
    assert len(book.signers("smoke", book.champion.fingerprint)) == 1


@pytest.mark.slow
def test_a_run_leaves_no_secret(smoke):
    """In nodes, manifests, records, spool, registry, MLflow's database and files, and output."""
    assert planted.traces([smoke.store], smoke.first, smoke.second, smoke.errors) == []
    with sqlite3.connect(f"file:{smoke.store}/mlflow.db?mode=ro", uri=True) as database:
        dump = "\n".join(database.iterdump())
    assert "INSERT" in dump and planted.traces([], dump) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "verb",
    [
        ("status", "--json"),
        ("tree", "--json"),
        ("models", "smoke", "--json"),
        ("gc",),
        ("plan", str(SMOKE)),
    ],
    ids=lambda verb: verb[0],
)
def test_verbs_print_no_secret(smoke, verb):
    shown = said(*verb, "--storage", smoke.store, **planted.environment())
    assert shown and planted.traces([], shown) == []
