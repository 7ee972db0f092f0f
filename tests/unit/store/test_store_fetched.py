"""Files fetched from a bucket: shared by their readers, and removed with the last."""

import subprocess
import sys

import fsspec
import pytest

from pipelines.store import lock
from pipelines.store.artifacts import CACHE, IN_USE, Store


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def bucket(home, tmp_path):
    memory = Store.at(f"memory://{tmp_path.name}")
    memory.write("a/part", b"large")
    yield memory
    fsspec.filesystem("memory").rm(memory.root, recursive=True)


def left(home):
    return [f for f in (home / IN_USE).rglob("*") if not f.is_dir()]


def test_a_file_stays_until_its_last_reader_is_done(bucket, home):
    with bucket.fetched("a/part") as outer:
        with bucket.fetched("a/part") as inner:
            assert inner == outer
        assert outer.read_bytes() == b"large"
        with pytest.raises(KeyError), bucket.fetched("a/part"):
            raise KeyError
        assert outer.read_bytes() == b"large"
    assert left(home) == []


def test_a_file_of_a_folder_on_disk_is_read_in_place(tmp_path):
    store = Store.at(str(tmp_path))
    store.write("a/part", b"large")
    with store.fetched("a/part") as file:
        assert file == tmp_path / "a/part"
    assert store.read("a/part") == b"large"


def test_what_others_keep_is_not_removed(bucket):
    """An export must not take away the weights that a service on the same machine draws with."""
    kept = bucket.local("a/part")
    with bucket.fetched("a/part"):
        pass
    assert kept.read_bytes() == b"large"


def test_a_reader_in_another_process_is_waited_for(bucket, home):
    with bucket.fetched("a/part") as file:
        [readers] = (home / IN_USE).glob("*.lock")
    code = (
        "import sys; from pathlib import Path; from pipelines.store import lock\n"
        "with lock.shared(Path(sys.argv[1])): print('reads', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(readers)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with other:
        assert other.stdout.readline() == "reads\n"
        with bucket.fetched("a/part"):
            pass
        bucket.sweep()
        assert file.read_bytes() == b"large"
        other.kill()
    bucket.sweep()  # of a killed reader
    assert left(home) == []


def test_a_lock_that_was_removed_meanwhile_is_taken_anew(tmp_path, monkeypatch):
    path, flock, removed = tmp_path / "a.lock", lock.fcntl.flock, []

    def removed_first(file, how):
        if not removed:
            removed.append(path.unlink())
        flock(file, how)

    monkeypatch.setattr(lock.fcntl, "flock", removed_first)
    with lock.shared(path):
        monkeypatch.undo()
        lock.remove_unused(path, lambda: removed.append("in use"))
        assert path.exists()
    lock.remove_unused(path, lambda: removed.append("free"))
    assert removed == [None, "free"] and not path.exists()


def test_new_content_of_the_same_size_is_fetched_again(bucket, home):
    """From file systems that list no checksums, too."""
    assert bucket.local("a/part").read_bytes() == b"large"
    bucket.write("a/part", b"other")
    assert bucket.local("a/part").read_bytes() == b"other"
    with bucket.fetched("a/part") as file:
        assert file.read_bytes() == b"other"
    assert len(list((home / CACHE).glob("*/part"))) == 2
