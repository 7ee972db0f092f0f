"""Checkpoints whose writing is cut short: by a kill, a full disk, or a bucket that fails."""

import os
import random
import resource
import signal
import time

import pytest
import torch
from processes import CONTEXT

from pipelines.store import remote
from pipelines.store.artifacts import Store
from pipelines.store.remote import StorageError
from pipelines.training.checkpoints.writer import Checkpoints, NonFinite

NODE = "nodes/train/base/E0_0-01"
KILLS = 12
MIB = 2**20


def state(images, count=MIB):
    """4 MiB of weights that no other clock has, and the optimizer's step."""
    draw = torch.Generator().manual_seed(images)
    weights = torch.randn(count, generator=draw)
    return {"raw/weight": weights, "ema/weight": weights / 2, "step": torch.tensor(float(images))}


def is_of(tensors, images):
    return all(torch.equal(v, tensors[k]) for k, v in state(images).items())


def checkpoints(root, said):
    return Checkpoints(Store.at(str(root)), NODE, fingerprint="f", log=said.append)


def restored(root):
    """→ images of the newest sound checkpoint, 0 without one; its state is what it should be."""
    tensors, said = {k: torch.zeros_like(v) for k, v in state(0).items()}, []
    found = checkpoints(root, said).restore(tensors)
    if found is None:
        return 0, said
    assert is_of(tensors, found.images)
    assert found.note == {"clock": found.images}
    return found.images, said


def save_on_and_on(root, begin, told):
    """Says each save that it knows to be done."""
    os.nice(5)
    all_of_it = checkpoints(root, [])
    told.send(begin)
    for images in range(begin + 1, begin + 1000):
        all_of_it.save(images, state(images), {"clock": images}, files={"a.txt": b"a" * 1000})
        all_of_it.wait()
        told.send(images)


@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_the_older_one(tmp_path):
    draw, begin, torn, done, kills = random.Random(0), 0, 0, 0, 0
    while kills < KILLS or not (torn and done):
        assert kills < 20 * KILLS, "no kill came while a checkpoint was written"
        kills += 1
        here, there = CONTEXT.Pipe(duplex=False)
        process = CONTEXT.Process(target=save_on_and_on, args=(tmp_path, begin, there))
        process.start()
        there.close()
        here.recv()
        time.sleep(draw.uniform(0.0, 0.3 * (1 + kills // KILLS)))  # a busy machine writes slowly
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        known = begin
        while here.poll():
            try:
                known = here.recv()
            except EOFError:
                break
        images, said = restored(tmp_path)
        assert known <= images <= known + 1
        folders = [f for f in (tmp_path / NODE / "checkpoints").glob("*") if f.is_dir()]
        unfinished = [f for f in folders if not (f / "checkpoint.json").exists()]
        assert len(unfinished) <= 2  # one half written, and one half removed
        assert len(said) <= len(unfinished)
        torn += len(unfinished)
        done += images > begin
        begin = images
    # Each kill between a write and the removal of what is older leaves one more; all go at once.
    last = checkpoints(tmp_path, [])
    last.save(begin + 1, state(begin + 1), {"clock": begin + 1}, files={"a.txt": b"a"})
    last.wait()
    kept = sorted((tmp_path / NODE / "checkpoints").glob("*/checkpoint.json"))
    assert len(kept) == 2 and restored(tmp_path)[0] == begin + 1


def save_beyond_a_limit(root, told):
    """Half of a file can be written."""
    said = []
    all_of_it = checkpoints(root, said)
    all_of_it.save(1, state(1), {"clock": 1})
    all_of_it.wait()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4 * MIB, limits[1]))
    for images in (2, 3):
        all_of_it.save(images, state(images), {"clock": images})
    try:
        all_of_it.wait()
    except OSError as error:
        told.send((all_of_it.failures, said, str(error), restored(root)))
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    all_of_it.save(4, state(4), {"clock": 4})
    all_of_it.wait()
    told.send(all_of_it.failures)


def test_a_disk_that_takes_no_more(tmp_path):
    here, there = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=save_beyond_a_limit, args=(tmp_path, there))
    process.start()
    there.close()
    failures, said, error, (images, passed) = here.recv()
    assert failures == 2 and "File too large" in error
    assert said == [f"the checkpoint of {n} images could not be written: {error}" for n in (2, 3)]
    assert (images, passed) == (1, [])  # and nothing torn is left to fill the disk
    assert here.recv() == 0
    process.join()
    assert restored(tmp_path) == (4, [])
    assert not list(tmp_path.rglob(".*.tmp"))


