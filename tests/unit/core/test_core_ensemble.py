"""Routing by σ: one expert per step, half-open edges; identical experts equal one model."""

import copy
import math

import pytest
import torch
from torch import nn

from ediffi_core.ensemble import Ensemble, Expert
from ediffi_core.guidance import guided
from ediffi_core.noise import NoiseDistribution, edm_grid
from ediffi_core.precond import Denoiser
from ediffi_core.sampling import SOLVERS
from ediffi_core.tree import intervals_of

NOISE = NoiseDistribution()
COVERS = {
    1: ["E0_0"],
    2: ["E1_1", "E1_0"],
    3: ["E9_511", "M_C", "E3_0"],
    5: ["E9_511", "E9_510", "M_C", "E3_1", "E3_0"],
}


class Stamp(nn.Module):
    """Returns its own number and counts its calls."""

    def __init__(self, number):
        super().__init__()
        self.number, self.calls, self.rows = number, 0, 0

    def forward(self, x, sigma, cond):
        self.calls += 1
        self.rows += len(x)
        return torch.full_like(x, self.number)


def stamped(names):
    """Experts by name; their numbers count from the lowest noise up."""
    pieces = intervals_of(names)
    order = sorted(names, key=lambda n: pieces[n].q_lo)
    stamps = {n: Stamp(float(order.index(n))) for n in names}
    experts = [Expert(n, pieces[n], stamps[n]) for n in names]
    return Ensemble(experts, NOISE), [stamps[n] for n in order]


def identical(names, denoiser):
    pieces = intervals_of(names)
    return Ensemble([Expert(n, pieces[n], copy.deepcopy(denoiser)) for n in names], NOISE)


@pytest.mark.slow
@pytest.mark.parametrize("scale", [0.0, 3.0])
@pytest.mark.parametrize("solver", SOLVERS)
def test_identical_experts_are_one_model_bit_for_bit(solver, scale, make_net, make_cond):
    denoiser, cond = Denoiser(make_net()), make_cond(2)
    sigmas = edm_grid(6)
    x = 80 * torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = SOLVERS[solver](guided(denoiser, cond, scale), x, sigmas)
    assert expected.isfinite().all()
    for names in COVERS.values():
        ensemble = identical(names, denoiser)
        used = {ensemble.expert_at(float(s)).name for s in sigmas[:-1]}
        assert len(used) >= min(len(names), 3)
        found = SOLVERS[solver](guided(ensemble, cond, scale), x, sigmas)
        assert torch.equal(found, expected), names


def test_different_experts_are_not_one_model(make_net, make_cond):
    """Check of the test above: it matters which expert runs."""
    pieces = intervals_of(COVERS[2])
    experts = [Expert(n, pieces[n], Denoiser(make_net(i))) for i, n in enumerate(COVERS[2])]
    x, cond = torch.randn(2, 3, 8, 8), make_cond(2)
    mixed = SOLVERS["deis3"](guided(Ensemble(experts, NOISE), cond, 0), 80 * x, edm_grid(5))
    for expert in experts:
        alone = SOLVERS["deis3"](guided(expert.denoiser, cond, 0), 80 * x, edm_grid(5))
        assert not torch.allclose(mixed, alone)


@pytest.mark.parametrize("count", COVERS)
def test_exactly_one_expert_runs_a_step(count, make_cond):
    ensemble, stamps = stamped(COVERS[count])
    ran = []

    def callback(info):
        calls = [s.calls for s in stamps]
        assert sum(calls) == info["step"] + 1
        ran.append(info["denoised"].unique().tolist())

    x = torch.randn(2, 3, 8, 8)
    SOLVERS["deis3"](guided(ensemble, make_cond(2), 0), x, edm_grid(25), callback)
    numbers = [n for (n,) in ran]
    assert numbers == sorted(numbers, reverse=True)
    if count == 3:  # as in the paper
        assert [s.calls for s in stamps] == [5, 11, 9]


