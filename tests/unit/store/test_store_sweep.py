"""Temporary files of killed writers are removed, whatever others write and remove meanwhile."""

import os
import shutil

import pytest

from pipelines.store import artifacts
from pipelines.store.artifacts import Store
from pipelines.store.scratch import temp_suffix


def dead(name):
    """The name of a temporary file whose writer on this host is dead."""
    host, _, namespace, random = temp_suffix().rsplit(".", 3)
    return f".{name}{host}.4194305.{namespace}.{random}.tmp"


@pytest.fixture
def store(tmp_path):
    return Store.open(str(tmp_path))


def test_a_folder_that_vanishes_meanwhile_is_no_error(store, tmp_path, monkeypatch):
    places = [tmp_path / "nodes" / name for name in "abc"]
    for place in places:
        place.mkdir(parents=True)
        (place / dead("weights")).write_bytes(b"")
    seen = []

    def others_vanish(path, now):
        """On the first file, all folders that are still to be visited vanish."""
        seen.append(path)
        for place in places:
            if place != path.parent:
                shutil.rmtree(place, ignore_errors=True)
        return True

    monkeypatch.setattr(artifacts, "is_abandoned", others_vanish)
    assert store.sweep() == []
    assert len(seen) == 1 and not seen[0].exists()


def test_a_file_that_vanishes_meanwhile_is_no_error(store, tmp_path, monkeypatch):
    (tmp_path / dead("a")).write_bytes(b"")
    scratch = tmp_path / artifacts.SCRATCH / dead("run")
    scratch.mkdir(parents=True)

    def vanishes(path, now):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        return True

    monkeypatch.setattr(artifacts, "is_abandoned", vanishes)
    assert store.sweep() == []
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_removed_is_said_and_the_rest_is_removed(store, tmp_path, monkeypatch):
    for name in "abc":
        (tmp_path / dead(name)).write_bytes(b"")
    whole = os.unlink

    def refuse(path, *args, **more):
        if ".b." in str(path):
            raise PermissionError(13, "Permission denied", str(path))
        whole(path, *args, **more)

    monkeypatch.setattr(os, "unlink", refuse)
    [error] = store.sweep()
    assert "Permission denied" in error
    [left] = tmp_path.iterdir()
    assert left.name.startswith(".b.")


def test_live_writers_keep_their_files(store, tmp_path):
    mine = tmp_path / f".weights{temp_suffix()}.tmp"
    mine.write_bytes(b"")
    (tmp_path / dead("weights")).write_bytes(b"")
    assert store.sweep() == []
    assert list(tmp_path.iterdir()) == [mine]
