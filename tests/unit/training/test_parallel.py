"""Several processes train what one would, whatever the weights are split over."""

import time

import pytest
import torch
from together import together

from ediffi_core import draws
from ediffi_core.conditioning import Conditioning, EmbeddingSpec
from ediffi_core.precond import Denoiser
from ediffi_core.unet import UNet, UNetConfig
from pipelines.spec.training import Training
from pipelines.training.checkpoints.state import State
from pipelines.training.parallel import Agreement, Pulse, World, split, whole
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
    """Pictures and what is told of them, of those places."""
    x = draws.normal(1, "pictures", index, (3, 8, 8)).clamp(-1, 1)
    t5 = draws.normal(1, "t5", index, (5, 8))
    told = Conditioning(
        {"t5": t5},
        {"t5": torch.arange(5) < 1 + index[:, None] % 5},
        {"clip_image": draws.normal(1, "clip", index, (6,))},
    )
    return x, told


def train(how="ddp", micro_batch=None, precision="float32"):
    """→ weights, averages and moments by name, in full, and the gradient norms."""
    world = World.join(torch.device("cpu"), 60)
    torch.manual_seed(3)
    model = Denoiser(UNet(CONFIG))
    called = split(model, world, how, model.net.stages, world.size)
    options = {**OPTIONS, "precision": precision}
    state = State(model, options)
    step = Step(
        model, called, state.optimizer, Draws(SETTINGS, SPECS, "cpu"), world, options, micro_batch
    )
    norms = []
    for place in range(0, STEPS * BATCH, BATCH):
        index = torch.arange(place, place + BATCH)[world.share(BATCH)]
        norms.append(float(step(index, *batch(index), 1e-3).grad_norm))
        state.advance(place + BATCH, BATCH)
    return {k: whole(v).clone() for k, v in state.tensors().items()}, norms


def every_way():
    """In one process group, for the start of the processes is what takes time."""
    ways = {"ddp": {}, "micro": {"micro_batch": 2}, "fsdp": {"how": "fsdp"}}
    ways |= {"hybrid": {"how": "hybrid"}, "fsdp micro": {"how": "fsdp", "micro_batch": 4}}
    return {name: train(**way) for name, way in ways.items()}


@pytest.fixture(scope="module")
def alone():
    return train()


@pytest.fixture(scope="module")
def ways():
    return together(2, every_way)


def assert_close(found, expected):
    (here, norms), (there, their_norms) = found, expected
    assert here.keys() == there.keys()
    for name, value in there.items():
        torch.testing.assert_close(here[name], value, rtol=1e-4, atol=1e-5, msg=name)
    assert norms == pytest.approx(their_norms, rel=1e-4)


@pytest.mark.parametrize("way", ["ddp", "micro", "fsdp", "hybrid", "fsdp micro"])
def test_two_processes_come_to_what_one_does(alone, ways, way):
    for rank in range(2):
        assert_close(ways[rank][way], alone)


def test_split_weights_equal_copied_ones_to_1e_5(ways):
    here, there = ways[0]["fsdp"][0], ways[0]["ddp"][0]
    for name, value in there.items():
        torch.testing.assert_close(here[name], value, rtol=1e-5, atol=1e-5, msg=name)


def test_processes_hold_the_same_bits(ways):
    for way, (found, _) in ways[0].items():
        for name, value in found.items():
            assert torch.equal(value, ways[1][way][0][name]), (way, name)


def test_micro_batches_add_up_to_the_batch(alone):
    assert_close(train(micro_batch=5), alone)


def test_bfloat16_is_near_and_its_weights_stay_float32(alone):
    found, norms = train(precision="bfloat16")
    assert {v.dtype for v in found.values()} == {torch.float32}
    assert norms == pytest.approx(alone[1], rel=0.1) and norms != alone[1]


def hung():
    """Rank 1 stops joining in; → what rank 0 says of it."""
    world = World.join(torch.device("cpu"), timeout_s=4)
    pulse = Pulse(world)
    for place in range(3):
        pulse.beat(place * BATCH)
        world.total(torch.ones(1))
        time.sleep(1.1)
    if world.rank == 1:
        time.sleep(10)
        return None
    try:
        world.total(torch.ones(1))
    except RuntimeError as error:
        return world.lost(error), str(pulse.missing(error))


def test_a_worker_that_does_not_answer_is_named():
    (lost, said), _ = together(2, hung)
    assert lost and "rank 1 was at 24" in said, said


def test_asked_at_one_step_all_know_at_the_next():
    assert together(2, asked) == [[False, False, True, False]] * 2


def asked():
    agreement = Agreement(World.join(torch.device("cpu"), timeout_s=30))
    rank = torch.distributed.get_rank()
    return [agreement.reached(rank == 1 and step == 1) for step in range(4)]


def test_a_share_is_as_even_as_can_be():
    for size in (1, 2, 3, 5, 7):
        parts = [World(rank=r, size=size).share(BATCH) for r in range(size)]
        assert [p.start for p in parts[1:]] == [p.stop for p in parts[:-1]]
        lengths = [p.stop - p.start for p in parts]
        assert sum(lengths) == BATCH and max(lengths) - min(lengths) <= 1
