"""A shard's identity changes if and only if its content does."""

import os
import shutil
import sqlite3
import time

import fsspec
import pytest
from dirty import JPEG, json_line, source_at, write_parquet, write_tar

from pipelines.data import identity
from pipelines.data.files import Location
from pipelines.data.formats import folder
from pipelines.data.rows import RowError
from pipelines.data.sources import list_shards, read_shard
from pipelines.spec.hosts import Hosts


def identities(path):
    return {shard.name: shard.identity for shard in list_shards(source_at(path))}


def changed(before, after):
    return {name for name in before | after if before.get(name) != after.get(name)}


def write_pictures(path, count):
    path.mkdir()
    for i in range(count):
        (path / f"{i:03d}.jpg").write_bytes(JPEG + bytes([i]))
        (path / f"{i:03d}.txt").write_text(f"cat {i}")


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(folder, "SHARD_PICTURES", 8)


@pytest.fixture
def settled(monkeypatch):
    """Files are old enough to be remembered at once."""
    monkeypatch.setattr(identity, "SETTLED_S", -1)


@pytest.fixture
def hashed(monkeypatch):
    """The paths that were read to be hashed."""
    paths, read = [], identity._read
    monkeypatch.setattr(identity, "_read", lambda p, f: paths.append(f.path) or read(p, f))
    return paths


def test_files_are_identified_by_content(tmp_path, settled):
    home = tmp_path / "set"
    home.mkdir()
    for name in "ab":
        write_parquet(home / f"{name}.parquet", [{"image": JPEG, "caption": name}])
    before = identities(home)
    assert len(set(before.values())) == 2
    os.utime(home / "a.parquet", ns=(1, 1))
    assert identities(home) == before
    shutil.copytree(home, tmp_path / "copy")
    assert identities(tmp_path / "copy") == before
    write_parquet(home / "c.parquet", [{"image": JPEG, "caption": "c"}])
    assert len(changed(before, identities(home))) == 1
    times = (home / "a.parquet").stat()
    write_parquet(home / "a.parquet", [{"image": JPEG, "caption": "z"}])
    assert (home / "a.parquet").stat().st_size == times.st_size
    os.utime(home / "a.parquet", ns=(times.st_atime_ns, times.st_mtime_ns))
    (name,) = changed(before, identities(home)) - {n for n in identities(home) if n[0] == "c"}
    assert name.startswith("a-")


def test_nothing_is_hashed_twice_unless_it_may_have_changed(tmp_path, hashed, monkeypatch):
    write_tar(tmp_path / "a.tar", [("a.jpg", JPEG), ("a.txt", b"a cat")])
    first = identities(tmp_path)
    identities(tmp_path)
    assert hashed == ["a.tar", "a.tar"], "a file this fresh was remembered"
    later = time.time() + 60
    monkeypatch.setattr(identity.time, "time", lambda: later)
    identities(tmp_path)
    hashed.clear()
    assert identities(tmp_path) == first
    assert hashed == []


def test_without_a_home_to_write_to_all_is_hashed(tmp_path, hashed, settled, monkeypatch):
    write_tar(tmp_path / "a.tar", [("a.jpg", JPEG), ("a.txt", b"a cat")])
    monkeypatch.setenv("HOME", "/dev/null")
    assert identities(tmp_path) == identities(tmp_path)
    assert len(hashed) == 2


def test_a_picture_more_less_or_other_changes_one_shard(tmp_path, small_shards, settled):
    home = tmp_path / "set"
    write_pictures(home, 60)
    before = identities(home)
    assert 4 <= len(before) <= 15
    steps = [
        lambda: (home / "new.jpg").write_bytes(JPEG),
        lambda: (home / "new.txt").write_text("a cat"),
        lambda: (home / "new.txt").write_text("a dog"),
        lambda: (home / "new.jpg").write_bytes(JPEG + b"\0"),
        lambda: (home / "003.txt").unlink(),
    ]
    for step in steps:
        step()
        after = identities(home)
        assert len(changed(before, after)) == 1
        before = after
    (home / "README").write_text("no part of it")
    os.utime(home / "001.jpg", ns=(5, 5))
    assert identities(home) == before


