"""Checkpoints of several processes can be read by any other number of processes."""

import json
import resource
import shutil

import pytest
import torch
from processes import run
from torch import nn

from pipelines.store.artifacts import Store
from pipelines.training.checkpoints.writer import Checkpoints, ProcessGroup

NODE = "nodes/train/base/E0_0-0123"
SHARDINGS = ("replicated", "sharded", "hybrid")


def model():
    """Row counts that four processes cannot share evenly, some below four."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 10), nn.GroupNorm(1, 10), nn.Linear(10, 3))


def mesh_for(sharding, count):
    from torch.distributed.device_mesh import init_device_mesh

    if sharding == "hybrid" and count > 1:
        return init_device_mesh("cpu", (2, count // 2), mesh_dim_names=("replica", "shard"))
    return init_device_mesh("cpu", (count,))


def trained(sharding, count, steps):
    """→ the tensors of a training, in its sharding: weights, an average and the optimiser."""
    net = model()
    if sharding != "replicated" and count > 1:
        from torch.distributed.fsdp import fully_shard

        fully_shard(net, mesh=mesh_for(sharding, count))
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
    for step in range(steps + 1):  # the first only allocates the optimiser's state
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


def full(tensors):
    from torch.distributed.tensor import DTensor

    return {
        k: (v.full_tensor() if isinstance(v, DTensor) else v).detach().clone()
        for k, v in tensors.items()
    }


def save_all(group, root):
    """Save a training of every sharding; → the full tensors of each."""
    out = {}
    for sharding in SHARDINGS:
        checkpoints = Checkpoints(
            Store.at(f"{root}/{sharding}"), NODE, fingerprint="f", group=group, log=print
        )
        for images in (8, 16):
            tensors = trained(sharding, group.size, images // 8)
            checkpoints.save(images, tensors, {"clock": images}, files={"a.txt": b"a"})
        checkpoints.wait()
        assert checkpoints.poll() == 16 and checkpoints.failures == 0
        out[sharding] = {k: v.tolist() for k, v in full(tensors).items()}
    return out


def restore_all(group, root, target):
    """Restore the checkpoint of every sharding into one sharding; → full tensors, messages."""
    out, messages = {}, []
    for sharding in SHARDINGS:
        tensors = trained(target, group.size, 0)
        checkpoints = Checkpoints(
            Store.at(f"{root}/{sharding}"), NODE, fingerprint="f", group=group, log=messages.append
        )
        found = checkpoints.restore(tensors)
        assert found and found.note == {"clock": found.images} and found.files == {"a.txt": b"a"}
        out[sharding] = found.images, {k: v.tolist() for k, v in full(tensors).items()}
    return out, messages


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    root = tmp_path_factory.mktemp("saved")
    given = run(4, save_all, root)
    assert all(one == given[0] for one in given)
    return root, given[0]


def folder(root, sharding, images=16):
    return root / sharding / NODE / "checkpoints" / f"{images:012d}"


@pytest.mark.slow
def test_every_process_writes_its_share(saved):
    root, _ = saved
    for sharding in SHARDINGS:
        files = sorted(folder(root, sharding).glob("part-*"))
        assert [f.name for f in files] == [f"part-0000{i}-of-00004.safetensors" for i in range(4)]
        manifest = json.loads((folder(root, sharding) / "checkpoint.json").read_text())
        assert len(manifest["files"]) == 5


@pytest.mark.slow
def test_one_process_resumes_what_four_saved(saved):
    root, states = saved
    restored, messages = restore_all(ProcessGroup(), root, "replicated")
    assert restored == {sharding: (16, states[sharding]) for sharding in SHARDINGS}
    assert messages == []


@pytest.mark.slow
@pytest.mark.parametrize("target", ["replicated", "sharded"])
def test_two_processes_resume_what_four_saved(saved, target):
    root, states = saved
    for restored, messages in run(2, restore_all, root, target):
        assert restored == {sharding: (16, states[sharding]) for sharding in SHARDINGS}
        assert messages == []


@pytest.mark.slow
def test_a_damaged_part_found_by_one_process_is_skipped_by_all(saved, tmp_path):
    _, states = saved
    shutil.copytree(saved[0], root := tmp_path / "store")
    for sharding, part in zip(SHARDINGS, (0, 3, 2), strict=True):
        file = folder(root, sharding) / f"part-0000{part}-of-00004.safetensors"
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
    outcomes = run(2, restore_all, root, "sharded")
    for restored, _ in outcomes:
        assert {sharding: images for sharding, (images, _) in restored.items()} == dict.fromkeys(
            SHARDINGS, 8
        )
        assert all(restored[sharding][1] != states[sharding] for sharding in SHARDINGS)
    assert outcomes[0][0] == outcomes[1][0]
    assert outcomes[1][1] == []  # only the first process logs
    assert outcomes[0][1] == [
        f"checkpoint 000000000016 is not used: its part {part} has the wrong sha256; "
        "continuing from 8 images"
        for part in (0, 3, 2)
    ]


def fail_together(group, root):
    """→ errors, messages and counted failures of this process."""
    messages, errors = [], []
    checkpoints = Checkpoints(
        Store.at(str(root)), NODE, fingerprint="f", group=group, log=messages.append
    )
    tensors = trained("sharded", group.size, 1)

    def attempt(images, tensors):
        try:
            checkpoints.save(images, tensors, {})
            checkpoints.wait()
        except (ValueError, OSError) as error:
            errors.append(f"{type(error).__name__}: {error}")

    attempt(8, tensors)
    local = tensors["ema/2.weight"].to_local()
    if group.rank == 1:
        local[0] = float("nan")
    attempt(16, tensors)
    local.fill_(1)
    attempt(24, {**tensors, "more": torch.zeros(2 + group.rank)})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if group.rank == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (500, limits[1]))
    attempt(32, tensors)
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    counted = checkpoints.failures
    attempt(40, tensors)
    return errors, messages, counted, checkpoints.failures


@pytest.mark.slow
def test_a_failure_in_one_process_fails_in_all(tmp_path):
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
