"""A tree that grows while it is trained: what it decides, and that a rerun decides alike."""

import pytest
from kit import ediffi, said, spec_with, strict_json

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]


def test_a_tree_grows_until_it_stops_by_itself(smoke, tmp_path):
    """From the smoke run's root and first two experts, which are the same nodes."""
    store = smoke.copy(tmp_path / "store", "evaluate", "adopt", "promote", "train/base/single")

    def grows(raw):
        raw["name"] = "grown"
        del raw["stages"]["base"]["single"], raw["stages"]["base"]["ensemble"]
        raw["stages"]["base"] |= {
            "experts": {"E0_0": {"images": 256}},
            "adaptive": {"budget": 128 * 5, "images": 128, "depth": 2},
        }

    spec = spec_with(tmp_path / "grown.yaml", grows)
    end = ediffi("run", spec, "--storage", store)
    assert end.returncode == 0, end.stdout + end.stderr
    tree = strict_json(said("tree", "--json", "--storage", store))["stages"]["base"]
    decisions = tree["decisions"]
    assert {d["expert"] for d in decisions} >= {"E1_1", "E1_0"}
    assert tree["end"] and tree["end"] in decisions[-1]["then"]
    working = {piece["expert"] for piece in tree["ensemble"]}
    assert working == {n for n, e in tree["experts"].items() if e["in_ensemble"]}
    again = ediffi("run", spec, "--storage", store)
    assert again.returncode == 0 and " started" not in again.stdout
    assert strict_json(said("tree", "--json", "--storage", store))["stages"]["base"] == {
        **tree,
        "experts": {n: {**e, "state": "reused"} for n, e in tree["experts"].items()},
    }
