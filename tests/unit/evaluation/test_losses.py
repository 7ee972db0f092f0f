"""The gate, with real networks: every expert is measured the same way in both ensembles."""

import copy
import math

import pytest
import torch
from torch import nn

from ediffi_core import draws, tree
from ediffi_core.conditioning import Conditioning, EmbeddingSpec
from ediffi_core.ensemble import Ensemble, Expert
from ediffi_core.noise import NoiseDistribution, SamplerDensity
from ediffi_core.precond import Denoiser, denoising_loss
from ediffi_core.unet import UNet, UNetConfig
from pipelines.evaluation import losses
from pipelines.runs.context import Context
from pipelines.steps import gate
from pipelines.store.artifacts import Store

torch.set_num_threads(1)

NOISE = NoiseDistribution()
CONFIG_D = ["E9_511", "M_C", "E3_0"]
PICTURES = 48
PROMPTS = torch.tensor([[0.8, -0.8, -0.8], [-0.8, 0.8, -0.8], [-0.8, -0.8, 0.8], [0.8, 0.8, -0.8]])
"""The colour of a whole picture, by its prompt."""


def pictures(index, purpose):
    """Plain pictures with some grain, and the prompt of each: one of four. [N, 3, 8, 8]"""
    which = (draws.uniform(0, f"{purpose}/prompt", index, 1)[:, 0] * 4).long()
    grain = 0.1 * draws.normal(0, purpose, index, (3, 8, 8))
    x = PROMPTS[which][:, :, None, None] + grain
    return x, Conditioning(pooled={"clip_text_pooled": torch.eye(4)[which]})


def held_out(index):
    return pictures(index % PICTURES, "held-out")


def train(denoiser, begin, end, noise_levels):
    """Steps of training on 32 pictures each."""
    optimizer = torch.optim.Adam(denoiser.parameters(), 2e-3)
    for step in range(begin, end):
        index = torch.arange(32) + 32 * step
        x, cond = pictures(index, "train")
        sigma = noise_levels(draws.rotated(0, "sigma", index, 32))
        eps = draws.normal(0, "eps", index, (3, 8, 8))
        optimizer.zero_grad()
        denoising_loss(denoiser, 0.5, x, sigma, eps, cond).mean().backward()
        optimizer.step()
    return denoiser


def everywhere(u):
    """Half by p(σ), half by the sampler's steps."""
    return torch.where(torch.arange(len(u)) % 2 == 0, NOISE.sigma(u), SamplerDensity().sigma(u))


@pytest.fixture(scope="module")
def root():
    torch.manual_seed(0)
    config = UNetConfig(
        resolution=8,
        channels=16,
        channel_mult=(1,),
        blocks=1,
        self_attention=(),
        cross_attention=(),
        head_channels=8,
        token_dim=8,
        embeddings=(EmbeddingSpec(name="clip_text_pooled", dim=4, kind="pooled"),),
    )
    return train(Denoiser(UNet(config)), 0, 80, everywhere).eval()


@pytest.fixture(scope="module")
def further(root):
    """The root, trained on by p(σ) alone, as the complement's weights would be."""
    return train(copy.deepcopy(root).train(), 80, 120, NOISE.sigma).eval()


@pytest.fixture(scope="module")
def blind(root):
    """The root, made to ignore the prompt."""
    found = copy.deepcopy(root)
    with torch.no_grad():
        found.net.projection.to_global["clip_text_pooled"].weight.zero_()
    return found


def ensemble(denoisers, noise=NOISE):
    intervals = tree.intervals_of(list(denoisers))
    experts = [Expert(name, intervals[name], of) for name, of in denoisers.items()]
    return Ensemble(experts, noise).requires_grad_(False)


def how(names, *, noise=NOISE, cut=NOISE, sigma_data=0.5, draws=480):
    experts = {n: [i.q_lo, i.q_hi] for n, i in tree.intervals_of(names).items()}
    given = {
        key: {"P_mean": of.P_mean, "P_std": of.P_std}
        for key, of in (("noise", noise), ("cut", cut))
    }
    return {"draws": draws, "experts": experts, "sigma_data": sigma_data, "seed": 0, **given}


class Gate:
    """Measures a candidate and a champion alike, and asks who is better."""

    def __init__(self, root):
        self.store = Store.open(str(root))

    def __call__(self, candidate, champion, settings):
        for role, of in (("ensemble", candidate), ("champion", champion)):
            found = losses.measure(of, held_out, settings, pictures=PICTURES, batch=240)
            found.write(self.store, role)
        context = Context(
            node="gate",
            fingerprint="f",
            store=self.store,
            folder="gate",
            cpus=0,
            runtime={},
            manifests={},
            board=None,
        )
        rule = {"rule": {"metric": "val_loss", "margin": 0.0}, "champion": "c"}
        inputs = {"ensemble/base": "ensemble", "champion/base": "champion"}
        info = gate.step(context, rule, inputs).info
        self.rows = {row["on"].removeprefix("base"): row for row in info["compared"]}
        return info


@pytest.fixture
def decide(tmp_path):
    return Gate(tmp_path)


