"""A bucket as the store: where its settings go, and what cannot be kept in it."""

import os
from pathlib import Path

import pytest
from kit import SMOKE, call, spec_with
from s3 import KEY, SECRET

from pipelines.dag.plan import make
from pipelines.executor import ray_cluster as cluster
from pipelines.lineage import tracking_uri
from pipelines.runs.execution import Execution
from pipelines.runs.lease import is_driven, only_driver
from pipelines.spec.loading import load
from pipelines.store.artifacts import Store

BUCKET = Store.at("s3://bucket/a/store")


@pytest.fixture
def ray_init(monkeypatch):
    """What Ray would be started with."""
    import ray

    given = {}
    monkeypatch.setattr(ray, "init", lambda **options: given.update(options))
    monkeypatch.setattr(os, "environ", dict(os.environ))
    return given


def test_a_cluster_gets_what_the_spec_says_and_nothing_else(s3, tmp_path, ray_init):
    settings = {"endpoint_url": s3.endpoint, "key": KEY, "secret": SECRET}
    spec = load(spec_with(tmp_path / "a.yaml", lambda raw: raw.update(s3=settings)))
    os.environ["RAY_ADDRESS"] = "ray://somewhere"
    cluster.start_ray(2, spec.s3.variables())
    assert ray_init["runtime_env"] == {
        "env_vars": {
            "AWS_ENDPOINT_URL": s3.endpoint,
            "AWS_ENDPOINT_URL_S3": s3.endpoint,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
        }
    }
    assert SECRET not in repr(spec)
    assert SECRET not in repr(make(spec, Store.at(str(tmp_path)), {}))


def test_a_cluster_keeps_its_own_settings_if_the_spec_says_nothing(s3, ray_init):
    os.environ["RAY_ADDRESS"] = "ray://somewhere"
    cluster.start_ray(2, load(SMOKE).s3.variables())
    assert "runtime_env" not in ray_init


def test_the_record_of_a_bucket_is_kept_on_this_machine(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    uri = tracking_uri(None, BUCKET)
    assert uri.startswith(f"sqlite:///{tmp_path}/.local/share/ediffi/bucket-a-store-")
    assert tracking_uri(None, Store.at("s3://bucket/b/store")) != uri
    assert tracking_uri("http://mlflow:5000", BUCKET) == "http://mlflow:5000"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://elsewhere:5000")
    assert tracking_uri(None, BUCKET) == "http://elsewhere:5000"


def test_a_bucket_tells_whether_its_driver_lives(s3, capsys):
    start = "2026-01-01T00:00:00+00:00"
    Execution(id="smoke-1", pipeline="smoke", fingerprint="", attempt=1, started=start).save(BUCKET)
    with only_driver(BUCKET, "smoke"):
        assert is_driven(BUCKET, "smoke")
        assert call("status", "--storage", BUCKET.root) == 0
        assert "smoke-1: running (" in capsys.readouterr().out
    assert not is_driven(BUCKET, "smoke")
    assert call("status", "--storage", BUCKET.root) == 0
    assert "smoke-1: stopped (its driver is gone, " in capsys.readouterr().out


def test_a_plan_is_made_on_a_bad_day(s3, capsys):
    s3.faults.rate = 0.1
    assert call("plan", SMOKE, "--storage", BUCKET.root) == 0
    assert "train/base/E1_0" in capsys.readouterr().out
    assert not (Path.home() / ".cache/ediffi/files").exists(), "a plan fetches nothing"
