"""Weight decay and the optimiser state."""

import pytest
import torch
from test_parallel import CONFIG, OPTIONS

from ediffi_core.precond import Denoiser
from ediffi_core.unet import UNet
from pipelines.training.checkpoints.state import State


@pytest.fixture
def state():
    torch.manual_seed(3)
    return State(Denoiser(UNet(CONFIG)), {**OPTIONS, "weight_decay": 0.1})


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


def test_optimiser_state_is_named_after_parameters(state):
    """Independent of parameter groups, so that older states can be read."""
    names = {n for n, _ in state.model.named_parameters()}
    kept = {k for k in state.tensors() if k.startswith("optimizer/")}
    assert kept == {f"optimizer/{n}/{s}" for n in names for s in ("step", "exp_avg", "exp_avg_sq")}
