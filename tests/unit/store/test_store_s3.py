"""The store in a bucket whose server fails, lags or is unreachable."""

import pickle
import re
import socket
import time

import numpy as np
import pytest
import torch
from paths import SMOKE
from s3 import KEY, KINDS, SECRET, forget_connections

from pipelines.data.files import list_files
from pipelines.store import artifacts, remote
from pipelines.store.artifacts import Store
from pipelines.store.reader import Reader
from pipelines.store.scratch import is_abandoned


@pytest.fixture
def bucket(s3, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "FIRST_WAIT_S", 0.01)
    return Store.open(f"s3://bucket/{tmp_path.name}")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_request_that_fails_is_made_again(bucket, s3, kind):
    data = np.random.default_rng(0).bytes(100_000)
    s3.faults.next = [kind]
    bucket.write("a/one", data)
    s3.faults.next = [kind]
    assert bucket.read("a/one") == data
    s3.faults.next = [kind]
    assert bucket.files("a") == {"one": 100_000}
    s3.faults.next = [kind]
    assert (bucket.local("a") / "one").read_bytes() == data
    s3.faults.next = [kind]
    bucket.remove("a/one")
    assert bucket.read("a/one") is None
    assert s3.faults.done[kind] == 5


@pytest.mark.slow
def test_a_bad_day_changes_no_byte(bucket, s3):
    s3.faults.rate = 0.2
    files = {f"folder/{i}": np.random.default_rng(i).bytes(2000 * i) for i in range(12)}
    for path, data in files.items():
        bucket.write(path, data)
    assert {path: bucket.read(path) for path in files} == files
    manifest = bucket.commit("folder", [str(i) for i in range(12)], {"kind": "x"})
    assert bucket.manifest("folder") == manifest
    fetched = bucket.local("folder")
    assert all((fetched / p.rpartition("/")[2]).read_bytes() == d for p, d in files.items())
    assert sum(s3.faults.done.values()) > 5


def test_a_version_is_read_from_it(bucket, s3, store, version):
    for path in [f"{version.folder}/dataset.parquet"] + [version.path(i) for i in range(5)]:
        bucket.write(path, store.read(path))
    s3.faults.rate = 0.2
    (x, cond), (want, want_cond) = (
        Reader(place, version.folder, 8).rows(range(31)) for place in (bucket, store)
    )
    assert torch.equal(x, want)
    assert all(torch.equal(v, want_cond.sequences[k]) for k, v in cond.sequences.items())


def test_a_listing_is_never_remembered(bucket):
    other = Store.at(bucket.root)
    assert other.files("a") == {}
    bucket.write("a/one", b"1")
    assert other.files("a") == {"one": 1}
    bucket.remove("a/one")
    assert other.files("a") == {}


@pytest.mark.slow
def test_marks_of_folders_are_no_files(bucket):
    """Arrow makes them for Ray Train, and people in consoles."""
    from pyarrow.fs import FileSystem

    arrow, path = FileSystem.from_uri(bucket.full("ray-train/one"))
    arrow.create_dir(f"{path}/deep", recursive=True)
    with arrow.open_output_stream(f"{path}/deep/file") as file:
        file.write(b"1")
    assert bucket.files("") == {"ray-train/one/deep/file": 1}
    assert list_files(bucket.root)[1][0].path == "ray-train/one/deep/file"
    bucket.remove_folder("ray-train/one")
    assert not [n for n in bucket.fs.find(bucket.root) if "/one" in n]
    bucket.remove_folder("ray-train/one")


@pytest.mark.slow
def test_a_late_listing_does_not_make_a_finished_node_unfinished(bucket, s3):
    s3.faults.lag_s = 60
    bucket.write("nodes/one/result", b"12345")
    bucket.commit("nodes/one", ["result"], {})
    assert bucket.files("nodes/one") == {}
    assert bucket.manifest("nodes/one")["files"]["result"]["bytes"] == 5
    bucket.write("nodes/one/result", b"123")
    assert bucket.manifest("nodes/one") is None
    bucket.remove("nodes/one/result")
    assert bucket.manifest("nodes/one") is None


# -- a path on this machine ------------------------------------------------------------------------


@pytest.mark.slow
def test_what_was_fetched_is_kept_until_it_changes(bucket, s3):
    bucket.write("encoders/t5/config.json", b"{}")
    bucket.write("encoders/t5/deep/weights", b"1" * 1000)
    first = bucket.local("encoders/t5")
    assert (first / "deep/weights").read_bytes() == b"1" * 1000
    gets = s3.faults.requests["GET"]
    assert bucket.local("encoders/t5") == first
    assert s3.faults.requests["GET"] == gets + 1, "no more than a listing"
    bucket.write("encoders/t5/deep/weights", b"2" * 1000)
    assert (bucket.local("encoders/t5") / "deep/weights").read_bytes() == b"2" * 1000


def test_a_single_file_keeps_its_name(bucket):
    bucket.write("nodes/x/ensemble.json", b"{}")
    assert bucket.local("nodes/x/ensemble.json").name == "ensemble.json"
    assert bucket.local("nodes/x/ensemble.json").read_bytes() == b"{}"


