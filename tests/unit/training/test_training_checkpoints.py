"""Checkpoints of one process: the newest valid one is restored, and skipped ones are reported."""

import json
import random
import re
import shutil
import threading

import pytest
import torch
from safetensors.torch import load_file

from pipelines.store.artifacts import Store
from pipelines.store.fenced import FencedStore, OwnerChanged
from pipelines.training.checkpoints.writer import Checkpoints, NonFinite

NODE = "nodes/train/base/E1_1-0123"
NOTE = {"images": 1, "skipped": [[3, 7]], "rate": 0.1, "name": "σ é"}
FILES = {"history.jsonl": b'{"loss": 1}\n{"loss": 2}\n'}


def state(seed=0):
    """Every dtype and shape that training has, and some others."""
    draw = torch.Generator().manual_seed(seed)

    def of(*shape):
        return torch.randn(shape, generator=draw)

    return {
        "raw/conv": of(6, 4, 3, 3).to(memory_format=torch.channels_last),
        "raw/bias": of(7).bfloat16(),
        "raw/scale": of(3).half(),
        "raw/transposed": of(5, 3).T,
        "ema/0.05/conv": of(6, 4, 3, 3),
        "ema/0.05/double": of(3).double(),
        "optimizer/0/step": torch.tensor(float(seed)),
        "optimizer/0/codes": torch.arange(-5, 6, dtype=torch.int8) + seed,
        "optimizer/0/large": torch.tensor([2**40 + seed, -1]),
        "optimizer/0/bytes": torch.arange(256, dtype=torch.uint8).roll(seed),
        "mask": torch.tensor([True, False, bool(seed % 2)]),
        "float8": of(9).to(torch.float8_e4m3fn),
        "empty": torch.zeros(0, 4),
        "scalar": of(),
    }


def blank():
    return {k: torch.zeros_like(v) for k, v in state().items()}


def same(a, b):
    return a.keys() == b.keys() and all(
        x.dtype == b[k].dtype and torch.equal(x.double(), b[k].double()) for k, x in a.items()
    )


class Kit:
    def __init__(self, root, **options):
        self.store = Store.at(str(root))
        self.options = {"fingerprint": "0123", "keep": 2, **options}
        self.folder = root / NODE / "checkpoints"
        self.messages = []
        self.open()

    def open(self, **options):
        """As a new process would."""
        self.messages = []
        self.all = Checkpoints(
            self.store, NODE, log=self.messages.append, **{**self.options, **options}
        )
        return self.all

    def save(self, images, **options):
        self.all.save(images, state(images), {**NOTE, "images": images}, files=FILES, **options)
        self.all.wait()

    def restore(self, **options):
        """→ images that a new process resumes at, 0 without a checkpoint; checks the state."""
        tensors = blank()
        found = self.open().restore(tensors, **options)
        if found is None:
            assert same(tensors, blank())
            return 0
        assert same(tensors, state(found.images))
        assert found.note == {**NOTE, "images": found.images}
        assert found.files == FILES
        return found.images

    def of(self, images):
        return self.folder / f"{images:012d}"

    def clear(self):
        """As the commit of the node does."""
        for at in self.all.superseded(f"{NODE}/state"):
            self.store.remove_folder(at)

    def kept(self):
        return sorted(int(f.name) for f in self.folder.iterdir())


@pytest.fixture
def kit(tmp_path):
    return Kit(tmp_path / "store")


def test_everything_is_restored(kit):
    assert kit.restore() == 0
    kit.save(64)
    assert kit.restore() == 64
    assert kit.messages == []


def test_files_are_plain_safetensors_and_json(kit):
    kit.save(64)
    assert sorted(f.name for f in kit.of(64).iterdir()) == [
        "checkpoint.json",
        "history.jsonl",
        "part-00000-of-00001.safetensors",
    ]
    assert same(load_file(kit.of(64) / "part-00000-of-00001.safetensors"), state(64))
    manifest = json.loads((kit.of(64) / "checkpoint.json").read_text())
    assert manifest["images"] == 64 and manifest["fingerprint"] == "0123"


def test_the_same_state_is_the_same_bytes(tmp_path):
    kits = [Kit(tmp_path / name) for name in "ab"]
    kits[0].save(32)  # so that its buffer is reused
    for kit in kits:
        kit.save(64)
    a, b = ({f.name: f.read_bytes() for f in kit.of(64).iterdir()} for kit in kits)
    assert a == b


