"""A training node's checkpoints: one that is not sound is passed over, and said so. No Ray."""

import json
import shutil

import pytest
import safetensors.torch
import torch
from kit import SMOKE

from pipelines import plan
from pipelines.spec import load
from pipelines.steps.context import Context
from pipelines.steps.train_worker import Trainer
from pipelines.store.artifacts import Store

NODE = "train/base/E1_1"


class Stopped(Exception):
    """The end that a test puts to a training."""


class Board:
    """Takes a step's reports like Ray's actor, and can end the step at one of them."""

    def __init__(self):
        self.rows, self.stop_at = [], None
        self.report = self

    def remote(self, node, row):
        self.rows.append(row)
        if self.stop_at is not None and row.get("checkpoint") == self.stop_at:
            raise Stopped

    @property
    def messages(self):
        return [row["message"] for row in self.rows if "message" in row]


class Node:
    """The node E1_1 of the smoke pipeline, trained in this process into a store of its own."""

    def __init__(self, smoke, root):
        unread = ("data", "encoders", "evaluate", "promote", "train/sr32")
        self.store = Store.at(str(smoke.copy(root, NODE, *unread)))
        self.plan = plan.make(load(SMOKE), self.store, {})
        self.verdict = self.plan.verdicts[NODE]
        self.folder = root / self.verdict.folder
        self.threads = torch.get_num_threads()

    def train(self, stop_at=None):
        """Trains with a checkpoint every step; → what it said."""
        node, board = self.verdict.node, Board()
        board.stop_at = stop_at
        ctx = Context(
            node=node.id,
            fingerprint=self.verdict.fingerprint,
            store=self.store,
            folder=self.verdict.folder,
            cpus=node.cpus,
            runtime={**node.runtime, "checkpoint_images": 16},
            board=board,
            manifests={r: self.plan.verdicts[i].manifest for r, i in node.inputs.items()},
        )
        inputs = {
            role: self.plan.verdicts[i].folder
            for role, i in {**node.inputs, **node.observes}.items()
        }
        try:
            Trainer(ctx, dict(node.settings), inputs).train()
        except Stopped:
            assert stop_at is not None
        else:
            assert stop_at is None
        finally:
            torch.set_num_threads(self.threads)
        return board.messages

    def checkpoint(self, images):
        return self.folder / "checkpoints" / f"{images:012d}.safetensors"

    def weights(self):
        return {w: (self.folder / f"{w}.safetensors").read_bytes() for w in ("ema", "raw")}


@pytest.fixture
def node(smoke, tmp_path):
    return Node(smoke, tmp_path / "store")


@pytest.fixture
def undisturbed(smoke):
    """The weights that the shared run, on Ray, came to."""
    folder = smoke.folder(NODE)
    return {w: (folder / f"{w}.safetensors").read_bytes() for w in ("ema", "raw")}


def cut(data):
    return data[: len(data) // 2]


def flip_weights(data):
    return data[:-100] + bytes([data[-100] ^ 1]) + data[-99:]


def flip_clock(data):
    """Tensors untouched, but the images seen are 65 now."""
    assert data.count(b'images\\": 64, \\"sha256') == 1
    return data.replace(b'images\\": 64, \\"sha256', b'images\\": 65, \\"sha256')


def foreign(data):
    """Sound safetensors, but not ours."""
    return safetensors.torch.save({"raw/weight": torch.zeros(3)})


def empty(data):
    return b""


def tensors(data):
    """Weights, average and optimizer, as bytes; not the curve, which has times in it."""
    return data[8 + int.from_bytes(data[:8], "little") :]


@pytest.mark.parametrize("damage", [cut, flip_weights, flip_clock, foreign, empty])
def test_a_damaged_checkpoint_is_passed_over_for_an_older_one(node, damage):
    """It says so, goes on from the older one, and its next step makes the same bytes."""
    node.train(stop_at=64)
    newest = node.checkpoint(64)
    whole = newest.read_bytes()
    newest.write_bytes(damage(whole))
    told = node.train(stop_at=64)
    assert "checkpoint" in told[0] and newest.name in told[0] and "is not used" in told[0]
    assert told[1:] == ["continues at 48 images"]
    assert tensors(newest.read_bytes()) == tensors(whole)


def test_without_a_sound_checkpoint_it_starts_again(node, undisturbed):
    node.train(stop_at=32)
    for images in (16, 32):
        node.checkpoint(images).write_bytes(b"torn")
    told = node.train()
    assert len(told) == 2 and all("is not used" in line for line in told)
    assert node.weights() == undisturbed


def test_a_stop_at_every_checkpoint_changes_no_byte(node, undisturbed):
    """Resuming restores weights, optimizer, average and the place in every random stream."""
    for images in range(16, 128, 16):
        told = node.train(stop_at=images)
        assert told == ([f"continues at {images - 16} images"] if images > 16 else [])
    node.train()
    assert node.weights() == undisturbed


def test_the_curve_has_every_point_once_after_stops(node):
    node.train(stop_at=48)
    node.train(stop_at=112)
    node.train()
    rows = [json.loads(line) for line in (node.folder / "history.jsonl").read_text().splitlines()]
    assert [r["images"] for r in rows if "loss" in r["metrics"]] == [64, 128]
    assert [r["images"] for r in rows if "val_loss" in r["metrics"]] == [128]


def test_a_kill_after_the_last_step_repeats_no_training(node, undisturbed):
    """The final state counts as a checkpoint: the others are gone when a node has ended."""
    node.train()
    assert not list((node.folder / "checkpoints").iterdir())
    assert node.train() == ["continues at 128 images"]
    assert node.weights() == undisturbed


def test_only_the_newest_checkpoints_are_kept(node):
    node.train(stop_at=96)
    assert sorted(f.name for f in (node.folder / "checkpoints").iterdir()) == [
        node.checkpoint(80).name,
        node.checkpoint(96).name,
    ]


def test_a_parent_that_does_not_hold_the_childs_interval_is_refused(node, smoke):
    """Branching E1_1 from E1_0, which never saw its noise levels, is an error in words."""
    low = smoke.folder("train/base/E1_0")
    parent = node.folder.with_name(smoke.folder("train/base/E0_0").name)
    shutil.rmtree(parent)
    shutil.copytree(low, parent)
    with pytest.raises(ValueError, match=r"parent E1_0 was trained on .* branch from one that"):
        node.train()