# -- in a bucket ----------------------------------------------------------------------------------


@pytest.fixture
def bucket(s3, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "FIRST_WAIT_S", 0.01)
    return f"s3://bucket/{tmp_path.name}"


def test_a_bucket_that_fails_has_the_same_checkpoints(bucket, s3, tmp_path):
    s3.faults.rate = 0.2
    said = []
    places = [checkpoints(root, said) for root in (bucket, tmp_path)]
    for images in (1, 2, 3):
        for place in places:
            place.save(images, state(images), {"clock": images}, files={"a.txt": b"a"})
    for place in places:
        place.wait()
    assert restored(bucket) == (3, [])
    s3.faults.rate = 0
    assert s3.faults.done.total() > 5
    there, here = (Store.at(str(root)) for root in (bucket, tmp_path))
    names = here.files(NODE)
    assert there.files(NODE) == names and len(names) == 6
    assert all(there.read(f"{NODE}/{name}") == here.read(f"{NODE}/{name}") for name in names)
    assert said == []
    assert not list((tmp_path / "home").rglob("*.safetensors"))  # what was fetched is gone again


def test_a_bucket_that_ends_an_upload_leaves_the_older_one(bucket, s3, monkeypatch):
    monkeypatch.setattr(remote, "ATTEMPTS", 2)
    said = []
    place = checkpoints(bucket, said)
    place.save(1, state(1), {"clock": 1})
    place.wait()
    s3.faults.methods, s3.faults.kinds, s3.faults.rate = ("PUT",), ("reset",), 1.0
    place.save(2, state(2), {"clock": 2})
    with pytest.raises(StorageError, match="2 attempts failed"):
        place.wait()
    assert place.failures == 1 and len(said) == 1
    s3.faults.rate = 0.0
    assert restored(bucket) == (1, [])
    Store.at(bucket).write(f"{NODE}/checkpoints/{2:012d}/part-00000-of-00001.safetensors", b"torn")
    assert restored(bucket) == (
        1,
        ["checkpoint 000000000002 is not used: it is incomplete; continuing from 1 images"],
    )


def test_a_bucket_that_refuses_is_not_taken_for_an_empty_one(bucket, s3):
    """To start again from nothing would be a costly answer to a wrong key."""
    place = checkpoints(bucket, [])
    place.save(1, state(1), {"clock": 1})
    place.wait()
    s3.faults.methods, s3.faults.kinds, s3.faults.rate = ("GET", "HEAD"), ("403",), 1.0
    with pytest.raises((StorageError, PermissionError), match=r"access denied|Forbidden"):
        restored(bucket)


def test_a_slow_bucket_does_not_hold_up_training(bucket, s3):
    place = checkpoints(bucket, [])
    s3.faults.delay_s = 2.0
    begun = time.monotonic()
    place.save(1, state(1), {"clock": 1})
    held_up = time.monotonic() - begun
    assert place.poll() is None
    place.wait()
    took = time.monotonic() - begun
    assert place.poll() == 1
    assert took > 2 * s3.faults.delay_s  # a part and a manifest
    assert held_up < s3.faults.delay_s / 2
    with pytest.raises(NonFinite):
        place.save(2, {"a": torch.tensor(float("nan"))}, {})


@pytest.mark.slow
def test_an_upload_whose_end_is_not_known_is_made_again(bucket, s3):
    """Its last answer was lost, and the server no longer knows of it when asked once more."""
    data = bytearray(101 * MIB)  # in several requests
    data[:: 7 * MIB] = bytes(range(1, 16))
    s3.faults.methods, s3.faults.next = ("POST",), [None, "lost", "404"]
    store = Store.at(bucket)
    store.write("large", data)
    assert s3.faults.done == {"lost": 1, "404": 1}
    assert s3.faults.requests["POST"] == 5  # two that begin one, and three that end one
    assert store.size("large") == len(data)
    assert store.read("large") == data
