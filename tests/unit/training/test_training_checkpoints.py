"""Checkpoints of one process: what was saved comes back, or an older one does and it is said."""

import json
import random
import re
import threading

import pytest
import torch
from safetensors.torch import load_file

from pipelines.store.artifacts import Store
from pipelines.training.checkpoints.writer import Checkpoints, NonFinite

NODE = "nodes/train/base/E1_1-0123"
NOTE = {"images": 1, "skipped": [[3, 7]], "rate": 0.1, "name": "σ é"}
FILES = {"history.jsonl": b'{"loss": 1}\n{"loss": 2}\n'}


def state(seed=0):
    """Every type and shape that a training has, and some that it has not."""
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
    def __init__(self, root, **how):
        self.store = Store.at(str(root))
        self.how = {"fingerprint": "0123", "keep": 2, **how}
        self.folder = root / NODE / "checkpoints"
        self.said = []
        self.open()

    def open(self, **how):
        """As a process that starts anew would."""
        self.said = []
        self.all = Checkpoints(self.store, NODE, say=self.said.append, **{**self.how, **how})
        return self.all

    def save(self, images, **how):
        self.all.save(images, state(images), {**NOTE, "images": images}, files=FILES, **how)
        self.all.wait()

    def restore(self, **how):
        """→ images of what a new process goes on from; 0 if nothing. The state is checked."""
        tensors = blank()
        found = self.open().restore(tensors, **how)
        if found is None:
            assert same(tensors, blank())
            return 0
        assert same(tensors, state(found.images))
        assert found.note == {**NOTE, "images": found.images}
        assert found.files == FILES
        return found.images

    def of(self, images):
        return self.folder / f"{images:012d}"

    def there(self):
        return sorted(int(f.name) for f in self.folder.iterdir())


@pytest.fixture
def kit(tmp_path):
    return Kit(tmp_path / "store")


def test_all_comes_back(kit):
    assert kit.restore() == 0
    kit.save(64)
    assert kit.restore() == 64
    assert kit.said == []


def test_its_files_are_plain_ones(kit):
    """Anyone can read them: safetensors and JSON."""
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
    kits[0].save(32)  # its memory is used before
    for kit in kits:
        kit.save(64)
    a, b = ({f.name: f.read_bytes() for f in kit.of(64).iterdir()} for kit in kits)
    assert a == b


def test_training_goes_on_while_it_is_written(kit, monkeypatch):
    """What is saved is the state at the call, whatever becomes of the tensors."""
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
    assert kit.there() == [64, 72]
    assert kit.restore() == 72


def test_memory_is_used_again(kit):
    kit.save(8)
    part = kit.all._part
    where = {name: view.data_ptr() for name, view in part.views.items()}
    kit.save(16)
    assert kit.all._part is part
    assert {name: view.data_ptr() for name, view in part.views.items()} == where
    kit.all.save(24, {"other": torch.ones(3)}, {})
    kit.all.wait()
    assert kit.all._part is not part


# -- what is not sound ----------------------------------------------------------------------------


