"""A pipeline whose experts' intervals follow from the root's loss."""

import pytest
from kit import ediffi, said, spec_with, strict_json

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]


def test_a_run_places_its_experts_by_the_trained_root(smoke, tmp_path):
    """From the smoke run's root, which is the same node."""
    store = smoke.copy(tmp_path / "store", "evaluate", "adopt", "promote", "train/base/E1_0")

    def by_difficulty(raw):
        raw["name"] = "placed"
        raw["stages"]["base"]["boundaries"] = "difficulty"
        del raw["stages"]["sr32"]

    spec = spec_with(tmp_path / "placed.yaml", by_difficulty)
    planned = strict_json(said("plan", spec, "--json", "--storage", store))["nodes"]
    cached = {n["id"]: n["cached"] for n in planned if n["id"].startswith(("train", "difficulty"))}
    assert cached["train/base/E0_0"] and cached["train/base/single"]
    assert not cached["difficulty/base"] and "train/base/E1_0" not in cached

    end = ediffi("run", spec, "--storage", store)
    assert end.returncode == 0, end.stdout + end.stderr
    assert "base cuts p(σ) by difficulty" in end.stdout
    (report,) = (store / "nodes/difficulty").glob("base-*/difficulty.json")
    half = strict_json(report.read_text())["boundaries"][15]
    experts = strict_json(said("tree", "--json", "--storage", store))["stages"]["base"]["experts"]
    assert [experts["E1_0"][q] for q in ("q_lo", "q_hi")] == [0.0, half]
    assert [experts["E1_1"][q] for q in ("q_lo", "q_hi")] == [half, 1.0]
    again = ediffi("run", spec, "--storage", store)
    assert again.returncode == 0 and " started" not in again.stdout
