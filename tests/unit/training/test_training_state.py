"""Weight decay and the optimiser state."""

import pytest
import torch
from test_parallel import CONFIG, OPTIONS

from ediffi_core.precond import Denoiser
from ediffi_core.unet import UNet
from pipelines.training.checkpoints.state import State


@pytest.fixture(params=["adamw", "muon"])
def state(request):
    torch.manual_seed(3)
    options = {**OPTIONS, "weight_decay": 0.1, "optimizer": request.param}
    return State(Denoiser(UNet(CONFIG)), options)


def test_only_matrices_decay(state):
    """Without a gradient, a step only decays."""
    before = {k: v.detach().clone() for k, v in state.model.named_parameters()}
    for parameter in state.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for group in state.optimizer.param_groups:
        group["lr"] = 0.5
    state.optimizer.step()
    for name, value in state.model.named_parameters():
        kept = 1 - 0.5 * 0.1 if before[name].ndim >= 2 else 1
        torch.testing.assert_close(value.detach(), kept * before[name], msg=name)
    alone = {n for n, v in before.items() if v.ndim < 2}
    assert "net.projection.null_token" in alone and "net.norm_out.weight" in alone
    assert {n for n in before if n.endswith("bias")} <= alone


ADAMW, MUON = {"step", "exp_avg", "exp_avg_sq"}, {"momentum"}


def test_optimiser_state_is_named_after_parameters(state):
    """Independent of parameter groups, so that older states can be read."""
    muons = {
        n
        for n, v in state.model.named_parameters()
        if n.startswith("net.stages.") and v.ndim >= 2 and len(state.optimizer.parts) > 1
    }
    wanted = {n: MUON if n in muons else ADAMW for n, _ in state.model.named_parameters()}
    kept = {k for k in state.tensors() if k.startswith("optimizer/")}
    assert kept == {f"optimizer/{n}/{s}" for n, slots in wanted.items() for s in slots}


def test_without_a_named_optimiser_it_is_adamw():
    """As in the settings of results that are older than the choice."""
    options = {k: v for k, v in OPTIONS.items() if k != "optimizer"}
    kept = State(Denoiser(UNet(CONFIG)), options).tensors()
    assert not any(name.endswith("/momentum") for name in kept)