@pytest.mark.slow
def test_an_ensemble_whose_high_noise_expert_ignores_the_prompt_is_refused(
    decide, root, further, blind
):
    champion = ensemble(dict.fromkeys(CONFIG_D, root))
    better = {"E9_511": root, "M_C": further, "E3_0": further}
    found = decide(ensemble(better), champion, how(CONFIG_D))
    assert found["wins"], found["why"]

    found = decide(ensemble({**better, "E9_511": blind}), champion, how(CONFIG_D))
    rows = decide.rows
    assert rows[""]["low"] > 0  # better over p(σ), which is all that the gate once looked at
    assert rows[" over the sampler's steps"]["high"] < 0
    assert rows[" in the interval of E9_511 (σ ≥ 9.61)"]["high"] < 0
    assert rows[" in the interval of M_C (0.07574 ≤ σ < 9.61)"]["low"] > 0
    assert not found["wins"] and "is worse than the champion's" in found["why"]
    draws = {row["draws"] for on, row in rows.items() if "interval" in on}
    assert draws == {480}


def test_it_is_seen_also_by_a_tree_that_has_no_such_expert(decide, root, further, blind):
    """A candidate of one expert beside a champion of three: the champion's intervals count too."""

    class Routed(nn.Module):
        sigma_data = 0.5

        def __init__(self):
            super().__init__()
            self.low, self.high = further, blind

        def forward(self, x, sigma, cond):
            answer = self.low(x, sigma, cond)
            deaf = sigma >= 9.609593
            answer[deaf] = self.high(x[deaf], sigma[deaf], cond[deaf])
            return answer

    champion = ensemble(dict.fromkeys(CONFIG_D, root))
    found = decide(ensemble({"E0_0": Routed()}), champion, how(["E0_0"], draws=1440))
    assert not found["wins"]
    row = decide.rows[" in the interval of champion E9_511 (σ ≥ 9.61)"]
    assert row["high"] < 0 and row["draws"] > 200
    assert decide.rows[""]["low"] > 0


CHANGED = {
    "P_std": {"noise": NoiseDistribution(P_std=1.0)},
    "P_mean": {"noise": NoiseDistribution(P_mean=0.5)},
    "sigma_data": {"sigma_data": 0.6},
    "tree": {"names": ["E2_3", "M_C", "E1_0"]},
}


@pytest.mark.parametrize("change", CHANGED)
def test_a_model_ties_with_itself_however_else_it_was_trained(decide, root, change):
    """The same function, said to be trained with other settings: one measure for both sides."""

    class Same(nn.Module):
        def __init__(self, sigma_data):
            super().__init__()
            self.inner, self.sigma_data = root, sigma_data

        def forward(self, x, sigma, cond):
            return self.inner(x, sigma, cond)

    given = {"names": CONFIG_D, "noise": NOISE, "sigma_data": 0.5, **CHANGED[change]}
    same = Same(given["sigma_data"])
    candidate = ensemble(dict.fromkeys(given["names"], same), given["noise"])
    champion = ensemble(dict.fromkeys(CONFIG_D, root))
    settings = how(given["names"], cut=given["noise"], draws=96)
    found = decide(candidate, champion, settings)
    assert not found["wins"] and "is no better than the champion's" in found["why"]
    for row in found["compared"]:
        assert row["candidate"] == pytest.approx(row["champion"], rel=1e-5)
        assert row["low"] <= 0 <= row["high"]


@pytest.mark.parametrize(
    "change", [{"noise": NoiseDistribution(P_mean=0.5)}, {"sigma_data": 0.6}], ids=str
)
def test_the_same_model_measured_in_two_ways_is_another_number(root, change):
    """Why it must be one measure: by these alone it would have won or lost against itself."""
    of = ensemble({"E0_0": root})
    once, again = (
        losses.measure(of, held_out, how(["E0_0"], **more), pictures=PICTURES, batch=240)
        for more in ({}, change)
    )
    first, second = (float(found.over(losses.OVER_NOISE).mean()) for found in (once, again))
    assert abs(first / second - 1) > 0.05
    assert losses.mismatch(once, again)


@pytest.mark.slow
def test_scores_are_of_pictures_and_add_up_to_the_whole(root):
    of = ensemble(dict.fromkeys(CONFIG_D, root))
    found = losses.measure(of, held_out, how(CONFIG_D), pictures=PICTURES, batch=240)
    scores = found.scores()
    assert list(scores) == ["val_loss", "val_loss/sampler"] + [
        f"val_loss/{name}" for name in reversed(CONFIG_D)
    ]
    assert {len(values) for values in scores.values()} == {PICTURES}
    # Against a plain mean over p(σ), of as many draws as it needs.
    many = how(["E0_0"], draws=4800)
    plain = losses.measure(of, held_out, many, pictures=PICTURES, batch=480)
    mean = float(scores["val_loss"].mean())
    assert mean == pytest.approx(float(plain.over("val_loss").mean()), rel=0.1)
    assert found.experts["E9_511"] == (pytest.approx(9.609593), math.inf)


def test_a_loss_that_is_no_number_makes_none_of_its_interval(root, blind):
    with torch.no_grad():
        sick = copy.deepcopy(blind)
        sick.net.out.bias.fill_(math.inf)
    of = ensemble({"E9_511": sick, "M_C": root, "E3_0": root})
    scores = losses.measure(
        of, held_out, how(CONFIG_D, draws=48), pictures=PICTURES, batch=48
    ).scores()
    broken = {name for name, values in scores.items() if bool(values.isnan().any())}
    assert broken == {"val_loss", "val_loss/sampler", "val_loss/E9_511"}
