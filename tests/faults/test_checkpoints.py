"""A training node that is stopped, damaged or fed what it cannot learn from. No Ray."""

import json
import shutil

import pytest
import torch
from node_kit import NODE, Node, Stopped
from PIL import Image

from ediffi_core.checkpoint import read
from ediffi_core.ema import reconstruct
from pipelines.training import preemption


@pytest.fixture
def node(smoke, tmp_path):
    threads = torch.get_num_threads()
    yield Node(smoke, tmp_path / "store")
    torch.set_num_threads(threads)  # training sets those that its worker has


@pytest.fixture
def undisturbed(smoke):
    """The weights that the shared run, on Ray, came to."""
    folder = smoke.folder(NODE)
    return {w: (folder / f"{w}.safetensors").read_bytes() for w in ("ema", "raw")}


def part(folder):
    return folder / "part-00000-of-00001.safetensors"


def cut(folder):
    data = part(folder).read_bytes()
    part(folder).write_bytes(data[: len(data) // 2])


def flip(folder):
    data = bytearray(part(folder).read_bytes())
    data[-100] ^= 1
    part(folder).write_bytes(data)


def flip_clock(folder):
    """Tensors untouched, but the images seen are 65 now."""
    manifest = folder / "checkpoint.json"
    text = manifest.read_text()
    assert text.count('"images": 64') == 1
    manifest.write_text(text.replace('"images": 64', '"images": 65'))


def foreign(folder):
    """Another node's: sound, but not of this one."""
    manifest = folder / "checkpoint.json"
    record = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**record, "fingerprint": "0" * 16}))


def torn(folder):
    (folder / "checkpoint.json").unlink()


@pytest.mark.parametrize("damage", [cut, flip, flip_clock, foreign, torn])
def test_a_damaged_checkpoint_is_passed_over_for_an_older_one(node, damage):
    """It says so, goes on from the older one, and its next step makes the same bytes."""
    node.train(stop_at=64)
    newest = node.checkpoint(64)
    whole = part(newest).read_bytes()
    damage(newest)
    told = node.train(stop_at=64)
    assert "checkpoint" in told[0] and newest.name in told[0] and "is not used" in told[0]
    assert told[1:] == ["continues at 48 images"]
    assert part(newest).read_bytes() == whole


def test_without_a_sound_checkpoint_it_starts_again(node, undisturbed):
    node.train(stop_at=32)
    for images in (16, 32):
        cut(node.checkpoint(images))
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


def test_a_stop_changes_no_byte_under_a_schedule(node):
    """The learning rate is that of the place, wherever training was taken up again."""
    how = {"training": {"schedule": "cosine", "warmup_images": 48}}
    node.trainer(**how).train()
    undisturbed = node.weights()
    shutil.rmtree(node.folder)
    stopped = node.trainer(**how)
    stopped.stop_at = 80
    with pytest.raises(Stopped):
        stopped.train()
    again = node.trainer(**how)
    assert again.images == 80
    again.train()
    assert node.weights() == undisturbed


def test_what_continues_its_parent_follows_its_schedule_over_what_it_adds(node):
    """Before and after a stop; the root ended at 256 images."""
    how = {
        "settings": {"start": "continue", "images": 512},
        "training": {"schedule": "linear", "warmup_images": 64},
    }
    stopped = node.trainer(**how)
    stopped.stop_at = 320
    assert stopped.images == 256
    with pytest.raises(Stopped):
        stopped.train()
    again = node.trainer(**how)
    assert again.images == 320
    for trainer in (stopped, again):
        assert trainer.learning_rate(256) == pytest.approx(1e-3 / 4)
        assert trainer.learning_rate(320) == pytest.approx(1e-3)
        assert trainer.learning_rate(512 - 16) == pytest.approx(1e-3 * 16 / 192)


def test_the_curve_has_every_point_once_after_stops(node):
    node.train(stop_at=48)
    node.train(stop_at=112)
    node.train()
    rows = [json.loads(line) for line in (node.folder / "history.jsonl").read_text().splitlines()]
    assert [r["images"] for r in rows if "loss" in r["metrics"]] == [64, 128]
    assert [r["images"] for r in rows if "val_loss" in r["metrics"]] == [128]


def test_a_kill_after_the_last_step_repeats_no_training(node, undisturbed):
    """The final state counts as a checkpoint: the others are to go once the node is committed."""
    superseded = node.trainer().train()["scratch"]
    assert superseded == [*(f"checkpoints/{n:012d}" for n in (112, 96)), "state.new"]
    shutil.rmtree(node.folder / "checkpoints")
    assert node.train() == ["continues at 128 images"]
    assert node.weights() == undisturbed


