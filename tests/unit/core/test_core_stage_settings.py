"""Sampling settings from plain values: the same as a spec's, after a way through JSON."""

import json

import pytest

from ediffi_core.cascade import CascadeStage
from ediffi_core.stage_settings import DEFAULTS, with_settings
from pipelines.spec.sampling import Sampling


def zero(x, sigma, cond):
    return 0 * x


STAGE = CascadeStage(name="base", denoiser=zero, resolution=8)


def test_the_defaults_are_those_of_a_spec():
    own = Sampling().model_dump(mode="json")
    assert {name: own[name] for name in DEFAULTS} == {
        **DEFAULTS,
        "guidance": {"scale": 0.0, "experts": {}, "interval": None},
    }


def test_what_is_not_given_returns_to_its_default():
    changed = with_settings(STAGE, {"steps": 3, "solver": "heun", "churn": {"amount": 1.0}})
    assert (changed.steps, changed.solver) == (3, "heun") and changed.churn
    assert with_settings(changed, {}) == with_settings(STAGE, {})


def test_guidance_is_a_number_or_a_mapping_and_json_keeps_it():
    assert with_settings(STAGE, {"guidance": 2.0}).guidance == 2.0
    given = Sampling(guidance={"scale": 3.0, "interval": [1.0, 5.0]}).model_dump(mode="json")
    scale = with_settings(STAGE, {"guidance": json.loads(json.dumps(given))["guidance"]}).guidance
    assert [scale(sigma) for sigma in (0.5, 1.0, 4.0, 5.0)] == [0.0, 3.0, 3.0, 0.0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stepz": 3}, "there is no sampling setting 'stepz' .there are steps, solver"),
        ({"guidance": {"scal": 3}}, r"'guidance\.scal' .there are scale, experts, interval"),
        ({"solver": "heun", "churn": {"much": 3}}, r"'churn\.much' .there are amount"),
        ({"threshold": "sometimes"}, "threshold 'sometimes' is unknown"),
        ({"guidance": {"experts": {"E1_0": 1.0}}}, "stage base has no experts to guide"),
    ],
)
def test_mistakes_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        with_settings(STAGE, settings)
