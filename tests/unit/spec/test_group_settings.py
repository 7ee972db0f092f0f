"""Baselines, merges and routings that cannot be are refused before anything runs."""

import pytest
import yaml
from pydantic import ValidationError
from spec_kit import SPEC

from pipelines.spec.pipeline import Spec


def spec(**base):
    raw = yaml.safe_load(SPEC)
    raw["stages"]["base"] |= base
    return Spec.model_validate(raw)


GROWING = {
    "experts": {"E0_0": {"images": 64}},
    "ensemble": [],
    "adaptive": {"budget": 640, "images": 64},
}
BY_EXPERTS = {"mixed": {"images": 96, "density": "experts"}}


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"baselines": {"merged": {"images": 96}}}, "'merged' is the name of another model"),
        ({"routings": {"single": {"E1_0": "E0_0"}}}, "'single' is the name of another model"),
        ({"baselines": {"E1_1": {"images": 96}}}, "should match pattern"),
        (
            {"baselines": {"a": {"images": 96}}, "routings": {"a": {"E1_0": "E0_0"}}},
            "'a' names a baseline and a routing",
        ),
        ({"baselines": {"longer": {"images": 100}}}, "longer trains on 100 images.* write 96"),
        ({"baselines": {"longer": {"images": 48}}}, "`longer:` continues the root"),
        ({**GROWING, "baselines": BY_EXPERTS}, "needs a fixed list of experts"),
        ({**GROWING, "merge": {"E1_0": 1.0}}, "`merge:` needs a fixed list of experts"),
        (
            {
                "experts": {"E0_0": {"images": 64}},
                "ensemble": ["E0_0"],
                "baselines": BY_EXPERTS,
            },
            "`baselines.mixed.density: experts` needs experts below E0_0",
        ),
        ({"merge": {}}, "`merge:` names no expert"),
        ({"merge": {"E0_0": 1.0}}, "`merge:` names E0_0, which is no expert below E0_0"),
        ({"merge": {"E1_2": 1.0}}, "names E1_2.*did you mean `E1_"),
        ({"merge": {"E1_0": float("nan")}}, "write a finite weight"),
        (
            {
                "merge": {"E1_0": 1.0},
                "sampling": {"ema_length": 0.1},
                "training": {"batch": 16, "snapshot_images": 16},
            },
            "`merge:` has the stored averages .* remove `sampling.ema_length`",
        ),
        ({"routings": {"none": {}}}, "`routings.none` changes no slot; name one, such as `E1_1:`"),
        ({"routings": {"odd": {"E0_0": "E1_0"}}}, "names the slot E0_0, which `ensemble:` lacks"),
        ({"routings": {"odd": {"E1_0": "merged"}}}, "gives E1_0 to merged, which the stage does"),
        ({"routings": {"odd": {"E1_0": "single"}}}, "gives E1_0 to single, which the stage does"),
    ],
)
def test_a_mistake_is_named(settings, told):
    with pytest.raises(ValidationError, match=told):
        spec(**settings)


def test_a_slot_may_be_given_to_every_model_of_the_stage():
    routings = {name: {"E1_0": name} for name in ("E1_1", "single", "mixed", "merged")}
    found = spec(
        single={"images": 128},
        baselines=BY_EXPERTS,
        merge={"E1_0": 0.5, "E1_1": 0.5},
        routings={f"by_{name.lower()}": slots for name, slots in routings.items()},
    )
    assert set(found.stages["base"].routings) == {"by_e1_1", "by_single", "by_mixed", "by_merged"}
