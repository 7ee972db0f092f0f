"""Properties of all solvers: callback, any number of steps, last step, no NaN."""

import pytest
import torch
from torch import nn

from ediffi_core.noise import edm_grid
from ediffi_core.precond import Denoiser
from ediffi_core.sampling import SOLVERS, adams_bashforth, deis
from ediffi_core.solver_names import SOLVER_NAMES

STEPS = [1, 2, 3, 4, 5, 6, 40]


def denoise(x, sigma):
    """A nonlinear denoiser: a pull to the signs of x that fades with noise."""
    return torch.tanh(x) / (1 + sigma.to(x.dtype) ** 2)


class Recorded:
    """Records the calls of the denoiser."""

    def __init__(self):
        self.sigmas, self.xs = [], []

    def __call__(self, x, sigma):
        assert sigma.ndim == 0
        assert sigma.dtype == torch.float64
        self.sigmas.append(float(sigma))
        self.xs.append(x.clone())
        return denoise(x, sigma)


@pytest.fixture
def x():
    return 80 * torch.randn(5, 3, 2, 2, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("solver", SOLVERS)
def test_any_number_of_steps_evaluates_the_grid_once_and_never_zero(solver, steps, x):
    grid, model = edm_grid(steps), Recorded()
    out = SOLVERS[solver](model, x, grid)
    assert out.isfinite().all()
    assert out.dtype == x.dtype
    assert (out.abs() <= 1).all()
    levels = grid[:-1].tolist()
    inner = levels[1:] if solver == "heun" else []
    assert sorted(model.sigmas) == sorted(levels + inner)
    assert model.sigmas == sorted(model.sigmas, reverse=True)


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-13), (torch.float32, 5e-5)])
@pytest.mark.parametrize("solver", SOLVERS)
def test_one_step_lands_on_the_denoised_picture(solver, dtype, atol, x):
    x, grid = x.to(dtype), edm_grid(1)
    found = SOLVERS[solver](denoise, x, grid)
    torch.testing.assert_close(found, denoise(x, grid[0]), rtol=0, atol=atol)


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_last_of_many_steps_lands_there_too(solver, x):
    steps = []
    x = x.double()
    found = SOLVERS[solver](denoise, x, edm_grid(6), steps.append)
    torch.testing.assert_close(found, steps[-1]["denoised"], rtol=0, atol=1e-13)


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("solver", SOLVERS)
def test_callback_tells_the_step(solver, steps, x):
    """Step, its σ, the denoised image at its start, and x at its end."""
    grid, told, copies = edm_grid(steps), [], []

    def callback(info):
        told.append(info)
        copies.append(info["x"].clone())

    start = x.clone()
    out = SOLVERS[solver](denoise, x, grid, callback)
    assert [set(t) for t in told] == [{"step", "sigma", "x", "denoised"}] * steps
    assert [t["step"] for t in told] == list(range(steps))
    assert [t["sigma"] for t in told] == grid[:-1].tolist()
    before = [start, *(t["x"] for t in told[:-1])]
    for xs, info in zip(before, told, strict=True):
        sigma = torch.tensor(info["sigma"], dtype=torch.float64)
        assert torch.equal(info["denoised"], denoise(xs, sigma))
    assert torch.equal(told[-1]["x"], out)
    assert torch.equal(x, start)
    for info, copy in zip(told, copies, strict=True):  # what was told stays as it was
        assert torch.equal(info["x"], copy)
    assert torch.equal(out, SOLVERS[solver](denoise, x, grid))


@pytest.mark.parametrize("sigma_min", [2e-3, 5e-4, 1e-8, 1e-30])
@pytest.mark.parametrize("solver", SOLVERS)
def test_no_nan_as_sigma_goes_to_zero(solver, sigma_min, x):
    class Net(nn.Module):
        def forward(self, x, c_noise, cond):
            return torch.cos(x + c_noise[:, None, None, None])

    denoiser = Denoiser(Net())
    seen = []
    out = SOLVERS[solver](
        lambda x, sigma: denoiser(x, sigma, None), x, edm_grid(9, sigma_min=sigma_min), seen.append
    )
    assert all(info[k].isfinite().all() for info in seen for k in ("x", "denoised"))
    assert out.isfinite().all()
    assert out.abs().max() < 80


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_picture_does_not_depend_on_its_batch(solver, x):
    together = SOLVERS[solver](denoise, x, edm_grid(7))
    alone = [SOLVERS[solver](denoise, x[[i]], edm_grid(7)) for i in range(len(x))]
    torch.testing.assert_close(together, torch.cat(alone))


@pytest.mark.parametrize("solver", SOLVERS)
def test_float32_follows_float64(solver, x):
    exact = SOLVERS[solver](denoise, x.double(), edm_grid(25))
    found = SOLVERS[solver](denoise, x, edm_grid(25))
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "classic", [[1], [3 / 2, -1 / 2], [23 / 12, -16 / 12, 5 / 12]], ids=["AB1", "AB2", "AB3"]
)
def test_weights_on_equal_steps_are_the_textbook_s(classic):
    width = -0.25
    nodes = torch.tensor([3 - width * j for j in range(len(classic))], dtype=torch.float64)
    expected = width * torch.tensor(classic, dtype=torch.float64)
    torch.testing.assert_close(adams_bashforth(nodes, 3, 3 + width), expected)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_weights_integrate_polynomials_exactly_on_any_grid(order):
    grid = edm_grid(8)[:-1]
    for at in range(order - 1, len(grid) - 1):
        nodes, (start, stop) = grid[at - order + 1 : at + 1].flip(0), grid[at : at + 2].tolist()
        weights = adams_bashforth(nodes, start, stop)
        for power in range(order):
            exact = (stop ** (power + 1) - start ** (power + 1)) / (power + 1)
            found = float(weights @ nodes**power)
            assert found == pytest.approx(exact, abs=1e-11 * start ** (power + 1))


@pytest.mark.parametrize("order", [-1, 0, 9])
def test_orders_that_do_not_exist_are_refused(order, x):
    with pytest.raises(ValueError, match=f"orders 1 to .*, got {order}"):
        deis(denoise, x, edm_grid(3), order=order)


def test_the_names_that_specs_know_are_the_solvers():
    assert tuple(SOLVERS) == SOLVER_NAMES