def test_training_goes_on_while_it_is_written(kit, monkeypatch):
    """The saved state is that of the call, even if the tensors change meanwhile."""
    gate = threading.Event()
    write = Store.write

    def slow(self, *args):
        gate.wait()
        write(self, *args)

    monkeypatch.setattr(Store, "write", slow)
    tensors, note = state(64), {**NOTE, "images": 64}
    kit.all.save(64, tensors, note, files=FILES)
    assert kit.all.poll() is None
    for value in tensors.values():
        value.zero_()
    note["images"] = 0
    gate.set()
    kit.all.wait()
    assert kit.all.poll() == 64
    assert kit.all.poll() is None
    assert kit.restore() == 64


def test_saves_come_one_after_another(kit):
    for images in range(8, 80, 8):
        kit.all.save(images, state(images), {**NOTE, "images": images}, files=FILES)
    kit.all.wait()
    assert kit.all.poll() == 72
    assert kit.kept() == [64, 72]
    assert kit.restore() == 72


def test_memory_is_reused(kit):
    kit.save(8)
    part = kit.all._part
    where = {name: view.data_ptr() for name, view in part.views.items()}
    kit.save(16)
    assert kit.all._part is part
    assert {name: view.data_ptr() for name, view in part.views.items()} == where
    kit.all.save(24, {"other": torch.ones(3)}, {})
    kit.all.wait()
    assert kit.all._part is not part


# -- invalid checkpoints --------------------------------------------------------------------------