def test_only_the_newest_checkpoints_and_milestones_are_kept(node):
    trainer = node.trainer(milestone_images=48)
    trainer.stop_at = 112
    with pytest.raises(Stopped):
        trainer.train()
    kept = sorted(int(f.name) for f in node.checkpoint(0).parent.iterdir())
    assert kept == [48, 96, 112]  # 96 is both


def test_a_parent_that_does_not_hold_the_childs_interval_is_refused(node, smoke):
    """Branching E1_1 from E1_0, which never saw its noise levels, is an error in words."""
    low = smoke.folder("train/base/E1_0")
    parent = node.folder.with_name(smoke.folder("train/base/E0_0").name)
    shutil.rmtree(parent)
    shutil.copytree(low, parent)
    with pytest.raises(ValueError, match=r"parent E1_0 was trained on .* branch from one that"):
        node.train()


def test_a_parent_whose_weights_are_others_is_refused(node, smoke):
    """Sound files of another training in the parent's place: its manifest names other weights."""
    parent = node.folder.with_name(smoke.folder("train/base/E0_0").name)
    other = smoke.folder("train/base/single")
    for file in ("ema.safetensors", "raw.safetensors"):
        shutil.copy(other / file, parent / file)
    with pytest.raises(ValueError, match=r"holds weights .*, the manifest of base/E0_0 names"):
        node.train()


def test_averages_of_growing_length_are_kept_and_survive_a_stop(node):
    """From the snapshots a stored average comes back; a stop changes no byte of them."""
    kept = {"training": {"snapshot_images": 48}}
    times = (48, 96, 128)  # the last is the end

    def files():
        return {f.name: f.read_bytes() for f in (node.folder / "snapshots").iterdir()}

    outcome = node.trainer(**kept).train()
    undisturbed = files()
    lengths = (0.05, 0.1)
    assert set(undisturbed) == {
        f"{n:012d}-{length:g}.safetensors" for n in times for length in lengths
    }
    assert {f"snapshots/{name}" for name in undisturbed} <= set(outcome["files"])
    shutil.rmtree(node.folder)
    stopped = node.trainer(**kept)
    stopped.stop_at = 80
    with pytest.raises(Stopped):
        stopped.train()
    node.trainer(**kept).train()
    assert files() == undisturbed

    found = [
        (images, length, read(node.folder / f"snapshots/{images:012d}-{length:g}.safetensors")[0])
        for images in times
        for length in lengths
    ]
    again = reconstruct(found, 128, 0.1)
    for name, value in found[-1][2].items():
        torch.testing.assert_close(again[name], value, rtol=1e-4, atol=1e-6)


def test_a_child_may_carry_its_parents_optimizer_on(node):
    """Its moments and their count are the parent's; a fresh one has none."""
    fresh = node.trainer(settings={"start": "raw"})
    shutil.rmtree(node.folder, ignore_errors=True)
    carried = node.trainer(settings={"start": "raw", "optimizer": "carried"})

    def slots(trainer):
        (adamw,) = trainer.state.optimizer.parts
        return adamw.state.values()

    def steps(trainer):
        return {float(one["step"]) for one in slots(trainer)}

    assert (steps(fresh), steps(carried)) == ({0.0}, {256 / 16})
    assert any(one["exp_avg"].any() for one in slots(carried))
    assert carried.images == 0
    for (name, a), b in zip(
        fresh.setup.model.named_parameters(), carried.setup.model.parameters(), strict=True
    ):
        assert torch.equal(a, b), name


def test_the_state_of_another_optimizer_is_refused(node):
    """A fresh one may start from the same weights."""
    training = {"optimizer": "muon"}
    with pytest.raises(ValueError, match="`optimizer: adamw`, whose state `muon` cannot carry on"):
        node.trainer(settings={"start": "raw", "optimizer": "carried"}, training=training)
    node.trainer(settings={"start": "raw"}, training=training)


def test_pictures_are_drawn_at_milestones_and_kept(node):
    outcome = node.trainer(picture_images=64).train()
    drawn = [row["picture"] for row in node.board.rows if "picture" in row]
    assert [d.rpartition("/")[2] for d in drawn] == ["000000000064.png", "000000000128.png"]
    assert {f for f in outcome["files"] if f.startswith("samples/")} == {
        f"samples/{d.rpartition('/')[2]}" for d in drawn
    }
    for path in drawn:
        with Image.open(node.store.full(path)) as sheet:
            assert sheet.width > 8 * 16  # eight scenes beside each other


