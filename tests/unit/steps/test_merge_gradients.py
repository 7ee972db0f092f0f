"""Merged weights load as a model on all noise, routings serve any slot, gradients are exact."""

import json

import pytest
import torch
from snapshot_kit import CONFIG, HALVES, NOISE, write_expert, write_validation

from ediffi_core import draws
from ediffi_core.checkpoint import read, read_checked
from ediffi_core.noise import EVERYTHING, Interval, NoiseDistribution
from ediffi_core.precond import denoising_loss
from pipelines.evaluation.job import text_only
from pipelines.models.stages import load_ensemble, load_stages, slots_of
from pipelines.runs.context import Context
from pipelines.steps import gradients, merge
from pipelines.steps.ensemble_weights import located
from pipelines.store.artifacts import Store
from pipelines.store.reader import Reader
from pipelines.training.validation import validation_batch

NAMES = ("E0_0", *HALVES)
MERGE = {"expert": "merged", "interval": [0.0, 1.0], "root": "E0_0"}
MERGE |= {"weights": {"E1_0": 0.5, "E1_1": 0.25}}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A store with a root and two experts; their folders and manifests by name."""
    store = Store.at(str(tmp_path_factory.mktemp("store")))
    folders, manifests = {}, {}
    for name in NAMES:
        path = write_expert(store, CONFIG, name, every=None, drift=0.02)["path"]
        folders[name] = path.rpartition("/")[0]
        manifest = dict(store.manifest(folders[name]))
        sha = read(store.local(path))[1].weights_sha256
        manifests[name] = {**manifest, "info": {"weights_sha256": sha}}
    return store, folders, manifests


def context(store, manifests, folder, **runtime):
    return Context(
        node="merge/base",
        fingerprint="f",
        store=store,
        folder=folder,
        cpus=1,
        runtime=runtime,
        manifests=manifests,
        board=None,
    )


def run_merge(made):
    store, folders, manifests = made
    return merge.step(context(store, manifests, "nodes/merge/base-f"), MERGE, folders)


def test_merged_weights_load_as_a_model_on_all_noise(made):
    store, folders, manifests = made
    result = run_merge(made)
    node = {"settings": MERGE, "info": result.info, "fingerprint": "f"}
    stage = {"name": "base", "experts": {"merged": [0.0, 1.0]}}
    places = located({"base/merged": node}, [stage], {"base/merged": "nodes/merge/base-f"})
    ensemble = load_ensemble(store, slots_of(stage, places))
    root, one, two = (read(store.local(f"{folders[name]}/ema.safetensors"))[0] for name in NAMES)
    [expert] = ensemble.experts
    for name, value in expert.denoiser.state_dict().items():
        r, x, y = (of[name].double() for of in (root, one, two))
        assert torch.equal(value, (r + 0.5 * (x - r) + 0.25 * (y - r)).float())
    _, card = read_checked(store.local("nodes/merge/base-f/ema.safetensors"), interval=EVERYTHING)
    assert card.weights_sha256 == result.info["weights_sha256"]
    assert card.parent["sha256"] == manifests["E0_0"]["info"]["weights_sha256"]


def test_a_merge_refuses_weights_that_are_not_the_nodes(made):
    store, folders, manifests = made
    wrong = {**manifests, "E1_0": {**manifests["E1_0"], "info": {"weights_sha256": "0" * 64}}}
    with pytest.raises(ValueError, match="remove that node and run it again"):
        merge.step(context(store, wrong, "nodes/merge/base-w"), MERGE, folders)


def test_a_routing_serves_slots_with_experts_of_other_noise(made):
    store, folders, manifests = made
    intervals = {name: [i.q_lo, i.q_hi] for name, i in HALVES.items()}
    stage = {"name": "base", "resolution": 8, "experts": intervals, "sampling": {"steps": 2}}
    roles = {f"base/{name}": folders[name] for name in NAMES}
    by_role = {f"base/{name}": manifests[name] for name in NAMES}

    def denoisers(**routing):
        settings = {**stage, "routing": {name: name for name in HALVES} | routing}
        [loaded] = load_stages(store, [settings], located(by_role, [settings], roles))
        return {e.name: next(e.denoiser.parameters()) for e in loaded.denoiser.experts}

    plain, swapped = denoisers(), denoisers(E1_0="E1_1", E1_1="E1_0")
    assert torch.equal(swapped["E1_0"], plain["E1_1"])
    assert torch.equal(swapped["E1_1"], plain["E1_0"])
    assert not torch.equal(plain["E1_0"], plain["E1_1"])
    # Without a routing, an expert that was not trained on a slot's noise is refused.
    strange = located(by_role, [stage], roles)
    strange["base/E1_0"] = strange["base/E1_1"]
    with pytest.raises(ValueError, match="but should serve"):
        load_stages(store, [stage], strange)


def test_gradients_are_those_of_the_mean_loss(made):
    store, folders, manifests = made
    data = write_validation(store)
    settings = {"expert": "E0_0", "bins": 3, "pictures": 8, "resolution": 8, "noise": NOISE}
    settings |= {"sigma_data": 0.5, "conditioning": "text", "seed": 4}
    ctx = context(store, {"root": manifests["E0_0"]}, "nodes/gradients/base", batch=3, gpus=0)
    result = gradients.step(ctx, settings, {"root": folders["E0_0"], "validation": data})
    found = json.loads(store.local("nodes/gradients/base/gradients.json").read_text())
    assert found["quantiles"][1] == [1 / 3, 2 / 3]
    assert found["sigma"][0][0] == 0 and found["sigma"][-1][1] is None

    ensemble = load_ensemble(store, slots_of(*whole(folders)))
    model = ensemble.experts[0].denoiser.requires_grad_(True)
    reader = Reader(store, data, 8)
    rows = []
    for at in range(3):
        index = torch.arange(8) + 8 * at
        x, cond = validation_batch(reader, index % 8, settings)
        u = draws.rotated(4, "gradients/sigma", index, 8)
        sigma = Interval(at / 3, (at + 1) / 3).draw(u, NoiseDistribution(**NOISE))
        eps = draws.normal(4, "gradients/eps", index, (3, 8, 8))
        loss = denoising_loss(model, 0.5, x, sigma, eps, text_only(cond)).mean()
        parts = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
        rows.append(torch.cat([p.flatten() for p in parts if p is not None]).double())
    together = torch.stack(rows)
    cosine = torch.nn.functional.cosine_similarity(together[:, None], together[None], dim=2)
    assert torch.allclose(torch.tensor(found["cosine"]).double(), cosine, atol=1e-5)
    norm = torch.tensor(found["norm"]).double()
    assert torch.allclose(norm, together.norm(dim=1), rtol=1e-4)
    near = (cosine[0, 1] + cosine[1, 2]) / 2
    assert result.metrics["cosine/distance_1"] == pytest.approx(float(near), abs=1e-5)


def whole(folders):
    """A stage of the root alone, and its weights."""
    weights = {"base/E0_0": {"path": f"{folders['E0_0']}/ema.safetensors", "expert": "E0_0"}}
    return {"name": "base", "experts": {"E0_0": [0.0, 1.0]}}, weights