@pytest.mark.parametrize("count", COVERS)
def test_an_edge_belongs_to_the_expert_above(count, make_cond):
    ensemble, _ = stamped(COVERS[count])
    x, cond = torch.zeros(1, 3, 2, 2), make_cond(1)
    assert len(ensemble.edges) == count - 1
    for i, edge in enumerate(ensemble.edges):
        for sigma, number in [(edge, i + 1), (math.nextafter(edge, 0), i)]:
            for shape in ((), (1,)):
                shaped = torch.full(shape, sigma, dtype=torch.float64)
                assert torch.equal(ensemble(x, shaped, cond), torch.full_like(x, number))
            low, high = ensemble.expert_at(sigma).interval.bounds(NOISE)
            assert low <= sigma < high


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("count", COVERS)
def test_rows_of_many_sigmas_go_where_each_alone_would(count, dtype, make_cond):
    ensemble, stamps = stamped(COVERS[count])
    near = [math.nextafter(e, to) for e in ensemble.edges for to in (0, math.inf)]
    values = torch.logspace(-3, 2, 41, dtype=torch.float64).tolist() + ensemble.edges + near
    sigma = torch.tensor(values, dtype=torch.float64).to(dtype)
    sigma = sigma[torch.randperm(len(sigma), generator=torch.Generator().manual_seed(0))]
    x, cond = torch.zeros(len(sigma), 1, 2, 2), make_cond(len(sigma))
    together = ensemble(x, sigma, cond)
    assert sum(s.rows for s in stamps) == len(sigma)
    assert sum(s.calls for s in stamps) == count
    apart = [ensemble(x[i : i + 1], sigma[i], cond[i : i + 1]) for i in range(len(sigma))]
    assert torch.equal(together, torch.cat(apart))


def test_rows_keep_their_picture_sigma_and_conditioning(make_net, make_cond):
    pieces = intervals_of(COVERS[3])
    experts = [Expert(n, pieces[n], Denoiser(make_net(i))) for i, n in enumerate(COVERS[3])]
    ensemble = Ensemble(experts, NOISE)
    sigma = torch.tensor([20.0, 0.01, 0.5, 0.02, 30, 1], dtype=torch.float64)
    x, cond = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0)), make_cond(6)
    together = ensemble(x, sigma, cond)
    for i in range(6):
        alone = ensemble.expert_at(float(sigma[i])).denoiser(x[[i]], sigma[i], cond[i : i + 1])
        torch.testing.assert_close(together[[i]], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (["E1_0"], "no expert covers quantiles 0.5 to 1"),
        (["E1_1"], "no expert covers quantiles 0 to 0.5"),
        (["E2_0", "E2_2", "E2_3"], "quantiles 0.25 to 0.5"),
        (["E1_0", "E1_1", "E9_511"], "E1_1 and E9_511 overlap"),
        (["E0_0", "E3_0"], "overlap"),
        ([], "no expert covers quantiles 0 to 1"),
    ],
)
def test_gaps_and_overlaps_are_refused(names, text):
    with pytest.raises(ValueError, match=text):
        stamped(names)


def test_a_name_given_twice_is_refused():
    pieces = intervals_of(["E1_0", "E1_1"])
    experts = [Expert("E1_0", p, Stamp(0.0)) for p in pieces.values()]
    with pytest.raises(ValueError, match=r"repeat: E1_0, E1_0|no expert covers"):
        Ensemble(experts, NOISE)


def test_the_weights_of_all_experts_are_parameters(make_net):
    ensemble = identical(COVERS[3], Denoiser(make_net()))
    one = sum(p.numel() for p in make_net().parameters())
    assert sum(p.numel() for p in ensemble.parameters()) == 3 * one


def test_every_evaluation_is_told_once(make_cond):
    """Reports expert, σ and seconds; for rows of many σ, per expert at the highest σ."""
    pieces, told = intervals_of(COVERS[3]), []
    experts = [Expert(n, pieces[n], Stamp(0.0)) for n in COVERS[3]]
    ensemble = Ensemble(experts, NOISE, on_route=told.append)
    grid = edm_grid(25)
    SOLVERS["heun"](guided(ensemble, make_cond(2), 2.0), torch.zeros(2, 3, 2, 2), grid)
    assert len(told) == 49
    assert all(r.expert == ensemble.expert_at(r.sigma).name and r.seconds >= 0 for r in told)
    assert sorted({r.sigma for r in told}) == sorted(grid[:-1].tolist())
    told.clear()
    sigma = torch.tensor([0.01, 20.0, 0.02, 1.0], dtype=torch.float64)
    ensemble(torch.zeros(4, 3, 2, 2), sigma, make_cond(4))
    assert {(r.expert, r.sigma) for r in told} == {("E3_0", 0.02), ("M_C", 1), ("E9_511", 20)}
