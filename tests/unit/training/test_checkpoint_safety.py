"""A checkpoint is whole at any time, and a failing machine is no reason to pass it over."""

import errno
import os
import resource

import fsspec
import pytest
import torch

from pipelines.store import remote
from pipelines.store.artifacts import Store
from pipelines.training.checkpoints import reading
from pipelines.training.checkpoints.writer import Checkpoints

NODE = "nodes/train/base/E1_1-0123"
STATE = f"{NODE}/state"
FILES = {"history.jsonl": b"{}\n"}


def state(seed):
    draw = torch.Generator().manual_seed(seed)
    return {"weight": torch.randn(40, generator=draw), "step": torch.tensor(float(seed))}


class Disk(Store):
    """Fails from the n-th write on."""

    def write(self, path, data):
        global writes
        if writes == 0:
            raise failure
        writes -= 1
        super().write(path, data)


@pytest.fixture(params=["disk", "bucket"])
def store(request, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(remote, "FIRST_WAIT_S", 0.0)
    if request.param == "disk":
        yield Disk(str(tmp_path / "store"))
    else:
        yield (memory := Disk(f"memory://{tmp_path.name}"))
        fsspec.filesystem("memory").rm(memory.root, recursive=True)


@pytest.fixture(autouse=True)
def healthy():
    fail_after(-1)


def fail_after(count, error=None):
    global writes, failure
    writes, failure = count, error


def checkpoints(store, said=None):
    log = [] if said is None else said
    return Checkpoints(store, NODE, fingerprint="0123", log=log.append)


def save(store, images, to=None, by=None):
    place = by or checkpoints(store)
    place.save(images, state(images), {"images": images}, files=FILES, to=to)
    place.wait()


def restored(store, said=None):
    """→ images and folder of what a new process restores; its state is checked."""
    tensors = {k: torch.zeros_like(v) for k, v in state(0).items()}
    found = checkpoints(store, said).restore(tensors, final=STATE)
    if found is None:
        return 0, None
    assert all(torch.equal(v, state(found.images)[k]) for k, v in tensors.items())
    return found.images, found.at


FULL = OSError(errno.ENOSPC, "No space left on device")
KILL = RuntimeError("as a kill: nothing is tidied")


@pytest.mark.parametrize("error", [FULL, KILL], ids=["full", "kill"])
@pytest.mark.parametrize("to", [STATE, None], ids=["state", "checkpoint"])
def test_the_only_copy_outlives_any_end_of_its_replacement(store, error, to):
    """A part, a file of the caller and a manifest, first beside and then in its place."""
    save(store, 64, to)
    for count in range(6):
        fail_after(count, error)
        with pytest.raises(type(error)):
            save(store, 64, to)
        fail_after(-1)
        assert restored(store)[0] == 64, f"after {count} writes"
        save(store, 64, to)
    at = to or f"{NODE}/checkpoints/{64:012d}"
    assert restored(store) == (64, at)
    for superseded in checkpoints(store).superseded(STATE) if to else ():  # as the commit does
        store.remove_folder(superseded)
    assert sorted(store.files(NODE)) == [
        f"{at.removeprefix(NODE + '/')}/{name}"
        for name in ("checkpoint.json", "history.jsonl", "part-00000-of-00001.safetensors")
    ]


def test_a_replacement_that_was_cut_short_is_finished(store):
    save(store, 32, STATE)
    fail_after(4, KILL)
    with pytest.raises(RuntimeError):
        save(store, 64, STATE)
    fail_after(-1)
    again = checkpoints(store)
    found = again.restore(state(0), final=STATE)
    assert found.at == f"{STATE}.new"
    save(store, 64, STATE, by=again)
    assert restored(store) == (64, STATE)
    assert f"{STATE}.new" in checkpoints(store).superseded(STATE)


def test_a_damaged_one_is_replaced_in_place(store):
    """It is worth nothing, and may be what fills the disk."""
    save(store, 32)
    save(store, 64)
    store.write(f"{NODE}/checkpoints/{64:012d}/history.jsonl", b"[]\n")
    place, said = checkpoints(store), []
    assert place.restore(state(0)).images == 32
    fail_after(3, FULL)
    save(store, 64, by=place)
    fail_after(-1)
    assert restored(store, said)[0] == 64 and said == []


def test_a_parent_s_state_names_its_own_files(store):
    save(store, 64, STATE)
    assert checkpoints(store).files(STATE) == [
        "checkpoint.json",
        "history.jsonl",
        "part-00000-of-00001.safetensors",
    ]


# -- errors of the machine ------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EMFILE, errno.EIO, errno.EACCES])
def test_an_error_of_the_machine_is_raised(store, monkeypatch, number):
    """To pass over a sound checkpoint for it would be to train again."""
    save(store, 64)
    error = OSError(number, os.strerror(number))

    def failing(*_, **__):
        raise error

    if store.is_local:
        monkeypatch.setattr(reading, "file_sha256", failing)
    else:
        monkeypatch.setattr(type(store.fs), "get_file", failing)
    with pytest.raises(OSError, match=os.strerror(number)):
        restored(store)
    with pytest.raises(OSError, match=os.strerror(number)):
        checkpoints(store).restore_from(f"{NODE}/checkpoints/{64:012d}", state(0), "0123")
    monkeypatch.undo()


def test_too_many_open_files_are_no_missing_checkpoint(store, monkeypatch):
    save(store, 64)
    opened = reading.StoredTensors
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

    def exhausted(paths):
        free = os.dup(0)
        os.close(free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
        try:
            return opened(paths)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    monkeypatch.setattr(reading, "StoredTensors", exhausted)
    with pytest.raises(OSError, match="Too many open files"):
        restored(store)
    monkeypatch.setattr(reading, "StoredTensors", opened)
    assert restored(store)[0] == 64


def test_siblings_that_read_their_parent_at_once_leave_each_other_its_files(store, monkeypatch):
    """One has fetched the state, and is about to read it when the other is done with it."""
    save(store, 64, STATE)
    sha256, others = reading.file_sha256, []

    def interleaved(path):
        if not others:
            others.append(None)
            others.append(restored(store))
        return sha256(path)

    monkeypatch.setattr(reading, "file_sha256", interleaved)
    assert restored(store) == (64, STATE)
    assert others == [None, (64, STATE)]
