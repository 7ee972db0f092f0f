"""A training node whose storage fails for a while. No Ray."""

import errno
import shutil
from collections import Counter

import pytest
import torch
from node_kit import NODE, Node, Stopped

from pipelines.store.artifacts import Store


@pytest.fixture
def node(smoke, tmp_path):
    threads = torch.get_num_threads()
    yield Node(smoke, tmp_path / "store")
    torch.set_num_threads(threads)


@pytest.fixture
def undisturbed(smoke):
    folder = smoke.folder(NODE)
    return {w: (folder / f"{w}.safetensors").read_bytes() for w in ("ema", "raw")}


@pytest.fixture
def full(monkeypatch):
    """``full(*parts)``: writes to paths with one of these parts fail ``times`` times each."""
    write = Store.write

    def begin(*parts, times=10**9):
        refused = Counter()

        def refusing(self, path, data):
            if refused[path] < times and any(part in path for part in parts):
                refused[path] += 1
                raise OSError(errno.ENOSPC, "No space left on device")
            write(self, path, data)

        monkeypatch.setattr(Store, "write", refusing)

    return begin


def test_a_full_disk_at_a_second_end_leaves_the_training(node, undisturbed, full, monkeypatch):
    """A first attempt ended before its node was recorded, and only its final state is left."""
    node.train()
    shutil.rmtree(node.folder / "checkpoints")
    state = {f.name: f.stat().st_mtime_ns for f in (node.folder / "state").iterdir()}
    full("")
    with pytest.raises(OSError, match="No space left"):
        node.train()
    monkeypatch.undo()
    assert node.train() == ["continues at 128 images"]
    assert node.weights() == undisturbed
    assert {f.name: f.stat().st_mtime_ns for f in (node.folder / "state").iterdir()} == state


def test_pictures_and_progress_are_done_without(node, undisturbed, full):
    full("samples/000000000064", "progress.json", times=1)
    outcome = node.trainer(picture_images=64).train()
    assert node.board.messages == [
        "the progress could not be written: [Errno 28] No space left on device",
        "samples/000000000064.png could not be written: [Errno 28] No space left on device",
    ]
    drawn = [f for f in outcome["files"] if f.startswith("samples/")]
    assert drawn == ["samples/000000000128.png"]
    assert all((node.folder / file).exists() for file in outcome["files"])
    assert node.store.read_json(f"{node.verdict.folder}/progress.json")["done"] >= 32
    assert node.weights() == undisturbed


def test_a_snapshot_is_made_up_for_before_the_next_checkpoint(node, full):
    kept = {"training": {"snapshot_images": 48}}

    def files():
        return {f.name: f.read_bytes() for f in (node.folder / "snapshots").iterdir()}

    node.trainer(**kept).train()
    undisturbed = files()
    shutil.rmtree(node.folder)
    full("snapshots/000000000048-0.05", times=2)
    stopped = node.trainer(**kept)
    stopped.stop_at = 64
    with pytest.raises(Stopped):
        stopped.train()
    assert node.board.messages == [
        "a snapshot could not be written: [Errno 28] No space left on device",
        "a snapshot, and so no checkpoint, could not be written: [Errno 28] No space left on "
        "device",
    ]
    outcome = node.trainer(**kept).train()
    assert files() == undisturbed
    assert {f"snapshots/{name}" for name in undisturbed} <= set(outcome["files"])


def test_snapshots_that_stay_unwritten_end_the_attempt(node, full, monkeypatch):
    """Memory holds those of one time, and what continues makes them anew."""
    kept = {"training": {"snapshot_images": 48}}
    full("snapshots/")
    trainer = node.trainer(**kept)
    with pytest.raises(OSError, match="No space left"):
        trainer.train()
    assert trainer.images == 96
    monkeypatch.undo()
    outcome = node.trainer(**kept).train()
    assert node.board.messages == ["continues at 32 images"]
    made = sorted(f.name for f in (node.folder / "snapshots").iterdir())
    assert len(made) == 6
    assert {f"snapshots/{name}" for name in made} <= set(outcome["files"])
