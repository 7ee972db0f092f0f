"""Several processes train the same weights as one, for DDP, FSDP and hybrid sharding."""

import time
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from together import together

from ediffi_core import draws
from ediffi_core.conditioning import Conditioning, EmbeddingSpec
from ediffi_core.precond import Denoiser
from ediffi_core.sharding import full_tensor
from ediffi_core.unet import UNet, UNetConfig
from pipelines.spec.training import Training
from pipelines.training.checkpoints.state import State
from pipelines.training.parallel import (
    Communicator,
    Heartbeat,
    StopConsensus,
    parallelize,
)
from pipelines.training.step import Draws, Step

BATCH, STEPS = 12, 4
SPECS = (
    EmbeddingSpec(name="t5", dim=8, kind="sequence"),
    EmbeddingSpec(name="clip_image", dim=6, kind="pooled", attended=True),
)
CONFIG = UNetConfig(
    resolution=8,
    channels=8,
    channel_mult=(1, 2),
    blocks=1,
    self_attention=(4,),
    cross_attention=(4,),
    head_channels=8,
    token_dim=12,
    embeddings=SPECS,
)
OPTIONS = Training(batch=BATCH, learning_rate=1e-3, snapshot_images=8).model_dump()
SETTINGS = {
    "seed": 5,
    "stream": "base/E0_0",
    "interval": (0.0, 1.0),
    "noise": {},
    "training": OPTIONS,
}


def batch(index):
    """Images and conditioning at these indices."""
    x = draws.normal(1, "pictures", index, (3, 8, 8)).clamp(-1, 1)
    t5 = draws.normal(1, "t5", index, (5, 8))
    cond = Conditioning(
        {"t5": t5},
        {"t5": torch.arange(5) < 1 + index[:, None] % 5},
        {"clip_image": draws.normal(1, "clip", index, (6,))},
    )
    return x, cond


def train(strategy="ddp", micro_batch=None, precision="float32", optimizer="adamw"):
    """→ full weights, averages and moments by name, and the gradient norms."""
    comm = Communicator.join(torch.device("cpu"), 60)
    torch.manual_seed(3)
    model = Denoiser(UNet(CONFIG))
    called = parallelize(model, comm, strategy, model.net.stages, comm.size)
    options = {**OPTIONS, "precision": precision, "optimizer": optimizer}
    state = State(model, options)
    step = Step(
        model, called, state.optimizer, Draws(SETTINGS, SPECS, "cpu"), comm, options, micro_batch
    )
    norms = []
    for start in range(0, STEPS * BATCH, BATCH):
        index = torch.arange(start, start + BATCH)[comm.share(BATCH)]
        norms.append(float(step(index, *batch(index), 1e-3).grad_norm))
        state.advance(start + BATCH, BATCH)
    return {k: full_tensor(v).clone() for k, v in state.tensors().items()}, norms


def every_strategy():
    """All in one process group, because starting processes is slow."""
    strategies = {
        "ddp": {},
        "micro": {"micro_batch": 2},
        "fsdp": {"strategy": "fsdp"},
        "hybrid": {"strategy": "hybrid"},
        "fsdp micro": {"strategy": "fsdp", "micro_batch": 4},
        "muon ddp": {"optimizer": "muon"},
        "muon fsdp": {"strategy": "fsdp", "optimizer": "muon"},
        "muon hybrid": {"strategy": "hybrid", "optimizer": "muon"},
    }
    return {name: train(**options) for name, options in strategies.items()}


@pytest.fixture(scope="module")
def alone():
    return train()


def in_two_processes():
    return every_strategy(), request_at_step_1()


@pytest.fixture(scope="module")
def two_processes():
    return together(2, in_two_processes)


@pytest.fixture(scope="module")
def results(two_processes):
    return [trained for trained, _ in two_processes]


def assert_close(found, expected):
    (here, norms), (there, their_norms) = found, expected
    assert here.keys() == there.keys()
    for name, value in there.items():
        torch.testing.assert_close(here[name], value, rtol=1e-4, atol=1e-5, msg=name)
    assert norms == pytest.approx(their_norms, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "micro", "fsdp", "hybrid", "fsdp micro"])
def test_two_processes_match_one(alone, results, strategy):
    for rank in range(2):
        assert_close(results[rank][strategy], alone)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["muon ddp", "muon fsdp", "muon hybrid"])
def test_muon_of_two_processes_matches_one(results, strategy):
    alone = train(optimizer="muon")
    assert any(name.endswith("/momentum") for name in alone[0])
    for rank in range(2):
        assert_close(results[rank][strategy], alone)


@pytest.mark.slow
def test_sharded_weights_equal_replicated_ones_to_1e_5(results):
    here, there = results[0]["fsdp"][0], results[0]["ddp"][0]
    for name, value in there.items():
        torch.testing.assert_close(here[name], value, rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.slow
def test_processes_hold_the_same_bits(results):
    for strategy, (found, _) in results[0].items():
        for name, value in found.items():
            assert torch.equal(value, results[1][strategy][0][name]), (strategy, name)


def test_micro_batches_add_up_to_the_batch(alone):
    assert_close(train(micro_batch=5), alone)


def test_bfloat16_is_near_and_its_weights_stay_float32(alone):
    found, norms = train(precision="bfloat16")
    assert {v.dtype for v in found.values()} == {torch.float32}
    assert norms == pytest.approx(alone[1], rel=0.1) and norms != alone[1]


def hung():
    """Rank 1 stops joining collectives; → the error that rank 0 raises."""
    comm = Communicator.join(torch.device("cpu"), timeout_s=4)
    heartbeat, named = Heartbeat(comm), dist.distributed_c10d._get_default_store()
    for start in range(3):
        heartbeat.beat(start * BATCH)
        comm.all_reduce_sum(torch.ones(1))
        time.sleep(1.1)
    if comm.rank == 1:
        named.wait(["named"], timedelta(seconds=60))
        return None
    try:
        comm.all_reduce_sum(torch.ones(1))
    except RuntimeError as error:
        outcome = comm.is_connection_error(error), str(heartbeat.stalled(error))
        named.set("named", "")
        return outcome


@pytest.mark.slow
def test_a_silent_worker_is_named():
    (lost, message), _ = together(2, hung)
    assert lost and "rank 1 was at 24" in message, message


@pytest.mark.slow
def test_a_stop_request_reaches_all_at_the_next_step(two_processes):
    assert [stops for _, stops in two_processes] == [[False, False, True, False]] * 2


def request_at_step_1():
    consensus = StopConsensus(Communicator.join(torch.device("cpu"), timeout_s=30))
    rank = torch.distributed.get_rank()
    return [consensus.any_stopping(rank == 1 and step == 1) for step in range(4)]


def test_a_share_is_as_even_as_can_be():
    for size in (1, 2, 3, 5, 7):
        parts = [Communicator(rank=r, size=size).share(BATCH) for r in range(size)]
        assert [p.start for p in parts[1:]] == [p.stop for p in parts[:-1]]
        lengths = [p.stop - p.start for p in parts]
        assert sum(lengths) == BATCH and max(lengths) - min(lengths) <= 1
