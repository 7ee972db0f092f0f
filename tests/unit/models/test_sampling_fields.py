"""Every sampling setting can be set from a spec, the command line and a registered model's row, and
changes the picture."""

import json
import warnings
from dataclasses import dataclass
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from paths import SMOKE
from snapshot_kit import read_json, write_ensemble

from ediffi_core.conditioning import Conditioning, EmbeddingSpec
from ediffi_core.unet import UNetConfig
from pipelines.cli.drawing import parse_settings
from pipelines.models.limits import OPERATORS
from pipelines.models.pyfunc import parse_rows
from pipelines.models.stages import configured, draw, load_stages
from pipelines.spec import loading as specs
from pipelines.spec.base import nested
from pipelines.spec.sampling import Sampling, SamplingWarning, with_changes
from pipelines.spec.serving import Limits
from pipelines.store.artifacts import Store

SIDE = 16
CONFIG = UNetConfig(
    resolution=8,
    channels=8,
    channel_mult=(1, 2),
    blocks=1,
    layout="efficient",
    cross_attention=(4,),
    head_channels=8,
    token_dim=12,
    embeddings=(EmbeddingSpec(name="clip_image", dim=6, kind="pooled", attended=True),),
    low_res=True,
)
GUIDED = {"guidance": 40.0}
HEUN = {"solver": "heun", "churn.amount": 30.0}


@dataclass
class Case:
    """A value of a setting, and what else must be set for it to matter."""

    value: Any
    given: dict[str, Any] | None = None


CASES = {
    "steps": Case(3),
    "solver": Case("dpm++2m"),
    "guidance.scale": Case(2.0),
    "guidance.experts": Case({"E1_1": 3.0}),
    "guidance.interval": Case([1.0, 5.0], GUIDED),
    "threshold": Case("static", GUIDED),
    "percentile": Case(0.5, GUIDED | {"threshold": "dynamic"}),
    "sigma_min": Case(0.1),
    "sigma_max": Case(20.0),
    "rho": Case(3.0),
    "churn.amount": Case(20.0, {"solver": "heun"}),
    "churn.sigma_min": Case(2.0, HEUN),
    "churn.sigma_max": Case(2.0, HEUN),
    "churn.scale": Case(1.5, HEUN),
    "history": Case("drop"),
    "tile": Case(12, {"overlap": 4}),
    "overlap": Case(4, {"tile": 12, "overlap": 0}),
    "precision": Case("bfloat16"),
    "ema_length": Case(0.07),
}


def leaves(model=Sampling, at=""):
    """Dotted names of all settings."""
    for name, field in model.model_fields.items():
        inner, _ = nested(field.annotation)
        if inner:
            yield from leaves(inner, f"{at}{name}.")
        else:
            yield f"{at}{name}"


def test_every_setting_has_a_case():
    assert sorted(CASES) == sorted(leaves())


@pytest.fixture(scope="module")
def ensemble(tmp_path_factory):
    """The manifest of two trained experts in a store."""
    store = Store.at(str(tmp_path_factory.mktemp("store")))
    return read_json(write_ensemble(store, CONFIG))


@pytest.fixture(scope="module")
def stage(ensemble):
    return loaded(ensemble, Sampling(steps=8))


def loaded(ensemble, sampling):
    """The stage of an ensemble whose manifest has these settings."""
    settings = {**ensemble["stages"][0], "resolution": SIDE, "sampling": sampling.settings()}
    [found] = load_stages(Store.at(ensemble["store"]), [settings], ensemble["weights"])
    return found


def picture(ensemble, changes):
    own = {"base": Sampling(steps=8)}
    generator = torch.Generator().manual_seed(0)
    low = torch.rand(1, 3, 8, 8, generator=generator)
    cond = Conditioning(pooled={"clip_image": torch.arange(6.0)[None]}, low_res=low)
    changed = loaded(ensemble, with_changes(own, changes)["base"])
    return draw([changed], cond, seed=1)["base"]


