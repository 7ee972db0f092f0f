"""What a multistep solver remembers across an expert's edge: dropped exactly there, kept better."""

import math

import pytest
import torch

from ediffi_core.noise import NoiseDistribution, edm_grid
from ediffi_core.sampling import deis, euler, heun
from ediffi_core.tree import intervals_of

GRID = edm_grid(12)
NOISE = NoiseDistribution()
EDGES = [i.bounds(NOISE)[0] for i in intervals_of(["E9_511", "M_C", "E3_0"]).values()][:2]


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize(
    ("edge", "first_below"),
    [
        (float(GRID[5]), 6),  # σ on an edge belongs to the expert above
        (math.nextafter(float(GRID[5]), math.inf), 5),
        (math.nextafter(float(GRID[5]), 0), 6),
        (float(GRID[5] + GRID[6]) / 2, 6),
        (float(GRID[1]), 2),
    ],
)
def test_history_is_dropped_at_the_first_step_below_the_edge(
    edge, first_below, order, mixture, starts
):
    """As if one solver had stopped there and another begun, bit for bit."""
    x = starts[:64]
    found = deis(mixture.denoise, x, GRID, order=order, restart_at=[edge])
    halfway = deis(mixture.denoise, x, GRID[: first_below + 1], order=order)
    assert torch.equal(found, deis(mixture.denoise, halfway, GRID[first_below:], order=order))
    assert not torch.equal(found, deis(mixture.denoise, x, GRID, order=order))


@pytest.mark.parametrize("edges", [[], [0.001], [80.5], [1e9]])
def test_edges_that_no_step_crosses_drop_nothing(edges, mixture, starts):
    x = starts[:64]
    found = deis(mixture.denoise, x, GRID, restart_at=edges)
    assert torch.equal(found, deis(mixture.denoise, x, GRID))


def test_every_edge_is_a_restart(mixture, starts):
    """With an edge at each level nothing is ever remembered: Euler's method."""
    x = starts[:64]
    found = deis(mixture.denoise, x, GRID, restart_at=GRID[:-1].tolist())
    torch.testing.assert_close(found, euler(mixture.denoise, x, GRID), rtol=0, atol=1e-12)


def experts(mixture, size):
    """Config D's three experts, each off the exact denoiser by c_out times its own small field."""
    waves = {0: (1.3, 0.2), 1: (-0.7, 1.9), 2: (2.1, -1.1)}

    def denoise(x, sigma):
        a, b = waves[sum(float(sigma) >= edge for edge in EDGES)]
        star = math.hypot(float(sigma), 0.5)
        z = x / star
        wave = torch.stack([torch.sin(2 * a * z[:, 0] + b), torch.cos(2 * b * z[:, 1] + a)], dim=1)
        return mixture.denoise(x, sigma) + size * 0.5 * float(sigma) / star * wave

    return denoise


# Median L2 error of DEIS at 25 steps, (kept, dropped), for experts that differ by this much.
ERRORS = {0.0: (2.8e-3, 4.1e-3), 0.03: (2.8e-3, 4.1e-3), 0.1: (2.7e-3, 4.0e-3)}


@pytest.mark.parametrize("size", ERRORS)
def test_keeping_history_across_experts_is_better_than_dropping_it(size, mixture, starts):
    """Also where they differ: their ODEs are near each other, and history is worth more."""
    x, denoise = starts[:512], experts(mixture, size)
    exact = heun(denoise, x, edm_grid(800))
    found = [
        float((deis(denoise, x, edm_grid(25), restart_at=edges) - exact).norm(dim=1).median())
        for edges in ((), EDGES)
    ]
    assert found == pytest.approx(ERRORS[size], rel=0.1)