def test_any_bit_that_flips_is_found(kit):
    kit.save(32)
    kit.save(64)
    draw = random.Random(0)
    files = sorted(kit.of(64).iterdir())
    for trial in range(60):
        file = files[trial % len(files)]
        sound = file.read_bytes()
        damaged = bytearray(sound)
        bit = draw.randrange(8 * len(sound))
        damaged[bit // 8] ^= 1 << bit % 8
        file.write_bytes(damaged)
        assert kit.restore() == 32, f"bit {bit} of {file.name}"
        [line] = kit.said
        assert line.startswith("checkpoint 000000000064 is not used: its ")
        assert line.endswith("; continuing from 32 images")
        file.write_bytes(sound)
    assert kit.restore() == 64


def test_every_bit_of_a_manifest_counts(kit):
    """Also where JSON does not: spaces, and the case of letters in escapes and exponents."""
    from pipelines.training.checkpoints.manifest import Manifest
    from pipelines.training.process_group import Unsound

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
        with pytest.raises(Unsound):
            Manifest.from_bytes(bytes(damaged))


def test_any_end_that_is_missing_is_found(kit):
    kit.save(32)
    kit.save(64)
    for file in sorted(kit.of(64).iterdir()):
        sound = file.read_bytes()
        lengths = {0, 1, 7, 8, 9, len(sound) // 2, len(sound) - 2, len(sound) - 1}
        for length in sorted(lengths):
            file.write_bytes(sound[:length])
            assert kit.restore() == 32, f"{length} bytes of {file.name}"
            assert len(kit.said) == 1
        file.write_bytes(sound + b"\n")
        assert kit.restore() == 32, f"a byte more of {file.name}"
        file.unlink()
        assert kit.restore() == 32, f"without {file.name}"
        file.mkdir()
        assert kit.restore() == 32, f"a folder for {file.name}"
        file.rmdir()
        file.write_bytes(sound)
    assert kit.restore() == 64


def test_files_of_another_checkpoint_are_found(kit):
    kit.save(32)
    kit.save(64)
    for file in sorted(kit.of(64).iterdir()):
        if file.name != "history.jsonl":  # the same in both
            sound = file.read_bytes()
            file.write_bytes((kit.of(32) / file.name).read_bytes())
            assert kit.restore() == 32, file.name
            file.write_bytes(sound)


def test_another_nodes_checkpoint_is_refused(kit):
    kit.save(32)
    kit.open(fingerprint="4567")
    kit.save(64)
    assert kit.restore() == 32
    assert kit.said == [
        "checkpoint 000000000064 is not used: it is of node 4567, not of 0123; "
        "continuing from 32 images"
    ]


def test_without_a_sound_one_there_is_none(kit):
    kit.save(32)
    kit.save(64)
    for images in (32, 64):
        (kit.of(images) / "part-00000-of-00001.safetensors").write_bytes(b"torn")
    assert kit.restore() == 0
    assert len(kit.said) == 2
    for line in kit.said:
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
        [line] = kit.said
        assert words in line
        assert not any(v.double().any() for v in wanted.values())


def test_what_training_should_not_have_saved(kit):
    kit.save(32)
    for name, value in (("raw/conv", float("nan")), ("scalar", float("-inf"))):
        tensors = state(64)
        tensors[name][(-1,) * tensors[name].dim()] = value
        with pytest.raises(NonFinite, match=name):
            kit.all.save(64, tensors, NOTE)
    kit.all.wait()
    assert kit.there() == [32]
    assert kit.all.failures == 0


def test_large_values_are_finite(kit):
    """Though their norm is none that the type holds."""
    largest = {
        str(d): torch.full((9,), torch.finfo(d).max, dtype=d)
        for d in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    }
    kit.all.save(64, largest, {})
    kit.all.wait()
    found = {k: torch.zeros_like(v) for k, v in largest.items()}
    assert kit.open().restore(found)
    assert same(found, largest)


# -- what is kept ---------------------------------------------------------------------------------


def test_the_newest_and_the_milestones_are_kept(kit):
    for images in range(10, 80, 10):
        kit.save(images, milestone=images % 30 == 0)
    assert kit.there() == [30, 60, 70]
    assert kit.restore() == 70
    kit.all.clear()
    assert kit.there() == [30, 60]
    assert kit.restore() == 60


def test_a_damaged_one_does_not_push_out_a_sound_one(kit):
    for images in (10, 20, 30):
        kit.save(images)
    (kit.of(30) / "history.jsonl").unlink()
    assert kit.restore() == 20
    kit.save(25)
    assert kit.there() == [20, 25, 30]
    kit.save(35)
    assert kit.there() == [25, 35]
    assert kit.restore() == 35


def test_a_damaged_one_is_written_anew(kit):
    for images in (10, 20, 30):
        kit.save(images)
    (kit.of(30) / "history.jsonl").unlink()
    assert kit.restore() == 20
    kit.save(30)
    assert kit.there() == [20, 30]
    assert kit.restore() == 30


def test_what_was_torn_is_never_mixed_with_what_comes(kit):
    """An attempt's other parts are gone before the next one's first byte."""
    kit.save(32)
    kit.save(64)
    for n in (0, 1, 2):
        (kit.of(64) / f"part-0000{n}-of-00003.safetensors").write_bytes(b"older")
    (kit.of(64) / "more.json").write_bytes(b"older")
    kit.save(64)
    assert len(list(kit.of(64).iterdir())) == 3
    assert kit.restore() == 64


def test_the_finished_state_is_apart(kit):
    for images in (10, 20, 30):
        kit.save(images)
    kit.save(40, to=f"{NODE}/state")
    assert kit.there() == [20, 30]
    with pytest.raises(ValueError, match="save to a folder beside them"):
        kit.all.save(50, state(50), NOTE, to=NODE)
    kit.all.clear()
    assert kit.there() == []
    assert kit.restore() == 0
    assert kit.restore(ended=f"{NODE}/state") == 40

    tensors = blank()
    child = Checkpoints(
        kit.store, "nodes/train/base/E2_0-89", fingerprint="89", say=kit.said.append
    )
    found = child.restore_from(f"{NODE}/state", tensors, "0123")
    assert found.images == 40 and same(tensors, state(40))
    with pytest.raises(ValueError, match="it is of node 0123, not of 89"):
        child.restore_from(f"{NODE}/state", tensors, "89")
    (kit.folder.parent / "state" / "checkpoint.json").unlink()
    with pytest.raises(ValueError, match=r"not written to its end; run the node that makes it"):
        child.restore_from(f"{NODE}/state", tensors, "0123")


# -- what cannot be written -------------------------------------------------------------------


def test_a_write_that_fails_is_said_counted_and_tried_again(kit):
    kit.save(16)
    kit.of(32).write_bytes(b"a file where the folder should be")
    kit.all.save(32, state(32), NOTE)
    with pytest.raises(OSError):
        kit.all.wait()
    kit.all.wait()  # told once
    assert kit.all.failures == 1
    [line] = kit.said
    assert line.startswith("the checkpoint of 32 images could not be written: ")
    kit.all.save(32, state(32), NOTE)
    kit.of(48).write_bytes(b"another")
    kit.all.save(48, state(48), NOTE)  # is not stopped by the one before
    with pytest.raises(OSError):
        kit.all.wait()
    assert kit.all.failures == 3
    kit.save(64)
    assert kit.all.failures == 0
    assert len(kit.said) == 3
    assert kit.restore() == 64
