"""Muon: orthogonalised updates, their size, and the parameters that they are for."""

import pytest
import torch
from torch import nn

from ediffi_core import muon
from ediffi_core.muon import COEFFICIENTS, Muon, orthogonalized

SHAPES = [(24, 24), (24, 40), (16, 90), (90, 16)]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(7)


def iterated(x, steps=5):
    """The iteration as it is published, for one matrix no higher than wide."""
    a, b, c = COEFFICIENTS
    x = x / x.norm()
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


@pytest.mark.parametrize("shape", SHAPES)
def test_singular_values_end_near_1_and_vectors_stay(shape):
    given = torch.randn(3, *shape, dtype=torch.float64)
    made = orthogonalized(given)
    assert made.shape == given.shape and made.dtype == given.dtype
    for one, of in zip(made, given, strict=True):
        u, s, vh = torch.linalg.svd(of, full_matrices=False)
        found = u.T @ one @ vh.T
        big = s > 0.02 * s[0]  # five iterations do not lift what is nearly zero
        assert ((found.diagonal()[big] > 0.6) & (found.diagonal()[big] < 1.3)).all()
        torch.testing.assert_close(found - found.diagonal().diag(), torch.zeros_like(found))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_the_published_iteration(shape, dtype):
    given = torch.randn(2, *shape, dtype=dtype) * 3
    for one, of in zip(orthogonalized(given), given, strict=True):
        of = of.double()
        wanted = iterated(of) if shape[0] <= shape[1] else iterated(of.T).T
        torch.testing.assert_close(one.double(), wanted, atol=1e-4, rtol=1e-3)


def test_nothing_becomes_nothing():
    assert not orthogonalized(torch.zeros(2, 4, 10)).any()


@pytest.mark.parametrize("shape", SHAPES)
def test_matrices_are_updated_as_torch_does_it(shape):
    """Which computes in bfloat16."""
    start = torch.randn(*shape)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    given = {"lr": 0.1, "weight_decay": 0.03, "momentum": 0.9}
    both = [
        (ours, Muon([ours], **given)),
        (theirs, torch.optim.Muon([theirs], **given, adjust_lr_fn="match_rms_adamw")),
    ]
    for _ in range(3):
        grad = torch.randn(*shape)
        before = [p.detach().clone() for p, _ in both]
        for p, optimizer in both:
            p.grad = grad.clone()
            optimizer.step()
        mine, torchs = (
            (p.detach() - b * (1 - 0.1 * 0.03)) for (p, _), b in zip(both, before, strict=True)
        )
        assert (mine - torchs).norm() < 0.1 * torchs.norm()
        # As large as an update of AdamW: 0.2 of the rate, by the iteration's singular values.
        assert 0.2 * 0.1 * 0.6 < mine.square().mean().sqrt() < 0.2 * 0.1 * 1.3
        with torch.no_grad():
            theirs.copy_(ours)


@pytest.mark.parametrize("shape", [(8, 5, 3, 3), (30, 2, 3, 3)])
def test_kernels_count_as_matrices(shape):
    start, grad = torch.randn(shape), torch.randn(shape)
    kernel, matrix = nn.Parameter(start.clone()), nn.Parameter(start.flatten(1).clone())
    kernel.grad, matrix.grad = grad, grad.flatten(1)
    for p in (kernel, matrix):
        Muon([p], lr=0.1).step()
    assert torch.equal(kernel.flatten(1), matrix)


def test_parameters_of_one_shape_do_not_mix(monkeypatch):
    """Nor does it matter how many are computed at once."""

    def updated(grads):
        params = [nn.Parameter(torch.ones(6, 9)) for _ in grads]
        for p, g in zip(params, grads, strict=True):
            p.grad = g.clone()
        Muon(params, lr=0.1).step()
        return torch.stack([p.detach() for p in params])

    grads = torch.randn(5, 6, 9)
    together = updated(grads)
    monkeypatch.setattr(muon, "TOGETHER", 2 * 54)
    torch.testing.assert_close(updated(grads), together)
    torch.testing.assert_close(updated(grads[3:4]), together[3:4])


def test_without_a_gradient_nothing_changes():
    p, q = nn.Parameter(torch.randn(4, 4)), nn.Parameter(torch.randn(4, 4))
    kept = p.detach().clone()
    q.grad = torch.randn(4, 4)
    Muon([p, q], lr=0.1, weight_decay=0.5).step()
    assert torch.equal(p, kept)


def test_the_closure_is_called():
    p = nn.Parameter(torch.randn(4, 4))

    def closure():
        p.grad = None
        loss = p.square().sum()
        loss.backward()
        return loss

    optimizer = Muon([p], lr=0.1, weight_decay=0)
    losses = [float(optimizer.step(closure).detach()) for _ in range(8)]
    assert losses[-1] < losses[0]


def test_vectors_are_refused():
    with pytest.raises(ValueError, match=r"shape \[4\]; AdamW is for those"):
        Muon([nn.Parameter(torch.zeros(4))])
