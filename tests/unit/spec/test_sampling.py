"""Sampling settings: changes for one call, what has no effect, and what is refused."""

import pytest
from pydantic import ValidationError

from pipelines.spec.sampling import Guidance, Sampling, with_changes

OWN = {"base": Sampling(guidance=1.0), "sr256": Sampling(steps=10)}


def test_settings_of_before_keep_their_form():
    stored = {"steps": 20, "solver": "deis3", "guidance": 1.5}
    assert Sampling.from_settings(stored).settings() == stored


def test_guidance_is_a_number_or_a_mapping():
    assert (
        Sampling(guidance=2)
        == Sampling(guidance={"scale": 2})
        == Sampling(guidance=Guidance(scale=2))
    )
    full = {"scale": 2.0, "experts": {"E1_1": 0.5}, "interval": [0.1, 3.0]}
    assert Sampling(guidance=full).settings()["guidance"] == full
    assert Sampling.from_settings(Sampling(guidance=full).settings()) == Sampling(guidance=full)


def test_changes_name_a_setting_of_the_base_or_of_a_stage():
    found = with_changes(OWN, {"steps": 40, "sr256.steps": 20, "sr256.tile": 128})
    assert found["base"] == Sampling(guidance=1.0, steps=40)
    assert found["sr256"] == Sampling(steps=20, tile=128)
    assert with_changes(OWN, {}) == OWN


def test_a_change_inside_a_setting_leaves_the_rest():
    found = with_changes(OWN, {"guidance.interval": [0.2, 5], "guidance.experts.E1_1": 3})
    assert found["base"].guidance == Guidance(scale=1.0, interval=[0.2, 5], experts={"E1_1": 3})
    again = with_changes(found, {"guidance": 7})
    assert again["base"].guidance.scale == 7 and again["base"].guidance.interval == [0.2, 5]
    both = {"guidance": 5, "guidance.interval": [1, 2]}
    for changes in (both, dict(reversed(both.items()))):
        assert with_changes(OWN, changes)["base"].guidance == Guidance(scale=5, interval=[1, 2])
    experts = with_changes(found, {"guidance.experts.E1_0": 2})["base"].guidance
    assert experts == Guidance(scale=1.0, interval=[0.2, 5], experts={"E1_1": 3, "E1_0": 2})
    whole = with_changes({"base": found["base"]}, {"guidance": {"experts": {"E1_0": 2}}})["base"]
    assert whole.guidance == Guidance(scale=1.0, interval=[0.2, 5], experts={"E1_0": 2})
    parts = with_changes(OWN, {"guidance.scale": 5, "guidance": {"interval": [1, 2]}})["base"]
    assert parts.guidance == Guidance(scale=5, interval=[1, 2])
    assert found["base"].guidance.experts == {"E1_1": 3}
    heun = with_changes(OWN, {"solver": "heun", "churn.amount": 10})["base"]
    assert heun.churn.amount == 10 and heun.churn.scale == 1.003


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stesp": 3}, "no sampling setting `stesp`; did you mean `steps`"),
        ({"sr512.steps": 3}, "no sampling setting `sr512`.*stages base, sr256"),
        ({"guidance.foo": 1}, "no sampling setting `guidance.foo`"),
        ({"steps": 0}, "`steps` is 0"),
        ({"sr256.steps": "ten"}, "`sr256.steps` is 'ten'"),
        ({"guidance": -1}, "`guidance.scale` is -1"),
        (
            {"guidance": "strong"},
            "`guidance` is 'strong': write a number, or a mapping of scale, e",
        ),
        ({"churn": 40}, "`churn` is 40: write a mapping of amount, sigma_min"),
        ({"solver": "heun", "churn": {"amount": 4, "scale": float("inf")}}, "`churn.scale` is inf"),
        ({"guidance": float("nan")}, "`guidance.scale` is nan"),
        ({"guidance.interval": [3, 3]}, "between σ = 3.0 and 3.0 is nowhere"),
        ({"guidance.interval": [3]}, "`guidance.interval` is .3."),
        ({"churn.amount": 4}, "deis3 takes no churn; write `solver: heun`"),
        ({"sr256.churn.amount": 4}, "stage sr256: solver deis3 takes no churn"),
        ({"solver": "ddim"}, "solver 'ddim' is unknown; there are euler"),
        ({"sigma_min": -0.1}, "`sigma_min` is -0.1"),
        ({"sigma_min": 90}, "must be below `sigma_max`"),
        ({"percentile": 1.5}, "`percentile` is 1.5"),
        ({"tile": 64}, "an overlap of 32 on both sides leaves nothing of a tile of 64"),
        ({"precision": "float8"}, "`precision` is 'float8'"),
    ],
)
def test_what_is_refused_is_named_in_one_line(changes, message):
    with pytest.raises(ValueError, match=message) as error:
        with_changes(OWN, changes)
    assert "\n" not in str(error.value) and not isinstance(error.value, ValidationError)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({}, []),
        ({"percentile": 0.9}, ["percentile"]),
        ({"percentile": 0.9, "threshold": "dynamic"}, []),
        ({"history": "drop"}, []),
        ({"history": "drop", "solver": "heun"}, ["history"]),
        ({"tile": 128}, ["tile"]),
        ({"tile": 48, "overlap": 8}, []),
        ({"overlap": 8}, ["overlap"]),
        ({"guidance": {"interval": [1, 2]}}, ["guidance.interval"]),
        ({"guidance": {"scale": 1, "interval": [1, 2]}}, []),
        ({"guidance": {"scale": 1, "interval": [90, 99]}}, ["guidance.interval"]),
        ({"solver": "heun", "churn": {"amount": 1, "sigma_min": 90, "sigma_max": 99}}, ["churn"]),
    ],
)
def test_what_has_no_effect(settings, named):
    found = Sampling(**settings).ineffective(resolution=64, experts=["E1_1", "E1_0"])
    assert [name for name, _ in found] == named


def test_history_of_one_expert():
    assert [n for n, _ in Sampling(history="drop").ineffective(resolution=64, experts=["E0_0"])]


@pytest.mark.parametrize(
    ("settings", "calls"),
    [
        ({"steps": 10}, 10),
        ({"steps": 10, "solver": "heun"}, 19),
        ({"steps": 10, "guidance": 1}, 20),
        ({"steps": 10, "guidance": {"experts": {"E1_1": 1}}}, 20),
        (
            {
                "steps": 3,
                "sigma_min": 1,
                "sigma_max": 3,
                "guidance": {"scale": 1, "interval": [2, 9]},
            },
            4,
        ),
        ({"steps": 1}, 1),
    ],
)
def test_network_calls(settings, calls):
    assert Sampling(**settings).network_calls == calls


def test_the_noise_levels_are_the_samplers():
    torch = pytest.importorskip("torch")
    from ediffi_core.noise import edm_grid

    how = Sampling(steps=9, sigma_min=0.01, sigma_max=40, rho=5)
    grid = edm_grid(9, sigma_min=0.01, sigma_max=40, rho=5)[:-1]
    assert torch.allclose(torch.tensor(how._sigmas(), dtype=torch.float64), grid, rtol=1e-12)
