"""Checkpoints of several processes: what some wrote, any other number reads."""

import json
import resource
import shutil

import pytest
import torch
from processes import run
from torch import nn

from pipelines.store.artifacts import Store
from pipelines.training.checkpoints.writer import Checkpoints, Peers

NODE = "nodes/train/base/E0_0-0123"
WAYS = ("replicated", "sharded", "hybrid")


def model():
    """Rows that four processes cannot share evenly, and fewer of them than processes."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 10), nn.GroupNorm(1, 10), nn.Linear(10, 3))


def mesh_of(way, count):
    from torch.distributed.device_mesh import init_device_mesh

    if way == "hybrid" and count > 1:
        return init_device_mesh("cpu", (2, count // 2), mesh_dim_names=("replica", "shard"))
    return init_device_mesh("cpu", (count,))


def trained(way, count, steps):
    """→ what is saved of a training: weights, two averages and the optimizer, sharded as it is."""
    net = model()
    if way != "replicated" and count > 1:
        from torch.distributed.fsdp import fully_shard

        fully_shard(net, mesh=mesh_of(way, count))
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
    for step in range(steps + 1):  # the first, without effect, makes the optimizer's state
        net(torch.linspace(-1, 1, 20).view(4, 5) + step).square().mean().backward()
        for group in optimizer.param_groups:
            group["lr"] = 0.1 if step < steps else 0.0
        optimizer.step()
        optimizer.zero_grad()
    out = {f"raw/{k}": v for k, v in net.state_dict().items()}
    out |= {f"ema/{k}": v.detach() * 0.5 for k, v in net.state_dict().items()}
    for i, slots in optimizer.state_dict()["state"].items():
        out |= {f"optimizer/{i}/{k}": v for k, v in slots.items()}
    return out


def whole(tensors):
    from torch.distributed.tensor import DTensor

    return {
        k: (v.full_tensor() if isinstance(v, DTensor) else v).detach().clone()
        for k, v in tensors.items()
    }


def save_all(peers, root):
    """Saves a training of every way; → the whole tensors of each."""
    out = {}
    for way in WAYS:
        all_of_it = Checkpoints(
            Store.at(f"{root}/{way}"), NODE, fingerprint="f", peers=peers, say=print
        )
        for images in (8, 16):
            tensors = trained(way, peers.size, images // 8)
            all_of_it.save(images, tensors, {"clock": images}, files={"a.txt": b"a"})
        all_of_it.wait()
        assert all_of_it.poll() == 16 and all_of_it.failures == 0
        out[way] = {k: v.tolist() for k, v in whole(tensors).items()}
    return out


def restore_all(peers, root, laid_out):
    """Restores every way's checkpoint into one way's tensors; → them, whole."""
    out, said = {}, []
    for way in WAYS:
        tensors = trained(laid_out, peers.size, 0)
        all_of_it = Checkpoints(
            Store.at(f"{root}/{way}"), NODE, fingerprint="f", peers=peers, say=said.append
        )
        found = all_of_it.restore(tensors)
        assert found and found.note == {"clock": found.images} and found.files == {"a.txt": b"a"}
        out[way] = found.images, {k: v.tolist() for k, v in whole(tensors).items()}
    return out, said


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    root = tmp_path_factory.mktemp("saved")
    given = run(4, save_all, root)
    assert all(one == given[0] for one in given)
    return root, given[0]


def folder(root, way, images=16):
    return root / way / NODE / "checkpoints" / f"{images:012d}"


def test_every_process_writes_its_share(saved):
    root, _ = saved
    for way in WAYS:
        files = sorted(folder(root, way).glob("part-*"))
        assert [f.name for f in files] == [f"part-0000{i}-of-00004.safetensors" for i in range(4)]
        manifest = json.loads((folder(root, way) / "checkpoint.json").read_text())
        assert len(manifest["files"]) == 5


def test_one_process_resumes_what_four_saved(saved):
    root, states = saved
    restored, said = restore_all(Peers(), root, "replicated")
    assert restored == {way: (16, states[way]) for way in WAYS}
    assert said == []


@pytest.mark.parametrize("laid_out", ["replicated", "sharded"])
def test_two_processes_resume_what_four_saved(saved, laid_out):
    root, states = saved
    for restored, said in run(2, restore_all, root, laid_out):
        assert restored == {way: (16, states[way]) for way in WAYS}
        assert said == []


def test_a_damaged_part_is_found_by_one_and_known_to_all(saved, tmp_path):
    _, states = saved
    shutil.copytree(saved[0], root := tmp_path / "store")
    for way, part in zip(WAYS, (0, 3, 2), strict=True):
        file = folder(root, way) / f"part-0000{part}-of-00004.safetensors"
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
    told = run(2, restore_all, root, "sharded")
    for restored, _ in told:
        assert {way: images for way, (images, _) in restored.items()} == dict.fromkeys(WAYS, 8)
        assert all(restored[way][1] != states[way] for way in WAYS)
    assert told[0][0] == told[1][0]
    assert told[1][1] == []  # the first process speaks for all
    assert told[0][1] == [
        f"checkpoint 000000000016 is not used: its part {part} has another sha256; "
        "continuing from 8 images"
        for part in (0, 3, 2)
    ]


def fail_together(peers, root):
    """→ what went wrong, in this process's words."""
    said, words = [], []
    all_of_it = Checkpoints(
        Store.at(str(root)), NODE, fingerprint="f", peers=peers, say=said.append
    )
    tensors = trained("sharded", peers.size, 1)

    def attempt(images, tensors):
        try:
            all_of_it.save(images, tensors, {})
            all_of_it.wait()
        except (ValueError, OSError) as error:
            words.append(f"{type(error).__name__}: {error}")

    attempt(8, tensors)
    local = tensors["ema/2.weight"].to_local()
    if peers.rank == 1:
        local[0] = float("nan")
    attempt(16, tensors)
    local.fill_(1)
    attempt(24, {**tensors, "more": torch.zeros(2 + peers.rank)})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if peers.rank == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (500, limits[1]))
    attempt(32, tensors)
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    counted = all_of_it.failures
    attempt(40, tensors)
    return words, said, counted, all_of_it.failures


def test_what_fails_in_one_fails_in_all(tmp_path):
    first, second = run(2, fail_together, tmp_path)
    not_finite = "NonFinite: tensor 'ema/2.weight' holds values that are not finite"
    different = "ValueError: the processes have different tensors to save"
    full = "[Errno 27] File too large"
    assert first[0] == [not_finite, different, f"StorageError: process 1 of 2: {full}"]
    assert second[0] == [not_finite, different, f"OSError: {full}"]
    assert [first[1], second[1]] == [
        [f"the checkpoint of 32 images could not be written: process 1 of 2: {full}"],
        [],
    ]
    assert first[2:] == second[2:] == (1, 0)
    there = sorted(f.name for f in (tmp_path / NODE / "checkpoints").iterdir())
    assert there == [f"{8:012d}", f"{40:012d}"]
