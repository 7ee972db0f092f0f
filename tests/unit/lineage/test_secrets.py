"""Passwords that a user wrote somewhere are in no record, no log and no error."""

import dataclasses
import os
from pathlib import Path

import pytest
import yaml
from dirty import JPEG, collect_rows, json_line, source_at, write_parquet
from kit import SMOKE

from pipelines.executor.runner import one_line
from pipelines.formatting import printable
from pipelines.lineage.address import to_connect, to_keep, tracking_uri
from pipelines.lineage.sync import registry_uri
from pipelines.reports import status
from pipelines.runs.execution import Execution, latest
from pipelines.spec.loading import load
from pipelines.store import remote
from pipelines.store.artifacts import Store

SECRET = "hunter2-secret"
SERVER = f"http://me:{SECRET}@127.0.0.1:1"
LOGIN = ("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """Variables that the tests' subject sets are gone after each test."""
    for name in (*LOGIN, "MLFLOW_TRACKING_TOKEN"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def traces(root):
    """Files whose names or contents hold the secret."""
    return [
        path
        for path in Path(root).rglob("*")
        if SECRET in path.name or (path.is_file() and SECRET.encode() in path.read_bytes())
    ]


@pytest.mark.slow
@pytest.mark.parametrize("where", ["spec", "environment"])
def test_the_password_of_a_server_is_kept_nowhere(driver, monkeypatch, where):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    if where == "environment":
        monkeypatch.setenv("MLFLOW_TRACKING_URI", SERVER)
    one = driver(SERVER if where == "spec" else None)
    one.start()
    one.close(timeout_s=2, outage_timeout_s=1)
    one.execution.save(one.store)
    assert traces(one.store.root) == []
    assert SECRET not in "\n".join(one.said) and one.lineage.shown == "http://127.0.0.1:1"
    found = latest(one.store, "smoke")
    assert SECRET not in f"{status.data(one.store, found)}"
    assert os.environ["MLFLOW_TRACKING_USERNAME"] == "me"
    assert os.environ["MLFLOW_TRACKING_PASSWORD"] == SECRET
    assert SECRET not in os.environ.get("MLFLOW_TRACKING_URI", "")


def test_mlflow_s_own_variables_come_first(monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "other")
    assert tracking_uri(SERVER, Store.at(str(tmp_path))) == "http://127.0.0.1:1"
    assert os.environ["MLFLOW_TRACKING_USERNAME"] == "other"
    assert "MLFLOW_TRACKING_PASSWORD" not in os.environ


@pytest.mark.parametrize(
    ("address", "kept"),
    [
        (f"postgresql://me:{SECRET}@db:5432/mlflow", "postgresql://db:5432/mlflow"),
        (f"postgresql://me:{SECRET}@x@db/mlflow", "postgresql://db/mlflow"),
        (f"mysql://db/m?user=me&password={SECRET}", "mysql://db/m?user=me&password=…"),
        ("sqlite:////data/me@home/other.db", "sqlite:////data/me@home/other.db"),
        ("/data/mlruns", "/data/mlruns"),
    ],
)
def test_a_database_is_connected_to_with_its_password_and_kept_without(
    address, kept, tmp_path, monkeypatch
):
    store = Store.at(str(tmp_path))
    assert tracking_uri(address, store) == address and to_keep(address) == kept
    tracking = {"uri": kept, "run": "r"}
    Execution("p-1", "p", "f", 1, state="done", tracking=tracking).save(store)
    assert registry_uri(store, "p") == kept
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    assert registry_uri(store, "p") == address and to_connect(kept) == address
    assert to_connect("postgresql://elsewhere/mlflow") == "postgresql://elsewhere/mlflow"


WRONG = {
    "notify": [f"https://hooks.example.com/{SECRET}", [SECRET], {"webhook": [SECRET]}],
    "tracking": [[SERVER], {SERVER: 1}, 5],
    "storage": [[SECRET], {"a": SECRET}, f"s3://key:{SECRET}@bucket/x"],
    "s3": [SECRET, {"key": [SECRET]}, {"endpoint_url": SERVER}],
    "data": [
        {"train": {"path": {"a": SECRET}}, "validation": {"path": "/b"}},
        {"train": {"path": f"https://me:{SECRET}@a/"}, "validation": {"path": "/b"}},
        {"train": {"path": ["/a", f"zip://::https://me:{SECRET}@a/b.zip"]}, "validation": {}},
    ],
}


@pytest.mark.parametrize(("key", "value"), [(k, v) for k, some in WRONG.items() for v in some])
def test_errors_of_a_spec_do_not_show_it(tmp_path, key, value):
    file = tmp_path / "spec.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(SMOKE.read_text()) | {key: value}))
    with pytest.raises(ValueError, match=key) as error:
        load(file)
    assert SECRET not in str(error.value)


@pytest.mark.parametrize("text", [SECRET, f"[{SECRET}]", f"a: b: {SECRET}", f"'{SECRET}"])
def test_a_file_that_is_no_spec_is_not_shown(tmp_path, text):
    (tmp_path / "spec.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"spec\.yaml") as error:
        load(tmp_path / "spec.yaml")
    assert SECRET not in str(error.value)


def test_a_store_is_not_opened_by_a_password():
    with pytest.raises(ValueError, match="s3://bucket/x is given with a password") as error:
        Store.at(f"s3://key:{SECRET}@bucket/x")
    assert SECRET not in str(error.value)


@pytest.mark.parametrize("urls", [None, ["127.0.0.1"], ["10.0.0.0/8"]])
def test_rows_name_their_pictures_without_the_password(tmp_path, urls, monkeypatch):
    """Kept rows would too: their key is the address."""
    monkeypatch.setattr(remote, "FIRST_WAIT_S", 0.0)
    addresses = [f"{SERVER}/1.jpg", f"ftp://me:{SECRET}@host/2.jpg", f"http://:{SECRET}@[/3.jpg"]
    for kind in ("parquet", "jsonl"):
        (tmp_path / kind).mkdir()
    lines = [json_line(file_name=address, caption="a cat") for address in addresses]
    (tmp_path / "jsonl" / "captions.jsonl").write_bytes(b"".join(lines))
    rows = [{"key": a, "image": a, "caption": "a cat"} for a in addresses]
    write_parquet(tmp_path / "parquet" / "a.parquet", rows)
    for kind in ("parquet", "jsonl"):
        kept, rejected = collect_rows(source_at(tmp_path / kind, urls=urls))
        assert not kept and len(rejected) == 3
        assert SECRET not in "\n".join(str(dataclasses.asdict(bad)) for bad in rejected)
    write_parquet(
        tmp_path / "parquet" / "a.parquet", [{"key": SERVER, "image": JPEG, "caption": "a"}]
    )
    [row] = collect_rows(source_at(tmp_path / "parquet"))[0]
    assert row.key == "http://127.0.0.1:1"


def test_whatever_is_shown_or_recorded_as_an_error_loses_it():
    for error in (ValueError(f"no answer from {SERVER}/api"), OSError(f"x\n'{SERVER}': refused")):
        assert SECRET not in one_line(error) and "127.0.0.1:1" in one_line(error)
        assert SECRET not in printable(f"{error}")
    for text in ("models:/demo@champion", "s3://bucket/me@home/a", "a@b", "https://a/b?q=x@y"):
        assert printable(text) == text
