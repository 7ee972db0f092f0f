"""The boundaries that a difficulty node measures cut the root's loss into equal shares."""

import json

import pytest
import torch
from snapshot_kit import CONFIG, write_expert, write_validation

from ediffi_core.checkpoint import read
from ediffi_core.noise import NoiseDistribution
from ediffi_core.tree import Warp
from pipelines.runs.context import Context
from pipelines.steps import difficulty
from pipelines.store.artifacts import Store


@pytest.mark.parametrize("power", [0.5, 1, 3])
def test_equal_shares_invert_a_known_distribution(power):
    """A loss whose cumulated share is q^power."""
    n = 64
    losses = [((k + 1) / n) ** power - (k / n) ** power for k in range(n)]
    expected = [(k / n) ** (1 / power) for k in range(1, n)]
    found = difficulty.equal_shares(losses)
    assert found == pytest.approx(expected, abs=1 / n)
    edges = torch.tensor(difficulty.cumulated(losses)).double()
    for k, cut in enumerate(found, start=1):  # piecewise linear in between
        at = min(int(cut * n), n - 1)
        below = edges[at] + (edges[at + 1] - edges[at]) * (cut * n - at)
        assert float(below) == pytest.approx(k / n, abs=1e-4)


def test_an_even_loss_gives_equal_shares_of_p_of_sigma():
    cuts = difficulty.equal_shares([0.25] * 32)
    assert cuts == [round(k / 32, 6) for k in range(1, 32)]
    assert Warp(tuple(cuts))(0.5) == 0.5


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    store = Store.at(str(tmp_path_factory.mktemp("store")))
    validation = write_validation(store)
    entry = write_expert(store, CONFIG, "E0_0", every=None, scale=0.1, drift=0.0)
    folder = entry["path"].rpartition("/")[0]
    manifest = store.manifest(folder)
    manifest["info"]["weights_sha256"] = read(store.local(entry["path"]))[1].weights_sha256
    context = Context(
        node="difficulty/base",
        fingerprint="f",
        store=store,
        folder="nodes/difficulty/base-f",
        cpus=1,
        runtime={"gpus": 0},
        manifests={"root": manifest},
        board=None,
    )
    settings = {"draws": 1024, "shares": 8, "resolution": 8, "seed": 0}
    inputs = {"root": folder, "validation": validation}
    return context, difficulty.step(context, settings, inputs), (settings, inputs)


def test_a_root_s_loss_is_cut_into_equal_shares(measured):
    context, result, _ = measured
    report = json.loads(context.store.read(f"{context.folder}/difficulty.json"))
    assert result.info["boundaries"] == report["boundaries"]
    assert report["boundaries"] == difficulty.equal_shares(report["loss"])
    assert report["quantiles"] == [k / 8 for k in range(9)] and report["sigma"][-1] is None
    assert report["cumulated"][0] == 0 and report["cumulated"][-1] == 1
    mean = sum(report["loss"]) / 8
    assert result.metrics["val_loss"] == pytest.approx(mean, rel=0.02)
    assert result.metrics["half_quantile"] == report["boundaries"][3]
    sigma = NoiseDistribution().sigma_at(report["boundaries"][3])
    assert result.metrics["half_sigma"] == sigma


def test_the_measurement_repeats_bit_for_bit_and_damaged_weights_are_refused(measured):
    context, result, (settings, inputs) = measured
    assert difficulty.step(context, settings, inputs).info == result.info
    context.manifests["root"]["info"]["weights_sha256"] = "0" * 64
    with pytest.raises(ValueError, match="holds weights"):
        difficulty.step(context, settings, inputs)