# -- leaving, and batches that cannot be learnt from ----------------------------------------------


def test_asked_to_leave_it_saves_first(node, undisturbed, monkeypatch):
    """Between two checkpoints; what goes on afterwards is byte for byte the same."""
    monkeypatch.setattr(preemption, "_reasons", [])
    trainer = node.trainer(checkpoint_images=1000)
    advance = trainer.state.advance

    def asked_at_the_third_step(images, batch):
        advance(images, batch)
        if images == 48:
            preemption.request_stop("SIGTERM")

    trainer.state.advance = asked_at_the_third_step
    with pytest.raises(preemption.Preempted, match="SIGTERM; saved at 48 images"):
        trainer.train()
    assert node.board.rows[-1]["checkpoint"] == 48
    monkeypatch.setattr(preemption, "_reasons", [])
    assert node.train() == ["continues at 48 images"]
    assert node.weights() == undisturbed


class Poison:
    """Spoils the batch at one place, before the step sees it."""

    def __init__(self, trainer, place, by):
        self.step, self.place, self.by = trainer.setup.step, place, by
        trainer.setup.step = self

    def __call__(self, index, x, cond, learning_rate):
        if int(index[0]) == self.place:
            x = x * self.by
        return self.step(index, x, cond, learning_rate)


def test_a_loss_that_is_not_finite_stops_with_the_images_named(node):
    trainer = node.trainer()
    Poison(trainer, 80, float("nan"))
    with pytest.raises(ValueError, match=r"images 80 to 95 of stream base/E1_1: the loss is nan"):
        trainer.train()
    assert any("its rows, as shard:row, are" in line for line in node.board.messages)
    assert node.checkpoint(80).exists() and not node.checkpoint(96).exists()


def test_a_bad_loss_names_the_row_that_is_not_finite(node):
    trainer = node.trainer()
    shards, rows = trainer.setup.data.order(torch.arange(80, 96))
    read = trainer.setup.data.read

    def damaged(*at):
        x, cond = read(*at)
        cond.sequences["t5"][
            (torch.tensor(at[0]) == shards[3]) & (torch.tensor(at[1]) == rows[3])
        ] = float("nan")
        return x, cond

    trainer.setup.data.read = damaged
    with pytest.raises(ValueError, match="the loss is nan"):
        trainer.train()
    assert any(f"not finite are t5 of {shards[3]}:{rows[3]}" in m for m in node.board.messages)


@pytest.mark.parametrize("checkpoint_images", [16, 1000])
def test_a_bad_batch_is_skipped_from_the_last_checkpoint(node, checkpoint_images):
    """Weights are those of a training that never saw it, whatever the checkpoints."""

    def run(spoil):
        shutil.rmtree(node.folder, ignore_errors=True)
        trainer = node.trainer(bad_loss={"then": "skip"}, checkpoint_images=checkpoint_images)
        if spoil:
            Poison(trainer, 80, float("inf"))
        else:
            trainer.skipped = [80]
        return trainer.train(), node.weights()

    (outcome, weights), (_, expected) = run(True), run(False)
    assert outcome["info"]["skipped"] == [80] and outcome["metrics"]["images"] == 128
    assert weights == expected


def test_too_many_bad_batches_stop_it(node):
    trainer = node.trainer(bad_loss={"then": "skip", "skips": 0})
    Poison(trainer, 32, float("nan"))
    with pytest.raises(ValueError, match="images 32 to 47"):
        trainer.train()


def test_a_leap_of_the_loss_is_bad_too():
    from pipelines.training.meters import MEDIAN_WINDOW, BadLoss, Meters, Outcome
    from pipelines.training.parallel import Communicator

    meters = Meters(Communicator(), None, None, bins=1, leap=3.0)

    def step(place, loss):
        losses = torch.full((4,), loss)
        meters.add(place, Outcome(torch.ones(4).double(), losses, torch.tensor(1.0)), 0.0)
        meters.check(4)

    for i in range(MEDIAN_WINDOW):
        step(4 * i, 1.5)
    step(1000, 4.4)
    with pytest.raises(BadLoss, match=r"leapt to 4\.6") as bad:
        step(1004, 4.6)
    assert bad.value.position == 1004
