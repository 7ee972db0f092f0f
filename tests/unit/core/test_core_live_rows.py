"""Rows have seeds and numbers of their own, and rows that are not wanted are not evaluated."""

import pytest
import torch

from ediffi_core import draws
from ediffi_core.cascade import CascadeStage, sample
from ediffi_core.control import Control, Switch
from ediffi_core.precond import Denoiser


class Counted:
    """A denoiser that records how many rows it is given."""

    def __init__(self, denoiser=lambda x, sigma, cond: x / (1 + sigma.float() ** 2)):
        self.denoiser, self.rows = denoiser, []

    def __call__(self, x, sigma, cond):
        assert len(x) == len(cond)
        self.rows.append(len(x))
        return self.denoiser(x, sigma, cond)


def stages(denoiser, **options):
    return [
        CascadeStage(name=name, denoiser=denoiser, resolution=8, steps=4, **options)
        for name in ("base", "more")
    ]


def answers(*told):
    """``wanted`` that says each in turn, and the last one for ever."""
    left = list(told)
    return lambda: left.pop(0) if len(left) > 1 else left[0]


def test_every_row_starts_from_the_noise_of_its_seed_and_number(make_cond):
    seen = []
    stage = CascadeStage(
        name="base",
        denoiser=lambda x, sigma, cond: seen.append(x.clone()) or x * 0,
        resolution=8,
        steps=1,
    )
    list(sample([stage], make_cond(4), seed=[5, 9, 5, 9], first=[0, 3, 7, 0]))
    for x, (seed, number) in zip(seen[0], [(5, 0), (9, 3), (5, 7), (9, 0)], strict=True):
        [noise] = draws.normal(seed, "sample/base", torch.tensor([number]), (3, 8, 8))
        assert torch.equal(x, 80 * noise)


@pytest.mark.parametrize("name", ["seeds", "numbers"])
def test_as_many_as_rows(name, make_cond):
    given = {"seed": [1, 2]} if name == "seeds" else {"seed": 0, "first": [1, 2]}
    with pytest.raises(ValueError, match=f"2 {name} for 3 pictures"):
        next(sample(stages(Counted()), make_cond(3), **given))


@pytest.mark.parametrize(("solver", "calls"), [("euler", 1), ("deis3", 1), ("heun", 2)])
def test_unwanted_rows_are_not_evaluated_and_never_come_back(solver, calls, make_cond):
    counted = Counted()
    wanted = answers(*[[True] * 3] * calls, *[[True, False, True]] * calls, [True] * 3)
    found = dict(sample(stages(counted, solver=solver), make_cond(3), seed=0, wanted=wanted))
    of_a_stage = 4 * calls - (calls - 1)  # Heun's last step is Euler's
    assert counted.rows == [3] * calls + [2] * (2 * of_a_stage - calls)
    assert all(len(x) == 3 and x.isfinite().all() for x in found.values())


@pytest.mark.parametrize("solver", ["deis3", "heun", "dpm++2m"])
def test_a_row_is_the_same_whoever_leaves(solver, make_net, make_cond):
    """Also with guidance, negative prompts, a second prompt and painted words."""
    cond, other = make_cond(4), make_cond(4, seed=1)
    control = Control(negative=make_cond(4, seed=2), switch=Switch(cond=other, fraction=0.5))
    given = {"seed": [3, 4, 5, 6], "control": control}
    both = stages(Denoiser(make_net()), solver=solver, guidance=2.0)
    whole = dict(sample(both, cond, **given))
    wanted = answers([True] * 4, [True, True, False, True], [False, True, False, True])
    left = dict(sample(both, cond, **given, wanted=wanted))
    for name, x in whole.items():
        for row in (1, 3):
            assert torch.equal(left[name][row], x[row])
        assert (left[name][0] - x[0]).abs().max() > 0.1


def test_nothing_is_evaluated_for_nobody(make_cond):
    counted = Counted()
    found = dict(sample(stages(counted), make_cond(2), seed=0, wanted=answers([False] * 2)))
    assert counted.rows == [] and list(found) == ["base", "more"]


def test_only_rows_that_are_wanted_must_be_finite(make_cond):
    def overflowing(x, sigma, cond):
        return torch.cat([x[:1] / 0, x[1:]]) if len(x) == 3 else x

    with pytest.raises(ValueError, match="not finite in row 0"):
        next(sample(stages(overflowing), make_cond(3), seed=0))
    wanted = answers([True] * 3, [False, True, True])
    _, found = next(sample(stages(overflowing), make_cond(3), seed=0, wanted=wanted))
    assert not found[0].isfinite().all() and found[1:].isfinite().all()


def test_an_error_of_wanted_ends_the_sampling(make_cond):
    def wanted():
        raise InterruptedError("enough")

    with pytest.raises(InterruptedError, match="enough"):
        next(sample(stages(Counted()), make_cond(2), seed=0, wanted=wanted))


def test_as_many_answers_as_rows(make_cond):
    with pytest.raises(ValueError, match="3 answers what is wanted of 2 rows"):
        next(sample(stages(Counted()), make_cond(2), seed=0, wanted=answers([True] * 3)))