def test_any_flipped_bit_is_detected(kit):
    kit.save(32)
    kit.save(64)
    draw = random.Random(0)
    files = sorted(kit.of(64).iterdir())
    for trial in range(60):
        file = files[trial % len(files)]
        intact = file.read_bytes()
        damaged = bytearray(intact)
        bit = draw.randrange(8 * len(intact))
        damaged[bit // 8] ^= 1 << bit % 8
        file.write_bytes(damaged)
        assert kit.restore() == 32, f"bit {bit} of {file.name}"
        [line] = kit.messages
        assert line.startswith("checkpoint 000000000064 is not used: its ")
        assert line.endswith("; continuing from 32 images")
        file.write_bytes(intact)
    assert kit.restore() == 64


def test_every_bit_of_a_manifest_counts(kit):
    """Even those that JSON ignores: spaces, and the case of escapes and exponents."""
    from pipelines.training.checkpoints.manifest import Manifest
    from pipelines.training.process_group import InvalidCheckpoint

    data = Manifest(
        fingerprint="f",
        images=1,
        milestone=False,
        note={"é": 1e-30},
        files={"part-00000-of-00001.safetensors": {"bytes": 1, "sha256": "0"}},
    ).to_bytes()
    assert Manifest.from_bytes(data).to_bytes() == data
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(InvalidCheckpoint):
            Manifest.from_bytes(bytes(damaged))


def test_any_truncation_is_detected(kit):
    kit.save(32)
    kit.save(64)
    for file in sorted(kit.of(64).iterdir()):
        intact = file.read_bytes()
        lengths = {0, 1, 7, 8, 9, len(intact) // 2, len(intact) - 2, len(intact) - 1}
        for length in sorted(lengths):
            file.write_bytes(intact[:length])
            assert kit.restore() == 32, f"{length} bytes of {file.name}"
            assert len(kit.messages) == 1
        file.write_bytes(intact + b"\n")
        assert kit.restore() == 32, f"a byte more of {file.name}"
        file.unlink()
        assert kit.restore() == 32, f"without {file.name}"
        file.mkdir()
        assert kit.restore() == 32, f"a folder for {file.name}"
        file.rmdir()
        file.write_bytes(intact)
    assert kit.restore() == 64


def test_files_of_another_checkpoint_are_detected(kit):
    kit.save(32)
    kit.save(64)
    for file in sorted(kit.of(64).iterdir()):
        if file.name != "history.jsonl":  # the same in both
            intact = file.read_bytes()
            file.write_bytes((kit.of(32) / file.name).read_bytes())
            assert kit.restore() == 32, file.name
            file.write_bytes(intact)


def test_another_nodes_checkpoint_is_refused(kit):
    kit.save(32)
    kit.open(fingerprint="4567")
    kit.save(64)
    assert kit.restore() == 32
    assert kit.messages == [
        "checkpoint 000000000064 is not used: it belongs to node 4567, not 0123; "
        "continuing from 32 images"
    ]


def test_without_a_valid_checkpoint_nothing_is_restored(kit):
    kit.save(32)
    kit.save(64)
    for images in (32, 64):
        (kit.of(images) / "part-00000-of-00001.safetensors").write_bytes(b"torn")
    assert kit.restore() == 0
    assert len(kit.messages) == 2
    for line in kit.messages:
        assert re.search(r" its part 0 has 4 of [\d,]+ bytes; there is no other$", line)


def test_tensors_that_do_not_fit_are_named_and_left_alone(kit):
    kit.save(64)
    for change, words in (
        ({"more": torch.zeros(1)}, "it has no tensor 'more'"),
        ({"scalar": None}, "it has an unknown tensor 'scalar'"),
        ({"raw/bias": torch.zeros(7)}, "[7] torch.bfloat16, not [7] torch.float32"),
        ({"raw/transposed": torch.zeros(3, 4)}, "[3, 5] torch.float32, not [3, 4] torch.float32"),
    ):
        wanted = {k: v for k, v in {**blank(), **change}.items() if v is not None}
        assert kit.open().restore(wanted) is None
        [line] = kit.messages
        assert words in line
        assert not any(v.double().any() for v in wanted.values())


def test_non_finite_tensors_are_not_saved(kit):
    kit.save(32)
    for name, value in (("raw/conv", float("nan")), ("scalar", float("-inf"))):
        tensors = state(64)
        tensors[name][(-1,) * tensors[name].dim()] = value
        with pytest.raises(NonFinite, match=name):
            kit.all.save(64, tensors, NOTE)
    kit.all.wait()
    assert kit.kept() == [32]
    assert kit.all.failures == 0


def test_large_values_are_finite(kit):
    """Although their norm overflows."""
    largest = {
        str(d): torch.full((9,), torch.finfo(d).max, dtype=d)
        for d in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    }
    kit.all.save(64, largest, {})
    kit.all.wait()
    found = {k: torch.zeros_like(v) for k, v in largest.items()}
    assert kit.open().restore(found)
    assert same(found, largest)


# -- retention ------------------------------------------------------------------------------------


def test_the_newest_and_the_milestones_are_kept(kit):
    for images in range(10, 80, 10):
        kit.save(images, milestone=images % 30 == 0)
    assert kit.kept() == [30, 60, 70]
    assert kit.restore() == 70
    kit.clear()
    assert kit.kept() == [30, 60]
    assert kit.restore() == 60


def test_a_damaged_checkpoint_does_not_displace_a_valid_one(kit):
    for images in (10, 20, 30):
        kit.save(images)
    (kit.of(30) / "history.jsonl").unlink()
    assert kit.restore() == 20
    kit.save(25)
    assert kit.kept() == [20, 25, 30]
    kit.save(35)
    assert kit.kept() == [25, 35]
    assert kit.restore() == 35


def test_a_damaged_checkpoint_is_overwritten(kit):
    for images in (10, 20, 30):
        kit.save(images)
    (kit.of(30) / "history.jsonl").unlink()
    assert kit.restore() == 20
    kit.save(30)
    assert kit.kept() == [20, 30]
    assert kit.restore() == 30


def test_files_of_an_earlier_attempt_are_removed_first(kit):
    kit.save(32)
    kit.save(64)
    for n in (0, 1, 2):
        (kit.of(64) / f"part-0000{n}-of-00003.safetensors").write_bytes(b"older")
    (kit.of(64) / "more.json").write_bytes(b"older")
    kit.save(64)
    assert len(list(kit.of(64).iterdir())) == 3
    assert kit.restore() == 64


def test_the_final_state_is_separate(kit):
    for images in (10, 20, 30):
        kit.save(images)
    kit.save(40, to=f"{NODE}/state")
    assert kit.kept() == [20, 30]
    with pytest.raises(ValueError, match="save to a folder beside them"):
        kit.all.save(50, state(50), NOTE, to=NODE)
    kit.clear()
    assert kit.kept() == []
    assert kit.restore() == 0
    assert kit.restore(final=f"{NODE}/state") == 40

    tensors = blank()
    child = Checkpoints(
        kit.store, "nodes/train/base/E2_0-89", fingerprint="89", log=kit.messages.append
    )
    found = child.restore_from(f"{NODE}/state", tensors, "0123")
    assert found.images == 40 and same(tensors, state(40))
    with pytest.raises(ValueError, match="it belongs to node 0123, not 89"):
        child.restore_from(f"{NODE}/state", tensors, "89")
    (kit.folder.parent / "state" / "checkpoint.json").unlink()
    with pytest.raises(ValueError, match=r"it is incomplete; remove that folder and run again"):
        child.restore_from(f"{NODE}/state", tensors, "0123")


# -- failed writes ----------------------------------------------------------------------------


def test_a_failed_write_is_logged_counted_and_retried(kit):
    kit.save(16)
    kit.of(32).write_bytes(b"a file where the folder should be")
    kit.all.save(32, state(32), NOTE)
    with pytest.raises(OSError):
        kit.all.wait()
    kit.all.wait()  # raised once
    assert kit.all.failures == 1
    [line] = kit.messages
    assert line.startswith("the checkpoint of 32 images could not be written: ")
    kit.all.save(32, state(32), NOTE)
    kit.of(48).write_bytes(b"another")
    kit.all.save(48, state(48), NOTE)  # not stopped by the failed one
    with pytest.raises(OSError):
        kit.all.wait()
    assert kit.all.failures == 3
    kit.save(64)
    assert kit.all.failures == 0
    assert len(kit.messages) == 3
    assert kit.restore() == 64


def owned_by(kit, driver):
    """The kit's checkpoints as a worker of this driver sees them, which owns the node now."""
    record = f"leases/{NODE}.json"
    kit.store.write_json(record, {"owner": driver})
    kit.store = FencedStore(kit.store.root, folder=NODE, record=record, owner=driver)
    return kit.open()


def test_a_driver_that_was_taken_for_dead_loses_its_successor_nothing(kit):
    """Whatever its worker writes or removes late, names of its own are all that it touches."""
    first = owned_by(kit, "alpha.1.aaaa")
    kit.save(32)
    kit.save(64)
    second = owned_by(kit, "beta.2.bbbb")
    assert kit.restore() == 64
    kit.all = second
    kit.save(96)
    late = state(96)
    first.save(96, late, {**NOTE, "images": 96}, files=FILES)
    with pytest.raises(OwnerChanged):
        first.wait()
    assert first.folder.path(96) != second.folder.path(96)
    # As if it had been paused after its last check of the owner:
    unfenced = Store(kit.store.root)
    for images in (32, 64, 96):
        unfenced.remove_folder(first.folder.path(images))
    assert kit.restore() == 96


def test_of_two_drivers_checkpoints_neither_removes_the_others_newest(kit):
    owned_by(kit, "alpha.1.aaaa")
    kit.save(64)
    owned_by(kit, "beta.2.bbbb")
    kit.open(keep=1)
    kit.save(64)
    assert sorted(f.name for f in kit.folder.iterdir()) == [f"{64:012d}.aaaa", f"{64:012d}.bbbb"]
    kit.save(96)
    assert [f.name for f in kit.folder.iterdir()] == [f"{96:012d}.bbbb"]


def test_checkpoints_of_an_earlier_release_are_restored(kit):
    kit.save(64)
    owned_by(kit, "alpha.1.aaaa")
    assert kit.restore() == 64


def test_what_a_killed_driver_had_written_beside_serves_its_successor(kit):
    """Its checkpoint of 64 images is whole beside, and cut short in its place."""
    owned_by(kit, "alpha.1.aaaa")
    kit.save(32)
    kit.save(64)
    place = kit.folder / f"{64:012d}.aaaa"
    shutil.copytree(place, kit.folder / f"{64:012d}.aaaa.new")
    (place / "checkpoint.json").unlink()
    owned_by(kit, "beta.2.bbbb")
    assert kit.restore() == 64
    kit.save(96)
    kept = [f"{64:012d}.aaaa.new", f"{96:012d}.bbbb"]
    assert sorted(f.name for f in kit.folder.iterdir()) == kept
    kit.clear()
    assert list(kit.folder.iterdir()) == []
