"""What all tests share: the modules in `kits/`, and an S3 for those that ask for one."""

import os
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
    """A sound S3 that this process's environment leads to, and a home of its own.

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
    kit.forget_connections()
    yield s3_server
    kit.forget_connections()


def pytest_collection_modifyitems(items):
    """Order the tests so that all workers end at about the same time.

    `--dist worksteal` hands every worker an equal slice, in order, and lets idle ones take from the
    ends of the others' slices. So every slice begins with its share of the slow tests, the longest
    first; those of a module that share its fixtures stay together. The first slice begins with
    those that need the shared smoke run, the others end with them, as that run is there by then.
    """
    groups, quick = {}, []
    for item in items:
        if mark := item.get_closest_marker("slow"):
            alone = item.originalname if "seconds" in mark.kwargs else ""
            groups.setdefault((item.path, alone), []).append(item)
        else:
            quick.append(item)

    def seconds(group):
        return sum(item.get_closest_marker("slow").kwargs.get("seconds", 1) for item in group)

    count = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
    slices = [[] for _ in range(count)]
    for group in sorted(groups.values(), key=seconds, reverse=True):
        min(slices, key=lambda mine: sum(map(seconds, mine))).append(group)
    ordered, rest = [], iter(quick)
    for at, mine in enumerate(slices):
        mine.sort(key=lambda group: ("smoke" in group[0].fixturenames) == (at > 0))
        slow = [item for group in mine for item in group]
        size = len(items) * (at + 1) // count - len(items) * at // count
        ordered += slow + [item for _, item in zip(range(size - len(slow)), rest)]
    items[:] = [*ordered, *rest]