def test_a_caption_line_changes_only_the_shard_of_its_picture(tmp_path, small_shards):
    home = tmp_path / "set"
    write_pictures(home, 60)
    lines = [json_line(file=f"{i:03d}.jpg", text=f"cat {i}") for i in range(60)]
    table = home / "captions.jsonl"
    table.write_bytes(b"".join(lines))
    before = identities(home)
    table.write_bytes(b"\n" + b"".join(lines))
    assert identities(home) == before
    table.write_bytes(b"".join(lines).replace(b"cat 17", b"dog 17"))
    assert len(changed(before, identities(home))) == 1
    source = source_at(home)
    rows = [row for shard in list_shards(source) for row in read_shard(source, shard)]
    assert sorted(row.captions[0] for row in rows) == sorted(
        f"{'dog' if i == 17 else 'cat'} {i}" for i in range(60)
    )


def test_a_caption_file_keeps_its_identity_from_release_to_release(tmp_path):
    """The identity hashes the repr of each line, so renaming a field would orphan stored shards."""
    (tmp_path / "captions.jsonl").write_bytes(
        json_line(file="https://x/1.jpg", text="a cat", id=7, beauty=0.5) + b"broken\n"
    )
    [shard] = list_shards(source_at(tmp_path, key="id", scores=["beauty"]))
    lines = "aabc6f8bd435d8c9c622dba1f8428cf7fa45d49baf051fea3eccf71dba872393"
    assert shard.identity.rpartition("+")[2] == lines


def test_a_bucket_with_checksums_is_not_read(hashed, monkeypatch):
    memory = fsspec.filesystem("memory")
    memory.pipe("/ids/a.tar", b"content")
    with monkeypatch.context() as patch:
        read = identities("memory://ids")
        assert hashed == ["a.tar"]
        tags, find = {"/ids/a.tar": "one"}, memory.find

        def tagged(_, path, **options):
            found = find(path, **options)
            return {name: info | {"ETag": tags[name]} for name, info in found.items()}

        patch.setattr(type(memory), "find", tagged)
        one = identities("memory://ids")
        tags["/ids/a.tar"] = "two"
        two = identities("memory://ids")
        assert hashed == ["a.tar"]
        assert len({*read.values(), *one.values(), *two.values()}) == 3
    memory.rm("/ids", recursive=True)


def test_a_bucket_that_the_data_names_is_read_if_the_spec_names_it_too():
    memory = fsspec.filesystem("memory")
    memory.pipe("/other/a.jpg", JPEG)
    try:
        here = Location("memory://ids")
        assert here.fetch("memory://other/a.jpg", Hosts.of(["other"])) == JPEG
        for hosts in (Hosts(), Hosts.of(["*.other", "ids"])):
            with pytest.raises(RowError, match="not allowed by `urls:`: other; to fetch"):
                here.fetch("memory://other/a.jpg", hosts)
    finally:
        memory.rm("/other", recursive=True)


def commits(monkeypatch):
    """Transactions that write to the cache of identities, counted by SQLite's own trace."""
    found, connect = [], sqlite3.connect

    def traced(*args, **options):
        cache = connect(*args, **options)
        cache.set_trace_callback(
            lambda statement: found.append(statement) if statement == "COMMIT" else None
        )
        return cache

    monkeypatch.setattr(identity.sqlite3, "connect", traced)
    return found


def test_many_small_files_are_remembered_in_one_transaction(tmp_path, settled, hashed, monkeypatch):
    """A flush of the disk for each was most of the first plan of 5,000 files."""
    home, empty = tmp_path / "set", tmp_path / "empty"
    home.mkdir()
    empty.mkdir()
    write_tar(empty / "a.tar", [("a.txt", b"a cat")])
    identities(empty)  # makes the file and its table
    for i in range(1200):  # more than SQLite takes values in one query
        write_tar(home / f"{i:04d}.tar", [(f"{i}.txt", b"a cat")])
    written = commits(monkeypatch)
    first = identities(home)
    assert len(first) == 1200 and written == ["COMMIT"]
    hashed.clear()
    assert identities(home) == first and hashed == [] and written == ["COMMIT"]


def test_a_plan_that_is_cut_short_has_not_read_in_vain(tmp_path, settled, monkeypatch):
    for name in "abc":
        write_tar(tmp_path / f"{name}.tar", [(f"{name}.txt", b"a cat")])
    read = identity._read
    asked = []

    def interrupted(location, file):
        asked.append(file.path)
        if file.path == "c.tar" and asked.count("c.tar") == 1:
            raise KeyboardInterrupt
        return read(location, file)

    monkeypatch.setattr(identity, "_read", interrupted)
    with pytest.raises(KeyboardInterrupt):
        identities(tmp_path)
    identities(tmp_path)
    assert asked == ["a.tar", "b.tar", "c.tar", "c.tar"]
