"""A training step, its metrics and contact sheets on a fake GPU."""

import pytest
import torch
from fake_gpu import FakeGPU

from ediffi_core.conditioning import Conditioning, EmbeddingSpec
from ediffi_core.noise import Interval, NoiseDistribution
from ediffi_core.precond import Denoiser
from ediffi_core.unet import UNet, UNetConfig
from pipelines.spec.training import Training
from pipelines.training import samples
from pipelines.training.checkpoints.state import State
from pipelines.training.meters import Meters, flops_per_image
from pipelines.training.parallel import Communicator
from pipelines.training.step import Draws, Step
from pipelines.training.validation import Validation, prepare_batch

SPECS = (
    EmbeddingSpec(name="t5", dim=8, kind="sequence"),
    EmbeddingSpec(name="clip_image", dim=6, kind="pooled", attended=True),
)
BATCH = 4
SUPER_RESOLUTION = {"factor": 4, "crop": 8, "degrade": {"probability": 1.0}}


@pytest.fixture
def gpu():
    with FakeGPU() as found:
        yield found


@pytest.fixture
def gradients(monkeypatch):
    """Zero gradients instead of a backward pass, which would need a real CUDA context.

    The test on the ``meta`` device runs the real backward pass.
    """

    def backward(loss):
        assert loss.ndim == 0
        for parameter in MODELS[-1].parameters():
            parameter.grad = torch.zeros_like(parameter)

    monkeypatch.setattr(torch.Tensor, "backward", backward)


MODELS = []


def conditioning(rows):
    mask = torch.ones(rows, 3, dtype=torch.bool)
    return Conditioning(
        {"t5": torch.ones(rows, 3, 8)}, {"t5": mask}, {"clip_image": torch.ones(rows, 6)}
    )


def settings_of(low_res=False):
    return {
        "seed": 1,
        "stream": "train/base",
        "interval": [0.0, 1.0],
        "noise": {"P_mean": -1.2, "P_std": 1.2},
        "sigma_data": 0.5,
        "training": {"dropout": {"all": 0.1, "others": 0.5}},
        "super_resolution": SUPER_RESOLUTION if low_res else None,
    }


def made(low_res=False, device="cuda"):
    """A denoiser on a device, its training state and the options."""
    config = UNetConfig(
        resolution=8,
        channels=8,
        channel_mult=(1, 2),
        blocks=1,
        cross_attention=(4,),
        self_attention=() if low_res else (4,),
        layout="efficient" if low_res else "adm",
        head_channels=8,
        token_dim=12,
        embeddings=SPECS,
        low_res=low_res,
    )
    model = Denoiser(UNet(config)).to(device)
    MODELS.append(model)
    options = Training.model_validate({"batch": BATCH, "snapshot_images": 8}).model_dump()
    return model, State(model, options), options


def two_steps(device, low_res, micro_batch):
    model, state, options = made(low_res, device)
    settings, comm = settings_of(low_res), Communicator(device=torch.device(device))
    draws = Draws(settings, SPECS, comm.device)
    step = Step(model, model, state.optimizer, draws, comm, options, micro_batch)
    cond = conditioning(BATCH).to(device, non_blocking=True)
    x = torch.zeros(BATCH, 3, 16, 16).to(device, non_blocking=True)
    yield
    for start in (0, BATCH):
        index = torch.arange(start, start + BATCH)
        seen = prepare_batch((x, cond), index, settings, "train/base")
        outcome = step(index, *seen, 1e-4)
        state.advance(start + BATCH, BATCH)
    assert {outcome.loss.device.type, outcome.sigma.device.type} == {device}
    assert outcome.loss.shape == (BATCH,)
    yield


@pytest.mark.slow
@pytest.mark.parametrize("low_res", [False, True])
@pytest.mark.parametrize("micro_batch", [None, 2])
def test_a_step_does_not_wait_for_the_gpu(gpu, low_res, micro_batch, gradients):
    steps = two_steps("cuda", low_res, micro_batch)
    next(steps)
    gpu.syncs.clear()
    next(steps)
    assert not gpu.syncs, dict(gpu.syncs)


@pytest.mark.slow
@pytest.mark.parametrize("low_res", [False, True])
def test_whole_steps_on_a_device_without_values(low_res):
    assert [*two_steps("meta", low_res, 2)] == [None, None]


@pytest.mark.slow
def test_a_check_copies_one_tensor_back(gpu, gradients):
    """A check copies one tensor back for any number of steps."""
    model, state, options = made()
    comm = Communicator(device=torch.device("cuda"))
    step = Step(model, model, state.optimizer, Draws(settings_of(), SPECS, "cuda"), comm, options)
    outcome = step(torch.arange(BATCH), torch.zeros(BATCH, 3, 8, 8).to("cuda"),
                   conditioning(BATCH).to("cuda"), 1e-4)  # fmt: skip
    meters = Meters(comm, Interval(0.0, 1.0), NoiseDistribution(), bins=2, leap=None)
    for start in range(5):
        meters.add(start, outcome, 0.0)
    gpu.syncs.clear()
    sums = comm.all_reduce_sum(torch.stack([o.loss.double().sum() for _, o in meters.steps]))
    assert (sums.shape, dict(gpu.syncs)) == ((5,), {"copied back": 1})


class Data:
    def __len__(self):
        return 6

    def rows(self, numbers):
        return torch.zeros(len(numbers), 3, 8, 8), conditioning(len(numbers))


@pytest.mark.slow
def test_validation_and_flops(gpu):
    model, _, _ = made()
    settings, comm = settings_of(), Communicator(device=torch.device("cuda"))
    sigma, loss = Validation(Data(), settings, comm).losses(model, 5)
    assert (sigma.shape, loss.shape) == ((5,), (5,))
    x = torch.zeros(1, 3, 8, 8).to("cuda")
    assert flops_per_image(model, x, torch.ones(1), conditioning(1).to("cuda")) > 0


@pytest.mark.slow
def test_a_sheet_of_a_root_draws_and_denoises(gpu):
    model, _, _ = made()
    x = torch.zeros(2, 3, 8, 8).to("cuda")
    cond = conditioning(2).to("cuda")
    gpu.syncs.clear()
    found, columns = samples.contact_sheet(model, x, cond, settings_of())
    rows = 1 + len(samples.LEVELS) + 1  # the real ones, denoised ones, drawn ones
    assert (found.shape[0], columns, found.device.type) == (rows * 2, 2, "cuda")
    assert gpu.syncs == {"copied there": 1}  # its noise
