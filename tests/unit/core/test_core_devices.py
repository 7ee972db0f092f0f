"""Sampling on another device than the CPU, without waiting for it in a loop."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from fake_gpu import FakeGPU

from ediffi_core.cascade import CascadeStage, sample
from ediffi_core.control import (
    Control,
    Keep,
    Phrase,
    Start,
    Switch,
    TokenSpans,
    paint_with_words,
    switched,
    with_style,
)
from ediffi_core.degrade import Degradation, super_resolution_pair
from ediffi_core.ensemble import Ensemble, Expert
from ediffi_core.guidance import dynamic_threshold, guided, on_interval, static_threshold
from ediffi_core.metrics import validation_losses
from ediffi_core.noise import Interval, NoiseDistribution, edm_grid
from ediffi_core.precond import Denoiser
from ediffi_core.residency import SwappedEnsemble
from ediffi_core.sampling import SOLVERS, Churn, euler, heun

NOISE = NoiseDistribution()
HALVES = {"low": Interval(0.0, 0.5), "high": Interval(0.5, 1.0)}


@pytest.fixture(params=["meta", "cuda"])
def device(request):
    """Without a GPU: tensors have no values there, so none can be read by mistake."""
    if request.param == "meta":
        yield "meta"
        return
    with FakeGPU():
        yield "cuda"


@pytest.fixture
def gpu():
    with FakeGPU() as found:
        yield found


@pytest.fixture
def halves(make_net):
    """``halves(device)`` → an ensemble of two experts."""

    def make(device, config=None):
        made = {n: make_net(i, config) if config else make_net(i) for i, n in enumerate(HALVES)}
        experts = [Expert(n, HALVES[n], Denoiser(net).to(device)) for n, net in made.items()]
        return Ensemble(experts, NOISE)

    return make


@pytest.mark.slow
@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_draws_with_routed_experts(device, solver, halves, make_cond):
    seen = []
    cond = make_cond(2).to(device)
    x = torch.randn(2, 3, 8, 8).to(device)
    denoise = guided(halves(device), cond, 0.5, threshold=dynamic_threshold())
    out = SOLVERS[solver](denoise, x, edm_grid(4), seen.append)
    assert (out.device.type, out.shape, out.dtype) == (device, x.shape, torch.float32)
    assert [type(word["sigma"]) for word in seen] == [float] * 4


@pytest.mark.parametrize("solver", [euler, heun])
def test_churn_takes_noise_that_was_drawn_on_the_cpu(device, solver):
    churn = Churn(amount=10, noise=lambda step: torch.zeros(2, 3, 4, 4))
    x = torch.ones(2, 3, 4, 4).to(device)
    out = solver(lambda x, sigma: x * 0.5, x, edm_grid(5), churn=churn)
    assert out.device.type == device


@pytest.mark.slow
@pytest.mark.parametrize(
    ("batched", "threshold"), [(True, static_threshold), (False, dynamic_threshold(0.9))]
)
def test_guidance_in_an_interval_and_a_changed_prompt(
    device, batched, threshold, halves, make_cond
):
    ensemble, scale = halves(device), on_interval(2.0, 0.1, 10.0)
    before, after = (
        guided(ensemble, make_cond(2, seed).to(device), scale, threshold=threshold, batched=batched)
        for seed in (0, 1)
    )
    x = torch.ones(2, 3, 8, 8).to(device)
    out = SOLVERS["deis3"](switched(before, after, 1.0), x, edm_grid(5))
    assert out.device.type == device


@pytest.mark.slow
def test_rows_of_different_noise_go_to_their_experts(device, halves, make_cond):
    x, sigma = torch.ones(3, 3, 8, 8).to(device), torch.tensor([0.1, 5.0, 40.0])
    assert halves(device)(x, sigma, make_cond(3).to(device)).device.type == device


@pytest.mark.slow
def test_a_swapped_ensemble_fills_its_slot_on_the_device(device, make_net, make_cond):
    slot = Denoiser(make_net(0)).to(device)
    weights = {n: Denoiser(make_net(i)).state_dict() for i, n in enumerate(HALVES)}
    loads = {n: partial(lambda w: w, w) for n, w in weights.items()}
    ensemble = SwappedEnsemble(slot, HALVES, loads, NOISE)
    denoise = guided(ensemble, make_cond(2).to(device), 1.0)
    x = torch.ones(2, 3, 8, 8).to(device)
    assert SOLVERS["heun"](denoise, x, edm_grid(6)).device.type == device
    assert ensemble.loaded == "low"


def painted(cond, side=8):
    mask = torch.zeros(side, side)
    mask[:, : side // 2] = 1
    spans = [TokenSpans("a cat", [(0, 1), (2, 5), (0, 0), (0, 0), (0, 0)])] * len(cond)
    names = {"t5": spans, "clip_text": spans}
    return paint_with_words([[Phrase("cat", mask)]] * len(cond), names)


@pytest.mark.slow
@pytest.mark.parametrize(("weight", "where"), [("max", "there"), ("std", "cpu")])
def test_a_painted_cascade_with_style_and_tiles(gpu, weight, where, halves, make_cond, efficient):
    """GPU only: the finiteness check is read back, which ``meta`` does not support."""
    device = "cuda"
    cond = make_cond(2).to(device)
    cond = with_style(cond, torch.ones(1, 6))
    paint = replace(painted(cond), weight=weight)
    if where == "there":
        paint = replace(paint, maps={k: v.to(device) for k, v in paint.maps.items()})
    cond = replace(cond, paint=paint)
    stages = [
        CascadeStage(name="base", denoiser=halves(device), resolution=8, steps=3, guidance=1.0),
        CascadeStage(
            name="sr16",
            denoiser=halves(device, efficient),
            resolution=16,
            steps=2,
            solver="euler",
            threshold=static_threshold,
            tile=12,
            overlap=2,
        ),
    ]
    found = dict(sample(stages, cond, seed=[1, 2]))
    assert {k: (v.device.type, tuple(v.shape)) for k, v in found.items()} == {
        "base": (device, (2, 3, 8, 8)),
        "sr16": (device, (2, 3, 16, 16)),
    }


def test_corrupted_small_pictures(device):
    x = torch.zeros(3, 3, 32, 32).to(device)
    large, small = super_resolution_pair(
        x,
        torch.arange(3),
        factor=4,
        crop=16,
        settings=Degradation(probability=1.0),
        seed=1,
        purpose="a",
    )
    assert {large.device.type, small.device.type} == {device}
    assert (large.shape, small.shape) == ((3, 3, 16, 16), (3, 3, 4, 4))


def validated(model, cond, device):
    return validation_losses(
        model,
        0.5,
        lambda index: (torch.zeros(len(index), 3, 8, 8).to(device), cond),
        index=torch.arange(4),
        sigma=torch.tensor([0.1, 0.5, 2.0, 40.0], dtype=torch.float64),
        batch=2,
        seed=0,
    )


def test_validation_takes_its_noise_levels_from_the_cpu(gpu, make_net, make_cond):
    loss = validated(Denoiser(make_net(0)).to("cuda"), make_cond(2).to("cuda"), "cuda")
    assert (loss.device.type, loss.shape) == ("cpu", (4,))


@pytest.mark.slow
def test_validation_of_an_ensemble(gpu, halves, make_cond):
    loss = validated(halves("cuda"), make_cond(2).to("cuda"), "cuda")
    assert (loss.device.type, loss.shape) == ("cpu", (4,))


def cascade_syncs(gpu, halves, efficient, cond, steps):
    first = CascadeStage(
        name="base",
        denoiser=halves("cuda"),
        resolution=8,
        steps=steps,
        guidance=on_interval(1.0, 0.1, 10.0),
        threshold=dynamic_threshold(),
    )
    second = replace(first, name="sr", denoiser=halves("cuda", efficient), resolution=16)
    gpu.syncs.clear()  # the networks are there
    list(sample([first, second], cond, seed=0))
    return dict(gpu.syncs)


@pytest.mark.slow
def test_a_sampler_waits_for_the_gpu_as_often_for_many_steps_as_for_few(
    gpu, halves, efficient, make_cond
):
    """Each stage copies its initial noise once and checks once for finite values."""
    cond = make_cond(2).to("cuda")
    few, many = (cascade_syncs(gpu, halves, efficient, cond, steps) for steps in (2, 5))
    assert few == many
    assert many == {"copied there": 2, "number read": 3}


def test_the_counter_counts(gpu):
    """Check of the tests above: a threshold that is read and a σ that is copied are counted."""
    x = torch.ones(2, 3, 8, 8, device="cuda")

    def denoise(x, sigma):
        return x * sigma.to("cuda") / float(x.abs().max())

    euler(denoise, x, edm_grid(5))
    assert gpu.syncs == {"copied there": 5, "number read": 5}


def test_sampling_without_a_device_for_sigma_fails_here(gpu):
    """Regression: σ on the CPU, one per row, failed only on a GPU."""
    x, sigma = torch.ones(2, 3, 4, 4, device="cuda"), torch.tensor([1.0, 1.0])
    with pytest.raises(RuntimeError, match="same device"):
        sigma[:, None, None, None] * x


@pytest.mark.parametrize("sigma", [torch.tensor(0.7, dtype=torch.float64), torch.tensor(0.7)])
def test_one_sigma_gives_the_bits_of_one_for_each_row(sigma, make_net, make_cond):
    """A scalar is passed as a number, a σ per row as a tensor."""
    denoiser, cond = Denoiser(make_net(0)), make_cond(3)
    x = torch.randn(3, 3, 8, 8)
    assert torch.equal(denoiser(x, sigma, cond), denoiser(x, sigma.expand(3), cond))


@pytest.mark.slow
def test_a_grid_that_is_on_the_device_is_read_once(gpu, halves, make_cond):
    """A grid on the device of x is copied back once."""
    cond, x = make_cond(2).to("cuda"), torch.ones(2, 3, 8, 8, device="cuda")
    ensemble = halves("cuda")
    sigma = torch.tensor(1.0, dtype=torch.float64)
    gpu.syncs.clear()
    ensemble(x, sigma, cond)
    assert not gpu.syncs
    Denoiser(ensemble.experts[0].denoiser.net)(x, sigma.to("cuda", non_blocking=True), cond)
    assert not gpu.syncs


@pytest.mark.slow
@pytest.mark.parametrize("solver", ["heun", "deis3"])
def test_a_steered_cascade(gpu, solver, halves, make_cond, efficient):
    """Pictures and prompts come from the CPU, and no step waits for the device."""
    cond, picture = make_cond(2).to("cuda"), torch.zeros(1, 3, 16, 16)
    control = Control(
        negative=make_cond(2, seed=1),
        switch=Switch(cond=make_cond(2, seed=2), fraction=0.5),
        start=Start(picture=picture, sigma=3.0),
        keep=Keep(picture=picture, drawn=torch.ones(1, 1, 16, 16)),
    )
    first = CascadeStage(
        name="base", denoiser=halves("cuda"), resolution=8, solver=solver, guidance=1.0
    )
    second = replace(first, name="sr", denoiser=halves("cuda", efficient), resolution=16)
    syncs = []
    for steps in (2, 5):
        gpu.syncs.clear()
        stages = [replace(stage, steps=steps) for stage in (first, second)]
        found = dict(sample(stages, cond, seed=[1, 2], control=control))
        assert {k: (v.device.type, tuple(v.shape)) for k, v in found.items()} == {
            "base": ("cuda", (2, 3, 8, 8)),
            "sr": ("cuda", (2, 3, 16, 16)),
        }
        syncs.append(dict(gpu.syncs))
    assert syncs[0] == syncs[1]