def test_half_a_folder_is_not_taken_for_a_whole_one(bucket, monkeypatch, tmp_path):
    """As when a kill comes between two files: nothing is cleaned up."""
    for name in "abc":
        bucket.write(f"folder/{name}", name.encode())
    fetch = Store._fetch

    def killed(self, path, to, size):
        if path.endswith("b"):
            raise KeyboardInterrupt
        fetch(self, path, to, size)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Store, "_fetch", killed)
        patch.setattr(artifacts.shutil, "rmtree", lambda *_, **__: None)
        bucket.local("folder")
    cache = tmp_path / "home" / artifacts.CACHE
    [left] = cache.iterdir()
    assert left.name.endswith(".tmp")
    assert not is_abandoned(left, time.time()), "this process lives"
    assert sorted(p.name for p in bucket.local("folder").iterdir()) == ["a", "b", "c"]
    dead = left.with_name(
        re.sub(r"\.\d+\.([0-9a-f]{8}\.[0-9a-f]{8}\.tmp)$", r".4194305.\1", left.name)
    )
    left.rename(dead)
    bucket.sweep()
    assert not dead.exists()


def test_what_is_not_there_is_said(bucket):
    with pytest.raises(ValueError, match=r"s3://bucket/.*/nodes/x does not exist"):
        bucket.local("nodes/x")


# -- in one line -----------------------------------------------------------------------------------


def line_of(work):
    with pytest.raises((remote.StorageError, ValueError)) as caught:
        work()
    line = str(caught.value)
    assert "\n" not in line
    assert SECRET not in line
    assert isinstance(pickle.loads(pickle.dumps(caught.value)), type(caught.value))
    return line


@pytest.mark.parametrize(
    "work",
    [
        lambda: Store.open("s3://no-such-bucket/store"),
        lambda: Store.at("s3://no-such-bucket/store").read("a"),
        lambda: Store.at("s3://no-such-bucket/store").files("a"),
    ],
)
def test_a_wrong_bucket(s3, work):
    assert "s3://no-such-bucket/store" in (line := line_of(work))
    assert "there is no such bucket; create it, or correct its name" in line


@pytest.mark.slow
def test_no_credentials(bucket, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    forget_connections()
    start = time.monotonic()
    for work in (lambda: bucket.read("a"), lambda: Store.open(bucket.root)):
        assert "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" in line_of(work)
    assert time.monotonic() - start < 10, "there is nothing to wait for"


def test_a_profile_that_is_not_there(bucket, monkeypatch):
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    forget_connections()
    assert "nobody" in line_of(lambda: bucket.read("a"))


def test_a_server_that_is_not_there(s3, monkeypatch):
    monkeypatch.setattr(remote, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(remote, "ATTEMPTS", 2)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", address)
    forget_connections()
    line = line_of(lambda: Store.open("s3://bucket/store"))
    assert "2 attempts failed" in line
    assert address in line


def test_what_is_denied_is_not_asked_for_again(bucket, s3):
    s3.faults.next = ["403"] * 5
    for work in (
        lambda: bucket.read("a"),
        lambda: bucket.files("a"),
        lambda: bucket.write("a", b""),
    ):
        before = s3.faults.requests.total()
        assert "access denied" in (line := line_of(work))
        assert "check the credentials" in line
        assert s3.faults.requests.total() == before + 1


# -- where its credentials come from ---------------------------------------------------------------


def test_a_spec_comes_before_the_environment(s3, monkeypatch):
    from pipelines.spec.s3 import S3

    monkeypatch.setenv("AWS_PROFILE", "work")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "of another key")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    settings = S3.model_validate({"endpoint_url": s3.endpoint, "key": KEY, "secret": SECRET})
    remote.export_settings(settings.variables())
    store = Store.open("s3://bucket/from-a-spec")
    store.write("a", b"1")
    assert store.read("a") == b"1"
    assert SECRET not in repr(settings) + settings.model_dump_json()
    import os

    assert "AWS_PROFILE" not in os.environ
    assert "AWS_SESSION_TOKEN" not in os.environ
    assert os.environ["AWS_DEFAULT_REGION"] == "us-east-1", "what it does not say stays"


def test_without_a_spec_the_environment_stays_as_it_is(s3):
    import os

    from pipelines.spec.s3 import S3

    before = dict(os.environ)
    remote.export_settings(S3().variables())
    assert dict(os.environ) == before


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("{key: SECRET}", "`key:` and `secret:` go together"),
        ("{key: a, secret: SECRET, profile: b}", "give either `profile:` or"),
        ("{secret: [SECRET]}", "`s3.secret`: input should be a valid string"),
        ("SECRET", "`s3`: input should be"),
        ("{secrets: SECRET}", "unknown key `s3.secrets`; did you mean `secret`?"),
        ("{endpoint_url: 'http://SECRET@minio:9000'}", "http://HOST:PORT"),
        ("{secret: 'SECRET}", "not valid YAML"),
        ("{secret: SECRET: }}", "not valid YAML"),
    ],
)
def test_a_spec_that_is_wrong_does_not_tell_its_secret(tmp_path, given, words):
    from pipelines.spec.loading import load

    (tmp_path / "a.yaml").write_text(f"s3: {given.replace('SECRET', SECRET)}\n{SMOKE.read_text()}")
    with pytest.raises(ValueError, match=re.escape(words)) as caught:
        load(tmp_path / "a.yaml")
    import traceback

    assert SECRET not in "".join(traceback.format_exception(caught.value))
