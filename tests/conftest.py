"""What all tests share: the modules in `kits/`, and an S3 for those that ask for one."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "kits"))


@pytest.fixture(scope="session")
def s3_server():
    import s3

    with s3.running() as server:
        yield server


@pytest.fixture
def s3(s3_server, monkeypatch, tmp_path):
    """A sound S3 with an empty bucket that this process's environment leads to; a home of its own.

    In this process nothing waits before it asks again; how often it asks stays as it is.
    """
    import s3 as kit
    from botocore.retries.standard import ExponentialBackoff

    from pipelines.store import remote

    for name in kit.AWS_VARIABLES:
        monkeypatch.setenv(name, "")  # what is set meanwhile goes with the test
        monkeypatch.delenv(name)
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setattr(ExponentialBackoff, "delay_amount", lambda *_: 0.0)
    monkeypatch.setattr(remote, "FIRST_WAIT_S", 0.0)
    s3_server.faults.__init__()
    s3_server.empty()
    kit.forget_connections()
    yield s3_server
    kit.forget_connections()


@pytest.fixture(params=["folder", "bucket"])
def folder_or_bucket(request, tmp_path):
    """An empty store, once in a folder and once in a bucket."""
    from pipelines.store.artifacts import Store

    if request.param == "folder":
        return Store.at(str(tmp_path / "store"))
    request.getfixturevalue("s3")
    return Store.at(f"s3://bucket/{tmp_path.name}/store")


@pytest.fixture
def bfloat16_by_default():
    """torch's default dtype, which a thread that loads an encoder sets for the whole process."""
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    yield
    torch.set_default_dtype(before)


def pytest_collection_modifyitems(items):
    """Slow tests first, so that what is left at the end is short, and no worker waits for another.

    They stay with one worker as long as the other has quick ones: two pipelines at once on two
    cores take longer than one after the other. Quick tests that need the smoke run come last: by
    then the worker with the slow ones has made it.
    """

    def place(item):
        slow = item.get_closest_marker("slow") is not None
        return not slow, not slow and "smoke" in item.fixturenames

    items.sort(key=place)