# Of any kind, but for what another test has left behind, which is collected here by chance.
@pytest.mark.filterwarnings("error", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", CASES)
def test_it_changes_the_picture(name, ensemble):
    case = CASES[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SamplingWarning)  # an overlap that has no tile yet
        before = picture(ensemble, case.given or {})
    after = picture(ensemble, (case.given or {}) | {name: case.value})
    assert before.float().std() > 1 and not torch.equal(before, after)


@pytest.mark.parametrize("name", CASES)
def test_the_command_line_can_set_it_and_so_can_a_row_unless_it_is_the_operator_s(name):
    case = CASES[name]
    own = {"base": Sampling(), "sr": Sampling()}
    for at, stage in (("", "base"), ("sr.", "sr")):
        changes = {f"{at}{n}": v for n, v in {**(case.given or {}), name: case.value}.items()}
        expected = with_changes(own, changes)
        assert expected[stage] != own[stage]
        told = parse_settings([f"{n}={json.dumps(v)}" for n, v in changes.items()])
        assert with_changes(own, told) == expected
        frame = pd.DataFrame({"prompt": ["a cat"], "sampling": [json.dumps(changes)]})
        if {dotted.partition(".")[0] for dotted in (case.given or {}) | {name: 0}} & {*OPERATORS}:
            with pytest.raises(ValueError, match="may not be changed by a request"):
                parse_rows(frame, own, Limits())
            continue
        [request] = parse_rows(frame, own, Limits())
        assert with_changes(own, json.loads(request.options.sampling)) == expected


@pytest.mark.parametrize("name", CASES)
def test_a_spec_can_set_it(name, tmp_path):
    case = CASES[name]
    raw = yaml.safe_load(SMOKE.read_text())
    own = {}
    for dotted, value in {**(case.given or {}), name: case.value}.items():
        at = own
        *above, last = dotted.split(".")
        for part in above:
            before = at.get(part, {})
            at[part] = before if isinstance(before, dict) else {"scale": before}
            at = at[part]
        at[last] = value
    raw["stages"]["base"]["sampling"] = own
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(raw))
    found = specs.load(tmp_path / "spec.yaml").stages["base"].sampling
    stored = found.settings()
    assert Sampling.from_settings(stored) == found
    outermost = name.partition(".")[0]
    assert stored[outermost] != Sampling().settings().get(outermost)


def test_what_has_no_effect_warns(stage):
    with pytest.warns(SamplingWarning, match="base: `percentile` has no effect without"):
        configured(stage, Sampling(percentile=0.9))


def test_tiles_that_do_not_fit_the_network_are_told(stage):
    factor = stage.denoiser.experts[0].denoiser.net.config.factor
    assert factor > 1
    with pytest.warns(SamplingWarning, match=f"`overlap` 1; write a multiple of {factor}"):
        configured(stage, Sampling(tile=12, overlap=1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        configured(stage, Sampling(tile=12, overlap=factor))


def test_guidance_of_an_unknown_expert_is_refused(stage):
    with pytest.raises(ValueError, match="guidance for E9_9, but the ensemble has E1_0, E1_1"):
        configured(stage, Sampling(guidance={"experts": {"E9_9": 1.0}}))


def test_churn_is_the_same_for_a_picture_in_any_batch(stage):
    low = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    ones = {"clip_image": torch.ones(2, 6)}
    both = Conditioning(pooled=ones, low_res=low.expand(2, -1, -1, -1).contiguous())
    churned = configured(stage, Sampling(steps=4, solver="heun", churn={"amount": 30.0}))
    together = draw([churned], both, seed=[3, 4])["base"].int()
    alone = draw([churned], both[slice(1, 2)], seed=[4])["base"].int()
    assert (together[1] - alone[0]).abs().max() <= 1
    assert not torch.equal(together[0], together[1])
